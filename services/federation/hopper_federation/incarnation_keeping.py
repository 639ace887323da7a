"""Keeps the mark beside the database, and says so when it marks another database: see `incarnation`."""

import asyncio
import json
from pathlib import Path
from typing import Final

import structlog

from hopper_common.clock import Clock
from hopper_common.errors import Overloaded, StorageFull, StorageUnavailable
from hopper_common.identity.files import write_private
from hopper_common.identity.store import Identity
from hopper_federation.delegation.desk import Desk
from hopper_federation.delegation.store_sql import SqlDelegations
from hopper_federation.incarnation import Incarnation, Mark, Restored, at_start
from hopper_federation.store_sql import Federation, SqlStore

log = structlog.get_logger(__name__)

FILE: Final = "federation.mark"
MARK_EVERY: Final = 5.0

_PUT_OFF: Final = (StorageFull, StorageUnavailable, Overloaded, OSError)


class IncarnationKeeper:
    """
    Begins before anything is sent, runs beside the server, and closes before the database does.

    Args:
        mark: The file.
    """

    def __init__(
        self,
        federation: Federation,
        identity: Identity,
        mark: Path,
        clock: Clock,
        *,
        pause: float = MARK_EVERY,
    ) -> None:
        self._federation = federation
        self._identity = identity
        self._file = mark
        self._clock = clock
        self._pause = pause
        self._commits = -1

    async def begin(self) -> None:
        """
        Compare, and tell the service (`Federation.incarnation`, `resync`) and the log what came of it.

        Raises:
            StorageFull, StorageUnavailable: Something has to be noted, and cannot be.
        """
        mark = _read(self._file)
        stored = await self._federation.read(lambda store: store.incarnation())
        after = at_start(stored, mark, self._identity.incarnation, int(self._clock.now().timestamp()))
        if after != stored:
            await self._federation.write(lambda store: _begin_anew(store, after))
        self._federation.begin(after)
        await self._keep()
        if after != stored and after.restored is not Restored.NO:
            log.error(
                "what was agreed with peers since the copy was made is not known here; notes are compared with each "
                "before anything is sent to it",
                cause=str(after.restored),
                incarnation=after.number,
            )

    async def run(self) -> None:
        """Mark now and then, for ever."""
        while True:
            await asyncio.sleep(self._pause)
            await self._keep()

    async def keep(self) -> None:
        """Mark, if the database has changed since."""
        if self._federation.committed.count != self._commits:
            await self._mark()

    async def close(self) -> None:
        """Mark what it ends with, if it has begun."""
        if self._federation.begun.identity:
            await self._keep()

    async def _keep(self) -> None:
        """A mark that could not be written is an earlier one, and a later start finds nothing wrong with that."""
        try:
            await self.keep()
        except _PUT_OFF as error:
            log.warning("the database is not marked", error=type(error).__name__, message=str(error))

    async def _mark(self) -> None:
        """First in the database, then outside: a mark is never ahead, whoever dies in between."""
        commits = self._federation.committed.count

        def work(store: SqlStore) -> tuple[Incarnation, list[str]]:
            ticked = (store.incarnation() or self._federation.begun).ticked()
            store.save_incarnation(ticked)
            return ticked, store.unsynced()

        ticked, unsynced = await self._federation.write(work)
        content = {
            "incarnation": ticked.number,
            "tick": ticked.tick,
            "restored": str(ticked.restored),
            "unsynced": unsynced,
        }
        await asyncio.to_thread(write_private, self._file, json.dumps(content).encode() + b"\n")
        self._commits = commits + 1  # its own; one more means that there is something to mark


def _begin_anew(store: SqlStore, after: Incarnation) -> None:
    store.save_incarnation(after)
    if after.restored is not Restored.NO:
        rows = SqlDelegations(store.conn)
        Desk(rows, store.now.timestamp()).restored(rows.open_peers())


def _read(file: Path) -> Mark | None:
    """The mark; one that cannot be read is none, and that leads to more care, not less."""
    try:
        said = json.loads(file.read_bytes())
        return Mark(int(said["incarnation"]), int(said["tick"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the mark of the database cannot be read", file=str(file), error=type(error).__name__)
        return None
