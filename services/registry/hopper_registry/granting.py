"""
Who may give rights to whom: nobody more than they have, and only on places they are an admin of.

The guard (`hopper_common.rpc`) has let the call in by what its request names. What it changes is known only here: the
places somebody is bound to *already* count as well, or an admin of a team could disable the admin of everything, and
take a key in their name.

A caller counts as an admin of a place if both its roles and the scopes of its key say so. Agents and services manage
nobody, whoever they act for.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from hopper_common.auth.decide import covers, lets_in
from hopper_common.auth.model import ROOT, Binding, Kind, Role, Tree
from hopper_common.auth.model import Principal as Caller
from hopper_common.errors import PermissionDenied

_ADMIN: Final = (Role.ADMIN,)
_ADMIN_OR_AUDITOR: Final = (Role.ADMIN, Role.AUDITOR)


def check_manages(caller: Caller, places: Iterable[str], tree: Tree) -> None:
    """
    Refuse a caller who is not an admin of all of *places*; of the root, where there are none.

    Raises:
        PermissionDenied: Names the first place that is not theirs.
    """
    _check(caller, places, tree, _ADMIN, "an admin")


def check_reads(caller: Caller, places: Iterable[str], tree: Tree) -> None:
    """The same for an admin or an auditor of each."""
    _check(caller, places, tree, _ADMIN_OR_AUDITOR, "an admin or auditor")


def _check(caller: Caller, places: Iterable[str], tree: Tree, roles: Collection[Role], shown: str) -> None:
    if caller.kind is Kind.OWNER:
        return
    for place in sorted(set(places)) or [ROOT]:
        if not _has_one_of(caller, roles, place, tree):
            raise PermissionDenied(
                f"only {shown} of {place} may do this: ask one, or use this machine's own socket",
                rule=f"{shown.partition(' ')[2]} of {place}",
            )


def manages(caller: Caller, places: Iterable[str], tree: Tree) -> bool:
    """Whether `check_manages` would pass."""
    try:
        check_manages(caller, places, tree)
    except PermissionDenied:
        return False
    return True


def check_manages_key(caller: Caller, key: str, places: Sequence[str], tree: Tree) -> None:
    """
    Refuse a caller who may neither manage the principal of a key nor has the key themselves.

    With a key that has scopes, only that same key is its own: another one might do more.

    Args:
        key: Its name, `principals/{principal}/keys/{key}`.
        places: What its principal is bound to.

    Raises:
        PermissionDenied: It is somebody else's.
    """
    if not _is_own(caller, key):
        check_manages(caller, places, tree)


def _is_own(caller: Caller, key: str) -> bool:
    principal, _, key_id = key.partition("/keys/")
    if caller.kind is not Kind.PERSON or caller.name != principal:
        return False
    return caller.scopes is None or caller.credential == f"key:{key_id}"


def _has_one_of(caller: Caller, roles: Collection[Role], place: str, tree: Tree) -> bool:
    if caller.kind is not Kind.PERSON:
        return False
    granted = _grant(caller.bindings, roles, place, tree)
    return granted and (caller.scopes is None or _grant(caller.scopes, roles, place, tree))


def _grant(bindings: Iterable[Binding], roles: Collection[Role], place: str, tree: Tree) -> bool:
    return any(lets_in(binding.role, roles) and covers(binding.resource, place, tree) for binding in bindings)
