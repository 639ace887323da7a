"""
Ends hand-overs with who is no peer any more.

    revoked --now, --compromised, or an impostor ──► at once
    revoked --drain                              ──► when its time has come; until then all goes on, and nothing begins
    it has revoked this Hopper                   ──► as soon as it says so, whatever it is asked
    level fallen to KNOWN                        ──► nothing is offered any more (`presence`); what is open goes on

Whatever was handed over goes back to the router, what was taken over is stopped; the desk has the rules. It is looked
again after every change of trust, so a process that dies in between does it at its next start.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Final

import structlog

from hopper_common.clock import Clock
from hopper_common.database import Signal
from hopper_common.errors import Overloaded, StorageFull, StorageUnavailable
from hopper_federation.delegation.crossings_journal import CrossingsJournal
from hopper_federation.delegation.desks import Desks, Sitting
from hopper_federation.delegation.model import Gone
from hopper_federation.model import Revocation
from hopper_federation.statuses import REFUSALS, Statuses
from hopper_federation.trust_snapshot import TrustSnapshot, TrustSnapshots

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 5.0
_PUT_OFF: Final = (StorageFull, StorageUnavailable, Overloaded)


class Parting:
    """Runs beside the server. `look` is one round."""

    def __init__(
        self,
        desks: Desks,
        snapshots: TrustSnapshots,
        statuses: Statuses,
        clock: Clock,
        journal: CrossingsJournal,
    ) -> None:
        self._desks = desks
        self._snapshots = snapshots
        self._clock = clock
        self._journal = journal
        self._changed = Signal()
        self._ended: set[str] = set()  # install ids of those with whom this process has ended everything
        self._refusing: set[str] = set()  # and of those who want nothing more of this Hopper
        snapshots.on_change(self._on_trust)
        statuses.on_failed(self._on_failed)
        statuses.on_back(self._refusing.discard)

    async def run(self) -> None:
        """Look for ever."""
        while True:
            seen = self._changed.count
            try:
                await self.look()
            except _PUT_OFF as error:
                log.warning("hand-overs with a revoked peer are not ended yet", reason=error.reason)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._changed.wait(after=seen)

    async def look(self) -> None:
        """End what is open with those who are gone."""
        gone = dict.fromkeys(self._refusing, Gone.REVOKED_BY_PEER)
        gone |= dict(departed(self._snapshots.current, self._clock.now()))
        self._ended &= gone.keys()
        if not gone:
            return
        open_with = set(await self._desks.read(lambda rows: rows.open_peers()))
        for install_id, why in gone.items():
            if install_id not in self._ended or install_id in open_with:
                await self._end(install_id, why)
                self._ended.add(install_id)

    async def _end(self, install_id: str, why: Gone) -> None:
        def work(sitting: Sitting) -> int:
            ended = sitting.desk.peer_gone(install_id, why)
            sitting.rows.give_up(install_id)
            return ended

        ended = await self._desks.write(work)
        if ended:
            self._journal.gone(install_id, why, ended)

    def _on_failed(self, install_id: str, reason: str) -> None:
        if reason in REFUSALS and install_id not in self._refusing:
            self._refusing.add(install_id)
            self._changed.fire()

    def _on_trust(self, _: TrustSnapshot) -> None:
        self._changed.fire()


def departed(snapshot: TrustSnapshot, now: datetime) -> Iterator[tuple[str, Gone]]:
    """The install ids of those who are no peers any more, and why."""
    for peer in snapshot.peers.values():
        if peer.is_gone(now):
            compromised = peer.revocation is Revocation.COMPROMISED
            yield peer.install_id, Gone.COMPROMISED if compromised else Gone.REVOKED
