"""What is wrong between two, found with real servers and certificates; each wrong state is said by its name."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from hopper.federation.v1.pairing_service_pb2 import Introduction
from hopper_common.clock import Clock, SystemClock
from hopper_common.identity.certificates import Leaf, new_root
from hopper_federation.checking import Check, Checker, Outcome
from hopper_federation.introductions import Introductions
from hopper_federation.model import Revocation
from hopper_federation.trust import Alert, Level
from hopper_federation.trust_snapshot import TrustedPeer
from hopper_testing.certificates import Authority
from hopper_testing.clock import ManualClock
from tests.federation.neighbours import Neighbour, neighbour

Two = tuple[Neighbour, Neighbour]


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    """Alice, who looks, and bob; both listen, and neither knows the other."""
    async with AsyncExitStack() as stack:
        alice, bob = [
            await stack.enter_async_context(neighbour(tmp_path / name)) for name in ("alice", "bob")
        ]
        for each in (alice, bob):
            await stack.enter_async_context(each.running(contact=False))
        yield alice, bob


async def know_each_other(alice: Neighbour, bob: Neighbour, **fields: object) -> None:
    await alice.knows(bob, **fields)  # type: ignore[arg-type]
    await bob.knows(alice)


def checker(alice: Neighbour, clock: Clock | None = None, *, listens: bool = True) -> Checker:
    peering = alice.peering
    return Checker(alice.identity, peering.links, peering.statuses, clock or alice.clock, listens=listens)


def known(alice: Neighbour, bob: Neighbour) -> TrustedPeer:
    return alice.snapshots.current.peers[bob.install_id]


async def looked(alice: Neighbour, bob: Neighbour, address: str = "") -> list[Check]:
    return await checker(alice).check(known(alice, bob), address)


def outcomes(checks: list[Check]) -> dict[str, Outcome]:
    return {check.title: check.outcome for check in checks}


def failed(checks: list[Check]) -> tuple[str, str]:
    """Title and reason of what failed: it is the last, and says what to do."""
    (wrong,) = [check for check in checks if check.outcome is Outcome.FAILED]
    assert wrong is checks[-1]
    assert wrong.remedy
    return wrong.title, wrong.reason


@contextmanager
def closed_port() -> Iterator[str]:
    """A port that nobody listens on, nor can while this lasts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@asynccontextmanager
async def serving(leaf: Leaf) -> AsyncIterator[str]:
    """A server that shows a leaf, and says nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as directory:  # ssl reads certificates from files only
        file = Path(directory) / "leaf.pem"
        file.write_bytes(leaf.key_pem + leaf.chain_pem)
        context.load_cert_chain(file)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_nothing_is_wrong(two: Two) -> None:
    alice, bob = two
    await know_each_other(alice, bob, level=Level.TRUSTED, policy_version=2)
    checks = await looked(alice, bob)
    assert set(outcomes(checks).values()) == {Outcome.OK}, checks
    assert [check.title for check in checks] == [
        *("identity", "port", "name", "certificate", "pairing", "clock", "version", "policy")
    ]


async def test_not_paired_there(two: Two) -> None:
    alice, bob = two
    await alice.knows(bob)
    checks = await looked(alice, bob)
    assert failed(checks) == ("pairing", "PEER_UNREACHABLE")
    assert "does not know this Hopper" in checks[-1].finding


async def test_not_paired_here(two: Two) -> None:
    alice, bob = two
    assert failed(await checker(alice).check(None, bob.address)) == ("pairing", "PEER_UNKNOWN")


async def test_revoked_there(two: Two) -> None:
    alice, bob = two
    await know_each_other(alice, bob)
    now = bob.clock.now()
    await bob.change(
        alice, lambda peer: replace(peer, level=Level.BLOCKED, revocation=Revocation.NOW, revoke_time=now)
    )
    await bob.keeper.look()
    assert failed(await looked(alice, bob)) == ("pairing", "PEER_REVOKED")


async def test_revoked_here(two: Two) -> None:
    alice, bob = two
    await know_each_other(alice, bob)
    await alice.change(
        bob, lambda peer: replace(peer, level=Level.BLOCKED, revocation=Revocation.COMPROMISED)
    )
    await alice.keeper.look()
    checks = await looked(alice, bob)
    assert failed(checks) == ("pairing", "PEER_REVOKED")
    assert "blocked here, revoked: compromised" in checks[-1].finding


async def test_its_address_is_not_known(two: Two) -> None:
    alice, bob = two
    await alice.knows(bob)
    await alice.change(bob, lambda peer: peer.at(()))
    await alice.keeper.look()
    assert failed(await looked(alice, bob)) == ("address", "PEER_UNREACHABLE")


async def test_its_port_is_closed(two: Two) -> None:
    alice, bob = two
    with closed_port() as address:
        await alice.knows(bob, address=address)
        checks = await looked(alice, bob)
    assert failed(checks) == ("port", "PEER_UNREACHABLE")
    assert "port closed" in checks[-1].finding


async def test_the_second_address_answers(two: Two) -> None:
    alice, bob = two
    await know_each_other(alice, bob)
    with closed_port() as address:
        await alice.change(bob, lambda peer: peer.at((address, bob.address)))
        await alice.keeper.look()
        checks = await looked(alice, bob)
    assert [check.outcome for check in checks if check.title == "port"] == [Outcome.FAILED, Outcome.OK]
    assert outcomes(checks)["pairing"] is Outcome.OK


async def test_somebody_else_is_at_its_address(two: Two, tmp_path: Path) -> None:
    alice, bob = two
    async with neighbour(tmp_path / "carol") as carol, carol.running(contact=False):
        await alice.knows(bob, address=carol.address)
        assert failed(await looked(alice, bob)) == ("name", "PEER_IMPOSTOR")
    await alice.change(bob, lambda peer: peer.at((alice.address,)))
    await alice.keeper.look()
    checks = await looked(alice, bob)
    assert failed(checks)[0] == "name"
    assert "this Hopper itself" in checks[-1].finding


async def test_somebody_poses_as_it(two: Two) -> None:
    alice, bob = two
    forger = Authority.posing_as(bob.identity.roots()[0], bob.identity.trust_domain, datetime.now(UTC))
    async with serving(forger.leaf()) as address:
        await alice.knows(bob, address=address)
        assert failed(await looked(alice, bob)) == ("name", "ISSUER_MISMATCH")


async def test_what_answers_is_no_hopper(two: Two) -> None:
    alice, _ = two
    authority = Authority(new_root(datetime.now(UTC)), "example.org", datetime.now(UTC))
    async with serving(authority.leaf(uris=["https://example.org/"])) as address:
        assert failed(await checker(alice).check(None, address)) == ("name", "BAD_SAN")


def own_leaf(bob: Neighbour, begins: timedelta, ends: timedelta) -> Leaf:
    """A leaf of bob's own root, for some other time."""
    root = next(iter(bob.identity._view.keys.roots.values()))
    return Authority(root, bob.identity.trust_domain, datetime.now(UTC)).leaf(begins=begins, ends=ends)


async def test_its_certificate_has_run_out(two: Two) -> None:
    alice, bob = two
    async with serving(own_leaf(bob, -timedelta(days=4), -timedelta(days=1))) as address:
        await alice.knows(bob, address=address)
        assert failed(await looked(alice, bob)) == ("certificate", "LEAF_EXPIRED")


async def test_its_certificate_is_not_valid_yet(two: Two) -> None:
    alice, bob = two
    async with serving(own_leaf(bob, timedelta(hours=2), timedelta(days=3))) as address:
        await alice.knows(bob, address=address)
        assert failed(await looked(alice, bob)) == ("certificate", "CLOCK_SKEW")


async def test_ones_own_certificate_has_run_out(two: Two) -> None:
    alice, bob = two
    await know_each_other(alice, bob)
    late = checker(alice, ManualClock(datetime.now(UTC) + timedelta(days=400)))
    checks = await late.check(known(alice, bob))
    assert failed(checks) == ("identity", "LEAF_EXPIRED")
    assert len(checks) == 1


@pytest.mark.parametrize(
    ("ahead", "outcome"),
    [(timedelta(minutes=2), Outcome.WARNING), (timedelta(minutes=7), Outcome.FAILED)],
)
async def test_the_clocks_differ(two: Two, ahead: timedelta, outcome: Outcome) -> None:
    alice, bob = two
    await know_each_other(alice, bob)
    wrong_by = timedelta()
    clock = SystemClock(wall=lambda: time.time_ns() + round(wrong_by.total_seconds() * 1e9))
    bobs = Introductions(
        bob.identity, bob.federation, clock, name="bob", peer_addresses=lambda: [bob.address]
    )
    bob.introductions.ours = bobs.ours  # type: ignore[method-assign]

    async def clocks() -> Check:
        return next(check for check in await looked(alice, bob) if check.title == "clock")

    wrong_by = ahead  # set while it runs; its steady time goes on
    wrong = await clocks()
    assert (wrong.outcome, wrong.reason) == (outcome, "CLOCK_SKEW")
    assert "ahead of this one" in wrong.finding
    await looked(bob, alice)
    told = alice.peering.statuses.of(bob.install_id).offset  # shown to who was called, too
    assert told is not None
    assert abs(told - ahead) < timedelta(minutes=1)
    wrong_by = timedelta()
    assert (await clocks()).outcome is Outcome.OK


async def test_the_versions_differ(two: Two) -> None:
    alice, bob = two
    await know_each_other(alice, bob)
    said = bob.introductions.ours

    def newer() -> Introduction:
        introduction = said()
        introduction.versions.major = 9
        return introduction

    bob.introductions.ours = newer  # type: ignore[method-assign]
    assert failed(await looked(alice, bob)) == ("version", "UNSUPPORTED_VERSION")


async def test_what_works_and_should_be_looked_at(two: Two) -> None:
    alice, bob = two
    await know_each_other(alice, bob)
    checks = await checker(alice, listens=False).check(known(alice, bob))
    found = outcomes(checks)
    assert (found["federation"], found["policy"]) == (Outcome.WARNING, Outcome.WARNING)
    assert all(check.remedy for check in checks if check.outcome is Outcome.WARNING)
    await alice.change(bob, lambda peer: peer.alerted(Alert.KEY_CHANGED))
    await alice.keeper.look()
    assert "key_changed" in (await looked(alice, bob))[-1].finding
