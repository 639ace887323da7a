"""
What of a task stays here though the task itself leaves: fields that the rule by which it crosses names.

Only its first Hopper can keep anything back. What it has signed goes on whole or not at all.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper_common.border.grants import kept_back

_FIELDS: Final = ("description", "payload", "requester", "estimated_effort")


def kept_from(body: dpb.TaskBody, redact: Sequence[str]) -> list[str]:
    """
    Which fields of a task a rule keeps back: those that say something.

    Args:
        redact: Of the rule; see `hopper_common.border.grants.Rule`.
    """
    return [field for field in _said(body) if kept_back(redact, field)]


def redacted(body: dpb.TaskBody, redact: Sequence[str]) -> dpb.TaskBody:
    """The task without them; `redacted` of it names them."""
    kept = kept_from(body, redact)
    left = dpb.TaskBody()
    left.CopyFrom(body)
    for field in kept:
        kind, _, name = field.partition(".")
        if kind == "tags":
            left.tags.remove(name)
        elif kind == "labels":
            del left.labels[name]
        else:
            left.ClearField(field)  # type: ignore[arg-type]  # one of _FIELDS
    left.redacted.extend(kept)
    return left


def _said(body: dpb.TaskBody) -> Iterator[str]:
    yield from (each.name for each, _ in body.ListFields() if each.name in _FIELDS)
    yield from (f"tags.{tag}" for tag in body.tags)
    yield from (f"labels.{key}" for key in sorted(body.labels))
