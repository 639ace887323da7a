"""Policies over real gRPC: set, inherited, checked line by line, and tried out on what was decided."""

from typing import Any
from uuid import uuid4

import pytest

from hopper.router.v1 import delegation_service_pb2 as delegation_svc
from hopper.router.v1 import routing_service_pb2 as svc
from hopper.router.v1.decision_pb2 import Decision, Policy
from hopper_common.errors import InvalidArgument
from hopper_router.model import Instance, InstanceState, Scope
from tests.router.harness import ROOT, Code, Reason, Router, State, refusal, violations

TO_APP = """\
rules:
  - name: phones
    when: {keyword: [phone, tablet]}
    then: {project: app, weight: 5}
"""
BROKEN = """\
threshold: 2
rules:
  - name: a
    when: {keywords: [x]}
    then: {project: app}
  - name: a
    when: {keyword: []}
    then: {project: "not a name"}
"""


async def put(router: Router, source: str, instance: str = ROOT, etag: str = "", **fields: Any) -> Policy:
    policy = Policy(name=f"{instance}/policy", source=source, etag=etag)
    return (await router.routing.UpdatePolicy(svc.UpdatePolicyRequest(policy=policy, **fields))).policy


async def policy_of(router: Router, instance: str = ROOT) -> Policy:
    return (await router.routing.GetPolicy(svc.GetPolicyRequest(instance=instance))).policy


async def replay(
    router: Router, source: str, instance: str = ROOT, **fields: Any
) -> svc.ReplayPolicyResponse:
    return await router.routing.ReplayPolicy(
        svc.ReplayPolicyRequest(instance=instance, source=source, **fields)
    )


async def test_without_one_the_built_in_policy_is_in_force(router: Router) -> None:
    policy = await policy_of(router)
    assert (policy.name, policy.version, policy.etag, policy.rule_count, policy.strategy) == (
        f"{ROOT}/policy",
        0,
        "p0",
        0,
        "rules",
    )
    assert "threshold" in policy.source
    assert not policy.HasField("update_time")


async def test_a_policy_is_in_force_for_the_next_decision(router: Router) -> None:
    router.registry.project("web")
    app = router.registry.project("app")
    made = await put(router, TO_APP)
    assert (made.version, made.rule_count, made.source) == (1, 1, TO_APP)
    assert await policy_of(router) == made
    for title in ("a phone", "Tablets? one TABLET"):
        placed = (await router.submitted(title)).decision
        assert (placed.project, placed.basis.policy_version) == (app, 1)
        (rules,) = [factor for factor in placed.candidates[0].factors if factor.name == "rules"]
        assert (rules.value, list(rules.evidence)) == (5, ["phones"])


async def test_a_policy_survives_a_restart(router: Router) -> None:
    made = await put(router, TO_APP)
    await router.stop()
    await router.start()
    assert await policy_of(router) == made
    assert (await put(router, TO_APP + "# again\n")).version == 2


async def test_children_inherit_the_nearest_policy(router: Router) -> None:
    _, team = router.registry.team("web", "html")
    run = router.registry.instance("run", Scope.ORCHESTRATION, team)
    at_root = await put(router, TO_APP)
    for instance in (ROOT, team, run):
        assert await policy_of(router, instance) == at_root
    at_team = await put(router, "threshold: 0.5\n", team)
    assert (await policy_of(router, ROOT), await policy_of(router, run)) == (at_root, at_team)
    await put(router, "", team)
    assert await policy_of(router, run) == at_root
    await put(router, "")
    assert (await policy_of(router, run)).version == 0


async def test_a_removed_policy_can_be_replaced_with_what_was_read(router: Router) -> None:
    """Read, change, write back with the etag works after a removal, too; and versions go on growing."""
    await put(router, TO_APP)
    await put(router, "")
    read = await policy_of(router)
    assert read.version == 0
    again = await put(router, TO_APP, etag=read.etag)
    assert again.version == 3
    removed = await put(router, "", etag=again.etag)
    assert (await put(router, TO_APP, etag=removed.etag)).version == 5


async def test_a_policy_that_somebody_changed_is_not_overwritten(router: Router) -> None:
    first = await put(router, TO_APP, etag="p0")
    second = await put(router, TO_APP + "# mine\n", etag=first.etag)
    await refusal(
        put(router, TO_APP, etag=first.etag),
        Code.ABORTED,
        "ETAG_MISMATCH",
        resource=f"{ROOT}/policy",
        etag=second.etag,
    )
    assert await policy_of(router) == second


async def test_a_repeat_gets_the_first_answer(router: Router) -> None:
    once = str(uuid4())
    first = await put(router, TO_APP, request_id=once)
    await put(router, "threshold: 0.5\n")
    assert await put(router, TO_APP, request_id=once) == first
    assert (await policy_of(router)).version == 2
    await refusal(
        put(router, "", request_id=once),
        Code.ALREADY_EXISTS,
        "IDEMPOTENCY_CONFLICT",
        request_id=once,
        method="UpdatePolicy",
    )


async def test_a_broken_policy_is_refused_with_every_line(router: Router) -> None:
    checked = await router.routing.ValidatePolicy(svc.ValidatePolicyRequest(source=BROKEN))
    lines = [(error.line, error.path) for error in checked.errors]
    assert lines == sorted(lines)
    assert {line for line, _ in lines} == {1, 4, 6, 7, 8}
    assert all(error.column > 0 and error.message for error in checked.errors)
    for call in (put(router, BROKEN), replay(router, BROKEN)):
        error = await refusal(call, Code.INVALID_ARGUMENT, "POLICY_INVALID", errors=str(len(lines)))
        assert isinstance(error, InvalidArgument)
        assert [violation.field for violation in error.violations] == [path for _, path in lines]
        assert all(
            v.description.startswith(f"line {n}, ") for v, (n, _) in zip(error.violations, lines, strict=True)
        )
    assert (await policy_of(router)).version == 0


async def test_what_loads_but_is_not_meant_is_warned_of(router: Router) -> None:
    checked = await router.routing.ValidatePolicy(svc.ValidatePolicyRequest(source=TO_APP))
    assert (list(checked.errors), checked.rule_count) == ([], 1)
    (warning,) = checked.warnings
    assert (warning.line, warning.path) == (4, "rules[0].then.project")
    assert "projects/app" in warning.message
    router.registry.project("app")
    checked = await router.routing.ValidatePolicy(svc.ValidatePolicyRequest(source=TO_APP))
    assert list(checked.warnings) == []


async def test_what_a_policy_names_must_exist(router: Router) -> None:
    none = "instances/none"
    for call in (put(router, TO_APP, none), policy_of(router, none), replay(router, TO_APP, none)):
        await refusal(call, Code.NOT_FOUND, "INSTANCE_NOT_FOUND", instance=none)
    for name in ("instances/global", "projects/a/policy", f"{ROOT}/policies"):
        request = svc.UpdatePolicyRequest(policy=Policy(name=name, source=TO_APP))
        assert set(await violations(router.routing.UpdatePolicy(request))) == {"policy.name"}


async def test_an_instance_just_created_can_have_a_policy_at_once(router: Router) -> None:
    for number in range(3):
        name = f"instances/new{number}"
        router.registry.hidden[name] = Instance(name, Scope.PERSONAL, InstanceState.RUNNING, parent=ROOT)
    assert (await put(router, TO_APP, "instances/new0")).version == 1
    assert (await policy_of(router, "instances/new1")).version == 0
    assert (await replay(router, TO_APP, "instances/new2")).replayed == 0


@pytest.mark.parametrize(
    ("on_unsure", "state"),
    [("ask", State.STATE_SUBMITTED), ("reject", State.STATE_REJECTED), ("route", State.STATE_QUEUED)],
)
async def test_a_policy_that_is_not_sure(router: Router, on_unsure: str, state: Any) -> None:
    router.registry.project("web")
    app = router.registry.project("app")
    await put(router, f"threshold: 0.99\non_unsure: {on_unsure}\n")
    answer = await router.submitted()
    assert answer.task.state == state
    if on_unsure == "ask":
        assert answer.task.wait.reason == Reason.REASON_UNSURE
        assert answer.decision.outcome == Decision.OUTCOME_UNSURE
        await router.follow()
        assert (await router.get(answer.task)).generation == answer.task.generation
        routed = await router.update(answer.task, project=app)  # a person says where
        assert (routed.state, routed.project) == (State.STATE_QUEUED, app)
    if on_unsure == "reject":
        assert answer.task.failure.reason == "POLICY"
        assert answer.decision.outcome == Decision.OUTCOME_REJECTED


# ---------------------------------------------------------------- replay


async def test_a_replay_says_what_would_go_elsewhere(router: Router) -> None:
    web, app = router.registry.project("web", description="pages"), router.registry.project("app")
    phone = await router.submit("pages about a phone")
    await router.submit("pages")
    assert phone.project == web
    before = await router.found()
    answer = await replay(router, TO_APP)
    assert (answer.replayed, answer.changed) == (2, 1)
    (change,) = answer.changes
    assert (change.decision, change.task, change.from_project, change.to_project) == (
        phone.decision,
        phone.name,
        web,
        app,
    )
    assert await router.found() == before
    assert (await replay(router, TO_APP, limit=1)).replayed == 1
    nobody = await replay(router, "threshold: 1.0\non_unsure: ask\n")
    assert {change.to_project for change in nobody.changes} == {""}


async def test_a_replay_of_the_same_policy_changes_nothing(router: Router) -> None:
    """Also where a decision had to do without an instance that had sent the work back, or that is a peer's."""
    router.registry.team("web", "html")
    router.registry.team("app", "html")
    far = router.registry.project("far", "html", description="work")
    router.registry.instance("far", Scope.FEDERATED, project=far)
    top = await router.submit(required_capabilities=["html"])
    (made,) = await router.chain(top)
    await router.delegations.RejectDelegation(delegation_svc.RejectDelegationRequest(name=made.name))
    assert (await router.get(top)).project != made.to_instance
    answer = await replay(router, (await policy_of(router)).source)
    assert (answer.replayed, answer.changed) == (2, 0)


async def test_a_replay_leaves_out_what_no_policy_decided(router: Router) -> None:
    """A queue keeps what comes: no policy could send it elsewhere."""
    router.registry.project("web")
    app = router.registry.project("app")
    desk = router.registry.instance("desk", Scope.PERSONAL)
    await router.submit(parent=desk)
    answer = await replay(router, TO_APP, desk)
    assert (answer.replayed, answer.changed) == (0, 0)
    assert app
