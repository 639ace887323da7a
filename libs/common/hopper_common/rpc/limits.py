"""
Every request is checked against what its .proto says, before any handler sees it.

The limits stand beside the fields they limit, as the option `hopper.common.v1.limits`; there is no second
list. Each message type is compiled once, into closures over its fields, and a request is then walked along
the fields that are *set*: an upb message gives them in one call, so the cost follows the size of the
request, not of the schema.

Nearly every request keeps to its limits, and then nobody needs to know where what was found. So each type is compiled
twice: into a quick look that says yes, or that it cannot say so; and into the walk with paths and descriptions, which
alone decides what is wrong, after a quick look that did not say yes.

Two outcomes:

- `UnknownField` at once, at whatever depth. A server that drops what it does not know would do less than it
  was asked and call it success; and what else is wrong with a message of another version is anyone's guess.
- `InvalidArgument` with every violation (`MOST_VIOLATIONS` at most), each with its path: `tasks[3].title`.

What a field declares nothing about is small: text and bytes 256 bytes, lists and maps 100 items, a Struct
or an Any 256 bytes. A number, text or enum that is not set passes unless it is required, whatever else it
declares. In an update, which has an `update_mask`, what the resource requires may be left out: what is not
changed need not be sent. Values are never quoted in a description: they are the caller's, and descriptions reach logs.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from hopper.common.v1 import options_pb2
from hopper.common.v1.options_pb2 import FieldLimits, Format
from hopper_common.errors import FieldViolation, InvalidArgument, UnknownField

DEFAULT_MAX_BYTES = 256
DEFAULT_MAX_ITEMS = 100
MOST_VIOLATIONS = 20
DEEPEST_JSON = 16

LATEST_SECONDS = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second a Timestamp can name
LONGEST_SECONDS = 315_576_000_000  # 10 000 years, the most a Duration can hold


class Form(NamedTuple):
    """One row of the table of formats: who decides, and what to tell people."""

    accepts: Callable[[str], object]
    description: str


def _pattern(description: str, pattern: str) -> Form:
    return Form(re.compile(pattern, re.ASCII).fullmatch, description)


def _is_word(text: str) -> bool:
    # isprintable() is False for controls, for invisible marks such as direction overrides, and for all white
    # space but " ".
    return text != "" and text.isprintable() and " " not in text


_ID = r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"
_WORKER = r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,62}"

FORMATS: Mapping[int, Form] = {
    Format.FORMAT_ID: _pattern(
        "must be 1 to 63 of a-z, 0-9, '.', '_', '-', with a letter or digit at both ends", _ID
    ),
    Format.FORMAT_UUID: _pattern(
        "must be a UUID with hyphens", r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
    ),
    Format.FORMAT_WORD: Form(_is_word, "must be one word of printable characters, without spaces"),
    Format.FORMAT_WORKER_ID: _pattern(
        "must be 1 to 63 of A-Z, a-z, 0-9, '.', '_', '@', '+', '-', with a letter or digit first", _WORKER
    ),
    Format.FORMAT_PROJECT_NAME: _pattern("must be projects/{project}", rf"projects/{_ID}"),
    Format.FORMAT_WORKER_NAME: _pattern(
        "must be projects/{project}/workers/{worker}", rf"projects/{_ID}/workers/{_WORKER}"
    ),
    Format.FORMAT_INSTANCE_NAME: _pattern("must be instances/{instance}", rf"instances/{_ID}"),
    Format.FORMAT_TASK_NAME: _pattern(
        "must be instances/{instance}/tasks/{task}", rf"instances/{_ID}/tasks/{_ID}"
    ),
    Format.FORMAT_DECISION_NAME: _pattern("must be decisions/{decision}", rf"decisions/{_ID}"),
    Format.FORMAT_DELEGATION_NAME: _pattern("must be delegations/{delegation}", rf"delegations/{_ID}"),
    Format.FORMAT_QUEUE_NAME: _pattern(
        "must be projects/{project} or instances/{instance}", rf"(?:projects|instances)/{_ID}"
    ),
    Format.FORMAT_SCHEDULE_NAME: _pattern("must be schedules/{schedule}", rf"schedules/{_ID}"),
    Format.FORMAT_PRINCIPAL_NAME: _pattern("must be principals/{principal}", rf"principals/{_ID}"),
    Format.FORMAT_API_KEY_NAME: _pattern(
        "must be principals/{principal}/keys/{key}", rf"principals/{_ID}/keys/{_ID}"
    ),
    Format.FORMAT_PEER_NAME: _pattern("must be peers/{peer}", rf"peers/{_ID}"),
    Format.FORMAT_INVITATION_NAME: _pattern("must be invitations/{invitation}", rf"invitations/{_ID}"),
    Format.FORMAT_PAIRING_NAME: _pattern("must be pairings/{pairing}", rf"pairings/{_ID}"),
}


def compile_limits(descriptor: Descriptor) -> Callable[[Message], None]:
    """
    Make the check of one request type; later calls for the same type are cheap.

    Returns:
        A function that returns None or raises.

    Raises:
        ValueError: A field declares a limit that says nothing about its type, such as a format of a number.
            Meant for start: a limit that would never be enforced must not look as if it were.
    """
    walk = _message_check(descriptor)
    fine = _message_look(descriptor)
    partial = "update_mask" in descriptor.fields_by_name

    def check(message: Message) -> None:
        if fine(message):
            return
        found = _Found(partial=partial)
        with contextlib.suppress(_Enough):  # plenty to repair; the rest shows up next time
            walk(message, "", found)
        if found:
            raise InvalidArgument(violations=found)

    return check


def check_limits(message: Message) -> None:
    """
    Check one message.

    Raises:
        UnknownField: Here or in a nested message; metadata `message` and `field_numbers`.
        InvalidArgument: With every violation.
    """
    compile_limits(_descriptor(message))(message)


class _Enough(Exception):
    """The way out of the walk when no more violations are wanted."""


class _Found(list[FieldViolation]):
    def __init__(self, *, partial: bool) -> None:
        super().__init__()
        self._partial = partial

    def missing(self, path: str) -> None:
        if not (self._partial and "." in path):
            self.add(path, "is required")

    def add(self, path: str, description: str) -> None:
        self.append(FieldViolation(path, description))
        if len(self) >= MOST_VIOLATIONS:
            raise _Enough


# value, path of the value, where to put violations
_Check = Callable[[Any, str, _Found], None]


# The quick look. Where it says True, the walk finds nothing; where it says False, the walk may still find nothing.

_Look = Callable[[Any], bool]

_looks: dict[Descriptor, _Look] = {}
_COMMON: Final = (Format.FORMAT_WORD, Format.FORMAT_PROJECT_NAME, Format.FORMAT_INSTANCE_NAME)
_REMEMBERED: Final = 4096


def _message_look(descriptor: Descriptor) -> _Look:
    if descriptor in _looks:
        return _looks[descriptor]
    looks: dict[FieldDescriptor, _Look] = {}
    required: list[FieldDescriptor] = []

    def look(message: Message) -> bool:
        if len(UnknownFieldSet(message)):
            return False
        missing = len(required)
        for field, value in message.ListFields():
            if not looks[field](value):
                return False
            if field in required:
                missing -= 1
        return not missing

    _looks[descriptor] = look  # a message may contain itself
    for field in descriptor.fields:
        limits = _limits_of(field)
        looks[field] = _field_look(field, limits)
        if limits.required:
            required.append(field)
    return look


def _field_look(field: FieldDescriptor, limits: FieldLimits) -> _Look:
    most = limits.max_items or DEFAULT_MAX_ITEMS
    if _is_map(field):
        entry = _type_of(field).fields_by_name
        return _map_look(
            most,
            _value_look(entry["key"], FieldLimits(max_bytes=limits.max_bytes), item=True),
            _value_look(entry["value"], limits, item=True),
        )
    look = _value_look(field, limits, item=field.is_repeated)
    if field.is_repeated:
        return lambda items: len(items) <= most and all(map(look, items))
    return look


def _map_look(most: int, key_look: _Look, value_look: _Look) -> _Look:
    def look(items: Any) -> bool:
        if len(items) > most:
            return False
        for key in items:  # noqa: SIM110 -- a generator costs more than the entries
            if not (key_look(key) and value_look(items[key])):
                return False
        return True

    return look


def _value_look(field: FieldDescriptor, limits: FieldLimits, *, item: bool) -> _Look:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        most = limits.max_bytes or DEFAULT_MAX_BYTES
        if field.type == FieldDescriptor.TYPE_BYTES:
            return lambda value: 0 < len(value) <= most
        look = _text_look(0 if item else 1, most, FORMATS.get(limits.format))
        # The same few names and words come again and again.
        return lru_cache(_REMEMBERED)(look) if limits.format in _COMMON else look
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        if _type_of(field).full_name not in _WELL_KNOWN:
            return _message_look(_type_of(field))
    elif kind == FieldDescriptor.CPPTYPE_BOOL:
        return lambda value: True
    elif kind != FieldDescriptor.CPPTYPE_ENUM:
        least, greatest = _range(limits)
        return lambda value: least <= value <= greatest and -math.inf < value < math.inf
    # The rest costs no more when it is walked: enums, well-known types.
    check = _value_check(field, limits, item=True)
    return lambda value: _finds_nothing(check, value)


def _finds_nothing(check: _Check, value: Any) -> bool:
    found = _Found(partial=False)
    check(value, "", found)
    return not found


def _text_look(least: int, most: int, form: Form | None) -> _Look:
    accepts = form.accepts if form else None

    def look(value: str) -> bool:
        if not least <= len(value) <= most or "\0" in value:
            return False
        if not (value.isascii() or len(value.encode()) <= most):
            return False
        return accepts is None or bool(accepts(value))

    return look


# Messages.

_compiled: dict[Descriptor, _Check] = {}


def _message_check(descriptor: Descriptor) -> _Check:
    if descriptor in _compiled:
        return _compiled[descriptor]
    checks: dict[int, tuple[str, _Check]] = {}
    required: dict[int, str] = {}

    def check(message: Message, prefix: str, found: _Found) -> None:
        _refuse_unknown(message)
        fields = message.ListFields()
        if required:
            for number in sorted(required.keys() - {field.number for field, _ in fields}):
                found.missing(prefix + required[number])
        for field, value in fields:
            name, check_field = checks[field.number]
            check_field(value, prefix + name, found)

    # Known before its fields are compiled: a message may contain itself.
    _compiled[descriptor] = check
    try:
        for field in descriptor.fields:
            limits = _limits_of(field)
            checks[field.number] = (field.name, _field_check(field, limits))
            if limits.required:
                required[field.number] = field.name
    except ValueError:
        del _compiled[descriptor]
        raise
    return check


def _refuse_unknown(message: Message) -> None:
    unknown = UnknownFieldSet(message)
    if len(unknown):
        numbers = sorted({unknown[index].field_number for index in range(len(unknown))})
        raise UnknownField(
            message=_descriptor(message).full_name,
            field_numbers=", ".join(map(str, numbers[:MOST_VIOLATIONS])),
        )


def _descriptor(message: Message) -> Descriptor:
    return cast("Descriptor", message.DESCRIPTOR)


def _type_of(field: FieldDescriptor) -> Descriptor:
    """The message type of a field that has one; the types of descriptors cannot say which do."""
    return cast("Descriptor", field.message_type)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _limits_of(field: FieldDescriptor) -> FieldLimits:
    limits = field.GetOptions().Extensions[options_pb2.limits]
    meaningful = _meaningful_limits(field)
    for declared, _ in limits.ListFields():
        if declared.name not in meaningful:
            raise ValueError(f"{field.full_name} declares {declared.name}, which says nothing about its type")
    return limits


# Fields.


def _field_check(field: FieldDescriptor, limits: FieldLimits) -> _Check:
    if _is_map(field):
        return _map(field, limits)
    if field.is_repeated:
        return _list(limits.max_items or DEFAULT_MAX_ITEMS, _value_check(field, limits, item=True))
    return _value_check(field, limits, item=False)


def _list(most: int, check_item: _Check) -> _Check:
    def check(items: Any, path: str, found: _Found) -> None:
        if len(items) > most:
            # Not walked: a million bad items must not cost more than a count.
            found.add(path, f"must have at most {most} items, has {len(items)}")
            return
        for index, item in enumerate(items):
            check_item(item, f"{path}[{index}]", found)

    return check


def _map(field: FieldDescriptor, limits: FieldLimits) -> _Check:
    most = limits.max_items or DEFAULT_MAX_ITEMS
    entry = _type_of(field).fields_by_name
    check_value = _value_check(entry["value"], limits, item=True)
    check_key = _value_check(entry["key"], FieldLimits(max_bytes=limits.max_bytes), item=True)

    def check(items: Any, path: str, found: _Found) -> None:
        if len(items) > most:
            found.add(path, f"must have at most {most} entries, has {len(items)}")
            return
        for key, value in items.items():
            at = f"{path}[{_shown(key)}]"
            check_key(key, at, found)
            check_value(value, at, found)

    return check


def _shown(key: object) -> str:
    return json.dumps(key if not isinstance(key, str) or len(key) <= 64 else key[:64] + "…")


def _value_check(field: FieldDescriptor, limits: FieldLimits, *, item: bool) -> _Check:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        most = limits.max_bytes or DEFAULT_MAX_BYTES
        if field.type == FieldDescriptor.TYPE_BYTES:
            return _bytes(most, required=limits.required and not item)
        return _text(most, FORMATS.get(limits.format), required=limits.required and not item, item=item)
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        special = _WELL_KNOWN.get(_type_of(field).full_name)
        return special(limits) if special else _nested(_message_check(_type_of(field)))
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _enum(frozenset(cast("EnumDescriptor", field.enum_type).values_by_number))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return _anything
    return _number(*_range(limits))


def _meaningful_limits(field: FieldDescriptor) -> set[str]:
    value = field
    many = {"max_items"} if field.is_repeated else set()
    if _is_map(field):
        value = _type_of(field).fields_by_name["value"]
        many |= {"max_bytes"}  # its keys
    if value.cpp_type == FieldDescriptor.CPPTYPE_BOOL and not (many or value.has_presence):
        return set()  # required would mean true
    return many | {"required"} | _limits_by_type(value)


def _limits_by_type(value: FieldDescriptor) -> set[str]:
    if value.type == FieldDescriptor.TYPE_STRING:
        return {"max_bytes", "format", "own"}
    if value.type == FieldDescriptor.TYPE_BYTES:
        return {"max_bytes"}
    if value.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return _WELL_KNOWN_LIMITS.get(_type_of(value).full_name, set())
    if value.cpp_type in (FieldDescriptor.CPPTYPE_ENUM, FieldDescriptor.CPPTYPE_BOOL):
        return set()
    return {"minimum", "maximum"}


def _range(limits: FieldLimits) -> tuple[float, float]:
    return (
        limits.minimum if limits.HasField("minimum") else -math.inf,
        limits.maximum if limits.HasField("maximum") else math.inf,
    )


def _anything(value: Any, path: str, found: _Found) -> None:
    pass


def _nested(check_message: _Check) -> _Check:
    def check(value: Message, path: str, found: _Found) -> None:
        check_message(value, path + ".", found)

    return check


# Values.


def _text(most: int, form: Form | None, *, required: bool, item: bool) -> _Check:
    accepts, description = form or (None, "")

    def check(value: str, path: str, found: _Found) -> None:
        if not value and not item:
            if required:
                found.missing(path)
        elif len(value) > most or (not value.isascii() and len(value.encode()) > most):
            found.add(path, f"must be at most {most} bytes")
        elif "\0" in value:
            found.add(path, "must not contain NUL")
        elif accepts is not None and not accepts(value):
            found.add(path, description)

    return check


def _bytes(most: int, *, required: bool) -> _Check:
    def check(value: bytes, path: str, found: _Found) -> None:
        if required and not value:
            found.missing(path)
        elif len(value) > most:
            found.add(path, f"must be at most {most} bytes, has {len(value)}")

    return check


def _number(least: float, most: float) -> _Check:
    description = _range_description(least, most, "")

    def check(value: float, path: str, found: _Found) -> None:
        if not least <= value <= most or value in (math.inf, -math.inf):  # NaN compares false with everything
            found.add(path, description)

    return check


def _range_description(least: float, most: float, unit: str) -> str:
    if least == -math.inf and most == math.inf:
        return "must be a finite number"
    if most == math.inf:
        return f"must be at least {least:.15g}{unit}"
    if least == -math.inf:
        return f"must be at most {most:.15g}{unit}"
    return f"must be from {least:.15g} to {most:.15g}{unit}"


def _enum(known: frozenset[int]) -> _Check:
    def check(value: int, path: str, found: _Found) -> None:
        if value not in known:
            found.add(path, f"has the value {value}, which this server does not know")

    return check


# Well-known types: their fields have rules of their own, which no option could carry.


def _timestamp(limits: FieldLimits) -> _Check:
    def check(value: Any, path: str, found: _Found) -> None:
        _refuse_unknown(value)
        if not (0 <= value.seconds <= LATEST_SECONDS and 0 <= value.nanos < 1_000_000_000):
            found.add(path, "must be a time from 1970 to 9999")

    return check


def _duration(limits: FieldLimits) -> _Check:
    least, most = _range(limits)
    least = max(least, -LONGEST_SECONDS) if limits.HasField("minimum") else 0
    most = min(most, LONGEST_SECONDS)
    description = _range_description(least, most, " s")

    def check(value: Any, path: str, found: _Found) -> None:
        _refuse_unknown(value)
        seconds, nanos = value.seconds, value.nanos
        if abs(nanos) >= 1_000_000_000 or seconds * nanos < 0:
            found.add(path, "must have nanoseconds below one second, of the same sign as the seconds")
        elif not least <= seconds + nanos / 1e9 <= most:
            found.add(path, description)

    return check


def _field_mask(limits: FieldLimits) -> _Check:
    text = _text(limits.max_bytes or DEFAULT_MAX_BYTES, None, required=True, item=False)
    check_paths = _list(limits.max_items or DEFAULT_MAX_ITEMS, text)

    def check(value: Any, path: str, found: _Found) -> None:
        _refuse_unknown(value)
        check_paths(value.paths, path + ".paths", found)

    return check


def _any(limits: FieldLimits) -> _Check:
    most = limits.max_bytes or DEFAULT_MAX_BYTES
    check_type = _text(DEFAULT_MAX_BYTES, None, required=True, item=False)
    check_value = _bytes(most, required=False)

    def check(value: Any, path: str, found: _Found) -> None:
        _refuse_unknown(value)
        check_type(value.type_url, path + ".type_url", found)
        check_value(value.value, path + ".value", found)

    return check


def _json(limits: FieldLimits) -> _Check:
    most = limits.max_bytes or DEFAULT_MAX_BYTES

    def check(value: Message, path: str, found: _Found) -> None:
        size = value.ByteSize()
        if size > most:
            found.add(path, f"must be at most {most} bytes, has {size}")
        else:
            _walk_json(value, path, found, DEEPEST_JSON)

    return check


def _walk_json(value: Any, path: str, found: _Found, depth: int) -> None:
    """Visit a Struct, ListValue or Value, and up to *depth* levels below it."""
    _refuse_unknown(value)
    name = value.DESCRIPTOR.name
    if name == "Value":
        _check_json_value(value, path, found, depth)
    elif depth == 0:
        found.add(path, f"must not nest deeper than {DEEPEST_JSON} levels")
    elif name == "Struct":
        for key, member in value.fields.items():
            if "\0" in key:
                found.add(path, "must not contain NUL")
            _walk_json(member, f"{path}[{_shown(key)}]", found, depth - 1)
    else:
        for index, member in enumerate(value.values):
            _walk_json(member, f"{path}[{index}]", found, depth - 1)


def _check_json_value(value: Any, path: str, found: _Found, depth: int) -> None:
    kind = value.WhichOneof("kind")
    if kind is None:
        found.add(path, "is a JSON value of no kind")
    elif kind == "string_value" and "\0" in value.string_value:
        found.add(path, "must not contain NUL")
    elif kind == "number_value" and not math.isfinite(value.number_value):
        found.add(path, "must be a finite number")
    elif kind in ("struct_value", "list_value"):
        _walk_json(getattr(value, kind), path, found, depth)


_WELL_KNOWN: Mapping[str, Callable[[FieldLimits], _Check]] = {
    "google.protobuf.Timestamp": _timestamp,
    "google.protobuf.Duration": _duration,
    "google.protobuf.FieldMask": _field_mask,
    "google.protobuf.Any": _any,
    "google.protobuf.Struct": _json,
    "google.protobuf.ListValue": _json,
    "google.protobuf.Value": _json,
}

_WELL_KNOWN_LIMITS: Mapping[str, set[str]] = {
    "google.protobuf.Duration": {"minimum", "maximum"},
    "google.protobuf.FieldMask": {"max_bytes", "max_items"},
    "google.protobuf.Any": {"max_bytes"},
    "google.protobuf.Struct": {"max_bytes"},
    "google.protobuf.ListValue": {"max_bytes"},
    "google.protobuf.Value": {"max_bytes"},
}
