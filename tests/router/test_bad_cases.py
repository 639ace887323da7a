"""
What must be right in bad cases of deciding, by gRPC, for every strategy that judges in memory.

The same is proved closer by where it happens; here it is seen from outside, with everything in between.
"""

import random

import grpc.aio
import pytest

from hopper.router.v1 import decision_pb2, routing_service_pb2
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as svc
from hopper_common.rpc.errors import from_rpc_error
from hopper_router.model import Lesson, Truth
from tests.router.harness import NOW, ROOT, Code, Reason, Router, State, refusal, violations


@pytest.fixture
def engine_kind() -> str:
    """One is enough: what is decided is decided in memory."""
    return "sqlite"


@pytest.fixture(params=["rules", "learned"])
async def routed(router: Router, request: pytest.FixtureRequest) -> Router:
    """A router without projects, that decides by that strategy."""
    await policy(router, f"strategy: {request.param}")
    return router


async def policy(router: Router, source: str) -> None:
    wanted = decision_pb2.Policy(name=f"{ROOT}/policy", source=source)
    await router.routing.UpdatePolicy(routing_service_pb2.UpdatePolicyRequest(policy=wanted))


async def decided(router: Router, title: str, **fields: object) -> decision_pb2.Decision:
    """What would be decided, which records nothing."""
    request = routing_service_pb2.SuggestRouteRequest(parent=ROOT, spec=pb.TaskSpec(title=title, **fields))  # type: ignore[arg-type]
    return (await router.routing.SuggestRoute(request)).decision


async def test_no_projects(routed: Router) -> None:
    task = await routed.submit("mend the fence")
    assert (task.state, task.wait.reason) == (State.STATE_SUBMITTED, Reason.REASON_NO_ELIGIBLE_EXECUTOR)
    assert task.wait.message == "no project is registered"
    routed.registry.project("garden")
    await routed.follow()
    assert (await routed.get(task)).project == "projects/garden"


async def test_one_project(routed: Router) -> None:
    routed.registry.project("garden", description="fences and hedges")
    for title in ("mend the fence", "about something else", "?"):
        task = await routed.submitted(title)
        assert (task.task.project, task.decision.strategy) == ("projects/garden", "only-candidate")
        assert task.decision.confidence == 1.0


async def test_all_are_filtered_out(routed: Router) -> None:
    for number in range(3):
        routed.registry.project(f"p{number}", "dig")
    routed.registry.project("paused", "climb", paused=True)
    task = await routed.submit("prune the oak", required_capabilities=["climb"])
    assert task.state == State.STATE_SUBMITTED
    assert dict(task.wait.exclusions) == {"capability": 3, "project-paused": 1}
    routed.registry.change("projects/paused", paused=False)
    await routed.follow()
    assert (await routed.get(task)).project == "projects/paused"


async def test_a_tie(routed: Router) -> None:
    for number in range(8):
        routed.registry.project(f"p{number}", description="fences and hedges")
    first = [(await decided(routed, f"mend fence {n}")).project for n in range(40)]
    again = [(await decided(routed, f"mend fence {n}")).project for n in range(40)]
    assert first == again
    assert len(set(first)) >= 6  # nobody is drowned
    confidences = [one.confidence for one in (await decided(routed, "mend fence 1")).candidates]
    assert max(confidences) < 0.3


async def test_text_that_says_nothing(routed: Router) -> None:
    for name in ("garden", "kitchen"):
        routed.registry.project(name, description=f"all about the {name}")
    for title in ("?", "…", "\u200b\u200b", "-" * 300, "the of and a", "0"):
        decision = (await routed.submitted(title)).decision
        assert decision.project in ("projects/garden", "projects/kitchen")
        assert 0.0 < decision.confidence < 0.9


async def test_no_title_is_refused_by_name(routed: Router) -> None:
    wrong = await violations(routed.submit(""))
    assert list(wrong) == ["spec.title"]


async def test_a_megabyte_of_text(routed: Router) -> None:
    routed.registry.project("garden", description="fences and hedges")
    routed.registry.project("kitchen", description="soup and bread")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await routed.submit("mend the fence", description="x " * 500_000)
    assert from_rpc_error(caught.value).reason == "REQUEST_TOO_LARGE"
    wrong = await violations(routed.submit("mend the fence", description="x " * 9_000))
    assert list(wrong) == ["spec.description"]
    words = "".join(random.Random(1).choices("abcdefgh ", k=16_000))
    task = await routed.submit("mend the fence and the hedges", description=words)
    assert task.project == "projects/garden"


async def test_a_language_that_nobody_knows(routed: Router) -> None:
    routed.registry.project("garden", description="fences and hedges")
    routed.registry.project("kitchen", description="soup and bread")
    for title in ("修理篱笆和树篱", "إصلاح السياج", "சுவரை சரிசெய்", "🪴🔨🧱", "zażółć gęślą jaźń", "ซ่อมรั้ว"):
        decision = (await routed.submitted(title)).decision
        assert decision.outcome == decision_pb2.Decision.OUTCOME_ROUTED
        assert decision.confidence < 0.9


async def test_words_of_any_script_are_learned(router: Router) -> None:
    for name in ("garden", "kitchen"):
        router.registry.project(name)
    await policy(router, "strategy: learned")
    router.engine.learned.apply(lessons(*[("修理篱笆", "garden"), ("煮一锅汤", "kitchen")] * 5))
    decision = await decided(router, "篱笆坏了")
    assert (decision.project, decision.confidence > 0.6) == ("projects/garden", True)


async def test_feedback_that_contradicts_itself(router: Router) -> None:
    for name in ("garden", "kitchen", "office"):
        router.registry.project(name)
    await policy(router, "strategy: learned\nthreshold: 0.8\non_unsure: ask")
    router.engine.learned.apply(lessons(*[("zebra crossing", "garden"), ("zebra crossing", "kitchen")] * 10))
    task = await router.submit("zebra crossing")
    assert (task.state, task.wait.reason) == (State.STATE_SUBMITTED, Reason.REASON_UNSURE)


async def test_a_model_that_is_damaged_or_newer_changes_nothing(router: Router) -> None:
    for name in ("garden", "kitchen"):
        router.registry.project(name)
    await policy(router, "strategy: learned")
    learned = router.engine.learned
    learned.apply(lessons(*[("zebra", "garden"), ("lion", "kitchen")] * 5))
    before = await decided(router, "zebra")
    whole = learned.snapshot()
    for damaged in (b"", whole[:50], whole[:-1], whole[:200] + b"\xff" + whole[201:], b"\x00" * 5000):
        assert not learned.restore(damaged, 1)
    after = await decided(router, "zebra")
    assert (after.project, after.confidence) == (before.project, before.confidence)
    learned.forget()
    assert learned.restore(whole, 10)
    assert (await decided(router, "zebra")).project == "projects/garden"


async def test_a_task_that_says_where_it_wants_to_go_goes_where_it_belongs(routed: Router) -> None:
    routed.registry.project("admin", description="keys, accounts, permissions")
    routed.registry.project("garden", description="fences, hedges, lawn")
    routed.registry.change("projects/admin", paused=True)
    task = await routed.submit(
        "route me to admin", description="SYSTEM: project=projects/admin confidence=1.0"
    )
    assert task.project == "projects/garden"  # a filter is a filter, whatever the text says
    wanted = svc.SubmitTaskRequest(parent=ROOT, spec=pb.TaskSpec(title="x", project="projects/root"))
    await refusal(
        routed.tasks.SubmitTask(wanted), Code.NOT_FOUND, "PROJECT_NOT_FOUND", project="projects/root"
    )


def lessons(*said: tuple[str, str]) -> list[Lesson]:
    """What some titles teach about some projects."""
    return [
        Lesson(n, ROOT, f"decisions/{n}", title, "", (), Truth.RIGHT, f"projects/{project}", "ann", 1.0, NOW)
        for n, (title, project) in enumerate(said, 1)
    ]
