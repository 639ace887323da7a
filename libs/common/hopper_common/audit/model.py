"""
A decision, and the record that is kept of it.

A decision is recorded while a call waits, so it is a tuple, and nothing is looked at. What is kept of it is cleaned
when it is written (`cleaned`): every field has a shape, and what has another is not kept. So no request's text, no key
and no token can get into the log by whatever mistake elsewhere; the shapes leave no room for them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple

MOST_RESOURCES: Final = 8
UNREADABLE: Final = "?"
"""What is kept of a field that has not its shape."""

PROCESS: Final = "process"
"""The principal of what a process did by itself."""
OPENED: Final = "/hopper.common.v1.AuditLog/Opened"
CLOSED: Final = "/hopper.common.v1.AuditLog/Closed"
LOST: Final = "/hopper.common.v1.AuditLog/Lost"
DIVERGED: Final = "/hopper.common.v1.AuditLog/Diverged"


class Handling(IntEnum):
    """What becomes of a decision."""

    IGNORED = 0
    """It is not recorded: whoever may read has read."""
    COUNTED = 1
    """Equal ones of a second are one record: the hot path."""
    KEPT = 2
    """A record, written within a tenth of a second."""
    AWAITED = 3
    """A record that is on the disk before anything is done or answered: refusals, and what is far-reaching."""


class Decision(NamedTuple):
    """
    What was decided about a call: who, how proved, from where, what, whether, and why.

    Attributes:
        principal: `owner`, `principals/{principal}`, a SPIFFE id, or `stranger`.
        acting_for: The person for whom an agent acts: `principals/{principal}`; else empty.
        credential: `socket`, `key:{id}`, `token`, `certificate` or `none`. The id of a key, never the key.
        source: An address without its port, or `unix`.
        method: `/package.Service/Method`.
        allowed: Whether it was let through.
        reason: Why it was refused, a name of the catalogue without its prefix.
        rule: What decided, for people. No text of the request.
        resources: What the request named.
    """

    principal: str
    acting_for: str
    credential: str
    source: str
    method: str
    allowed: bool
    reason: str = ""
    rule: str = ""
    resources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Happened:
    """A decision, or several equal ones, that has no place in a chain yet. The time is of the first; UTC."""

    time: datetime
    decision: Decision
    count: int = 1


@dataclass(frozen=True, slots=True)
class Record:
    """An entry of the log: what happened, and its place in the chain. Hashes have 32 bytes."""

    sequence: int
    time: datetime
    decision: Decision
    count: int
    previous_hash: bytes
    hash: bytes


def cleaned(decision: Decision) -> Decision:
    """The decision with every field in its shape; what is not gives way to `UNREADABLE`."""
    fields = decision._asdict()
    for name, shape in _SHAPES.items():
        if shape.fullmatch(fields[name]) is None:
            fields[name] = UNREADABLE
    fields["rule"] = _NOT_PLAIN.sub(UNREADABLE, decision.rule)[:_LONGEST_RULE]
    fields["resources"] = tuple(
        name if _RESOURCE.fullmatch(name) else UNREADABLE for name in decision.resources[:MOST_RESOURCES]
    )
    fields["allowed"] = bool(decision.allowed)
    return Decision(**fields)


_LONGEST_RULE: Final = 200
_NOT_PLAIN: Final = re.compile(r"[^ -~]")
_ID: Final = r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"
_WORKER: Final = r"workers/(?!hop_)[A-Za-z0-9][A-Za-z0-9._@+-]{0,62}"  # as free as a key, which begins so
_NAMED: Final = rf"(?:[a-z][a-z-]{{0,30}}/{_ID}|{_WORKER})"
_RESOURCE: Final = re.compile(rf"(?://{_ID}/)?{_NAMED}(?:/{_NAMED}){{0,2}}")
_SPIFFE: Final = rf"spiffe://{_ID}(?:/[A-Za-z0-9._-]{{1,63}}){{0,4}}"
_SHAPES: Final[Mapping[str, re.Pattern[str]]] = MappingProxyType(
    {
        "principal": re.compile(rf"owner|stranger|{PROCESS}|principals/{_ID}|{_SPIFFE}"),
        "credential": re.compile(r"socket|token|certificate|none|key:[A-Za-z0-9]{1,32}"),
        "source": re.compile(r"unix|[0-9a-f.:]{2,45}|"),
        "method": re.compile(r"/[a-z][a-z0-9_.]{0,80}\.[A-Z][A-Za-z0-9]{0,60}/[A-Z][A-Za-z0-9]{0,60}"),
        "reason": re.compile(r"[A-Z0-9_]{0,64}"),
        "acting_for": re.compile(rf"(?:principals/{_ID})?"),
    }
)
