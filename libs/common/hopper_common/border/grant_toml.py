"""
A peer's policy as its owner writes it: TOML, read into the values of `grants`, every error with its place.

The whole form, with the defaults::

    level = "trusted"            # the least level under which it holds: trusted | verified
    sensitive = ["private"]      # labels that cross only to and from verified peers, by a rule that names them

    [[rule]]
    name = "reviews"             # required, unique: rulings cite it
    effect = "allow"             # required: allow | deny. A deny rule that fits wins over every allow rule
    direction = "in"             # required: in (from the peer) | out (to it) | both
    capabilities = ["docs.*"]    # exact names, or all below one; the work must need nothing else. Of a deny rule:
                                 # any of these is refused
    labels = ["work"]            # tags and labels, as key or key=value. Default: all that are not sensitive.
                                 # Of a deny rule: any of these is refused
    max_priority = 100           # 0 to 100
    max_bytes = "1 MiB"          # of a task with everything in it; a number of bytes, or with KiB, MiB, GiB
    in_flight = 100              # how many that crossed by this rule may be open at once
    rate = "60/hour"             # default: as many as come; N/second, N/minute, N/hour, N/day
    transit = "none"             # work of third Hoppers: none | any | their install ids
    exclusive = false            # true: also work that must run once at most
    redact = []                  # of out and both: what does not leave. description, payload, requester,
                                 # estimated_effort, and names as tags.urgent, labels.customer, labels.hr.*, labels.*;
                                 # feedback: how well the peer did it is not told
    ask = false                  # true: a person here accepts each
    expires = 2027-01-01         # default: never; a date, or a date and time with its offset

An unknown key does not load: a misspelt limit would be no limit.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

from hopper_common.border.grants import Direction, Effect, Grant, Rate, Rule
from hopper_common.border.levels import Level
from hopper_common.errors import FieldViolation, PolicyInvalid

MOST_BYTES: Final = 65536
MOST_RULES: Final = 500
_MOST_NAMES: Final = 200

_NAME: Final = re.compile(r"[^\s.*]+(\.[^\s.*]+)*(\.\*)?", re.ASCII)
_FIELD: Final = re.compile(
    r"description|payload|requester|estimated_effort|feedback|(tags|labels)(\.[^\s.*]+)*\.(\*|[^\s.*]+)",
    re.ASCII,
)
_INSTALL_ID: Final = re.compile(r"[a-z2-7]{32}")
_SIZE: Final = re.compile(r"(\d{1,12}) ?(KiB|MiB|GiB)?")
_RATE: Final = re.compile(r"(\d{1,9}) ?/ ?(second|minute|hour|day)")
_UNITS: Final = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_STRETCHES: Final = {
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
_LEVELS: Final = {"trusted": Level.TRUSTED, "verified": Level.VERIFIED}
_WAYS: Final = {
    "in": frozenset({Direction.IN}),
    "out": frozenset({Direction.OUT}),
    "both": frozenset(Direction),
}


class _Wrong(Exception):
    """A value is not what its key takes; the text says what would be."""


@dataclass(slots=True)
class _Errors:
    """What is wrong so far, each with its place."""

    found: list[FieldViolation] = field(default_factory=list)

    def add(self, place: str, what: str) -> None:
        self.found.append(FieldViolation("policy", f"{place}: {what}"))


def read_grant(text: str) -> Grant:
    """
    Read a policy.

    Args:
        text: TOML, at most 64 KiB.

    Raises:
        PolicyInvalid: Names every error and its place.
    """
    errors = _Errors()
    table = _parse(text, errors)
    level = _read(table, "level", _one_of(_LEVELS), Level.TRUSTED, "level", errors)
    sensitive = _read(table, "sensitive", _names, (), "sensitive", errors)
    rules = _read_rules(table.get("rule", []), _lines_of_rules(text), errors)
    _no_others(table, {"level", "sensitive", "rule"}, "the policy", errors)
    if errors.found:
        raise PolicyInvalid.of(errors.found)
    return Grant(rules=tuple(rules), level=level, sensitive=sensitive)


def _parse(text: str, errors: _Errors) -> dict[str, Any]:
    if len(text.encode()) > MOST_BYTES:
        errors.add("the policy", f"has more than {MOST_BYTES} bytes")
        return {}
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        errors.add("the policy", f"is no TOML: {error}")
    except RecursionError:
        errors.add("the policy", "is nested too deep")
    return {}


def _lines_of_rules(text: str) -> list[int]:
    """The lines on which rules begin, in order: TOML's reader does not tell."""
    return [number for number, line in enumerate(text.splitlines(), 1) if line.strip().startswith("[[rule]]")]


def _read_rules(listed: Any, lines: list[int], errors: _Errors) -> list[Rule]:
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        errors.add("rule", "must be tables: begin each with [[rule]]")
        return []
    if len(listed) > MOST_RULES:
        errors.add("rule", f"there are {len(listed)}, and at most {MOST_RULES} may be")
        return []
    rules: list[Rule] = []
    taken: set[str] = set()
    for index, entry in enumerate(listed):
        line = f", line {lines[index]}" if len(lines) == len(listed) else ""
        rule = _read_rule(entry, f"rule {index + 1}{line}", errors)
        if rule is None:
            continue
        if rule.name in taken:
            errors.add(f"rule {index + 1}{line}", f"another rule has the name {rule.name!r}")
        taken.add(rule.name)
        rules.append(rule)
    return rules


def _read_rule(entry: Mapping[str, Any], place: str, errors: _Errors) -> Rule | None:
    before = len(errors.found)
    for required in ("name", "effect", "direction"):
        if required not in entry:
            errors.add(place, f"lacks {required}")
    read = {
        key: _read(entry, key, read, None, f"{place}, {key}", errors)
        for key, read in _KEYS.items()
        if key in entry
    }
    _no_others(entry, _KEYS.keys(), place, errors)
    if entry.get("effect") == "deny":
        limits = sorted(entry.keys() & _ONLY_OF_ALLOW)
        if limits:
            errors.add(place, f"a deny rule has no {', '.join(limits)}: it refuses whatever it names")
        if not (entry.get("capabilities") or entry.get("labels")):
            errors.add(place, "a deny rule names capabilities or labels")
    if entry.get("redact") and entry.get("direction") == "in":
        errors.add(f"{place}, redact", "is for what leaves: the direction must be out or both")
    if len(errors.found) > before:
        return None
    read["directions"] = read.pop("direction")
    return Rule(**read)


def _read(
    table: Mapping[str, Any], key: str, read: Callable[[Any], Any], default: Any, place: str, errors: _Errors
) -> Any:
    if key not in table:
        return default
    try:
        return read(table[key])
    except _Wrong as wrong:
        errors.add(place, str(wrong))
        return default


def _no_others(table: Mapping[str, Any], known: Any, place: str, errors: _Errors) -> None:
    for key in table:
        if key not in known:
            errors.add(place, f"has no key {key!r}; there are {', '.join(sorted(known))}")


# Values.


def _one_of(choices: Mapping[str, Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise _Wrong(f"must be one of {', '.join(choices)}")
        return choices[value]

    return read


def _rule_name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > 100 or not value.isprintable():
        raise _Wrong("must be text of 1 to 100 printable characters")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MOST_NAMES:
        raise _Wrong(f"must be a list of at most {_MOST_NAMES} names")
    for name in value:
        if not isinstance(name, str) or len(name) > 200 or not _NAME.fullmatch(name):
            raise _Wrong(f"{name!r} is no name: write one exactly, or all below one as docs.*")
    return tuple(value)


def _fields(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MOST_NAMES:
        raise _Wrong(f"must be a list of at most {_MOST_NAMES} fields")
    for name in value:
        if not isinstance(name, str) or len(name) > 200 or not _FIELD.fullmatch(name):
            kinds = "description, payload, requester, estimated_effort, feedback, tags.NAME and labels.NAME"
            raise _Wrong(f"{name!r} is none of {kinds}")
    return tuple(value)


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _Wrong(f"must be a whole number from {least} to {most}")
        return value

    return read


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise _Wrong('must be a number of bytes, or as "1 MiB"')
    return int(match[1]) * _UNITS[match[2]]


def _rate(value: Any) -> Rate:
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[1]) == 0:
        raise _Wrong('must be as "60/hour", by second, minute, hour or day')
    return Rate(int(match[1]), _STRETCHES[match[2]])


def _transit(value: Any) -> frozenset[str] | None:
    if value in ("none", "any"):
        return None if value == "any" else frozenset()
    if not isinstance(value, list) or not all(
        isinstance(name, str) and _INSTALL_ID.fullmatch(name) for name in value
    ):
        raise _Wrong("must be none, any, or a list of install ids")
    return frozenset(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("must be true or false")
    return value


def _moment(value: Any) -> datetime:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise _Wrong("must say its offset, as 2027-01-01T00:00:00Z")
        return value.astimezone(UTC)
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC)
    raise _Wrong("must be a date, or a date and time with its offset")


_KEYS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "name": _rule_name,
    "effect": _one_of({effect.value: effect for effect in Effect}),
    "direction": _one_of(_WAYS),
    "capabilities": _names,
    "labels": _names,
    "max_priority": _whole(0, 100),
    "max_bytes": _size,
    "in_flight": _whole(0, 1_000_000),
    "rate": _rate,
    "transit": _transit,
    "exclusive": _flag,
    "redact": _fields,
    "ask": _flag,
    "expires": _moment,
}
_ONLY_OF_ALLOW: Final = frozenset(
    {"max_priority", "max_bytes", "in_flight", "rate", "transit", "exclusive", "redact", "ask"}
)
