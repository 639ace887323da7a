"""Exclusive tasks: whatever happens, no second attempt begins."""

from datetime import timedelta
from typing import Any, cast

import pytest

from hopper.router.v1 import delegation_service_pb2 as svc
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as task_svc
from hopper.router.v1 import work_service_pb2 as work_svc
from hopper.router.v1.delegation_pb2 import Delegation, Subtask
from hopper_router.model import Border, InstanceState, Scope
from hopper_router.work_servicer import WorkServicer
from tests.router.harness import MINUTE, SECOND, Code, Router, State, ref, refusal

OPEN = '[[rule]]\nname = "all"\neffect = "allow"\ndirection = "out"\ncapabilities = ["x"]\nexclusive = true\n'
FEDERATION = "federation"


async def begun(router: Router, **fields: Any) -> pb.Task:
    """An exclusive task that a worker has; its retry policy would try it often."""
    web = router.registry.project("web")
    task = await router.submit(exclusive=True, retry=pb.RetryPolicy(max_attempts=9), **fields)
    assert task.spec.exclusive
    claimed = await router.claim_one(web, lease_duration=MINUTE)
    assert claimed.spec.exclusive
    return claimed


async def handed_to_a_peer(router: Router) -> tuple[pb.Task, str]:
    """An exclusive task that a peer is to do, and the peer's instance."""
    border = Border("b" * 32, OPEN, 3)
    project = router.registry.project("peer-bob", "x", border=border)
    instance = router.registry.instance("peer-bob", Scope.FEDERATED, project=project)
    return await router.submit(exclusive=True, required_capabilities=["x"]), instance


async def release(router: Router, claimed: pb.Task) -> pb.Task:
    return (await router.work.ReleaseTask(work_svc.ReleaseTaskRequest(claim=ref(claimed)))).task


async def assert_failed_for_good(router: Router, task: pb.Task, reason: str) -> None:
    ended = await router.get(task)
    assert (ended.state, ended.failure.reason) == (State.STATE_FAILED, reason)
    await router.pass_time(timedelta(days=1))
    assert await router.claim("projects/web", "bob") == []


# ---------------------------------------------------------------- how an attempt ends


async def test_one_that_succeeds_is_like_any_other(router: Router) -> None:
    claimed = await begun(router)
    (result,) = await router.complete(claimed, result=b"once")
    assert result.updated.state == State.STATE_SUCCEEDED


async def test_a_failure_is_for_good(router: Router) -> None:
    claimed = await begun(router)
    await router.fail(claimed, "BUSY")
    await assert_failed_for_good(router, claimed, "BUSY")


async def test_a_worker_that_is_not_heard_of_again_is_for_good(router: Router) -> None:
    claimed = await begun(router)
    await router.pass_time(MINUTE)
    await assert_failed_for_good(router, claimed, "LEASE_EXPIRED")
    (late,) = await router.complete(claimed)
    assert late.error.reason == "STALE_TOKEN"


async def test_an_attempt_that_takes_too_long_is_for_good(router: Router) -> None:
    claimed = await begun(router, clocks=pb.Clocks(run_for=cast("Any", SECOND)))
    await router.pass_time(2 * SECOND)
    await assert_failed_for_good(router, claimed, "RUN_TIMEOUT")


async def test_one_that_is_given_back_before_it_was_begun_is_for_somebody_else(router: Router) -> None:
    claimed = await begun(router)
    request = work_svc.ReleaseTaskRequest(claim=ref(claimed), not_begun=True)
    assert (await router.work.ReleaseTask(request)).task.state == State.STATE_QUEUED
    again = await router.claim_one("projects/web", worker="bob")
    assert (again.name, again.attempt) == (claimed.name, 1)


async def test_one_that_is_given_back_is_for_good(router: Router) -> None:
    """Nobody knows how far its worker came."""
    claimed = await begun(router)
    assert (await release(router, claimed)).state == State.STATE_FAILED
    await assert_failed_for_good(router, claimed, "RELEASED")


async def test_a_claim_that_did_not_reach_its_worker_was_no_attempt(router: Router) -> None:
    """As a stream that ends gives back what it could not write."""
    claimed = await begun(router)
    await WorkServicer(router.engine).give_back([claimed])
    assert (await router.get(claimed)).state == State.STATE_QUEUED
    (result,) = await router.complete(await router.claim_one("projects/web", "bob"))
    assert result.updated.state == State.STATE_SUCCEEDED


# ---------------------------------------------------------------- nobody else begins it


@pytest.mark.parametrize("kind", ["ROUTE", "REASSIGN", "ESCALATE"])
async def test_one_that_was_begun_is_not_handed_over(router: Router, kind: str) -> None:
    _, team = router.registry.team("web")
    run = router.registry.instance("run", Scope.ORCHESTRATION, team)
    other = router.registry.instance("other", Scope.PROJECT)
    await router.submit(parent=team, exclusive=True)
    claimed = await router.claim_one("projects/web")
    to = {"ROUTE": run, "REASSIGN": other, "ESCALATE": ""}[kind]
    call = router.delegate(
        claimed, Delegation.Kind.Value(f"KIND_{kind}"), to, fencing_token=claimed.claim.fencing_token
    )
    await refusal(
        call, Code.FAILED_PRECONDITION, "TASK_WRONG_STATE",
        task=claimed.name, state="RUNNING", event="DELEGATE",
    )  # fmt: skip
    (result,) = await router.complete(claimed)
    assert result.updated.state == State.STATE_SUCCEEDED


async def test_its_worker_may_make_parts_of_it(router: Router) -> None:
    claimed = await begun(router)
    parts = [Subtask(spec=pb.TaskSpec(title="a part"))]
    await router.delegate(
        claimed, Delegation.KIND_DECOMPOSE, subtasks=parts, fencing_token=claimed.claim.fencing_token
    )
    (result,) = await router.complete(await router.claim_one("projects/web"))
    assert result.updated.state == State.STATE_SUCCEEDED
    assert (await router.get(claimed)).state == State.STATE_SUCCEEDED


async def test_one_that_was_begun_is_not_sent_back(router: Router) -> None:
    router.registry.team("web", "html")
    task = await router.submit(exclusive=True, required_capabilities=["html"])
    claimed = await router.claim_one("projects/web")
    request = svc.RejectDelegationRequest(name=claimed.delegation, fencing_token=claimed.claim.fencing_token)
    await refusal(
        router.delegations.RejectDelegation(request), Code.FAILED_PRECONDITION, "TASK_WRONG_STATE",
        task=claimed.name, state="RUNNING", event="REJECT",
    )  # fmt: skip
    await router.pass_time(MINUTE)
    ended = await router.get(task)
    assert (ended.state, ended.failure.reason) == (State.STATE_FAILED, "CHILD_FAILED")


async def test_one_that_was_begun_before_cannot_become_exclusive(router: Router) -> None:
    web = router.registry.project("web")
    await router.submit(retry=pb.RetryPolicy(max_attempts=2))
    failed = await router.fail(await router.claim_one(web))
    await refusal(
        router.update(failed, exclusive=True), Code.FAILED_PRECONDITION, "TASK_WRONG_STATE",
        task=failed.name, state="QUEUED", event="UPDATE",
    )  # fmt: skip
    fresh = await router.submit()
    assert (await router.update(fresh, exclusive=True)).spec.exclusive


async def test_a_person_may_try_one_that_failed_again(router: Router) -> None:
    """Nothing does so by itself; whoever replays it has seen how it failed."""
    claimed = await begun(router)
    await router.fail(claimed)
    await router.tasks.ReplayTasks(task_svc.ReplayTasksRequest(names=[claimed.name]))
    assert (await router.claim_one("projects/web")).attempt == 1


# ---------------------------------------------------------------- peers


async def test_the_federation_service_begins_nothing_itself(router: Router) -> None:
    """It may let go and take up again, however its leases end: whether the peer has begun is its to know."""
    task, instance = await handed_to_a_peer(router)
    claimed = await router.claim_one(instance, FEDERATION)
    assert (await release(router, claimed)).state == State.STATE_QUEUED
    claimed = await router.claim_one(instance, FEDERATION, lease_duration=SECOND)
    await router.pass_time(2 * SECOND)
    claimed = await router.claim_one(instance, FEDERATION)
    assert claimed.attempt == 1
    await router.complete(claimed)
    assert (await router.get(task)).state == State.STATE_SUCCEEDED


async def test_the_federation_service_sends_back_what_no_peer_has_begun(router: Router) -> None:
    task, instance = await handed_to_a_peer(router)
    claimed = await router.claim_one(instance, FEDERATION)
    request = svc.RejectDelegationRequest(name=claimed.delegation, fencing_token=claimed.claim.fencing_token)
    await router.delegations.RejectDelegation(request)
    assert (await router.get(task)).state == State.STATE_SUBMITTED


async def test_what_a_peer_gave_up_is_for_good(router: Router) -> None:
    task, instance = await handed_to_a_peer(router)
    await router.fail(await router.claim_one(instance, FEDERATION), "PEER_LOST")
    assert (await router.get(task)).state == State.STATE_FAILED


async def test_while_the_federation_service_is_away_a_peer_may_be_at_it(router: Router) -> None:
    """Its lease has run out, and the task waits to be adopted: nobody else may have it, however that is asked for."""
    task, instance = await handed_to_a_peer(router)
    claimed = await router.claim_one(instance, FEDERATION, lease_duration=SECOND)
    await router.pass_time(2 * SECOND)
    facts = {"task": claimed.name, "state": "QUEUED"}
    await refusal(
        router.delegations.RejectDelegation(svc.RejectDelegationRequest(name=claimed.delegation)),
        Code.FAILED_PRECONDITION, "TASK_WRONG_STATE", **facts, event="REJECT",
    )  # fmt: skip
    await refusal(
        router.delegate(claimed, Delegation.KIND_ESCALATE),
        Code.FAILED_PRECONDITION, "TASK_WRONG_STATE", **facts, event="DELEGATE",
    )  # fmt: skip
    router.registry.change(instance, state=InstanceState.STOPPING)
    await router.follow()
    assert (await router.get(task)).state == State.STATE_DELEGATED
    assert router.registry.reports == []  # it is not stopped before that is said
    router.registry.change(instance, state=InstanceState.RUNNING)
    await router.complete(await router.claim_one(instance, FEDERATION))
    assert (await router.get(task)).state == State.STATE_SUCCEEDED


@pytest.mark.parametrize("by_name", [False, True])
async def test_the_federation_service_takes_up_what_is_left_where_a_peer_is_parted_from(
    router: Router, by_name: bool
) -> None:
    task, instance = await handed_to_a_peer(router)
    lost = await router.claim_one(instance, FEDERATION, lease_duration=SECOND)
    await router.pass_time(2 * SECOND)
    router.registry.change(instance, state=InstanceState.STOPPING)
    await router.follow()
    named = {"task": lost.name} if by_name else {}
    claimed = await router.claim_one(instance, FEDERATION, **named)
    request = svc.RejectDelegationRequest(name=claimed.delegation, fencing_token=claimed.claim.fencing_token)
    await router.delegations.RejectDelegation(request)
    assert (await router.get(task)).state == State.STATE_SUBMITTED
    await router.follow()
    (report,) = router.registry.reports
    assert report.instance == instance
