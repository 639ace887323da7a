from datetime import UTC, datetime, timedelta, timezone

import pytest

from hopper_cli.problems import UsageProblem
from hopper_cli.times import format_age, format_duration, format_time, parse_duration, parse_past, parse_time

# A Friday, two hours east of Greenwich.
NOW = datetime(2026, 3, 6, 15, 30, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("90s", 90),
        ("10m", 600),
        ("10min", 600),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1.5d", 129_600),
        ("2w", 1_209_600),
        ("250ms", 0.25),
        (" 5S ", 5),
    ],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    """A length is a number of units, or several of them; a bare number counts seconds."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "soon", "2 fortnights", "h", "-5s", "1h foo", "999999w", "٣s"])
def test_what_is_no_length_is_refused(text: str) -> None:
    """What cannot be read is refused, not guessed."""
    with pytest.raises(UsageProblem):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", "2026-03-06T17:30:00+02:00"),
        ("+90m", "2026-03-06T17:00:00+02:00"),
        ("in 1d", "2026-03-07T15:30:00+02:00"),
        ("17:00", "2026-03-06T17:00:00+02:00"),
        ("9:05", "2026-03-07T09:05:00+02:00"),
        ("today", "2026-03-06T23:59:59+02:00"),
        ("tomorrow", "2026-03-07T23:59:59+02:00"),
        ("tomorrow 8:00", "2026-03-07T08:00:00+02:00"),
        ("monday", "2026-03-09T23:59:59+02:00"),
        ("Fri 17:00", "2026-03-13T17:00:00+02:00"),
        ("2026-05-01", "2026-05-01T23:59:59+02:00"),
        ("2026-05-01 10:00", "2026-05-01T10:00:00+02:00"),
        ("2026-05-01T10:00:00Z", "2026-05-01T10:00:00+00:00"),
    ],
)
def test_times(text: str, expected: str) -> None:
    """A time without a zone is in that of whoever types; a day without a time is due at its end."""
    found = parse_time(text, now=NOW)
    assert found == datetime.fromisoformat(expected)
    assert found.tzinfo is UTC


def test_a_day_begins_where_not_before_is_meant() -> None:
    """`--start-after tomorrow` means its first moment."""
    assert parse_time("tomorrow", now=NOW, end_of_day=False) == datetime(2026, 3, 7, tzinfo=NOW.tzinfo)


@pytest.mark.parametrize("text", ["", "soon", "25:00", "12:60", "2026-02-30", "tomorrow noon", "mo"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """What cannot be read is refused with examples of what can."""
    with pytest.raises(UsageProblem) as caught:
        parse_time(text, now=NOW)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0004, "0.4 ms"),
        (0.25, "250 ms"),
        (2.34, "2.3 s"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (7200, "2 h"),
        (90_061, "1 d 1 h"),
        (86_405, "1 d"),
        (-60, "-1 min"),
    ],
)
def test_lengths_are_shown_in_two_units(seconds: float, text: str) -> None:
    """People read two units, and no more digits than they need."""
    assert format_duration(timedelta(seconds=seconds)) == text


def test_ages_are_shown_in_one_unit() -> None:
    """A column of ages is read at a glance; what comes from the future is new."""
    ages = [(5, "5s"), (65, "1m"), (7300, "2h"), (200_000, "2d"), (-3, "0s")]
    assert [format_age(NOW - timedelta(seconds=seconds), NOW) for seconds, _ in ages] == [
        text for _, text in ages
    ]


def test_times_are_shown_in_the_readers_zone() -> None:
    """With the distance, because that is what people want to know."""
    assert format_time(NOW.astimezone(UTC) + timedelta(hours=2), NOW) == "Fri 2026-03-06 17:30 (in 2 h)"
    assert format_time(NOW - timedelta(minutes=3), NOW).endswith("(3 min ago)")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", "2026-03-04 08:30"),
        ("1h30m", "2026-03-04 09:00"),
        ("9:00", "2026-03-04 09:00"),
        ("17:00", "2026-03-03 17:00"),
        ("today", "2026-03-04 00:00"),
        ("yesterday", "2026-03-03 00:00"),
        ("monday", "2026-03-02 00:00"),
        ("wednesday", "2026-03-04 00:00"),
        ("friday", "2026-02-27 00:00"),
        ("friday 9:00", "2026-02-27 09:00"),
        ("2026-03-01", "2026-03-01 00:00"),
        ("2026-03-01 17:00", "2026-03-01 17:00"),
    ],
)
def test_times_that_have_been(text: str, expected: str) -> None:
    """It is a Wednesday, half past ten."""
    now = datetime(2026, 3, 4, 10, 30, tzinfo=UTC)
    assert parse_past(text, now=now) == datetime.fromisoformat(expected).replace(tzinfo=UTC)
