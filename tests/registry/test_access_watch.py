"""The stream of who may call: a snapshot, every change, and beats that say there was none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial

import grpc
import pytest

from hopper.registry.v1 import access_service_pb2 as asvc
from hopper_common.auth.api_keys import hash_of, new_key
from hopper_common.auth.directory import Directory
from hopper_common.auth.follow import AccessFeed
from hopper_common.auth.model import OWNER_NAME, ROOT, Binding, Kind, Role
from hopper_common.auth.model import Principal as Caller
from hopper_common.errors import StorageUnavailable
from hopper_registry import access, instances
from hopper_registry.access_model import KeySpec, PrincipalSpec
from hopper_registry.access_watch import watch_access
from hopper_registry.own_feed import OwnFeed
from hopper_registry.sql_rows import LOG
from hopper_registry.store_sql import Registry, SqlStore
from hopper_testing.clock import ManualClock
from hopper_testing.database import FaultyDatabase
from tests.registry.harness import RunningRegistry, refusal
from tests.registry.test_access import add, make_key, revoke, update

CODE = grpc.StatusCode
PATIENCE = 60
OWNER = Caller(OWNER_NAME, Kind.OWNER, credential="socket")

Message = asvc.WatchAccessResponse


@asynccontextmanager
async def watching(registry: RunningRegistry, after: int = 0) -> AsyncIterator[AsyncIterator[Message]]:
    """The messages of one stream; cancelled at the end."""
    call = registry.access.WatchAccess(asvc.WatchAccessRequest(after_version=after))
    try:
        async with asyncio.timeout(PATIENCE):
            yield aiter(call)
    finally:
        call.cancel()


async def snapshot(stream: AsyncIterator[Message]) -> list[Message]:
    """What comes before its end; fails if the end does not count right."""
    found: list[Message] = []
    async for message in stream:
        if message.HasField("snapshot_complete"):
            assert message.snapshot_complete.count == len(found)
            return [*found, message]
        found.append(message)
    raise AssertionError("it ended in the middle")


async def change(stream: AsyncIterator[Message]) -> Message:
    """The next that is no beat."""
    async for message in stream:
        if not message.HasField("alive"):
            return message
    raise AssertionError("it ended")


async def test_a_snapshot_has_everything_and_then_come_changes(registry: RunningRegistry) -> None:
    principal = await add(registry)
    made = await make_key(registry)
    async with watching(registry) as stream:
        *found, complete = await snapshot(stream)
        assert [each.principal for each in found if each.HasField("principal")] == [principal]
        (key,) = [each.key for each in found if each.HasField("key")]
        assert (key.key, key.hash) == (made.key, hash_of(made.secret))
        assert [each.token_key.kid for each in found if each.HasField("token_key")]
        assert {each.version for each in found} == {complete.version}

        changed = await update(registry, "disabled", disabled=True)
        message = await change(stream)
        assert (message.version, message.principal) == (complete.version + 1, changed)
        revoked = await revoke(registry, made.key.name)
        assert (await change(stream)).key.key == revoked
        await registry.access.DeletePrincipal(asvc.DeletePrincipalRequest(name="principals/ada"))
        assert (await change(stream)).removed_principal == "principals/ada"


async def test_a_watch_goes_on_after_a_version_and_says_when_it_has_caught_up(
    registry: RunningRegistry,
) -> None:
    """Also over a restart; each change once."""
    async with watching(registry) as stream:
        version = (await snapshot(stream))[-1].version
    principal = await add(registry)
    await registry.restart()
    async with watching(registry, version) as stream:
        assert (await anext(stream)).principal == principal
        beat = await anext(stream)
        assert beat.HasField("alive")
    async with watching(registry, beat.version) as stream:
        again = await anext(stream)
        assert (again.WhichOneof("change"), again.version) == ("alive", beat.version)


async def test_a_version_that_never_was_is_refused(registry: RunningRegistry) -> None:
    async with watching(registry) as stream:
        version = (await snapshot(stream))[-1].version

    async def resume() -> None:
        async with watching(registry, version + 1) as stream:
            await anext(stream)

    await refusal(resume(), CODE.OUT_OF_RANGE, "RESUME_TOO_OLD", asked=str(version + 1), oldest="1")


# On the store itself, where what fails and how often beats come is in the test's hand.


@pytest.fixture
async def stored(db: FaultyDatabase) -> Registry:
    registry = Registry(db, ManualClock())
    await registry.write(instances.ensure_root)
    return registry


def add_ada(store: SqlStore) -> None:
    access.create(store, OWNER, "principals/ada", PrincipalSpec(Kind.PERSON))


async def test_beats_come_again_and_again(stored: Registry) -> None:
    stream = watch_access(stored, ManualClock(), beat=timedelta(milliseconds=1))
    async with aclosing(stream), asyncio.timeout(PATIENCE):
        await snapshot(stream)
        for _ in range(3):
            assert (await anext(stream)).HasField("alive")


async def _exhaust(stream: AsyncIterator[Message]) -> None:
    async for _ in stream:
        pass


async def test_no_beat_comes_of_a_registry_that_cannot_ask_its_store(
    stored: Registry, db: FaultyDatabase
) -> None:
    """Whoever listens is to doubt what they know."""
    stream = watch_access(stored, ManualClock(), beat=timedelta(milliseconds=1))
    async with aclosing(stream), asyncio.timeout(PATIENCE):
        await snapshot(stream)
        db.set_next_error(StorageUnavailable(service="registry"), at="read")
        with pytest.raises(StorageUnavailable):
            await _exhaust(stream)


async def test_changes_of_other_things_are_looked_at_and_not_told(stored: Registry) -> None:
    """A registry full of heartbeats keeps nobody busy with who may call."""
    stream = watch_access(stored, ManualClock(), beat=timedelta(hours=1))
    async with aclosing(stream), asyncio.timeout(PATIENCE):
        await snapshot(stream)
        assert (await anext(stream)).HasField("alive")
        following = asyncio.ensure_future(anext(stream))
        for number in range(5):
            await stored.write(partial(_rename_root, name=str(number)))
        await stored.write(add_ada)
        assert (await following).principal.name == "principals/ada"


def _rename_root(store: SqlStore, name: str) -> None:
    spec = instances.get(store, ROOT).spec
    instances.update(store, ROOT, "", lambda _: replace(spec, display_name=name))


# The registry's own process.


async def test_the_own_process_knows_it_before_the_answer(stored: Registry) -> None:
    directory = Directory(ManualClock().monotonic)
    feed = OwnFeed(stored, directory)
    await feed.load()
    stored.after_change = feed.after_change
    new = new_key()

    def make(store: SqlStore) -> None:
        add_ada(store)
        access.create_key(store, OWNER, "principals/ada", KeySpec(scopes=(Binding(Role.VIEWER, ROOT),)), new)

    await stored.change(make)
    key = directory.key(new.id)
    assert key is not None
    assert (key.hash, key.scopes) == (new.hash, (Binding(Role.VIEWER, ROOT),))
    await stored.change(lambda store: access.revoke_key(store, OWNER, f"principals/ada/keys/{new.id}"))
    key = directory.key(new.id)
    assert key is not None
    assert key.revoked == ManualClock().now()


async def test_a_change_is_answered_though_the_own_process_could_not_look(
    stored: Registry, db: FaultyDatabase
) -> None:
    """It is durable; what it shows, perhaps a key, is shown nowhere else."""
    directory = Directory(ManualClock().monotonic)
    feed = OwnFeed(stored, directory)
    await feed.load()
    stored.after_change = feed.after_change
    db.set_next_error(StorageUnavailable(service="registry"), at="read")
    await stored.change(add_ada)
    assert directory.principal("principals/ada") is None
    await feed.catch_up()
    assert directory.principal("principals/ada") is not None


async def test_a_feed_that_fell_behind_the_log_begins_anew(stored: Registry, db: FaultyDatabase) -> None:
    directory = Directory(ManualClock().monotonic)
    feed = OwnFeed(stored, directory)  # at version 0, which a log that was trimmed does not keep
    await stored.write(add_ada)
    await db.write(lambda conn: LOG.trim(conn, before=LOG.head(conn)))
    await feed.catch_up()
    assert directory.principal("principals/ada") is not None
    assert directory.fresh


# What others make of it.


def test_half_a_snapshot_changes_nothing() -> None:
    """It may lack whoever was revoked."""
    directory = Directory(ManualClock().monotonic)
    feed = AccessFeed(directory)
    feed.begin()
    feed.take(Message(version=5, removed_principal="principals/ada"))
    half = Message(version=5)
    half.principal.name = "principals/ada"
    feed.take(half)
    assert directory.principal("principals/ada") is None
    assert feed.begin() == 0
    complete = Message(version=6)
    complete.snapshot_complete.count = 0
    feed.take(complete)
    assert directory.principal("principals/ada") is None
    assert (directory.fresh, feed.begin()) == (True, 6)


def test_what_is_resumed_counts_as_fresh_with_a_beat_only() -> None:
    """What comes first may be hours behind."""
    clock = ManualClock()
    directory = Directory(clock.monotonic)
    feed = AccessFeed(directory)
    feed.version = 3
    feed.begin()
    feed.take(Message(version=4, removed_principal="principals/ada"))
    assert not directory.fresh
    beat = Message(version=4)
    beat.alive.GetCurrentTime()
    feed.take(beat)
    assert directory.fresh
    assert feed.version == 4
