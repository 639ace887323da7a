"""
What may cross between this Hopper and a peer: the owner's policy, under the ceiling of the peer's level.

    crossing ─► ceiling of the level ─► deny rules ─► the first allow rule that fits ─► its limits ─► ruling
                     │ refuses               │ refuse          │ none: refused                │ refuse

Nothing crosses unless an allow rule says so, in that direction; a deny rule that fits wins over every allow rule.
Names are compared exactly, or by a prefix that ends at a dot (`docs.*`): never by a pattern, because a pattern that
somebody else may choose a name for is no border. What a ruling cites is the rule's name, so that a person can find it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from hopper_common.border.levels import Level, reaches

PENDING_OF_KNOWN: Final = 10
"""How many offers of a peer that is only known may wait for a person."""


class Direction(StrEnum):
    """Which way something crosses."""

    IN = "in"
    OUT = "out"


class Effect(StrEnum):
    """What a rule says."""

    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Rate:
    """At most *count* in any stretch of time of that length."""

    count: int
    per: timedelta

    def __str__(self) -> str:
        return f"{self.count} in {self.per.total_seconds():g} s"


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One rule of a policy.

    Attributes:
        directions: Which ways it speaks of.
        capabilities: Names, or prefixes as `docs.*`. An allow rule must cover every one of the work's; a deny rule
            fits if it names one. An allow rule with none covers work that needs none.
        labels: As `capabilities`; `key` names every `key=value`, and `key=value` that alone. None: an allow rule lets
            every label cross that is not sensitive.
        max_priority: Of a task, 0 to 100.
        max_bytes: Of a task with everything in it.
        in_flight: How many that crossed by this rule may be open at once.
        transit: Install ids of third Hoppers whose work may cross by this rule; None: whoever's. Empty: only the peer's
            own or this Hopper's own.
        exclusive: Whether work may cross that must run once at most.
        redact: Fields of the work that do not leave by this rule: `description`, `payload`, `requester`,
            `estimated_effort`, and `tags.NAME` or `labels.NAME`, names and prefixes as in `labels`. And `feedback`:
            what people here say of how well the peer did it.
        ask: A person here accepts each.
        expires: The rule holds before that time.
    """

    name: str
    effect: Effect
    directions: frozenset[Direction]
    capabilities: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    max_priority: int = 100
    max_bytes: int = 1024 * 1024
    in_flight: int = 100
    rate: Rate | None = None
    transit: frozenset[str] | None = frozenset()
    exclusive: bool = False
    redact: tuple[str, ...] = ()
    ask: bool = False
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """
    A policy: what its owner signed off.

    Attributes:
        level: The least level under which it holds.
        sensitive: Labels that cross only to and from VERIFIED peers, and only by a rule that names them.
    """

    rules: tuple[Rule, ...]
    level: Level = Level.TRUSTED
    sensitive: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Crossing:
    """
    Work that would cross.

    Attributes:
        origin: Install id of the third Hopper it comes from; empty: it is the peer's own, or this Hopper's own.
        by_hand: A person sends it there, not the router.
    """

    direction: Direction
    capabilities: Sequence[str] = ()
    labels: Sequence[str] = ()
    priority: int = 50
    bytes: int = 0
    exclusive: bool = False
    origin: str = ""
    by_hand: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """
    What a peer has used up so far.

    Attributes:
        pending: How many of its offers wait for a person.
        in_flight: By rule name, what is open that crossed by it.
        recent: By rule name, when each crossed in the last stretch of its rate.
    """

    pending: int = 0
    in_flight: Mapping[str, int] = field(default_factory=dict)
    recent: Mapping[str, Sequence[datetime]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ruling:
    """
    Whether something may cross.

    Attributes:
        reason: Why not: a reason of the catalogue; empty where it may.
        quarantined: A person must accept it first.
        rule: The name of the rule that decided, or the ceiling, for people.
        detail: What exactly it found wrong: the capability, label or limit.
        steps: What was looked at, in order, and what it said.
        retry_after: When it could be tried again, where waiting helps.
    """

    allowed: bool
    rule: str
    reason: str = ""
    detail: str = ""
    quarantined: bool = False
    steps: tuple[str, ...] = ()
    retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class _No:
    """Why a rule does not let something cross."""

    reason: str
    detail: str
    retry_after: timedelta | None = None


def decide(grant: Grant | None, level: Level, crossing: Crossing, usage: Usage, now: datetime) -> Ruling:
    """
    Say whether something may cross, and by which rule.

    Args:
        grant: The peer's policy; None: it has none.
        level: How far the peer is trusted.
    """
    ceiling = _ceiling(grant, level, crossing, usage)
    if ceiling is not None:
        return ceiling
    if grant is None:
        return Ruling(
            False, "no policy", "CAPABILITY_DENIED", "it has none", steps=("no policy: nothing crosses",)
        )
    steps: list[str] = [f"level {level}: the policy decides"]
    rules = [rule for rule in grant.rules if crossing.direction in rule.directions]
    for rule in rules:
        if rule.effect is Effect.DENY:
            named = _denies(rule, crossing, now)
            steps.append(f"deny {rule.name}: {f'names {named.detail}' if named else 'does not fit'}")
            if named:
                return Ruling(False, rule.name, named.reason, named.detail, steps=tuple(steps))
    return _first_that_allows(grant, rules, level, crossing, usage, now, steps)


def _ceiling(grant: Grant | None, level: Level, crossing: Crossing, usage: Usage) -> Ruling | None:
    """What the level says by itself; None: it leaves it to the policy."""
    rule = f"ceiling of level {level}"
    if not reaches(level, Level.KNOWN):
        return Ruling(
            False, rule, "TRUST_LEVEL_TOO_LOW", f"needs {Level.KNOWN}", steps=(f"{rule}: nothing crosses",)
        )
    if not reaches(level, Level.TRUSTED):
        return _for_known(rule, crossing, usage)
    if grant is None:
        return Ruling(
            False,
            "no policy",
            "CAPABILITY_DENIED",
            "there is no policy",
            steps=("no policy: nothing crosses",),
        )
    if not reaches(level, grant.level):
        detail = f"the policy needs {grant.level}"
        return Ruling(False, rule, "TRUST_LEVEL_TOO_LOW", detail, steps=(f"{rule}: {detail}",))
    return None


def _for_known(rule: str, crossing: Crossing, usage: Usage) -> Ruling:
    if crossing.direction is Direction.OUT:
        if crossing.by_hand:
            return Ruling(True, rule, steps=(f"{rule}: what a person sends may go",))
        detail = f"without {Level.TRUSTED}, only a person sends work there"
        return Ruling(False, rule, "TRUST_LEVEL_TOO_LOW", detail, steps=(f"{rule}: {detail}",))
    if usage.pending >= PENDING_OF_KNOWN:
        detail = f"{PENDING_OF_KNOWN} offers wait for a person"
        return Ruling(
            False, rule, "QUOTA", detail, steps=(f"{rule}: {detail}",), retry_after=timedelta(minutes=10)
        )
    return Ruling(True, rule, quarantined=True, steps=(f"{rule}: a person accepts each",))


def _first_that_allows(
    grant: Grant,
    rules: Iterable[Rule],
    level: Level,
    crossing: Crossing,
    usage: Usage,
    now: datetime,
    steps: list[str],
) -> Ruling:
    """The first allow rule without objection; else the objection that came closest to allowing it."""
    nearest: tuple[int, Rule, _No] | None = None
    for rule in rules:
        if rule.effect is not Effect.ALLOW:
            continue
        objections = _objections(grant, rule, level, crossing, usage, now)
        passed, objection = _first_of(objections)
        steps.append(f"allow {rule.name}: {objection.detail if objection else _fits(rule, crossing)}")
        if objection is None:
            return Ruling(True, rule.name, quarantined=rule.ask, steps=tuple(steps))
        if nearest is None or passed > nearest[0]:
            nearest = (passed, rule, objection)
    if nearest is None:
        detail = f"no rule speaks of direction {crossing.direction}"
        return Ruling(
            False, "default deny", "CAPABILITY_DENIED", detail, steps=(*steps, "default: nothing crosses")
        )
    _, rule, no = nearest
    return Ruling(False, rule.name, no.reason, no.detail, steps=tuple(steps), retry_after=no.retry_after)


def _fits(rule: Rule, crossing: Crossing) -> str:
    if crossing.direction is Direction.OUT and rule.redact:
        return f"fits, without {_text(rule.redact)}"
    return "fits"


def _first_of(objections: Iterable[_No | None]) -> tuple[int, _No | None]:
    """How many checks passed before the first that did not, and what that one said."""
    passed = 0
    for objection in objections:
        if objection is not None:
            return passed, objection
        passed += 1
    return passed, None


def _denies(rule: Rule, crossing: Crossing, now: datetime) -> _No | None:
    if _expired(rule, now):
        return None
    for capability in crossing.capabilities:
        if _covers(rule.capabilities, capability):
            return _No("CAPABILITY_DENIED", f"capability {capability}")
    for label in crossing.labels:
        if _names_label(rule.labels or (), label):
            return _No("LABEL_DENIED", f"label {label}")
    return None


def _objections(
    grant: Grant, rule: Rule, level: Level, crossing: Crossing, usage: Usage, now: datetime
) -> Iterable[_No | None]:
    """Every check of an allow rule, in order, from what the work is to what has been used up."""
    yield (
        _No("CAPABILITY_DENIED", f"ended {rule.expires:%Y-%m-%d %H:%M} UTC") if _expired(rule, now) else None
    )
    yield _uncovered(rule, crossing)
    for label in crossing.labels:
        yield _label(grant, rule, level, label)
    third = bool(crossing.origin) and rule.transit is not None and crossing.origin not in rule.transit
    yield _No("CAPABILITY_DENIED", "does not let a third Hopper's work through") if third else None
    alone = crossing.exclusive and not rule.exclusive
    yield _No("CAPABILITY_DENIED", "does not take work that must run once at most") if alone else None
    urgent = crossing.priority > rule.max_priority
    yield _No("QUOTA", f"priority {crossing.priority} is above {rule.max_priority}") if urgent else None
    large = crossing.bytes > rule.max_bytes
    yield _No("QUOTA", f"{crossing.bytes} bytes are more than {rule.max_bytes}") if large else None
    full = usage.in_flight.get(rule.name, 0) >= rule.in_flight
    yield _No("QUOTA", f"{rule.in_flight} are open", timedelta(minutes=1)) if full else None
    yield _too_fast(rule, usage, now)


def _expired(rule: Rule, now: datetime) -> bool:
    return rule.expires is not None and now >= rule.expires


def _uncovered(rule: Rule, crossing: Crossing) -> _No | None:
    if rule.capabilities and not crossing.capabilities:
        return _No("CAPABILITY_DENIED", "the work names no capability, and the rule is for some")
    for capability in crossing.capabilities:
        if not _covers(rule.capabilities, capability):
            return _No("CAPABILITY_DENIED", f"capability {capability}")
    return None


def _label(grant: Grant, rule: Rule, level: Level, label: str) -> _No | None:
    named = rule.labels is not None and _names_label(rule.labels, label)
    if _names_label(grant.sensitive, label) and not (named and level is Level.VERIFIED):
        return _No(
            "LABEL_DENIED",
            f"label {label} is sensitive: a {Level.VERIFIED} peer and a rule naming it are needed",
        )
    if rule.labels is not None and not named:
        return _No("LABEL_DENIED", f"label {label}")
    return None


def _too_fast(rule: Rule, usage: Usage, now: datetime) -> _No | None:
    if rule.rate is None:
        return None
    since = now - rule.rate.per
    recent = sorted(time for time in usage.recent.get(rule.name, ()) if time > since)
    if len(recent) < rule.rate.count:
        return None
    free_again = recent[-rule.rate.count] + rule.rate.per - now
    return _No("QUOTA", f"{rule.rate} are through", free_again)


def _covers(names: Iterable[str], wanted: str) -> bool:
    """Whether one of the names is that one, or a prefix of it that ends at a dot."""
    return any(
        wanted == name
        or (name.endswith(".*") and wanted.startswith(name[:-1]) and len(wanted) > len(name) - 1)
        for name in names
    )


def kept_back(redact: Sequence[str], field: str) -> bool:
    """Whether a field does not leave by a rule with that `redact`: `description`, `tags.urgent`, `labels.customer`."""
    return _covers(redact, field)


def _names_label(names: Sequence[str], label: str) -> bool:
    return _covers(names, label) or _covers(names, label.partition("=")[0])


_EMPTY: Final = Grant(())
"""No policy lets as much cross as one without rules."""


def differences(before: Grant | None, after: Grant | None) -> list[str]:
    """What changes between two policies, a line each, for people."""
    if before == after:
        return []
    old = {rule.name: rule for rule in before.rules} if before else {}
    new = {rule.name: rule for rule in after.rules} if after else {}
    lines = [f"- {name}: {describe(rule)}" for name, rule in old.items() if name not in new]
    for name, rule in new.items():
        if name not in old:
            lines.append(f"+ {name}: {describe(rule)}")
        elif old[name] != rule:
            lines += [f"- {name}: {describe(old[name])}", f"+ {name}: {describe(rule)}"]
    for title in ("level", "sensitive"):
        was, now = getattr(before or _EMPTY, title), getattr(after or _EMPTY, title)
        if was != now:
            lines.append(f"  {title}: {_text(was)} -> {_text(now)}")
    if not lines:
        lines.append("  the order of the rules")
    return lines


def describe(rule: Rule) -> str:
    """A rule in a line, for people."""
    ways = " and ".join(sorted(rule.directions))
    parts = [f"{rule.effect} {ways} {_text(rule.capabilities)}"]
    if rule.labels is not None:
        parts.append(f"labels {_text(rule.labels)}")
    if rule.effect is Effect.DENY:
        return ", ".join(parts)
    parts.append(f"priority <= {rule.max_priority}, <= {rule.max_bytes} bytes, <= {rule.in_flight} open")
    if rule.rate is not None:
        parts.append(f"<= {rule.rate}")
    if rule.transit != frozenset():
        parts.append(f"transit {'any' if rule.transit is None else _text(sorted(rule.transit))}")
    if rule.exclusive:
        parts.append("exclusive too")
    if rule.redact:
        parts.append(f"without {_text(rule.redact)}")
    if rule.ask:
        parts.append("a person accepts each")
    if rule.expires is not None:
        parts.append(f"until {rule.expires:%Y-%m-%d %H:%M} UTC")
    return ", ".join(parts)


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    return ", ".join(value) if isinstance(value, Sequence) and value else "-"
