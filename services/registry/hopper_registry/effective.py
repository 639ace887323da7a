"""
What is left of somebody's bindings under those of somebody or something else: to tell people, not to decide by.

Calls are decided one by one (`hopper_common.auth.decide`); this says the same for all of them at once, as a list.
"""

from collections.abc import Iterable

from hopper_common.auth.decide import covers
from hopper_common.auth.model import Binding, Kind, Principal, Role, Tree
from hopper_registry.access_model import ordered

_BESIDE_THE_LINE = frozenset({Role.AGENT, Role.AUDITOR})


def effective(caller: Principal, tree: Tree) -> tuple[Binding, ...]:
    """What a person or an agent may do: its bindings, cut down to those of its key and of whom it acts for."""
    left = ordered(caller.bindings)
    if caller.scopes is not None:
        left = _both(left, caller.scopes, tree)
    if caller.kind is Kind.AGENT:
        person = caller.acting_for
        left = () if person is None else _on_behalf(left, person.bindings, tree)
    return left


def _both(left: Iterable[Binding], other: Iterable[Binding], tree: Tree) -> tuple[Binding, ...]:
    """What both allow."""
    found = []
    for mine in left:
        for theirs in other:
            role, place = _weaker(mine.role, theirs.role), _narrower(mine.resource, theirs.resource, tree)
            if role is not None and place:
                found.append(Binding(role, place))
    return ordered(found)


def _on_behalf(left: Iterable[Binding], person: Iterable[Binding], tree: Tree) -> tuple[Binding, ...]:
    """What an agent may do where the person has a role at all: that role counts in each call."""
    places = [
        (mine.role, _narrower(mine.resource, theirs.resource, tree)) for mine in left for theirs in person
    ]
    return ordered(Binding(role, place) for role, place in places if place)


def _weaker(one: Role, other: Role) -> Role | None:
    if one is other:
        return one
    return None if _BESIDE_THE_LINE & {one, other} else max(one, other)


def _narrower(one: str, other: str, tree: Tree) -> str:
    """The one of two places that is under the other; empty if they are apart."""
    if covers(one, other, tree):
        return other
    return one if covers(other, one, tree) else ""
