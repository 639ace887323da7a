"""What is told to memory, from the rows as the router writes them, on both engines."""

from datetime import timedelta

import pytest

from hopper.memory.v1.episode_pb2 import Episode, EpisodeOutcome
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1.delegation_pb2 import Delegation
from hopper_router.episode_source import StoredEpisodes
from hopper_router.episodes import TOPICS, DecisionRecord, episode, outcome, rerouted
from hopper_router.model import Decision, Project
from hopper_router.recall import decision_of, is_short
from hopper_router.store_sql import EVENTS, Store
from tests.router.harness import MINUTE, SECOND, Router


async def decisions(router: Router, task: pb.Task) -> list[Decision]:
    """Every decision about a task, oldest first."""
    found = await router.db.read(lambda conn: Store(conn).list_decisions(task=task.name, limit=100))
    return found[::-1]


async def record_of(router: Router, decision: str, *, first: bool = False) -> DecisionRecord:
    records = await StoredEpisodes(router.db).records([decision], [decision] if first else [])
    return records[decision]


async def end_of(router: Router, task: pb.Task) -> EpisodeOutcome:
    said = outcome((await StoredEpisodes(router.db).ended([task.name]))[task.name])
    assert said is not None
    return said


async def test_a_decision_is_told_as_it_was_made(router: Router) -> None:
    router.registry.project("web", "html")
    router.registry.project("page", "html")
    task = await router.submit(
        "mend it", description="all of it", tags=["type:Bug"], required_capabilities=["html"]
    )
    (made,) = await decisions(router, task)
    record = await record_of(router, task.decision)
    said = episode(record)
    assert (said.decision, said.task, said.instance) == (made.name, task.name, "instances/global")
    assert (said.title, said.description, list(said.tags)) == ("mend it", "all of it", ["type:Bug"])
    assert (said.project, said.confidence, said.strategy) == (made.project, made.confidence, made.strategy)
    assert [(one.project, one.confidence) for one in said.candidates] == [
        (one.project, one.confidence) for one in made.candidates
    ]
    assert len(said.candidates) == 2
    assert said.decide_time == task.create_time
    assert (said.parent_decision, rerouted(record)) == ("", None)


async def test_the_hot_path_makes_first_decisions(router: Router) -> None:
    """So nobody has to look for earlier ones."""
    router.registry.project("web", "html")
    for _ in range(3):
        await router.submit(required_capabilities=["html"])
    events = await router.db.read(lambda conn: EVENTS.read(conn, after=0, limit=10, topics=TOPICS))
    assert [is_short(event) for event in events] == [True] * 3
    for event in events:
        decision = decision_of(event)
        assert await record_of(router, decision, first=True) == await record_of(router, decision)


async def test_a_decision_replaces_the_one_before(router: Router) -> None:
    task = await router.submit(required_capabilities=["html"])
    other = await router.submit(required_capabilities=["html"])
    router.registry.project("web", "html")
    await router.follow()
    for each in (task, other):
        first, second = await decisions(router, each)
        assert rerouted(await record_of(router, first.name)) is None
        said = rerouted(await record_of(router, second.name))
        assert said is not None
        assert (said.decision, said.outcome) == (first.name, Episode.OUTCOME_REROUTED)
        assert said.finish_time == episode(await record_of(router, second.name)).decide_time


async def test_a_task_that_was_handed_over_has_the_decision_above(router: Router) -> None:
    router.registry.team("web", "html")
    top = await router.submit(required_capabilities=["html"])
    child = await router.child_of(top)
    assert child.decision != top.decision
    assert (await record_of(router, top.decision)).parent_decision == ""
    assert (await record_of(router, child.decision)).parent_decision == top.decision


async def test_the_decision_above_is_the_one_that_handed_over(router: Router) -> None:
    """And not one that was made after the work came back."""
    web, _ = router.registry.team("web", "html")
    top = await router.submit(required_capabilities=["html"])
    child = await router.child_of(top)
    claimed = await router.claim_one(web)
    await router.delegate(claimed, Delegation.KIND_ESCALATE, fencing_token=claimed.claim.fencing_token)
    then, *since = await decisions(router, top)
    assert since
    assert (await record_of(router, child.decision)).parent_decision == then.name


async def test_an_end_is_told_with_its_times(router: Router) -> None:
    web = router.registry.project("web", "html")
    task = await router.submit(required_capabilities=["html"])
    router.clock.advance(3 * SECOND)
    claimed = await router.claim_one(web)
    router.clock.advance(5 * SECOND)
    await router.complete(claimed)
    said = await end_of(router, task)
    assert (said.decision, said.outcome) == (task.decision, Episode.OUTCOME_SUCCEEDED)
    assert (said.worker, said.attempts, said.failure_reason) == ("ann", 1, "")
    assert said.finish_time == (await router.get(task)).finish_time
    assert said.queue_duration.ToTimedelta() == timedelta(seconds=3)
    assert said.run_duration.ToTimedelta() == timedelta(seconds=5)


@pytest.mark.parametrize(
    ("promised", "within", "late"),
    [(None, None, False), (5, None, True), (9, None, False), (None, 5, True), (60, 5, True), (60, 60, False)],
)
async def test_what_was_done_later_than_promised_was_late(
    router: Router, *, promised: int | None, within: int | None, late: bool
) -> None:
    web = router.registry.project("web", "html")
    clocks = pb.Clocks()
    if within is not None:
        clocks.finish_by.FromDatetime(router.clock.now() + timedelta(seconds=within))
    task = await router.submit(required_capabilities=["html"], clocks=clocks)
    await router.complete(await router.claim_one(web))
    project = Project("projects/web", sla=timedelta(seconds=promised) if promised else None)
    source = StoredEpisodes(router.db, lambda: {project.name: project})
    (ended,) = (await source.ended([task.name])).values()
    said = outcome(ended._replace(finish_time=ended.finish_time + 8_000_000))
    assert said is not None
    assert said.failure_reason == ("LATE" if late else "")


async def test_only_a_failed_end_has_a_reason(router: Router) -> None:
    web = router.registry.project("web", "html")
    failed = await router.submit(required_capabilities=["html"])
    await router.fail(await router.claim_one(web), "NO_NETWORK", message='say "why"', permanent=True)
    assert (await end_of(router, failed)).failure_reason == "NO_NETWORK"

    called_off = await router.submit(required_capabilities=["html"])
    await router.fail(await router.claim_one(web), "NO_NETWORK")
    await router.cancel(called_off)
    said = await end_of(router, called_off)
    assert (said.outcome, said.failure_reason) == (Episode.OUTCOME_CANCELLED, "")


async def test_what_was_never_claimed_took_no_time(router: Router) -> None:
    router.registry.project("web", "html")
    task = await router.submit(required_capabilities=["html"])
    router.clock.advance(MINUTE)
    await router.cancel(task)
    said = await end_of(router, task)
    assert (said.worker, said.attempts) == ("", 0)
    assert not said.HasField("queue_duration")
    assert not said.HasField("run_duration")


async def test_an_open_task_has_no_end_yet(router: Router) -> None:
    router.registry.project("web", "html")
    task = await router.submit(required_capabilities=["html"])
    assert outcome((await StoredEpisodes(router.db).ended([task.name]))[task.name]) is None


async def test_what_is_gone_is_left_out(router: Router) -> None:
    router.registry.project("web", "html")
    task = await router.submit(required_capabilities=["html"])
    source = StoredEpisodes(router.db)
    assert list(await source.records([task.decision, "decisions/gone"], [])) == [task.decision]
    assert list(await source.ended(["instances/global/tasks/gone", task.name])) == [task.name]
