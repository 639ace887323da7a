"""When schedules come: calendars, clocks that are put forward and back, what was missed, jitter."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hopper_common.errors import InvalidArgument
from hopper_common.time_zones import ZoneUnknown
from hopper_router.model import Clocks, TaskSpec
from hopper_router.schedules import (
    LATE,
    MOST_COUNTED,
    CatchUp,
    CronInvalid,
    Definition,
    Overlap,
    Schedule,
    check,
    coming,
    following,
    parse_cron,
    plan,
    task_spec,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
SPEC = TaskSpec("work")


def local_times(expression: str, zone: str, first: datetime, count: int) -> list[str]:
    """What a clock on that zone's walls shows at the next occurrences, with its offset."""
    cron = parse_cron(expression, zone)
    begin = first.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    return [f"{time.astimezone(ZoneInfo(zone)):%d %H:%M%z}"[:-2] for time in islice(cron.after(begin), count)]


def a_schedule(cron: str = "0 * * * *", *, next_time: datetime = NOON, **fields: Any) -> Schedule:
    """A schedule that waits for *next_time*."""
    definition = Definition("instances/global", SPEC, cron, **fields)
    found = following("nightly", definition, next_time - timedelta(seconds=1))
    assert found is not None
    return Schedule("nightly", definition, NOON, NOON, next_time=found.time, due_time=found.due)


# ---------------------------------------------------------------- calendars


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("*/15 * * * *", ["01 12:15", "01 12:30", "01 12:45"]),
        ("0 3 * * 1-5", ["02 03:00", "05 03:00", "06 03:00"]),
        ("0 3 * * mon-fri", ["02 03:00", "05 03:00", "06 03:00"]),
        ("0 0 13 * fri", ["02 00:00", "09 00:00", "13 00:00"]),  # either suffices
        ("0 0 L * *", ["31 00:00", "28 00:00", "31 00:00"]),
        ("0 9 * * 1#1", ["05 09:00", "02 09:00", "02 09:00"]),
        ("@hourly", ["01 13:00", "01 14:00", "01 15:00"]),
        ("@daily", ["02 00:00", "03 00:00", "04 00:00"]),
        ("@Weekly", ["04 00:00", "11 00:00", "18 00:00"]),
        ("@monthly", ["01 00:00", "01 00:00", "01 00:00"]),
        ("0 0 * * 7", ["04 00:00", "11 00:00", "18 00:00"]),
    ],
)
def test_expressions(expression: str, expected: list[str]) -> None:
    assert [time[:8] for time in local_times(expression, "UTC", datetime(2026, 1, 1, 12), 3)] == expected


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "five fields"),
        ("* * * *", "five fields"),
        ("0 * * * * *", "five fields"),  # with seconds
        ("60 * * * *", "bad minute"),
        ("* 24 * * *", "bad hour"),
        ("* * 0 * *", "bad day-of-month"),
        ("* * * 13 *", "bad month"),
        ("* * * * 8", "bad day-of-week"),
        ("*/0 * * * *", "bad minute"),
        ("5-1 * * * *", "bad minute"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("@reboot", "there is no @reboot"),
        ("* * * * monday", "bad day-of-week"),
    ],
)
def test_what_is_no_expression_is_refused_with_a_reason(expression: str, says: str) -> None:
    with pytest.raises(CronInvalid, match=says):
        parse_cron(expression, "UTC")


@given(st.text(alphabet="0123456789*/-,#LW@ ABFMONTUESJ²\x00", max_size=30))
@settings(max_examples=500, deadline=None)
def test_whatever_is_typed_is_an_expression_or_refused(text: str) -> None:
    """Nothing else comes out of the library; and what it takes can be walked."""
    try:
        cron = parse_cron(text, "UTC")
    except CronInvalid:
        return
    for one, other in pairwise(islice(cron.after(NOON), 3)):
        assert one < other


@pytest.mark.parametrize(
    "zone", ["Europe/Nowhere", "../../etc/passwd", "/etc/passwd", "Europe", "\x00", "B" * 64]
)
def test_an_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(ZoneUnknown, match="IANA name"):
        parse_cron("0 3 * * *", zone)


def test_the_calendar_ends_before_dates_do() -> None:
    assert list(parse_cron("* * * * *", "UTC").after(datetime(9999, 12, 31, tzinfo=UTC))) == []


# ---------------------------------------------------------------- clocks put forward and back


@pytest.mark.parametrize(
    ("zone", "spring", "autumn", "gap", "winter", "summer"),
    [
        ("Europe/Berlin", datetime(2026, 3, 28, 12), datetime(2026, 10, 24, 12), 2, "+01", "+02"),
        ("America/New_York", datetime(2026, 3, 7, 12), datetime(2026, 10, 31, 12), 2, "-05", "-04"),
    ],
)
def test_a_daily_time_comes_once_a_day_whatever_clocks_do(
    zone: str, spring: datetime, autumn: datetime, gap: int, winter: str, summer: str
) -> None:
    """Left out by the clock: at the gap's end. Shown twice: the first time."""
    day, next_day = spring + DAY, spring + 2 * DAY
    assert local_times(f"30 {gap} * * *", zone, spring, 2) == [
        f"{day:%d} 03:00{summer}",
        f"{next_day:%d} 0{gap}:30{summer}",
    ]
    # Several that fall into the gap are one; and one with what was meant for its end anyway.
    assert local_times(f"*/20 {gap} * * *", zone, spring, 2) == [
        f"{day:%d} 03:00{summer}",
        f"{next_day:%d} 02:00{summer}",
    ]
    assert local_times(f"0 {gap},3 * * *", zone, spring, 2) == [
        f"{day:%d} 03:00{summer}",
        f"{next_day:%d} 02:00{summer}",
    ]
    twice = 2 if zone.startswith("Europe") else 1
    day, next_day = autumn + DAY, autumn + 2 * DAY
    assert local_times(f"30 {twice} * * *", zone, autumn, 2) == [
        f"{day:%d} 0{twice}:30{summer}",
        f"{next_day:%d} 0{twice}:30{winter}",
    ]
    assert local_times(f"*/30 {twice} * * *", zone, autumn, 3) == [
        f"{day:%d} 0{twice}:00{summer}",
        f"{day:%d} 0{twice}:30{summer}",
        f"{next_day:%d} 0{twice}:00{winter}",
    ]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo"])
@pytest.mark.parametrize("expression", ["30 * * * *", "30 0-23 * * *", "30 */1 * * *"])
def test_an_hourly_time_follows_the_hours_that_pass(zone: str, expression: str) -> None:
    """Neither a gap nor a repetition on the wall is one in time."""
    times = list(islice(parse_cron(expression, zone).after(NOON), 366 * 24))
    steps = {later - earlier for earlier, later in pairwise(times)}
    half_hours = {HOUR / 2, HOUR * 1.5} if zone == "Australia/Lord_Howe" else set()
    assert steps <= {HOUR} | half_hours


ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Havana",
    "Africa/Cairo",
    "America/Santiago",
)
MINUTES = ("0", "30", "*/20", "59", "7,45", "*")
HOURS = ("*", "2", "0-3", "1,2,3", "23", "*/6", "0")
DAYS = ("* * *", "* * 0", "28-31 * *", "* 3,10 *", "1 * 1")
expressions = st.builds(lambda *parts: " ".join(parts), *map(st.sampled_from, (MINUTES, HOURS, DAYS)))
# Around the days on which clocks are changed.
moments = st.one_of(
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)),
    st.builds(
        lambda day, minutes: day + timedelta(minutes=minutes),
        st.sampled_from([datetime(2026, 3, 8), datetime(2026, 3, 29), datetime(2026, 4, 5), datetime(2026, 4, 24),
                         datetime(2026, 9, 6), datetime(2026, 10, 4), datetime(2026, 10, 25), datetime(2026, 11, 1)]),
        st.integers(-1500, 3000),
    ),
).map(lambda time: time.replace(tzinfo=UTC))  # fmt: skip


@given(expressions, st.sampled_from(ZONES), moments)
@settings(max_examples=150, deadline=None)
def test_every_day_that_matches_has_each_of_its_times_once(
    expression: str, zone: str, begin: datetime
) -> None:
    """Compared with a plain walk through every minute of two days."""
    cron = parse_cron(expression, zone)
    begin = begin.replace(second=0, microsecond=0)
    end = begin + 2 * DAY
    expected = list(_by_brute_force(expression, ZoneInfo(zone), begin, end))
    found = []
    for time in cron.after(begin):
        if time > end:
            break
        found.append(time)
    assert found == expected


def _by_brute_force(expression: str, zone: ZoneInfo, begin: datetime, end: datetime) -> Iterator[datetime]:
    """Minute by minute: what the wall shows now, and what it has not shown since the minute before."""
    by_wall = expression.split()[1] != "*"
    matching = set()  # of local times, whatever day and zone
    for meant in parse_cron(expression, "UTC").after(begin - DAY):
        if meant > end + DAY:
            break
        matching.add(meant.replace(tzinfo=None))

    time = begin
    while time < end:
        before, time = time.astimezone(zone).replace(tzinfo=None), time + MINUTE
        now = time.astimezone(zone)
        naive = now.replace(tzinfo=None)
        if not by_wall:
            if naive in matching:
                yield time
        elif now.fold == 0 or naive > before + MINUTE:
            skipped = [before + MINUTE * step for step in range(1, (naive - before) // MINUTE)]
            if not matching.isdisjoint([*skipped, naive]):
                yield time


@given(expressions, st.sampled_from(ZONES), moments, st.integers(0, 40), st.integers(1, 50))
@settings(max_examples=300, deadline=None)
def test_looking_back_finds_what_looking_ahead_did(
    expression: str, zone: str, since: datetime, hours: int, most: int
) -> None:
    cron = parse_cron(expression, zone)
    since = since.replace(microsecond=0)
    until = since + hours * HOUR
    ahead = []
    for time in cron.after(since - timedelta(seconds=1)):
        if time > until:
            break
        ahead.append(time)
    assert cron.last_until(until, since=since, most=most) == ahead[-most:]


# ---------------------------------------------------------------- definitions


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"cron": "bad"}, "cron"),
        ({"time_zone": "Mars"}, "time_zone"),
        ({"start_time": NOON, "end_time": NOON}, "end_time"),
        ({"overlap": Overlap.LIMIT}, "max_open"),
        ({"max_open": 3}, "max_open"),
        ({"instance": ""}, "instance"),
        ({"spec": TaskSpec("")}, "spec.title"),
        ({"spec": TaskSpec("x", labels={str(n): "" for n in range(63)})}, "spec.labels"),
        ({"spec": TaskSpec("x", clocks=Clocks(start_after=NOON))}, "spec.clocks.start_after"),
        ({"spec": TaskSpec("x", clocks=Clocks(start_by=NOON))}, "spec.clocks.start_by"),
        ({"spec": TaskSpec("x", clocks=Clocks(finish_by=NOON))}, "spec.clocks.finish_by"),
    ],
)
def test_a_definition_that_can_never_work_is_refused(fields: dict[str, Any], wrong: str) -> None:
    good = Definition("instances/global", SPEC, "0 3 * * *")
    check(good)
    with pytest.raises(InvalidArgument) as caught:
        check(replace(good, **fields))
    assert [violation.field for violation in caught.value.violations] == [f"schedule.{wrong}"]


def test_it_comes_from_its_start_until_before_its_end() -> None:
    definition = Definition("instances/global", SPEC, "0 * * * *", start_time=NOON, end_time=NOON + 2 * HOUR)
    assert list(coming(definition, NOON - DAY)) == [NOON, NOON + HOUR]
    assert list(coming(definition, NOON)) == [NOON + HOUR]
    assert following("a", definition, NOON + HOUR) is None


def test_a_task_says_which_occurrence_it_is_and_has_its_own_deadlines() -> None:
    schedule = a_schedule(start_within=HOUR, finish_within=2 * HOUR)
    spec = task_spec(schedule, NOON, NOON + MINUTE)
    assert dict(spec.labels) == {
        "hopper.schedule": "nightly",
        "hopper.scheduled_time": "2026-01-01T12:00:00Z",
    }
    assert (spec.clocks.start_by, spec.clocks.finish_by) == (NOON + MINUTE + HOUR, NOON + MINUTE + 2 * HOUR)
    assert task_spec(a_schedule(), NOON, NOON).clocks == Clocks()


# ---------------------------------------------------------------- what to do now


def test_nothing_is_done_before_its_time() -> None:
    schedule = a_schedule()
    assert plan(schedule, NOON - timedelta(microseconds=1), most=10) is None
    assert plan(replace(schedule, paused=True), NOON, most=10) is None
    assert plan(replace(schedule, next_time=None, due_time=None), NOON, most=10) is None


def test_what_is_due_is_run_and_the_next_one_waited_for() -> None:
    found = plan(a_schedule(), NOON, most=10)
    assert found is not None
    assert (found.run, found.missed) == ((NOON,), 0)
    assert found.next is not None
    assert (found.next.time, found.next.due) == (NOON + HOUR, NOON + HOUR)


@pytest.mark.parametrize("catch_up", CatchUp)
def test_up_to_a_minute_late_is_on_time(catch_up: CatchUp) -> None:
    found = plan(a_schedule(catch_up=catch_up), NOON + LATE, most=10)
    assert found is not None
    assert (found.run, found.missed) == ((NOON,), 0)


@pytest.mark.parametrize(
    ("catch_up", "hours_run", "missed"),
    [(CatchUp.NONE, [], 5), (CatchUp.ONE, [4], 4), (CatchUp.ALL, [0, 1, 2, 3, 4], 0)],
)
def test_what_was_missed_is_made_up_for_as_it_says(
    catch_up: CatchUp, hours_run: list[int], missed: int
) -> None:
    found = plan(a_schedule(catch_up=catch_up), NOON + 4.5 * HOUR, most=10)
    assert found is not None
    assert (found.run, found.missed) == (tuple(NOON + hour * HOUR for hour in hours_run), missed)
    assert found.next is not None
    assert found.next.time == NOON + 5 * HOUR


def test_one_that_is_on_time_stands_for_all_that_were_missed() -> None:
    found = plan(a_schedule(catch_up=CatchUp.ONE), NOON + 4 * HOUR, most=10)
    assert found is not None
    assert (found.run, found.missed) == ((NOON + 4 * HOUR,), 4)


def test_all_is_bounded_by_the_last_ones() -> None:
    schedule = a_schedule(catch_up=CatchUp.ALL, max_catch_up=3)
    found = plan(schedule, NOON + 9.5 * HOUR, most=10)
    assert found is not None
    assert (found.run, found.missed) == (tuple(NOON + hour * HOUR for hour in (7, 8, 9)), 7)


def test_a_year_away_costs_no_more_than_a_day() -> None:
    schedule = a_schedule("* * * * *", catch_up=CatchUp.ALL, max_catch_up=1000)
    back = NOON + 365 * DAY + MINUTE / 2
    found = plan(schedule, back, most=2000)
    assert found is not None
    assert found.run[-1] == back - MINUTE / 2
    assert found.missed <= MOST_COUNTED
    assert found.next is not None
    assert found.next.time == back + MINUTE / 2


def test_what_ended_meanwhile_is_caught_up_and_over() -> None:
    schedule = a_schedule(catch_up=CatchUp.ALL, end_time=NOON + 2 * HOUR)
    found = plan(schedule, NOON + DAY, most=10)
    assert found is not None
    assert (found.run, found.next) == ((NOON, NOON + HOUR), None)


@given(
    st.sampled_from(["* * * * *", "*/7 * * * *", "0 * * * *", "30 2 * * *"]),
    st.sampled_from(CatchUp),
    st.integers(1, 30),
    st.integers(1, 7),
    st.integers(0, 3 * 86400),
    st.sampled_from([timedelta(), MINUTE, HOUR, DAY]),
)
@settings(max_examples=300, deadline=None)
def test_in_small_steps_the_same_is_run(
    cron: str, catch_up: CatchUp, bound: int, most: int, seconds: int, jitter: timedelta
) -> None:
    """However few a step may carry out, each occurrence is run once, in order, or counted as missed."""
    schedule = a_schedule(
        cron, catch_up=catch_up, max_catch_up=bound, jitter=jitter, time_zone="Europe/Berlin"
    )
    assert schedule.due_time is not None
    now = schedule.due_time + timedelta(seconds=seconds)
    whole = plan(schedule, now, most=10_000)
    assert whole is not None
    ran: list[datetime] = []
    missed = 0
    step = plan(schedule, now, most=most)
    while step is not None:
        assert len(step.run) <= most
        ran += step.run
        missed += step.missed
        due = step.next
        schedule = replace(schedule, next_time=due.time if due else None, due_time=due.due if due else None)
        step = plan(schedule, now, most=most)
    assert (tuple(ran), missed, schedule.next_time) == (
        whole.run,
        whole.missed,
        whole.next and whole.next.time,
    )
    assert schedule.due_time is not None
    assert schedule.due_time > now


# ---------------------------------------------------------------- jitter


def test_jitter_is_the_same_for_everyone_and_spread() -> None:
    definition = Definition("instances/global", SPEC, "0 * * * *", jitter=30 * MINUTE)
    found = [following(f"s{number}", definition, NOON) for number in range(200)]
    offsets = [due.due - due.time for due in found if due]
    assert offsets == [
        due.due - due.time for due in (following(f"s{n}", definition, NOON) for n in range(200)) if due
    ]
    assert all(timedelta() <= offset < 30 * MINUTE for offset in offsets)
    assert min(offsets) < 3 * MINUTE
    assert max(offsets) > 27 * MINUTE
    assert len(set(offsets)) > 190


def test_jitter_never_reaches_the_next_occurrence() -> None:
    definition = Definition("instances/global", SPEC, "* * * * *", jitter=DAY)
    after = NOON
    for _ in range(100):
        due = following("busy", definition, after)
        assert due is not None
        assert due.time <= due.due < due.time + MINUTE
        after = due.time
