"""Neighbours that hand work to each other: what their routers would ask for is said at their desks."""

from datetime import UTC, datetime, timedelta

from hopper.federation.v1 import delegation_pb2 as pb
from hopper_common.ids import new_id
from hopper_federation.delegation import sealing
from hopper_federation.delegation.desks import Sitting
from hopper_federation.delegation.model import Delegation, Offer, Outcome, Role, State, TaskNews
from hopper_federation.delegation.narrowing import NOBODY
from hopper_federation.delegation.sealing import Ended, HandOver
from hopper_federation.delegation.store_sql import Counts
from hopper_federation.store_sql import SqlStore
from hopper_federation.trust_admin import Wish
from tests.federation.neighbours import Neighbour, until_true

LEASE = timedelta(minutes=15)

POLICY = """
[[rule]]
name = "docs"
effect = "allow"
direction = "both"
capabilities = ["docs.*"]
exclusive = true
"""


async def trusts(one: Neighbour, other: Neighbour, *, address: str = "", policy: str = POLICY) -> None:
    """Have the other as a peer whose work may come in, and who may be handed some."""
    await one.knows(other, address=address)

    def grant(store: SqlStore) -> None:
        peer = store.peer_of(other.install_id)
        assert peer is not None
        one.trust.grant(store, peer, Wish(level=None, policy=policy, compared="", by="owner"))

    await one.federation.write(grant)
    await one.keeper.look()


def sealed_for(one: Neighbour, other: Neighbour, delegation: str, *, epoch: int = 1) -> bytes:
    """An offer of a task, as it crosses."""
    body = pb.TaskBody(title="review", required_capabilities=["docs.review"], priority=50)
    return sealed_to(one, other.install_id, delegation, body, epoch=epoch).SerializeToString()


def sealed_to(
    one: Neighbour, install_id: str, delegation: str, body: pb.TaskBody, *, epoch: int = 1
) -> pb.Offer:
    """An offer of any task to any Hopper."""
    now = datetime.now(UTC)
    return sealing.seal_offer(
        one.identity,
        body,
        HandOver(install_id, delegation, epoch, LEASE),
        task=f"instances/global/tasks/{delegation}",
        redelegation=NOBODY,
        not_after=now + timedelta(days=1),
        now=now,
    )


async def offer(one: Neighbour, other: Neighbour, count: int = 1) -> list[str]:
    """Offer tasks; returns the ids of the hand-overs, in order."""
    made = [new_id(datetime.now(UTC)) for _ in range(count)]

    def work(sitting: Sitting) -> None:
        for delegation in made:
            sealed = sealed_for(one, other, delegation)
            new = Delegation(
                id=delegation,
                role=Role.OUT,
                peer=other.install_id,
                task_uid=f"{one.install_id}/instances/global/tasks/{delegation}",
                epoch=1,
                state=State.OFFERED,
                lease=LEASE.total_seconds(),
                task=f"instances/peer-{other.name}/tasks/{delegation}",
                offer=sealed,
                created=sitting.now,
                updated=sitting.now,
            )
            sitting.desk.offer(new, Offer(sealed))

    await one.desks.write(work)
    return made


async def ends(one: Neighbour, delegation: str, outcome: Outcome = Outcome.SUCCEEDED) -> None:
    """The task that was made of an offer has ended."""
    await ends_taken(one, await found(one, Role.IN, delegation), outcome)


async def ends_taken(one: Neighbour, taken: Delegation, outcome: Outcome = Outcome.SUCCEEDED) -> None:
    """Likewise, of an offer as it was taken."""
    offer = pb.Offer.FromString(taken.offer)
    result = sealing.seal_result(one.identity, offer, Ended(outcome, datetime.now(UTC), b"done"))
    news = TaskNews(outcome=outcome, sealed=result.SerializeToString())
    await one.desks.write(lambda sitting: sitting.desk.news(taken.id, news))


async def found(one: Neighbour, role: Role, delegation: str) -> Delegation:
    """A hand-over, as one side knows it."""
    there = await one.desks.read(lambda rows: rows.delegation(role, delegation))
    assert there is not None
    return there


async def states(one: Neighbour, role: Role, delegations: list[str]) -> list[State | None]:
    """Where hand-overs are, as one side knows them."""
    there = await one.desks.read(lambda rows: [rows.delegation(role, each) for each in delegations])
    return [None if each is None else each.state for each in there]


async def comes_to(one: Neighbour, role: Role, delegations: list[str], state: State) -> None:
    """Wait until hand-overs are there."""

    async def there() -> bool:
        return await states(one, role, delegations) == [state] * len(delegations)

    await until_true(there)


async def counts(one: Neighbour, other: Neighbour) -> Counts:
    """What there is between them."""
    return await one.desks.read(lambda rows: rows.counts(other.install_id))


async def all_said(one: Neighbour, other: Neighbour) -> None:
    """Wait until everything that was to be said has been answered."""

    async def said() -> bool:
        return (await counts(one, other)).outbox == 0

    await until_true(said)
