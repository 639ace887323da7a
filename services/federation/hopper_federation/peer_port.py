"""
The port that peers reach: mTLS, one service, no reflection; every call is looked at by `peer_guard`.

    handshake: a certificate that an anchor of some peer vouches for ─► each call: whose, in time, how far trusted
    a revocation ends calls under way within a second; `max_connection_age` ends connections in the end
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import structlog

from hopper_common.auth.directory import Directory
from hopper_common.auth.rates import Limiter
from hopper_common.clock import Clock
from hopper_common.identity.store import Identity
from hopper_common.identity.tls import server_credentials
from hopper_common.rpc.guard import Auditing, CallerGuard
from hopper_common.rpc.server import Registered, build_server
from hopper_common.startup import AddressRefused
from hopper_federation import addresses
from hopper_federation.anchors import Anchors
from hopper_federation.peer_guard import PATH, Peers
from hopper_federation.trust_snapshot import TrustSnapshots

log = structlog.get_logger(__name__)

OPTIONS: Final = {
    "grpc.max_receive_message_length": 4 * 1024 * 1024,
    "grpc.max_metadata_size": 8 * 1024,
    "grpc.absolute_max_metadata_size": 8
    * 1024,  # else what is twice as much is only refused more often than not
    "grpc.max_concurrent_streams": 128,
    "grpc.max_allowed_incoming_connections": 256,
    "grpc.server_handshake_timeout_ms": 5_000,
    "grpc.max_connection_age_ms": 600_000,
    "grpc.max_connection_age_grace_ms": 60_000,
    # A peer that is cut off is noticed in 15 s, and so is this one by it.
    "grpc.keepalive_time_ms": 9_000,
    "grpc.keepalive_timeout_ms": 5_000,
    "grpc.http2.ping_timeout_ms": 5_000,  # of pings for bandwidth, which take the place of others; see `peer_links`
    "grpc.http2.min_recv_ping_interval_without_data_ms": 5_000,
}


def guard_of(
    peers: Peers, snapshots: TrustSnapshots, limiter: Limiter, audit: Auditing, clock: Clock
) -> CallerGuard:
    """The guard of the port. Calls under way are looked at again as soon as trust changes."""
    guard = CallerGuard(peers, Directory(clock.monotonic), limiter, audit, clock)
    snapshots.on_change(lambda _: guard.look_soon())
    return guard


@asynccontextmanager
async def peer_port(
    listen: str, identity: Identity, anchors: Anchors, guard: CallerGuard, offered: Sequence[Registered]
) -> AsyncIterator[int]:
    """
    Listen for peers.

    Args:
        listen: `host:port`; port 0 takes a free one.

    Yields:
        The port.

    Raises:
        AddressRefused: Somebody else has the port, or there is no such interface.
    """
    server = build_server(offered, owner=guard, options=OPTIONS, described=False)
    host, port = addresses.split(listen, least_port=0)
    where = addresses.joined(host, port)
    try:
        bound = server.add_secure_port(where, server_credentials(identity, PATH, lambda: anchors.pool))
    except RuntimeError as error:
        raise AddressRefused(
            f"cannot listen for peers on {where}: stop whoever has the port, or choose another (HOPPER_PEER_LISTEN)"
        ) from error
    await server.start()
    log.info("peers are listened for", address=addresses.joined(host, bound))
    try:
        yield bound
    finally:
        await server.stop(1.0)
