"""Two processes of one Hopper on one PostgreSQL database: to a peer, one Hopper, whichever of the two dies."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
import pytest_asyncio

from hopper.federation.v1.delegation_pb2 import DELEGATION_STATE_COMPLETED, DELEGATION_STATE_RUNNING
from hopper.federation.v1.delegation_service_pb2 import RemoteDelegation
from hopper.federation.v1.peer_admin_service_pb2 import ListPeersRequest
from hopper.federation.v1.peer_admin_service_pb2_grpc import PeerAdminServiceStub
from hopper.router.v1.task_pb2 import Task
from hopper_client import AsyncHopper, TaskContext
from hopper_federation.app import Whereabouts
from hopper_federation.incarnation import Restored
from hopper_federation.incarnation_keeping import FILE as MARK
from hopper_federation.settings import FederationSettings
from hopper_federation.succession import OtherIdentity
from hopper_testing.clock import ManualClock
from hopper_testing.postgres import postgres_server
from hopper_testing.processes import HopperProcess, temporary_directory
from tests.channels import separate_channel
from tests.federation.harness import PATIENCE, RunningFederation, refusal
from tests.federation.hoppers import WholeHopper, found, pair

pytestmark = pytest.mark.asyncio(loop_scope="module")

TASKS = 5


class Replica(WholeHopper):
    """A process of its own, which can be killed."""

    process: HopperProcess

    async def start(self) -> None:
        self.process = HopperProcess(self.directory, environment=self.variables)
        await asyncio.to_thread(self.process.start)
        self.client = AsyncHopper(self.process.address, timeout=PATIENCE)

    async def stop(self) -> None:
        await self._work.aclose()
        await self.client.close()
        await asyncio.to_thread(self.process.close)


class Once:
    """Works, and counts how often each title was begun; those that are to wait end when they may."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.may_end = asyncio.Event()

    async def __call__(self, context: TaskContext) -> bytes:
        title = context.task.spec.title
        self.begun[title] += 1
        if title.startswith("wait"):
            await self.may_end.wait()
        return f"done: {title}".encode()


class Scene(NamedTuple):
    """The two, a peer of theirs, and who works at the second and at the peer."""

    first: Replica
    second: Replica
    peer: WholeHopper
    once: Once


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene() -> AsyncIterator[Scene]:
    """Paired by the first, which has the role; the second stands by, and would listen where the first does."""
    database = postgres_server().create_database()
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(temporary_directory())
        shared = {
            f"HOPPER_{service}_DATABASE": database for service in ("REGISTRY", "ROUTER", "FEDERATION")
        } | {
            "HOPPER_IDENTITY_DIR": str(directory / "shared" / "identity"),
            "HOPPER_ARTIFACT_DIR": str(directory / "shared" / "blobs"),
        }
        first, second = (Replica(directory / name, **shared) for name in ("one", "two"))
        peer, once = WholeHopper(directory / "peer"), Once()
        for each in (first, peer):
            await stack.enter_async_context(each.running())
        await pair(first, peer)
        second.variables["HOPPER_PEER_LISTEN"] = first.variables["HOPPER_PEER_LISTEN"]
        await stack.enter_async_context(second.running())
        await first.project("ours", "docs.ours")
        await peer.project("theirs", "docs.theirs")
        await second.work("ours", once)
        await peer.work("theirs", once)
        await (await who_has_the_role(first, second)).trust("peer")
        await peer.trust("one")
        await second.offers("docs.theirs")
        await peer.offers("docs.ours")
        yield Scene(first, second, peer, once)


async def test_who_stands_by_says_so_and_its_router_works(scene: Scene) -> None:
    await who_has_the_role(scene.first, scene.second)
    done = await scene.second.reached(
        await scene.second.submit("there and back", "docs.theirs"), Task.STATE_SUCCEEDED
    )
    assert done.result == b"done: there and back"


async def test_another_identity_on_the_same_database_is_refused(scene: Scene, tmp_path: Path) -> None:
    database = scene.second.variables["HOPPER_FEDERATION_DATABASE"]
    with pytest.raises(ExceptionGroup) as caught:
        await RunningFederation(tmp_path, ManualClock(), database).start()
    assert caught.group_contains(OtherIdentity, match="HOPPER_IDENTITY_DIR")


async def test_one_dies_in_the_middle_and_nothing_is_lost_or_done_twice(scene: Scene) -> None:
    """Tasks are on their way in both directions, some begun, some not."""
    first, second, peer, once = scene
    out = [await first.submit(f"wait out {number}", "docs.theirs") for number in range(TASKS)]
    back = [await peer.submit(f"wait in {number}", "docs.ours") for number in range(TASKS)]
    await found(lambda: some_run(peer))
    with_role = await who_has_the_role(first, second)
    await found(lambda: some_run(with_role))
    await asyncio.to_thread(first.process.kill)
    out += [await second.submit(f"later {number}", "docs.theirs") for number in range(TASKS)]
    once.may_end.set()
    for hopper, names in ((second, out), (peer, back)):
        for name in names:
            task = await hopper.reached(name, Task.STATE_SUCCEEDED)
            assert task.result == f"done: {task.spec.title}".encode()
    assert set(once.begun.values()) == {1}

    async def agreed() -> bool | None:
        ends = [Counter(each.state for each in await hopper.hand_overs()) for hopper in (second, peer)]
        return ends[0] == ends[1] == Counter({DELEGATION_STATE_COMPLETED: 3 * TASKS + 1}) or None

    assert await found(agreed)
    assert Restored.UNMARKED not in second.process.log_text()
    assert (first.directory.parent / "shared" / f"identity.{MARK}").exists()


async def who_has_the_role(first: Replica, second: Replica) -> Replica:
    """
    One of the two has it, and the other says that it stands by.

    It is the first that has been started, for as long as that is not held up for seconds by a busy machine.
    """

    async def look() -> Replica | None:
        first_by, second_by = await stands_by(first), await stands_by(second)
        if {first_by, second_by} != {True, False}:
            return None
        return second if first_by else first

    return await found(look)


async def stands_by(replica: Replica) -> bool | None:
    """Whether it says so; None: it does not know yet."""
    async with separate_channel(replica.process.address) as channel:
        call = PeerAdminServiceStub(channel).ListPeers(ListPeersRequest(), timeout=PATIENCE)
        if await call.code() is grpc.StatusCode.OK:
            return False
        error = await refusal(call, grpc.StatusCode.UNAVAILABLE, "SERVICE_UNAVAILABLE")
    return "another process of this Hopper" in error.message or None


def has_lost_it(replica: Replica) -> bool:
    """Whether it was held up for so long, as it says itself."""
    return any(
        "has lost a role" in line and '"federation"' in line
        for line in replica.process.log_text().splitlines()
    )


async def some_run(hopper: WholeHopper) -> list[RemoteDelegation] | None:
    running = [each for each in await hopper.hand_overs() if each.state == DELEGATION_STATE_RUNNING]
    return running or None


async def test_who_died_comes_back_and_stands_by(scene: Scene) -> None:
    """The last one: the roles are the other way round now."""
    first, second = scene.first, scene.second
    await first.client.close()
    await first.start()
    with_role = await who_has_the_role(first, second)
    assert with_role is second or has_lost_it(second)
    assert [each.name for each in (await with_role.client.peers.ListPeers(ListPeersRequest())).peers] == [
        "peers/peer"
    ]
    name = await first.submit("once more", "docs.theirs")
    assert (await first.reached(name, Task.STATE_SUCCEEDED)).result == b"done: once more"


async def test_a_port_that_was_free_is_listened_on_again_by_who_gets_the_role_back() -> None:
    """Found by the nemesis: peers knew the one before, and it was never heard by them again."""
    whereabouts = Whereabouts(FederationSettings(peer_listen="127.0.0.1:0"))
    assert whereabouts.listen == "127.0.0.1:0"
    whereabouts.port = 40_001
    assert whereabouts.listen == "127.0.0.1:40001"
    assert Whereabouts(FederationSettings(peer_listen="127.0.0.1:8470")).listen == "127.0.0.1:8470"
