"""What the router needs from the rest of its Hopper, declared by the one who uses it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from hopper_router.directory import Directory


class Changes(Protocol):
    """Something that happens again and again, and that can be waited for without missing it."""

    @property
    def count(self) -> int:
        """How often it has happened."""
        ...

    async def wait(self, *, after: int) -> int:
        """Wait until it has happened more often than that."""
        ...


@dataclass(frozen=True, slots=True)
class RunReport:
    """How the run of an instance went that has come to its end."""

    instance: str
    succeeded: int
    failed: int
    returned: int
    start_time: datetime | None
    end_time: datetime


class Registry(Protocol):
    """The registry, as the router sees it: a copy that is kept fresh, and one thing to report."""

    @property
    def current(self) -> Directory:
        """The last copy; whole, and never changed in place."""
        ...

    @property
    def confirmed(self) -> bool:
        """Whether the registry has told all of it since this process began: what is missing does not exist."""
        ...

    @property
    def changed(self) -> Changes:
        """Fires whenever the copy says something else than before."""
        ...

    async def refresh_project(self, name: str) -> bool:
        """
        Ask once whether a project exists that the copy lacks; True when the copy has it now. Raises RegistryUnknown
        when the registry does not answer.
        """
        ...

    async def refresh_instance(self, name: str) -> bool:
        """
        Ask once what an instance is like now; True when there is one, of which the copy now says the same. Raises
        RegistryUnknown when the registry does not answer and the copy lacks it, or the copy stays behind.
        """
        ...

    async def report_stopped(self, report: RunReport) -> None:
        """Say that nothing runs in a STOPPING instance any more. Raises HopperError when nobody could be told."""
        ...
