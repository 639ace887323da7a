"""What happens to the process of a peer port: a second one on its port, children, SIGTERM, and an old TLS."""

import asyncio
import multiprocessing
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from hopper.federation.v1 import peer_service_pb2 as svc
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.startup import AddressRefused
from hopper_federation.peer_guard import PATH
from tests.federation.alone import Alone
from tests.federation.neighbours import PATIENCE, Neighbour, neighbour
from tests.federation.wire import connected, framed, tls_of

Pair = tuple[Neighbour, Neighbour]


@asynccontextmanager
async def _pair(directory: Path) -> AsyncIterator[Pair]:
    async with neighbour(directory / "alice") as alice, neighbour(directory / "bob") as bob:
        yield alice, bob


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """Two Hoppers; nobody knows anybody."""
    async with _pair(tmp_path) as both:
        yield both


ANSWERS = (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def call(stub: object, *, wait: bool = False) -> None:
    request = svc.GetCapabilitiesRequest()
    await stub.GetCapabilities(request, timeout=PATIENCE, wait_for_ready=wait)  # type: ignore[attr-defined]


async def test_a_second_process_on_the_port_does_not_start(pair: Pair) -> None:
    """By default gRPC would let it, and the kernel would give it half of the connections."""
    alice, bob = pair
    async with alice.running(contact=False):
        await alice.knows(bob)
        bob.listen = alice.address
        with pytest.raises(AddressRefused, match="HOPPER_PEER_LISTEN"):
            async with bob.running(contact=False):
                pass
        async with bob.calling(alice) as stub:
            await call(stub)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
async def test_an_older_tls_is_refused(pair: Pair, version: ssl.TLSVersion) -> None:
    alice, bob = pair
    async with alice.running(contact=False):
        await alice.knows(bob)
        tls = tls_of(bob.identity.leaf(PATH))
        tls.maximum_version = version
        async with connected(alice.address, tls=tls) as wire:
            answer = await wire.call("/hopper.federation.v1.PeerService/GetCapabilities", framed(b""))
        assert answer.status == grpc.StatusCode.UNAUTHENTICATED.value[0]
        assert "TLS" in answer.message


def _exits() -> None:
    os._exit(0)


def _spawned() -> None:
    child = multiprocessing.get_context("spawn").Process(target=_exits)
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == 0


CHILDREN = {
    "subprocess": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    "multiprocessing": _spawned,
}


@pytest.mark.parametrize("kind", CHILDREN)
async def test_children_of_the_process_hang_no_handshake(pair: Pair, kind: str) -> None:
    """With gRPC's defaults a child that is forked during handshakes hangs the server for good."""
    assert os.environ["GRPC_ENABLE_FORK_SUPPORT"] == "0"
    alice, bob = pair
    async with alice.running(contact=False):
        await alice.knows(bob)

        async def handshake() -> None:
            async with bob.calling(alice) as stub:
                await call(stub, wait=True)  # one that takes too long on a busy machine is tried again

        handshakes = asyncio.gather(*(handshake() for _ in range(10)))
        for _ in range(2):
            await asyncio.to_thread(CHILDREN[kind])
        await handshakes
        await handshake()


def test_nothing_of_ours_forks_without_exec() -> None:
    """Even with gRPC's handlers off, a fork with threads about crashes or hangs in the child now and then."""
    root = Path(__file__).parents[2]
    sources = [path for top in ("libs", "services") for path in (root / top).rglob("*.py")]
    assert len(sources) > 100
    for path in sources:
        text = path.read_text(encoding="utf-8")
        for word in ("preexec_fn", "os.fork(", "forkpty", 'get_context("fork', "multiprocessing.Process("):
            assert word not in text, f"{path}: {word}"


async def test_who_listens_hears_of_a_stop_and_what_is_under_way_is_done(tmp_path: Path) -> None:
    async with neighbour(tmp_path / "bob") as bob:
        async with neighbour(tmp_path / "alice") as alice:
            await alice.knows(bob)
        with Alone(tmp_path / "alice") as process:
            alice.listen = process.peers
            async with bob.calling(alice) as stub:
                stream = stub.Listen(svc.ListenRequest())
                assert await stream.read() != grpc.aio.EOF
                under_way = [
                    stub.GetCapabilities(svc.GetCapabilitiesRequest(), timeout=PATIENCE) for _ in range(50)
                ]
                stopped = asyncio.create_task(asyncio.to_thread(process.stop))
                # Each is answered, or told that it was not done: nothing is left without a word.
                for each in under_way:
                    assert await each.code() in ANSWERS
                last = None
                try:
                    while (event := await stream.read()) != grpc.aio.EOF:
                        last = event
                except grpc.aio.AioRpcError as error:
                    last = from_rpc_error(error).reason
                assert last is not None
                assert await stopped == 0
