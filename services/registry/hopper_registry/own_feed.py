"""
What the registry's own process knows of callers: straight from the store, without a stream.

After every change that came as a call, the store is looked at before the call is answered: whoever made a key may use
it at once, and nobody uses one that was revoked. What another registry on the same database changes is seen with its
commit.
"""

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from hopper.registry.v1 import access_service_pb2 as asvc
from hopper.registry.v1 import principal_pb2 as apb
from hopper.registry.v1.instance_pb2 import Instance
from hopper_common.auth.directory import Directory
from hopper_common.auth.follow import directory_key, directory_token_key, principal_record
from hopper_common.auth.uses import KeyUses
from hopper_common.errors import HopperError, Overloaded, ResumeTooOld, StorageFull, StorageUnavailable
from hopper_common.eventlog import Event
from hopper_registry.access_convert import key_record, principal_to_proto, token_key_to_proto
from hopper_registry.access_store import (
    ACCESS_TOPICS,
    KEY_CHANGED,
    PRINCIPAL_CHANGED,
    PRINCIPAL_REMOVED,
    TOKEN_KEY_CHANGED,
)
from hopper_registry.store_sql import INSTANCE_CHANGED, Registry, SqlStore

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = timedelta(seconds=3)
WRITE_USES_EVERY: Final = timedelta(seconds=15)
RETRY_AFTER: Final = 1.0

_TOPICS: Final = (*ACCESS_TOPICS, INSTANCE_CHANGED)
_PASSING: Final = (StorageFull, StorageUnavailable, Overloaded)


class OwnFeed:
    """Fills the directory of the process that the registry runs in."""

    def __init__(self, registry: Registry, directory: Directory) -> None:
        self._registry = registry
        self._directory = directory
        self._uses = KeyUses(directory)
        self._version = 0
        self._lock = asyncio.Lock()
        self._asked = 0
        self._served = 0

    async def load(self) -> None:
        """Fill it from nothing. Before anybody calls."""
        self._version = await self._registry.read(self._load)

    def _load(self, store: SqlStore) -> int:
        # Through the messages, so that no two processes can understand the same rows differently.
        self._directory.load_instances(
            {instance.name: instance.spec.parent for instance in store.instances()}
        )
        self._directory.load(
            principals=[principal_record(principal_to_proto(each)) for each in store.principals()],
            keys=[directory_key(key_record(key)) for key in store.all_keys()],
            token_keys=[directory_token_key(token_key_to_proto(each.key)) for each in store.signing_keys()],
        )
        return store.version

    async def catch_up(self) -> None:
        """
        Take over all that is committed.

        Raises:
            StorageUnavailable: The store does not say; what is known stays.
        """
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._served >= mine:
                return  # a look that began after this was asked has seen it: many changes share one
            asked, more = self._asked, True
            while more:
                try:
                    events, self._version, more = await self._registry.look(
                        after=self._version, topics=_TOPICS
                    )
                except ResumeTooOld:  # looked at too seldom, or a backup was restored
                    await self.load()
                    return
                for event in events:
                    self._take(event)
            self._served = asked
            self._directory.heard()

    async def after_change(self) -> None:
        """`catch_up` for a call that was carried out: it is answered, whatever comes of this."""
        try:
            await self.catch_up()
        except HopperError as error:
            log.warning("a change is known here a little later", reason=error.reason)

    def _take(self, event: Event) -> None:
        if event.topic == PRINCIPAL_CHANGED:
            self._directory.put_principal(principal_record(apb.Principal.FromString(event.body)))
        elif event.topic == PRINCIPAL_REMOVED:
            self._directory.remove_principal(event.key)
        elif event.topic == KEY_CHANGED:
            self._directory.put_key(directory_key(asvc.KeyRecord.FromString(event.body)))
        elif event.topic == TOKEN_KEY_CHANGED:
            self._directory.put_token_key(directory_token_key(asvc.TokenKey.FromString(event.body)))
        else:
            self._directory.put_instance(event.key, Instance.FromString(event.body).parent)

    # Beside the server.

    async def run(self) -> None:
        """Look at every commit, and now and then without one, for ever. What the storage refuses is tried again."""
        while True:
            try:
                commits = self._registry.commits
                await self.catch_up()
            except _PASSING as error:
                log.warning("who may call is not known fresh", reason=error.reason)
                await asyncio.sleep(RETRY_AFTER)
                continue
            await self._registry.committed_after(commits, most=LOOK_EVERY)

    async def write_uses_forever(self) -> None:
        """Write down now and then which keys were used."""
        while True:
            await asyncio.sleep(WRITE_USES_EVERY.total_seconds())
            await self.write_uses()

    async def write_uses(self) -> None:
        """Write down which keys were used, in one transaction. What the storage refuses is done by a later round."""
        taken = self._uses.take()
        if not taken:
            return
        try:
            await self._registry.write(lambda store: store.note_uses(taken))
        except _PASSING as error:
            self._uses.put_back(taken)
            log.warning("the uses of keys are written later", reason=error.reason)
