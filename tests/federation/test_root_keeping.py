"""A root that is prepared is activated when every active peer has said that it knows it, and not before."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from hopper_common.identity import rotation
from hopper_common.identity.rotation import Verb
from hopper_federation.root_keeping import RootKeeper
from hopper_federation.statuses import Statuses
from hopper_federation.trust import Level
from tests.federation.neighbours import PATIENCE, Neighbour, neighbour, until


@pytest.fixture(autouse=True)
def _nothing_to_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "SETTLE", timedelta(0))


@pytest.fixture
async def four(tmp_path: Path) -> AsyncIterator[list[Neighbour]]:
    """Four Hoppers; nobody knows anybody."""
    async with AsyncExitStack() as stack:
        names = ("alice", "bob", "carol", "dave")
        yield [await stack.enter_async_context(neighbour(tmp_path / name)) for name in names]


async def acknowledged(alice: Neighbour, other: Neighbour) -> int:
    """What the other has said that it knows, as stored."""
    return await alice.federation.read(lambda store: store.acknowledged(other.install_id))


async def until_acknowledged(alice: Neighbour, *others: Neighbour) -> None:
    """Until they have said that they know what alice says now."""
    sequence = alice.identity.trust_bundle().sequence
    for other in others:
        while await acknowledged(alice, other) < sequence:  # noqa: ASYNC110 - it is in a database
            await asyncio.sleep(0.01)


def keeper(alice: Neighbour) -> RootKeeper:
    """One of a process that has just started: it has heard nobody."""
    return RootKeeper(alice.federation, alice.identity, Statuses(alice.clock.monotonic))


@asynccontextmanager
async def keeping(alice: Neighbour) -> AsyncIterator[None]:
    task = asyncio.ensure_future(
        RootKeeper(alice.federation, alice.identity, alice.peering.statuses, pause=0.01).run()
    )
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_it_is_activated_when_the_last_active_peer_knows_it(four: list[Neighbour]) -> None:
    """Bob is called, carol calls though nobody knows where she is, and dave is away."""
    alice, bob, carol, dave = four
    async with alice.running(), bob.running(), AsyncExitStack() as later:
        await alice.knows(bob)
        await bob.knows(alice)
        await alice.knows(carol)
        await alice.change(carol, lambda peer: replace(peer, addresses=(), revision=2))
        await carol.knows(alice)
        await dave.knows(alice)
        async with dave.running(contact=False):
            pass  # only to have a port
        await alice.knows(dave)
        async with keeping(alice), asyncio.timeout(PATIENCE):
            await later.enter_async_context(carol.running())
            await until(lambda: alice.status(carol).heard is not None)
            alice.identity.prepare()
            await until_acknowledged(alice, bob, carol)
            await keeper(alice).keep()
            assert alice.identity.next_step().verb is Verb.ACTIVATE  # dave does not know it
            await later.enter_async_context(dave.running())
            await until(lambda: alice.identity.next_step().verb is Verb.TAINT)
            assert await acknowledged(alice, dave) > 1


async def test_what_was_acknowledged_is_known_after_a_restart(four: list[Neighbour]) -> None:
    alice, bob, carol, _ = four
    await alice.knows(bob, address="127.0.0.1:1")
    await alice.knows(carol)
    await alice.change(carol, lambda peer: replace(peer, addresses=(), revision=2))
    alice.identity.prepare()
    sequence = alice.identity.trust_bundle().sequence
    for earlier in (sequence, sequence - 1):  # the later one stays
        await alice.federation.write(lambda store, n=earlier: store.acknowledge(bob.install_id, n))  # type: ignore[misc]
    assert await acknowledged(alice, bob) == sequence
    await alice.federation.write(lambda store: store.acknowledge(carol.install_id, sequence - 1))
    await keeper(alice).keep()  # carol was heard once
    assert alice.identity.next_step().verb is Verb.ACTIVATE
    await alice.change(carol, lambda peer: replace(peer, level=Level.BLOCKED, revision=3))
    await keeper(alice).keep()
    assert alice.identity.next_step().verb is Verb.TAINT


async def test_who_was_never_heard_and_is_nowhere_is_not_waited_for(four: list[Neighbour]) -> None:
    alice, bob, *_ = four
    await alice.knows(bob)
    await alice.change(bob, lambda peer: replace(peer, addresses=(), revision=2))
    alice.identity.prepare()
    await keeper(alice).keep()
    assert alice.identity.next_step().verb is Verb.TAINT
