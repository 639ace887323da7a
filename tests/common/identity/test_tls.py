"""Real handshakes: who gets in, who does not, and what happens to connections when keys change."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509

from hopper_common.identity.certificates import Leaf, constrained_anchor, new_root, to_pem
from hopper_common.identity.rotation import Verb
from hopper_common.identity.store import Identity, IdentityStore, renew_time
from hopper_common.identity.tls import (
    channel_credentials,
    open_secure_channel,
    own_roots,
    server_credentials,
)
from hopper_testing.certificates import Authority, attacks
from hopper_testing.clock import ManualClock

REGISTRY, ROUTER = "/svc/registry", "/svc/router"
SECONDS = 30.0


@pytest.fixture
def clock() -> ManualClock:
    # TLS goes by the machine's clock.
    return ManualClock(datetime.now(UTC).replace(microsecond=0))


@pytest.fixture
def identity(tmp_path: Path, clock: ManualClock) -> Identity:
    return IdentityStore.open(tmp_path / "data" / "identity", clock)


@dataclass
class Echo(grpc.GenericRpcHandler):
    """
    Answers every call with who called.

    Attributes:
        callers: The SPIFFE id of each, in order; empty where gRPC sees none.
        go_on: What `/test/Wait` waits for.
    """

    callers: list[str] = field(default_factory=list)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        async def answer(request: bytes, context: Any) -> bytes:
            found = context.auth_context()
            caller = b"".join(found.get("peer_spiffe_id", [])).decode()
            self.callers.append(caller)
            if handler_call_details.method == "/test/Wait":
                self.waiting.set()
                await self.go_on.wait()
            return b"|".join([caller.encode(), *found.get("ssl_tls_version", [])])

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def serving(credentials: grpc.ServerCredentials) -> AsyncIterator[tuple[str, Echo]]:
    server, echo = grpc.aio.server(), Echo()
    server.add_generic_rpc_handlers([echo])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}", echo
    finally:
        await server.stop(None)


def own_server(identity: Identity) -> grpc.ServerCredentials:
    return server_credentials(identity, REGISTRY, lambda: own_roots(identity))


async def ask(channel: grpc.aio.Channel, method: str = "/test/Who") -> str:
    answer: bytes = await channel.unary_unary(method)(b"", timeout=SECONDS)
    return answer.decode()


def dial(
    address: str, roots: bytes, name: str, leaf: Leaf | None = None, chain: bytes | None = None
) -> grpc.aio.Channel:
    credentials = (
        grpc.ssl_channel_credentials(roots)
        if leaf is None
        else grpc.ssl_channel_credentials(roots, leaf.key_pem, chain or leaf.chain_pem)
    )
    options = (("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1))
    return grpc.aio.secure_channel(address, credentials, options=options)


async def outcome(channel: grpc.aio.Channel) -> str:
    async with channel:
        try:
            await ask(channel)
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return "OK"


async def shown_by(address: str, identity: Identity, directory: Path) -> x509.Certificate:
    """The certificate that a server shows in a new handshake."""
    leaf = identity.issue(ROUTER)
    file = directory / "client.pem"
    file.write_bytes(leaf.key_pem + leaf.chain_pem)
    context = ssl.create_default_context(cadata=own_roots(identity).decode())
    context.load_cert_chain(file)
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(
        host, int(port), ssl=context, server_hostname=f"registry.{identity.trust_domain}"
    )
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der)


async def test_both_ends_prove_who_they_are(identity: Identity) -> None:
    async with (
        serving(own_server(identity)) as (address, _),
        open_secure_channel(address, identity, "registry") as channel,
    ):
        assert await ask(channel) == f"spiffe://{identity.trust_domain}/svc/router|TLSv1.3"


async def test_a_client_refuses_another_service_than_it_wants(identity: Identity) -> None:
    async with serving(own_server(identity)) as (address, echo):
        assert await outcome(open_secure_channel(address, identity, "memory")) == "UNAVAILABLE"
        assert echo.callers == []


async def test_another_hopper_is_refused_by_servers_and_by_clients(
    tmp_path: Path, identity: Identity, clock: ManualClock
) -> None:
    other = IdentityStore.open(tmp_path / "other" / "identity", clock)
    async with serving(own_server(identity)) as (address, echo):
        name = f"registry.{identity.trust_domain}"
        assert await outcome(dial(address, own_roots(identity), name, other.leaf())) == "UNAVAILABLE"
        assert await outcome(dial(address, own_roots(identity), name)) == "UNAVAILABLE"
        assert await outcome(dial(address, own_roots(other), name, identity.leaf())) == "UNAVAILABLE"
        assert await outcome(open_secure_channel(address, other, "registry")) == "UNAVAILABLE"
        assert echo.callers == []
        assert await outcome(dial(address, own_roots(identity), name, identity.leaf())) == "OK"


async def test_a_port_that_needs_no_client_certificate_asks_for_none(identity: Identity) -> None:
    credentials = server_credentials(identity, "/svc/federation", lambda: b"", require_client=False)
    async with serving(credentials) as (address, echo):
        name = f"federation.{identity.trust_domain}"
        assert await outcome(dial(address, own_roots(identity), name)) == "OK"
        assert await outcome(dial(address, own_roots(identity), name, identity.leaf())) == "OK"
        assert echo.callers == ["", ""]


# Peers, and what their roots may do.

# What a handshake cannot refuse is for the check of each call: the name is not one, or is not one for this port, or it
# came through an intermediate.
GETS_THROUGH_TLS = {"two URIs", "own URI twice", "no URI", "agent", "no path"}


@pytest.mark.parametrize("path_of", ["constrained"])
async def test_a_constrained_anchor_refuses_what_a_paired_attacker_forges(
    identity: Identity, clock: ManualClock, path_of: str
) -> None:
    """F02-F06 in the handshake: every attack of the factory by a peer that is trusted for itself."""
    now = clock.now()
    attacker, victim, signer = Authority.new(now), Authority.new(now), new_root(now)
    anchors = b"".join(
        constrained_anchor(each.root.certificate, each.trust_domain, signer, now)
        for each in (attacker, victim)
    )
    credentials = server_credentials(identity, "/svc/federation", lambda: anchors)
    through = {}
    async with serving(credentials) as (address, echo):
        name = f"federation.{identity.trust_domain}"
        for kind, leaf in attacks(attacker, victim.root.certificate, victim.trust_domain).items():
            echo.callers.clear()
            if await outcome(dial(address, own_roots(identity), name, leaf)) == "OK":
                through[kind] = echo.callers[0]
        for each in (attacker, victim):
            assert await outcome(dial(address, own_roots(identity), name, each.leaf())) == "OK"
    named = {kind: caller for kind, caller in through.items() if not kind.startswith("malformed")}
    assert set(named) == GETS_THROUGH_TLS
    assert not any(victim.trust_domain in caller for caller in through.values())
