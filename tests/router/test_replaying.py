"""What another policy would have come to: estimated from the record, the ends of tasks, and what feedback says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from hopper.memory.v1.episode_pb2 import Episode
from hopper.memory.v1.feedback_service_pb2 import Verdict as VerdictMessage
from hopper.router.v1 import routing_service_pb2 as svc
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1.decision_pb2 import Policy
from hopper.router.v1.task_pb2 import RetryPolicy
from hopper_common.errors import ServiceUnavailable
from hopper_router import routing
from hopper_router.candidates import Candidates
from hopper_router.learned import Learned
from hopper_router.model import Basis, Project, Task, TaskSpec, TaskState
from hopper_router.policy_yaml import BUILT_IN, load_policy
from hopper_router.replay import Recorded, Rehearsal, Verdict, compare
from hopper_router.replaying import Replays
from hopper_router.verdicts import verdict_from_proto
from tests.router.harness import NOW, ROOT, Code, Router, refusal, violations

Method = svc.PolicyEstimate
TO_APP = "rules: [{name: phones, when: {keyword: phone}, then: {project: app, weight: 5}}]"
NEVER_AGAIN = RetryPolicy(max_attempts=1)


class Told:
    """`Verdicts` in the test's hand."""

    def __init__(self) -> None:
        self.known: dict[str, Verdict] = {}
        self.silent = False

    async def of(self, decisions: Sequence[str]) -> dict[str, Verdict]:
        if self.silent:
            raise ServiceUnavailable(service="memory")
        return {name: self.known[name] for name in decisions if name in self.known}


async def replayed(
    router: Router, told: Told, source: str = TO_APP, **fields: object
) -> svc.ReplayPolicyResponse:
    request = svc.ReplayPolicyRequest(instance=ROOT, source=source, **fields)  # type: ignore[arg-type]
    return await Replays(router.engine, told).replay(request)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def tasks(router: Router) -> list[pb.Task]:
    """Four tasks at web, two of which another policy would send to app."""
    router.registry.project("web", description="pages")
    router.registry.project("app")
    titles = ["pages", "pages about a phone", "pages again", "a phone with pages"]
    return [await router.submit(title, retry=NEVER_AGAIN) for title in titles]


async def test_nothing_is_estimated_before_anything_has_ended(
    router: Router, told: Told, tasks: list[pb.Task]
) -> None:
    answer = await replayed(router, told)
    assert (answer.replayed, answer.changed, answer.HasField("estimate")) == (4, 2, False)
    assert "not known yet" in answer.notes[-1]
    assert [change.task for change in answer.changes] == [tasks[3].name, tasks[1].name]
    assert all(not change.HasField("went") and not change.HasField("expected") for change in answer.changes)
    assert answer.changes[0].from_confidence > 0
    assert answer.changes[0].to_confidence > 0.9


async def test_what_feedback_names_is_known(router: Router, told: Told, tasks: list[pb.Task]) -> None:
    web, app = "projects/web", "projects/app"
    for task, right in zip(tasks, (web, app, web, web), strict=True):
        told.known[task.decision] = Verdict(right == web, right)
    answer = await replayed(router, told)
    estimate = answer.estimate
    assert (estimate.method, estimate.judged, estimate.modelled) == (Method.METHOD_KNOWN, 4, 0)
    assert (estimate.recorded, estimate.value, estimate.gain) == (0.75, 0.75, 0.0)
    assert estimate.gain_lower < 0 < estimate.gain_upper
    assert (estimate.agreement, estimate.random) == (0.5, 0.5)
    assert {change.task: (change.went, change.expected) for change in answer.changes} == {
        tasks[1].name: (0.0, 1.0),
        tasks[3].name: (1.0, 0.0),
    }
    told.known[tasks[0].decision] = Verdict(False, nobody=True)
    assert (await replayed(router, told)).estimate.recorded == 0.5


async def test_ends_are_taken_where_nobody_judged(router: Router, told: Told, tasks: list[pb.Task]) -> None:
    """Succeeded is well, failed is not; what was called off says nothing; memory may be away."""
    told.silent = True
    claimed = {task.name: task for task in await router.claim("projects/web", max_tasks=4)}
    await router.complete(claimed[tasks[0].name], claimed[tasks[1].name])
    await router.fail(claimed[tasks[2].name], "BROKEN", permanent=True)
    await router.cancel(tasks[3])
    answer = await replayed(router, told)
    estimate = answer.estimate
    assert (estimate.judged, estimate.modelled) == (3, 1)
    assert estimate.recorded == pytest.approx(2 / 3)
    assert estimate.method == Method.METHOD_DIRECT
    assert estimate.lower <= estimate.value <= estimate.upper
    assert any("memory does not answer" in note for note in answer.notes)
    assert any("deterministic" in note for note in answer.notes)
    assert any("only 3 outcomes" in note for note in answer.notes)


async def test_the_strategy_alone_may_be_another(router: Router, told: Told, tasks: list[pb.Task]) -> None:
    answer = await replayed(router, told, "", strategy="rules")
    assert (answer.replayed, answer.changed) == (4, 0)
    request = svc.ReplayPolicyRequest(instance=ROOT, strategy="llm")
    assert "strategy" in await violations(router.routing.ReplayPolicy(request))


async def test_what_is_learned_is_learned_anew_in_order(router: Router, told: Told) -> None:
    """Each task is decided before its own outcome is known: the first of a kind is a guess, the later ones are not."""
    router.registry.project("one", description="anything")
    router.registry.project("two", description="anything")
    words = {"projects/one": "zebra", "projects/two": "lion"}
    rng = random.Random(4)
    for n in range(40):
        right = rng.choice(list(words))
        task = await router.submit(f"feed the {words[right]} {n}")
        told.known[task.decision] = Verdict(task.project == right, right)
    answer = await replayed(router, told, "strategy: learned")
    estimate = answer.estimate
    assert estimate.value > 0.85
    assert estimate.gain_lower > 0
    assert any("learned anew" in note for note in answer.notes)
    assert answer.estimate == (await replayed(router, told, "strategy: learned")).estimate


async def test_the_estimate_of_a_known_change_holds(router: Router, told: Told) -> None:
    """Half of what is known of a stream estimates the rest: the other policy's real share lies in the interval."""
    router.registry.project("web", description="pages")
    router.registry.project("app")
    rng = random.Random(7)
    right_there = 0
    for n in range(120):
        phone = rng.random() < 0.4
        task = await router.submit(f"pages{' phone' if phone else ''} {n}")
        right = "projects/app" if phone and rng.random() < 0.8 else "projects/web"
        right_there += right == ("projects/app" if phone else "projects/web")
        named = right == "projects/web" or rng.random() < 0.5
        told.known[task.decision] = Verdict(right == "projects/web", right if named else "")
    estimate = (await replayed(router, told)).estimate
    assert estimate.lower <= right_there / 120 <= estimate.upper
    assert estimate.gain_lower > 0


async def test_what_is_archived_or_moved_on(router: Router, told: Told, tasks: list[pb.Task]) -> None:
    """One that was decided about again went elsewhere: the first decision was no good."""
    await router.update(tasks[0], title="a phone")
    answer = await replayed(router, told)
    assert answer.replayed == 5
    assert (answer.estimate.judged, answer.estimate.recorded) == (1, 0.0)


async def test_every_version_is_kept(router: Router) -> None:
    async def put(source: str, etag: str = "") -> Policy:
        policy = Policy(name=f"{ROOT}/policy", source=source, etag=etag)
        return (await router.routing.UpdatePolicy(svc.UpdatePolicyRequest(policy=policy))).policy

    sources = ["strategy: rules", TO_APP, "", "strategy: learned"]
    for source in sources:
        await put(source)
    listed = await router.routing.ListPolicyVersions(
        svc.ListPolicyVersionsRequest(instance=ROOT, page_size=3)
    )
    assert [(each.version, each.strategy, each.source) for each in listed.policies] == [
        (4, "learned", ""),
        (3, "", ""),
        (2, "rules", ""),
    ]
    rest = await router.routing.ListPolicyVersions(
        svc.ListPolicyVersionsRequest(instance=ROOT, page_size=3, page_token=listed.next_page_token)
    )
    assert [each.version for each in rest.policies] == [1]
    assert not rest.next_page_token
    second = (await router.routing.GetPolicy(svc.GetPolicyRequest(instance=ROOT, version=2))).policy
    assert (second.source, second.rule_count, second.etag) == (TO_APP, 1, "p2")
    back = await put(second.source, etag="p4")
    assert (back.version, back.rule_count) == (5, 1)
    await refusal(
        router.routing.GetPolicy(svc.GetPolicyRequest(instance=ROOT, version=9)),
        Code.NOT_FOUND,
        "POLICY_VERSION_NOT_FOUND",
        instance=ROOT,
        version="9",
    )


def test_a_verdict_in_the_routers_words() -> None:
    said = VerdictMessage(right=False, project="projects/app", outcome=Episode.OUTCOME_REROUTED)
    assert verdict_from_proto(said) == Verdict(False, "projects/app", well=False)
    assert verdict_from_proto(VerdictMessage(outcome=Episode.OUTCOME_CANCELLED)) == Verdict()
    assert verdict_from_proto(VerdictMessage(nobody=True, right=True)) == Verdict(True, nobody=True)


def test_fifty_known_changes_lie_in_their_intervals() -> None:
    """
    Decided for real, once by each policy; feedback on every third task, ends of the others.

    The share of these tasks that the other policy really places right is in at least 45 of 50 intervals.
    """
    held = sum(_holds(seed) for seed in range(50))
    assert held >= 45


def _holds(seed: int) -> bool:
    rng = random.Random(seed)
    projects = [Project("projects/web", description="pages"), Project("projects/app", description="phone")]
    candidates = Candidates.compile(projects)
    recorded: list[Recorded] = []
    verdicts: dict[str, Verdict] = {}
    rights: list[str] = []
    for n in range(80):
        words = (
            ["pages"] * (rng.random() < 0.7)
            + ["phone"] * (rng.random() < 0.5)
            + ["urgent"] * (rng.random() < 0.3)
        )
        spec = TaskSpec(title=" ".join([*words, str(n)]))
        app = 0.85 if "phone" in words else 0.2
        right = "projects/app" if rng.random() < app else "projects/web"
        made = routing.decide(spec, candidates, BUILT_IN, load={}, refused={}, basis=Basis())
        decision = replace(made, name=f"decisions/{n:03}", instance=ROOT)
        state = TaskState.SUCCEEDED if made.project == right else TaskState.FAILED
        task = Task(
            name=f"{ROOT}/tasks/{n:03}", instance=ROOT, spec=spec, state=state, create_time=NOW, update_time=NOW,
            ready_time=NOW, decision=decision.name,
        )  # fmt: skip
        recorded.insert(0, Recorded(decision, task, {}))
        rights.insert(0, right)
        if rng.random() < 1 / 3:
            verdicts[decision.name] = Verdict(made.project == right, right)
    again = Rehearsal(load_policy(TO_APP), candidates, Learned(lambda: None)).decide(recorded, verdicts)
    estimate = compare(recorded, again, verdicts).estimate
    assert estimate is not None
    share = sum(one.project == right for one, right in zip(again, rights, strict=True)) / len(rights)
    return estimate.lower <= share <= estimate.upper
