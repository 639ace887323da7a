"""
When somebody works: stretches of a week, by the clock on the wall of a time zone. Pure.

    parse ─► WorkingHours ─► violations      what is wrong with them, before anybody relies on them
                   ├───────► open_at         whether that is working time
                   ├───────► opens_in        how long until it is
                   └───────► describe        as `parse` reads it

Only the wall decides. Where clocks are put forward, a stretch in the gap is lost, and one that begins there begins at
the gap's end; where they are put back, the hour that comes twice is worked twice, if it is worked at all.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import groupby
from typing import Final, NamedTuple

from hopper_common.errors import FieldViolation
from hopper_common.time_zones import ZoneUnknown, zone_of

DAY_MINUTES: Final = 1440
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FULL_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAY: Final = timedelta(days=1)
_WEEK: Final = timedelta(days=7)
_NOW: Final = timedelta(0)
_SECOND: Final = timedelta(seconds=1)
_TIMES: Final = re.compile(r"(\d{1,2})(?::(\d\d))?-(\d{1,2})(?::(\d\d))?", re.ASCII)


class Stretch(NamedTuple):
    """Minutes of a day, from the first to before the last; weekdays are 1, Monday, to 7."""

    weekday: int
    from_minute: int
    to_minute: int


@dataclass(frozen=True, slots=True)
class WorkingHours:
    """
    When somebody works; stretches may overlap.

    Attributes:
        time_zone: An IANA name.
    """

    stretches: tuple[Stretch, ...]
    time_zone: str = "UTC"


class HoursInvalid(ValueError):
    """Those are no working hours; the text says what is wrong, for people."""


def violations(hours: WorkingHours, field: str) -> Iterator[FieldViolation]:
    """
    What is wrong with *hours*; nothing may be asked of such.

    Args:
        field: The path of the hours in a request, e.g. `project.working_hours`.
    """
    try:
        zone_of(hours.time_zone)
    except ZoneUnknown as error:
        yield FieldViolation(f"{field}.time_zone", str(error))
    if not hours.stretches:
        yield FieldViolation(
            f"{field}.stretches", "must name a stretch; who always works has no working hours"
        )
    for number, stretch in enumerate(hours.stretches):
        at = f"{field}.stretches[{number}]"
        if not 1 <= stretch.weekday <= len(DAYS):
            yield FieldViolation(f"{at}.weekday", "must be 1, Monday, to 7, Sunday")
        if not 0 <= stretch.from_minute < DAY_MINUTES:
            yield FieldViolation(f"{at}.from_minute", f"must be 0 to {DAY_MINUTES - 1}")
        elif not stretch.from_minute < stretch.to_minute <= DAY_MINUTES:
            problem = f"must be later than from_minute, and {DAY_MINUTES} at most; a night has two stretches"
            yield FieldViolation(f"{at}.to_minute", problem)


# ---------------------------------------------------------------- asked of an instant


def open_at(hours: WorkingHours, instant: datetime) -> bool:
    """Whether *instant* (aware) is working time."""
    week = _week(hours)
    return week.wait(instant.astimezone(week.zone)) == _NOW


def opens_in(hours: WorkingHours, instant: datetime) -> timedelta:
    """How long after *instant* (aware) the next working time begins; 0 within one."""
    week = _week(hours)
    at = start = instant.astimezone(UTC)
    while True:  # there is a stretch in every week
        wall = at.astimezone(week.zone)
        wait = week.wait(wall)
        if not wait:
            return at - start
        until = _steady_until(week.zone, at, wall)
        if at + wait < until:
            return at + wait - start
        at = until


class _Week:
    """Stretches as times since Monday 00:00, in order, no two of which touch."""

    def __init__(self, hours: WorkingHours) -> None:
        self.zone = zone_of(hours.time_zone)
        spans = _merged(
            (DAY_MINUTES * (day - 1) + begin, DAY_MINUTES * (day - 1) + end)
            for day, begin, end in hours.stretches
        )
        self._begins = [timedelta(minutes=begin) for begin, _ in spans]
        self._ends = [timedelta(minutes=end) for _, end in spans]

    def wait(self, wall: datetime) -> timedelta:
        """How long until it is working time, if the clock on the wall goes on as it does."""
        since = timedelta(wall.weekday(), wall.second, wall.microsecond, 0, wall.minute, wall.hour)
        following = bisect_right(self._begins, since)
        if following and since < self._ends[following - 1]:
            return _NOW
        if following < len(self._begins):
            return self._begins[following] - since
        return self._begins[0] + _WEEK - since


_week = lru_cache(1024)(_Week)


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def _steady_until(zone: tzinfo, at: datetime, wall: datetime) -> datetime:
    """A time up to a day after *at* before which no clock is put forward or back: when one is, if one is."""
    until, offset = at + _DAY, wall.utcoffset()
    if until.astimezone(zone).utcoffset() == offset:
        return until
    before, until = at.replace(microsecond=0), until.replace(microsecond=0)  # it is done at a whole second
    while until - before > _SECOND:
        middle = before + (until - before) // _SECOND // 2 * _SECOND
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            until = middle
    return until


# ---------------------------------------------------------------- as people write them


def parse(text: str, *, time_zone: str = "UTC") -> WorkingHours:
    """
    The hours of `mon-fri 09:00-17:00 Europe/Berlin`.

    Several stand behind each other: `mon-fri 09:00-12:00 13:00-17:00, sat sun 10-14 Asia/Tokyo`. Weeks and days go
    round: `fri-mon 22:00-06:00`. Whether the time zone exists, `violations` says.

    Args:
        time_zone: Where *text* names none.

    Raises:
        HoursInvalid: It is none of that.
    """
    parts = [part.split() for part in re.split("[,;]", text)]
    if parts[-1] and _is_zone(parts[-1][-1]):
        time_zone = parts[-1].pop()
    stretches = [stretch for part in parts for stretch in _stretches(part)]
    week = _merged((DAY_MINUTES * (s.weekday - 1) + s.from_minute, _end_of(s)) for s in stretches)
    return WorkingHours(tuple(day for begin, end in week for day in _by_day(begin, end)), time_zone)


def describe(hours: WorkingHours) -> str:
    """The hours as `parse` reads them."""
    times: dict[int, list[str]] = {}
    for day, begin, end in sorted(hours.stretches):
        times.setdefault(day, []).append(f"{_clock(begin)}-{_clock(end)}")
    # Days in a row that have the same hours are told together.
    rows = groupby(enumerate(times.items()), key=lambda item: (item[1][0] - item[0], item[1][1]))
    parts = [f"{_days_of([day for _, (day, _) in row])} {' '.join(same)}" for (_, same), row in rows]
    return f"{', '.join(parts)} {hours.time_zone}"


def _is_zone(word: str) -> bool:
    return _days(word) is None and not _TIMES.fullmatch(word)


def _stretches(words: Sequence[str]) -> Iterator[Stretch]:
    """Those of one part: days, then times."""
    found = [(_days(word), _TIMES.fullmatch(word)) for word in words]
    for word, (days, times) in zip(words, found, strict=True):
        if days is None and times is None:
            raise HoursInvalid(f"{word!r} is neither days nor hours")
    if not any(days for days, _ in found) or not any(times for _, times in found):
        raise HoursInvalid("every part has to say days and hours")
    for days, _ in found:
        for day in days or ():
            for _, times in found:
                if times is not None:
                    yield from _stretch(day, times)


def _stretch(day: int, times: re.Match[str]) -> Iterator[Stretch]:
    begin, end = (_minute(times, hour) for hour in (1, 3))
    if begin in (end, DAY_MINUTES):
        raise HoursInvalid(f"{times[0]} is no time to work in")
    if begin < end:
        yield Stretch(day, begin, end)
        return
    yield Stretch(day, begin, DAY_MINUTES)
    if end:
        yield Stretch(day % len(DAYS) + 1, 0, end)


def _minute(times: re.Match[str], group: int) -> int:
    hour, minute = int(times[group]), int(times[group + 1] or 0)
    if minute >= 60 or 60 * hour + minute > DAY_MINUTES:
        raise HoursInvalid(f"{times[0]}: there is no such time of day")
    return 60 * hour + minute


def _days(word: str) -> list[int] | None:
    """The weekdays that a word such as `mon`, `Monday` or `fri-mon` names; None: none."""
    named = [_day(part) for part in word.lower().split("-")]
    if len(named) > 2 or not all(named):
        return None
    first, last = named[0], named[-1]
    return [(day - 1) % len(DAYS) + 1 for day in range(first, (last if last >= first else last + 7) + 1)]


def _day(word: str) -> int:
    """A weekday from 1; 0: it is none."""
    return next((n for n, names in enumerate(zip(DAYS, _FULL_DAYS, strict=True), 1) if word in names), 0)


def _end_of(stretch: Stretch) -> int:
    return DAY_MINUTES * (stretch.weekday - 1) + stretch.to_minute


def _by_day(begin: int, end: int) -> Iterator[Stretch]:
    """Minutes of a week, day by day."""
    while begin < end:
        day = begin // DAY_MINUTES
        stop = min(end, DAY_MINUTES * (day + 1))
        yield Stretch(day + 1, begin - DAY_MINUTES * day, stop - DAY_MINUTES * day)
        begin = stop


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _days_of(days: Sequence[int]) -> str:
    first, last = DAYS[days[0] - 1], DAYS[days[-1] - 1]
    return first if first == last else f"{first}-{last}"
