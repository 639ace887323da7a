"""
What anybody can send to a peer port, and a peer with a proper certificate: floods, bombs, broken bytes, and silence.

The port is in a process of its own, whose memory is looked at. `HOPPER_WIRE_SIZE` makes it more of everything
(1; `make faults` takes 20).
"""

import asyncio
import base64
import os
import socket
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio
import h2.errors
import pytest
from google.rpc.status_pb2 import Status

from hopper.federation.v1 import peer_service_pb2 as svc
from hopper.federation.v1.peer_service_pb2_grpc import PeerServiceStub
from hopper_common.identity.certificates import Leaf, to_pem
from hopper_common.rpc.errors import from_rpc_error
from hopper_testing.processes import temporary_directory
from tests.federation.alone import Alone
from tests.federation.neighbours import PATIENCE, neighbour, until
from tests.federation.wire import Answer, connected, framed

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.federation.v1.peer_service_pb2_grpc import PeerServiceAsyncStub

SIZE: Final = int(os.environ.get("HOPPER_WIRE_SIZE", "1"))
MEGABYTE: Final = 1_000_000
# Allocators keep what they had once, so what matters is that the memory does not follow what was sent.
ROOM: Final = 60 * MEGABYTE

SERVICE: Final = "/hopper.federation.v1.PeerService"
HELLO: Final = f"{SERVICE}/Hello"
CAPABILITIES: Final = f"{SERVICE}/GetCapabilities"

OK: Final = grpc.StatusCode.OK.value[0]
INVALID: Final = grpc.StatusCode.INVALID_ARGUMENT.value[0]
EXHAUSTED: Final = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
UNIMPLEMENTED: Final = grpc.StatusCode.UNIMPLEMENTED.value[0]

pytestmark = pytest.mark.timeout(1200 + 60 * SIZE)


@dataclass
class Port:
    """A peer port in a process, and two who are its peers: one attacks, and the other must not feel it."""

    process: Alone
    attacker: Leaf
    other: Leaf
    roots: bytes
    name: str

    @asynccontextmanager
    async def calling(self, leaf: Leaf) -> "AsyncIterator[PeerServiceAsyncStub]":
        """A plain channel."""
        credentials = grpc.ssl_channel_credentials(self.roots, leaf.key_pem, leaf.chain_pem)
        options = (
            ("grpc.ssl_target_name_override", self.name),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", -1),
        )
        async with grpc.aio.secure_channel(self.process.peers, credentials, options=options) as channel:
            yield PeerServiceStub(channel)

    async def serves(self) -> None:
        """The other is answered on a new connection."""
        async with self.calling(self.other) as stub:
            await answered(stub)


async def answered(stub: "PeerServiceAsyncStub") -> None:
    """Make a call that must be answered."""
    await stub.GetCapabilities(svc.GetCapabilitiesRequest(), timeout=PATIENCE, wait_for_ready=True)


@asynccontextmanager
async def staged(open_files: int = 0) -> AsyncIterator[Port]:
    """A port with two peers."""
    with temporary_directory() as directory:
        async with (
            neighbour(directory / "bob") as bob,
            neighbour(directory / "carol") as carol,
        ):
            async with neighbour(directory / "alice") as alice:
                await alice.knows(bob)
                await alice.knows(carol)
                roots, domain = to_pem(alice.identity.roots()), alice.identity.trust_domain
            attacker, other = (each.identity.leaf("/svc/federation") for each in (bob, carol))
        with Alone(directory / "alice", open_files=open_files) as process:
            yield Port(process, attacker, other, roots, f"federation.{domain}")


@pytest.fixture(scope="module")
def port() -> Iterator[Port]:
    """A port that all tests of this module attack."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        yield runner.run(stack.enter_async_context(staged()))
        runner.run(stack.aclose())


@pytest.fixture(autouse=True)
async def unharmed(port: Port) -> AsyncIterator[None]:
    """Whatever was done, the port serves afterwards, has told nothing, and has not grown with what was sent."""
    await port.serves()
    before = port.process.rss_bytes()
    yield
    await port.serves()
    assert port.process.rss_bytes() - before < ROOM
    assert port.process.troubles() == []


def check_tells_nothing(answer: Answer) -> None:
    """No exception, no path and no type of ours is in an answer."""
    told = answer.message + answer.headers.get("grpc-status-details-bin", "")
    for trace in ("Traceback", "Error:", "Exception", ".py", "site-packages", "hopper_"):
        assert trace not in told, told


# F41: bombs.


async def test_a_message_of_five_megabytes_is_refused(port: Port) -> None:
    async with port.calling(port.attacker) as stub:
        for _ in range(SIZE):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Hello(svc.HelloRequest(nonce=bytes(5 * MEGABYTE)), timeout=PATIENCE)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_message_above_its_methods_limit_is_refused_by_name(port: Port) -> None:
    async with port.calling(port.attacker) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Hello(svc.HelloRequest(nonce=bytes(MEGABYTE)), timeout=PATIENCE)
        assert from_rpc_error(caught.value).reason == "REQUEST_TOO_LARGE"


@pytest.mark.parametrize("size", [20_000, 1_000_000])
async def test_much_metadata_is_refused_or_dropped(port: Port, size: int) -> None:
    codes = set()
    for _ in range(5):
        async with port.calling(port.attacker) as stub:
            metadata = (("x-much", "x" * size),)
            call = stub.GetCapabilities(svc.GetCapabilitiesRequest(), timeout=PATIENCE, metadata=metadata)
            codes.add(await call.code())
    # Where it comes in several pieces gRPC may drop what is too long, and go on without.
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
    assert codes <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OK}


async def test_a_gzip_bomb_is_not_unpacked(port: Port) -> None:
    size = 30 * SIZE
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join([*(packer.compress(bytes(MEGABYTE)) for _ in range(size)), packer.flush()])
    assert len(bomb) < size * MEGABYTE // 500
    async with connected(port.process.peers, port.attacker) as wire:
        for _ in range(3):
            answer = await wire.call(HELLO, framed(bomb, compressed=True), **{"grpc-encoding": "gzip"})
            assert answer.status == EXHAUSTED
            check_tells_nothing(answer)


# F42 and F47: what is no message.


def nested(depth: int) -> bytes:
    """A field in a field in a field: Hello has nothing that deep."""
    content = b""
    for _ in range(depth):
        content = b"\x0a" + _varint(len(content)) + content
    return content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


BROKEN: Final = {
    "no protobuf": b"\xff" * 100,
    "cut short": b"\x0a\xff\x7fabc",
    "deep groups": b"\x0b" * 50_000,
    "deep unknown groups": b"\x9b\x06" * 30_000,
    "deep messages": nested(20_000),
    "an endless number": b"\x08" + b"\xff" * 1_000,
    "many empty fields": b"\x0a\x00" * 40_000,
    "many features": b"\x0a" + _varint(90_004) + b"\x22" + _varint(90_000) + b"\x22\x00" * 45_000,
    "bytes that are no text": b"\x0a\x06\x12\x04\xff\xfe\xfd\xfc",
    "a field nobody knows": b"\xf8\xff\xff\xff\x0f\x01",
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_what_is_no_request_is_refused_without_a_word_of_why_inside(port: Port, kind: str) -> None:
    async with connected(port.process.peers, port.attacker) as wire:
        answer = await wire.call(HELLO, framed(BROKEN[kind]))
        assert answer.status == INVALID, (answer, answer.message)
        check_tells_nothing(answer)
        details = Status.FromString(_unbase64(answer.headers["grpc-status-details-bin"]))
        assert details.code == INVALID


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))


@pytest.mark.parametrize(
    "path",
    [
        f"{SERVICE}/Nothing",
        "/hopper.federation.v1.PairingService/Introduce",
        "/hopper.federation.v1.PeerAdminService/ListPeers",
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/",
        "//",
        f"{SERVICE}/../PeerService/Hello",
        f"{SERVICE}/" + "x" * 4_000,
    ],
)
async def test_nothing_else_is_offered(port: Port, path: str) -> None:
    async with connected(port.process.peers, port.attacker) as wire:
        answer = await wire.call(path, framed(b""))
        assert answer.status == UNIMPLEMENTED
        check_tells_nothing(answer)


SHAPES: Final = {
    "no message": b"",
    "two messages": framed(b"") * 2,
    "half a prefix": framed(b"")[:3],
    "less than was promised": framed(bytes(10))[:-1],
    "a flag that nobody knows": b"\x07" + bytes(4),
    "compressed, but not how": b"\x01" + bytes(4),
}


@pytest.mark.parametrize("kind", SHAPES)
async def test_calls_of_another_shape_than_the_method_has(port: Port, kind: str) -> None:
    async with connected(port.process.peers, port.attacker) as wire:
        # gRPC waits for the rest of a message although the stream has ended; the deadline ends that.
        answer = await wire.call(CAPABILITIES, SHAPES[kind], **{"grpc-timeout": "300m"})
        assert answer.over
        check_tells_nothing(answer)
        assert (await wire.call(CAPABILITIES, framed(b""))).status == OK


# F43: streams that are opened to be reset.


async def test_rapid_reset_disturbs_nobody(port: Port) -> None:
    async with port.calling(port.other) as stub:
        await answered(stub)
        resets = 1_000 * SIZE
        async with connected(port.process.peers, port.attacker) as wire:
            for number in range(resets):
                if wire.closed or wire.went_away is not None:
                    break  # that is an answer too
                stream = wire.start(HELLO)
                wire.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
                if number % 100 == 99:
                    await wire.flush()
                    await answered(stub)
        await answered(stub)


# F44: who does nothing.


async def test_headers_and_then_nothing_disturbs_nobody(port: Port) -> None:
    async with port.calling(port.other) as stub, connected(port.process.peers, port.attacker) as wire:
        for _ in range(100):
            wire.start(HELLO)
        await wire.flush()
        await answered(stub)
        await port.serves()


async def test_who_never_reads_disturbs_nobody(port: Port) -> None:
    async with (
        port.calling(port.other) as stub,
        connected(port.process.peers, port.attacker, window=0) as wire,
    ):
        for _ in range(50):
            stream = wire.start(f"{SERVICE}/GetBundle")
            await wire.write(stream, framed(b""))
        await answered(stub)
        await port.serves()


async def test_a_handshake_that_does_not_go_on_is_cut(port: Port) -> None:
    """Nothing at all, half a hello, and what is no hello: each ends by itself, and meanwhile others are served."""
    host, _, number = port.process.peers.rpartition(":")
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40)
    async with AsyncExitStack() as stack:
        stub = await stack.enter_async_context(port.calling(port.other))
        waiting = []
        for content in [b"", hello, b"", hello[:3]] * (2 * SIZE):
            reader, writer = await asyncio.open_connection(host, int(number))
            stack.callback(writer.transport.abort)
            writer.write(content)
            waiting.append(reader.read())
        await answered(stub)
        await port.serves()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*waiting, return_exceptions=True)


# F45: connections without end.


async def test_a_flood_of_connections_shuts_out_no_peer_that_is_connected(port: Port) -> None:
    async with port.calling(port.other) as stub:
        await answered(stub)
        with flooded(port.process.peers, 400):
            await answered(stub)
        await answered(stub)
        await port.serves()  # there is room again


async def test_without_files_left_those_who_are_connected_are_served() -> None:
    async with staged(open_files=80) as port, port.calling(port.other) as stub:
        await answered(stub)
        with flooded(port.process.peers, 150):
            await until(lambda: port.process.open_files() >= 78)
            await answered(stub)
        await port.serves()


class flooded:
    """Connections that are opened and do nothing."""

    def __init__(self, address: str, count: int) -> None:
        self._address = address
        self._count = count
        self._open: list[socket.socket] = []

    def __enter__(self) -> None:
        host, _, port = self._address.rpartition(":")
        for _ in range(self._count):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex((host, int(port)))
            self._open.append(connection)

    def __exit__(self, *_: object) -> None:
        for connection in self._open:
            connection.close()
