"""
Which fields an update changes (AIP-134).

A mask names fields of the resource, nested ones with dots. An empty mask means every field that is set; `*`
means all of them, so that unset ones are cleared. Whoever names a field that does not exist, or that is not
theirs to change, hears of each of them and nothing is changed.
"""

from collections.abc import Collection
from typing import Any, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from hopper_common.errors import FieldViolation, InvalidArgument

M = TypeVar("M", bound=Message)

_ALL = "*"

# Descriptors are `Any` below: the stubs have two classes for each, one per implementation of protobuf.


def masked_paths(mask: FieldMask, source: Message, *, mutable: Collection[str] | None = None) -> list[str]:
    """
    The fields that *mask* names in *source*, each once, in the mask's order.

    Args:
        mutable: The fields that may be changed, with everything below them; default all. An empty mask and
        `*` mean only
            these, so that a resource can be sent back as it was read, output-only fields and all.

    Raises:
        InvalidArgument: Names a field that there is not, or that may not be changed; one violation each.
    """
    allowed = (
        tuple(mutable) if mutable is not None else tuple(field.name for field in source.DESCRIPTOR.fields)
    )
    if not mask.paths:
        return [path for path in allowed if _is_set(source, path)]
    if _ALL in mask.paths:
        return list(allowed)
    problems = [(path, _problem(path, source.DESCRIPTOR, allowed)) for path in mask.paths]
    if violations := [FieldViolation("update_mask", problem) for _, problem in problems if problem]:
        raise InvalidArgument(violations=violations)
    return list(dict.fromkeys(mask.paths))


def merge(mask: FieldMask, source: M, target: M, *, mutable: Collection[str] | None = None) -> None:
    """Give the masked fields of *target* the values they have in *source*; unset there means cleared here."""
    for path in masked_paths(mask, source, mutable=mutable):
        _copy(path.split("."), source, target)


def changes(mask: FieldMask, source: Message, *, mutable: Collection[str] | None = None) -> dict[str, Any]:
    """The masked fields and their values in *source*, for stores that update columns; None where unset."""
    return {path: _value(source, path) for path in masked_paths(mask, source, mutable=mutable)}


def _problem(path: str, descriptor: Any, allowed: Collection[str]) -> str:
    if not _exists(path, descriptor):
        return f"{path!r} is no field of {descriptor.name}"
    if not any(path == field or path.startswith(f"{field}.") for field in allowed):
        return f"{path!r} may not be changed"
    return ""


def _exists(path: str, descriptor: Any) -> bool:
    for name in path.split("."):
        field = descriptor.fields_by_name.get(name) if descriptor else None
        if field is None:
            return False
        # Nothing below a list or a map can be named.
        descriptor = None if field.is_repeated else field.message_type
    return True


def _is_set(message: Message, path: str) -> bool:
    value = _value(message, path)
    return value is not None and (isinstance(value, Message) or bool(value))


def _value(message: Message, path: str) -> Any:
    *parents, name = path.split(".")
    for parent in parents:
        message = getattr(message, parent)
    return None if _is_unset(message, message.DESCRIPTOR.fields_by_name[name]) else getattr(message, name)


def _is_unset(message: Message, field: Any) -> bool:
    return field.has_presence and not message.HasField(field.name)


def _copy(path: list[str], source: Message, target: Message) -> None:
    name, *rest = path
    field = source.DESCRIPTOR.fields_by_name[name]
    if rest:
        # A parent that neither has must not come into being by being looked at.
        if source.HasField(name) or target.HasField(name):
            _copy(rest, getattr(source, name), getattr(target, name))
        return
    target.ClearField(name)
    if _is_unset(source, field):
        return
    if field.is_repeated or field.message_type:
        getattr(target, name).MergeFrom(getattr(source, name))
    else:
        setattr(target, name, getattr(source, name))
