"""
Who makes the call that is being handled.

The guard sets it before a handler runs, for everything that the handler does in its own task and in those it starts.
Outside of calls it is the owner: what a process does by itself, its owner has it do.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Final

from hopper_common.auth.decide import has_role, owns_worker
from hopper_common.auth.directory import Directory
from hopper_common.auth.model import OWNER_NAME, Kind, Principal, Role
from hopper_common.errors import PermissionDenied

OWNER: Final = Principal(OWNER_NAME, Kind.OWNER, credential="socket", source="unix")

CURRENT: Final[ContextVar[Principal]] = ContextVar("principal", default=OWNER)
"""For the guard, and for tests, to set."""


def current() -> Principal:
    """Who calls."""
    return CURRENT.get()


def require_role(role: Role, places: Sequence[str], directory: Directory) -> None:
    """
    For handlers that know better than the request what a call is about.

    Raises:
        PermissionDenied: The caller has not that role, or a higher one, on all of the places (none: the root).
    """
    if not has_role(current(), role, places, directory):
        where = ", ".join(places) or "the root"
        raise PermissionDenied(
            f"this takes the role {role.name.lower()} on {where}", rule=f"no role {role.name.lower()}"
        )


def require_own_worker(worker: str, directory: Directory) -> None:
    """
    Raises:
        PermissionDenied: The caller may not work as that worker.
    """
    principal = current()
    if not owns_worker(principal, worker, lambda name: directory.principal(name) is not None):
        raise PermissionDenied(
            f"{principal.name} may work as {_own_workers(principal)}, not as others",
            rule="a worker of somebody else",
        )


def _own_workers(principal: Principal) -> str:
    own = principal.name.rpartition("/")[2]
    return f"{own}, {own}@host, {own}-1 and the like"
