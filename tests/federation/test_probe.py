"""What can be seen of an address from outside."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hopper_federation.probe import Found, look_at
from hopper_testing.certificates import Authority

NOW = datetime.now(UTC)
PATIENT = timedelta(seconds=30)


@asynccontextmanager
async def serving(handle: object, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)  # type: ignore[arg-type]
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield f"{host}:{port}"
    finally:
        server.close()


async def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _say_hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 this is no TLS\r\n")
    await writer.drain()
    writer.close()


@pytest.mark.parametrize(
    "host", ["a..b", "x" * 64, "fe80::1::1"]
)  # none that a name server would be asked about
async def test_a_name_that_there_cannot_be(host: str) -> None:
    assert (await look_at(f"{host}:1", patience=PATIENT)).found is Found.NO_SUCH_HOST


async def test_a_port_that_is_closed() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        sight = await look_at(f"127.0.0.1:{taken.getsockname()[1]}", patience=PATIENT)
    assert sight.found is Found.PORT_CLOSED


async def test_a_port_that_says_nothing() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        sight = await look_at(f"127.0.0.1:{silent.getsockname()[1]}", patience=timedelta(seconds=0.3))
    assert sight.found is Found.SILENT


@pytest.mark.parametrize("handle", [_hang_up, _say_hello])
async def test_a_port_that_is_something_else(handle: object) -> None:
    async with serving(handle) as address:
        assert (await look_at(address, patience=PATIENT)).found is Found.NO_TLS


async def test_the_certificate_is_seen_though_the_server_wants_one_too(tmp_path: Path) -> None:
    authority = Authority.new(NOW)
    leaf = authority.leaf()
    for name, content in (("chain", leaf.chain_pem), ("key", leaf.key_pem), ("roots", authority.pem)):
        (tmp_path / name).write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain", tmp_path / "key")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(tmp_path / "roots")
    async with serving(_hang_up, context) as address:
        sight = await look_at(address, patience=PATIENT)
    assert (sight.found, sight.leaf, sight.version) == (Found.TLS, leaf.certificate, "TLSv1.3")
