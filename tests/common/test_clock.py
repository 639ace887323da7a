"""The clock counts the time that passes, and follows the wall clock without ever leaping after it."""

import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_common.clock import LOOK_EVERY, SLEW, Ahead, SharedClock, SystemClock, WallClock
from hopper_testing.clock import ManualClock

MICROSECOND = timedelta(microseconds=1)
MS = timedelta(milliseconds=1)
HOUR = timedelta(hours=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Machine:
    """A machine whose wall clock can be stepped, in nanoseconds."""

    def __init__(self) -> None:
        self.passed = 12_345
        self.wall = 1000 * ((NOON - EPOCH) // MICROSECOND)

    def clock(self) -> SystemClock:
        return SystemClock(wall=lambda: self.wall, passed=lambda: self.passed)

    def run(self, length: timedelta, *, drift: float = 0.0) -> None:
        """Let time pass; the wall clock gains *drift* seconds a second on it."""
        self.passed += 1000 * (length // MICROSECOND)
        self.wall += int(1000 * (length // MICROSECOND) * (1 + drift))

    def step(self, length: timedelta) -> None:
        """Set the wall clock."""
        self.wall += 1000 * (length // MICROSECOND)

    @property
    def time_of_day(self) -> datetime:
        return EPOCH + timedelta(microseconds=self.wall // 1000)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def followed(clock: SystemClock, machine: Machine, length: timedelta, *, drift: float = 0.0) -> datetime:
    """Let time pass with somebody looking at the clock all the while."""
    for _ in range(int(length / timedelta(seconds=LOOK_EVERY))):
        machine.run(timedelta(seconds=LOOK_EVERY), drift=drift)
        clock.now()
    return clock.now()


def test_it_starts_at_the_wall_clocks_time(machine: Machine) -> None:
    clock = machine.clock()
    assert clock.now() == NOON
    machine.run(timedelta(seconds=90))
    assert clock.now() == NOON + timedelta(seconds=90)


@pytest.mark.parametrize("step", [HOUR, -HOUR, timedelta(days=400), -timedelta(days=400)])
def test_a_step_of_the_wall_clock_moves_no_lease(machine: Machine, step: timedelta) -> None:
    clock = machine.clock()
    machine.run(timedelta(seconds=1))
    lease_end = clock.now() + timedelta(seconds=60)
    machine.step(step)
    before = followed(clock, machine, timedelta(seconds=59.9))
    assert before < lease_end
    assert followed(clock, machine, timedelta(seconds=0.2)) > lease_end


def test_the_wall_clock_is_reached_in_the_end_and_not_passed(machine: Machine) -> None:
    clock = machine.clock()
    machine.step(timedelta(milliseconds=200))
    followed(clock, machine, timedelta(seconds=100))
    assert timedelta(milliseconds=99) < clock.behind < timedelta(milliseconds=101)
    followed(clock, machine, timedelta(seconds=101))
    assert abs(clock.behind) <= MICROSECOND
    # Also after nobody has looked for a long time.
    machine.step(-timedelta(milliseconds=3))
    machine.run(timedelta(days=1))
    clock.now()
    machine.run(timedelta(days=1))
    assert clock.now() == machine.time_of_day


def test_a_clock_that_drifts_as_much_as_the_kernel_allows_is_followed(machine: Machine) -> None:
    clock = machine.clock()
    followed(clock, machine, timedelta(seconds=600), drift=500e-6)
    assert abs(clock.behind) <= timedelta(milliseconds=LOOK_EVERY)


STEPS = st.lists(
    st.tuples(
        st.timedeltas(timedelta(0), timedelta(seconds=5)),
        st.timedeltas(timedelta(days=-2), timedelta(days=2)),
    ),
    max_size=50,
)


@given(STEPS)
def test_it_never_runs_backwards_and_never_faster_than_it_says(
    steps: list[tuple[timedelta, timedelta]],
) -> None:
    machine = Machine()
    clock = machine.clock()
    seen = [(machine.passed, clock.now())]
    for length, step in steps:
        machine.run(length)
        seen.append((machine.passed, clock.now()))
        machine.step(step)
        seen.append((machine.passed, clock.now()))
    for (passed, now), (later_passed, later) in pairwise(seen):
        real = timedelta(microseconds=(later_passed - passed) / 1000)
        assert later >= now
        assert abs((later - now) - real) <= real * SLEW + 2 * MICROSECOND


def test_a_restart_takes_the_wall_clock_as_it_is(machine: Machine) -> None:
    machine.clock()
    machine.step(HOUR)
    assert machine.clock().now() == NOON + HOUR


def test_who_is_kept_waiting_between_two_clocks_looks_again(machine: Machine) -> None:
    """Else it would be ahead by that: leases of before a restart would end so much too early."""
    pauses = [timedelta(seconds=2)]

    def wall() -> int:
        while pauses:
            machine.run(pauses.pop())
        return machine.wall

    clock = SystemClock(wall=wall, passed=lambda: machine.passed)
    assert clock.now() == machine.time_of_day
    machine.run(timedelta(seconds=LOOK_EVERY))
    pauses.append(timedelta(seconds=2))
    clock.now()
    machine.run(timedelta(seconds=60))
    assert clock.now() == machine.time_of_day
    pauses.append(timedelta(seconds=2))
    assert clock.behind == timedelta()


def test_it_is_the_machines_clock_unless_told_otherwise() -> None:
    clock = SystemClock()
    before = datetime.now(UTC)
    now = clock.now()
    after = datetime.now(UTC)
    assert now.tzinfo is UTC
    assert before - 10 * MS < now < after + 10 * MS
    assert clock.now() >= now
    assert clock.monotonic() <= clock.monotonic()


def test_threads_see_one_order() -> None:
    """Whoever reads after another has read, reads no less."""
    clock = SystemClock()
    turn = threading.Lock()
    seen: list[datetime] = []

    def look() -> None:
        for _ in range(2000):
            with turn:
                seen.append(clock.now())

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == sorted(seen)


def test_processes_agree_on_a_shared_clock() -> None:
    ours = ManualClock(NOON)
    clock = SharedClock(ours)
    assert clock.now() == NOON
    clock.agree(Ahead.by(timedelta(hours=2)))
    assert clock.now() == NOON + timedelta(hours=2)
    ours.advance(timedelta(seconds=5))
    assert clock.now() == NOON + timedelta(hours=2, seconds=5)


def test_time_passes_also_for_who_was_ahead_of_the_shared_clock() -> None:
    ours = ManualClock(NOON)
    clock = SharedClock(ours)
    assert clock.now() == NOON
    clock.agree(Ahead.by(timedelta(minutes=-5)))
    ours.advance(timedelta(seconds=1))
    assert clock.now() == NOON - timedelta(minutes=5) + timedelta(seconds=1)


@pytest.mark.parametrize("step", [timedelta(hours=1), timedelta(hours=-1)])
def test_a_step_of_the_shared_clock_is_followed_slowly_and_never_backwards(step: timedelta) -> None:
    clock = SharedClock(ManualClock(NOON))
    clock.agree(Ahead.by(timedelta()))
    before = clock.now()
    clock.agree(Ahead.by(step))
    assert abs(clock.now() - before) <= SharedClock.FOLLOW
    assert clock.now() >= before
    for _ in range(100_000):
        clock.agree(Ahead.by(step))
    assert clock.now() == max(NOON + step, before)


def test_what_was_measured_badly_moves_nothing_that_may_be_right() -> None:
    """Else a lease would be as much shorter as the machine was busy when the clocks were compared."""
    clock = SharedClock(ManualClock(NOON))
    clock.agree(Ahead(-MS, 3 * MS))
    assert clock.now() == NOON + MS
    for ahead in (Ahead(timedelta(), 400 * MS), Ahead(-400 * MS, MS), Ahead.by(MS)):
        clock.agree(ahead)
        assert clock.now() == NOON + MS
    clock.agree(Ahead(3 * MS, 400 * MS))
    assert clock.now() == NOON + 3 * MS


def test_the_wall_clock_itself_steps(machine: Machine) -> None:
    """Certificates are looked at by it, however long ago this process began."""
    steady = machine.clock()
    wall = WallClock(steady)
    for step in (HOUR, -2 * HOUR, timedelta(days=400)):
        machine.step(step)
        assert wall.now() == machine.time_of_day
    assert steady.now() == NOON
    assert wall.monotonic() <= steady.monotonic()


def test_a_clock_of_a_test_is_its_own_wall_clock() -> None:
    manual = ManualClock(NOON)
    wall = WallClock(manual)
    manual.advance(HOUR)
    assert (wall.now(), wall.monotonic()) == (NOON + HOUR, HOUR.total_seconds())
