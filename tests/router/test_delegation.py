"""Hand-overs: down, in parts, up and sideways; offers; ends that travel back; nothing owned twice."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from hopper.router.v1 import decision_pb2, routing_service_pb2
from hopper.router.v1 import delegation_service_pb2 as svc
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as task_svc
from hopper.router.v1.delegation_pb2 import Delegation, Subtask
from hopper_common.errors import ServiceUnavailable
from hopper_router.model import InstanceState, Scope
from tests.router.harness import (
    HOUR,
    MINUTE,
    NOW,
    ROOT,
    Code,
    Reason,
    Router,
    State,
    ref,
    refusal,
    violations,
)

ROUTE, DECOMPOSE = Delegation.KIND_ROUTE, Delegation.KIND_DECOMPOSE
ESCALATE, REASSIGN = Delegation.KIND_ESCALATE, Delegation.KIND_REASSIGN


def effort(length: timedelta) -> Any:
    return {"estimated_effort": length}


def part(title: str, *after: int, **fields: Any) -> Subtask:
    return Subtask(spec=pb.TaskSpec(title=title, **fields), after=after)


async def accept(router: Router, name: str, **fields: Any) -> Delegation:
    return (
        await router.delegations.AcceptDelegation(svc.AcceptDelegationRequest(name=name, **fields))
    ).delegation


async def reject(router: Router, name: str, **fields: Any) -> Delegation:
    return (
        await router.delegations.RejectDelegation(svc.RejectDelegationRequest(name=name, **fields))
    ).delegation


async def delegation(router: Router, name: str) -> Delegation:
    return (await router.delegations.GetDelegation(svc.GetDelegationRequest(name=name))).delegation


async def one_owner(router: Router, top: pb.Task) -> None:
    """Every DELEGATED task of a chain has exactly one open delegation, and no other task has one."""
    chain = await router.chain(top)
    open_ = [d for d in chain if d.state in (Delegation.STATE_OFFERED, Delegation.STATE_ACCEPTED)]
    names = {top.name, *(d.task for d in chain), *(child for d in chain for child in d.child_tasks)}
    for name in names:
        owned = [d for d in open_ if d.task == name]
        assert len(owned) == ((await router.get(name)).state == State.STATE_DELEGATED), name
    for made in chain:
        assert len(set(made.path)) == len(made.path)
        assert made.path[-1] == made.to_instance


# ---------------------------------------------------------------- down and back up


async def test_a_complex_task_goes_down_three_levels_and_its_success_comes_back(router: Router) -> None:
    project, team = router.registry.team("web", "html")
    run = router.registry.instance("run", Scope.ORCHESTRATION, team, max_workers=1)
    top = await router.submit(required_capabilities=["html"], **effort(5 * HOUR), payload=b"in")
    first, second = await router.chain(top)
    assert (first.kind, first.state, list(first.path)) == (ROUTE, Delegation.STATE_ACCEPTED, [ROOT, team])
    assert (second.kind, list(second.path)) == (ROUTE, [ROOT, team, run])
    assert (first.task, second.task) == (top.name, first.child_tasks[0])
    assert (top.state, top.project) == (State.STATE_DELEGATED, project)
    assert (top.wait.reason, list(top.wait.on)) == (Reason.REASON_DELEGATION, [first.name])

    worked = await router.claim_one(run)
    assert (worked.name, worked.spec.payload, worked.delegation) == (
        second.child_tasks[0],
        b"in",
        second.name,
    )
    assert worked.project == project
    (done,) = await router.complete(worked, result=b"out")
    assert done.updated.state == State.STATE_SUCCEEDED
    for name in (second.task, top.name):
        ended = await router.get(name, pb.TASK_VIEW_FULL)
        assert (ended.state, ended.result) == (State.STATE_SUCCEEDED, b"out")
    assert {d.state for d in await router.chain(top)} == {Delegation.STATE_COMPLETED}


async def test_a_failure_bubbles_up_level_by_level(router: Router) -> None:
    _, team = router.registry.team("web", "html")
    run = router.registry.instance("run", Scope.ORCHESTRATION, team)
    top = await router.submit(required_capabilities=["html"], **effort(5 * HOUR))
    first, second = await router.chain(top)
    worked = await router.claim_one(run)
    await router.fail(worked, "BROKEN", permanent=True)
    middle = await router.get(second.task)
    assert (middle.state, middle.failure.reason) == (State.STATE_FAILED, "CHILD_FAILED")
    assert "BROKEN" in middle.failure.message
    ended = await router.get(top)
    assert (ended.state, ended.failure.reason) == (State.STATE_FAILED, "CHILD_FAILED")
    assert (await delegation(router, first.name)).state == Delegation.STATE_FAILED


async def test_a_simple_task_stays_in_its_project(router: Router) -> None:
    project, team = router.registry.team("web", "html")
    router.registry.instance("run", Scope.ORCHESTRATION, team)
    top = await router.submit(required_capabilities=["html"], **effort(HOUR))
    child = await router.child_of(top)
    assert (child.state, child.name.startswith(f"{team}/tasks/")) == (State.STATE_QUEUED, True)
    assert (await router.claim_one(project)).name == child.name


async def test_dependents_of_a_delegated_task_run_when_the_work_is_done(router: Router) -> None:
    """What depends on the task above is freed by the end below, in the same transaction."""
    project, _ = router.registry.team("web", "html")
    top = await router.submit(required_capabilities=["html"])
    waiting = await router.submit("next", required_capabilities=["html"], dependencies=[top.name])
    below = await router.child_of(waiting)
    assert (below.wait.reason, list(below.wait.on)) == (Reason.REASON_DEPENDENCY, [top.name])
    worked = await router.claim_one(project)
    assert await router.claim(project) == []
    await router.complete(worked)
    assert (await router.claim_one(project)).name == below.name


async def test_cancelling_reaches_through_every_level(router: Router) -> None:
    _, team = router.registry.team("web", "html")
    run = router.registry.instance("run", Scope.ORCHESTRATION, team)
    top = await router.submit(required_capabilities=["html"], **effort(5 * HOUR))
    worked = await router.claim_one(run)
    cancelled = await router.cancel(top, "changed my mind")
    assert (cancelled.state, cancelled.failure.message) == (State.STATE_CANCELLED, "changed my mind")
    chain = await router.chain(top)
    assert {d.state for d in chain} == {Delegation.STATE_CANCELLED}
    for made in chain:
        assert (await router.get(made.child_tasks[0])).state == State.STATE_CANCELLED
    (late,) = await router.complete(worked)
    assert (late.error.reason, dict(late.error.metadata)) == (
        "STALE_TOKEN",
        {"task": worked.name, "state": "CANCELLED"},
    )
    assert (await router.cancel(top)).generation == cancelled.generation


async def test_cancelling_what_is_below_fails_what_is_above(router: Router) -> None:
    router.registry.team("web", "html")
    top = await router.submit(required_capabilities=["html"])
    await router.cancel(await router.child_of(top))
    ended = await router.get(top)
    assert (ended.state, ended.failure.reason) == (State.STATE_FAILED, "CHILD_FAILED")


async def test_a_deadline_above_calls_off_what_is_below(router: Router) -> None:
    project, _ = router.registry.team("web", "html")
    clocks = pb.Clocks()
    clocks.finish_by.FromDatetime(NOW + MINUTE)
    top = await router.submit(required_capabilities=["html"], clocks=clocks)
    worked = await router.claim_one(project)
    await router.pass_time(MINUTE)
    for name in (top.name, worked.name):
        ended = await router.get(name)
        assert ended.failure.reason == "DEADLINE" or ended.state == State.STATE_CANCELLED
    ended = await router.get(top)
    assert (ended.state, ended.failure.reason) == (State.STATE_FAILED, "DEADLINE")


# ---------------------------------------------------------------- sent back


async def test_a_rejected_task_is_decided_anew_without_that_instance(router: Router) -> None:
    web, team = router.registry.team("web", "html")
    other, second_team = router.registry.team("app", "html")
    top = await router.submit(required_capabilities=["html"], project=web)
    (made,) = await router.chain(top)
    child = await router.child_of(top)
    assert (await reject(router, made.name, reason="no time")).state == Delegation.STATE_RETURNED
    assert (await router.get(child)).state == State.STATE_CANCELLED
    pinned = await router.get(top)
    assert (pinned.state, pinned.wait.reason) == (State.STATE_SUBMITTED, Reason.REASON_NO_ELIGIBLE_EXECUTOR)
    assert dict(pinned.wait.exclusions) == {"rejected-before": 1, "pin": 1}
    moved = await router.update(pinned, "spec.project")
    assert (moved.state, moved.project) == (State.STATE_DELEGATED, other)
    again = await router.child_of(top)
    assert again.name.startswith(f"{second_team}/tasks/")
    back = (await router.chain(top))[-1]
    await reject(router, back.name)
    nowhere = await router.get(top)
    assert dict(nowhere.wait.exclusions) == {"rejected-before": 2}
    await one_owner(router, top)
    await refusal(
        router.delegate(top, ROUTE, team),
        Code.FAILED_PRECONDITION,
        "DELEGATION_LOOP",
        path=ROOT,
        instance=team,
    )


async def test_what_a_worker_has_cannot_be_rejected(router: Router) -> None:
    project, _ = router.registry.team("web", "html")
    top = await router.submit(required_capabilities=["html"])
    (made,) = await router.chain(top)
    worked = await router.claim_one(project)
    await refusal(
        reject(router, made.name),
        Code.FAILED_PRECONDITION,
        "TASK_WRONG_STATE",
        task=worked.name,
        state="RUNNING",
        event="REJECT",
    )
    await router.complete(worked)
    await refusal(
        reject(router, made.name),
        Code.FAILED_PRECONDITION,
        "DELEGATION_WRONG_STATE",
        delegation=made.name,
        state="COMPLETED",
        verb="reject",
    )


async def test_escalating_sends_work_back_to_whoever_delegated_it(router: Router) -> None:
    project, _team = router.registry.team("web", "html")
    top = await router.submit(required_capabilities=["html"])
    (made,) = await router.chain(top)
    worked = await router.claim_one(project)
    answer = await router.delegate(
        worked, ESCALATE, reason="too big", fencing_token=worked.claim.fencing_token
    )
    assert (answer.delegation.name, answer.delegation.state) == (made.name, Delegation.STATE_RETURNED)
    assert answer.delegation.reason == "too big"
    assert answer.task.state == State.STATE_CANCELLED
    back = await router.get(top)
    assert (back.state, back.wait.exclusions["rejected-before"]) == (State.STATE_SUBMITTED, 1)
    (late,) = await router.complete(worked)
    assert late.error.reason == "STALE_TOKEN"
    await one_owner(router, top)


async def test_escalating_what_nobody_delegated_goes_to_the_parent(router: Router) -> None:
    _project, team = router.registry.team("web", "html")
    helper = router.registry.project("help", "html")
    task = await router.submit(parent=team)
    answer = await router.delegate(task, ESCALATE)
    assert answer.delegation.kind == ESCALATE
    assert (answer.delegation.from_instance, answer.delegation.to_instance) == (team, ROOT)
    assert answer.task.state == State.STATE_DELEGATED
    above = await router.child_of(task)
    assert (above.state, above.project) == (State.STATE_QUEUED, helper)  # never back to where it came from
    await router.complete(await router.claim_one(helper))
    assert (await router.get(task)).state == State.STATE_SUCCEEDED


async def test_nobody_is_above_the_root(router: Router) -> None:
    task = await router.submit()
    await refusal(
        router.delegate(task, ESCALATE),
        Code.FAILED_PRECONDITION,
        "DELEGATION_TARGET_INVALID",
        kind="ESCALATE",
        to="",
        **{"from": ROOT},
    )


async def test_an_old_child_cannot_pull_the_work_back_again(router: Router) -> None:
    """Escalating what was sent back long ago must not take the work from whoever has it now."""
    web, _ = router.registry.team("web", "html")
    app, _ = router.registry.team("app", "html")
    top = await router.submit(required_capabilities=["html"])
    (first,) = await router.chain(top)
    old = await router.child_of(top)
    await reject(router, first.name)
    current = await router.child_of(top)
    worked = await router.claim_one(current.project)
    assert worked.project in (web, app)
    await refusal(
        router.delegate(old, ESCALATE),
        Code.FAILED_PRECONDITION,
        "TASK_WRONG_STATE",
        task=old.name,
        state="CANCELLED",
        event="DELEGATE",
    )
    assert (await router.get(top)).state == State.STATE_DELEGATED
    await one_owner(router, top)
    await router.complete(worked)
    assert (await router.get(top)).state == State.STATE_SUCCEEDED


async def test_what_was_handed_on_cannot_be_escalated_over_its_owner(router: Router) -> None:
    _, team = router.registry.team("web", "html")
    run = router.registry.instance("run", Scope.ORCHESTRATION, team)
    top = await router.submit(required_capabilities=["html"], **effort(5 * HOUR))
    middle = await router.child_of(top)
    worked = await router.claim_one(run)
    await refusal(
        router.delegate(middle, ESCALATE),
        Code.FAILED_PRECONDITION,
        "TASK_WRONG_STATE",
        task=middle.name,
        state="DELEGATED",
        event="DELEGATE",
    )
    await router.complete(worked)
    assert (await router.get(top)).state == State.STATE_SUCCEEDED


@pytest.mark.parametrize("kind", [ROUTE, REASSIGN, DECOMPOSE, ESCALATE])
async def test_only_open_tasks_are_handed_over(router: Router, kind: Any) -> None:
    """Whatever the kind: a finished one is not."""
    _, team = router.registry.team("web", "html")
    _, sibling = router.registry.team("app", "app")
    task = await router.submit(parent=team)
    await router.cancel(task)
    target = {ROUTE: router.registry.instance("run", Scope.ORCHESTRATION, team), REASSIGN: sibling}.get(
        kind, ""
    )
    parts = [part("a")] if kind == DECOMPOSE else []
    await refusal(
        router.delegate(task, kind, target, subtasks=parts),
        Code.FAILED_PRECONDITION,
        "TASK_WRONG_STATE",
        task=task.name,
        state="CANCELLED",
        event="DELEGATE",
    )


async def test_ping_pong_is_impossible(router: Router) -> None:
    """An instance that had the work is refused by name, with the path of all that had it."""
    _, left = router.registry.team("left", "l")
    _, right = router.registry.team("right", "r")
    task = await router.submit(parent=left)
    moved = await router.delegate(task, REASSIGN, right)
    assert list(moved.delegation.path) == [left, right]
    child = await router.child_of(task)
    await refusal(
        router.delegate(child, REASSIGN, left),
        Code.FAILED_PRECONDITION,
        "DELEGATION_LOOP",
        path=f"{left},{right}",
        instance=left,
    )
    await router.delegate(child, ESCALATE)
    await refusal(
        router.delegate(task, REASSIGN, right),
        Code.FAILED_PRECONDITION,
        "DELEGATION_LOOP",
        path=left,
        instance=right,
    )
    await one_owner(router, task)


async def test_routing_does_not_lead_back_either(router: Router) -> None:
    """A project whose instance had the work is ruled out by the filter `path`."""
    _web, team = router.registry.team("web", "html")
    task = await router.submit(parent=team, required_capabilities=["html"])
    await router.delegate(task, ESCALATE)
    above = await router.child_of(task)
    assert (above.state, dict(above.wait.exclusions)) == (State.STATE_SUBMITTED, {"path": 1})


# ---------------------------------------------------------------- where it may go


async def test_each_kind_has_its_place_in_the_tree(router: Router) -> None:
    _, web = router.registry.team("web", "html")
    _, app = router.registry.team("app", "app")
    run = router.registry.instance("run", Scope.ORCHESTRATION, web)
    task = await router.submit(parent=web)
    for kind, target in (
        (ROUTE, app),
        (ROUTE, ROOT),
        (ROUTE, web),
        (REASSIGN, run),
        (REASSIGN, web),
        (REASSIGN, ROOT),
    ):
        await refusal(
            router.delegate(task, kind, target),
            Code.FAILED_PRECONDITION,
            "DELEGATION_TARGET_INVALID",
            kind=Delegation.Kind.Name(kind).removeprefix("KIND_"),
            to=target,
            **{"from": web},
        )
    await refusal(
        router.delegate(task, DECOMPOSE, app, subtasks=[part("a")]),
        Code.FAILED_PRECONDITION,
        "DELEGATION_TARGET_INVALID",
        kind="DECOMPOSE",
        to=app,
        **{"from": web},
    )
    await refusal(
        router.delegate(task, ROUTE, "instances/nowhere"),
        Code.NOT_FOUND,
        "INSTANCE_NOT_FOUND",
        instance="instances/nowhere",
    )
    assert (await router.delegate(task, ROUTE, run)).task.state == State.STATE_DELEGATED


async def test_requests_must_fit_their_kind(router: Router) -> None:
    _, web = router.registry.team("web", "html")
    task = await router.submit(parent=web)
    assert set(await violations(router.delegate(task, ROUTE))) == {"to_instance"}
    assert set(await violations(router.delegate(task, ESCALATE, ROOT))) == {"to_instance"}
    assert set(await violations(router.delegate(task, DECOMPOSE))) == {"subtasks"}
    assert set(await violations(router.delegate(task, REASSIGN, subtasks=[part("a")]))) == {
        "to_instance",
        "subtasks",
    }
    assert set(await violations(router.delegate(task, Delegation.KIND_UNSPECIFIED))) == {"kind"}
    assert (await router.get(task)).generation == task.generation


async def test_what_does_not_exist_is_named(router: Router) -> None:
    ghost = pb.Task(name=f"{ROOT}/tasks/none")
    await refusal(router.delegate(ghost, ESCALATE), Code.NOT_FOUND, "TASK_NOT_FOUND", task=ghost.name)
    await refusal(router.chain(ghost), Code.NOT_FOUND, "TASK_NOT_FOUND", task=ghost.name)
    for call in (accept, reject, delegation):
        await refusal(
            call(router, "delegations/none"),
            Code.NOT_FOUND,
            "DELEGATION_NOT_FOUND",
            delegation="delegations/none",
        )


@pytest.mark.parametrize(
    "state",
    [
        s
        for s in InstanceState
        if s not in (InstanceState.RUNNING, InstanceState.STARTING, InstanceState.PAUSED)
    ],
)
async def test_an_instance_that_does_not_run_takes_nothing(router: Router, state: InstanceState) -> None:
    _, web = router.registry.team("web", "html")
    run = router.registry.instance("run", Scope.ORCHESTRATION, web, state=state)
    task = await router.submit(parent=web)
    before = await router.get(task)
    await refusal(
        router.delegate(task, ROUTE, run),
        Code.FAILED_PRECONDITION,
        "INSTANCE_NOT_RUNNING",
        instance=run,
        state=state.value,
    )
    assert await router.get(task) == before
    assert await router.chain(task) == []


async def test_a_running_task_goes_with_its_token_only(router: Router) -> None:
    project, web = router.registry.team("web", "html")
    run = router.registry.instance("run", Scope.ORCHESTRATION, web)
    await router.submit(parent=web)
    worked = await router.claim_one(project)
    for token in (0, worked.claim.fencing_token + 1):
        await refusal(
            router.delegate(worked, ROUTE, run, fencing_token=token),
            Code.ABORTED,
            "STALE_TOKEN",
            task=worked.name,
            state="RUNNING",
            holder="ann",
        )
    handed = await router.delegate(worked, ROUTE, run, fencing_token=worked.claim.fencing_token)
    assert (handed.task.state, handed.task.attempt) == (State.STATE_DELEGATED, 0)
    (late,) = await router.complete(worked)
    assert late.error.reason == "STALE_TOKEN"
    assert (await router.claim_one(run)).name == handed.delegation.child_tasks[0]


async def test_nesting_ends_at_sixteen(router: Router) -> None:
    """In-place decompositions nest without a new instance; the seventeenth is refused."""
    task = await router.submit(required_capabilities=["nobody"])
    for depth in range(16):
        answer = await router.delegate(
            task, DECOMPOSE, subtasks=[part(f"level {depth}", required_capabilities=["nobody"])]
        )
        task = await router.get(answer.delegation.child_tasks[0])
    await refusal(
        router.delegate(task, DECOMPOSE, subtasks=[part("one more")]),
        Code.FAILED_PRECONDITION,
        "DELEGATION_LOOP",
        path=ROOT,
        instance=ROOT,
    )


async def test_work_nested_too_deep_to_hand_over_does_not_keep_others_waiting(router: Router) -> None:
    """When an executor appears for many, one that cannot go there is left where it is, and the others go."""
    deep = await router.submit(required_capabilities=["rare"])
    for _ in range(16):
        answer = await router.delegate(
            deep, DECOMPOSE, subtasks=[part("inner", required_capabilities=["rare"])]
        )
        deep = await router.get(answer.delegation.child_tasks[0])
    plain = await router.submit("plain", required_capabilities=["rare"])
    router.registry.team("rare", "rare")
    await router.follow()
    assert (await router.get(plain)).state == State.STATE_DELEGATED
    left = await router.get(deep)
    assert (left.state, left.wait.reason) == (State.STATE_SUBMITTED, Reason.REASON_NO_ELIGIBLE_EXECUTOR)
    assert dict(left.wait.exclusions) == {"path": 1}


async def test_a_complex_task_nested_too_deep_stays_in_the_project(router: Router) -> None:
    _, team = router.registry.team("web", "html")
    task = await router.submit(parent=team)
    for _ in range(16):
        answer = await router.delegate(task, DECOMPOSE, subtasks=[part("inner", **effort(9 * HOUR))])
        task = await router.get(answer.delegation.child_tasks[0])
    router.registry.instance("run", Scope.ORCHESTRATION, team)
    changed = await router.update(task, priority=60)
    assert changed.state == State.STATE_QUEUED


async def test_a_repeat_of_a_hand_over_gets_the_first_answer(router: Router) -> None:
    _, web = router.registry.team("web", "html")
    run = router.registry.instance("run", Scope.ORCHESTRATION, web)
    task = await router.submit(parent=web)
    once = str(uuid4())
    first = await router.delegate(task, ROUTE, run, request_id=once)
    assert await router.delegate(task, ROUTE, run, request_id=once) == first
    assert len(await router.chain(task)) == 1
    await refusal(
        router.delegate(task, ESCALATE, request_id=once),
        Code.ALREADY_EXISTS,
        "IDEMPOTENCY_CONFLICT",
        request_id=once,
        method="DelegateTask",
    )


# ---------------------------------------------------------------- parts


async def test_a_task_in_parts_succeeds_when_all_have(router: Router) -> None:
    project, web = router.registry.team("web", "html")
    whole = await router.submit("whole", parent=web)
    parts = [part("last", 1, 2), part("first"), part("second", 1)]
    answer = await router.delegate(whole, DECOMPOSE, subtasks=parts)
    names = list(answer.delegation.child_tasks)
    assert [(await router.get(name)).spec.title for name in names] == ["last", "first", "second"]
    assert answer.task.state == State.STATE_DELEGATED
    for expected in ("first", "second", "last"):
        assert (await router.get(whole)).state == State.STATE_DELEGATED
        (claimed,) = await router.claim(project, max_tasks=10)
        assert claimed.spec.title == expected
        await router.complete(claimed, result=b"part")
    done = await router.get(whole, pb.TASK_VIEW_FULL)
    assert (done.state, done.result) == (State.STATE_SUCCEEDED, b"")


async def test_one_part_that_fails_fails_the_whole_and_stops_the_others(router: Router) -> None:
    project, web = router.registry.team("web", "html")
    whole = await router.submit("whole", parent=web)
    answer = await router.delegate(whole, DECOMPOSE, subtasks=[part("a"), part("b"), part("c", 0)])
    a, b = await router.claim(project, max_tasks=2)
    await router.fail(a, "BROKEN", permanent=True)
    ended = await router.get(whole)
    assert (ended.state, ended.failure.reason) == (State.STATE_FAILED, "CHILD_FAILED")
    states = [(await router.get(name)).state for name in answer.delegation.child_tasks]
    assert sorted(states) == sorted([State.STATE_FAILED, State.STATE_CANCELLED, State.STATE_CANCELLED])
    (late,) = await router.complete(b)
    assert late.error.reason == "STALE_TOKEN"


async def test_a_part_refused_at_once_takes_its_siblings_with_it(router: Router) -> None:
    """The policy refuses the first part while the parts are being placed: nothing is left running behind."""

    project = router.registry.project("web", "html")
    policy = decision_pb2.Policy(
        name=f"{ROOT}/policy",
        source="threshold: 1.0\non_unsure: reject\n",
    )
    router.registry.project("app", "html")
    whole = await router.submit("whole", required_capabilities=["nobody"])
    await router.routing.UpdatePolicy(routing_service_pb2.UpdatePolicyRequest(policy=policy))
    parts = [part("unsure", required_capabilities=["html"]), part("sure", project=project)]
    answer = await router.delegate(whole, DECOMPOSE, subtasks=parts)
    states = [(await router.get(name)).state for name in answer.delegation.child_tasks]
    assert states == [State.STATE_REJECTED, State.STATE_CANCELLED]
    assert answer.delegation.state == Delegation.STATE_FAILED
    assert answer.task.state == State.STATE_FAILED
    assert await router.claim(project) == []


@pytest.mark.parametrize("parts", [[part("a", 0)], [part("a", 1), part("b", 0)], [part("a", 7)]])
async def test_parts_that_wait_for_each_other_are_refused(router: Router, parts: list[Subtask]) -> None:
    _, web = router.registry.team("web", "html")
    whole = await router.submit("whole", parent=web)
    error = await refusal(
        router.delegate(whole, DECOMPOSE, subtasks=parts),
        Code.FAILED_PRECONDITION,
        "DEPENDENCY_CYCLE",
        task=whole.name,
        path=",".join(f"subtasks[{position}]" for position in range(len(parts))),
    )
    assert error.message
    assert (await router.get(whole)).state == State.STATE_QUEUED
    assert await router.chain(whole) == []


async def test_a_part_cannot_wait_for_what_waits_for_the_whole(router: Router) -> None:
    _, web = router.registry.team("web", "html")
    whole = await router.submit("whole", parent=web)
    after = await router.submit("after", parent=web, dependencies=[whole.name])
    await refusal(
        router.delegate(whole, DECOMPOSE, subtasks=[part("a", dependencies=[after.name])]),
        Code.FAILED_PRECONDITION,
        "DEPENDENCY_CYCLE",
        task=whole.name,
        path=f"{whole.name},{after.name},{whole.name}",
    )


async def test_a_cycle_through_a_delegation_is_refused(router: Router) -> None:
    """top waits for its child by the hand-over; the child cannot wait for what waits for top."""
    router.registry.team("web", "html")
    top = await router.submit(required_capabilities=["html"])
    child = await router.child_of(top)
    after = await router.submit("after", parent=ROOT, dependencies=[top.name])
    await refusal(
        router.update(child, dependencies=[after.name]),
        Code.FAILED_PRECONDITION,
        "DEPENDENCY_CYCLE",
        task=child.name,
        path=f"{child.name},{after.name},{top.name},{child.name}",
    )
    await refusal(
        router.update(child, dependencies=[top.name]),
        Code.FAILED_PRECONDITION,
        "DEPENDENCY_CYCLE",
        task=child.name,
        path=f"{child.name},{top.name},{child.name}",
    )


async def test_parts_wait_for_what_the_whole_waited_for(router: Router) -> None:
    project, web = router.registry.team("web", "html")
    before = await router.submit("before", parent=web)
    whole = await router.submit("whole", parent=web, dependencies=[before.name])
    answer = await router.delegate(whole, DECOMPOSE, subtasks=[part("a")])
    waiting = await router.get(answer.delegation.child_tasks[0])
    assert list(waiting.wait.on) == [before.name]
    await router.complete(await router.claim_one(project))
    await router.complete(await router.claim_one(project))
    assert (await router.get(whole)).state == State.STATE_SUCCEEDED


async def test_parts_can_go_to_a_child(router: Router) -> None:
    _project, web = router.registry.team("web", "html")
    run = router.registry.instance("run", Scope.ORCHESTRATION, web, max_workers=1)
    whole = await router.submit("whole", parent=web)
    answer = await router.delegate(whole, DECOMPOSE, run, subtasks=[part("a"), part("b")])
    assert list(answer.delegation.path) == [web, run]
    first = await router.claim_one(run)
    assert await router.claim(run) == []
    await router.complete(first)
    await router.complete(await router.claim_one(run))
    assert (await router.get(whole)).state == State.STATE_SUCCEEDED


# ---------------------------------------------------------------- offers


async def test_an_offer_waits_for_an_answer(router: Router) -> None:
    project, team = router.registry.team("web", "html", manual_accept=True, offer_timeout=HOUR)
    top = await router.submit(required_capabilities=["html"])
    (made,) = await router.chain(top)
    assert (made.state, made.offer_expire_time.ToDatetime(NOW.tzinfo)) == (
        Delegation.STATE_OFFERED,
        NOW + HOUR,
    )
    child = await router.child_of(top)
    assert (child.state, child.wait.reason, list(child.wait.on)) == (
        State.STATE_SUBMITTED,
        Reason.REASON_APPROVAL,
        [team],
    )
    assert await router.claim(project) == []
    accepted = await accept(router, made.name)
    assert (accepted.state, accepted.HasField("offer_expire_time")) == (Delegation.STATE_ACCEPTED, False)
    assert await accept(router, made.name) == accepted
    assert (await router.claim_one(project)).name == child.name
    await router.pass_time(2 * HOUR)
    assert (await delegation(router, made.name)).state == Delegation.STATE_ACCEPTED


async def test_an_offer_can_be_rejected(router: Router) -> None:
    _, _team = router.registry.team("web", "html", manual_accept=True)
    top = await router.submit(required_capabilities=["html"])
    (made,) = await router.chain(top)
    assert (await reject(router, made.name, reason="no")).reason == "no"
    assert (await router.get(top)).wait.exclusions["rejected-before"] == 1
    for verb, call in (("accept", accept), ("reject", reject)):
        await refusal(
            call(router, made.name),
            Code.FAILED_PRECONDITION,
            "DELEGATION_WRONG_STATE",
            delegation=made.name,
            state="RETURNED",
            verb=verb,
        )


async def test_an_offer_nobody_answers_goes_back_at_its_time(router: Router) -> None:
    _, _team = router.registry.team("web", "html", manual_accept=True, offer_timeout=MINUTE)
    top = await router.submit(required_capabilities=["html"])
    (made,) = await router.chain(top)
    await router.pass_time(MINUTE - timedelta(microseconds=1))
    assert (await delegation(router, made.name)).state == Delegation.STATE_OFFERED
    await router.pass_time(timedelta(microseconds=1))
    assert (await delegation(router, made.name)).state == Delegation.STATE_EXPIRED
    back = await router.get(top)
    assert (back.state, dict(back.wait.exclusions)) == (State.STATE_SUBMITTED, {"rejected-before": 1})
    await refusal(
        accept(router, made.name),
        Code.FAILED_PRECONDITION,
        "DELEGATION_WRONG_STATE",
        delegation=made.name,
        state="EXPIRED",
        verb="accept",
    )
    await one_owner(router, top)


async def test_an_expired_offer_goes_to_the_next_project(router: Router) -> None:
    router.registry.team("web", "html", manual_accept=True, offer_timeout=MINUTE)
    router.registry.team("app", "html", manual_accept=True, offer_timeout=MINUTE)
    top = await router.submit(required_capabilities=["html"])
    await router.pass_time(MINUTE)
    first, second = await router.chain(top)
    assert (first.state, second.state) == (Delegation.STATE_EXPIRED, Delegation.STATE_OFFERED)
    assert first.to_instance != second.to_instance
    await one_owner(router, top)


async def test_what_is_only_offered_is_not_handed_on(router: Router) -> None:
    """An offer is answered first: accepted, or sent back."""
    _, team = router.registry.team("web", "html", manual_accept=True, offer_timeout=MINUTE)
    run = router.registry.instance("run", Scope.ORCHESTRATION, team)
    top = await router.submit(required_capabilities=["html"])
    child = await router.child_of(top)
    await refusal(
        router.delegate(child, ROUTE, run),
        Code.FAILED_PRECONDITION,
        "TASK_WRONG_STATE",
        task=child.name,
        state="SUBMITTED",
        event="DELEGATE",
    )
    await router.delegate(child, ESCALATE)
    (made,) = await router.chain(top)
    assert made.state == Delegation.STATE_RETURNED


async def test_accepting_parts_frees_all_of_them(router: Router) -> None:
    _project, web = router.registry.team("web", "html")
    run = router.registry.instance("run", Scope.ORCHESTRATION, web, manual_accept=True)
    whole = await router.submit("whole", parent=web)
    answer = await router.delegate(whole, DECOMPOSE, run, subtasks=[part("a"), part("b")])
    assert await router.claim(run) == []
    await accept(router, answer.delegation.name)
    assert len(await router.claim(run, max_tasks=5)) == 2


async def test_a_blocked_task_stays_blocked_when_it_is_handed_over(router: Router) -> None:
    """An executor appears for a task that somebody holds back: it is placed, and still held."""

    top = await router.submit(required_capabilities=["html"])
    hold = pb.Hold(by="cleo", reason="budget")
    await router.tasks.BlockTask(task_svc.BlockTaskRequest(name=top.name, hold=hold))
    project, _ = router.registry.team("web", "html")
    await router.follow()
    child = await router.child_of(top)
    assert (child.wait.reason, list(child.wait.on)) == (Reason.REASON_PERSON, ["cleo"])
    assert await router.claim(project) == []
    (made,) = await router.chain(top)
    await reject(router, made.name)
    back = await router.get(top)
    assert (back.wait.reason, list(back.wait.on)) == (Reason.REASON_PERSON, ["cleo"])


# ---------------------------------------------------------------- stopping, and projects that go


async def test_stopping_sends_back_what_nobody_has_and_ends_when_the_rest_is_done(router: Router) -> None:
    web, team = router.registry.team("web", "html")
    running, waiting = [
        await router.submit(title, required_capabilities=["html"]) for title in ("running", "waiting")
    ]
    claimed = await router.claim_one(web)
    assert claimed.spec.title == "running"
    router.registry.change(team, state=InstanceState.STOPPING)
    await router.follow()
    assert router.registry.reports == []
    assert (await router.get(waiting)).state == State.STATE_SUBMITTED
    assert (await router.get(running)).state == State.STATE_DELEGATED
    await refusal(
        router.submit(parent=team),
        Code.FAILED_PRECONDITION,
        "INSTANCE_NOT_RUNNING",
        instance=team,
        state="STOPPING",
    )
    await router.complete(claimed)
    await router.follow()
    (report,) = router.registry.reports
    assert (report.instance, report.succeeded, report.failed, report.returned) == (team, 1, 0, 1)
    assert (await router.get(running)).state == State.STATE_SUCCEEDED


async def test_stopping_sends_back_however_much_there_is(router: Router) -> None:
    """Also what stands behind hundreds of tasks that have nobody to go back to."""
    _web, team = router.registry.team("web", "html")

    async def many(parent: str, count: int) -> None:
        spec = pb.TaskSpec(title="x", required_capabilities=["html"])
        items = [task_svc.SubmitTasksItem(spec=spec)] * count
        answer = await router.tasks.SubmitTasks(task_svc.SubmitTasksRequest(parent=parent, items=items))
        assert not [result for result in answer.results if result.HasField("error")]

    await many(team, 210)
    await many(ROOT, 210)
    router.registry.change(team, state=InstanceState.STOPPING)
    await router.follow()
    assert len(router.registry.reports) == 1
    assert {task.state for task in await router.found(parent=ROOT)} == {State.STATE_SUBMITTED}
    assert len(await router.found(parent=team)) == 210


async def test_a_run_is_reported_each_time_even_if_the_router_looks_late(router: Router) -> None:
    """Stopped, started and stopped again between two looks: the second stop is reported too."""
    _web, team = router.registry.team("web", "html")
    router.registry.change(team, state=InstanceState.STOPPING)
    await router.follow()
    assert len(router.registry.reports) == 1
    router.registry.change(team, state=InstanceState.STOPPING, start_time=NOW + HOUR)
    await router.follow()
    assert len(router.registry.reports) == 2


async def test_one_instance_that_cannot_be_reported_does_not_hold_up_the_others(router: Router) -> None:

    for name in ("a", "b"):
        _, team = router.registry.team(name, name)
        router.registry.change(team, state=InstanceState.STOPPING)
    router.registry.trouble = ServiceUnavailable(service="registry")
    await router.follow()
    assert [report.instance for report in router.registry.reports] == ["instances/b"]
    await router.follow()
    assert [report.instance for report in router.registry.reports] == ["instances/b", "instances/a"]


async def test_unregistering_a_project_routes_its_tasks_anew(router: Router) -> None:
    web = router.registry.project("web", "html")
    claimed, waiting = [await router.submit(required_capabilities=["html"]) for _ in range(2)]
    worked = await router.claim_one(web)
    router.registry.remove(web)
    app = router.registry.project("app", "html")
    await router.follow()
    moved = {task.name: task for task in await router.found()}
    assert moved[worked.name].state == State.STATE_RUNNING
    other = waiting if worked.name == claimed.name else claimed
    assert (moved[other.name].state, moved[other.name].project) == (State.STATE_QUEUED, app)
    (done,) = await router.complete(worked)
    assert done.updated.state == State.STATE_SUCCEEDED


async def test_unregistering_a_project_with_an_instance_routes_its_tasks_anew(router: Router) -> None:
    """They go back to whoever delegated them, who decides anew."""
    web, team = router.registry.team("web", "html")
    top = await router.submit(required_capabilities=["html"])
    direct = await router.submit("direct", parent=team)
    router.registry.remove(web)
    _app, other = router.registry.team("app", "html")
    await router.follow()
    assert (await router.child_of(top)).name.startswith(f"{other}/tasks/")
    await one_owner(router, top)
    stays = await router.get(direct)
    assert stays.state == State.STATE_QUEUED
    await router.follow()
    await router.follow()
    assert (
        await router.get(direct)
    ).generation == stays.generation  # nothing is decided about it again and again
    assert (await router.claim_one(team)).name == direct.name


async def test_hundreds_of_tasks_of_an_unregistered_project_do_not_keep_the_router_busy(
    router: Router,
) -> None:

    web, team = router.registry.team("web", "html")
    items = [task_svc.SubmitTasksItem(spec=pb.TaskSpec(title="x"))] * 250
    await router.tasks.SubmitTasks(task_svc.SubmitTasksRequest(parent=team, items=items))
    router.registry.remove(web)
    await router.follow()
    assert len(await router.found(parent=team)) == 250


async def test_a_chain_is_shown_from_any_of_its_tasks(router: Router) -> None:
    _, team = router.registry.team("web", "html")
    run = router.registry.instance("run", Scope.ORCHESTRATION, team)
    top = await router.submit(required_capabilities=["html"], **effort(5 * HOUR))
    bottom = await router.claim_one(run)
    whole = await router.chain(top)
    assert len(whole) == 2
    assert await router.chain(bottom) == whole
    assert await router.chain(whole[0].child_tasks[0]) == whole
    assert ref(bottom).task == whole[1].child_tasks[0]
