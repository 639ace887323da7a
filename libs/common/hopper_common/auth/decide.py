"""
May this principal call this method, on these places? A pure function, and the only answer there is.

    owner      everything
    service    what names it
    peer       what asks for its level or a lower one
    stranger   what is for strangers
    person     a role that the method names, on every place that the call names
    agent      the same, of methods that name AGENT; and so must the person it acts for

A role on an instance holds for everything under it, never for what is beside it or above; a role on a project for that
project. The root covers everything. A key with scopes may do what both it and its principal may. What a call names no
place for is about the root.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from hopper_common.auth.model import ROOT, Access, Binding, Kind, Principal, Role, Tree, TrustLevel

PERMISSION_DENIED: Final = "PERMISSION_DENIED"

_LINE: Final = frozenset({Role.OWNER, Role.ADMIN, Role.OPERATOR, Role.MEMBER, Role.VIEWER})
_LEVELS: Final = frozenset({TrustLevel.UNTRUSTED, TrustLevel.KNOWN, TrustLevel.TRUSTED, TrustLevel.VERIFIED})
_PRINCIPALS: Final = "principals/"
_SEPARATORS: Final = ".@-"
_MOST_VERDICTS: Final = 500


class Verdict(NamedTuple):
    """
    What was decided.

    Attributes:
        rule: What decided, for people and the audit log: no text of a request but names of places.
        reason: Why not, a name of the catalogue; empty where it is allowed.
    """

    allowed: bool
    rule: str
    reason: str = ""


@dataclass(slots=True)
class Session:
    """
    A principal, proved, with the verdicts on it that still hold: by method and places.

    Callers come again and again with the same few questions. Who has proved the principal makes a new one whenever
    anything has changed that a verdict goes by.
    """

    principal: Principal
    verdicts: dict[tuple[str, tuple[str, ...] | None], Verdict] = field(default_factory=dict, kw_only=True)
    kept: dict[Any, Any] = field(default_factory=dict, kw_only=True)
    """What else whoever asks has concluded about the principal, under keys of their own."""

    def decide(self, method: str, access: Access, places: tuple[str, ...] | None, tree: Tree) -> Verdict:
        """As `decide`, of which it keeps the answers."""
        key = (method, places)
        verdict = self.verdicts.get(key)
        if verdict is None:
            if len(self.verdicts) >= _MOST_VERDICTS:
                self.verdicts.clear()
            verdict = self.verdicts[key] = decide(self.principal, access, places, tree)
        return verdict


def decide(principal: Principal, access: Access, places: Sequence[str] | None, tree: Tree) -> Verdict:
    """
    Judge one call.

    Args:
        places: Instances and projects that the call is about; none: the root. None: wherever the principal has a role,
            as for what it asks about itself, and before the request is read.
    """
    if principal.kind is Kind.OWNER:
        return Verdict(True, "the owner may do everything")
    if access.local:
        return _no("only through this machine's own socket")
    if principal.kind is Kind.SERVICE:
        return _service(principal, access)
    if principal.kind is Kind.PEER:
        return _peer(principal, access)
    if principal.kind is Kind.STRANGER:
        return Verdict(True, "the method is for strangers") if access.strangers else _no("not for strangers")
    return _person_or_agent(principal, access, places, tree)


def lets_in(held: Role, named: Iterable[Role]) -> bool:
    """Whether somebody with the role *held* may call what names those roles."""
    return any(held is role or (held in _LINE and role in _LINE and held < role) for role in named)


def covers(binding: str, place: str, tree: Tree) -> bool:
    """Whether a role on the one resource holds for the other."""
    return binding in (place, ROOT) or binding in tree.ancestors(place)


def has_role(principal: Principal, role: Role, places: Sequence[str], tree: Tree) -> bool:
    """
    Whether the principal has that role, or a higher one, on all the places. An agent has what it and its person have;
    services and peers have none.
    """
    if principal.kind is Kind.OWNER:
        return True
    if principal.kind is Kind.AGENT:
        person = principal.acting_for
        if person is None or not has_role(person, role, places, tree):
            return False
    elif principal.kind is not Kind.PERSON:
        return False
    return _roles(principal, Access(roles=frozenset({role})), places, tree).allowed


def worker_owner(worker: str, known: Callable[[str], bool]) -> str:
    """
    Whose a worker id is: the principal with the longest id that it is, or begins with before a `.`, `@` or `-`.

    Args:
        known: Whether there is a principal of that name.

    Returns:
        Its name; empty: nobody's.
    """
    ends = [len(worker), *(at for at in range(len(worker) - 1, 0, -1) if worker[at] in _SEPARATORS)]
    names = (_PRINCIPALS + worker[:end] for end in ends)
    return next((name for name in names if known(name)), "")


def owns_worker(principal: Principal, worker: str, known: Callable[[str], bool]) -> bool:
    """
    Whether the principal may work as that worker: people and agents as their own, services under their own name, the
    owner as anybody.
    """
    if principal.kind in (Kind.PERSON, Kind.AGENT):
        return worker_owner(worker, known) == principal.name
    if principal.kind is Kind.SERVICE:
        return principal.service is not None and worker == principal.service.name.lower()
    return principal.kind is Kind.OWNER


def _no(rule: str) -> Verdict:
    return Verdict(False, rule, PERMISSION_DENIED)


def _service(principal: Principal, access: Access) -> Verdict:
    service = principal.service
    if service is not None and service in access.services:
        return Verdict(True, f"service {service.name.lower()} is named by the method")
    return _no(f"service {service.name.lower() if service else 'unknown'} is not named by the method")


def _peer(principal: Principal, access: Access) -> Verdict:
    held, asked = principal.level, access.peers
    if asked is None:
        return _no("not for peers")
    if held is None:
        return _no("the peer has no level")
    if held is asked or (held in _LEVELS and asked in _LEVELS and held > asked):
        return Verdict(True, f"peer is {held.name.lower()}, the method asks for {asked.name.lower()}")
    return _no(f"peer is {held.name.lower()}, the method asks for {asked.name.lower()}")


def _person_or_agent(
    principal: Principal, access: Access, places: Sequence[str] | None, tree: Tree
) -> Verdict:
    if principal.kind is not Kind.AGENT:
        return _roles(principal, access, places, tree)
    if Role.AGENT not in access.roles:
        return _no("not for agents, whoever they act for")
    person = principal.acting_for
    if person is None or person.kind is not Kind.PERSON:
        return _no("the agent acts for nobody")
    own, theirs = _roles(principal, access, places, tree), _roles(person, access, places, tree)
    if not own.allowed:
        return own
    if not theirs.allowed:
        return _no(f"for {person.name}: {theirs.rule}")
    return Verdict(True, f"{own.rule}; for {person.name}: {theirs.rule}")


def _roles(principal: Principal, access: Access, places: Sequence[str] | None, tree: Tree) -> Verdict:
    decisive = None
    asked: Sequence[str | None] = (None,) if places is None else places or (ROOT,)
    for place in asked:
        decisive = _binding(principal.bindings, access, place, tree)
        if decisive is None:
            return _no(f"no role{_on(place)} that the method is for")
        if principal.scopes is not None and _binding(principal.scopes, access, place, tree) is None:
            return _no(f"the key is not for that{_on(place)}")
    if decisive is None:
        raise AssertionError("a call is about at least one place")
    return Verdict(True, f"{decisive.role.name.lower()} on {decisive.resource}")


def _on(place: str | None) -> str:
    return "" if place is None else f" on {place}"


def _binding(bindings: Iterable[Binding], access: Access, place: str | None, tree: Tree) -> Binding | None:
    return next(
        (
            binding
            for binding in bindings
            if lets_in(binding.role, access.roles)
            and (place is None or covers(binding.resource, place, tree))
        ),
        None,
    )
