"""A task's life against a second table, written by hand; claims, clocks and retries to the microsecond."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hopper_router import transitions
from hopper_router.errors import StaleToken, TaskClaimed, TaskNotReady, TaskWrongState
from hopper_router.model import (
    Claim,
    Clocks,
    Failure,
    Hold,
    InputRequest,
    Progress,
    RetryPolicy,
    Task,
    TaskSpec,
    TaskState,
    Wait,
    WaitReason,
)
from hopper_router.transitions import Event

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)

# Every event, and what it makes of each state it may happen in; written from ARCHITECTURE.md and task.proto.
EXPECTED: dict[str, dict[str, str]] = {
    "SUBMIT": {},
    "OFFER": {},
    "ACCEPT": {"SUBMITTED": "SUBMITTED"},
    "DECIDE": {"SUBMITTED": "SUBMITTED", "QUEUED": "SUBMITTED", "INPUT_REQUIRED": "SUBMITTED"},
    "QUEUE": {"SUBMITTED": "QUEUED"},
    "REJECT": {"SUBMITTED": "REJECTED"},
    "READY": {"SUBMITTED": "SUBMITTED", "QUEUED": "QUEUED", "DELEGATED": "DELEGATED"},
    "BLOCK": {"SUBMITTED": "SUBMITTED", "QUEUED": "QUEUED"},
    "UNBLOCK": {"SUBMITTED": "SUBMITTED", "QUEUED": "QUEUED"},
    "UPDATE": {"SUBMITTED": "SUBMITTED", "QUEUED": "QUEUED"},
    "CLAIM": {"QUEUED": "RUNNING"},
    "PROGRESS": {"RUNNING": "RUNNING"},
    "ASK": {"RUNNING": "INPUT_REQUIRED", "SUBMITTED": "INPUT_REQUIRED"},
    "ANSWER": {"INPUT_REQUIRED": "RUNNING"},
    "COMPLETE": {"RUNNING": "SUCCEEDED"},
    "RETRY": {"RUNNING": "QUEUED"},
    "FAIL": {"RUNNING": "FAILED"},
    "EXPIRE": {"RUNNING": "QUEUED"},
    "RELEASE": {"RUNNING": "QUEUED"},
    "DELEGATE": {"SUBMITTED": "DELEGATED", "QUEUED": "DELEGATED"},
    "RETURN": {"DELEGATED": "SUBMITTED"},
    "CHILDREN_DONE": {"DELEGATED": "SUCCEEDED"},
    "CHILD_FAILED": {"DELEGATED": "FAILED"},
    "CANCEL": {
        "SUBMITTED": "CANCELLED",
        "QUEUED": "CANCELLED",
        "RUNNING": "CANCELLED",
        "INPUT_REQUIRED": "CANCELLED",
        "DELEGATED": "CANCELLED",
    },
    "TIME_OUT": {
        "SUBMITTED": "FAILED",
        "QUEUED": "FAILED",
        "RUNNING": "FAILED",
        "INPUT_REQUIRED": "FAILED",
        "DELEGATED": "FAILED",
    },
    "REPLAY": {"FAILED": "SUBMITTED", "REJECTED": "SUBMITTED"},
}
PAIRS = [(state, event) for state in TaskState for event in Event]
FINAL = {"SUCCEEDED", "FAILED", "REJECTED", "CANCELLED"}


def task(state: TaskState = TaskState.QUEUED, **changes: Any) -> Task:
    """A task in a state, with what belongs to that state."""
    claimed = state in (TaskState.RUNNING, TaskState.INPUT_REQUIRED)
    claim = Claim("ann", 7, MINUTE, NOW + MINUTE if state is TaskState.RUNNING else None, NOW)
    made = Task(
        name="instances/global/tasks/t",
        instance="instances/global",
        spec=TaskSpec(title="sort the post"),
        state=state,
        create_time=NOW,
        update_time=NOW,
        ready_time=NOW,
        claim=claim if claimed else None,
        token=7 if claimed else 0,
        attempt=1 if claimed else 0,
        input=InputRequest("which?") if state is TaskState.INPUT_REQUIRED else None,
        finish_time=NOW if state.final else None,
    )
    return replace(made, **changes)


def with_spec(base: Task, **changes: Any) -> Task:
    return replace(base, spec=replace(base.spec, **changes))


# ---------------------------------------------------------------- the table


def test_the_written_table_names_every_event() -> None:
    """A new event must be thought about here too."""
    assert set(EXPECTED) == {event.value for event in Event}


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda value: value.value)
def test_every_pair_of_state_and_event(state: TaskState, event: Event) -> None:
    """What the written table has leads where it says; what it has not is refused and changes nothing."""
    before = task(state)
    copy = replace(before)
    later = NOW + SECOND
    wanted = EXPECTED[event.value].get(state.value)
    if wanted is None:
        with pytest.raises(TaskWrongState) as caught:
            transitions.move(before, event, later)
        assert dict(caught.value.metadata) == {
            "task": before.name,
            "state": state.value,
            "event": event.value,
        }
    else:
        after = transitions.move(before, event, later)
        assert after.state.value == wanted
        assert after.update_time == later
        assert after.finish_time == (later if wanted in FINAL else None)
    assert before == copy


def test_the_only_way_out_of_a_final_state_is_to_be_replayed() -> None:
    assert {state.value for state in TaskState if state.final} == FINAL
    assert {pair for pair in transitions.TABLE if pair[0].final} == {
        (TaskState.FAILED, Event.REPLAY),
        (TaskState.REJECTED, Event.REPLAY),
    }


def test_every_state_can_be_reached_and_every_open_one_left() -> None:
    reached = set(transitions.TABLE.values()) | {TaskState.SUBMITTED}
    assert reached == set(TaskState)
    left = {
        state
        for (state, event), to in transitions.TABLE.items()
        if to is not state and event is not Event.REPLAY
    }
    assert left == {state for state in TaskState if not state.final}


# ---------------------------------------------------------------- claims


def test_a_claim_counts_and_grows_the_token() -> None:
    before = task(token=41, attempt=2, progress=Progress(0.5))
    after = transitions.claim(before, "bob", MINUTE, NOW)
    assert (after.state, after.token, after.attempt) == (TaskState.RUNNING, 42, 3)
    assert after.claim == Claim("bob", 42, MINUTE, NOW + MINUTE, NOW)
    assert after.progress is None


@pytest.mark.parametrize("state", [TaskState.RUNNING, TaskState.INPUT_REQUIRED])
def test_the_loser_learns_who_holds_it(state: TaskState) -> None:
    before = task(state)
    with pytest.raises(TaskClaimed) as caught:
        transitions.claim(before, "bob", MINUTE, NOW)
    until = (NOW + MINUTE).isoformat().replace("+00:00", "Z") if state is TaskState.RUNNING else ""
    assert dict(caught.value.metadata) == {
        "task": before.name,
        "holder": "ann",
        "lease_expire_time": until,
    }


@pytest.mark.parametrize(
    ("changes", "wait"),
    [
        ({"blockers": 1}, "DEPENDENCY"),
        ({"hold": Hold("ann")}, "PERSON"),
        ({"ready_time": NOW + TICK}, "SCHEDULE"),
        ({"ready_time": NOW + TICK, "failures": 1}, "BACKOFF"),
        ({"blockers": 1, "hold": Hold(), "ready_time": NOW + TICK}, "DEPENDENCY"),
        ({"hold": Hold(), "ready_time": NOW + TICK}, "PERSON"),
    ],
)
def test_what_waits_cannot_be_claimed(changes: dict[str, Any], wait: str) -> None:
    before = task(**changes)
    assert not transitions.claimable(before, NOW)
    with pytest.raises(TaskNotReady) as caught:
        transitions.claim(before, "bob", MINUTE, NOW)
    assert dict(caught.value.metadata) == {"task": before.name, "wait": wait}


def test_a_scheduled_task_can_be_claimed_from_its_microsecond_on() -> None:
    before = task(ready_time=NOW, update_time=NOW - MINUTE)
    assert not transitions.claimable(before, NOW - TICK)
    assert transitions.claimable(before, NOW)


def test_a_clock_that_is_behind_keeps_nobody_from_what_is_ready() -> None:
    before = task(ready_time=NOW)
    claimed = transitions.claim(before, "bob", MINUTE, NOW - TICK)
    assert claimed.claim is not None
    assert (claimed.claim.start, claimed.claim.lease_end) == (NOW, NOW + MINUTE)


@pytest.mark.parametrize(
    ("asked", "heartbeat", "granted"),
    [
        (MINUTE, None, MINUTE),
        (2 * HOUR, None, HOUR),
        (TICK, None, SECOND),
        (MINUTE, 10 * SECOND, 10 * SECOND),
        (5 * SECOND, 10 * SECOND, 5 * SECOND),
        (HOUR, HOUR, HOUR),
    ],
)
def test_leases_are_cut_to_the_heartbeat_clock(
    asked: timedelta, heartbeat: timedelta | None, granted: timedelta
) -> None:
    before = with_spec(task(), clocks=Clocks(heartbeat=heartbeat))
    claimed = transitions.claim(before, "ann", asked, NOW).claim
    assert claimed is not None
    assert (claimed.lease, claimed.lease_end) == (granted, NOW + granted)


def test_a_renewal_is_cut_to_the_heartbeat_clock() -> None:
    running = with_spec(task(TaskState.RUNNING), clocks=Clocks(heartbeat=90 * SECOND))
    renewed = transitions.renew(running, 7, HOUR, NOW).claim
    assert renewed is not None
    assert renewed.lease_end == NOW + 90 * SECOND


@given(
    asked=st.timedeltas(min_value=timedelta(0), max_value=2 * HOUR),
    after=st.timedeltas(min_value=timedelta(0), max_value=MINUTE - TICK),
)
def test_a_renewal_never_shortens(asked: timedelta, after: timedelta) -> None:
    running = task(TaskState.RUNNING)
    renewed = transitions.renew(running, 7, asked, NOW + after)
    assert renewed.claim is not None
    assert renewed.claim.lease_end is not None
    assert renewed.claim.lease_end >= NOW + MINUTE
    assert renewed.claim.lease_end == max(
        NOW + MINUTE, NOW + after + transitions.bounded_lease(running.spec, asked)
    )
    assert (renewed.token, renewed.claim.token, renewed.claim.start) == (7, 7, NOW)
    assert renewed.state is TaskState.RUNNING


def test_while_a_question_is_open_there_is_no_lease_to_renew() -> None:
    asking = task(TaskState.INPUT_REQUIRED)
    assert transitions.renew(asking, 7, HOUR, NOW + 100 * HOUR) == asking


def _uses(base: Task, token: int, now: datetime) -> list[Any]:
    """Every call that needs the live claim."""
    return [
        lambda: transitions.held(base, token, now),
        lambda: transitions.renew(base, token, MINUTE, now),
        lambda: transitions.progress(base, token, Progress(0.5), None, now),
        lambda: transitions.ask(base, token, InputRequest("?"), now),
        lambda: transitions.complete(base, token, b"", now),
        lambda: transitions.fail(base, token, Failure("X"), now),
        lambda: transitions.release(base, token, now),
    ]


@pytest.mark.parametrize("number", range(7))
def test_a_claim_is_lost_at_its_last_microsecond(number: int) -> None:
    """One microsecond before the end everything works; at the end nothing does, though nobody has noticed yet."""
    running = task(TaskState.RUNNING)
    _uses(running, 7, NOW + MINUTE - TICK)[number]()
    for late in (NOW + MINUTE, NOW + HOUR):
        with pytest.raises(StaleToken) as caught:
            _uses(running, 7, late)[number]()
        assert dict(caught.value.metadata) == {"task": running.name, "state": "RUNNING"}


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("token", [0, 6, 8])
def test_only_the_live_token_counts(number: int, token: int) -> None:
    running = task(TaskState.RUNNING)
    with pytest.raises(StaleToken) as caught:
        _uses(running, token, NOW)[number]()
    assert dict(caught.value.metadata) == {"task": running.name, "state": "RUNNING", "holder": "ann"}


@pytest.mark.parametrize(
    "state", [s for s in TaskState if s not in (TaskState.RUNNING, TaskState.INPUT_REQUIRED)]
)
@pytest.mark.parametrize("number", range(7))
def test_a_claim_does_not_outlive_its_task(state: TaskState, number: int) -> None:
    """Also where the row still remembers who had it."""
    ended = task(state, claim=Claim("ann", 7, MINUTE, NOW + MINUTE, NOW), token=7)
    with pytest.raises(StaleToken) as caught:
        _uses(ended, 7, NOW)[number]()
    assert dict(caught.value.metadata) == {"task": ended.name, "state": state.value}


def test_ask_stops_the_lease_and_answer_starts_it_afresh() -> None:
    running = task(TaskState.RUNNING)
    asking = transitions.ask(running, 7, InputRequest("red or blue?", "cleo"), NOW + SECOND)
    assert asking.state is TaskState.INPUT_REQUIRED
    assert asking.claim is not None
    assert asking.claim.lease_end is None
    assert transitions.wake_time(asking) is None
    assert transitions.on_time(asking, NOW + 1000 * HOUR) is None
    answered = transitions.answer(asking, "blue", "cleo", NOW + 5 * HOUR)
    assert answered.state is TaskState.RUNNING
    assert answered.claim == Claim("ann", 7, MINUTE, NOW + 5 * HOUR + MINUTE, NOW)
    assert answered.input == InputRequest("red or blue?", "cleo", "blue", "cleo")
    assert answered.token == 7


# ---------------------------------------------------------------- ends of attempts


def test_completing_forgets_earlier_failures() -> None:
    running = task(TaskState.RUNNING, failures=1, failure=Failure("NO_NETWORK"), progress=Progress(0.9))
    done = transitions.complete(running, 7, b"42", NOW)
    assert (done.state, done.result, done.failure, done.progress) == (TaskState.SUCCEEDED, b"42", None, None)
    assert done.finish_time == NOW


@pytest.mark.parametrize(
    ("retry", "waits"),
    [
        (RetryPolicy(max_attempts=6), [1, 2, 4, 8, 16]),
        (RetryPolicy(max_attempts=5, first_backoff=10 * SECOND, factor=3.0), [10, 30, 90, 270]),
        (RetryPolicy(max_attempts=5, first_backoff=MINUTE, factor=1.0), [60, 60, 60, 60]),
        (
            RetryPolicy(max_attempts=5, first_backoff=SECOND, factor=10.0, max_backoff=50 * SECOND),
            [1, 10, 50, 50],
        ),
        (RetryPolicy(max_attempts=3, first_backoff=timedelta(0)), [0, 0]),
        (RetryPolicy(max_attempts=3, first_backoff=HOUR, max_backoff=MINUTE), [60, 60]),
    ],
)
def test_back_offs(retry: RetryPolicy, waits: list[int]) -> None:
    """Each failed attempt waits as the policy says; the last one allowed ends the task."""
    now = NOW
    current = with_spec(task(), retry=retry)
    for number, wait in enumerate(waits, start=1):
        running = transitions.claim(current, "ann", MINUTE, now)
        current, event = transitions.fail(running, running.token, Failure("BUSY", "later"), now)
        assert event is Event.RETRY
        assert (current.state, current.claim, current.failures) == (TaskState.QUEUED, None, number)
        assert current.failure == Failure("BUSY", "later")
        assert current.ready_time == now + wait * SECOND
        now = current.ready_time
    running = transitions.claim(current, "ann", MINUTE, now)
    ended, event = transitions.fail(running, running.token, Failure("BUSY"), now)
    assert (event, ended.state) == (Event.FAIL, TaskState.FAILED)
    assert ended.failures == retry.max_attempts


def test_a_back_off_that_would_overflow_is_the_longest() -> None:
    retry = RetryPolicy(max_attempts=1000, factor=100.0, first_backoff=timedelta(days=7))
    assert retry.backoff(999) == HOUR
    assert RetryPolicy(first_backoff=timedelta(0), factor=100.0).backoff(500) in (timedelta(0), HOUR)


@given(
    retry=st.builds(
        RetryPolicy,
        max_attempts=st.integers(1, 1000),
        first_backoff=st.timedeltas(timedelta(0), timedelta(days=7)),
        factor=st.floats(1, 100),
        max_backoff=st.timedeltas(timedelta(0), timedelta(days=30)),
    ),
    failures=st.integers(1, 1000),
)
def test_back_offs_are_bounded_and_never_shrink(retry: RetryPolicy, failures: int) -> None:
    first, second = retry.backoff(failures), retry.backoff(failures + 1)
    assert timedelta(0) <= first <= second <= retry.max_backoff


@pytest.mark.parametrize("failure", [Failure("BUSY", permanent=True), Failure("NO_SUCH_FILE")])
def test_what_cannot_help_is_not_tried_again(failure: Failure) -> None:
    retry = RetryPolicy(max_attempts=10, non_retryable_reasons=frozenset({"NO_SUCH_FILE"}))
    running = with_spec(task(TaskState.RUNNING), retry=retry)
    ended, event = transitions.fail(running, 7, failure, NOW)
    assert (ended.state, event, ended.failure) == (TaskState.FAILED, Event.FAIL, failure)


def test_a_single_attempt_is_the_last() -> None:
    running = with_spec(task(TaskState.RUNNING), retry=RetryPolicy(max_attempts=1))
    assert transitions.fail(running, 7, Failure("BUSY"), NOW)[0].state is TaskState.FAILED


def test_a_released_attempt_does_not_count() -> None:
    """However often it is given back, its attempts are not used up; the token grows all the same."""
    current = with_spec(task(), retry=RetryPolicy(max_attempts=1))
    for turn in range(1, 6):
        running = transitions.claim(current, "ann", MINUTE, NOW + turn * SECOND)
        assert (running.attempt, running.token) == (1, turn)
        current = transitions.release(running, turn, NOW + turn * SECOND)
        assert (current.state, current.attempt, current.failures, current.claim) == (
            TaskState.QUEUED,
            0,
            0,
            None,
        )
        assert transitions.claimable(current, NOW + turn * SECOND)


# ---------------------------------------------------------------- clocks


@pytest.mark.parametrize("state", [s for s in TaskState if not s.final])
def test_finish_by_fails_whatever_is_open(state: TaskState) -> None:
    """`Clocks.finish_by`: FAILED with reason DEADLINE when open by then, placed or not."""
    due = with_spec(task(state), clocks=Clocks(finish_by=NOW + 30 * SECOND))
    assert transitions.on_time(due, NOW + 30 * SECOND - TICK) is None
    timed = transitions.on_time(due, NOW + 30 * SECOND)
    assert timed is not None
    after, event = timed
    assert (after.state, event) == (TaskState.FAILED, Event.TIME_OUT)
    assert after.failure is not None
    assert after.failure.reason == "DEADLINE"


@pytest.mark.parametrize(
    ("state", "to", "reason"),
    [
        (TaskState.SUBMITTED, TaskState.REJECTED, "NO_ELIGIBLE_EXECUTOR"),
        (TaskState.QUEUED, TaskState.FAILED, "START_TIMEOUT"),
    ],
)
def test_start_by(state: TaskState, to: TaskState, reason: str) -> None:
    """`Clocks.start_by`: REJECTED when not placed, FAILED when placed but not claimed, by then."""
    due = with_spec(task(state), clocks=Clocks(start_by=NOW + MINUTE))
    assert transitions.on_time(due, NOW + MINUTE - TICK) is None
    timed = transitions.on_time(due, NOW + MINUTE)
    assert timed is not None
    assert timed[0].state is to
    assert timed[0].failure is not None
    assert timed[0].failure.reason == reason
    assert transitions.TABLE[state, timed[1]] is to


def test_start_by_is_met_by_the_first_claim() -> None:
    """A task that was started in time may be tried again after it."""
    due = with_spec(task(), clocks=Clocks(start_by=NOW + MINUTE))
    running = transitions.claim(due, "ann", MINUTE, NOW)
    assert transitions.wake_time(running) == NOW + MINUTE  # the lease, not the start
    again, _ = transitions.fail(running, running.token, Failure("BUSY"), NOW + SECOND)
    assert transitions.on_time(again, NOW + HOUR) is None


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_run_for_is_a_failed_attempt_however_alive_the_worker_is(failures: int) -> None:
    running = with_spec(task(TaskState.RUNNING, failures=failures), clocks=Clocks(run_for=10 * MINUTE))
    renewed = transitions.renew(running, 7, HOUR, NOW + SECOND)
    assert transitions.on_time(renewed, NOW + 10 * MINUTE - TICK) is None
    timed = transitions.on_time(renewed, NOW + 10 * MINUTE)
    assert timed is not None
    after, event = timed
    last = failures == 2
    assert (after.state, event) == (
        (TaskState.FAILED, Event.FAIL) if last else (TaskState.QUEUED, Event.RETRY)
    )
    assert after.failure is not None
    assert after.failure.reason == "RUN_TIMEOUT"
    if not last:
        assert after.ready_time == NOW + 10 * MINUTE + (failures + 1) * SECOND


def test_an_expired_lease_frees_the_task_at_once() -> None:
    running = task(TaskState.RUNNING)
    assert transitions.on_time(running, NOW + MINUTE - TICK) is None
    timed = transitions.on_time(running, NOW + MINUTE)
    assert timed is not None
    after, event = timed
    assert (after.state, event, after.claim, after.failures) == (TaskState.QUEUED, Event.EXPIRE, None, 1)
    assert after.failure is not None
    assert after.failure.reason == "LEASE_EXPIRED"
    assert transitions.claimable(after, NOW + MINUTE)
    assert transitions.claim(after, "bob", MINUTE, NOW + MINUTE).token == 8


def test_workers_that_die_use_attempts_up() -> None:
    """A task that kills its workers does not go round for ever."""
    current, now = task(), NOW
    for number in range(1, 4):
        running = transitions.claim(current, "ann", MINUTE, now)
        now += MINUTE
        timed = transitions.on_time(running, now)
        assert timed is not None
        current = timed[0]
        assert current.failures == number
    assert current.state is TaskState.FAILED
    assert current.failure is not None
    assert current.failure.reason == "LEASE_EXPIRED"


@given(
    state=st.sampled_from([s for s in TaskState if not s.final]),
    clocks=st.builds(
        Clocks,
        start_by=st.none() | st.integers(-5, 120).map(lambda s: NOW + s * SECOND),
        finish_by=st.none() | st.integers(-5, 120).map(lambda s: NOW + s * SECOND),
        run_for=st.none() | st.integers(1, 120).map(lambda s: s * SECOND),
    ),
    attempt=st.integers(0, 2),
)
def test_a_clock_is_due_exactly_when_its_wake_time_has_come(
    state: TaskState, clocks: Clocks, attempt: int
) -> None:
    """The sweep looks for `wake_time` and acts by `on_time`: if the two differed it would spin, or sleep for ever."""
    base = with_spec(task(state), clocks=clocks)
    if base.claim is None:
        base = replace(base, attempt=attempt)
    wake = transitions.wake_time(base)
    if wake is None:
        assert transitions.on_time(base, NOW + 1000 * HOUR) is None
        return
    assert transitions.on_time(base, wake - TICK) is None
    assert transitions.on_time(base, wake) is not None


# ---------------------------------------------------------------- changing what is asked for


def test_an_update_reschedules_and_changes_the_etag() -> None:
    before = task()
    changed = transitions.update(
        before, replace(before.spec, clocks=Clocks(start_after=NOW + HOUR)), NOW + SECOND
    )
    assert (changed.ready_time, changed.etag) == (NOW + HOUR, "s2")
    back = transitions.update(changed, replace(changed.spec, clocks=Clocks()), NOW + SECOND)
    assert (back.ready_time, back.etag) == (NOW, "s3")


def test_an_update_does_not_cut_a_back_off_short() -> None:
    failed = task(failures=1, attempt=1, failure=Failure("BUSY"), ready_time=NOW + MINUTE)
    changed = transitions.update(failed, replace(failed.spec, priority=90), NOW + SECOND)
    assert changed.ready_time == NOW + MINUTE
    later = transitions.update(
        changed, replace(changed.spec, clocks=Clocks(start_after=NOW + HOUR)), NOW + SECOND
    )
    assert later.ready_time == NOW + HOUR


def test_deciding_takes_a_queued_task_out_of_its_queue() -> None:
    queued = task(project="projects/a", queue_time=NOW)
    wait = Wait(WaitReason.NO_ELIGIBLE_EXECUTOR)
    decided = transitions.decide(queued, "decisions/d", NOW, wait=wait)
    assert (decided.state, decided.project, decided.queue_time) == (TaskState.SUBMITTED, "", None)
    placed = transitions.queue(decided, "projects/b", NOW + SECOND)
    assert (placed.project, placed.queue_time, placed.wait) == ("projects/b", NOW + SECOND, None)


# ---------------------------------------------------------------- random lives


def _apply(current: Task, step: str, now: datetime, token: int) -> Task:
    """One thing that may happen, as the engine would call it."""
    failure = Failure("BUSY")
    steps: dict[str, Any] = {
        "decide": lambda: transitions.decide(current, "decisions/d", now),
        "queue": lambda: transitions.queue(current, "projects/a", now),
        "reject": lambda: transitions.reject(current, failure, now),
        "accept": lambda: transitions.accept(current, now),
        "block": lambda: transitions.block(current, Hold("ann"), now),
        "unblock": lambda: transitions.unblock(current, now),
        "update": lambda: transitions.update(current, current.spec, now),
        "claim": lambda: transitions.claim(current, "ann", 30 * SECOND, now),
        "renew": lambda: transitions.renew(current, token, MINUTE, now),
        "progress": lambda: transitions.progress(current, token, Progress(0.1), None, now),
        "ask": lambda: transitions.ask(current, token, InputRequest("?"), now),
        "answer": lambda: transitions.answer(current, "yes", "cleo", now),
        "complete": lambda: transitions.complete(current, token, b"", now),
        "fail": lambda: transitions.fail(current, token, failure, now)[0],
        "release": lambda: transitions.release(current, token, now),
        "delegate": lambda: transitions.delegate(current, now),
        "returned": lambda: transitions.returned(current, now),
        "children_done": lambda: transitions.children_done(current, b"", now),
        "child_failed": lambda: transitions.child_failed(current, failure, now),
        "cancel": lambda: transitions.cancel(current, "", now),
        "clocks": lambda: (transitions.on_time(current, now) or (current, None))[0],
    }
    made: Task = steps[step]()
    return made


STEPS = (
    "decide",
    "queue",
    "reject",
    "accept",
    "block",
    "unblock",
    "update",
    "claim",
    "renew",
    "progress",
    "ask",
    "answer",
    "complete",
    "fail",
    "release",
    "delegate",
    "returned",
    "children_done",
    "child_failed",
    "cancel",
    "clocks",
)


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 40), st.sampled_from([0, 0, 0, 1])), max_size=40
    ),
    clocks=st.builds(
        Clocks,
        start_by=st.none() | st.just(NOW + MINUTE),
        finish_by=st.none() | st.just(NOW + 5 * MINUTE),
        run_for=st.none() | st.just(MINUTE),
        heartbeat=st.none() | st.just(10 * SECOND),
    ),
)
def test_a_random_life_stays_in_the_table(steps: list[tuple[str, int, int]], clocks: Clocks) -> None:
    """Whatever is tried, in whatever order: only moves of the table, tokens that grow, ends that stay."""
    current, now = with_spec(task(TaskState.SUBMITTED), clocks=clocks), NOW
    reachable = {(state, to) for event in EXPECTED.values() for state, to in event.items()}
    for step, seconds, stale in steps:
        now += seconds * SECOND
        before = current
        try:
            current = _apply(before, step, now, before.token - stale)
        except (TaskWrongState, TaskClaimed, TaskNotReady, StaleToken):
            continue
        if current is before or current.state is before.state:
            assert current.state is before.state
        else:
            assert (before.state.value, current.state.value) in reachable
        assert current.token >= before.token
        assert current.token == before.token + (step == "claim")
        assert not before.state.final or current == before
        claimed = current.state in (TaskState.RUNNING, TaskState.INPUT_REQUIRED)
        assert not claimed or (current.claim is not None and current.claim.token == current.token)
        assert current.attempt >= 0
        assert current.failures <= current.spec.retry.max_attempts
