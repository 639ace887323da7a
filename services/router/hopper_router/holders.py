"""
Whose claims are whose: people and agents end, keep and report on their own, whatever instance the task is of.

A claim is named by its task and its token, and tokens can be guessed. So before anything is done for somebody with a
key, the task must be held, under that very token, by a worker of theirs. Tokens only grow, and whoever had one had it
alone: what is found so stays so, is kept, and needs no lock. A token that is over is let pass, to be told
STALE_TOKEN; one that was not given out yet is not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final

from sqlalchemy import select
from sqlalchemy.engine import Connection

from hopper.router.v1 import work_service_pb2 as svc
from hopper_common.auth.current import current
from hopper_common.auth.decide import owns_worker
from hopper_common.auth.directory import Directory
from hopper_common.auth.model import Kind, Principal
from hopper_common.clock import Clock
from hopper_common.database import Database
from hopper_common.errors import PermissionDenied
from hopper_router import tables
from hopper_router.store_sql import task_id

_MOST_KEPT: Final = 50_000
_Held = tuple[int, str]
"""A task's token, and the worker that has it; "": nobody."""


class Holders:
    """
    Whose claims are whose.

    Args:
        directory: Whom workers' ids belong to.
    """

    def __init__(self, db: Database, directory: Directory) -> None:
        self._db = db
        self._directory = directory
        self._own: OrderedDict[tuple[str, str, int], None] = OrderedDict()

    @classmethod
    def of_nobody(cls, db: Database, clock: Clock) -> Holders:
        """Where nobody is known, and so nobody but the owner is let at any claim."""
        return cls(db, Directory(clock.monotonic))

    async def require_own(self, claims: Iterable[svc.ClaimRef]) -> None:
        """
        Check the claims that a call names.

        Raises:
            PermissionDenied: One is not the caller's; none was looked at further.
        """
        caller = current()
        if caller.kind is Kind.OWNER:
            return
        unsure = [
            claim for claim in claims if (caller.name, claim.task, claim.fencing_token) not in self._own
        ]
        if not unsure:
            return
        tasks = {task_id(claim.task) for claim in unsure}
        held = await self._db.read(lambda conn: _held(conn, tasks))
        for claim in unsure:
            self._check(caller, claim, held.get(task_id(claim.task)))

    def _check(self, caller: Principal, claim: svc.ClaimRef, held: _Held | None) -> None:
        if held is None:  # not found, or over long ago
            return
        token, worker = held
        if claim.fencing_token < token or (claim.fencing_token == token and not worker):
            return
        known = self._directory.principal
        if claim.fencing_token > token or not owns_worker(
            caller, worker, lambda name: known(name) is not None
        ):
            raise PermissionDenied(
                f"{claim.task} is not claimed by a worker of yours", rule="a claim of somebody else"
            )
        if len(self._own) >= _MOST_KEPT:
            self._own.popitem(last=False)
        self._own[caller.name, claim.task, claim.fencing_token] = None


def _held(conn: Connection, tasks: Iterable[str]) -> Mapping[str, _Held]:
    column = tables.tasks.c
    query = select(column.id, column.token, column.worker).where(column.id.in_(list(tasks)))
    return {row.id: (row.token, row.worker) for row in conn.execute(query)}
