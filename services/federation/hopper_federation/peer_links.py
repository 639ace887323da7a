"""
The way to each peer: one channel, which accepts nobody but the peer, follows both sides' keys, and moves on to the
peer's next address when one does not answer.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
import grpc.aio

from hopper.common.v1.identity_pb2 import SignedBundle, TrustBundle
from hopper.federation.v1 import peer_service_pb2 as svc
from hopper.federation.v1.peer_service_pb2_grpc import PeerServiceStub
from hopper_common.clock import Clock
from hopper_common.errors import HopperError, PermissionDenied, Unavailable
from hopper_common.identity.bundles import verify_bundle
from hopper_common.identity.certificates import to_pem
from hopper_common.identity.following import FollowingChannel
from hopper_common.identity.signing import Signature, verify_signature
from hopper_common.identity.spiffe import trust_domain_of
from hopper_common.identity.tls import channel_credentials
from hopper_common.rpc.errors import DeadlineExceeded, from_rpc_error
from hopper_common.timestamps import from_proto
from hopper_federation import bundles_kept, dialling, greeting
from hopper_federation.anchors import Anchors
from hopper_federation.convert import versions_from_proto
from hopper_federation.errors import PeerImpostor, PeerUnreachable
from hopper_federation.introductions import Introductions
from hopper_federation.model import agreed_version, check_clock
from hopper_federation.peer_guard import PATH
from hopper_federation.statuses import Statuses
from hopper_federation.store_sql import Federation
from hopper_federation.trust import Alert
from hopper_federation.trust_snapshot import TrustedPeer, TrustSnapshots

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.federation.v1.peer_service_pb2_grpc import PeerServiceAsyncStub

CALL_SECONDS: Final = 10.0

OPTIONS: Final = (
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # A link that has gone dead is noticed in 15 s, and one that is back is found in two.
    ("grpc.keepalive_time_ms", 9_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A ping for bandwidth may be under way when the link dies: then gRPC sends no other, and waits a minute for that.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    # At once after the two seconds of an attempt: TCP itself asks at their begin and a second later.
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

UNVERIFIED: Final = "CERTIFICATE_VERIFY_FAILED"
"""What gRPC says, among other things, of a server that no known root vouches for."""

# What the other end said itself, and not gRPC of the way to it.
_SAID_BY_IT: Final = frozenset({"TRUST_STORE_STALE", "STORAGE_UNAVAILABLE", "SHUTTING_DOWN", "RESYNC_NEEDED"})

T = TypeVar("T")


class PeerLink:
    """
    The way to one peer. Made by `PeerLinks`.

    Args:
        at: Where it leads; empty: to where the peer is said to be.
    """

    def __init__(self, links: "PeerLinks", install_id: str, at: str = "") -> None:
        self.install_id = install_id
        self._links = links
        self._at = at
        self._tried = 0
        self._channel = FollowingChannel(self._dial, self._generation, self._dialled_with)
        self.stub: PeerServiceAsyncStub = PeerServiceStub(self._channel)

    @property
    def peer(self) -> TrustedPeer:
        """
        The peer as it is now.

        Raises:
            PeerUnreachable: It is none any more, or nobody knows where it is.
        """
        peer = self._links.snapshots.current.peers.get(self.install_id)
        if peer is None or not self._where(peer):
            name = self.install_id if peer is None else peer.name
            raise PeerUnreachable(
                f"nobody has said where {name} is: `hopper peer address`", peer=name, cause="no address"
            )
        return peer

    @property
    def address(self) -> str:
        """Where the next call goes."""
        addresses = self._where(self.peer)
        return addresses[self._tried % len(addresses)]

    def _where(self, peer: TrustedPeer) -> Sequence[str]:
        return (self._at,) if self._at else peer.addresses

    async def call(self, make: "Callable[[PeerServiceAsyncStub], Awaitable[T]]") -> T:
        """
        Make a call, and note how it went.

        Args:
            make: Calls the stub, with a timeout.

        Raises:
            PeerUnreachable: It does not answer.
            HopperError: What it answered instead.
        """
        peer = self.peer
        try:
            answer = await make(self.stub)
        except grpc.aio.AioRpcError as error:
            problem = self.problem_of(error, peer)
            self._links.statuses.failed(self.install_id, problem.reason, problem.message)
            raise problem from error
        self._links.statuses.reached(self.install_id)
        return answer

    def problem_of(self, error: grpc.aio.AioRpcError, peer: TrustedPeer) -> HopperError:
        """What went wrong with a call; where nobody answered, the next one goes to the next address."""
        problem = from_rpc_error(error)
        if problem.reason in _SAID_BY_IT or not isinstance(problem, Unavailable | DeadlineExceeded):
            return problem
        address = self.address
        self._tried += 1
        cause = error.details() or "no answer"
        return PeerUnreachable(
            f"{peer.name} does not answer at {address} ({cause}): `hopper doctor {peer.name.removeprefix('peers/')}`",
            peer=peer.name,
            cause=cause,
        )

    async def greet(self) -> svc.HelloResponse:
        """
        Say hello: who answers is proved beyond the connection, clocks and versions are compared, keys are exchanged.

        Raises:
            PeerUnreachable, PeerImpostor, ClockSkew, UnsupportedVersion, HopperError: Why not.
        """
        links = self._links
        nonce = secrets.token_bytes(greeting.NONCE_BYTES)
        ours = links.introductions.ours()
        request = svc.HelloRequest(introduction=ours, nonce=nonce)
        answer = await self.call(lambda stub: stub.Hello(request, timeout=CALL_SECONDS))
        try:
            await self._meet(answer, nonce)
            await self._acknowledged(sequence_of(ours.bundle))
        except HopperError as problem:
            links.statuses.failed(self.install_id, problem.reason, problem.message)
            raise
        return answer

    async def push(self, bundle: SignedBundle) -> None:
        """
        Tell this Hopper's keys.

        Raises:
            HopperError: They were not taken.
        """
        request = svc.PushBundleRequest(bundle=bundle)
        await self.call(lambda stub: stub.PushBundle(request, timeout=CALL_SECONDS))
        await self._acknowledged(sequence_of(bundle))  # it answers when it has taken it over

    async def catch_up(self) -> None:
        """
        Learn the keys of a peer that has changed its root while this Hopper was away.

        Who answers there cannot be verified by the keys that are known, so only one thing is asked: its bundle, which
        proves by itself that it goes on from them. What does not is no more than a word of some impostor, and is not
        held against the peer.

        Raises:
            HopperError: Nobody answers, or it is not the peer, or what it says does not go on from what is known.
        """
        links = self._links
        seen = await dialling.look(self.address)
        seen.check_is(self.install_id)
        identity = links.introductions.identity
        credentials = channel_credentials(identity, PATH, to_pem([seen.certificate]))
        options = (*OPTIONS, ("grpc.ssl_target_name_override", _name(self.install_id)))
        async with grpc.aio.secure_channel(seen.address, credentials, options=options) as channel:
            request = svc.GetBundleRequest(known_sequence=self.peer.bundle_sequence)
            stub: PeerServiceAsyncStub = PeerServiceStub(channel)
            answer = await dialling.called(
                seen.address, lambda: stub.GetBundle(request, timeout=CALL_SECONDS)
            )
        if answer.HasField("bundle"):
            await bundles_kept.take(links.federation, self.install_id, answer.bundle, _no_alarm)

    async def _meet(self, answer: svc.HelloResponse, nonce: bytes) -> None:
        links, theirs = self._links, answer.introduction
        now, then = links.introductions.now(), from_proto(theirs.now)
        bundle = await self._known(theirs.bundle)
        data = greeting.signed(nonce, links.introductions.identity.install_id, self.install_id, then)
        try:
            verify_signature(bundle.signing_keys, Signature(answer.key_id, answer.signature), data, at=now)
        except PermissionDenied as error:
            links.alarm(self.install_id, Alert.SIGNATURE_FAILED)
            raise PeerImpostor(expected=self.install_id, found="somebody without its signing key") from error
        links.statuses.met(
            self.install_id,
            offset=then - now,
            version=agreed_version(versions_from_proto(theirs.versions)),
        )
        check_clock(then, now)

    async def _known(self, signed: SignedBundle) -> TrustBundle:
        """Its bundle, taken over where it is newer."""
        links = self._links
        await bundles_kept.take(links.federation, self.install_id, signed, links.alarm)
        return verify_bundle(signed, now=links.introductions.now())

    async def _acknowledged(self, sequence: int) -> None:
        await bundles_kept.acknowledged(self._links.federation, self.install_id, sequence)

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()

    def _generation(self) -> int:
        links = self._links
        return links.introductions.identity.generation + links.snapshots.current.generation + self._tried

    def _dialled_with(self) -> object:
        peer = self._links.snapshots.current.peers.get(self.install_id)
        if peer is None or not self._where(peer):
            return None
        return self._links.introductions.identity.held_leaf(PATH), peer.roots, self.address

    def _dial(self) -> grpc.aio.Channel:
        peer = self._links.snapshots.current.peers.get(self.install_id)
        anchors = b"" if peer is None else self._links.anchors.of(peer)
        # Without an anchor gRPC would go by the system's roots; with a port where nobody is, nobody is reached.
        address = self.address if anchors and peer is not None and self._where(peer) else "127.0.0.1:1"
        options = (*OPTIONS, ("grpc.ssl_target_name_override", _name(self.install_id)))
        credentials = channel_credentials(
            self._links.introductions.identity, PATH, anchors or self._links.anchors.nobody
        )
        return grpc.aio.secure_channel(address, credentials, options=options)


def _name(install_id: str) -> str:
    """The DNS name in the certificate of a Hopper's federation service."""
    return f"federation.{trust_domain_of(install_id)}"


def sequence_of(signed: SignedBundle) -> int:
    """The sequence of a bundle of this Hopper's own."""
    return TrustBundle.FromString(signed.payload).sequence


def _no_alarm(install_id: str, alert: Alert) -> None:
    """For what was said by somebody who has not proved who they are."""


class PeerLinks:
    """
    The ways to all peers, each opened when it is first needed.

    Args:
        alarm: Told of what does not add up.
    """

    def __init__(
        self,
        federation: Federation,
        introductions: Introductions,
        snapshots: TrustSnapshots,
        anchors: Anchors,
        statuses: Statuses,
        clock: Clock,
        *,
        alarm: Callable[[str, Alert], None],
    ) -> None:
        self.federation = federation
        self.introductions = introductions
        self.snapshots = snapshots
        self.anchors = anchors
        self.statuses = statuses
        self.clock = clock
        self.alarm = alarm
        self._links: dict[str, PeerLink] = {}

    def to(self, install_id: str) -> PeerLink:
        """The way to one."""
        link = self._links.get(install_id)
        if link is None:
            link = self._links[install_id] = PeerLink(self, install_id)
        return link

    @asynccontextmanager
    async def at(self, install_id: str, address: str) -> AsyncIterator[PeerLink]:
        """A way of its own to a peer at one address, which knows nothing of how others went."""
        link = PeerLink(self, install_id, address)
        try:
            yield link
        finally:
            await link.close()

    async def close(self) -> None:
        """Hang up on all."""
        for link in self._links.values():
            await link.close()
        self._links.clear()

    async def forget(self, install_id: str) -> None:
        """Hang up on one, for good."""
        link = self._links.pop(install_id, None)
        if link is not None:
            await link.close()
