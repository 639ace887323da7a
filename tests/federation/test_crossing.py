"""Tasks that cross between two whole Hoppers: routed, offered, taken, done there, and back with what came of them."""

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Final, NamedTuple

import pytest
import pytest_asyncio

from hopper.common.v1.audit_service_pb2 import ListAuditRecordsRequest
from hopper.federation.v1 import delegation_service_pb2 as rsvc
from hopper.federation.v1.artifact_service_pb2 import ListArtifactsRequest, StoredArtifact
from hopper.federation.v1.delegation_pb2 import (
    DELEGATION_STATE_CANCELLED,
    DELEGATION_STATE_COMPLETED,
    DELEGATION_STATE_FAILED,
    DELEGATION_STATE_ORPHANED,
    DELEGATION_STATE_QUARANTINED,
    DELEGATION_STATE_RECLAIMED,
    DELEGATION_STATE_REJECTED,
    DELEGATION_STATE_RUNNING,
    Appraisal,
)
from hopper.federation.v1.peer_pb2 import Peer
from hopper.memory.v1.feedback_service_pb2 import GetStatsRequest, GetStatsResponse
from hopper.registry.v1.instance_pb2 import Instance
from hopper.registry.v1.instance_service_pb2 import GetInstanceRequest
from hopper.registry.v1.project_pb2 import Worker
from hopper.registry.v1.project_service_pb2 import HeartbeatRequest
from hopper.router.v1 import delegation_service_pb2 as dsvc
from hopper.router.v1.delegation_pb2 import Delegation
from hopper.router.v1.task_pb2 import Task, Wait
from hopper.router.v1.task_service_pb2 import CancelTaskRequest
from hopper.router.v1.work_service_pb2 import ClaimTasksRequest
from hopper_client import InvalidArgument, TaskContext, TaskFailed
from hopper_common.timestamps import to_proto
from hopper_federation.delegation.crossings_journal import ALARM, REFUSED
from hopper_testing.processes import temporary_directory
from tests.federation.hoppers import WholeHopper, found, pair

pytestmark = pytest.mark.asyncio(loop_scope="module")

FROM_HOME: Final = """
[[rule]]
name = "papers for work"
effect = "allow"
direction = "out"
capabilities = ["docs.*"]
exclusive = true

[[rule]]
name = "one at a time"
effect = "allow"
direction = "out"
capabilities = ["slow.review"]
in_flight = 1

[[rule]]
name = "nothing about health"
effect = "deny"
direction = "both"
labels = ["health"]
"""

AT_WORK: Final = """
[[rule]]
name = "to be signed"
effect = "allow"
direction = "in"
capabilities = ["docs.sign"]
ask = true

[[rule]]
name = "papers from home"
effect = "allow"
direction = "in"
capabilities = ["docs.review", "docs.once", "slow.review"]
exclusive = true
"""

SPOILT: Final = b"what it was"
PLOT: Final = os.urandom((2 << 20) + 5)

VERDICT: Final = rsvc.DecideRemoteDelegationRequest


class Reviewer:
    """Works at work: does what a title says."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.begun = asyncio.Event()
        self.spoil: Callable[[], None] = lambda: None

    async def __call__(self, context: TaskContext) -> bytes:
        title = context.task.spec.title
        if title.startswith("fail"):
            raise TaskFailed("ILLEGIBLE", "nobody can read that", permanent="for good" in title)
        if title.startswith("draw"):
            await context.put_artifact(PLOT, name="plot.png")
            await context.put_artifact(b"see the plot", name="note.txt")
        if title.startswith("spoil"):
            await context.put_artifact(SPOILT, name="data.bin")
            self.spoil()
        if title.startswith("wait"):
            await context.progress(0.5, "half of it")
            self.begun.set()
            await self.may_end.wait()
        return f"read: {title}".encode()

    def again(self) -> None:
        """Let the next one wait."""
        self.may_end.clear()
        self.begun.clear()


class Two(NamedTuple):
    """Two Hoppers, and who works at the second."""

    home: WholeHopper
    work: WholeHopper
    reviewer: Reviewer


async def at_work(work: WholeHopper, reviewer: Reviewer) -> None:
    """Have somebody there."""
    await work.work("reviews", reviewer)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both() -> AsyncIterator[Two]:
    """Paired and trusted, and each knows what the other takes."""
    with temporary_directory() as directory:
        home, work = WholeHopper(directory / "home"), WholeHopper(directory / "work")
        async with home.running(), work.running():
            await pair(home, work)
            reviewer = Reviewer()
            await work.project("reviews", "docs.review", "docs.sign", "slow.review")
            await work.project("once", "docs.once")
            await at_work(work, reviewer)
            await work.trust("home", AT_WORK)
            await home.trust("work", FROM_HOME)
            await home.offers("docs.review")
            yield Two(home, work, reviewer)


async def test_what_only_the_other_can_do_is_done_there_and_its_result_comes_back(both: Two) -> None:
    name = await both.home.submit("a paper", "docs.review")
    done = await both.home.reached(name, Task.STATE_SUCCEEDED)
    assert done.result == b"read: a paper"
    assert done.project == "projects/peer-work"
    (there,) = [task for task in await both.work.tasks() if task.spec.title == "a paper"]
    assert there.spec.requester == "peer.home"
    assert there.spec.labels["hopper.task_uid"].endswith(name.rpartition("/")[2])
    for hopper in (both.home, both.work):
        assert (await hopper.hand_over(DELEGATION_STATE_COMPLETED)).title == "a paper"


async def beside(hopper: WholeHopper, task: str) -> dict[str, StoredArtifact]:
    """The files beside a task, by name."""
    listed = await hopper.client.artifacts.ListArtifacts(ListArtifactsRequest(task=task))
    return {each.artifact.name: each for each in listed.artifacts}


async def test_files_come_back_with_the_result(both: Two) -> None:
    home = both.home
    name = await home.submit("draw a plot", "docs.review")
    await home.reached(name, Task.STATE_SUCCEEDED)
    assert sorted(await beside(home, name)) == ["note.txt", "plot.png"]  # told of as soon as it is done

    async def arrived() -> dict[str, StoredArtifact] | None:
        files = await beside(home, name)
        return files if all(each.stored == each.artifact.size for each in files.values()) else None

    files = await found(arrived)
    assert files["plot.png"].artifact.media_type == "image/png"
    got = io.BytesIO()
    await home.client.get_artifact(name, "plot.png", got)
    assert got.getvalue() == PLOT
    chain = await home.client.delegations.ListDelegations(dsvc.ListDelegationsRequest(task=name))
    (child,) = chain.delegations[-1].child_tasks
    assert await beside(home, child) == files


async def test_a_file_that_is_not_what_was_signed_is_refused_and_told_of(both: Two) -> None:
    digest = hashlib.sha256(SPOILT).hexdigest()
    kept = both.work.directory / "blobs" / digest[:2] / digest[2:]
    both.reviewer.spoil = lambda: void(kept.write_bytes(SPOILT[::-1]))
    name = await both.home.submit("spoil it", "docs.review")
    await both.home.reached(name, Task.STATE_SUCCEEDED)

    async def told() -> bool | None:
        request = ListAuditRecordsRequest(method_prefix=ALARM)
        records = (await both.home.client.audit.ListAuditRecords(request)).records
        return any(each.reason == "ARTIFACT_INVALID" for each in records) or None

    assert await found(told)
    with pytest.raises(InvalidArgument) as caught:
        await both.home.client.get_artifact(name, "data.bin", io.BytesIO())
    assert caught.value.reason == "ARTIFACT_INVALID"


def void(_: object) -> None:
    """Nothing of it matters."""


async def test_how_it_went_is_known_to_memory_on_both_sides(both: Two) -> None:
    """Where it came from by its end, and where it was done by what is said of it at home."""
    home, work = both.home, both.work
    name = await home.submit("another", "docs.review")
    await home.reached(name, Task.STATE_SUCCEEDED)

    async def judged(hopper: WholeHopper, project: str) -> GetStatsResponse | None:
        stats = await hopper.client.feedback.GetStats(GetStatsRequest(project=project))
        return stats if stats.judged else None

    assert await found(lambda: judged(home, "projects/peer-work"))
    assert await judged(work, "projects/reviews") is None
    for right in (False, True, False):  # who changes its mind is heard each time

        async def known(right: bool = right) -> bool | None:
            stats = await judged(work, "projects/reviews")
            return (stats is not None and (stats.judged, stats.right) == (1, right)) or None

        said = rsvc.AppraiseRemoteDelegationRequest(task=name, appraisal=Appraisal(good_match=right))
        told = await home.client.remote_delegations.AppraiseRemoteDelegation(said)
        assert told.delegation.peer == "peers/work"
        assert await found(known)


async def test_a_failure_there_is_one_here_with_its_reason(both: Two) -> None:
    name = await both.home.submit("fail at it", "docs.review", retry={"max_attempts": 1})
    failed = await both.home.reached(name, Task.STATE_FAILED)
    assert "ILLEGIBLE" in failed.failure.message
    assert not failed.failure.permanent
    assert (await both.home.hand_over(DELEGATION_STATE_FAILED)).title == "fail at it"


async def test_what_cannot_be_done_anywhere_is_not_tried_again(both: Two) -> None:
    title = "fail for good"
    name = await both.home.submit(title, "docs.review", retry={"max_attempts": 3})
    failed = await both.home.reached(name, Task.STATE_FAILED)
    assert "ILLEGIBLE" in failed.failure.message
    assert [task.spec.title for task in await both.work.tasks()].count(title) == 1


async def test_a_label_that_never_leaves_stays_and_so_does_the_task(both: Two) -> None:
    name = await both.home.submit("my knee", "docs.review", labels={"health": "yes"})
    stays = await both.home.task(name)
    assert stays.wait.reason == Wait.REASON_NO_ELIGIBLE_EXECUTOR
    await both.home.reached(await both.home.submit("after it", "docs.review"), Task.STATE_SUCCEEDED)
    assert "my knee" not in {task.spec.title for task in await both.work.tasks()}
    await both.home.client.tasks.CancelTask(CancelTaskRequest(name=name))


async def test_what_the_other_does_not_take_comes_back(both: Two) -> None:
    name = await both.home.submit("a secret", "docs.secret")
    await both.home.client.delegations.DelegateTask(
        dsvc.DelegateTaskRequest(task=name, kind=Delegation.KIND_ROUTE, to_instance="instances/peer-work")
    )
    refused = await both.home.hand_over(DELEGATION_STATE_REJECTED)
    assert (refused.title, refused.reason) == ("a secret", "CAPABILITY_DENIED")
    back = await both.home.reached(name, Task.STATE_SUBMITTED)
    assert back.wait.reason == Wait.REASON_NO_ELIGIBLE_EXECUTOR
    assert "a secret" not in {each.title for each in await both.work.hand_overs()}
    await both.home.client.tasks.CancelTask(CancelTaskRequest(name=name))


async def test_what_this_hoppers_own_quota_holds_back_goes_there_once_there_is_room(both: Two) -> None:
    both.reviewer.again()
    first = await both.home.submit("wait, at length", "slow.review")
    await both.reviewer.begun.wait()
    second = await both.home.submit("wait no more", "slow.review")

    async def held_back() -> bool | None:
        request = ListAuditRecordsRequest(method_prefix=REFUSED)
        records = (await both.home.client.audit.ListAuditRecords(request)).records
        return any(each.reason == "QUOTA" for each in records) or None

    assert await found(held_back)
    assert (await both.home.task(second)).project == "projects/peer-work"
    both.reviewer.may_end.set()
    for name in (first, second):
        await both.home.reached(name, Task.STATE_SUCCEEDED)
    assert [each.title for each in await both.home.hand_overs()].count("wait no more") == 1


async def test_what_a_person_has_to_accept_waits_for_one(both: Two) -> None:
    name = await both.home.submit("sign here", "docs.sign")
    waits = await both.work.hand_over(DELEGATION_STATE_QUARANTINED)
    assert "sign here" not in {task.spec.title for task in await both.work.tasks()}
    await both.home.hand_over(DELEGATION_STATE_QUARANTINED)
    await both.work.client.remote_delegations.DecideRemoteDelegation(
        VERDICT(id=waits.id, verdict=VERDICT.VERDICT_ACCEPT)
    )
    assert (await both.home.reached(name, Task.STATE_SUCCEEDED)).result == b"read: sign here"


async def test_what_is_called_off_here_is_stopped_there(both: Two) -> None:
    both.reviewer.again()
    name = await both.home.submit("wait for me", "docs.review")
    await both.reviewer.begun.wait()
    running = await both.home.hand_over(DELEGATION_STATE_RUNNING)

    async def told() -> bool | None:
        return (await both.home.hand_overs())[0].fraction == 0.5 or None

    await found(told)
    await both.home.client.tasks.CancelTask(CancelTaskRequest(name=name))
    for hopper in (both.work, both.home):
        assert (await hopper.hand_over(DELEGATION_STATE_CANCELLED)).id == running.id
    (there,) = [task for task in await both.work.tasks() if task.spec.title == "wait for me"]
    assert there.state == Task.STATE_CANCELLED
    both.reviewer.may_end.set()  # who works there sees when it renews its claim that nobody wants it any more


async def test_who_takes_over_may_be_started_anew_meanwhile(both: Two) -> None:
    both.reviewer.again()
    name = await both.home.submit("wait, there", "docs.review")
    await both.reviewer.begun.wait()
    await both.work.stop()
    both.reviewer.may_end.set()
    await both.work.start()
    await at_work(both.work, both.reviewer)
    assert (await both.home.reached(name, Task.STATE_SUCCEEDED)).result == b"read: wait, there"


async def test_who_hands_over_may_be_started_anew_meanwhile(both: Two) -> None:
    both.reviewer.again()
    name = await both.home.submit("wait, here", "docs.review")
    await both.reviewer.begun.wait()
    await both.home.hand_over(DELEGATION_STATE_RUNNING)
    await both.home.stop()
    both.reviewer.may_end.set()
    await both.work.hand_over(DELEGATION_STATE_COMPLETED)
    await both.home.start()
    assert (await both.home.reached(name, Task.STATE_SUCCEEDED)).result == b"read: wait, here"


async def begun_by_who_dies(work: WholeHopper) -> str:
    """Wait for a task and begin it, as a worker that is not heard of again; its name."""
    claim = ClaimTasksRequest(
        queue="projects/once",
        worker="mayfly",
        lease_duration=to_proto(timedelta(seconds=1)),
        wait=to_proto(timedelta(seconds=5)),
    )

    async def look() -> str | None:
        tasks = (await work.client.work.ClaimTasks(claim)).tasks
        return tasks[0].name if tasks else None

    return await found(look)


async def test_what_must_not_run_twice_has_failed_when_its_worker_died_and_is_tried_nowhere_else(
    both: Two,
) -> None:
    """Whoever handed it over is away while that happens."""
    home, work = both.home, both.work
    there = Worker(name="projects/once/workers/mayfly", slots=1, time_to_live=to_proto(timedelta(minutes=10)))
    await work.client.projects.Heartbeat(HeartbeatRequest(worker=there))
    await home.offers("docs.once")
    name = await home.submit("once", "docs.once", exclusive=True)
    begun = await begun_by_who_dies(work)
    await home.stop()
    assert (await work.hand_over(DELEGATION_STATE_FAILED)).task == begun
    await home.start()
    await home.reached(name, Task.STATE_FAILED)
    (hand_over, *_) = await home.hand_overs()
    assert (hand_over.title, hand_over.state) == ("once", DELEGATION_STATE_FAILED)
    for hopper in (home, work):
        assert [each.title for each in await hopper.hand_overs()].count("once") == 1
    ended = await work.task(begun)
    assert (ended.state, ended.attempt) == (Task.STATE_FAILED, 1)


async def test_who_is_revoked_ends_what_is_under_way_on_both_sides(both: Two) -> None:
    """The last one: they are no peers any more."""
    both.reviewer.again()
    await both.home.offers("docs.review")
    name = await both.home.submit("wait for ever", "docs.review")
    await both.reviewer.begun.wait()
    await both.home.hand_over(DELEGATION_STATE_RUNNING)
    await both.home.revoke("work", Peer.REVOCATION_NOW)
    assert (await both.home.hand_over(DELEGATION_STATE_RECLAIMED)).title == "wait for ever"
    back = await both.home.reached(name, Task.STATE_SUBMITTED)
    assert back.wait.reason == Wait.REASON_NO_ELIGIBLE_EXECUTOR
    assert (await both.work.hand_over(DELEGATION_STATE_ORPHANED)).title == "wait for ever"

    async def stopped(hopper: WholeHopper, peer: str) -> bool | None:
        request = GetInstanceRequest(name=f"instances/peer-{peer}")
        state = (await hopper.client.instances.GetInstance(request)).instance.state
        return state == Instance.STATE_STOPPED or None

    await found(lambda: stopped(both.home, "work"))
    # What waits there for who has revoked it would wait for ever, too.
    await found(lambda: stopped(both.work, "home"))
