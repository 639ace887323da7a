"""What does not add up about a peer, written down: its level falls, and its owner's tools say why."""

import asyncio
from functools import partial

import structlog

from hopper_common.errors import Overloaded, StorageFull, StorageUnavailable
from hopper_federation.store_sql import Federation, SqlStore
from hopper_federation.trust import Alert

log = structlog.get_logger(__name__)

_AGAIN_AFTER = 1.0


class Alarms:
    """
    Takes alarms on the event loop's thread, at no cost to who gives them, and writes them down one after the other.

    Call it with an install id and what is wrong.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._waiting: dict[tuple[str, Alert], None] = {}  # each once, in order
        self._given = asyncio.Event()

    def __call__(self, install_id: str, alert: Alert) -> None:
        self._waiting[install_id, alert] = None
        self._given.set()

    async def run(self) -> None:
        """Write down, for ever. What the storage refuses is tried again."""
        while True:
            await self._given.wait()
            self._given.clear()
            while self._waiting:
                install_id, alert = next(iter(self._waiting))
                try:
                    await self._federation.write(partial(_fall, install_id=install_id, alert=alert))
                except (StorageFull, StorageUnavailable, Overloaded) as error:
                    log.error("an alarm is not written down yet", alert=alert, reason=error.reason)
                    await asyncio.sleep(_AGAIN_AFTER)
                    continue
                del self._waiting[install_id, alert]


def _fall(store: SqlStore, install_id: str, alert: Alert) -> None:
    peer = store.peer_of(install_id)
    if peer is None:
        return
    fallen = peer.alerted(alert)
    if fallen is not peer:
        store.save_peer(fallen)
        log.warning("a peer is trusted less", peer=peer.name, alert=alert, level=fallen.level)
