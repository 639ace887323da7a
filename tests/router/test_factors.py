"""One factor model: what each factor promises, by rules and by what was learned; and weights that learn."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from hopper.router.v1 import decision_pb2 as pb
from hopper.router.v1 import routing_service_pb2 as routing_svc
from hopper.router.v1 import task_pb2
from hopper_learning import Encoder, WordLlamaEncoder
from hopper_router import routing
from hopper_router.convert import decision_to_bytes
from hopper_router.learned import Learned
from hopper_router.load import Load
from hopper_router.model import (
    Basis,
    Candidate,
    Clocks,
    Decision,
    Factor,
    Lesson,
    Outcome,
    Project,
    Task,
    TaskSpec,
    TaskState,
    Truth,
    WeightOrigin,
)
from hopper_router.policy_yaml import load_policy
from hopper_router.replay import Recorded, Rehearsal, Verdict
from hopper_router.routing import Candidates
from hopper_router.rules import Policy
from hopper_router.weighing import RANGES, advantage, weighed, went_well
from tests.router.harness import ROOT, Router

STRATEGIES = ("rules", "learned")
HERE = "instances/global"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
LEARNED = load_policy("strategy: learned")
DESKS = tuple(
    Project(f"projects/{name}", display_name="Desk", description="anything", velocity=velocity)
    for name, velocity in (("a", 4.0), ("b", 4.0))
)


async def decide_by(router: Router, source: str) -> None:
    policy = pb.Policy(name=f"{ROOT}/policy", source=source)
    await router.routing.UpdatePolicy(routing_svc.UpdatePolicyRequest(policy=policy))


async def decision_about(router: Router, title: str, due: timedelta | None = None) -> pb.Decision:
    """What would be decided about a task that is due in so long."""
    clocks = task_pb2.Clocks()
    if due is not None:
        clocks.finish_by.FromDatetime(router.clock.now() + due)
    request = routing_svc.SuggestRouteRequest(
        parent=ROOT, spec=task_pb2.TaskSpec(title=title, tags=["kettles"], clocks=clocks)
    )
    return (await router.routing.SuggestRoute(request)).decision


def factors_of(decision: pb.Decision, project: str) -> dict[str, pb.Factor]:
    (candidate,) = (each for each in decision.candidates if each.project == project)
    return {factor.name: factor for factor in candidate.factors}


# ---------------------------------------------------------------- what is promised, through gRPC


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_of_two_equal_experts_the_less_loaded_has_it(router: Router, strategy: str) -> None:
    await decide_by(router, f"strategy: {strategy}")
    names = [router.registry.project(name, display_name="Desk", description="mends kettles") for name in "ab"]
    held = dict.fromkeys(names, 0)
    for number in range(6):
        task = await router.submit(f"mend kettle number {number}")
        assert held[task.project] == min(held.values())
        held[task.project] += 1
    assert set(held.values()) == {3}


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_an_overloaded_expert_loses_only_what_it_cannot_do_in_time(
    router: Router, strategy: str
) -> None:
    await decide_by(router, f"strategy: {strategy}")
    expert = router.registry.project(
        "expert",
        display_name="Kettle repairs",
        description="mends kettles",
        tags=frozenset({"kettles"}),
        velocity=4.0,
    )
    other = router.registry.project(
        "other", display_name="Helpers", description="kettles, and other odd jobs", velocity=4.0
    )
    title = "mend the kettle"
    assert (await decision_about(router, title, DAY)).project == expert
    for number in range(20):  # five days of work
        await router.submit(f"kettle {number}", project=expert)
    assert (await decision_about(router, title)).project == expert
    assert (await decision_about(router, title, 30 * DAY)).project == expert
    assert (await decision_about(router, title, 6 * DAY)).project == expert
    late = await decision_about(router, title, DAY)
    assert late.project == other
    assert factors_of(late, expert)["deadline"].value == 0.0
    assert factors_of(late, other)["deadline"].value == 1.0
    assert list(factors_of(late, expert)["deadline"].evidence) == ["takes 5 days, due in 24 h"]
    # What nobody can do in time is still the expert's.
    for number in range(20):
        await router.submit(f"odd job {number}", project=other)
    assert (await decision_about(router, title, DAY)).project == expert


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_every_factor_is_in_the_record_and_they_add_up(router: Router, strategy: str) -> None:
    await decide_by(router, f"strategy: {strategy}\nweights: {{cost: 0.2}}")
    router.registry.project("a", "html", display_name="Desk", tags=frozenset({"x"}), cost=1.0)
    router.registry.project("b", "html", display_name="Shop", boosts={"x": 0.1}, cost=2.0)
    clocks = task_pb2.Clocks()
    clocks.finish_by.FromDatetime(router.clock.now() + DAY)
    task = await router.submit("desk", tags=["x"], required_capabilities=["html"], clocks=clocks)
    request = routing_svc.GetDecisionRequest(name=task.decision)
    made = (await router.routing.GetDecision(request)).decision
    names = {"rules", "tags", "capability", "text", "workload", "velocity", "cost", "sla", "boost"}
    names |= {"semantic", "learned"} if strategy == "learned" else set()
    for candidate in made.candidates:
        assert {factor.name for factor in candidate.factors} == names  # nobody knows how long anybody takes
        parts = sum(factor.value * factor.weight for factor in candidate.factors)
        assert parts == pytest.approx(candidate.score, abs=1e-8)
        origins = {factor.name: factor.weight_origin for factor in candidate.factors}
        assert origins.pop("cost") == pb.WEIGHT_ORIGIN_POLICY
        assert set(origins.values()) == {pb.WEIGHT_ORIGIN_UNSPECIFIED}
        assert next(factor.weight for factor in candidate.factors if factor.name == "cost") == 0.2


# ---------------------------------------------------------------- deadlines


def decide(
    spec: TaskSpec,
    projects: Iterable[Project] = DESKS,
    policy: Policy = LEARNED,
    learned: Learned | None = None,
    **load: int,
) -> Decision:
    return routing.decide(
        spec,
        Candidates.compile(projects),
        policy,
        load=Load({f"projects/{name}": count for name, count in load.items()}),
        refused={},
        basis=Basis(),
        strategies=learned.strategies(HERE) if learned else None,
        now=NOW,
    )


def due(length: timedelta, **fields: timedelta) -> TaskSpec:
    return TaskSpec("anything", clocks=Clocks(finish_by=NOW + length), **fields)  # type: ignore[arg-type]


def in_time(decision: Decision, name: str) -> float | None:
    """The factor's value; None: it is not in the record."""
    (candidate,) = (each for each in decision.candidates if each.project == f"projects/{name}")
    return next((factor.value for factor in candidate.factors if factor.name == "deadline"), None)


def test_who_needs_a_little_more_than_there_is_time_loses_a_little() -> None:
    by_rules = load_policy("{}")
    shares = [in_time(decide(due(DAY), policy=by_rules, a=count), "a") for count in (0, 4, 6, 8, 50)]
    assert shares == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_the_effort_of_the_task_itself_counts_where_it_is_to_be_finished() -> None:
    by_rules = load_policy("{}")
    assert in_time(decide(due(DAY, estimated_effort=1.5 * DAY), policy=by_rules), "a") == 0.5
    start = TaskSpec("anything", clocks=Clocks(start_by=NOW + DAY), estimated_effort=1.5 * DAY)
    assert in_time(decide(start, policy=by_rules), "a") == 1.0


def test_of_who_nobody_knows_how_long_it_takes_the_median_is_taken() -> None:
    by_rules = load_policy("{}")
    projects = (*DESKS, replace(DESKS[0], name="projects/c", velocity=0.0))
    decision = decide(due(DAY), projects, by_rules, a=6, b=6)
    assert in_time(decision, "c") == in_time(decision, "a") == 0.5
    slow = [replace(desk, velocity=0.0) for desk in DESKS]
    assert in_time(decide(due(DAY), slow, by_rules), "a") is None


def test_a_deadline_that_has_passed_makes_no_difference_and_neither_does_none() -> None:
    assert in_time(decide(due(-DAY), policy=load_policy("{}")), "a") is None
    assert in_time(decide(TaskSpec("anything"), policy=load_policy("{}")), "a") is None


@pytest.mark.parametrize("days", [1e-9, 1e6])
def test_any_deadline_is_decided_about(days: float) -> None:
    decision = decide(
        TaskSpec("anything", clocks=Clocks(finish_by=NOW + timedelta(days=days))),
        policy=load_policy("{}"),
        a=10**9,
    )
    assert sum(candidate.confidence for candidate in decision.candidates) == pytest.approx(1.0)


# ---------------------------------------------------------------- weights that learn


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return WordLlamaEncoder()


@pytest.fixture
async def learned(encoder: Encoder) -> Learned:
    return await a_student(encoder)


_REGISTERED = Candidates.compile(DESKS)


async def a_student(encoder: Encoder) -> Learned:
    learned = Learned(lambda: encoder)
    learned.projects = lambda: _REGISTERED
    await learned.wake()
    return learned


def weight(decision: Decision, name: str) -> tuple[float, WeightOrigin, int]:
    """A factor's weight in the record, where that comes from, and of how many lessons."""
    found = {
        (factor.weight, factor.origin, factor.lessons)
        for candidate in decision.candidates
        for factor in candidate.factors
        if factor.name == name
    }
    (one,) = found
    return one


def life(learned: Learned, count: int, *, late_when_busy: bool = True, seed: int = 1) -> Iterator[Lesson]:
    """Decisions about two desks, one of them busier by chance, which is late the oftener the busier the chosen is."""
    chance = random.Random(seed)
    for number in range(1, count + 1):
        load = {name: chance.randrange(11) for name in "ab"}
        made = decide(TaskSpec("anything"), learned=learned, a=load["a"], b=load["b"])
        sent = chance.choice(made.candidates).project  # so that both are seen
        busy = load[sent.removeprefix("projects/")] / 10
        late = chance.random() < (busy if late_when_busy else 0.3)
        yield Lesson(
            number, HERE, f"decisions/{number}", "anything", "", (), Truth.LATE if late else Truth.RIGHT,
            sent, f"worker{number % 20}", 0.5, NOW, sent, tuple(weighed(made.candidates)),
        )  # fmt: skip


async def test_workload_gains_weight_where_the_busy_are_late(learned: Learned) -> None:
    before = decide(TaskSpec("anything"), learned=learned, a=9)
    assert weight(before, "workload") == (RANGES["workload"].shipped, WeightOrigin.SHIPPED, 0)
    for lesson in life(learned, 400):
        learned.apply([lesson])
    after = decide(TaskSpec("anything"), learned=learned, a=9)
    value, origin, lessons = weight(after, "workload")
    assert origin is WeightOrigin.LEARNED
    assert lessons == 300  # those that the two differed in, to the first digit
    assert value > 3 * RANGES["workload"].shipped
    assert weight(after, "cost") == (RANGES["cost"].shipped, WeightOrigin.SHIPPED, 0)  # all the same there


async def test_where_load_does_no_harm_it_gains_little(learned: Learned) -> None:
    for lesson in life(learned, 400, late_when_busy=False):
        learned.apply([lesson])
    value, _, _ = weight(decide(TaskSpec("anything"), learned=learned, a=9), "workload")
    assert value < 3 * RANGES["workload"].shipped


async def test_a_weight_that_the_policy_says_is_not_learned(learned: Learned) -> None:
    for lesson in life(learned, 100):
        learned.apply([lesson])
    policy = load_policy("strategy: learned\nweights: {workload: 0.25, tags: 0.0}")
    decision = decide(TaskSpec("anything"), policy=policy, learned=learned, a=9)
    assert weight(decision, "workload") == (0.25, WeightOrigin.POLICY, 0)
    assert weight(decision, "tags") == (0.0, WeightOrigin.POLICY, 0)
    assert weight(decide(TaskSpec("anything"), learned=learned), "workload")[1] is WeightOrigin.LEARNED


async def test_one_liar_moves_no_weight_far(learned: Learned) -> None:
    for lesson in life(learned, 400):
        lie = Truth.RIGHT if lesson.truth is Truth.LATE else Truth.LATE
        learned.apply([replace(lesson, truth=lie, source="mallory", weight=1.0)])
    value, _, _ = weight(decide(TaskSpec("anything"), learned=learned), "workload")
    assert value <= RANGES["workload"].shipped + 0.26 * RANGES["workload"].most


async def test_weights_are_kept_and_replicas_agree_on_them(learned: Learned, encoder: Encoder) -> None:
    lessons = []
    for lesson in life(learned, 60):
        learned.apply([lesson])
        lessons.append(lesson)
    restored, replica = await a_student(encoder), await a_student(encoder)
    assert restored.restore(learned.snapshot(), 60)
    replica.apply(lessons)
    spec = TaskSpec("anything", clocks=Clocks(finish_by=NOW + DAY))
    said = [decide(spec, learned=one, a=5, b=2).candidates for one in (learned, restored, replica)]
    assert said[0] == said[1] == said[2]
    more = list(life(learned, 60, seed=2))
    for one in (learned, restored, replica):
        one.apply(more)
    said = [decide(spec, learned=one, a=5, b=2).candidates for one in (learned, restored, replica)]
    assert said[0] == said[1] == said[2]


async def test_a_snapshot_of_before_weights_were_learned_can_be_read(
    learned: Learned, encoder: Encoder
) -> None:
    for lesson in life(learned, 30):
        learned.apply([lesson])
    whole = learned.snapshot()
    size = int.from_bytes(whole[:8])
    names = [entry[:2] for entry in json.loads(whole[8 : 8 + size])]
    head = json.dumps(names).encode()
    old = await a_student(encoder)
    assert old.restore(len(head).to_bytes(8) + head + whole[8 + size :], 30)
    decision = decide(TaskSpec("anything"), learned=old)
    assert weight(decision, "workload") == (RANGES["workload"].shipped, WeightOrigin.SHIPPED, 0)


async def test_a_snapshot_with_broken_weights_changes_nothing(learned: Learned, encoder: Encoder) -> None:
    for lesson in life(learned, 30):
        learned.apply([lesson])
    whole = learned.snapshot()
    size = int.from_bytes(whole[:8])
    entries = [[*entry[:2], {"values": "x"}] for entry in json.loads(whole[8 : 8 + size])]
    head = json.dumps(entries).encode()
    assert not (await a_student(encoder)).restore(len(head).to_bytes(8) + head + whole[8 + size :], 30)


async def test_a_failure_says_nothing_of_where_the_text_belongs(learned: Learned) -> None:
    before = decide(TaskSpec("zebra"), learned=learned)
    lesson = next(life(learned, 1))
    learned.apply([replace(lesson, title="zebra", truth=Truth.FAILED)])
    after = decide(TaskSpec("zebra"), learned=learned)
    model = [[f.value for f in c.factors if f.name in ("semantic", "learned")] for c in after.candidates]
    assert model == [
        [f.value for f in c.factors if f.name in ("semantic", "learned")] for c in before.candidates
    ]


# ---------------------------------------------------------------- what a decision teaches


def candidate(project: str, score: float, **values: float) -> Candidate:
    factors = tuple(Factor(name, value, 0.5) for name, value in values.items())
    return Candidate(f"projects/{project}", score, 0.5, (*factors, Factor("learned", 0.1, 2.0)))


def test_what_was_weighed_is_what_candidates_differ_in() -> None:
    candidates = (
        candidate("a", 1.0, workload=0.5, cost=0.5, text=0.9),
        candidate("b", 0.5, workload=0.25, cost=0.5, text=0.1),
    )
    assert [tuple(each) for each in weighed(candidates)] == [
        ("projects/a", 0.75, (("workload", 0.5),)),
        ("projects/b", 0.375, (("workload", 0.25),)),
    ]
    stored = pb.Decision.FromString(decision_to_bytes(Decision(*_ROUTED, candidates=candidates)))
    assert weighed(stored.candidates) == weighed(candidates)
    assert weighed(candidates[:1]) == []
    assert weighed([candidate("a", 1.0, workload=0.5), candidate("b", 1.0, workload=0.5)]) == []
    by_rules = [replace(each, factors=each.factors[:-1]) for each in candidates]
    assert weighed(by_rules) == []


_ROUTED = (Outcome.ROUTED, "projects/a")


def test_how_it_went_is_measured_against_the_mean_of_all() -> None:
    pair = (candidate("a", 1.0, workload=1.0), candidate("b", 0.5, workload=0.5))
    lesson = Lesson(
        1, HERE, "decisions/1", "x", "", (), Truth.FAILED, "projects/a", "ann", 0.5, NOW, "projects/a",
        tuple(weighed(pair)),
    )  # fmt: skip
    said = advantage(lesson)
    assert said is not None
    assert said.factors == {"workload": 0.25}
    assert said.ahead == pytest.approx((0.5 - 0.25) / 0.15)
    assert advantage(replace(lesson, sent_to="projects/c")) is None
    assert advantage(replace(lesson, candidates=())) is None


async def test_a_rehearsal_learns_weights_of_the_recorded_factors(learned: Learned) -> None:
    """What the busy made late in the record counts for the policy that is tried, as it would have then."""
    recorded, verdicts = [], {}
    for lesson in life(learned, 200):
        candidates = tuple(
            Candidate(
                each.project,
                each.rest,
                0.5,
                (*(Factor(name, value, 0.0) for name, value in each.factors), Factor("learned", 0.0, 2.0)),
            )
            for each in lesson.candidates
        )
        made = Decision(
            Outcome.ROUTED,
            name=lesson.decision,
            task=f"{HERE}/tasks/{lesson.position}",
            instance=HERE,
            project=lesson.sent_to,
            candidates=candidates,
            create_time=NOW,
        )
        task = Task(
            made.task, HERE, TaskSpec("anything"), TaskState.SUCCEEDED, NOW, NOW, NOW, decision=made.name
        )
        recorded.append(Recorded(made, task, {}))
        verdicts[made.name] = Verdict(well=lesson.truth is Truth.RIGHT)
    Rehearsal(LEARNED, _REGISTERED, learned).decide(recorded[::-1], verdicts)
    value, origin, _ = weight(decide(TaskSpec("anything"), learned=learned, a=9), "workload")
    assert origin is WeightOrigin.LEARNED
    assert value > 2 * RANGES["workload"].shipped


@pytest.mark.parametrize(
    ("truth", "about", "well"),
    [
        (Truth.RIGHT, "projects/a", True),
        (Truth.RIGHT, "projects/b", False),
        (Truth.WRONG, "projects/a", False),
        (Truth.LATE, "projects/a", False),
        (Truth.FAILED, "projects/a", False),
        (Truth.NONE, "", None),
    ],
)
def test_what_went_well(truth: Truth, about: str, well: bool | None) -> None:
    lesson = Lesson(1, HERE, "decisions/1", "x", "", (), truth, about, "ann", 0.5, NOW, "projects/a")
    assert went_well(lesson) is well
