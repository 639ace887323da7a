"""Work for a peer that is no more than known: a person sends it there, the router never does, and a person takes it."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio

from hopper.common.v1.options_pb2 import TRUST_LEVEL_KNOWN, TRUST_LEVEL_TRUSTED, TrustLevel
from hopper.federation.v1 import delegation_service_pb2 as rsvc
from hopper.federation.v1 import peer_admin_service_pb2 as asvc
from hopper.federation.v1.delegation_pb2 import (
    DELEGATION_STATE_COMPLETED,
    DELEGATION_STATE_QUARANTINED,
    DELEGATION_STATE_REJECTED,
)
from hopper.registry.v1.instance_pb2 import Instance
from hopper.registry.v1.instance_service_pb2 import GetInstanceRequest
from hopper.registry.v1.project_pb2 import Project
from hopper.registry.v1.project_service_pb2 import GetProjectRequest
from hopper.router.v1 import delegation_service_pb2 as dsvc
from hopper.router.v1.delegation_pb2 import Delegation
from hopper.router.v1.task_pb2 import Task, Wait
from hopper_client import TaskContext
from hopper_testing.processes import temporary_directory
from tests.federation.hoppers import WholeHopper, found, pair

pytestmark = pytest.mark.asyncio(loop_scope="module")

VERDICT = rsvc.DecideRemoteDelegationRequest


class Two(NamedTuple):
    """Two that are paired, and no more."""

    home: WholeHopper
    work: WholeHopper


async def done(context: TaskContext) -> bytes:
    """Somebody at work."""
    return f"done: {context.task.spec.title}".encode()


async def place(hopper: WholeHopper, peer: str) -> Project | None:
    """The project that stands for a peer, once somebody is there."""
    request = GetProjectRequest(name=f"projects/peer-{peer}")
    project = (await hopper.client.projects.GetProject(request)).project
    return project if project.presence.live_workers else None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two() -> AsyncIterator[Two]:
    with temporary_directory() as directory:
        home, work = WholeHopper(directory / "home"), WholeHopper(directory / "work")
        async with home.running(), work.running():
            await pair(home, work)
            await work.project("reviews", "docs.review")
            await work.work("reviews", done)
            await found(lambda: place(home, "work"))
            yield Two(home, work)


async def hand_over(hopper: WholeHopper, task: str) -> None:
    await hopper.client.delegations.DelegateTask(
        dsvc.DelegateTaskRequest(task=task, kind=Delegation.KIND_ROUTE, to_instance="instances/peer-work")
    )


async def decide(hopper: WholeHopper, id_: str, verdict: "VERDICT.Verdict.ValueType") -> None:
    await hopper.client.remote_delegations.DecideRemoteDelegation(VERDICT(id=id_, verdict=verdict))


async def test_the_router_never_sends_anything_there(two: Two) -> None:
    name = await two.home.submit("for whoever can")
    waits = await two.home.task(name)
    assert (waits.state, waits.wait.reason) == (Task.STATE_SUBMITTED, Wait.REASON_NO_ELIGIBLE_EXECUTOR)
    assert await two.work.hand_overs() == []


async def test_what_a_person_sends_waits_for_a_person_there(two: Two) -> None:
    name = await two.home.submit("for work", project="projects/peer-work")
    waiting = await two.work.hand_over(DELEGATION_STATE_QUARANTINED)
    assert (waiting.title, waiting.peer) == ("for work", "peers/home")
    assert "for work" not in {task.spec.title for task in await two.work.tasks()}
    await decide(two.work, waiting.id, VERDICT.VERDICT_ACCEPT)
    assert (await two.home.reached(name, Task.STATE_SUCCEEDED)).result == b"done: for work"
    assert (await two.home.hand_over(DELEGATION_STATE_COMPLETED)).title == "for work"


async def test_what_is_handed_over_there_and_not_taken_comes_back(two: Two) -> None:
    """Whatever it needs: what the peer can do, it does not say."""
    name = await two.home.submit("secret", "docs.secret")
    await hand_over(two.home, name)
    waiting = await two.work.hand_over(DELEGATION_STATE_QUARANTINED)
    await decide(two.work, waiting.id, VERDICT.VERDICT_DISCARD)
    assert (await two.home.hand_over(DELEGATION_STATE_REJECTED)).title == "secret"
    back = await two.home.reached(name, Task.STATE_SUBMITTED)
    assert back.wait.reason == Wait.REASON_NO_ELIGIBLE_EXECUTOR


async def test_a_peer_that_is_trusted_less_now_is_emptied_of_what_was_routed_there(two: Two) -> None:
    """The last one: its instance is stopped, which sends back what waits, and started again."""
    before = await place_of(two.home)
    await two.home.trust("work")
    await found(lambda: stands(two.home, TRUST_LEVEL_TRUSTED, before))
    await two.home.client.peers.SetTrust(asvc.SetTrustRequest(name="peers/work", level=TRUST_LEVEL_KNOWN))
    await found(lambda: stands(two.home, TRUST_LEVEL_KNOWN, before, anew=True))
    await two.home.submit("sent", project="projects/peer-work")
    assert (await two.work.hand_over(DELEGATION_STATE_QUARANTINED)).title == "sent"


async def place_of(hopper: WholeHopper) -> Instance:
    request = GetInstanceRequest(name="instances/peer-work")
    return (await hopper.client.instances.GetInstance(request)).instance


async def stands(
    hopper: WholeHopper, level: "TrustLevel.ValueType", before: Instance, *, anew: bool = False
) -> bool | None:
    """Whether the peer's place is open, for a peer of that level, and since when."""
    request = GetProjectRequest(name="projects/peer-work")
    project = (await hopper.client.projects.GetProject(request)).project
    instance = await place_of(hopper)
    running = (
        instance.state == Instance.STATE_RUNNING and (instance.update_time != before.update_time) == anew
    )
    return (project.border.level == level and running) or None
