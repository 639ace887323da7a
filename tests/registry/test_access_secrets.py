"""A key is in the answer that shows it, once, and nowhere else: in no file, no log, no error, no repr."""

import base64
import logging
from collections.abc import AsyncIterator, Awaitable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog.testing
from sqlalchemy import Connection, select

from hopper.registry.v1 import access_service_pb2 as asvc
from hopper.registry.v1.principal_pb2 import ApiKey
from hopper_common.auth import api_keys
from hopper_common.database import Database
from hopper_registry.tables import METADATA, MIGRATIONS
from hopper_testing.clock import ManualClock
from tests.registry.harness import RunningRegistry
from tests.registry.test_access import add, make_key, revoke, role, rotate
from tests.registry.test_access_callers import ME, Caller, calling


@pytest.fixture
async def registry(tmp_path: Path, database_url: str) -> AsyncIterator[RunningRegistry]:
    """With a port for people."""
    clock = ManualClock(datetime.now(UTC))
    running = RunningRegistry(tmp_path / "hopper", clock, database_url, listen="127.0.0.1:0")
    await running.start()
    yield running
    await running.close()


async def test_no_key_is_anywhere_but_in_its_answer(
    registry: RunningRegistry, tmp_path: Path, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Used rightly and wrongly, in the header where it belongs and in fields where it does not."""
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as entries:
        secrets, said = await _live(registry)
        await registry.stop()
    rows = await _rows(database_url)
    assert any(api_keys.hash_of(secrets[0]) in row for row in rows)  # what is looked at is what is kept
    seen = [*rows, *_files(tmp_path), caplog.text.encode(), repr(entries).encode(), *said]
    for secret in secrets:
        for canary in _forms(secret):
            assert not any(canary in text for text in seen)


async def _live(registry: RunningRegistry) -> tuple[list[str], list[bytes]]:
    """Make keys and tokens in every way there is; returns them, and what was said to whoever went wrong."""
    first = (await registry.access.BootstrapAdmin(asvc.BootstrapAdminRequest())).secret
    await add(registry, bindings=[role("VIEWER")])
    made = await make_key(registry, description="laptop")
    rotated = await rotate(registry, made.key.name)
    caller = await calling(registry, made.secret)
    token = await caller.token()
    passed_on = await calling(registry, token)
    await caller.who()
    await passed_on.who()
    await revoke(registry, made.key.name)
    mistyped = await calling(registry, made.secret[:-1])
    unproved = await calling(registry, api_keys.new_key().key)
    wrong: list[Awaitable[Any]] = [
        caller.who(),
        passed_on.who(),
        mistyped.who(),
        unproved.who(),
        passed_on.access.WhoAmI(ME, metadata=(("authorization", token), *passed_on.metadata)),
        *_misplaced(registry, made.secret),
        *_misplaced(registry, token),
    ]
    said = [await _error(call) for call in wrong]
    return [first, made.secret, rotated.secret, token, _secret_of(unproved)], said


def _secret_of(caller: Caller) -> str:
    return caller.metadata[0][1].removeprefix("Bearer ")


def _misplaced(registry: RunningRegistry, secret: str) -> Iterator[Awaitable[Any]]:
    access = registry.access
    yield access.GetPrincipal(asvc.GetPrincipalRequest(name=secret))
    yield access.GetPrincipal(asvc.GetPrincipalRequest(name=f"principals/{secret}"))
    yield access.RevokeApiKey(asvc.RevokeApiKeyRequest(name=secret))
    yield access.CreateApiKey(asvc.CreateApiKeyRequest(parent=secret, key=ApiKey()))
    yield access.IssueToken(asvc.IssueTokenRequest(audience=secret))
    yield access.ListPrincipals(asvc.ListPrincipalsRequest(page_token=secret))
    yield access.BootstrapAdmin(asvc.BootstrapAdminRequest(principal_id=secret))
    yield access.DeletePrincipal(asvc.DeletePrincipalRequest(name="principals/none", request_id=secret))


async def _error(call: Awaitable[Any]) -> bytes:
    """Everything that a call that must fail says."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    error = failed.value
    trailing = [f"{key}={value!r}" for key, value in error.trailing_metadata() or ()]
    return f"{error.details()} {trailing}".encode()


async def _rows(url: str) -> list[bytes]:
    """Everything the database has, each value as it is."""

    def read(conn: Connection) -> list[bytes]:
        found = []
        for table in METADATA.sorted_tables:
            for row in conn.execute(select(table)):
                found += [value if isinstance(value, bytes) else str(value).encode() for value in row]
        return found

    database = await Database.open(url, metadata=METADATA, migrations=MIGRATIONS, service="registry")
    try:
        return await database.read(read)
    finally:
        await database.close()


def _files(directory: Path) -> list[bytes]:
    """Whatever lies about: databases and their logs, the audit log, caches."""
    return [path.read_bytes() for path in directory.rglob("*") if path.is_file()]


def _forms(secret: str) -> list[bytes]:
    """The secret part, as it is and as somebody might encode it."""
    core = secret.split("_")[2] if secret.startswith(api_keys.PREFIX) else secret.rpartition(".")[2]
    plain = core.encode()
    return [plain, plain[:20], plain.hex().encode(), base64.b64encode(plain)[:-4]]


def test_a_new_key_does_not_show_itself() -> None:
    """Not when it is printed, formatted, or part of something else that is."""
    new = api_keys.new_key()
    for shown in (repr(new), str(new), f"{new}", repr([new]), repr({"key": new})):
        assert new.key not in shown
        assert new.hash.hex() not in shown
