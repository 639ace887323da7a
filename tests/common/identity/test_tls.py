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

from hopper_common.identity.certificates import (
    Leaf,
    constrained_anchor,
    issued_by,
    new_root,
    spiffe_id_of,
    to_pem,
)
from hopper_common.identity.following import FollowingChannel
from hopper_common.identity.issuing import issue_into
from hopper_common.identity.rotation import Verb
from hopper_common.identity.spiffe import SpiffeInvalid
from hopper_common.identity.store import Identity, IdentityStore
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

        async def count(request: bytes, context: Any) -> AsyncIterator[bytes]:
            for number in range(3):
                yield b"%d" % number
            await self.go_on.wait()
            yield b"end"

        if handler_call_details.method == "/test/Count":
            return grpc.unary_stream_rpc_method_handler(count)
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
    call: Any = channel.unary_unary(method)
    answer: bytes = await call(b"", timeout=SECONDS)
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

# What a handshake lets pass is for the check at each call to refuse.
PASS_HANDSHAKE = {
    "own name through an intermediate",
    "own URI twice",
    "no URI",
    "agent",
    "no path",
    "root as leaf",
}


async def test_a_constrained_anchor_refuses_what_a_paired_attacker_forges(
    identity: Identity, clock: ManualClock
) -> None:
    """F02, F04, F05, F06: every attack of the factory, by a peer that is trusted to speak for itself."""
    now = clock.now()
    attacker, victim, signer = Authority.new(now), Authority.new(now), new_root(now)
    anchors = b"".join(
        constrained_anchor(each.root.certificate, each.trust_domain, signer, now)
        for each in (attacker, victim)
    )
    forged = attacks(attacker, victim.root.certificate, victim.trust_domain)
    passed = {}
    async with serving(server_credentials(identity, "/svc/federation", lambda: anchors)) as (address, echo):
        name = f"federation.{identity.trust_domain}"
        for kind, leaf in forged.items():
            echo.callers.clear()
            if await outcome(dial(address, own_roots(identity), name, leaf)) == "OK":
                passed[kind] = echo.callers[0]
        for each in (attacker, victim):
            assert await outcome(dial(address, own_roots(identity), name, each.leaf())) == "OK"
    assert {kind for kind in passed if not kind.startswith("malformed")} == PASS_HANDSHAKE
    assert not any(victim.trust_domain in caller for caller in passed.values())
    assert [kind for kind in passed if _taken_at_call(forged[kind], attacker)] == []


def _taken_at_call(leaf: Leaf, peer: Authority) -> bool:
    """What is checked at each call on the peer port."""
    try:
        name = spiffe_id_of(leaf.certificate)
    except SpiffeInvalid:
        return False
    return name.path == "/svc/federation" and issued_by(leaf.certificate, [peer.root.certificate])


async def test_a_client_that_pins_a_peer_takes_no_other_for_it(clock: ManualClock) -> None:
    """F08: the server has the right name, by the wrong key."""
    now = clock.now()
    peer, signer = Authority.new(now), new_root(now)
    impostors = {
        "same-name CA": Authority.posing_as(peer.root.certificate, peer.trust_domain, now).leaf(),
        "another Hopper": Authority.new(now).leaf(),
        "another Hopper in its name": Authority.new(now).leaf(dns=[f"federation.{peer.trust_domain}"]),
        "the peer's own agent": peer.leaf(path="/agent/federation", dns=["agent.invalid"]),
    }
    anchor = constrained_anchor(peer.root.certificate, peer.trust_domain, signer, now)
    for leaf in (*impostors.values(), peer.leaf()):
        credentials = grpc.ssl_server_credentials([(leaf.key_pem, leaf.chain_pem)])
        async with serving(credentials) as (address, _):
            channel = dial(address, anchor, f"federation.{peer.trust_domain}")
            expected = "UNAVAILABLE" if leaf in impostors.values() else "OK"
            assert await outcome(channel) == expected


# Changes while connections are open.


async def test_a_renewed_leaf_is_shown_to_the_next_that_connects(tmp_path: Path, clock: ManualClock) -> None:
    now = clock.now()
    clock.time = now - timedelta(hours=40)  # what is issued then is still good now, and due
    identity = IdentityStore.open(tmp_path / "data" / "identity", clock)
    async with serving(own_server(identity)) as (address, _):
        first = identity.leaf(REGISTRY)
        assert await shown_by(address, identity, tmp_path) == first.certificate
        clock.time = now
        identity.refresh()
        renewed = identity.leaf(REGISTRY)
        assert renewed.certificate != first.certificate
        assert await shown_by(address, identity, tmp_path) == renewed.certificate


async def test_a_rotation_under_load_fails_no_call_and_ends_the_old_root(
    identity: Identity, clock: ManualClock
) -> None:
    """F14, within one Hopper: a server and a client in processes of their own."""
    client = IdentityStore.open(identity.directory, clock)
    old = identity.leaf(ROUTER)
    answers: list[str] = []
    async with serving(own_server(identity)) as (address, _):
        name = f"registry.{identity.trust_domain}"
        async with open_secure_channel(address, client, "registry") as channel:
            stop = asyncio.Event()

            async def load() -> None:
                while not stop.is_set():
                    answers.append(await ask(channel))

            loads = [asyncio.create_task(load()) for _ in range(4)]
            for verb in Verb:
                done = len(answers)
                # The client looks before or after: both have to be right.
                identity.move(verb)
                client.refresh()
                await until(lambda done=done: len(answers) > done + 20)  # type: ignore[misc]
            stop.set()
            await asyncio.gather(*loads)
        assert set(answers) == {f"spiffe://{identity.trust_domain}/svc/router|TLSv1.3"}
        assert await outcome(dial(address, own_roots(identity), name, old)) == "UNAVAILABLE"
        assert await outcome(dial(address, own_roots(identity), name, identity.leaf(ROUTER))) == "OK"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other tasks bring about."""
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for are calls, not an event
            await asyncio.sleep(0.005)


async def test_a_call_under_way_finishes_on_the_connection_before(identity: Identity) -> None:
    async with (
        serving(own_server(identity)) as (address, echo),
        open_secure_channel(address, identity, "registry") as channel,
    ):
        assert isinstance(channel, FollowingChannel)
        waiting = asyncio.create_task(ask(channel, "/test/Wait"))
        await asyncio.wait_for(echo.waiting.wait(), SECONDS)
        before = channel.current
        for verb in (Verb.PREPARE, Verb.ACTIVATE, Verb.TAINT):
            identity.move(verb)
        assert await ask(channel)
        assert channel.current is not before
        assert not waiting.done()
        echo.go_on.set()
        assert await waiting


class Noted(grpc.aio.UnaryStreamClientInterceptor):
    """Counts the streams that go through it."""

    def __init__(self) -> None:
        self.seen = 0

    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        self.seen += 1
        return await continuation(details, request)


@pytest.mark.parametrize("intercepted", [False, True])
async def test_a_stream_goes_on_where_it_began(identity: Identity, intercepted: bool) -> None:
    noted = Noted()
    async with (
        serving(own_server(identity)) as (address, echo),
        open_secure_channel(
            address, identity, "registry", interceptors=[noted] if intercepted else []
        ) as channel,
    ):
        assert isinstance(channel, FollowingChannel)
        method: Any = channel.unary_stream("/test/Count")
        stream = aiter(method(b"", timeout=SECONDS))
        seen = [await anext(stream) for _ in range(3)]
        before = channel.current
        for verb in (Verb.PREPARE, Verb.ACTIVATE, Verb.TAINT):
            identity.move(verb)
        assert await ask(channel)
        assert channel.current is not before
        echo.go_on.set()
        assert [*seen, *[each async for each in stream]] == [b"0", b"1", b"2", b"end"]
        assert noted.seen == intercepted


async def test_a_channel_that_closes_ends_what_still_drains(identity: Identity) -> None:
    async with serving(own_server(identity)) as (address, echo):
        channel = open_secure_channel(address, identity, "registry")
        waiting = asyncio.create_task(ask(channel, "/test/Wait"))
        await asyncio.wait_for(echo.waiting.wait(), SECONDS)
        for verb in (Verb.PREPARE, Verb.ACTIVATE, Verb.TAINT):
            identity.move(verb)
        assert await ask(channel)
        await channel.close()
        (ended,) = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(ended, (grpc.aio.AioRpcError, asyncio.CancelledError))


async def test_a_root_that_is_withdrawn_is_refused_at_the_next_handshake(
    identity: Identity, clock: ManualClock
) -> None:
    peers = {name: Authority.new(clock.now()) for name in "bc"}
    trusted = dict(peers)
    credentials = server_credentials(
        identity, "/svc/federation", lambda: b"".join(peer.pem for peer in trusted.values())
    )
    async with serving(credentials) as (address, _):

        async def connect(name: str) -> str:
            return await outcome(
                dial(address, own_roots(identity), f"federation.{identity.trust_domain}", peers[name].leaf())
            )

        assert [await connect(name) for name in "bc"] == ["OK", "OK"]
        del trusted["b"]
        assert [await connect(name) for name in "bc"] == ["UNAVAILABLE", "OK"]
        trusted.clear()
        assert [await connect(name) for name in "bc"] == ["UNAVAILABLE", "UNAVAILABLE"]
        trusted.update(peers)
        assert [await connect(name) for name in "bc"] == ["OK", "OK"]


async def test_what_cannot_be_read_never_replaces_what_is_good(
    identity: Identity, clock: ManualClock
) -> None:
    """gRPC would drop every root after the broken one, or go on in silence."""
    peer, later = Authority.new(clock.now()), Authority.new(clock.now())
    answer: list[bytes | Exception] = [peer.pem]

    def roots() -> bytes:
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    credentials = server_credentials(identity, "/svc/federation", roots)
    async with serving(credentials) as (address, _):
        name = f"federation.{identity.trust_domain}"
        broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        for bad in (RuntimeError("no database"), peer.pem + broken + later.pem, b"junk"):
            answer[0] = bad
            assert await outcome(dial(address, own_roots(identity), name, peer.leaf())) == "OK"
            assert await outcome(dial(address, own_roots(identity), name, later.leaf())) == "UNAVAILABLE"
        answer[0] = to_pem([later.root.certificate])
        assert await outcome(dial(address, own_roots(identity), name, peer.leaf())) == "UNAVAILABLE"
        assert await outcome(dial(address, own_roots(identity), name, later.leaf())) == "OK"


async def test_a_hopper_that_was_off_for_ninety_days_serves_at_once(
    tmp_path: Path, identity: Identity, clock: ManualClock
) -> None:
    """F18: the identity is 90 days old, nobody has touched it, and the machine's clock is what it is."""
    past = ManualClock(clock.now() - timedelta(days=90))
    old = IdentityStore.open(tmp_path / "old" / "identity", past)
    last = old.leaf(ROUTER)
    again = IdentityStore.open(tmp_path / "old" / "identity", clock)
    async with serving(own_server(again)) as (address, _):
        name = f"registry.{again.trust_domain}"
        assert await outcome(open_secure_channel(address, again, "registry")) == "OK"
        assert await outcome(dial(address, own_roots(again), name, last)) == "UNAVAILABLE"


async def test_a_process_that_has_only_a_leaf_speaks_to_the_others(
    tmp_path: Path, identity: Identity, clock: ManualClock
) -> None:
    elsewhere = tmp_path / "router" / "identity"
    issue_into(identity, ROUTER, elsewhere)
    router = IdentityStore.open(elsewhere, clock)
    async with serving(own_server(identity)) as (address, _):
        assert await outcome(open_secure_channel(address, router, "registry")) == "OK"
    credentials = channel_credentials(router, ROUTER, own_roots(router))
    assert isinstance(credentials, grpc.ChannelCredentials)
