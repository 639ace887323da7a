"""New root keys while others are there, while they are killed, and while they are away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest

from hopper.federation.v1 import peer_service_pb2 as svc
from hopper_common.identity.store import Identity
from hopper_federation.peer_guard import PATH
from tests.federation.alone import Alone
from tests.federation.neighbours import PATIENCE, Neighbour, neighbour, until

MOVES: tuple[Callable[[Identity], None], ...] = (
    Identity.prepare,
    Identity.activate,
    Identity.taint,
    Identity.revoke,
)


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[tuple[Neighbour, Neighbour, Neighbour]]:
    """Three Hoppers; nobody knows anybody."""
    async with AsyncExitStack() as stack:
        first, second, third = [
            await stack.enter_async_context(neighbour(tmp_path / name)) for name in ("alice", "bob", "carol")
        ]
        yield first, second, third


async def call(stub: object) -> None:
    await stub.GetCapabilities(svc.GetCapabilitiesRequest(), timeout=PATIENCE)  # type: ignore[attr-defined]


async def test_a_rotation_under_load_fails_no_call_and_ends_the_old_root(
    three: tuple[Neighbour, Neighbour, Neighbour],
) -> None:
    alice, bob, carol = three
    others = (bob, carol)
    counts = dict.fromkeys((each.name for each in others), 0)
    async with alice.running(), bob.running(), carol.running():
        for other in others:
            await alice.knows(other)
            await other.knows(alice)
        for other in others:
            await until(
                lambda other=other: alice.status(other).reached and other.status(alice).reached  # type: ignore[misc]
            )
        old = alice.identity.leaf(PATH)

        async def load(one: Neighbour, to: Neighbour, counted: str) -> None:
            link = one.peering.links.to(to.install_id)
            while True:  # a call that fails ends this, and with it the test
                await link.call(call)
                counts[counted] += 1
                await asyncio.sleep(0.005)

        def known(sequence: int) -> bool:
            return all(
                each.snapshots.current.peers[alice.install_id].bundle_sequence == sequence for each in others
            )

        async with asyncio.TaskGroup() as group:
            loads = [
                group.create_task(load(one, to, other.name))
                for other in others
                for one, to in ((alice, other), (other, alice))
            ]
            for move in MOVES:
                move(alice.identity)
                sequence = alice.identity.trust_bundle().sequence
                await until(lambda sequence=sequence: known(sequence))  # type: ignore[misc]
                before = dict(counts)
                await until(lambda before=before: all(counts[name] > before[name] + 5 for name in counts))  # type: ignore[misc]
            for task in loads:
                task.cancel()
        async with alice.calling(bob, old) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(stub)
            # Its connection is refused, or, where the handshake still let it in, the call.
            assert caught.value.code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.PERMISSION_DENIED,
            )


async def test_keys_that_were_acknowledged_are_known_after_kill_9(tmp_path: Path) -> None:
    async with neighbour(tmp_path / "bob") as bob:
        async with neighbour(tmp_path / "alice") as alice:
            await alice.knows(bob)
        with Alone(tmp_path / "alice") as process:
            alice.listen = process.peers
            bob.identity.prepare()
            async with bob.calling(alice) as stub:
                request = svc.PushBundleRequest(bundle=bob.identity.bundle())
                told = await stub.PushBundle(request, timeout=PATIENCE)
            process.kill()  # it had no time for anything else
            assert told.sequence == bob.identity.trust_bundle().sequence
            for move in MOVES[1:]:
                move(bob.identity)
            process.start()
            async with bob.calling(alice) as stub:
                await call(stub)


async def test_who_was_away_for_a_whole_rotation_comes_back_without_pairing_again(
    three: tuple[Neighbour, Neighbour, Neighbour],
) -> None:
    alice, bob, _ = three
    async with bob.running():
        async with alice.running():
            await alice.knows(bob)
            await bob.knows(alice)
            await until(lambda: alice.status(bob).reached and bob.status(alice).reached)
        words = (await alice.peer(bob)).words
        for move in MOVES:
            move(bob.identity)
        async with alice.running():
            sequence = bob.identity.trust_bundle().sequence
            await until(lambda: alice.snapshots.current.peers[bob.install_id].bundle_sequence == sequence)
            async with bob.calling(alice) as stub:
                await call(stub)
            await until(lambda: alice.status(bob).failure == "")
        peer = await alice.peer(bob)
        assert (peer.words, peer.alert) == (words, "")


async def test_an_impostor_at_the_address_costs_a_peer_nothing(
    three: tuple[Neighbour, Neighbour, Neighbour],
) -> None:
    """Whoever is found instead of a peer can say what they like: none of it counts against the peer."""
    alice, bob, carol = three
    async with carol.running(), alice.running():
        await carol.knows(alice)
        await alice.knows(bob, address=carol.address)
        await until(lambda: alice.status(bob).failure == "PEER_UNREACHABLE")
        peer = await alice.peer(bob)
        assert (peer.level, peer.alert) == (alice.snapshots.current.peers[bob.install_id].level, "")
