"""Keeps the policies in force signed by a key that is listed: see `grant_store`."""

import asyncio

import structlog

from hopper_common.errors import Overloaded, StorageFull, StorageUnavailable
from hopper_common.identity.errors import IdentityWrongState
from hopper_common.identity.store import Identity
from hopper_federation import grant_store
from hopper_federation.journal import TrustJournal
from hopper_federation.store_sql import Federation, SqlStore

log = structlog.get_logger(__name__)

_AGAIN_AFTER = 5.0


class PolicyKeeper:
    """Runs beside the server. `keep` is one round."""

    def __init__(self, federation: Federation, identity: Identity, journal: TrustJournal) -> None:
        self._federation = federation
        self._identity = identity
        self._journal = journal
        self._changed = asyncio.Event()
        self._told: set[str] = set()
        identity.on_change(self._changed.set)

    async def run(self) -> None:
        """Keep for ever: at once, and after each change of this Hopper's keys."""
        while True:
            self._changed.clear()
            try:
                await self.keep()
            except (StorageFull, StorageUnavailable, Overloaded) as error:
                log.warning("policies are not looked at yet", reason=error.reason, error=error.message)
                await asyncio.sleep(_AGAIN_AFTER)
                continue
            except IdentityWrongState as error:
                log.warning("policies cannot be signed anew here", error=error.message)
            await self._changed.wait()

    async def keep(self) -> None:
        """Sign what needs it, and tell of policies that are not what was signed off, each once."""

        def work(store: SqlStore) -> dict[str, str]:
            spoilt = grant_store.sign_anew(store, self._identity)
            peers = [store.peer_of(install_id) for install_id in spoilt]
            return {peer.install_id: peer.name for peer in peers if peer is not None}

        spoilt = await self._federation.write(work)
        for install_id, name in spoilt.items():
            if install_id not in self._told:
                log.error("the stored policy of a peer is not what was signed off", peer=name)
                self._journal.policy_refused(name)
        self._told = set(spoilt)
