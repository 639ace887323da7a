"""
Activates a root that has been prepared, as soon as every active peer has said that it knows it.

    prepare ─► told to peers (hello, push, or they ask) ─► each acknowledges, durably (`bundles_kept.acknowledged`)
                                                                 │ all have
                                                                 ▼
                                                       Identity.peers_know ─► activate

A peer that is away is waited for until the identity activates by itself, after `rotation.OVERLAP`; one of which nobody
knows where it is, and which has never been heard, is not.
"""

import asyncio
from typing import Final

import structlog

from hopper_common.errors import Overloaded, StorageFull, StorageUnavailable
from hopper_common.identity.errors import IdentityRefused
from hopper_common.identity.store import Identity
from hopper_federation.statuses import Statuses
from hopper_federation.store_sql import Federation

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 1.0


class RootKeeper:
    """Runs beside the server, in the process that has the root's key. `keep` is one round."""

    def __init__(
        self, federation: Federation, identity: Identity, statuses: Statuses, *, pause: float = LOOK_EVERY
    ) -> None:
        self._federation = federation
        self._identity = identity
        self._statuses = statuses
        self._pause = pause
        self._waits_for: list[str] = []

    async def run(self) -> None:
        """Look each second, for ever. That is a comparison in memory while no root is prepared."""
        while True:
            try:
                await self.keep()
            except (StorageFull, StorageUnavailable, Overloaded) as error:
                log.warning("who knows the next root is not known", reason=error.reason, error=error.message)
            except (IdentityRefused, OSError) as error:
                log.warning("the next root cannot be activated", problem=str(error))
            await asyncio.sleep(self._pause)

    async def keep(self) -> None:
        """Activate a root that all active peers know, or say which of them it waits for."""
        if not self._identity.awaits_peers():
            return
        sequence = self._identity.trust_bundle().sequence
        heard = self._statuses.all_heard()
        unaware = await self._federation.read(lambda store: store.unaware(sequence, heard))
        if not unaware:
            # On this thread: who is called back by a change of the identity expects to be on the event loop's.
            self._identity.peers_know(sequence)
        elif unaware != self._waits_for:
            log.info("the next root waits for peers to know it", peers=unaware)
        self._waits_for = unaware
