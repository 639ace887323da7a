"""
Keeps a process's `Directory` fresh from a registry in another process.

Two streams: the instances, whose order roles follow, and everything else. The second one beats (`alive`), and only a
beat, or a whole snapshot, says that nothing is missing: what comes of a stream that was resumed may be hours behind
what follows it. A stream that has been silent for longer than three beats is given up and opened again; whether what is
known is still good enough to let anybody in is for the directory to say, which knows when it heard last.

A snapshot is taken over whole or not at all.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any, Final, NoReturn

import grpc.aio
import structlog

from hopper.registry.v1 import access_service_pb2 as asvc
from hopper.registry.v1 import principal_pb2 as apb
from hopper.registry.v1.access_service_pb2_grpc import AccessServiceStub
from hopper.registry.v1.instance_pb2 import Instance
from hopper.registry.v1.instance_service_pb2 import WatchInstancesRequest
from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceStub
from hopper_common.auth.directory import Directory
from hopper_common.auth.model import Binding, KeyRecord, Kind, PrincipalRecord, Role, TokenKey
from hopper_common.auth.uses import KeyUses
from hopper_common.errors import ResumeTooOld
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.timestamps import from_proto, time_field, to_proto

log = structlog.get_logger(__name__)

SILENCE: Final = timedelta(seconds=10)
TELL_USES_EVERY: Final = timedelta(seconds=15)
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
TELL_TIMEOUT: Final = 5.0
MOST_USES: Final = 1000


# From the contract's messages to what a directory keeps.


def principal_record(proto: apb.Principal) -> PrincipalRecord:
    """Somebody. Of a kind that is not known here they may do nothing: as an agent that acts for nobody."""
    person = proto.kind == apb.Principal.KIND_PERSON
    return PrincipalRecord(
        name=proto.name,
        kind=Kind.PERSON if person else Kind.AGENT,
        bindings=_bindings(proto.bindings),
        acts_for=proto.acts_for,
        disabled=proto.disabled,
    )


def directory_key(proto: asvc.KeyRecord) -> KeyRecord:
    """A key. Scopes of which none is known here are still scopes: the key is good for nothing."""
    principal, _, key_id = proto.key.name.partition("/keys/")
    return KeyRecord(
        id=key_id,
        principal=principal,
        hash=proto.hash,
        expires=from_proto(proto.key.expire_time),
        scopes=_bindings(proto.key.scopes) if proto.key.scopes else None,
        revoked=time_field(proto.key, "revoke_time"),
    )


def directory_token_key(proto: asvc.TokenKey) -> TokenKey:
    """A key that signs tokens."""
    return TokenKey(proto.kid, proto.public_key, from_proto(proto.expire_time))


def _bindings(protos: Iterable[apb.RoleBinding]) -> tuple[Binding, ...]:
    known = {int(role) for role in Role}  # a newer registry may have roles that mean nothing here
    return tuple(Binding(Role(proto.role), proto.resource) for proto in protos if proto.role in known)


# The books of the two streams, without input or output.


class AccessFeed:
    """
    What comes of `WatchAccess`.

    Attributes:
        version: Where to resume; 0: from a snapshot.
    """

    def __init__(self, directory: Directory) -> None:
        self.version = 0
        self._directory = directory
        self._snapshot: list[asvc.WatchAccessResponse] | None = None

    def begin(self) -> int:
        """A stream is opened: returns after which version. Half of a snapshot that came before is void."""
        self._snapshot = None if self.version else []
        return self.version

    def take(self, message: asvc.WatchAccessResponse) -> None:
        """Take in what came."""
        change = message.WhichOneof("change")
        if self._snapshot is not None:
            self._gather(self._snapshot, change, message)
            return
        self.version = max(self.version, message.version)
        if change == "principal":
            self._directory.put_principal(principal_record(message.principal))
        elif change == "removed_principal":
            self._directory.remove_principal(message.removed_principal)
        elif change == "key":
            self._directory.put_key(directory_key(message.key))
        elif change == "token_key":
            self._directory.put_token_key(directory_token_key(message.token_key))
        elif change == "alive":
            self._directory.heard()

    def _gather(
        self, snapshot: list[asvc.WatchAccessResponse], change: str | None, message: asvc.WatchAccessResponse
    ) -> None:
        if change != "snapshot_complete":
            snapshot.append(message)
            return
        self._snapshot = None
        self.version = message.version
        self._directory.load(
            principals=[principal_record(each.principal) for each in snapshot if each.HasField("principal")],
            keys=[directory_key(each.key) for each in snapshot if each.HasField("key")],
            token_keys=[
                directory_token_key(each.token_key) for each in snapshot if each.HasField("token_key")
            ],
        )


class InstanceFeed:
    """What comes of `WatchInstances`. Attributes as of `AccessFeed`."""

    def __init__(self, directory: Directory) -> None:
        self.version = 0
        self.known = asyncio.Event()
        """Set once a snapshot was taken over."""
        self._directory = directory
        self._snapshot: dict[str, str] | None = None

    def begin(self) -> int:
        """See `AccessFeed.begin`."""
        self._snapshot = None if self.version else {}
        return self.version

    def take(self, message: Any) -> None:
        """Take in what came."""
        change = message.WhichOneof("event")
        if change == "changed":
            self._put(message.changed)
        if change == "snapshot_complete" and self._snapshot is not None:
            self._directory.load_instances(self._snapshot)
            self._snapshot = None
            self.known.set()
        if self._snapshot is None:
            self.version = max(self.version, message.version)

    def _put(self, instance: Instance) -> None:
        if self._snapshot is None:
            self._directory.put_instance(instance.name, instance.parent)
        else:
            self._snapshot[instance.name] = instance.parent


# The streams.


class AccessFollower:
    """
    Follows the registry for one process. Let `run` run; calls are judged from the directory meanwhile.

    Args:
        channel: To the registry, in this process's own name.
        silence: How long nothing may come before a stream is doubted.
    """

    def __init__(
        self, channel: grpc.aio.Channel, directory: Directory, *, silence: timedelta = SILENCE
    ) -> None:
        self._directory = directory
        self._silence = silence.total_seconds()
        self._uses = KeyUses(directory)
        self._access = AccessServiceStub(channel)
        self._instances = InstanceServiceStub(channel)

    async def run(self) -> None:
        """Follow the registry until cancelled."""
        instances, access = InstanceFeed(self._directory), AccessFeed(self._directory)

        async def follow_access() -> None:
            # Without the tree nearly nobody would be let in: nothing is known until that is.
            await instances.known.wait()
            await self._follow("access", lambda: self._hear_access(access), access)

        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow("instances", lambda: self._hear_instances(instances), instances))
            group.create_task(follow_access())
            group.create_task(self._tell_uses())

    async def _follow(
        self, what: str, hear: Callable[[], Awaitable[None]], feed: AccessFeed | InstanceFeed
    ) -> NoReturn:
        pause = FIRST_PAUSE
        while True:
            before = feed.version
            reason = "STREAM_ENDED"
            try:
                await hear()
            except TimeoutError:
                reason = "SILENT"
            except grpc.aio.AioRpcError as error:
                reason = from_rpc_error(error).reason
            if reason == ResumeTooOld.reason and feed.version:
                feed.version = 0
                continue
            pause = FIRST_PAUSE if feed.version > before else min(2 * pause, LONGEST_PAUSE)
            log.info("the registry is not heard", stream=what, reason=reason)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - so that not all come at once

    async def _hear_access(self, feed: AccessFeed) -> None:
        call = self._access.WatchAccess(asvc.WatchAccessRequest(after_version=feed.begin()))
        messages = aiter(call)
        try:
            while True:
                async with asyncio.timeout(self._silence):
                    message = await anext(messages)
                feed.take(message)
        except StopAsyncIteration:
            return
        finally:
            call.cancel()

    async def _hear_instances(self, feed: InstanceFeed) -> None:
        call = self._instances.WatchInstances(WatchInstancesRequest(after_version=feed.begin()))
        try:
            async for message in call:
                feed.take(message)
        finally:
            call.cancel()

    # The other way: which keys were used.

    async def _tell_uses(self) -> NoReturn:
        while True:
            await asyncio.sleep(TELL_USES_EVERY.total_seconds())
            await self.tell_uses()

    async def tell_uses(self) -> None:
        """Tell the registry which keys were used since it was told last. What cannot be told now is told later."""
        taken = self._uses.take()
        ids = sorted(taken)
        for at in range(0, len(ids), MOST_USES):
            uses = [
                asvc.KeyUse(key_id=key, use_time=to_proto(taken[key])) for key in ids[at : at + MOST_USES]
            ]
            try:
                await self._access.RecordKeyUses(asvc.RecordKeyUsesRequest(uses=uses), timeout=TELL_TIMEOUT)
            except grpc.aio.AioRpcError as error:
                self._uses.put_back({key: taken[key] for key in ids[at:]})
                log.info("the uses of keys are told later", reason=from_rpc_error(error).reason)
                return
