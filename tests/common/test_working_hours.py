"""Working hours: as written, checked, and asked of an instant, also where clocks are put forward and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hopper_common.working_hours import (
    DAY_MINUTES,
    HoursInvalid,
    Stretch,
    WorkingHours,
    describe,
    open_at,
    opens_in,
    parse,
    violations,
)

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo", "Australia/Lord_Howe", "Pacific/Apia")
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
OFFICE = parse("mon-fri 09:00-17:00 Europe/Berlin")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# ---------------------------------------------------------------- asked of an instant


@pytest.mark.parametrize(
    ("instant", "wait"),
    [
        ("2026-06-05T06:59:59.999999", timedelta(microseconds=1)),
        ("2026-06-05T07:00:00", timedelta(0)),
        ("2026-06-05T14:59:59.999999", timedelta(0)),
        ("2026-06-05T15:00:00", timedelta(days=2, hours=16)),  # a Friday
        ("2026-12-04T16:00:00", timedelta(days=2, hours=16)),
        ("2026-03-27T16:00:00", timedelta(days=2, hours=15)),  # the clocks are put forward that week end
        ("2026-10-23T15:00:00", timedelta(days=2, hours=17)),  # and back
    ],
)
def test_an_office_opens(instant: str, wait: timedelta) -> None:
    assert opens_in(OFFICE, utc(instant)) == wait
    assert open_at(OFFICE, utc(instant)) == (wait == timedelta(0))


def test_hours_within_the_gap_are_lost_and_those_over_it_begin_at_its_end() -> None:
    """In Berlin, 02:00 is followed by 03:00 on 29 March 2026."""
    lost = parse("sun 02:10-02:50 Europe/Berlin")
    assert opens_in(lost, utc("2026-03-29T00:00")) == timedelta(days=7, minutes=10)
    over = parse("sun 02:30-04:00 Europe/Berlin")
    assert not open_at(over, utc("2026-03-29T00:59"))
    assert opens_in(over, utc("2026-03-29T00:30")) == 30 * MINUTE
    assert open_at(over, utc("2026-03-29T01:00"))
    assert not open_at(over, utc("2026-03-29T02:00"))


def test_the_hour_that_comes_twice_is_worked_twice() -> None:
    """In Berlin, 03:00 is followed by 02:00 on 25 October 2026."""
    night = parse("sun 02:00-02:30 Europe/Berlin")
    assert [open_at(night, utc("2026-10-25T00:00") + n * 30 * MINUTE) for n in range(-1, 4)] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert opens_in(night, utc("2026-10-25T00:30")) == 30 * MINUTE
    assert opens_in(night, utc("2026-10-25T01:30")) == timedelta(days=7) - 30 * MINUTE


def test_a_night_goes_over_the_end_of_the_week() -> None:
    nights = parse("fri-sun 22:00-06:00")
    assert not open_at(nights, utc("2026-06-05T21:59"))
    assert open_at(nights, utc("2026-06-08T00:00"))  # a Monday
    assert open_at(nights, utc("2026-06-08T05:59"))
    assert opens_in(nights, utc("2026-06-08T06:00")) == timedelta(days=4, hours=16)


def test_the_zone_of_the_instant_does_not_matter() -> None:
    before = utc("2026-03-28T20:00")
    assert opens_in(OFFICE, before.astimezone(ZoneInfo("Europe/Berlin"))) == opens_in(OFFICE, before)


HOURS = st.builds(
    lambda spans, zone: WorkingHours(
        tuple(Stretch(day, min(a, b), max(a, b) + 1) for day, a, b in spans), zone
    ),
    st.lists(
        st.tuples(st.integers(1, 7), st.integers(0, DAY_MINUTES - 1), st.integers(0, DAY_MINUTES - 1)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(ZONES),
)
INSTANTS = st.builds(
    lambda day, minute, second: day + timedelta(minutes=minute, seconds=second),
    # Around the changes of the clocks, and a day that Samoa left out.
    st.sampled_from(
        [
            utc(day)
            for day in ("2026-03-06", "2026-03-27", "2026-04-03", "2026-10-02", "2026-10-24", "2011-12-29")
        ]
    ),
    st.integers(0, 4 * DAY_MINUTES),
    st.integers(0, 59),
)


def on_the_wall(hours: WorkingHours, instant: datetime) -> bool:
    wall = instant.astimezone(ZoneInfo(hours.time_zone))
    minute = 60 * wall.hour + wall.minute
    return any(
        s.weekday == wall.isoweekday() and s.from_minute <= minute < s.to_minute for s in hours.stretches
    )


@settings(max_examples=200, deadline=None)
@given(HOURS, INSTANTS)
@example(parse("sun 02:10-02:50 Europe/Berlin"), utc("2026-03-28T12:00"))
@example(parse("fri 00:00-24:00 Pacific/Apia"), utc("2011-12-30T09:59"))
def test_waiting_is_as_a_walk_from_minute_to_minute_has_it(hours: WorkingHours, instant: datetime) -> None:
    wait = opens_in(hours, instant)
    assert open_at(hours, instant) == on_the_wall(hours, instant) == (wait == timedelta(0))
    at = instant
    while not on_the_wall(hours, at):
        at = at.replace(second=0) + MINUTE
    assert wait == at - instant


# ---------------------------------------------------------------- as people write them


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("mon-fri 09:00-17:00 Europe/Berlin", "mon-fri 09:00-17:00 Europe/Berlin"),
        ("Monday 9-12 13:30-17", "mon 09:00-12:00 13:30-17:00 UTC"),
        (
            "mon wed 9-17; sat 10-14 Asia/Tokyo",
            "mon 09:00-17:00, wed 09:00-17:00, sat 10:00-14:00 Asia/Tokyo",
        ),
        ("sat-mon 00:00-24:00", "mon 00:00-24:00, sat-sun 00:00-24:00 UTC"),
        ("sun 22:00-06:00 EST5EDT", "mon 00:00-06:00, sun 22:00-24:00 EST5EDT"),
        ("fri 20:00-00:00", "fri 20:00-24:00 UTC"),
        ("tue 9-12 11-13 13-14, tue 8-9", "tue 08:00-14:00 UTC"),
    ],
)
def test_hours_are_read_and_told(text: str, plain: str) -> None:
    assert describe(parse(text)) == plain
    assert parse(plain) == parse(text)


def test_where_no_zone_is_named_it_is_the_callers() -> None:
    assert parse("mon 9-17", time_zone="Asia/Tokyo").time_zone == "Asia/Tokyo"
    assert parse("mon 9-17 UTC", time_zone="Asia/Tokyo").time_zone == "UTC"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "days and hours"),
        ("Europe/Berlin", "days and hours"),
        ("mon-fri Europe/Berlin", "days and hours"),
        ("09:00-17:00", "days and hours"),
        ("mon 9-17,", "days and hours"),
        ("mon-fri noon 9-17", "'noon' is neither"),
        ("mon-wed-fri 9-17", "'mon-wed-fri' is neither"),
        ("mon 09:00-09:00", "no time to work in"),
        ("mon 24:00-06:00", "no time to work in"),
        ("mon 9-25", "no such time of day"),
        ("mon 9:60-17:00", "no such time of day"),
    ],
)
def test_what_are_no_hours_is_said(text: str, complaint: str) -> None:
    with pytest.raises(HoursInvalid, match=complaint):
        parse(text)


@settings(max_examples=100, deadline=None)
@given(HOURS, INSTANTS)
def test_what_is_told_means_the_same(hours: WorkingHours, instant: datetime) -> None:
    again = parse(describe(hours))
    assert opens_in(again, instant) == opens_in(hours, instant)
    assert not list(violations(again, "hours"))


# ---------------------------------------------------------------- checked


@pytest.mark.parametrize(
    ("hours", "fields"),
    [
        (WorkingHours((Stretch(1, 540, 1020),), "Mars/Base"), ["h.time_zone"]),
        (WorkingHours((Stretch(1, 540, 1020),), "../../etc/passwd"), ["h.time_zone"]),
        (WorkingHours(()), ["h.stretches"]),
        (WorkingHours((Stretch(1, 540, 1020), Stretch(2, 540, 540))), ["h.stretches[1].to_minute"]),
        (WorkingHours((Stretch(0, 0, 1440), Stretch(8, -1, 1441))), ["h.stretches[0].weekday",
         "h.stretches[1].weekday", "h.stretches[1].from_minute"]),
        (WorkingHours((Stretch(1, 0, 1441),)), ["h.stretches[0].to_minute"]),
        (OFFICE, []),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(hours: WorkingHours, fields: list[str]) -> None:
    assert [violation.field for violation in violations(hours, "h")] == fields
