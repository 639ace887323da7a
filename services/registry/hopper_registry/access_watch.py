"""
What every process of a Hopper has to know to judge a call, told as it changes.

A beat says that there was nothing to tell. It comes only after the store has been asked: a registry that cannot reach
its database falls silent, and whoever listens begins to doubt what they know.
"""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Final

from hopper.common.v1.watch_pb2 import SnapshotComplete
from hopper.registry.v1 import access_service_pb2 as asvc
from hopper.registry.v1 import principal_pb2 as apb
from hopper_common.clock import Clock
from hopper_common.eventlog import Event
from hopper_common.timestamps import to_proto
from hopper_registry.access_convert import key_record, principal_to_proto, token_key_to_proto
from hopper_registry.access_store import ACCESS_TOPICS, KEY_CHANGED, PRINCIPAL_CHANGED, PRINCIPAL_REMOVED
from hopper_registry.store_sql import Registry, SqlStore

BEAT: Final = timedelta(seconds=3)

Message = asvc.WatchAccessResponse


async def watch_access(
    registry: Registry, clock: Clock, *, after: int = 0, beat: timedelta = BEAT
) -> AsyncGenerator[Message, None]:
    """
    A snapshot, unless *after* is a version; then every change, for ever. And beats: one when all that was missed has
    been told, then one every so often.

    Raises:
        ResumeTooOld: The changes since that version are not kept.
    """
    if not after:
        snapshot = await registry.read(_snapshot)
        for message in snapshot:
            yield message
        after = snapshot[-1].version
    loop = asyncio.get_running_loop()
    due = loop.time()  # at once: whoever resumes wants to know when there is nothing more
    while True:
        commits = registry.commits  # before the look: a commit during it is not lost
        events, after, more = await registry.look(after=after, topics=ACCESS_TOPICS)
        for event in events:
            yield _message(event)
        if more:
            continue
        # Most commits are about something else. They are looked at, and nobody is told.
        if loop.time() >= due:
            yield Message(version=after, alive=to_proto(clock.now()))
            due = loop.time() + beat.total_seconds()
        await registry.committed_after(commits, most=timedelta(seconds=max(0.0, due - loop.time())))


def _snapshot(store: SqlStore) -> list[Message]:
    version = store.version
    messages = [
        Message(version=version, principal=principal_to_proto(principal)) for principal in store.principals()
    ]
    messages += [Message(version=version, key=key_record(key)) for key in store.all_keys()]
    messages += [
        Message(version=version, token_key=token_key_to_proto(each.key)) for each in store.signing_keys()
    ]
    messages.append(Message(version=version, snapshot_complete=SnapshotComplete(count=len(messages))))
    return messages


def _message(event: Event) -> Message:
    if event.topic == PRINCIPAL_CHANGED:
        return Message(version=event.version, principal=apb.Principal.FromString(event.body))
    if event.topic == PRINCIPAL_REMOVED:
        return Message(version=event.version, removed_principal=event.key)
    if event.topic == KEY_CHANGED:
        return Message(version=event.version, key=asvc.KeyRecord.FromString(event.body))
    return Message(version=event.version, token_key=asvc.TokenKey.FromString(event.body))
