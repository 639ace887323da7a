"""What the desk needs of a store, on both engines and in memory; and what else the shells ask of a database."""

import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, select, update

from hopper.federation.v1 import delegation_pb2 as pb
from hopper_common.database import Database
from hopper_federation.delegation.breaker import Hold
from hopper_federation.delegation.model import (
    KEPT_FOR,
    Appraisal,
    Body,
    Cancel,
    Decision,
    Delegation,
    Errand,
    Offer,
    Outcome,
    Receipt,
    Renewal,
    Result,
    Role,
    State,
    Task,
    Update,
)
from hopper_federation.delegation.ports import DelegationStore, Sent
from hopper_federation.delegation.store_sql import (
    UNDECIDED,
    Chore,
    Counts,
    Outgoing,
    SqlDelegations,
    Used,
)
from hopper_federation.delegation.tables import DELEGATIONS
from hopper_federation.delegation.wire import message_from_proto
from hopper_federation.tables import METADATA, MIGRATIONS
from hopper_testing.postgres import postgres_server
from tests.federation.sim.memory_store import MemoryDelegations, Tables, undone

T = TypeVar("T")

NOW = 1_800_000_000.25
BOB, EVE = "b" * 32, "e" * 32
SEALED = pb.Offer(body=b"what is to be done").SerializeToString()


class InMemory:
    """Transactions are taken back if they fail."""

    def __init__(self) -> None:
        self._tables = Tables()
        self._numbers = itertools.count(1)

    async def write(self, work: Callable[[DelegationStore], T]) -> T:
        rows = MemoryDelegations(self._tables, lambda: next(self._numbers))
        try:
            return work(rows)
        except BaseException:
            undone(rows.changes)
            raise


class OnDatabase:
    """Transactions of a database."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.sending: set[str] = set()

    async def write(self, work: Callable[[SqlDelegations], T]) -> T:
        return await self.db.write(lambda conn: work(SqlDelegations(conn, self.sending)))


async def _open(url: str) -> Database:
    return await Database.open(url, metadata=METADATA, migrations=MIGRATIONS, service="federation")


async def _migrate(url: str) -> None:
    await (await _open(url)).close()


@asynccontextmanager
async def _opened(engine: str, tmp_path: Path) -> AsyncIterator[OnDatabase]:
    file = str(tmp_path / "federation.db")
    db = await _open(file if engine == "sqlite" else postgres_server().create_database(made_by=_migrate))
    try:
        yield OnDatabase(db)
    finally:
        await db.close()


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OnDatabase]:
    async with _opened(request.param, tmp_path) as database:
        yield database


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[InMemory | OnDatabase]:
    """Any of them."""
    if request.param == "memory":
        yield InMemory()
        return
    async with _opened(request.param, tmp_path) as database:
        yield database


def delegation(number: int = 1, **fields: Any) -> Delegation:
    """One that this Hopper has handed to Bob."""
    made: dict[str, Any] = {
        "id": f"{number:026}",
        "role": Role.OUT,
        "peer": BOB,
        "task_uid": f"{EVE}/t{number}",
        "epoch": 1,
        "state": State.RUNNING,
        "lease": 900.0,
        "task": f"instances/peer-bob/tasks/t{number}",
        "created": NOW + number,
        "updated": NOW + number,
        **fields,
    }
    return Delegation(**made)


# What the desk needs: everywhere.


async def test_a_hand_over_comes_back_as_it_was(store: Any) -> None:
    whole = delegation(
        exclusive=True,
        rule="docs",
        token=7,
        lease_end=NOW + 0.1,
        renew_at=NOW + 1 / 3,
        start_by=NOW + 2,
        close_by=NOW + 3,
        sent=4,
        heard=5,
        reason="LEASE_LOST",
        detail="nothing heard \u2603",
        settled=True,
        outcome=Outcome.FAILED,
        result=b"\0result",
        late=True,
        fraction=0.1,
        offer=b"\0offer",
        appraisal=b"\0appraisal",
        title="Review",
    )
    await store.write(lambda books: books.save(whole))
    assert await store.write(lambda books: books.delegation(Role.OUT, whole.id)) == whole
    assert await store.write(lambda books: books.delegation(Role.IN, whole.id)) is None
    ended = replace(whole, state=State.COMPLETED, outcome=Outcome.SUCCEEDED, lease_end=None, result=b"other")
    await store.write(lambda books: books.save(ended))
    assert await store.write(lambda books: books.delegation(Role.OUT, whole.id)) == ended


async def test_what_a_transaction_did_is_gone_if_it_fails(store: Any) -> None:
    def work(books: DelegationStore) -> None:
        one = replace(delegation(), sent=1)
        books.save(one)
        books.send(one, Cancel("no"), NOW)
        books.errand(one, Errand(Task.RETURN))
        books.keep_answer(BOB, b"d", Receipt("m1"), NOW)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.write(work)

    def look(books: DelegationStore) -> tuple[Any, ...]:
        return (
            books.delegation(Role.OUT, delegation().id),
            books.answer_of(BOB, "m1"),
            books.unanswered(delegation()),
        )

    assert await store.write(look) == (None, None, [])


async def test_hand_overs_are_found(store: Any) -> None:
    one = delegation(1, task="t", task_uid="u", state=State.RECLAIMED)
    two = delegation(2, task="t", task_uid="u", epoch=2)
    three = delegation(3, role=Role.IN, task_uid="u", state=State.QUARANTINED)
    four = delegation(4, peer=EVE, state=State.SUSPECT)

    def work(books: DelegationStore) -> None:
        for each in (four, three, two, one):
            books.save(each)

    await store.write(work)
    found = await store.write(
        lambda books: (books.of_task("t"), books.of_task("none"), books.of_task_uid("u"))
    )
    assert found[:2] == (two, None)
    assert sorted(each.id for each in found[2]) == [one.id, two.id, three.id]
    assert await store.write(lambda books: list(books.open_of(BOB))) == [two, three]
    assert await store.write(lambda books: list(books.open_of(EVE))) == [four]


async def test_clocks_that_have_run_out_are_found_the_longest_overdue_first(store: Any) -> None:
    ends = {1: NOW + 30, 2: NOW + 10, 3: NOW + 20}
    await _save(store, *(delegation(number, lease_end=end) for number, end in ends.items()))
    await _save(
        store,
        delegation(4, state=State.COMPLETED, lease_end=NOW),
        delegation(5, lease_end=None),
        delegation(6, role=Role.IN, lease_end=NOW + 100, renew_at=NOW + 15),
    )
    due = await store.write(lambda books: [int(each.id) for each in books.due(NOW + 20, 10)])
    assert due == [2, 6, 3]
    assert await store.write(lambda books: [int(each.id) for each in books.due(NOW + 99, 2)]) == [2, 6]
    await _save(store, delegation(2, lease_end=NOW + 50))
    assert await store.write(lambda books: [int(each.id) for each in books.due(NOW + 20, 10)]) == [6, 3]


@pytest.mark.parametrize(
    "receipt",
    [
        Receipt("m1", State.ACCEPTED),
        Receipt("m1", None, "CAPABILITY_DENIED", "capability docs.review"),
        Receipt("m1", State.QUARANTINED, "QUOTA", "full", 0.5),
    ],
)
async def test_the_first_answer_is_remembered(store: Any, receipt: Receipt) -> None:
    await store.write(lambda books: books.keep_answer(BOB, b"digest", receipt, NOW))
    assert await store.write(lambda books: books.answer_of(BOB, "m1")) == (b"digest", receipt)
    assert await store.write(lambda books: books.answer_of(EVE, "m1")) is None


BODIES: Sequence[Body] = (
    Offer(SEALED),
    Decision(accepted=False, reason="LABEL_DENIED", detail="label private"),
    Update(running=True, fraction=0.5, message="half"),
    Renewal(),
    Cancel("enough"),
    Result(
        Outcome.CANCELLED,
        pb.Result(
            envelope=pb.Signed(payload=pb.ResultEnvelope(outcome=pb.OUTCOME_CANCELLED).SerializeToString()),
            output=b"so far",
        ).SerializeToString(),
    ),
    Appraisal(pb.Appraisal(good_match=True, quality=0.75).SerializeToString()),
)


async def test_a_message_is_kept_until_it_is_answered(store: Any) -> None:
    await say(store, *BODIES)
    assert await store.write(lambda books: list(books.unanswered(delegation()))) == [
        type(body) for body in BODIES
    ]
    for message, body in zip(await ready(store), BODIES, strict=True):
        said = Sent(Role.OUT, delegation().id, body)
        assert await store.write(lambda books, message=message: books.forget_message(message)) == said
        assert await store.write(lambda books, message=message: books.forget_message(message)) is None
    assert await store.write(lambda books: list(books.unanswered(delegation()))) == []


async def test_a_later_word_of_the_same_kind_replaces_one_that_was_not_sent(store: Any) -> None:
    await say(
        store, Update(fraction=0.1), Renewal(), Cancel("a"), Update(fraction=0.2), Renewal(), Cancel("b")
    )
    await say(store, Update(fraction=0.9), about=delegation(2))
    kinds = await store.write(lambda books: list(books.unanswered(delegation())))
    assert kinds == [Cancel, Update, Renewal, Cancel]
    first, update_, *_ = await ready(store)
    found = await store.write(lambda books: (books.forget_message(first), books.forget_message(update_)))
    assert [each.body for each in found] == [Cancel("a"), Update(fraction=0.2)]


async def test_what_is_postponed_holds_back_only_what_is_about_the_same_hand_over(store: Any) -> None:
    await say(store, Update(), Renewal())
    await say(store, Renewal(), about=delegation(2))
    first, second, third = await ready(store)
    await store.write(lambda books: books.postpone(first, NOW + 60))
    assert await ready(store, NOW + 59) == [third]
    assert await ready(store, NOW + 60) == [first, second, third]


async def test_a_call_off_does_not_wait_for_an_offer_that_is_put_off(store: Any) -> None:
    await say(store, Offer(SEALED), Cancel(), Renewal())
    offer, cancel, renewal = await ready(store)
    await store.write(lambda books: books.postpone(offer, NOW + 60))
    assert await ready(store, NOW + 59) == [cancel]
    assert await ready(store, NOW + 60) == [offer, cancel, renewal]


async def test_epochs_grow_task_by_task(database: OnDatabase) -> None:
    def work(books: SqlDelegations) -> list[int]:
        return [books.next_epoch("a", NOW), books.next_epoch("b", NOW), books.next_epoch("a", NOW)]

    assert await database.write(work) == [1, 1, 2]
    assert await database.write(work) == [3, 2, 4]


# What the shells ask of a database.


async def test_a_message_is_the_same_however_often_it_is_sent(database: OnDatabase) -> None:
    await say(database, *BODIES)
    before = await batch(database)
    assert await batch(database) == before
    messages = [message_from_proto(pb.Message.FromString(each.body)) for each in before]
    assert [message.body for message in messages] == list(BODIES)
    assert [message.sequence for message in messages] == list(range(1, len(BODIES) + 1))
    assert len({message.digest for message in messages}) == len(BODIES)


async def test_a_batch_has_an_end_but_never_no_beginning(database: OnDatabase) -> None:
    await say(database, *(Cancel("x" * 400) for _ in range(5)))
    everything = await batch(database)
    size = len(everything[0].body)
    assert await batch(database, most_bytes=2 * size) == everything[:2]
    assert await batch(database, most_bytes=1) == everything[:1]
    assert await batch(database, limit=3) == everything[:3]
    assert await database.write(lambda books: books.batch(EVE, NOW, limit=5, most_bytes=size)) == []


async def test_what_is_under_way_or_was_tried_is_not_taken_back(database: OnDatabase) -> None:
    await say(database, Renewal())
    database.sending = {each.id for each in await batch(database)}
    await say(database, Renewal())
    assert len(await batch(database)) == 2
    first, second = await batch(database)
    await database.write(lambda books: books.failed_to_send([first.id]))
    database.sending = set()
    await say(database, Renewal())
    kept, new = await batch(database)
    assert kept.id == first.id
    assert new.id not in {first.id, second.id}


async def test_who_is_to_be_told_is_known_after_the_transaction(database: OnDatabase) -> None:
    def work(books: SqlDelegations) -> dict[str, list[Outgoing] | None]:
        books.send(delegation(), Cancel(), NOW)
        books.send(delegation(), Cancel("again"), NOW)
        books.send(delegation(2, peer=EVE), Cancel(), NOW)
        books.save(delegation(3, peer="c" * 32))
        return books.told

    assert await database.write(work) == {BOB: await batch(database), EVE: await batch(database, peer=EVE)}
    assert await database.write(lambda books: books.outbox_peers()) == [BOB, EVE]
    assert await database.write(lambda books: books.waiting_until(BOB)) == NOW
    assert await database.write(lambda books: books.waiting_until("c" * 32)) is None


async def test_what_is_told_after_something_was_undone_is_to_be_looked_for(database: OnDatabase) -> None:
    def work(books: SqlDelegations) -> dict[str, list[Outgoing] | None]:
        books.send(delegation(), Cancel(), NOW)
        with suppress(KeyError), books.apart():
            books.send(delegation(), Cancel("undone"), NOW)
            raise KeyError
        return books.told

    assert await database.write(work) == {BOB: None}
    assert len(await batch(database)) == 1


async def test_rows_that_are_written_together_are_there_for_whoever_asks(database: OnDatabase) -> None:
    new, other = delegation(1), delegation(2)

    def work(books: SqlDelegations) -> None:
        with books.gathering():
            for each in (new, other):
                books.save(each)
                books.send(each, Cancel(), NOW)
                books.errand(each, Errand(Task.COMPLETE))
            books.keep_answer(BOB, b"digest", Receipt("m1", State.ACCEPTED), NOW)
            books.save(replace(new, state=State.ACCEPTED))
            assert books.answer_of(BOB, "m1") == (b"digest", Receipt("m1", State.ACCEPTED))
            assert books.used(BOB, {}, NOW).in_flight == {new.rule: 2}
            assert [each.state for each in books.open_of(BOB)] == [State.ACCEPTED, State.RUNNING]
            books.save(replace(new, state=State.COMPLETED))
            assert books.used(BOB, {}, NOW).in_flight[new.rule] == 1

    await database.write(work)
    assert await database.write(lambda books: [each.id for each in books.open_of(BOB)]) == [other.id]
    kept = await database.write(lambda books: books.delegation(Role.OUT, new.id))
    assert kept == replace(new, state=State.COMPLETED)
    assert len(await batch(database)) == 2
    assert [each.delegation.id for each in await database.write(lambda books: books.errands(NOW, 9))] == [
        new.id,
        other.id,
    ]
    assert await database.write(lambda books: books.answer_of(BOB, "m1")) is not None


async def test_what_was_to_be_written_together_and_failed_is_not_written(database: OnDatabase) -> None:
    def work(books: SqlDelegations) -> None:
        with books.gathering():
            books.save(delegation())
            raise KeyError

    with pytest.raises(KeyError):
        await database.write(work)
    assert await database.write(lambda books: books.open_of(BOB)) == []


async def test_many_that_are_foreseen_are_what_they_are_one_by_one(database: OnDatabase) -> None:
    sides = [delegation(1), delegation(1, role=Role.IN, task_uid=f"{EVE}/other"), delegation(2)]
    await _save(database, *sides)
    await database.write(lambda books: books.keep_answer(BOB, b"digest", Receipt("m1", None), NOW))
    ids, uids = [sides[0].id, f"{9:026}"], [sides[2].task_uid, f"{EVE}/none"]

    def foresee(books: SqlDelegations) -> list[object]:
        books.foresee(BOB, ["m1", "m2"], ids, uids)
        return _asked(books, ids, uids)

    assert await database.write(foresee) == await database.write(lambda books: _asked(books, ids, uids))


def _asked(books: SqlDelegations, ids: list[str], uids: list[str]) -> list[object]:
    one_by_one = [books.delegation(role, each) for role in Role for each in ids]
    copies = [list(books.of_task_uid(each)) for each in uids]
    return [one_by_one, copies, books.answer_of(BOB, "m1"), books.answer_of(BOB, "m2")]


async def test_errands_of_a_hand_over_are_done_in_order(database: OnDatabase) -> None:
    one, two = delegation(1, role=Role.IN), delegation(2)
    await _save(database, one, two)

    def work(books: SqlDelegations) -> None:
        books.errand(one, Errand(Task.SUBMIT))
        books.errand(one, Errand(Task.STOP, "CANCELLED", "no longer"))
        books.errand(two, Errand(Task.PROGRESS, "", "half", 0.5))
        books.errand(two, Errand(Task.PROGRESS, "", "more", 0.75))

    await database.write(work)
    submit, progress = await chores(database)
    assert (submit.delegation, submit.errand) == (one, Errand(Task.SUBMIT))
    assert (progress.delegation, progress.errand) == (two, Errand(Task.PROGRESS, "", "more", 0.75))
    await database.write(lambda books: books.errand_failed(submit.position, NOW + 60))
    assert [each.delegation for each in await chores(database)] == [two]
    assert await database.write(lambda books: books.errand_done(progress.position))
    assert not await database.write(lambda books: books.errand_done(progress.position))
    assert await database.write(lambda books: books.next_errand()) == 0.0
    (again,) = await chores(database, NOW + 60)
    assert (again.position, again.attempts) == (submit.position, 1)
    await database.write(lambda books: books.errand_done(submit.position))
    (stop,) = await chores(database)
    assert stop.errand == Errand(Task.STOP, "CANCELLED", "no longer")
    await database.write(lambda books: books.errand_done(stop.position))
    assert await database.write(lambda books: books.next_errand()) is None


async def test_nothing_waits_for_a_time_that_another_clock_has_told(database: OnDatabase) -> None:
    """Written before the clock was set back by two hours, and read by a process that was started after it."""
    before, one = NOW - 7_200, delegation()
    await _save(database, one)
    await say(database, Renewal())
    await database.write(lambda books: books.errand(one, Errand(Task.COMPLETE)))
    (complete,) = await chores(database)
    await database.write(lambda books: books.errand_failed(complete.position, NOW + 1))
    assert await ready(database, before) == []
    assert await chores(database, before) == []

    def begin(books: SqlDelegations) -> tuple[dict[str, list[Outgoing] | None], bool]:
        books.wait_no_longer(before)
        return books.told, books.asked

    assert await database.write(begin) == ({BOB: None}, True)
    assert len(await ready(database, before)) == 1
    assert len(await chores(database, before)) == 1


async def test_what_a_later_version_has_written_stays(database: OnDatabase) -> None:
    one = delegation()
    await _save(database, one)
    mine = DELEGATIONS.c.id == one.id

    def add(conn: Connection) -> None:
        body = json.loads(conn.scalar(select(DELEGATIONS.c.body).where(mine)) or "")
        text = json.dumps({**body, "v": 2, "later": [1, 2]})
        conn.execute(update(DELEGATIONS).where(mine).values(body=text))

    await database.db.write(add)
    changed = replace(one, fraction=0.5)

    def change(books: SqlDelegations) -> None:
        assert books.delegation(Role.OUT, one.id) == one
        books.save(changed)

    await database.write(change)
    await database.write(lambda books: books.save(replace(changed, fraction=0.75)))  # not read before
    text = await database.db.read(lambda conn: conn.scalar(select(DELEGATIONS.c.body).where(mine)))
    body = json.loads(text or "")
    assert (body["later"], body["fraction"]) == ([1, 2], 0.75)


async def test_what_a_peer_has_used_up(database: OnDatabase) -> None:
    await _save(
        database,
        delegation(1, rule="docs"),
        delegation(2, rule="docs", role=Role.IN, state=State.QUARANTINED),
        delegation(3, rule="code", role=Role.IN),
        delegation(4, rule="docs", state=State.COMPLETED),
        delegation(5, rule="docs", peer=EVE),
    )
    used = await database.write(lambda books: books.used(BOB, {"docs": 60.0, "code": 1.0}, NOW + 61.5))
    recent = [datetime.fromtimestamp(NOW + number, UTC) for number in (2, 4)]
    assert used == Used(
        pending=1, open=2, in_flight={"docs": 2, "code": 1}, recent={"docs": recent, "code": []}
    )


async def test_what_there_is_with_a_peer(database: OnDatabase) -> None:
    assert await database.write(lambda books: books.counts(BOB)) == Counts()
    await _save(
        database,
        delegation(1),
        delegation(2, state=State.SUSPECT),
        delegation(3, role=Role.IN, state=State.QUARANTINED),
        delegation(4, role=Role.IN),
        delegation(5, state=State.FAILED),
    )
    await say(database, Cancel("1"), Cancel("2"))
    counts = await database.write(lambda books: books.counts(BOB))
    assert counts == Counts(outbox=2, oldest=NOW, handed_over=2, taken_over=2, quarantined=1)
    assert await database.write(lambda books: books.open_peers()) == [BOB]
    assert await database.write(lambda books: books.unanswered_count(delegation(1))) == 2


async def test_hand_overs_page_by_page_the_newest_first(database: OnDatabase) -> None:
    await _save(
        database, *(delegation(number, created=NOW + number // 2, task="t") for number in range(1, 6))
    )
    await _save(database, delegation(6, peer=EVE, state=State.SUSPECT, created=NOW + 9))
    found: list[int] = []
    before: tuple[float, str] | None = None
    while page := await database.write(
        lambda books, before=before: books.page(peer=BOB, before=before, limit=2)  # type: ignore[misc]
    ):
        found += [int(each.id) for each in page]
        before = page[-1].created, page[-1].id
    assert found == [5, 4, 3, 2, 1]
    assert [
        int(each.id) for each in await database.write(lambda books: books.page(states=[State.SUSPECT]))
    ] == [6]
    assert [int(each.id) for each in await database.write(lambda books: books.hand_overs_of("t"))] == [
        1,
        2,
        3,
        4,
        5,
    ]


async def test_only_what_a_person_here_has_to_decide_about(database: OnDatabase) -> None:
    offered = delegation(1, role=Role.OUT, state=State.QUARANTINED)  # it waits for a person there
    waiting = [
        delegation(2, role=Role.IN, state=State.QUARANTINED),
        *(delegation(number, state=state) for number, state in enumerate(UNDECIDED, 3)),
    ]
    await _save(database, offered, *waiting, delegation(9, state=State.RUNNING))
    found = await database.write(lambda books: books.page(waiting=True))
    assert {each.id for each in found} == {each.id for each in waiting}


async def test_how_sending_goes_is_kept_beside_the_incarnation(database: OnDatabase) -> None:
    hold = Hold(3, NOW, NOW + 4, "PEER_UNREACHABLE", "no answer")
    assert await database.write(lambda books: (books.hold(BOB), books.incarnation_of(BOB))) == (Hold(), 0)
    await database.write(lambda books: books.save_hold(BOB, hold))
    await database.write(lambda books: books.save_incarnation_of(BOB, 7))
    await database.write(lambda books: books.save_incarnation_of(EVE, 8))
    assert await database.write(lambda books: (books.hold(BOB), books.incarnation_of(BOB))) == (hold, 7)
    await database.write(lambda books: books.save_hold(BOB, Hold()))
    assert await database.write(lambda books: (books.hold(BOB), books.incarnation_of(BOB))) == (Hold(), 7)


async def test_what_is_over_is_forgotten_in_time(database: OnDatabase) -> None:
    over = delegation(1, state=State.COMPLETED)
    untold = delegation(2, state=State.RECLAIMED)
    await _save(database, over, untold, delegation(3))
    await say(database, Cancel("never answered"))

    def work(books: SqlDelegations) -> None:
        books.errand(untold, Errand(Task.RETURN))
        books.keep_answer(BOB, b"d", Receipt("m1"), NOW)
        books.next_epoch("a", NOW)

    await database.write(work)
    assert await database.write(lambda books: books.forget(NOW + KEPT_FOR)) == 0
    assert await database.write(lambda books: books.answer_of(BOB, "m1"))
    assert await database.write(lambda books: books.forget(NOW + KEPT_FOR + 10)) == 1

    def look(books: SqlDelegations) -> list[Any]:
        return [books.delegation(Role.OUT, delegation(number).id) is None for number in (1, 2, 3)]

    assert await database.write(look) == [True, False, False]
    assert await database.write(lambda books: books.answer_of(BOB, "m1")) is None
    assert await batch(database) == []
    assert await database.write(lambda books: books.next_epoch("a", NOW)) == 2


# Helpers.


async def _save(store: Any, *delegations: Delegation) -> None:
    def work(books: DelegationStore) -> None:
        for each in delegations:
            books.save(each)

    await store.write(work)


async def say(store: Any, *bodies: Body, about: Delegation | None = None) -> None:
    """Put messages into the outbox."""
    one = delegation() if about is None else about

    def work(books: DelegationStore) -> None:
        for sequence, body in enumerate(bodies, start=1):
            books.send(replace(one, sent=sequence), body, NOW)

    await store.write(work)


async def batch(
    database: OnDatabase, *, peer: str = BOB, limit: int = 50, most_bytes: int = 1 << 20
) -> list[Outgoing]:
    """What is to be sent to a peer."""
    return await database.write(lambda books: books.batch(peer, NOW, limit=limit, most_bytes=most_bytes))


async def ready(store: Any, now: float = NOW) -> list[str]:
    """Ids of what is to be sent to Bob."""

    def work(books: Any) -> list[str]:
        if isinstance(books, MemoryDelegations):
            return [row.message.id for row in books.batch(BOB, now, 50)]
        return [message.id for message in books.batch(BOB, now, limit=50, most_bytes=1 << 20)]

    return list(await store.write(work))


async def chores(database: OnDatabase, now: float = NOW) -> list[Chore]:
    """What is to be done."""
    return await database.write(lambda books: books.errands(now, 10))
