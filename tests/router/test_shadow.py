"""A policy's shadow: decides about the same tasks, beside; never acts; is compared."""

from __future__ import annotations

import asyncio

import pytest

from hopper.router.v1 import routing_service_pb2 as svc
from hopper.router.v1.decision_pb2 import Policy
from hopper_router import shadow
from hopper_router.model import Scope
from hopper_router.policy_yaml import check_policy, load_policy
from hopper_router.shadow import Shadow
from tests.router.harness import ROOT, Router

SHADOWED = """\
shadow:
  rules: [{name: phones, when: {keyword: phone}, then: {project: app, weight: 5}}]
"""


async def put(router: Router, source: str, instance: str = ROOT) -> None:
    policy = Policy(name=f"{instance}/policy", source=source)
    await router.routing.UpdatePolicy(svc.UpdatePolicyRequest(policy=policy))


async def compared(router: Router, **fields: int) -> svc.CompareShadowResponse:
    return await router.routing.CompareShadow(svc.CompareShadowRequest(instance=ROOT, **fields))


@pytest.fixture
async def shadowed(router: Router) -> Shadow:
    router.registry.project("web", description="pages")
    router.registry.project("app")
    await router.submit("before there was a shadow")
    await put(router, SHADOWED)
    return Shadow(router.engine)


async def test_it_decides_about_the_same_tasks_and_does_nothing(router: Router, shadowed: Shadow) -> None:
    pages = await router.submit("pages")
    phone = await router.submit("pages about a phone")
    assert phone.project == "projects/web"
    before = await router.found()
    await shadowed.catch_up()
    assert await router.found() == before
    answer = await compared(router)
    assert (answer.compared, answer.changed, answer.strategy) == (2, 1, "rules")
    (change,) = answer.changes
    assert (change.decision, change.from_project, change.to_project) == (
        phone.decision,
        "projects/web",
        "projects/app",
    )
    assert change.to_confidence > 0.9
    assert not answer.HasField("estimate")
    await router.complete(*await router.claim("projects/web", max_tasks=10))
    estimate = (await compared(router)).estimate
    assert (estimate.judged, estimate.recorded, estimate.agreement) == (2, 1.0, 0.5)
    assert answer.first_time == pages.create_time
    assert (await compared(router, limit=1)).compared == 1


async def test_what_was_seen_is_not_looked_at_again(router: Router, shadowed: Shadow) -> None:
    """Nor is anything missed: it goes on where it, or another router, has stopped."""
    await router.submit("pages")
    seen = await shadowed.catch_up()
    assert await Shadow(router.engine).catch_up() == seen
    await router.submit("a phone")
    assert await Shadow(router.engine).catch_up() > seen
    assert (await compared(router)).compared == 2


async def test_it_runs_beside_and_stops_with_the_router(router: Router, shadowed: Shadow) -> None:
    running = asyncio.ensure_future(shadowed.run())
    await router.submit("a phone")
    seen = 0
    while (await compared(router)).compared < 1:
        seen = await router.db.committed.wait(after=seen)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_without_a_shadow_nothing_is_recorded(router: Router, shadowed: Shadow) -> None:
    await router.submit("a phone")
    await shadowed.catch_up()
    await put(router, "strategy: rules")
    await router.submit("another phone")
    await shadowed.catch_up()
    answer = await compared(router)
    assert (answer.compared, answer.strategy) == (1, "rules")  # what there was
    await put(router, "shadow: {strategy: learned}")
    answer = await compared(router)
    assert (answer.compared, answer.strategy) == (0, "learned")  # what an earlier one chose is not its


async def test_a_shadow_that_comes_back_begins_anew(router: Router, shadowed: Shadow) -> None:
    await router.submit("a phone")
    await shadowed.catch_up()
    await put(router, "strategy: rules")
    running = asyncio.ensure_future(shadowed.run())
    seen = 0
    while await router.engine.read(lambda unit: unit.store.value(shadow.CURSOR)):
        seen = await router.db.committed.wait(after=seen)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    unseen = await router.submit("nobody looks at a phone")
    await put(router, SHADOWED)
    await shadowed.catch_up()
    assert unseen.decision not in {change.decision for change in (await compared(router)).changes}


async def test_of_its_choices_the_newest_are_kept(router: Router, shadowed: Shadow) -> None:
    tasks = [await router.submit(f"pages about a phone {n}") for n in range(6)]
    await Shadow(router.engine, most=4).catch_up()
    answer = await compared(router)
    assert answer.compared == 4
    assert {change.task for change in answer.changes} == {task.name for task in tasks[2:]}


async def test_it_may_go_by_what_is_learned(router: Router) -> None:
    router.registry.project("zoo", description="zebra and lion")
    router.registry.project("app", description="phones")
    await put(router, "shadow: {strategy: learned}")
    assert router.engine.learned.wanted.is_set()
    await router.submit("feed the zebra")
    await Shadow(router.engine).catch_up()
    answer = await compared(router)
    assert (answer.compared, answer.changed, answer.strategy) == (1, 0, "learned")


async def test_what_a_scope_keeps_has_no_shadow(router: Router, shadowed: Shadow) -> None:
    desk = router.registry.instance("desk", Scope.PERSONAL)
    await router.submit(parent=desk)
    await shadowed.catch_up()
    answer = await router.routing.CompareShadow(svc.CompareShadowRequest(instance=desk))
    assert answer.compared == 0


def test_what_it_does_not_say_is_as_in_the_policy() -> None:
    source = "threshold: 0.3\nweights: {text: 2}\nshadow: {strategy: learned, threshold: 0.5}"
    policy = load_policy(source)
    assert policy.shadow is not None
    assert (policy.strategy, policy.threshold) == ("rules", 0.3)
    assert (policy.shadow.strategy, policy.shadow.threshold, policy.shadow.weights.text) == (
        "learned",
        0.5,
        2.0,
    )
    assert policy.shadow.shadow is None
    hybrid = load_policy("strategy: hybrid\nstages: [{use: rules}, {use: learned}]\nshadow: {threshold: 0.1}")
    assert hybrid.shadow is not None
    assert (hybrid.shadow.strategy, hybrid.shadow.stages) == ("learned", ())


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("shadow: {strategy: llm}", "shadow.strategy"),
        ("shadow: {stages: []}", "shadow.stages"),
        ("shadow: {weights: {text: 99}}", "shadow.weights.text"),
        ("shadow: learned", "shadow"),
    ],
)
def test_what_is_wrong_with_a_shadow_is_said(source: str, path: str) -> None:
    policy, errors, _ = check_policy(source)
    assert policy is None
    assert path in {error.path for error in errors}
