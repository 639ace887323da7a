"""Peers as executors: a queue for the federation service alone, that is routed to, claimed, ended and sent back."""

from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

import pytest

from hopper.memory.v1.episode_pb2 import Episode
from hopper.router.v1 import decision_pb2
from hopper.router.v1 import delegation_service_pb2 as svc
from hopper.router.v1 import routing_service_pb2 as routing_svc
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as task_svc
from hopper.router.v1 import work_service_pb2 as work_svc
from hopper.router.v1.delegation_pb2 import Delegation
from hopper_common.auth.current import CURRENT
from hopper_common.auth.directory import Directory
from hopper_common.auth.model import Kind, Principal, Service, TrustLevel
from hopper_common.errors import HopperError, PermissionDenied
from hopper_router.decomposing import Decomposer
from hopper_router.delegation_servicer import DelegationServicer
from hopper_router.episode_source import StoredEpisodes
from hopper_router.episodes import episode, outcome
from hopper_router.holders import Holders
from hopper_router.intake import MOST_LOST
from hopper_router.model import Border, Lesson, Scope, Truth
from hopper_router.work_servicer import WorkServicer
from tests.router.harness import (
    HOUR,
    MINUTE,
    NOW,
    ROOT,
    SECOND,
    Code,
    Reason,
    Router,
    State,
    ref,
    refusal,
    violations,
)

FEDERATION = "federation"
BOB = "b" * 32
OPEN = """
[[rule]]
name = "research"
effect = "allow"
direction = "out"
capabilities = ["research.*"]
"""


def peer(router: Router, id_: str = "bob", *capabilities: str, **border: Any) -> tuple[str, str]:
    """A peer as the federation service keeps it: a project with a border, and the instance that stands for it."""
    project = router.registry.project(
        f"peer-{id_}",
        *(capabilities or ("research.web",)),
        requires_live_worker=True,
        live_workers=1,
        border=replace(Border(BOB, OPEN, TrustLevel.TRUSTED), **border),
    )
    return project, router.registry.instance(f"peer-{id_}", Scope.FEDERATED, project=project)


async def routed(router: Router, **fields: Any) -> pb.Task:
    """A task that only a peer can do, once it was routed."""
    return await router.submit(required_capabilities=["research.web"], **fields)


def clocks(**fields: Any) -> pb.Clocks:
    return pb.Clocks(**fields)


def where(task: pb.Task) -> str:
    """The instance that a task is of."""
    return task.name.partition("/tasks/")[0]


async def send_back(router: Router, claimed: pb.Task, **fields: Any) -> Delegation:
    request = svc.RejectDelegationRequest(
        name=claimed.delegation, fencing_token=claimed.claim.fencing_token, reason="BORDER"
    )
    request.MergeFrom(svc.RejectDelegationRequest(**fields))
    return (await router.delegations.RejectDelegation(request)).delegation


async def attempts(router: Router, task: pb.Task) -> list[pb.Attempt]:
    return list((await router.tasks.ListAttempts(task_svc.ListAttemptsRequest(task=task.name))).attempts)


# ---------------------------------------------------------------- routed, claimed, ended


async def test_what_only_a_peer_can_do_is_handed_over_and_ends_with_its_result(router: Router) -> None:
    project, instance = peer(router)
    task = await routed(router, payload=b"all of it")
    assert (task.state, task.wait.reason) == (State.STATE_DELEGATED, Reason.REASON_DELEGATION)
    child = await router.child_of(task)
    assert (child.state, where(child), child.project) == (State.STATE_QUEUED, instance, project)
    assert child.wait.reason == Reason.REASON_WORKER

    claimed = await router.claim_one(instance, FEDERATION)
    assert (claimed.name, claimed.spec.payload) == (child.name, b"all of it")
    assert not (await router.get(child)).HasField("wait")
    parent = await router.get(task)
    assert (parent.state, parent.wait.reason) == (State.STATE_DELEGATED, Reason.REASON_DELEGATION)
    (result,) = await router.complete(claimed, result=b"done there")
    assert result.updated.state == State.STATE_SUCCEEDED
    ended = await router.get(task, pb.TASK_VIEW_FULL)
    assert (ended.state, ended.result, ended.project) == (State.STATE_SUCCEEDED, b"done there", project)


async def test_what_fails_there_fails_here(router: Router) -> None:
    _, instance = peer(router)
    task = await routed(router)
    await router.fail(await router.claim_one(instance, FEDERATION), "PEER_GAVE_UP", permanent=True)
    ended = await router.get(task)
    assert (ended.state, ended.failure.reason) == (State.STATE_FAILED, "CHILD_FAILED")
    assert "PEER_GAVE_UP" in ended.failure.message


async def test_a_task_is_given_to_a_peer_by_hand(router: Router) -> None:
    """Directly, or as a hand-over: both are queued for the federation service."""
    project, instance = peer(router)
    direct = await router.submit("direct", parent=instance)
    assert (direct.state, direct.project) == (State.STATE_QUEUED, project)
    web = router.registry.project("web")
    over = await router.submit("over")
    assert over.project == web
    await router.delegate(over, Delegation.KIND_ROUTE, instance)
    claimed = await router.claim(instance, FEDERATION, max_tasks=9)
    assert {task.spec.title for task in claimed} == {"direct", "over"}


# ---------------------------------------------------------------- who claims


async def test_the_federation_service_alone_claims_what_is_for_a_peer(router: Router) -> None:
    project, instance = peer(router)
    child = await router.child_of(await routed(router))
    await refusal(
        router.claim(instance, "ann"),
        Code.PERMISSION_DENIED,
        "NOT_A_MEMBER",
        instance=instance,
        worker="ann",
    )
    assert await router.claim(project, "ann") == []
    await refusal(
        router.claim(project, "ann", task=child.name),
        Code.PERMISSION_DENIED,
        "NOT_A_MEMBER",
        instance=instance,
        worker="ann",
    )
    assert await router.claim_one(instance, FEDERATION, task=child.name)


async def test_nobody_works_under_the_name_of_the_federation_service(router: Router) -> None:
    web = router.registry.project("web")
    own = router.registry.instance("ann", Scope.PERSONAL)
    await router.submit()
    for queue in (web, own):
        assert set(await violations(router.claim(queue, FEDERATION))) == {"worker"}


async def claim_as(router: Router, caller: Principal, queue: str, worker: str) -> list[pb.Task]:
    """What a caller of another kind than the owner claims, past the guard."""
    CURRENT.set(caller)  # of this test's task alone
    servicer: Any = WorkServicer(router.engine)
    request = work_svc.ClaimTasksRequest(queue=queue, worker=worker)
    answer = await servicer.ClaimTasks(request, None)
    return list(work_svc.ClaimTasksResponse.FromString(_bytes(answer)).tasks)


def _bytes(answer: Any) -> bytes:
    return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString())


SERVICE = Principal("spiffe://a/svc/federation", Kind.SERVICE, service=Service.FEDERATION)


async def test_the_service_is_known_by_its_certificate_not_by_its_name(router: Router) -> None:
    _, instance = peer(router)
    await routed(router)
    gateway = Principal("spiffe://a/svc/gateway", Kind.SERVICE, service=Service.GATEWAY)
    for caller in (Principal("principals/federation", Kind.PERSON), gateway):
        with pytest.raises(HopperError) as caught:
            await claim_as(router, caller, instance, FEDERATION)
        assert caught.value.reason == "NOT_A_MEMBER"
    (claimed,) = await claim_as(router, SERVICE, instance, FEDERATION)

    holders = Holders(router.db, Directory(router.clock.monotonic))
    CURRENT.set(SERVICE)
    await holders.require_own([ref(claimed)])
    delegations: Any = DelegationServicer(router.engine, Decomposer(router.engine), holders)
    request = svc.RejectDelegationRequest(
        name=claimed.delegation, fencing_token=claimed.claim.fencing_token, request_id=str(uuid4())
    )
    CURRENT.set(gateway)
    with pytest.raises(PermissionDenied):
        await delegations.RejectDelegation(request, None)
    CURRENT.set(SERVICE)
    sent = (await delegations.RejectDelegation(request, None)).delegation
    assert sent.state == Delegation.STATE_RETURNED


# ---------------------------------------------------------------- clocks


async def test_a_service_that_was_away_adopts_the_task_again(router: Router) -> None:
    """However often: its leases that run out are no attempts, and what the peer is at is not tried a second time."""
    _, instance = peer(router)
    task = await routed(router, retry=pb.RetryPolicy(max_attempts=1))
    tokens = []
    for _ in range(3):
        claimed = await router.claim_one(instance, FEDERATION, lease_duration=MINUTE)
        assert claimed.attempt == 1
        tokens.append(claimed.claim.fencing_token)
        await router.pass_time(MINUTE)
        assert (await router.get(claimed)).state == State.STATE_QUEUED
    assert tokens == sorted(set(tokens))
    assert await attempts(router, claimed) == []
    claimed = await router.claim_one(instance, FEDERATION)
    await router.complete(claimed)
    assert (await router.get(task)).state == State.STATE_SUCCEEDED


async def test_how_long_a_peer_takes_is_the_peers_to_watch(router: Router) -> None:
    _, instance = peer(router)
    await routed(router, clocks=clocks(run_for=MINUTE))
    claimed = await router.claim_one(instance, FEDERATION, lease_duration=HOUR)
    await router.pass_time(2 * MINUTE)
    renew = work_svc.RenewClaimsRequest(claims=[ref(claimed)], lease_duration=cast("Any", HOUR))
    (renewed,) = (await router.work.RenewClaims(renew)).results
    assert renewed.updated.state == State.STATE_RUNNING
    await router.pass_time(30 * MINUTE)
    assert (await router.get(claimed)).state == State.STATE_RUNNING


async def test_who_was_not_begun_in_time_fails_and_who_was_adopted_does_not(router: Router) -> None:
    _, instance = peer(router)
    by = router.clock.now() + MINUTE
    begun = await routed(router, clocks=clocks(start_by=by))
    await router.claim_one(instance, FEDERATION, lease_duration=SECOND)
    late = await routed(router, clocks=clocks(start_by=by))
    await router.pass_time(2 * MINUTE)
    assert (await router.get(begun)).state == State.STATE_DELEGATED
    assert (await router.child_of(begun)).state == State.STATE_QUEUED
    assert (await router.get(late)).state == State.STATE_FAILED


async def test_an_attempt_that_failed_there_is_one(router: Router) -> None:
    """Between two that failed, leases may run out: neither is counted twice."""
    _, instance = peer(router)
    await routed(router, retry=pb.RetryPolicy(max_attempts=3, first_backoff=cast("Any", SECOND)))
    claimed = await router.claim_one(instance, FEDERATION)
    await router.fail(claimed, "BUSY")
    await router.pass_time(MINUTE)
    for _ in range(2):
        claimed = await router.claim_one(instance, FEDERATION, lease_duration=SECOND)
        assert claimed.attempt == 2
        await router.pass_time(2 * SECOND)
    assert [attempt.failure.reason for attempt in await attempts(router, claimed)] == ["BUSY"]


# ---------------------------------------------------------------- sent back


async def test_what_a_peer_does_not_take_is_decided_anew_without_it(router: Router) -> None:
    _, instance = peer(router)
    task = await routed(router)
    claimed = await router.claim_one(instance, FEDERATION)
    sent = await send_back(router, claimed)
    assert (sent.state, sent.reason) == (Delegation.STATE_RETURNED, "BORDER")
    back = await router.get(task)
    assert (back.state, dict(back.wait.exclusions)) == (State.STATE_SUBMITTED, {"rejected-before": 1})
    gone = await router.get(claimed)
    assert gone.state == State.STATE_CANCELLED
    (late,) = await router.complete(claimed)
    assert late.error.reason == "STALE_TOKEN"

    _, other = peer(router, "carol", peer="c" * 32)
    await router.follow()
    assert where(await router.child_of(task)) == other


async def test_what_came_back_is_sent_to_the_peer_again_by_who_names_it(router: Router) -> None:
    """It may have been away, or have had enough: that passes. Not to where the work has been on its way here."""
    _, instance = peer(router)
    task = await routed(router)
    await send_back(router, await router.claim_one(instance, FEDERATION))
    assert dict((await router.get(task)).wait.exclusions) == {"rejected-before": 1}
    again = (await router.delegate(task, Delegation.KIND_ROUTE, instance)).delegation
    assert (again.to_instance, again.state) == (instance, Delegation.STATE_ACCEPTED)
    claimed = await router.claim_one(instance, FEDERATION)
    await router.complete(claimed, result=b"done there")
    assert (await router.get(task)).state == State.STATE_SUCCEEDED


async def test_what_a_peer_has_lost_comes_there_again_once_it_is_back_and_not_for_ever(
    router: Router,
) -> None:
    """Nobody else can do it: it waited for a person because the peer was away for as long as a lease."""
    project, instance = peer(router)
    task = await routed(router)
    for _ in range(MOST_LOST - 1):
        claimed = await router.claim_one(instance, FEDERATION)
        router.registry.change(project, live_workers=0)
        sent = await send_back(router, claimed, may_come_again=True)
        assert sent.state == Delegation.STATE_CANCELLED
        waits = await router.get(task)
        assert (waits.state, dict(waits.wait.exclusions)) == (State.STATE_SUBMITTED, {"no-live-worker": 1})
        router.registry.change(project, live_workers=1)
        await router.follow()
        assert where(await router.child_of(task)) == instance

    await send_back(router, await router.claim_one(instance, FEDERATION), may_come_again=True)
    assert dict((await router.get(task)).wait.exclusions) == {"rejected-before": 1}
    assert [made.state for made in await router.chain(task)] == [Delegation.STATE_CANCELLED] * MOST_LOST


async def test_a_repeat_of_sending_back_is_the_first_answer(router: Router) -> None:
    _, instance = peer(router)
    task = await routed(router)
    claimed = await router.claim_one(instance, FEDERATION)
    again = str(uuid4())
    first = await send_back(router, claimed, request_id=again)
    assert await send_back(router, claimed, request_id=again) == first
    assert [made.name for made in await router.chain(task)] == [first.name]


async def test_only_the_live_token_sends_a_running_task_back(router: Router) -> None:
    _, instance = peer(router)
    task = await routed(router)
    claimed = await router.claim_one(instance, FEDERATION, lease_duration=MINUTE)
    facts = {"task": claimed.name, "state": "RUNNING", "holder": FEDERATION}
    wrong = claimed.claim.fencing_token + 1
    await refusal(send_back(router, claimed, fencing_token=wrong), Code.ABORTED, "STALE_TOKEN", **facts)
    without = svc.RejectDelegationRequest(name=claimed.delegation)
    await refusal(
        router.delegations.RejectDelegation(without),
        Code.FAILED_PRECONDITION,
        "TASK_WRONG_STATE",
        task=claimed.name,
        state="RUNNING",
        event="REJECT",
    )
    await router.pass_time(MINUTE)
    await refusal(send_back(router, claimed), Code.ABORTED, "STALE_TOKEN", task=claimed.name, state="QUEUED")
    assert (await router.get(task)).state == State.STATE_DELEGATED
    await router.delegations.RejectDelegation(without)  # nobody has it: no token is needed
    assert (await router.get(task)).state == State.STATE_SUBMITTED


# ---------------------------------------------------------------- half a peer


async def test_a_peer_that_nobody_keeps_is_left_out(router: Router) -> None:
    """Without a border it is an instance that somebody made by hand: nothing there would ever be claimed."""
    far = router.registry.project("far", "x")
    instance = router.registry.instance("far", Scope.FEDERATED, project=far)
    task = await router.submit(required_capabilities=["x"])
    assert dict(task.wait.exclusions) == {"federation": 1}
    for call in (router.delegate(task, Delegation.KIND_ROUTE, instance), router.submit(parent=instance)):
        await refusal(call, Code.FAILED_PRECONDITION, "FEDERATION_UNAVAILABLE", instance=instance)
    assert where(task) == ROOT


# ---------------------------------------------------------------- what may leave


CAREFUL = """
sensitive = ["private"]

[[rule]]
name = "nothing-of-customers"
effect = "deny"
direction = "both"
labels = ["customer"]

[[rule]]
name = "research"
effect = "allow"
direction = "out"
capabilities = ["research.*"]
max_priority = 80
max_bytes = 2000
"""


async def why_not(router: Router, task: pb.Task, project: str) -> task_svc.WhyNot:
    request = task_svc.ExplainTaskRequest(name=task.name, not_project=project)
    return (await router.tasks.ExplainTask(request)).why_not


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({"tags": ["customer"]}, "nothing-of-customers"),
        ({"labels": {"customer": "acme"}}, "nothing-of-customers"),
        ({"required_labels": {"customer": "acme"}}, "nothing-of-customers"),
        ({"tags": ["private"]}, "research"),
        ({"labels": {"private": "yes"}}, "research"),
        ({"priority": 81}, "research"),
        ({"payload": bytes(2001)}, "research"),
        ({"exclusive": True}, "research"),
    ],
    ids=str,
)
async def test_what_may_not_leave_is_not_even_offered(
    router: Router, asked: dict[str, Any], rule: str
) -> None:
    project, _ = peer(router, policy=CAREFUL)
    router.registry.change(project, labels={"customer": "acme"})
    for pinned in ("", project):
        task = await routed(router, project=pinned, **asked)
        assert task.state == State.STATE_SUBMITTED
        assert dict(task.wait.exclusions) == {"border": 1}
        said = await why_not(router, task, project)
        assert (said.filter, said.recomputed) == ("border", False)
        assert f"`{rule}`" in said.detail


async def test_what_may_leave_is_routed(router: Router) -> None:
    _, instance = peer(router, policy=CAREFUL)
    task = await routed(router, tags=["public"], labels={"hopper.mark": "customer"}, priority=80)
    assert where(await router.child_of(task)) == instance


@pytest.mark.parametrize(
    ("border", "says"),
    [
        ({"policy": "rule = 7"}, "cannot be read"),
        ({"policy": ""}, "no policy"),
        ({"level": TrustLevel.UNTRUSTED}, "ceiling of level UNTRUSTED"),
        ({"level": TrustLevel.BLOCKED}, "ceiling of level BLOCKED"),
        ({"level": 77}, "ceiling of level UNTRUSTED"),
        ({"level": TrustLevel.KNOWN}, "ceiling of level KNOWN"),
        ({"policy": 'level = "verified"\n' + OPEN}, "ceiling of level TRUSTED"),
        ({"policy": OPEN + "expires = 2025-12-31"}, "research"),
    ],
    ids=str,
)
async def test_a_border_that_does_not_hold_lets_nothing_leave(
    router: Router, border: dict[str, Any], says: str
) -> None:
    project, _ = peer(router, **border)
    task = await routed(router)
    assert dict(task.wait.exclusions) == {"border": 1}
    assert says in (await why_not(router, task, project)).detail


async def test_a_person_sends_work_to_a_peer_that_is_only_known(router: Router) -> None:
    """The ceiling of its level lets by hand what the router may not choose; what cannot be read lets nothing."""
    project, instance = peer(router, level=TrustLevel.KNOWN, policy="")
    task = await routed(router, project=project)
    assert where(await router.child_of(task)) == instance
    router.registry.change(project, border=Border(BOB, "rule = 7", TrustLevel.KNOWN))
    assert dict((await routed(router, project=project)).wait.exclusions) == {"border": 1}


async def test_sensitive_work_goes_to_a_verified_peer_by_a_rule_that_names_it(router: Router) -> None:
    policy = CAREFUL + 'labels = ["private", "work"]'
    project, instance = peer(router, policy=policy)
    assert dict((await routed(router, tags=["private"])).wait.exclusions) == {"border": 1}
    router.registry.change(project, border=Border(BOB, policy, TrustLevel.VERIFIED))
    assert where(await router.child_of(await routed(router, tags=["private"]))) == instance


async def test_a_policy_that_changes_counts_at_once(router: Router) -> None:
    project, instance = peer(router, policy="")
    task = await routed(router)
    assert dict(task.wait.exclusions) == {"border": 1}
    router.registry.change(project, border=Border(BOB, OPEN, TrustLevel.TRUSTED))
    await router.follow()
    assert where(await router.child_of(task)) == instance


async def test_no_task_is_offered_to_a_peer_that_it_came_through(router: Router) -> None:
    project, _ = peer(router)
    carol, instance = peer(router, "carol", peer="c" * 32)
    labels = {"hopper.path": f"{'d' * 32},{BOB}", "hopper.task_uid": f"{'d' * 32}/t"}
    task = await routed(router, labels=labels)
    assert task.state == State.STATE_SUBMITTED
    assert dict(task.wait.exclusions) == {"path": 1, "border": 1}
    assert (await why_not(router, task, project)).filter == "path"
    assert "third Hopper" in (await why_not(router, task, carol)).detail
    router.registry.change(carol, border=Border("c" * 32, OPEN + 'transit = "any"', TrustLevel.TRUSTED))
    await router.follow()
    assert where(await router.child_of(task)) == instance


async def test_half_a_peer_is_left_out(router: Router) -> None:
    """A border without an instance: nobody would hand over what went there."""
    router.registry.project("far", "x", border=Border(BOB, "", TrustLevel.TRUSTED))
    task = await router.submit(required_capabilities=["x"])
    assert dict(task.wait.exclusions) == {"federation": 1}


async def test_why_a_peer_was_left_out_is_told_also_later(router: Router) -> None:
    """Also of one that could not have had the task then: it is asked again, with the policy as it is."""
    web = router.registry.project("web", "research.web")
    task = await routed(router, tags=["customer"])
    assert task.project == web
    project, _ = peer(router, policy=CAREFUL)
    said = await why_not(router, task, project)
    assert (said.filter, said.recomputed) == ("border", True)
    assert "`nothing-of-customers`" in said.detail


async def test_others_are_weighed_where_a_peer_is_left_out(router: Router) -> None:
    peer(router, policy=CAREFUL)
    peer(router, "carol", policy=CAREFUL, peer="c" * 32)
    web = router.registry.project("web", "research.web")
    answer = await router.submitted(required_capabilities=["research.web"], tags=["customer"])
    assert (answer.task.project, answer.task.state) == (web, State.STATE_QUEUED)
    (exclusion,) = answer.decision.exclusions
    assert (exclusion.filter, exclusion.count) == ("border", 2)


# ---------------------------------------------------------------- like any other project


async def use(router: Router, source: str) -> None:
    policy = decision_pb2.Policy(name=f"{ROOT}/policy", source=source)
    await router.routing.UpdatePolicy(routing_svc.UpdatePolicyRequest(policy=policy))


async def test_a_peer_is_scored_with_the_others_and_explained(router: Router) -> None:
    web = router.registry.project("web", description="gardens")
    project, _ = peer(router)
    router.registry.change(project, description="history of the zebra", cost=2.0)
    await use(router, "threshold: 0")
    open_to_all = Border(
        BOB, '[[rule]]\nname = "all"\neffect = "allow"\ndirection = "out"', TrustLevel.TRUSTED
    )
    router.registry.change(project, border=open_to_all)
    answer = await router.submitted("where the zebra came from")
    decision = answer.decision
    assert (decision.project, answer.task.state) == (project, State.STATE_DELEGATED)
    assert {candidate.project for candidate in decision.candidates} == {project, web}
    explained = await router.tasks.ExplainTask(
        task_svc.ExplainTaskRequest(name=answer.task.name, not_project=web)
    )
    assert f"it went to {project}" in explained.sentences[0]
    assert explained.why_not.rank == 2


async def test_what_is_under_way_at_a_peer_is_its_load(router: Router) -> None:
    project, instance = peer(router)
    router.registry.change(project, max_open=2)
    tasks = [await routed(router) for _ in range(3)]
    assert [task.state for task in tasks] == [State.STATE_DELEGATED] * 2 + [State.STATE_SUBMITTED]
    assert dict(tasks[2].wait.exclusions) == {"capacity": 1}
    await router.complete(await router.claim_one(instance, FEDERATION))
    await router.follow()
    assert (await router.get(tasks[2])).state == State.STATE_DELEGATED


async def test_a_peer_that_is_not_heard_from_is_left_out(router: Router) -> None:
    project, _ = peer(router)
    router.registry.change(project, live_workers=0)
    assert dict((await routed(router)).wait.exclusions) == {"no-live-worker": 1}


async def test_how_it_went_at_a_peer_is_told_to_memory(router: Router) -> None:
    project, instance = peer(router)
    done, failed = await routed(router), await routed(router)
    for _ in range(2):
        claimed = await router.claim_one(instance, FEDERATION)
        if (await router.child_of(done)).name == claimed.name:
            await router.complete(claimed)
        else:
            await router.fail(claimed, permanent=True)
    source = StoredEpisodes(router.db)
    told = await source.records([done.decision, failed.decision], [])
    assert {episode(record).project for record in told.values()} == {project}
    ended = await source.ended([done.name, failed.name])
    outcomes = [outcome(ended[task.name]) for task in (done, failed)]
    assert [said.outcome for said in outcomes if said] == [Episode.OUTCOME_SUCCEEDED, Episode.OUTCOME_FAILED]


async def test_what_was_learned_of_a_peer_counts(router: Router) -> None:
    """Nothing speaks for it but how such tasks went there."""
    router.registry.project("web", "research.web", description="gardens")
    project, _ = peer(router)
    await use(router, "strategy: learned\nthreshold: 0")
    titles = ["the zebra is lost", "zebra manuals", "zebra again"] * 5
    router.engine.learned.apply(
        [
            Lesson(n, ROOT, f"decisions/{n}", title, "", (), Truth.RIGHT, project, "ann", 1.0, NOW)
            for n, title in enumerate(titles, start=1)
        ]
    )
    answer = await router.submitted("zebra manuals", required_capabilities=["research.web"])
    assert (answer.decision.project, answer.decision.strategy) == (project, "learned")


async def test_a_decision_made_once_more_keeps_to_the_border(router: Router) -> None:
    """What may not leave may not leave by another policy either."""
    project, _ = peer(router, policy=CAREFUL)
    web = router.registry.project("web", "research.web")
    await routed(router, tags=["customer"])
    request = routing_svc.ReplayPolicyRequest(instance=ROOT, source=f"default_project: {project}")
    replayed = await router.routing.ReplayPolicy(request)
    assert (replayed.replayed, replayed.changed) == (1, 0)
    suggested = await router.routing.SuggestRoute(
        routing_svc.SuggestRouteRequest(
            parent=ROOT,
            spec=pb.TaskSpec(title="x", tags=["customer"], required_capabilities=["research.web"]),
        )
    )
    assert suggested.decision.project == web
