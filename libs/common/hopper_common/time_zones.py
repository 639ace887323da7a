"""Time zones by the names that people write. Pure."""

from __future__ import annotations

from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError


class ZoneUnknown(ValueError):
    """There is no time zone of that name; the text says so, for people."""


def zone_of(name: str) -> tzinfo:
    """
    The time zone of that IANA name; empty is UTC.

    Raises:
        ZoneUnknown.
    """
    if name in ("", "UTC"):
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ZoneUnknown("is no time zone known here: write its IANA name, e.g. Europe/Berlin") from None
