"""
What a request names: the places it is about, and whatever else the audit log should say.

Which fields hold names is what they declare, by the formats of `hopper.common.v1.limits`; there is no second list. A
request type is compiled once, into a walk along those fields alone. In an update only what its mask names is looked at,
besides the resource's own name: what is not changed is not named.

The names are the caller's text, in the form that the limits have checked.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from hopper.common.v1 import options_pb2
from hopper.common.v1.options_pb2 import FieldLimits, Format
from hopper_common.auth.model import Access

_MASK: Final = "update_mask"


class Named(NamedTuple):
    """
    What one request names.

    Attributes:
        places: Instances and projects, each once. None: no place, and a role anywhere is enough.
        names: All resource names, for the audit log.
        workers: Ids of workers that have to be the caller's own.
    """

    places: tuple[str, ...] | None
    names: tuple[str, ...]
    workers: tuple[str, ...]


class _Found:
    __slots__ = ("mask", "names", "own", "places", "workers")

    def __init__(self, mask: Sequence[str] | None) -> None:
        self.mask = mask
        self.places: list[str] = []
        self.names: list[str] = []
        self.workers: list[str] = []
        self.own = False

    def named(self, anywhere: bool) -> Named:
        """All of it; a role *anywhere* is enough where no place was found."""
        nowhere = not self.places and (anywhere or self.own)
        return Named(None if nowhere else _once(self.places), _once(self.names), tuple(self.workers))


_Walk = Callable[[Any, _Found], None]


def compile_names(request: Descriptor, access: Access) -> Callable[[Message], Named]:
    """Make the function that tells what requests of that type name, for a method that declares *access*."""
    anywhere = access.anywhere
    flat = _flat(request, anywhere)
    if flat is not None:
        return flat
    masked = _MASK in request.fields_by_name
    walk = _message(request, {}, updates=masked)
    if walk is None:
        always = Named(None if anywhere else (), (), ())
        return lambda message: always

    def names_in(message: Message) -> Named:
        found = _Found(cast("Any", message).update_mask.paths if masked else None)
        walk(message, found)
        return found.named(anywhere)

    return names_in


def _once(items: list[str]) -> tuple[str, ...]:
    return tuple(items) if len(items) < 2 else tuple(dict.fromkeys(items))


# The walk where names are in fields of messages that there is one of, as in nearly every request: all are got at once.


def _flat(descriptor: Descriptor, anywhere: bool) -> Callable[[Message], Named] | None:
    """What tells the names of a message where all are at fixed places; None: they are not."""
    leaves = _leaves(descriptor, "", ())
    if not leaves or _MASK in descriptor.fields_by_name:
        return None
    return _Flat(leaves, anywhere).names_in


class _Flat:
    """Tells the names of one type of message, and remembers them: the same few come again and again."""

    __slots__ = ("_anywhere", "_get", "_known", "_leaves", "_many")

    def __init__(self, leaves: "Sequence[_Leaf]", anywhere: bool) -> None:
        self._anywhere = anywhere
        self._leaves = leaves
        self._many = [place for place, leaf in enumerate(leaves) if leaf.many]
        # With one path alone it would be no tuple.
        self._get = operator.attrgetter(*(leaf.path for leaf in leaves), "DESCRIPTOR")
        self._known: dict[tuple[Any, ...], Named] = {}

    def names_in(self, message: Message) -> Named:
        """See `compile_names`."""
        values: tuple[Any, ...] = self._get(message)
        if self._many:
            plain = list(values)
            for place in self._many:
                plain[place] = tuple(plain[place]) if plain[place] else ()
            values = tuple(plain)
        return self._known.get(values) or self._look(values)

    def _look(self, values: tuple[Any, ...]) -> Named:
        found = _Found(None)
        for value, leaf in zip(values, self._leaves, strict=False):
            for name in value if leaf.many else (value,):
                if name or leaf.many:
                    leaf.note(name, found)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        named = self._known[values] = found.named(self._anywhere)
        return named


_REMEMBERED: Final = 2_000


class _Leaf(NamedTuple):
    """A field that holds names: where it is, what to do with each, and whether there are many."""

    path: str
    note: _Walk
    many: bool


def _leaves(descriptor: Descriptor, prefix: str, within: tuple[Descriptor, ...]) -> list[_Leaf] | None:
    """The fields that hold names. None: some are in messages of which there may be many, or that contain themselves."""
    if descriptor in within:
        return None
    found: list[_Leaf] = []
    for field in descriptor.fields:
        if field.message_type is None:
            step = _value(field, {}, updates=False)
            if step is not None:
                found.append(_Leaf(prefix + field.name, step, field.is_repeated))
        elif field.is_repeated:
            if _value(field, {}, updates=False) is not None:
                return None
        else:
            below = _leaves(_type_of(field), f"{prefix}{field.name}.", (*within, descriptor))
            if below is None:
                return None
            found += below
    return found


_Known = dict[Descriptor, _Walk | None]


def _message(descriptor: Descriptor, known: _Known, *, updates: bool = False) -> _Walk | None:
    """
    The walk through a message of that type; None: it can name nothing.

    Args:
        updates: Its message fields are resources of which a mask says what is changed.
    """
    if descriptor in known:
        return known[descriptor]
    steps: dict[FieldDescriptor, _Walk] = {}

    def walk(message: Any, found: _Found) -> None:
        for field, value in message.ListFields():  # those that are set
            step = steps.get(field)
            if step is not None:
                step(value, found)

    known[descriptor] = walk  # a message may contain itself
    steps |= _steps(descriptor, known, updates=updates)
    if not steps:
        known[descriptor] = None
    return known[descriptor]


def _resource(descriptor: Descriptor) -> _Walk | None:
    """The walk through the resource of an update: its name, and the fields that the mask names."""
    steps = _steps(descriptor, {})
    if not steps:
        return None

    def walk(message: Any, found: _Found) -> None:
        changed = {path.partition(".")[0] for path in found.mask or ()}
        for field, value in message.ListFields():
            step = steps.get(field)
            asked = field.name == "name" or not changed or "*" in changed or field.name in changed
            if step is not None and asked:
                step(value, found)

    return walk


def _steps(descriptor: Descriptor, known: _Known, *, updates: bool = False) -> dict[FieldDescriptor, _Walk]:
    """The walks from the fields of a message that can name something."""
    found = ((field, _field(field, known, updates=updates)) for field in descriptor.fields)
    return {field: step for field, step in found if step is not None}


def _field(field: FieldDescriptor, known: _Known, *, updates: bool = False) -> _Walk | None:
    step = _value(field, known, updates=updates)
    if step is None or not field.is_repeated:
        return step
    is_map = _is_map(field)

    def each(values: Any, found: _Found) -> None:
        for value in values.values() if is_map else values:
            step(value, found)

    return each


def _value(field: FieldDescriptor, known: _Known, *, updates: bool) -> _Walk | None:
    """The walk from a value of a field."""
    value = _type_of(field).fields_by_name["value"] if _is_map(field) else field
    if value.message_type is not None:
        return _resource(_type_of(value)) if updates else _message(_type_of(value), known)
    limits = field.GetOptions().Extensions[options_pb2.limits]
    note = _NOTES.get(limits.format)
    return None if note is None and not limits.own else _noting(note, limits)


def _noting(note: _Walk | None, limits: FieldLimits) -> _Walk:
    if not limits.own:
        return note or _elsewhere
    if limits.format == Format.FORMAT_WORKER_ID:
        return lambda worker, found: found.workers.append(worker)
    if limits.format == Format.FORMAT_WORKER_NAME:
        return _own_worker
    return _own


def _place(name: str, found: _Found) -> None:
    found.names.append(name)
    found.places.append(name)


def _within_place(name: str, found: _Found) -> None:
    found.names.append(name)
    found.places.append(name[: name.find("/", name.find("/") + 1)])


def _own_worker(name: str, found: _Found) -> None:
    _within_place(name, found)
    found.workers.append(name.rpartition("/")[2])


def _own(name: str, found: _Found) -> None:
    """Whose it is, the service finds out."""
    found.names.append(name)
    found.own = True


def _elsewhere(name: str, found: _Found) -> None:
    """A name of something that has no place."""
    found.names.append(name)


_NOTES: Final[dict[int, _Walk]] = {
    Format.FORMAT_INSTANCE_NAME: _place,
    Format.FORMAT_PROJECT_NAME: _place,
    Format.FORMAT_QUEUE_NAME: _place,
    Format.FORMAT_TASK_NAME: _within_place,
    Format.FORMAT_WORKER_NAME: _within_place,
    Format.FORMAT_DECISION_NAME: _elsewhere,
    Format.FORMAT_DELEGATION_NAME: _elsewhere,
    Format.FORMAT_SCHEDULE_NAME: _elsewhere,
    Format.FORMAT_PRINCIPAL_NAME: _elsewhere,
    Format.FORMAT_API_KEY_NAME: _elsewhere,
    Format.FORMAT_PEER_NAME: _elsewhere,
    Format.FORMAT_INVITATION_NAME: _elsewhere,
    Format.FORMAT_PAIRING_NAME: _elsewhere,
}


def named_formats() -> Iterable[int]:
    """The formats of resource names: those that this module knows what to do with."""
    return _NOTES.keys()


def _type_of(field: FieldDescriptor) -> Descriptor:
    return cast("Descriptor", field.message_type)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
