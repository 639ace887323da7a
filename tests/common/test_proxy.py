"""The proxy that behaves as bad networks do: each of its faults, on real connections."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from hopper_testing.proxy import ChaosProxy

PATIENCE = 30.0
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def proxy() -> AsyncIterator[ChaosProxy]:
    """A proxy before a server that gives back what it gets, and closes when it is closed to."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while content := await reader.read(65_536):
                writer.write(content)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with asyncio.timeout(PATIENCE):
        async with ChaosProxy(f"{host}:{port}") as running:
            yield running
        server.close()


async def connected(proxy: ChaosProxy) -> Ends:
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def said(ends: Ends, content: bytes) -> bytes:
    reader, writer = ends
    writer.write(content)
    return await reader.readexactly(len(content))


async def test_what_is_sent_comes_back_and_an_end_is_an_end(proxy: ChaosProxy) -> None:
    reader, writer = ends = await connected(proxy)
    content = bytes(range(256)) * 4_000
    assert await said(ends, content) == content
    assert proxy.there.passed == proxy.back.passed == len(content)
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()


async def test_a_delay_is_for_everything_and_not_for_each_piece(proxy: ChaosProxy) -> None:
    ends = await connected(proxy)
    proxy.there.delay, proxy.back.delay = 0.1, 0.1
    begin = time.monotonic()
    assert await said(ends, b"x" * 100_000) == b"x" * 100_000
    assert time.monotonic() - begin >= 0.15
    ends[1].close()


async def test_only_so_much_passes(proxy: ChaosProxy) -> None:
    ends = await connected(proxy)
    proxy.there.bytes_per_second, proxy.there.slices = 100_000, 1_000
    begin = time.monotonic()
    assert await said(ends, b"x" * 20_000) == b"x" * 20_000
    assert time.monotonic() - begin >= 0.15
    ends[1].close()


@pytest.mark.parametrize("size", [1, 7])
async def test_slices_change_nothing_of_the_content(proxy: ChaosProxy, size: int) -> None:
    ends = await connected(proxy)
    proxy.there.slices = proxy.back.slices = size
    content = bytes(range(100))
    assert await said(ends, content) == content
    ends[1].close()


async def test_a_blackhole_lets_nothing_through_and_then_everything(proxy: ChaosProxy) -> None:
    ends = await connected(proxy)
    assert await said(ends, b"before") == b"before"
    proxy.hold()
    ends[1].write(b"meanwhile")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await ends[0].read(1)
    proxy.flow()
    assert await ends[0].readexactly(9) == b"meanwhile"
    ends[1].close()


async def test_half_open_what_is_sent_arrives_and_no_answer_comes(proxy: ChaosProxy) -> None:
    ends = await connected(proxy)
    proxy.back.held = True
    ends[1].write(b"heard")
    while proxy.there.passed < 5:  # noqa: ASYNC110 - the proxy tells nobody
        await asyncio.sleep(0.001)
    assert proxy.back.passed == 0
    proxy.back.held = False
    assert await ends[0].readexactly(5) == b"heard"
    ends[1].close()


async def test_down_closes_what_is_open_and_whatever_comes_until_it_is_up(proxy: ChaosProxy) -> None:
    ends = await connected(proxy)
    assert await said(ends, b"x") == b"x"
    proxy.down()
    assert await ended(ends)
    assert await ended(await connected(proxy))
    proxy.up()
    assert await said(await connected(proxy), b"again") == b"again"
    assert proxy.accepted == 3


async def test_reset_ends_connections_with_rst(proxy: ChaosProxy) -> None:
    ends = await connected(proxy)
    assert await said(ends, b"x") == b"x"
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await ends[0].read()
    ends[1].close()


async def test_a_close_may_be_heard_late(proxy: ChaosProxy) -> None:
    reader, writer = ends = await connected(proxy)
    assert await said(ends, b"x") == b"x"
    proxy.back.close_delay = 0.2
    begin = time.monotonic()
    writer.write_eof()
    assert await reader.read() == b""
    assert time.monotonic() - begin >= 0.15
    writer.close()


async def test_a_target_that_is_not_there_closes_the_connection(proxy: ChaosProxy) -> None:
    proxy.target = "127.0.0.1:1"
    assert await ended(await connected(proxy))


async def ended(ends: Ends) -> bool:
    reader, writer = ends
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True
    finally:
        writer.close()
