"""Hand-overs as their people see them: over a real database, with what alice, bob and carol have signed."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper.federation.v1 import delegation_service_pb2 as svc
from hopper_common.errors import (
    DelegationNotFound,
    DelegationWrongState,
    IdempotencyConflict,
    PageTokenInvalid,
)
from hopper_common.pagination import PageTokens
from hopper_federation import grant_store
from hopper_federation.delegation.delegation_servicer import RemoteDelegationServicer
from hopper_federation.delegation.desks import Desks, Sitting
from hopper_federation.delegation.known_keys import KnownKeys
from hopper_federation.delegation.model import Delegation, Outcome, Role, State, Task
from hopper_federation.delegation.steady import SteadyClock
from hopper_federation.delegation.store_sql import SqlDelegations
from hopper_federation.errors import CapabilityDenied, PeerNotFound, TrustLevelTooLow
from hopper_federation.model import Peer, Revocation
from hopper_federation.store_sql import Federation
from hopper_federation.trust import Level
from hopper_federation.trust_admin import TrustAdmin
from hopper_federation.trust_snapshot import TrustedPeer, TrustSnapshots
from hopper_testing.clock import ManualClock
from tests.federation.seals import BODY, FIRST, NOW, Hoppers, made_hoppers, offer_to_bob, result_of_carol

Verdict = svc.DecideRemoteDelegationRequest
CONTEXT: Final[Any] = None  # no method looks at it
TRANSLATIONS: Final = """
[[rule]]
name = "translations"
effect = "allow"
direction = "out"
capabilities = ["translate"]
redact = [{redact}]
"""


@pytest.fixture(scope="module")
def hoppers(tmp_path_factory: pytest.TempPathFactory) -> Hoppers:
    return made_hoppers(tmp_path_factory.mktemp("hoppers"))


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """One engine: the store has tests of its own on both."""
    return str(tmp_path / "federation.db")


@pytest.fixture
def clock() -> ManualClock:
    """The one of the identities, whose keys are good for some months."""
    return ManualClock(NOW)


class Alice:
    """alice's service, who knows bob and carol, and what is in its database."""

    def __init__(self, hoppers: Hoppers, federation: Federation, clock: ManualClock) -> None:
        self.hoppers = hoppers
        self.clock = clock
        self.snapshots = TrustSnapshots()
        self.know()
        identity = hoppers.alice
        self.desks = Desks(federation, TrustAdmin(identity), SteadyClock(clock), identity.install_id)
        self.service = RemoteDelegationServicer(
            self.desks, self.snapshots, KnownKeys(identity, self.snapshots, clock), PageTokens()
        )

    def know(self, **of_bob: Any) -> None:
        """bob and carol; with something else known of bob."""
        self.snapshots.replace(
            [
                TrustedPeer(
                    name=f"peers/{name}",
                    install_id=hopper.install_id,
                    level=Level.TRUSTED,
                    bundle=hopper.trust_bundle().SerializeToString(),
                    **(of_bob if name == "bob" else {}),
                )
                for name, hopper in (("bob", self.hoppers.bob), ("carol", self.hoppers.carol))
            ],
            now=0.0,
        )

    async def keep(self, *delegations: Delegation) -> None:
        def save(sitting: Sitting) -> None:
            for each in delegations:
                sitting.rows.save(each)

        await self.desks.write(save)

    async def look(self, work: Callable[[SqlDelegations], Any]) -> Any:
        return await self.desks.read(work)

    async def listed(self, **fields: Any) -> svc.ListRemoteDelegationsResponse:
        return await self.service.ListRemoteDelegations(svc.ListRemoteDelegationsRequest(**fields), CONTEXT)

    async def show(self, delegation: str) -> svc.GetRemoteDelegationResponse:
        return await self.service.GetRemoteDelegation(svc.GetRemoteDelegationRequest(id=delegation), CONTEXT)

    async def cancel(self, delegation: str, **fields: Any) -> svc.RemoteDelegation:
        request = svc.CancelRemoteDelegationRequest(id=delegation, reason="enough", **fields)
        return (await self.service.CancelRemoteDelegation(request, CONTEXT)).delegation

    async def decide(
        self, delegation: str, verdict: "Verdict.Verdict.ValueType", **fields: Any
    ) -> svc.RemoteDelegation:
        request = svc.DecideRemoteDelegationRequest(
            id=delegation, verdict=verdict, reason="because", **fields
        )
        return (await self.service.DecideRemoteDelegation(request, CONTEXT)).delegation

    async def explain(self, task: str) -> list[svc.GetRemoteDelegationResponse]:
        request = svc.ExplainCustodyRequest(task=task)
        return list((await self.service.ExplainCustody(request, CONTEXT)).hand_overs)

    async def trust(self, level: Level = Level.TRUSTED, *, redact: str = "") -> None:
        """Let bob have translations, without a field."""
        identity, bob = self.hoppers.alice, self.hoppers.bob.install_id
        text = TRANSLATIONS.format(redact=redact)

        def write(sitting: Sitting) -> None:
            store = sitting.store
            store.save_peer(Peer("peers/bob", bob, level, create_time=store.now, policy_version=1))
            grant_store.add(store, grant_store.signed(identity, bob, 1, text, "owner", store.now))

        await self.desks.write(write)

    async def appraise(self, task: str, **fields: Any) -> svc.RemoteDelegation:
        said = dpb.Appraisal(good_match=True, quality=0.5, comment="well done")
        request = svc.AppraiseRemoteDelegationRequest(task=task, appraisal=said, **fields)
        return (await self.service.AppraiseRemoteDelegation(request, CONTEXT)).delegation

    async def outbox(self) -> list[str]:
        """What is to be said to bob, by kind."""

        def read(rows: SqlDelegations) -> list[str]:
            found = rows.batch(self.hoppers.bob.install_id, self.desks.steady(), limit=9, most_bytes=9**9)
            return [str(dpb.Message.FromString(each.body).WhichOneof("body")) for each in found]

        return await self.look(read)  # type: ignore[no-any-return]

    async def errands(self) -> list[Task]:
        found = await self.look(lambda rows: rows.errands(self.desks.steady(), 9))
        return [each.errand.task for each in found]

    def kept(self, number: int = 1, **different: Any) -> Delegation:
        """One handed over to bob, which he works on."""
        result, offer = result_of_carol(self.hoppers)
        now = self.desks.steady() + number
        running = Delegation(
            id=str(number) * 26,
            role=Role.OUT,
            peer=self.hoppers.bob.install_id,
            task_uid=f"{self.hoppers.alice.install_id}/01k",
            epoch=1,
            state=State.RUNNING,
            lease=900.0,
            task=f"instances/peer-bob/tasks/{number}",
            offer=offer_to_bob(self.hoppers).SerializeToString(),
            created=now,
            updated=now,
        )
        if different.get("state") is State.COMPLETED:
            done = {"offer": offer.SerializeToString(), "result": result.SerializeToString()}
            running = replace(running, outcome=Outcome.SUCCEEDED, settled=True, **done)  # type: ignore[arg-type]
        return replace(running, **different)


@pytest.fixture
async def alice(hoppers: Hoppers, federation: Federation, clock: ManualClock) -> Alice:
    return Alice(hoppers, federation, clock)


# Looking.


async def test_what_is_kept_is_shown_with_its_chain(alice: Alice) -> None:
    done = alice.kept(state=State.COMPLETED, fraction=1.0, title="translate", rule="translations", late=True)
    await alice.keep(done)
    shown = await alice.show(FIRST)
    assert (shown.delegation.peer, shown.delegation.handed_over) == ("peers/bob", True)
    assert shown.delegation.state == dpb.DELEGATION_STATE_COMPLETED
    assert (shown.delegation.title, shown.delegation.rule) == ("translate", "translations")
    assert shown.delegation.task_uid == done.task_uid
    assert [artifact.name for artifact in shown.delegation.artifacts] == ["report.txt"]
    assert shown.delegation.create_time.ToMicroseconds() == pytest.approx(done.created * 1e6, abs=2)
    assert [link.kind for link in shown.custody] == ["task", "hop", "result", "countersign"]
    assert all(link.verified for link in shown.custody)


async def test_what_waits_for_a_person_is_told_whole_but_for_its_payload(alice: Alice) -> None:
    """A title is too little to decide by. What nobody has to decide about is a task, and read there."""
    heavy = dpb.TaskBody(payload=b"heavy")
    heavy.MergeFrom(BODY)
    offer = offer_to_bob(alice.hoppers, heavy).SerializeToString()
    await alice.keep(
        alice.kept(1, role=Role.IN, state=State.QUARANTINED, offer=offer),
        alice.kept(2, role=Role.IN),
        alice.kept(3, state=State.QUARANTINED),
    )
    assert (await alice.show("1" * 26)).body == BODY
    assert not any([(await alice.show(each * 26)).HasField("body") for each in "23"])


async def test_what_is_not_there_is_not_found(alice: Alice) -> None:
    with pytest.raises(DelegationNotFound):
        await alice.show("9" * 26)
    with pytest.raises(PeerNotFound):
        await alice.listed(peer="peers/nobody")


async def test_keys_that_somebody_else_may_have_prove_nothing(alice: Alice) -> None:
    """Whenever they say that they have signed."""
    await alice.keep(alice.kept(state=State.COMPLETED))
    alice.know(revocation=Revocation.COMPROMISED)
    shown = await alice.show(FIRST)
    assert [(link.kind, link.verified) for link in shown.custody] == [
        ("task", True),
        ("hop", True),
        ("result", True),
        ("countersign", False),
    ]
    assert not [link for link in shown.custody if link.problem]


async def test_the_list_is_told_page_by_page_the_newest_first(alice: Alice) -> None:
    await alice.keep(*(alice.kept(number) for number in range(1, 6)))
    found: list[str] = []
    token = ""
    while True:
        page = await alice.listed(page_size=2, page_token=token)
        found += [each.id[0] for each in page.delegations]
        token = page.next_page_token
        if not token:
            break
    assert found == ["5", "4", "3", "2", "1"]
    first = await alice.listed(page_size=2)
    with pytest.raises(PageTokenInvalid):
        await alice.listed(page_size=2, page_token=first.next_page_token, waiting=True)


async def test_the_list_is_narrowed(alice: Alice) -> None:
    await alice.keep(
        alice.kept(1),
        alice.kept(2, peer=alice.hoppers.carol.install_id, state=State.SUSPECT),
        alice.kept(3, role=Role.IN, state=State.QUARANTINED),
        alice.kept(4, state=State.QUARANTINED),
    )

    async def ids(**fields: Any) -> list[str]:
        return [each.id[0] for each in (await alice.listed(**fields)).delegations]

    assert await ids(peer="peers/carol") == ["2"]
    assert await ids(states=[dpb.DELEGATION_STATE_RUNNING, dpb.DELEGATION_STATE_SUSPECT]) == ["2", "1"]
    assert await ids(waiting=True) == ["3", "2"]
    assert await ids(waiting=True, states=[dpb.DELEGATION_STATE_SUSPECT]) == ["2"]


async def test_a_task_leads_to_every_hand_over_of_the_same_work(alice: Alice) -> None:
    """By the task in the peer's instance, and by the one that the work began with."""
    await alice.keep(
        alice.kept(1, state=State.RECLAIMED),
        alice.kept(2, epoch=2),
        alice.kept(3, task_uid="other/work"),
    )
    for task in ("instances/peer-bob/tasks/2", "instances/global/tasks/01k"):
        assert [each.delegation.id[0] for each in await alice.explain(task)] == ["1", "2"]
    assert await alice.explain("instances/global/tasks/none") == []


# Calling off.


async def test_what_was_handed_over_is_called_off_and_the_peer_is_told(alice: Alice) -> None:
    await alice.keep(alice.kept())
    assert (await alice.cancel(FIRST)).state == dpb.DELEGATION_STATE_CANCELLING
    assert await alice.outbox() == ["cancel"]
    assert (await alice.show(FIRST)).delegation.unanswered == 1


async def test_what_was_taken_over_is_stopped_here(alice: Alice) -> None:
    """How that ends is what whoever handed it over hears."""
    await alice.keep(alice.kept(role=Role.IN, state=State.RUNNING))
    await alice.cancel(FIRST)
    assert await alice.errands() == [Task.STOP]
    assert await alice.outbox() == []


async def test_what_waits_in_quarantine_is_declined(alice: Alice) -> None:
    await alice.keep(alice.kept(role=Role.IN, state=State.QUARANTINED))
    assert (await alice.cancel(FIRST)).state == dpb.DELEGATION_STATE_REJECTED
    assert await alice.outbox() == ["decision"]


async def test_what_is_over_is_not_called_off(alice: Alice) -> None:
    await alice.keep(alice.kept(state=State.COMPLETED))
    with pytest.raises(DelegationWrongState) as caught:
        await alice.cancel(FIRST)
    assert caught.value.metadata == {"delegation": FIRST, "state": "COMPLETED", "verb": "cancel"}


async def test_a_repeat_changes_nothing_and_is_answered_the_same(alice: Alice) -> None:
    await alice.keep(alice.kept())
    request_id = str(uuid.uuid4())
    first = await alice.cancel(FIRST, request_id=request_id)
    assert await alice.cancel(FIRST, request_id=request_id) == first
    assert await alice.outbox() == ["cancel"]
    with pytest.raises(IdempotencyConflict):
        await alice.cancel("2" * 26, request_id=request_id)


# Deciding.

DECISIONS: Final = {
    "taken": (
        Role.IN,
        State.QUARANTINED,
        Verdict.VERDICT_ACCEPT,
        State.ACCEPTED,
        [Task.SUBMIT],
        ["decision"],
    ),
    "not taken": (Role.IN, State.QUARANTINED, Verdict.VERDICT_DISCARD, State.REJECTED, [], ["decision"]),
    "done again": (
        Role.OUT,
        State.SUSPECT,
        Verdict.VERDICT_RETRY,
        State.RECLAIMED,
        [Task.RETURN],
        ["cancel"],
    ),
    "given up": (Role.OUT, State.SUSPECT, Verdict.VERDICT_GIVE_UP, State.FAILED, [Task.FAIL], ["cancel"]),
    "gone on with": (Role.IN, State.ORPHANED, Verdict.VERDICT_KEEP, State.CANCELLED, [Task.SUBMIT], []),
    "dropped": (Role.IN, State.ORPHANED, Verdict.VERDICT_DISCARD, State.CANCELLED, [], []),
    "counts": (Role.IN, State.DISPUTED, Verdict.VERDICT_GIVE_UP, State.FAILED, [], []),
}


@pytest.mark.parametrize("decision", sorted(DECISIONS))
async def test_what_waits_for_a_person_is_decided_by_one(alice: Alice, decision: str) -> None:
    role, state, verdict, after, errands, told = DECISIONS[decision]
    await alice.keep(alice.kept(role=role, state=state))
    asked = alice.desks.asked.count
    decided = await alice.decide(FIRST, verdict)
    assert decided.state == dpb.DelegationState.Value(f"DELEGATION_STATE_{after}")
    assert await alice.errands() == errands
    assert (alice.desks.asked.count > asked) == bool(errands)  # whoever carries them out is woken
    assert await alice.outbox() == told


@pytest.mark.parametrize("verdict", Verdict.Verdict.values()[1:])
async def test_what_waits_for_nobody_is_not_decided(
    alice: Alice, verdict: "Verdict.Verdict.ValueType"
) -> None:
    await alice.keep(alice.kept(1), alice.kept(2, role=Role.IN), alice.kept(3, state=State.QUARANTINED))
    for delegation in ("1" * 26, "2" * 26, "3" * 26):
        with pytest.raises(DelegationWrongState):
            await alice.decide(delegation, verdict)
    assert await alice.errands() == []


async def test_a_peer_cannot_hide_its_offer_behind_an_id_of_this_hopper(alice: Alice) -> None:
    """What is open is what is meant."""
    await alice.keep(alice.kept(state=State.COMPLETED), alice.kept(role=Role.IN, state=State.QUARANTINED))
    assert (await alice.decide(FIRST, Verdict.VERDICT_DISCARD)).state == dpb.DELEGATION_STATE_REJECTED


# Telling how well it went.


async def test_who_has_done_it_is_told_how_well_once(alice: Alice) -> None:
    """The newest hand-over that was completed, by the task it began with or the one in the peer's instance."""
    await alice.trust()
    await alice.keep(
        alice.kept(1, state=State.COMPLETED, rule="translations"),
        alice.kept(2, state=State.COMPLETED, rule="translations", epoch=2),
        alice.kept(3, state=State.REJECTED, rule="translations", epoch=3),
    )
    request_id = str(uuid.uuid4())
    told = await alice.appraise("instances/global/tasks/01k", request_id=request_id)
    assert (told.id, told.peer, told.unanswered) == ("2" * 26, "peers/bob", 1)
    assert await alice.appraise("instances/global/tasks/01k", request_id=request_id) == told
    assert await alice.outbox() == ["appraisal"]
    assert (await alice.appraise("instances/peer-bob/tasks/1")).id == "2" * 26


async def test_nobody_is_told_of_what_no_peer_has_completed(alice: Alice) -> None:
    await alice.trust()
    await alice.keep(
        alice.kept(1, rule="translations"),
        alice.kept(2, state=State.FAILED, rule="translations"),
        alice.kept(3, role=Role.IN, state=State.COMPLETED),
    )
    for task in ("instances/global/tasks/01k", "instances/peer-bob/tasks/3", "instances/global/tasks/none"):
        with pytest.raises(DelegationNotFound):
            await alice.appraise(task)
    assert await alice.outbox() == []


@pytest.mark.parametrize(
    ("level", "redact", "rule", "error"),
    [
        (Level.KNOWN, "", "translations", TrustLevelTooLow),
        (Level.BLOCKED, "", "translations", TrustLevelTooLow),
        (Level.TRUSTED, '"feedback"', "translations", CapabilityDenied),
        (Level.TRUSTED, "", "no such rule any more", CapabilityDenied),
    ],
    ids=["known", "blocked", "kept back", "another policy"],
)
async def test_what_may_not_leave_is_not_told(
    alice: Alice, level: Level, redact: str, rule: str, error: type[Exception]
) -> None:
    await alice.trust(level, redact=redact)
    await alice.keep(alice.kept(state=State.COMPLETED, rule=rule))
    with pytest.raises(error):
        await alice.appraise("instances/global/tasks/01k")
    assert await alice.outbox() == []
