"""The audit log of a real process: where it is, what it sees, and what the process says when it cannot write it."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from hopper.common.v1 import audit_service_pb2 as pb
from hopper.common.v1.audit_service_pb2_grpc import AuditServiceStub
from hopper_common import failpoints
from hopper_common.audit.model import OPENED
from hopper_common.host import Ready, Service, ServiceNotOpened, serve
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.settings import HostSettings
from hopper_common.startup import StartupError
from hopper_registry.app import SERVICE as REGISTRY
from tests.channels import separate_channel

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
VERIFY = "/hopper.common.v1.AuditService/VerifyAudit"
PATIENCE = 60


@asynccontextmanager
async def hosting(
    settings: HostSettings, *, services: Sequence[Service] = (), door: int = 0
) -> AsyncIterator[grpc.aio.Channel]:
    """A host, and a channel to its socket; or to another address of it."""
    stop = asyncio.Event()
    ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(serve(services, settings, ready=ready.set_result, stop=stop))
    either: list[asyncio.Future[Any]] = [running, ready]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    try:
        if not running.done():
            async with separate_channel(ready.result().addresses[door]) as channel:
                yield channel
    finally:
        stop.set()
        await running


def settings_of(url: str, tmp_path: Path, name: str = "hopper") -> HostSettings:
    own = SecretStr(url) if "://" in url else None
    return HostSettings(data_dir=tmp_path / name, audit_database=own)


async def listed(channel: grpc.aio.Channel, **request: Any) -> list[pb.AuditRecord]:
    stub: Any = AuditServiceStub(channel)
    return list((await stub.ListAuditRecords(pb.ListAuditRecordsRequest(**request))).records)


async def verified(channel: grpc.aio.Channel) -> pb.VerifyAuditResponse:
    stub: Any = AuditServiceStub(channel)
    found: pb.VerifyAuditResponse = await stub.VerifyAudit(pb.VerifyAuditRequest())
    return found


async def test_a_process_goes_on_with_its_own_chain(url: str, tmp_path: Path) -> None:
    for run in (1, 2):
        async with hosting(settings_of(url, tmp_path)) as channel:
            assert (await verified(channel)).intact
            calls = await listed(channel, method_prefix=VERIFY)
            assert [(call.principal, call.credential, call.source, call.allowed) for call in calls] == [
                ("owner", "socket", "unix", True)
            ] * run


async def test_processes_of_one_kind_share_a_database_and_no_chain(url: str, tmp_path: Path) -> None:
    chains = set()
    for name in ("one", "two"):
        async with hosting(settings_of(url, tmp_path, name)) as channel:
            (opened,) = await listed(channel)
            assert (opened.sequence, opened.method) == (1, OPENED)
            chains |= set(opened.resources)
    assert len(chains) == (2 if "://" in url else 1)  # files are not shared
    if "://" not in url:
        assert chains == {"chains/hopper"}


async def test_a_chain_without_a_readable_name_stops_the_start(url: str, tmp_path: Path) -> None:
    settings = settings_of(url, tmp_path)
    settings.data_dir.mkdir(mode=0o700)
    file = settings.data_dir / "audit_hopper.chain"
    file.write_text("")
    if "://" not in url:
        async with hosting(settings) as channel:
            assert (await verified(channel)).intact
        return
    with pytest.raises(StartupError, match=r"audit_hopper\.chain does not name an audit chain: remove it"):
        async with hosting(settings):
            pass


async def test_a_log_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    settings = HostSettings(data_dir=tmp_path / "hopper")
    settings.data_dir.mkdir(mode=0o700)
    (settings.data_dir / "audit.db").write_bytes(os.urandom(4096))
    with pytest.raises(ServiceNotOpened, match=r"cannot open the audit log: .*audit\.db"):
        async with hosting(settings):
            pass


async def test_a_process_that_cannot_write_its_log_says_so_and_does_nothing_far_reaching(
    tmp_path: Path,
) -> None:
    async with hosting(HostSettings(data_dir=tmp_path / "hopper")) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        with failpoints.active("audit:commit.before=error"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await verified(channel)
            assert from_rpc_error(refused.value).reason == "STORAGE_UNAVAILABLE"
            assert (await asyncio.wait_for(watch.read(), PATIENCE)).status == NOT_SERVING
            assert len(await listed(channel)) == 1  # what is written can be read
        assert (await asyncio.wait_for(watch.read(), PATIENCE)).status == SERVING
        assert len(await listed(channel, method_prefix=VERIFY)) == 1  # the decision; nothing came of it
        watch.cancel()


CANARY = "canary7f3a"
PROOFS = {
    "nothing": (),
    "a key": (("authorization", f"Bearer hop_7k2m9q7k2m9q_{CANARY}{'A' * 33}_aB3dE6"),),
    "half a key": (("authorization", f"Bearer hop_{CANARY}"),),
    "a token": (("authorization", f"Bearer eyJhbGciOiJFUzI1NiJ9.{CANARY}.{CANARY}"),),
    "a password": (("authorization", f"Basic {CANARY}"),),
    "other headers": (("x-forwarded-for", CANARY), ("user-agent", CANARY)),
}


async def test_who_has_not_proved_who_he_is_is_recorded_and_what_he_tried_is_not(tmp_path: Path) -> None:
    settings = HostSettings(data_dir=tmp_path / "hopper", listen="127.0.0.1:0")
    async with hosting(settings, services=[REGISTRY], door=1) as stranger:
        for proof in PROOFS.values():
            assert await refusal(stranger, proof) is grpc.StatusCode.UNAUTHENTICATED
    async with hosting(settings) as channel:
        records = await listed(channel, refused_only=True)
        assert {(each.principal, each.source, each.method) for each in records} == {
            ("stranger", "127.0.0.1", "/hopper.common.v1.AuditService/ListAuditRecords")
        }
        assert sum(each.count for each in records) >= len(PROOFS)
        assert all(each.reason and each.rule for each in records)
        assert CANARY not in str(await listed(channel))
    assert [
        path.name for path in settings.data_dir.glob("*.db*") if CANARY.encode() in path.read_bytes()
    ] == []


async def refusal(channel: grpc.aio.Channel, metadata: Any) -> grpc.StatusCode:
    """How a call is answered, once it is known who may be let in."""
    stub: Any = AuditServiceStub(channel)
    async with asyncio.timeout(PATIENCE):
        while True:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ListAuditRecords(pb.ListAuditRecordsRequest(principal=CANARY), metadata=metadata)
            if from_rpc_error(refused.value).reason not in ("TRUST_STORE_STALE", "RATE_LIMITED"):
                return refused.value.code()
            await asyncio.sleep(0.1)


def test_where_the_log_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file for each process, unless somebody says otherwise."""
    settings = HostSettings(data_dir=tmp_path)
    assert settings.audit_database_url == str(tmp_path / "audit.db")
    assert settings.for_one("router").audit_database_url == str(tmp_path / "audit_router.db")
    monkeypatch.setenv("HOPPER_DATABASE", "postgresql:///all")
    assert HostSettings(data_dir=tmp_path).audit_database_url == "postgresql:///all"
    monkeypatch.setenv("HOPPER_AUDIT_DATABASE", "~/audit.db")
    assert HostSettings(data_dir=tmp_path).audit_database_url == str(Path.home() / "audit.db")
