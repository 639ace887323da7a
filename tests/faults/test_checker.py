"""The checker finds no fault with a Hopper that keeps its promises, and each kind of fault with one that does not."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hopper_testing.checker import SECOND, Report, Rule, check
from hopper_testing.dump import Dump, Event, TaskFacts
from hopper_testing.history import Grant, History, Kind, Operation, Outage, Outcome, Seen
from tests.faults.simulated import LEASE, Simulated

T = TypeVar("T")
SEEDS = st.integers(0, 2**32)


def made(seed: int, steps: int = 60) -> tuple[History, Dump]:
    return Simulated(random.Random(seed)).run(steps)


@settings(deadline=None)  # how long an example takes says how busy the machine is
@given(SEEDS)
def test_a_hopper_that_keeps_its_promises_has_no_violations(seed: int) -> None:
    report = check(*made(seed))
    assert report.violations == []


def test_the_simulated_hopper_does_everything() -> None:
    """Or else the tests here would show little."""
    asked: set[tuple[Kind, Outcome]] = set()
    kinds: set[str] = set()
    total = Report()
    for seed in range(20):
        history, dump = made(seed, 200)
        asked |= {(operation.kind, operation.outcome) for operation in history.operations}
        kinds |= {event.kind for event in dump.events}
        total.add(check(history, dump))
    refusable = set(Kind) - {Kind.SUBMIT, Kind.CLAIM}
    assert asked >= {(kind, outcome) for kind in refusable for outcome in Outcome}
    assert kinds >= {"SUBMIT", "CLAIM", "COMPLETE", "EXPIRE", "RETRY", "RELEASE", "CANCEL"}
    assert total.violations == []
    assert total.counts["submits"] == total.counts["tasks"] > 100
    assert total.back_after


# ---------------------------------------------------------------- faults, each planted in what was right

Planted = Callable[[random.Random, History, Dump], None]
"""Changes what it is given."""


def operations(history: History, kind: Kind, outcome: Outcome = Outcome.OK) -> list[Operation]:
    return [one for one in history.operations if one.kind is kind and one.outcome is outcome]


def events(dump: Dump, kind: str) -> list[Event]:
    return [event for event in dump.events if event.kind == kind]


def some(chance: random.Random, things: list[T]) -> T:
    assume(things)
    return chance.choice(things)


def change_task(dump: Dump, name: str, **facts: object) -> None:
    dump.tasks = [replace(task, **facts) if task.name == name else task for task in dump.tasks]  # type: ignore[arg-type]


def change_event(dump: Dump, event: Event, **facts: object) -> None:
    dump.events[dump.events.index(event)] = replace(event, **facts)  # type: ignore[arg-type]


def task_lost(chance: random.Random, history: History, dump: Dump) -> None:
    name = some(chance, operations(history, Kind.SUBMIT)).task
    dump.tasks = [task for task in dump.tasks if task.name != name]


def task_of_another(chance: random.Random, history: History, dump: Dump) -> None:
    name = some(chance, operations(history, Kind.SUBMIT)).task
    change_task(dump, name, title="another's")


def task_twice(chance: random.Random, history: History, dump: Dump) -> None:
    task = some(chance, dump.tasks)
    dump.tasks.append(replace(task, name=f"{task.name}-2"))


def task_from_nowhere(chance: random.Random, history: History, dump: Dump) -> None:
    dump.tasks.append(TaskFacts("instances/i/tasks/x", "nobody's", "QUEUED", 1))


def repeat_answered_otherwise(chance: random.Random, history: History, dump: Dump) -> None:
    one = some(chance, operations(history, Kind.SUBMIT))
    other = some(chance, [task for task in dump.tasks if task.name != one.task])
    history.operations.append(replace(one, task=other.name))


def token_twice(chance: random.Random, history: History, dump: Dump) -> None:
    claim = some(chance, operations(history, Kind.CLAIM))
    (grant,) = claim.grants
    history.operations.append(replace(claim, request_id="x", grants=(replace(grant, worker="eve"),)))


def token_shrinks(chance: random.Random, history: History, dump: Dump) -> None:
    claim = some(chance, operations(history, Kind.CLAIM))
    (grant,) = claim.grants
    earlier = replace(grant, token=grant.token + 100, start=grant.start - SECOND, worker="eve")
    history.operations.append(replace(claim, request_id="x", grants=(earlier,)))


def left_alone(history: History, dump: Dump) -> list[tuple[Operation, Grant]]:
    """Claims that nobody tried to end, or to call off."""
    touched = {one.task for one in history.operations if one.token or one.kind is Kind.CANCEL}
    return [
        (one, one.grants[0]) for one in operations(history, Kind.CLAIM) if one.grants[0].task not in touched
    ]


def owned_twice_by_clients_times(chance: random.Random, history: History, dump: Dump) -> None:
    """The server's clock leapt an hour: by its times all is well."""
    claim, grant = some(chance, left_alone(history, dump))
    later = grant.start + 3600 * SECOND
    second = replace(grant, token=grant.token + 100, worker="eve", start=later, lease_end=later + LEASE)
    history.operations.append(
        replace(
            claim, request_id="x", asked_at=claim.asked_at + 1, ended_at=claim.asked_at + 2, grants=(second,)
        )
    )


def taken_too_early(chance: random.Random, history: History, dump: Dump) -> None:
    expired = some(chance, events(dump, "EXPIRE"))
    claims = [event for event in events(dump, "CLAIM") if event.task == expired.task]
    claimed = [event for event in claims if event.generation < expired.generation][-1]
    change_event(dump, expired, time=claimed.lease_end - 1)


def claimed_while_claimed(chance: random.Random, history: History, dump: Dump) -> None:
    claimed = some(chance, events(dump, "CLAIM"))
    dump.events.insert(
        dump.events.index(claimed) + 1, replace(claimed, worker="eve", start=claimed.start + 1)
    )


def claim_not_logged(chance: random.Random, history: History, dump: Dump) -> None:
    claim = some(chance, operations(history, Kind.CLAIM))
    dump.events = [event for event in dump.events if event.start != claim.grants[0].start]


def completed_twice(chance: random.Random, history: History, dump: Dump) -> None:
    done = some(chance, operations(history, Kind.COMPLETE))
    history.operations.append(replace(done, token=done.token + 1, request_id="x"))


def completion_undone(chance: random.Random, history: History, dump: Dump) -> None:
    change_task(dump, some(chance, operations(history, Kind.COMPLETE)).task, state="QUEUED")


def other_result(chance: random.Random, history: History, dump: Dump) -> None:
    change_task(dump, some(chance, operations(history, Kind.COMPLETE)).task, result="ee")


def result_of_nobody(chance: random.Random, history: History, dump: Dump) -> None:
    name = some(chance, [task.name for task in dump.tasks if task.state != "SUCCEEDED"])
    change_task(dump, name, state="SUCCEEDED", result="ee")


def stale_completion_accepted(chance: random.Random, history: History, dump: Dump) -> None:
    refused = operations(history, Kind.COMPLETE, Outcome.REFUSED)
    ended = {
        (one.task, one.token) for one in history.operations if one.kind is Kind.COMPLETE and one.may_be_done
    }
    some(chance, [one for one in refused if (one.task, one.token) not in ended]).outcome = Outcome.OK


def two_results_acknowledged(chance: random.Random, history: History, dump: Dump) -> None:
    done = some(chance, operations(history, Kind.COMPLETE))
    history.operations.append(replace(done, result="ee", request_id="x"))


def late_completion_accepted(chance: random.Random, history: History, dump: Dump) -> None:
    """Nobody has noticed yet that the lease has run out, and its owner completes."""
    done = some(chance, operations(history, Kind.COMPLETE))
    renewals = [one for one in history.operations if (one.task, one.token) == (done.task, done.token)]
    assume(len(renewals) == 1)
    event = next(event for event in events(dump, "COMPLETE") if event.task == done.task)
    change_event(dump, event, time=event.time + 2 * LEASE)


def late_completion_by_clients_times(chance: random.Random, history: History, dump: Dump) -> None:
    """The server's clock stood still."""
    done = some(chance, operations(history, Kind.COMPLETE))
    renewals = [one for one in history.operations if (one.task, one.token) == (done.task, done.token)]
    claims = [one for one in operations(history, Kind.CLAIM) if one.grants[0].task == done.task]
    assume(len(renewals) == 1 and claims)
    assume(claims[-1].grants[0].token == done.token)
    done.asked_at += 2 * LEASE / SECOND


def live_claim_refused(chance: random.Random, history: History, dump: Dump) -> None:
    claim, grant = some(chance, left_alone(history, dump))
    refused = Operation(
        kind=chance.choice((Kind.RENEW, Kind.COMPLETE, Kind.FAIL, Kind.RELEASE)),
        client="c", asked_at=claim.asked_at + 1, ended_at=claim.asked_at + 2, task=grant.task, token=grant.token,
        outcome=Outcome.REFUSED, reason="STALE_TOKEN", request_id="x",
    )  # fmt: skip
    history.operations.append(refused)


def done_and_refused(chance: random.Random, history: History, dump: Dump) -> None:
    done = some(chance, operations(history, Kind.COMPLETE))
    for one in history.operations:
        if (one.task, one.token) == (done.task, done.token):
            one.outcome, one.reason = Outcome.REFUSED, "STALE_TOKEN"


def cancellation_undone(chance: random.Random, history: History, dump: Dump) -> None:
    change_task(dump, some(chance, operations(history, Kind.CANCEL)).task, state="QUEUED")


def cancelled_by_nobody(chance: random.Random, history: History, dump: Dump) -> None:
    name = some(chance, [task.name for task in dump.tasks if task.state == "CANCELLED"])
    history.operations = [
        one for one in history.operations if one.kind is not Kind.CANCEL or one.task != name
    ]


def back_too_late(chance: random.Random, history: History, dump: Dump) -> None:
    unsure = {one.task for one in operations(history, Kind.RENEW, Outcome.UNKNOWN)}
    expired = some(chance, [event for event in events(dump, "EXPIRE") if event.task not in unsure])
    change_event(dump, expired, time=expired.time + 18 * SECOND)


def never_back(chance: random.Random, history: History, dump: Dump) -> None:
    running = some(chance, [task for task in dump.tasks if task.state == "RUNNING"])
    unknown = [one for one in operations(history, Kind.RENEW, Outcome.UNKNOWN) if one.task == running.name]
    assume(not unknown)
    dump.taken += 2 * LEASE + 2 * SECOND


def out_of_order(chance: random.Random, history: History, dump: Dump) -> None:
    place = some(chance, list(range(len(dump.events) - 1)))
    dump.events[place], dump.events[place + 1] = dump.events[place + 1], dump.events[place]


def generation_twice(chance: random.Random, history: History, dump: Dump) -> None:
    place = some(chance, list(range(len(dump.events) - 1)))
    dump.events[place] = replace(dump.events[place], generation=dump.events[place + 1].generation)


def step_missing(chance: random.Random, history: History, dump: Dump) -> None:
    went_on = {event.task for event in dump.events if event.kind in ("CLAIM", "CANCEL")}
    dump.events.remove(some(chance, [event for event in events(dump, "QUEUE") if event.task in went_on]))


def beginning_missing(chance: random.Random, history: History, dump: Dump) -> None:
    dump.events.remove(some(chance, events(dump, "SUBMIT")))


def moved_after_its_end(chance: random.Random, history: History, dump: Dump) -> None:
    done = some(chance, events(dump, "COMPLETE"))
    dump.events.append(
        replace(done, generation=dump.head + 1, kind="CLAIM", from_state="SUCCEEDED", state="RUNNING")
    )


def unheard_of_move(chance: random.Random, history: History, dump: Dump) -> None:
    change_event(dump, some(chance, dump.events), kind="VANISH")


def log_ahead_of_task(chance: random.Random, history: History, dump: Dump) -> None:
    task = some(chance, dump.tasks)
    change_task(dump, task.name, generation=task.generation - 1)


def task_without_a_log(chance: random.Random, history: History, dump: Dump) -> None:
    name = some(chance, dump.tasks).name
    dump.events = [event for event in dump.events if event.task != name]


def watcher_misses_one(chance: random.Random, history: History, dump: Dump) -> None:
    seen = history.watchers[0].seen
    del seen[some(chance, list(range(len(seen) - 1)))]


def watcher_sees_one_twice(chance: random.Random, history: History, dump: Dump) -> None:
    seen = history.watchers[0].seen
    place = some(chance, list(range(len(seen))))
    seen.insert(place, seen[place])


def watcher_sees_one_late(chance: random.Random, history: History, dump: Dump) -> None:
    seen = history.watchers[0].seen
    place = some(chance, list(range(len(seen) - 1)))
    seen[place], seen[place + 1] = seen[place + 1], seen[place]


def watcher_sees_what_was_not(chance: random.Random, history: History, dump: Dump) -> None:
    seen = history.watchers[0].seen
    place = some(chance, list(range(len(seen))))
    seen[place] = Seen(seen[place].generation, "instances/i/tasks/x", "CLAIM")


def refused_without_reason(chance: random.Random, history: History, dump: Dump) -> None:
    one = some(chance, history.operations)
    one.outcome, one.reason = Outcome.REFUSED, "INTERNAL"


FAULTS: dict[Planted, Rule] = {
    task_lost: Rule.LOST,
    task_of_another: Rule.LOST,
    task_twice: Rule.DOUBLED,
    task_from_nowhere: Rule.UNASKED,
    repeat_answered_otherwise: Rule.RENAMED,
    token_twice: Rule.TOKENS,
    token_shrinks: Rule.TOKENS,
    owned_twice_by_clients_times: Rule.OVERLAP,
    taken_too_early: Rule.OVERLAP,
    claimed_while_claimed: Rule.OVERLAP,
    claim_not_logged: Rule.UNLOGGED,
    completed_twice: Rule.COMPLETED_TWICE,
    completion_undone: Rule.NOT_COMPLETED,
    other_result: Rule.OTHER_RESULT,
    result_of_nobody: Rule.OTHER_RESULT,
    two_results_acknowledged: Rule.OTHER_RESULT,
    stale_completion_accepted: Rule.STALE_ACCEPTED,
    late_completion_accepted: Rule.STALE_ACCEPTED,
    late_completion_by_clients_times: Rule.STALE_ACCEPTED,
    live_claim_refused: Rule.LIVE_REFUSED,
    done_and_refused: Rule.DONE_REFUSED,
    cancellation_undone: Rule.NOT_CANCELLED,
    cancelled_by_nobody: Rule.NOT_CANCELLED,
    back_too_late: Rule.LATE,
    never_back: Rule.LATE,
    out_of_order: Rule.ORDER,
    generation_twice: Rule.ORDER,
    step_missing: Rule.CHAIN,
    beginning_missing: Rule.CHAIN,
    moved_after_its_end: Rule.MOVE,
    unheard_of_move: Rule.MOVE,
    log_ahead_of_task: Rule.LAST,
    task_without_a_log: Rule.LAST,
    watcher_misses_one: Rule.GAP,
    watcher_sees_one_twice: Rule.REPEATED,
    watcher_sees_one_late: Rule.REPEATED,
    watcher_sees_what_was_not: Rule.UNLOGGED,
    refused_without_reason: Rule.UNEXPECTED,
}


def test_every_rule_has_a_fault_that_breaks_it() -> None:
    assert set(FAULTS.values()) == set(Rule)


@pytest.mark.parametrize(("plant", "rule"), FAULTS.items(), ids=[plant.__name__ for plant in FAULTS])
@settings(deadline=None)
@given(seed=SEEDS)
def test_a_planted_fault_is_found(plant: Planted, rule: Rule, seed: int) -> None:
    history, dump = made(seed)
    plant(random.Random(seed), history, dump)
    assert rule in {violation.rule for violation in check(history, dump).violations}


# ---------------------------------------------------------------- the benefit of the doubt


def test_a_call_without_an_answer_may_have_been_done_or_not() -> None:
    submit = Operation(kind=Kind.SUBMIT, client="c", asked_at=1.0, title="a", request_id="r")
    assert check(History([submit]), Dump()).violations == []
    there = TaskFacts("t/1", "a", "QUEUED", 2)
    log = [Event(1, "t/1", "SUBMIT", "", "SUBMITTED"), Event(2, "t/1", "QUEUE", "SUBMITTED", "QUEUED")]
    assert check(History([submit]), Dump([there], log, head=2)).violations == []


def test_a_lease_that_runs_out_while_the_server_is_away_is_seen_to_when_it_is_back() -> None:
    claim = Event(1, "t/1", "CLAIM", "QUEUED", "RUNNING", 0, "w", 0, 10 * SECOND)
    expire = Event(2, "t/1", "EXPIRE", "RUNNING", "QUEUED", 20 * SECOND)
    submit = Operation(kind=Kind.SUBMIT, client="c", asked_at=1.0, title="a", request_id="r")
    dump = Dump([TaskFacts("t/1", "a", "QUEUED", 2)], [claim, expire], head=2)
    late = [violation.rule for violation in check(History([submit]), dump).violations]
    assert Rule.LATE in late
    away = History([submit], outages=[Outage(5 * SECOND, 12 * SECOND), Outage(12_500_000, 19_500_000)])
    report = check(away, dump)
    assert Rule.LATE not in [violation.rule for violation in report.violations]
    assert report.back_after == [500_000]


def test_the_clocks_of_two_routers_differ_a_little() -> None:
    def claimed(token: int, start: int) -> Operation:
        grant = Grant("t/1", token, "w", start, start + LEASE)
        return Operation(
            kind=Kind.CLAIM, client="c", asked_at=token, ended_at=token, outcome=Outcome.OK, grants=(grant,)
        )

    for earlier, expected in ((2_000, False), (20_000, True)):
        history = History([claimed(1, SECOND), claimed(2, SECOND - earlier)])
        found = {violation.rule for violation in check(history, Dump()).violations}
        assert (Rule.TOKENS in found) is expected
