"""
What the federation service does by itself: end pairings whose time is over, forget what is old, and keep the trust
snapshot true.
"""

import asyncio
import contextlib
from datetime import timedelta
from typing import Final

import structlog

from hopper_common.clock import Clock
from hopper_common.errors import Overloaded, StorageFull, StorageUnavailable
from hopper_federation.pairing import EXPIRED, Event
from hopper_federation.store_sql import Federation, SqlStore
from hopper_federation.trust_snapshot import TrustSnapshots

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 1.0
FORGET_EVERY: Final = timedelta(minutes=1)
CONFIRM_EVERY: Final = 5.0

_PUT_OFF: Final = (StorageFull, StorageUnavailable, Overloaded)


class Housekeeper:
    """Runs beside the server. `keep` is one round, for tests."""

    def __init__(self, federation: Federation, clock: Clock, *, pause: float = LOOK_EVERY) -> None:
        self._federation = federation
        self._clock = clock
        self._pause = pause
        self._forget_at = 0.0

    async def run(self) -> None:
        """Keep house each second, for ever. A round that the storage refuses is done by a later one."""
        while True:
            try:
                await self.keep()
            except _PUT_OFF as error:
                log.warning("housekeeping put off", reason=error.reason, message=error.message)
            await asyncio.sleep(self._pause)

    async def keep(self) -> None:
        """End what is overdue, and now and then forget what is too old."""
        open_now = await self._federation.read(lambda store: store.open_sessions())
        if any(session.overdue(self._clock.now()) for session in open_now):
            await self._federation.write(_end_overdue)
        if self._clock.monotonic() >= self._forget_at:
            await self._federation.forget()
            self._forget_at = self._clock.monotonic() + FORGET_EVERY.total_seconds()


def _end_overdue(store: SqlStore) -> None:
    for session in store.open_sessions():
        if session.overdue(store.now):
            store.save_session(session.moved(Event.EXPIRE, store.now, failure=EXPIRED))


class TrustKeeper:
    """
    Keeps the trust snapshot as the store has it: after each change of a peer, and every few seconds to say that it
    still holds.

    When the store does not answer, the snapshot stays and grows old, which those who read it notice.
    """

    def __init__(
        self,
        federation: Federation,
        snapshots: TrustSnapshots,
        clock: Clock,
        *,
        confirm_every: float = CONFIRM_EVERY,
    ) -> None:
        self._federation = federation
        self._snapshots = snapshots
        self._clock = clock
        self._confirm_every = confirm_every
        self._looking = asyncio.Lock()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            changes = self._federation.logged.count
            try:
                await self.look()
            except _PUT_OFF as error:
                log.error("whom to trust is not known", reason=error.reason, message=error.message)
                await asyncio.sleep(LOOK_EVERY)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._confirm_every):
                    await self._federation.logged.wait(after=changes)

    async def look(self) -> None:
        """Take over what the store says now."""
        async with self._looking:  # one after the other, or an earlier answer could replace a later one
            asked = self._clock.monotonic()  # before the answer: it may have been true no longer than that
            peers = await self._federation.read(lambda store: store.trusted_peers())
            self._snapshots.replace(peers, asked)
