"""Real federation services, each with its own identity and database, on loopback ports of the system's choosing."""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
import pytest
from pydantic import SecretStr

from hopper.common.v1.audit_service_pb2 import ListAuditRecordsRequest
from hopper.common.v1.audit_service_pb2_grpc import AuditServiceStub
from hopper.federation.v1 import peer_admin_service_pb2 as svc
from hopper.federation.v1 import peer_pb2 as ppb
from hopper.federation.v1.peer_admin_service_pb2_grpc import PeerAdminServiceStub
from hopper_common.errors import HopperError, InvalidArgument
from hopper_common.host import Ready, serve
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.settings import HostSettings
from hopper_federation.app import SERVICE
from hopper_testing.clock import ManualClock
from tests.channels import separate_channel

if TYPE_CHECKING:  # they are in the type stubs only
    from hopper.common.v1.audit_service_pb2_grpc import AuditServiceAsyncStub
    from hopper.federation.v1.peer_admin_service_pb2_grpc import PeerAdminServiceAsyncStub

PATIENCE: Final = 60.0
"""Seconds to wait for what must come: nobody waits that long unless something is wrong."""

LOOPBACK: Final = {"HOPPER_PAIRING_LISTEN": "127.0.0.1:0", "HOPPER_PEER_LISTEN": "127.0.0.1:0"}


def loopback_of_its_own() -> str:
    """
    An address of this machine that nobody else listens on or calls from: a port there is still free when whoever had it
    comes back. Other systems than Linux have one loopback address, and there somebody may have taken the port.
    """
    if sys.platform != "linux":
        return "127.0.0.1"
    return f"127.{1 + secrets.randbelow(254)}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"


class RunningFederation:
    """
    The service as its host runs it, with a clock in the test's hand.

    `start` and `stop` may alternate: the data directory stays.
    """

    def __init__(
        self, directory: Path, clock: ManualClock, database_url: str = "", **environment: str
    ) -> None:
        self.clock = clock
        self.directory = directory
        self._environment = {**LOOPBACK, "HOPPER_NAME": directory.name, **environment}
        database = SecretStr(database_url or str(directory / "federation.db"))
        self._settings = HostSettings(data_dir=directory, federation_database=database)
        self._server = AsyncExitStack()
        self._channels = AsyncExitStack()
        self.admin: PeerAdminServiceAsyncStub
        self.audit: AuditServiceAsyncStub

    async def start(self) -> None:
        with environment(**self._environment):
            await self._server.enter_async_context(_served(self._settings, self.clock))
        channel = await self._channels.enter_async_context(
            separate_channel(f"unix:{self._settings.socket_path}")
        )
        self.admin = PeerAdminServiceStub(channel)
        self.audit = AuditServiceStub(channel)

    async def stop(self) -> None:
        await self._server.aclose()

    async def close(self) -> None:
        await self.stop()
        await self._channels.aclose()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    # What tests do again and again.

    async def invite(self, peer_id: str, **fields: Any) -> str:
        """A token for another Hopper."""
        return (
            await self.admin.CreateInvitation(svc.CreateInvitationRequest(peer_id=peer_id, **fields))
        ).token

    async def join(self, token: str, peer_id: str) -> ppb.Peer:
        """Redeem another's."""
        return (await self.admin.Join(svc.JoinRequest(token=token, peer_id=peer_id), timeout=PATIENCE)).peer

    async def peer(self, peer_id: str) -> ppb.Peer:
        """The peer of that name."""
        return (await self.admin.GetPeer(svc.GetPeerRequest(name=f"peers/{peer_id}"))).peer

    async def peers(self) -> list[ppb.Peer]:
        """All peers."""
        request = svc.ListPeersRequest(include_blocked=True)
        return list((await self.admin.ListPeers(request)).peers)

    async def audited(self) -> list[tuple[str, str, bool, str]]:
        """Who called what, whether it was let through, and why not: the newest first."""
        records = (await self.audit.ListAuditRecords(ListAuditRecordsRequest())).records
        return [
            (each.principal, each.method.rpartition("/")[2], each.allowed, each.reason) for each in records
        ]

    async def pairings(self) -> list[ppb.Pairing]:
        """Pairings by digits, the newest first."""
        return list((await self.admin.ListPairings(svc.ListPairingsRequest())).pairings)

    async def invitations(self) -> list[ppb.Invitation]:
        """Invitations, the newest first."""
        return list((await self.admin.ListInvitations(svc.ListInvitationsRequest())).invitations)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@asynccontextmanager
async def _served(settings: HostSettings, clock: ManualClock) -> AsyncIterator[None]:
    stop = asyncio.Event()
    started: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve([SERVICE], settings, ready=started.set_result, stop=stop, clock=clock))
        await started
        yield
        stop.set()


async def refusal(call: Awaitable[Any], code: grpc.StatusCode, reason: str) -> HopperError:
    """Make a call that must be refused so; returns the error as clients read it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert (caught.value.code(), error.reason) == (code, reason), error.message
    return error


async def violations(call: Awaitable[Any]) -> Mapping[str, str]:
    """Make a call that must be INVALID_REQUEST; returns what is wrong, by field."""
    error = await refusal(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert isinstance(error, InvalidArgument)
    return {violation.field: violation.description for violation in error.violations}
