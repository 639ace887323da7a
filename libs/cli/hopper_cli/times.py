"""
Times and lengths of time, as people write and read them. Pure: *now* is an argument, and its zone is the zone
of whoever types.
"""

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from hopper_cli.problems import UsageProblem

_UNITS: Final = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "min": 60, "s": 1, "ms": 0.001}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|min|[wdhms])", re.ASCII)
_CLOCK: Final = re.compile(r"(\d{1,2}):(\d{2})", re.ASCII)
_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_END_OF_DAY: Final = time(23, 59, 59)
_LONGEST: Final = timedelta(days=36_525)


def parse_duration(text: str) -> timedelta:
    """
    The length of `90s`, `10m`, `2h`, `1h30m`, `1.5d` or `2w`; a bare number counts seconds.

    Raises:
        UsageProblem: It is none.
    """
    plain = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", plain, re.ASCII):
        return _bounded(float(plain), text)
    parts = _PART.findall(plain)
    if not parts or _PART.sub("", plain).strip():
        raise UsageProblem(
            f"{text!r} is no length of time", remedy="write it like 90s, 10m, 2h, 1h30m, 1d or 2w"
        )
    return _bounded(sum(float(number) * _UNITS[unit] for number, unit in parts), text)


def _bounded(seconds: float, text: str) -> timedelta:
    if seconds > _LONGEST.total_seconds():
        raise UsageProblem(f"{text!r} is longer than a century")
    return timedelta(seconds=seconds)


def parse_time(text: str, *, now: datetime, end_of_day: bool = True) -> datetime:
    """
    The time that is meant by `2h` or `+2h` (from now), `17:00` (the next one), `today`, `tomorrow`, `friday`,
    `friday 9:00`, `2026-03-01`, `2026-03-01 17:00`, or ISO 8601.

    Args:
        now: Aware; its zone is that of times which name none.
        end_of_day: What a day without a time of day means: its end (due), or its beginning (not before).

    Returns:
        UTC, aware.

    Raises:
        UsageProblem: It is none.
    """
    plain = text.strip().lower()
    found = (
        _from_now(plain, now)
        or _clock(plain, now)
        or _day(plain, now, end_of_day)
        or _iso(text, now, end_of_day)
    )
    if found is None:
        raise UsageProblem(
            f"{text!r} is no time",
            remedy="write it like 2h, 17:00, tomorrow, 'friday 9:00' or 2026-03-01T17:00",
        )
    return found.astimezone(UTC)


def parse_past(text: str, *, now: datetime) -> datetime:
    """
    The time that is meant by `2h` (ago), `17:00` (the last one), `today`, `yesterday`, `friday` (its beginning),
    `2026-03-01`, `2026-03-01 17:00`, or ISO 8601.

    Args:
        now: Aware; its zone is that of times which name none.

    Returns:
        UTC, aware.

    Raises:
        UsageProblem: It is none.
    """
    plain = text.strip().lower()
    if _PART.match(plain) and not _PART.sub("", plain).strip():
        return (now - parse_duration(plain)).astimezone(UTC)
    if plain == "yesterday":
        return datetime.combine(now.date() - timedelta(days=1), time.min, tzinfo=now.tzinfo).astimezone(UTC)
    found = parse_time(text, now=now, end_of_day=False)
    ahead = found > now
    if ahead and _CLOCK.fullmatch(plain):
        return found - timedelta(days=1)
    if ahead and plain != "tomorrow" and _day(plain, now, False) is not None:
        return found - timedelta(days=7)
    return found


def _from_now(text: str, now: datetime) -> datetime | None:
    plain = text.removeprefix("in ").removeprefix("+").strip()
    return now + parse_duration(plain) if _PART.match(plain) and not _PART.sub("", plain).strip() else None


def _clock(text: str, now: datetime) -> datetime | None:
    of_day = _time_of_day(text)
    if of_day is None:
        return None
    today = now.replace(hour=of_day.hour, minute=of_day.minute, second=0, microsecond=0)
    return today if today > now else today + timedelta(days=1)


def _time_of_day(text: str) -> time | None:
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    hour, minute = int(match[1]), int(match[2])
    if hour > 23 or minute > 59:
        raise UsageProblem(f"{text!r} is no time of day", remedy="write it like 17:00")
    return time(hour, minute)


def _day(text: str, now: datetime, end_of_day: bool) -> datetime | None:
    word, _, rest = text.partition(" ")
    day = _named_day(word, now.date())
    if day is None:
        return None
    of_day = _time_of_day(rest.strip()) if rest.strip() else _edge(end_of_day)
    return None if of_day is None else datetime.combine(day, of_day, tzinfo=now.tzinfo)


def _named_day(word: str, today: date) -> date | None:
    if word == "today":
        return today
    if word == "tomorrow":
        return today + timedelta(days=1)
    if len(word) < 3:
        return None
    number = next((number for number, name in enumerate(_WEEKDAYS) if name.startswith(word)), None)
    # A weekday is the next of its name: on a Friday, `friday` is a week away, and `today` is today.
    return None if number is None else today + timedelta(days=(number - today.weekday() - 1) % 7 + 1)


def _edge(end_of_day: bool) -> time:
    return _END_OF_DAY if end_of_day else time.min


def _iso(text: str, now: datetime, end_of_day: bool) -> datetime | None:
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text.strip(), re.ASCII):
            return datetime.combine(date.fromisoformat(text.strip()), _edge(end_of_day), tzinfo=now.tzinfo)
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=now.tzinfo)


def format_duration(length: timedelta) -> str:
    """`0.3 s`, `12 s`, `5 min`, `2 h 5 min`, `3 d 4 h`: two units at most."""
    seconds = abs(length.total_seconds())
    sign = "-" if length < timedelta() else ""
    if seconds < 0.01:
        return f"{sign}{seconds * 1000:.1f} ms" if seconds else "0 s"
    if seconds < 1:
        return f"{sign}{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{sign}{seconds:.1f} s"
    return sign + _two_units(round(seconds))


def _two_units(seconds: int) -> str:
    parts: list[tuple[int, str]] = []
    for name, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count or parts:
            parts.append((count, name))
    return " ".join(f"{count} {name}" for count, name in parts[:2] if count)


def format_age(then: datetime, now: datetime) -> str:
    """How long ago, in one unit: `12s`, `5m`, `3h`, `2d`."""
    seconds = max(0, int((now - then).total_seconds()))
    for name, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{name}"
    return f"{seconds}s"


def format_time(then: datetime, now: datetime) -> str:
    """A time in the zone of *now*, and how far away it is: `Fri 2026-03-06 17:00 (in 2 h)`."""
    local = then.astimezone(now.tzinfo)
    away = then - now
    distance = f"in {format_duration(away)}" if away > timedelta() else f"{format_duration(-away)} ago"
    return f"{local:%a %Y-%m-%d %H:%M} ({distance})"
