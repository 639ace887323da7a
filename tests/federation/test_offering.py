"""What of a task leaves by which rule: the policy, what it keeps back, and what goes on of another Hopper's task."""

from pathlib import Path
from typing import Any, Final

import pytest

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper.router.v1.task_pb2 import Task, TaskSpec
from hopper_federation import grant_store
from hopper_federation.delegation.chain import read_offer
from hopper_federation.delegation.desks import Desks, Sitting
from hopper_federation.delegation.lineage import Lineage
from hopper_federation.delegation.model import CLOCKS_APART, Delegation, OfferFacts, Role, State
from hopper_federation.delegation.offering import CLOSING, Offerer, Refused
from hopper_federation.delegation.redaction import redacted
from hopper_federation.delegation.steady import SteadyClock
from hopper_federation.incarnation import Incarnation, Restored
from hopper_federation.model import Peer
from hopper_federation.store_sql import Federation, SqlStore
from hopper_federation.trust import Level
from hopper_federation.trust_admin import TrustAdmin
from hopper_testing.clock import ManualClock
from tests.federation.seals import FIRST, LEASE, NOW, Hoppers, made_hoppers, offer_to_bob

WORK: Final = """
[[rule]]
name = "translations"
effect = "allow"
direction = "both"
capabilities = ["translate"]
transit = "any"
exclusive = true
redact = {redact}

[[rule]]
name = "personal"
effect = "deny"
direction = "out"
labels = ["personal"]
"""
SPEC: Final = TaskSpec(
    title="translate the report",
    description="All of it.",
    tags=["docs"],
    required_capabilities=["translate"],
    labels={"customer": "acme", "hopper.note": "stays"},
    payload=b"secret",
    requester="ann",
    priority=60,
)


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


class Bob:
    """bob's service, who offers to carol."""

    def __init__(self, hoppers: Hoppers, federation: Federation, clock: ManualClock) -> None:
        self.hoppers = hoppers
        self.clock = clock
        self._federation = federation
        steady = SteadyClock(clock)
        self.desks = Desks(federation, TrustAdmin(hoppers.bob), steady, hoppers.bob.install_id)
        self._offerer = Offerer(self.desks, hoppers.bob, lease=LEASE)

    async def trust(self, *redact: str) -> None:
        """Let carol have translations, without some fields."""
        carol = self.hoppers.carol.install_id
        text = WORK.format(redact=list(redact)).replace("'", '"')

        def write(store: SqlStore) -> None:
            store.save_peer(
                Peer(
                    name="peers/carol",
                    install_id=carol,
                    level=Level.TRUSTED,
                    create_time=store.now,
                    policy_version=1,
                )
            )
            grant_store.add(store, grant_store.signed(self.hoppers.bob, carol, 1, text, "owner", store.now))

        await self._federation.write(write)

    async def is_restored(self, restored: Restored) -> None:
        """Its database came back from a copy, or did not."""
        incarnation = Incarnation("x", 2, 1, restored)
        await self._federation.write(lambda store: store.save_incarnation(incarnation))

    async def offer(
        self, spec: TaskSpec = SPEC, first: str = "", attempt: int = 1, *, closing: bool = False
    ) -> Delegation | Refused:
        task = Task(name="instances/peer-carol/tasks/02k", spec=spec, attempt=attempt)
        task.claim.fencing_token = 1
        lineage = Lineage(first or "instances/global/tasks/01k", first or "instances/global/tasks/01k")
        return await self._offerer.offer(self.hoppers.carol.install_id, task, lineage, closing=closing)

    async def has_from_alice(self, **different: Any) -> str:
        """A task that alice has handed over; returns what it is called here."""
        now = self.desks.steady()
        came = Delegation(
            id=FIRST,
            role=Role.IN,
            peer=self.hoppers.alice.install_id,
            task_uid=f"{self.hoppers.alice.install_id}/01k",
            epoch=1,
            state=State.ACCEPTED,
            lease=900.0,
            task="instances/global/tasks/03k",
            offer=offer_to_bob(self.hoppers, **different).SerializeToString(),
            created=now,
            updated=now,
        )

        def keep(sitting: Sitting) -> None:
            sitting.rows.save(came)

        await self.desks.write(keep)
        return came.task


@pytest.fixture
async def bob(hoppers: Hoppers, federation: Federation, clock: ManualClock) -> Bob:
    return Bob(hoppers, federation, clock)


def body_of(offered: Delegation | Refused) -> dpb.TaskBody:
    assert isinstance(offered, Delegation), offered
    return dpb.TaskBody.FromString(dpb.Offer.FromString(offered.offer).body)


async def test_all_of_a_task_leaves_but_this_hoppers_own_marks(bob: Bob) -> None:
    await bob.trust()
    body = body_of(await bob.offer())
    assert (body.title, body.description, body.payload) == (SPEC.title, SPEC.description, SPEC.payload)
    assert dict(body.labels) == {"customer": "acme"}
    assert list(body.redacted) == []


async def test_what_the_rule_keeps_back_does_not_leave_and_is_named(bob: Bob) -> None:
    await bob.trust("description", "payload", "requester", "labels.*", "tags.other")
    offered = await bob.offer()
    body = body_of(offered)
    assert body == dpb.TaskBody(
        title=SPEC.title,
        tags=["docs"],
        required_capabilities=["translate"],
        priority=60,
        redacted=["description", "payload", "requester", "labels.customer"],
    )
    assert isinstance(offered, Delegation)
    assert b"acme" not in offered.offer
    assert b"secret" not in offered.offer


@pytest.mark.parametrize(
    ("restored", "attempt", "exclusive", "doubted"),
    [
        (Restored.EARLIER, 2, True, True),
        (Restored.EARLIER, 1, True, False),
        (Restored.EARLIER, 2, False, False),
        (Restored.NO, 2, True, False),
    ],
)
async def test_what_may_have_left_before_a_restore_and_must_not_run_twice_waits_for_a_person(
    bob: Bob, restored: Restored, attempt: int, exclusive: bool, doubted: bool
) -> None:
    await bob.trust()
    await bob.is_restored(restored)
    spec = TaskSpec()
    spec.CopyFrom(SPEC)
    spec.exclusive = exclusive

    offered = await bob.offer(spec, attempt=attempt)

    assert isinstance(offered, Delegation), offered
    assert offered.state is (State.SUSPECT if doubted else State.OFFERED)
    again = await bob.offer(spec, attempt=attempt + 1)
    assert isinstance(again, Delegation)
    assert again.id == offered.id


@pytest.mark.parametrize(
    ("restored", "made", "may_have"),
    [
        (Restored.EARLIER, 0, True),
        (Restored.EARLIER, 2 + CLOCKS_APART, True),
        (Restored.EARLIER, 3 + CLOCKS_APART, False),
        (Restored.NO, 0, False),
    ],
)
async def test_what_was_offered_before_a_restore_may_have_been_here(
    bob: Bob, restored: Restored, made: float, may_have: bool
) -> None:
    await bob.is_restored(restored)
    facts = OfferFacts(b"", "a/t1", "a", ("a",), 900.0, exclusive=True, made=made)

    assert await bob.desks.write(lambda sitting: sitting.border.may_have_been_here(facts)) == may_have


async def test_to_who_is_parted_from_nothing_new_is_handed_and_what_it_has_stays_known(bob: Bob) -> None:
    await bob.trust()
    assert await bob.offer(closing=True) == CLOSING
    offered = await bob.offer()
    assert isinstance(offered, Delegation)
    again = await bob.offer(attempt=2, closing=True)
    assert isinstance(again, Delegation)
    assert again.id == offered.id


async def test_the_policy_looks_before_anything_is_kept_back(bob: Bob) -> None:
    """Or a label that never leaves would let its task go as soon as somebody keeps the label back."""
    await bob.trust("labels.*")
    spec = TaskSpec()
    spec.CopyFrom(SPEC)
    spec.labels["personal"] = "yes"
    assert await bob.offer(spec) == Refused("personal", "LABEL_DENIED", "label personal=yes")


async def test_another_hoppers_task_goes_on_as_it_came_whatever_was_made_of_it_here(bob: Bob) -> None:
    await bob.trust()
    first = await bob.has_from_alice()
    offered = await bob.offer(TaskSpec(title="edited here", required_capabilities=["translate"]), first)
    assert isinstance(offered, Delegation), offered
    chain = read_offer(dpb.Offer.FromString(offered.offer), bob.hoppers.named(("alice", "bob")))
    assert [link.verified for link in chain.links] == [True, True, True]
    assert chain.body.description == "All of it, by tomorrow."
    assert offered.task_uid == f"{bob.hoppers.alice.install_id}/01k"


async def test_the_policy_looks_at_what_came_and_not_at_what_was_made_of_it(bob: Bob) -> None:
    await bob.trust()
    body = dpb.TaskBody(title="at home", required_capabilities=["translate"], labels={"personal": "yes"})
    first = await bob.has_from_alice(body=body)
    spec = TaskSpec(title="at home", required_capabilities=["translate"])
    assert await bob.offer(spec, first) == Refused("personal", "LABEL_DENIED", "label personal=yes")


async def test_nothing_is_kept_back_of_another_hoppers_task(bob: Bob) -> None:
    """It goes on whole, as its origin has signed it, or not at all."""
    await bob.trust("description", "labels.none")
    first = await bob.has_from_alice()
    refused = await bob.offer(first=first)
    assert isinstance(refused, Refused)
    assert (refused.rule, refused.reason) == ("translations", "LABEL_DENIED")
    assert refused.detail.startswith("description may not leave")


def test_redaction_takes_every_kind_of_field() -> None:
    body = dpb.TaskBody(title="t", tags=["a", "b", "c.d"], labels={"a": "1", "b": "2"}, requester="ann")
    body.estimated_effort.seconds = 60
    left = redacted(body, ("tags.a", "tags.c.*", "labels.b", "requester", "estimated_effort"))
    assert (list(left.tags), dict(left.labels)) == (["b"], {"a": "1"})
    assert not left.requester
    assert not left.HasField("estimated_effort")
    assert set(left.redacted) == {"requester", "estimated_effort", "tags.a", "tags.c.d", "labels.b"}
    assert body.requester == "ann"  # the original is as it was
