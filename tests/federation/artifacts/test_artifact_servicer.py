"""Files are put, listed and got over gRPC; what is wrong with one is said, and leaves nothing behind."""

import asyncio
import contextlib
import errno
import io
import os
import zipfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from sqlalchemy import delete

from hopper.federation.v1 import artifact_service_pb2 as svc
from hopper.federation.v1 import delegation_pb2 as pb
from hopper.federation.v1.artifact_service_pb2_grpc import (
    ArtifactServiceStub,
    add_ArtifactServiceServicer_to_server,
)
from hopper_client.channels import _until_taken
from hopper_common.clock import SystemClock
from hopper_common.database import Database
from hopper_common.rpc.address import listen_tcp
from hopper_common.rpc.channel import open_channel
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.rpc.server import Registered, build_server
from hopper_federation.artifacts.artifact_servicer import ArtifactServicer
from hopper_federation.artifacts.blobs import PIECE, BlobStore, RealDisk
from hopper_federation.artifacts.model import MOST_FILES, File, Limits, Problem
from hopper_federation.artifacts.store_sql import Artifacts, ArtifactStore
from hopper_federation.artifacts.tables import ARTIFACTS
from hopper_federation.tables import METADATA, MIGRATIONS
from hopper_testing.clock import ManualClock
from tests.federation.artifacts.stage import CHILD, TASK, SaidTasks, artifact, digest
from tests.federation.neighbours import until

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.federation.v1.artifact_service_pb2_grpc import ArtifactServiceAsyncStub

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = Limits(file=3 * PIECE, peer=PIECE, total=5 * PIECE)


class Disk(RealDisk):
    """Full when told so."""

    full = False

    def write(self, descriptor: int, data: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "no space left on device")
        super().write(descriptor, data)


@dataclass
class Shelf:
    """A running service, and what is behind it."""

    stub: "ArtifactServiceAsyncStub"
    files: Artifacts
    blobs: BlobStore
    tasks: SaidTasks
    disk: Disk
    root: Path

    async def put(
        self, content: bytes, name: str = "a.txt", task: str = TASK, **said: Any
    ) -> svc.PutArtifactResponse:
        return await self.send(artifact(name, content, **said), pieces(content), task)

    async def send(
        self, said: pb.Artifact, data: Iterable[bytes], task: str = TASK
    ) -> svc.PutArtifactResponse:
        start = svc.PutArtifactRequest(start=svc.PutArtifactRequest.Start(task=task, artifact=said))
        return await self.requested([start, *(svc.PutArtifactRequest(data=piece) for piece in data)])

    async def requested(self, requests: Sequence[svc.PutArtifactRequest]) -> svc.PutArtifactResponse:
        """The first is let in, or refused, before the others: what is written to a refused call hides why it was."""
        taken = asyncio.Event()

        async def written() -> AsyncIterator[svc.PutArtifactRequest]:
            for request in requests:
                yield request
                await taken.wait()

        call = self.stub.PutArtifact(written())
        answered = asyncio.ensure_future(_until_taken(call))
        answered.add_done_callback(lambda _: taken.set())
        try:
            return await call
        finally:
            answered.cancel()

    async def listed(self, task: str = TASK) -> dict[str, svc.StoredArtifact]:
        found = await self.stub.ListArtifacts(svc.ListArtifactsRequest(task=task))
        return {each.artifact.name: each for each in found.artifacts}

    async def get(self, name: str = "a.txt", task: str = TASK, offset: int = 0) -> bytes:
        request = svc.GetArtifactRequest(task=task, name=name, offset=offset)
        return b"".join([answer.data async for answer in self.stub.GetArtifact(request)])

    @property
    def kept(self) -> list[bytes]:
        """The bytes that are on the disk, under any name."""
        found = []
        for path in self.root.rglob("*"):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # it may be thrown away meanwhile
                found.append(path.read_bytes())
        return sorted(found)


def pieces(content: bytes) -> list[bytes]:
    return [content[begin : begin + PIECE] for begin in range(0, len(content), PIECE)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shelf]:
    directory, clock = tmp_path_factory.mktemp("shelf"), SystemClock()
    async with AsyncExitStack() as stack:
        url = str(directory / "federation.db")
        db = await Database.open(url, metadata=METADATA, migrations=MIGRATIONS, service="federation")
        stack.push_async_callback(db.close)
        disk, tasks, files = Disk(), SaidTasks(), Artifacts(db, clock)
        blobs = BlobStore(directory / "blobs", disk)
        servicer = ArtifactServicer(files, blobs, tasks, LIMITS, clock)
        offered = Registered.of(
            svc.DESCRIPTOR.services_by_name["ArtifactService"],
            servicer,
            add_ArtifactServiceServicer_to_server,
        )
        server = build_server([offered])
        address = listen_tcp(server, "127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        channel = await stack.enter_async_context(open_channel(address))
        yield Shelf(ArtifactServiceStub(channel), files, blobs, tasks, disk, directory / "blobs")


@pytest_asyncio.fixture(loop_scope="module")
async def shelf(running: Shelf) -> Shelf:
    """Nothing is on it."""
    await running.files.write(lambda store: store.conn.execute(delete(ARTIFACTS)))
    for path in running.root.rglob("*"):
        if path.is_file():
            path.unlink()
    running.disk.full = False
    running.tasks.chain, running.tasks.over = SaidTasks().chain, {}
    return running


async def refused(call: object) -> tuple[str, str, str]:
    """Code, reason and message."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    error = from_rpc_error(caught.value)
    return caught.value.code().name, error.reason, error.message


@pytest.mark.parametrize("size", [0, 1, PIECE, 2 * PIECE + 17])
async def test_what_is_put_is_listed_and_got(shelf: Shelf, size: int) -> None:
    content = os.urandom(size)
    said = artifact("a.txt", content)
    assert (await shelf.put(content)).artifact == said
    assert await shelf.listed() == {"a.txt": svc.StoredArtifact(artifact=said, stored=size)}
    assert await shelf.get() == content
    assert await shelf.get(offset=size // 2) == content[size // 2 :]
    assert await shelf.get(offset=size) == b""


async def test_without_a_hash_and_a_size_none_is_compared(shelf: Shelf) -> None:
    kept = await shelf.put(b"content", sha256=b"", size=0)
    assert (kept.artifact.sha256, kept.artifact.size) == (digest(b"content"), 7)


async def test_the_same_again_is_the_same_and_other_bytes_replace_it(shelf: Shelf) -> None:
    await shelf.put(b"first")
    await shelf.put(b"first")
    assert shelf.kept == [b"first"]
    await shelf.put(b"second")
    assert await shelf.get() == b"second"
    assert list(await shelf.listed()) == ["a.txt"]


async def test_what_is_beside_a_child_is_beside_what_it_was_made_of_too(shelf: Shelf) -> None:
    await shelf.put(b"of the child", "child.txt", CHILD)
    await shelf.put(b"of the child", "both.txt", CHILD)
    await shelf.put(b"of the task", "both.txt")
    assert sorted(await shelf.listed()) == ["both.txt", "child.txt"]
    assert await shelf.get("child.txt") == b"of the child"
    assert await shelf.get("both.txt") == b"of the task"
    assert await shelf.get("both.txt", CHILD) == b"of the child"


# What is refused.


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"sha256": digest(b"other")}, "another SHA-256"),
        ({"size": 6}, "more than the 6 bytes"),
        ({"size": 8}, "has 7 bytes, not the 8"),
        ({"name": "../evil"}, "without a path"),
        ({"name": "a/b"}, "without a path"),
        ({"name": ".hidden"}, "begin with a dot"),
        ({"name": "a\nb"}, "printable"),
        ({"sha256": b"short"}, "must have 32 bytes"),
        ({"media_type": "a\tb"}, "media type"),
    ],
    ids=str,
)
async def test_what_is_not_as_said_is_refused_and_leaves_nothing(
    shelf: Shelf, said: dict[str, Any], why: str
) -> None:
    code, reason, message = await refused(shelf.put(b"content", **said))
    assert (code, reason) == ("INVALID_ARGUMENT", "ARTIFACT_INVALID")
    assert why in message
    assert shelf.kept == []
    assert await shelf.listed() == {}


async def test_ten_gigabytes_are_refused_before_a_byte_of_them_comes(shelf: Shelf) -> None:
    code, reason, message = await refused(shelf.put(b"", size=10_000_000_000))
    assert (code, reason) == ("RESOURCE_EXHAUSTED", "QUOTA")
    assert "HOPPER_ARTIFACT_FILE_BYTES" in message
    assert shelf.kept == []


async def test_so_are_they_when_nobody_had_said_so(shelf: Shelf) -> None:
    ended = asyncio.Event()

    async def requests() -> AsyncIterator[svc.PutArtifactRequest]:
        said = pb.Artifact(name="a")
        yield svc.PutArtifactRequest(start=svc.PutArtifactRequest.Start(task=TASK, artifact=said))
        for _ in range(4):
            yield svc.PutArtifactRequest(data=bytes(PIECE))
        await ended.wait()  # what is written to a call that has ended hides why it has

    code, reason, _ = await refused(shelf.stub.PutArtifact(requests()))
    ended.set()
    assert (code, reason) == ("RESOURCE_EXHAUSTED", "QUOTA")
    assert shelf.kept == []


async def test_all_together_are_no_more_than_the_limit(shelf: Shelf) -> None:
    await shelf.put(os.urandom(3 * PIECE), "a")
    code, reason, message = await refused(shelf.put(os.urandom(3 * PIECE), "b"))
    assert (code, reason) == ("RESOURCE_EXHAUSTED", "QUOTA")
    assert "HOPPER_ARTIFACT_TOTAL_BYTES" in message
    await shelf.put(os.urandom(2 * PIECE), "b")
    assert (await refused(shelf.put(b"c", "c")))[1] == "QUOTA"
    assert sorted(await shelf.listed()) == ["a", "b"]


async def test_there_are_only_so_many_beside_a_task(shelf: Shelf, clock: ManualClock) -> None:
    def fill(store: ArtifactStore) -> None:
        for number in range(MOST_FILES):
            store.save(File(TASK, f"{number}", digest(b""), 0, "", clock.now()))

    await shelf.files.write(fill)
    code, reason, _ = await refused(shelf.put(b"x", "one-more"))
    assert (code, reason) == ("RESOURCE_EXHAUSTED", "QUOTA")
    await shelf.put(b"x", "0")


async def test_a_task_that_is_over_takes_no_more(shelf: Shelf, clock: ManualClock) -> None:
    await shelf.put(b"in time")
    shelf.tasks.over[TASK] = clock.now()
    assert (await refused(shelf.put(b"late")))[:2] == ("FAILED_PRECONDITION", "TASK_WRONG_STATE")
    assert await shelf.get() == b"in time"


async def test_nor_one_that_ends_while_the_file_comes(shelf: Shelf, clock: ManualClock) -> None:
    async def requests() -> AsyncIterator[svc.PutArtifactRequest]:
        said = artifact("a", b"late")
        yield svc.PutArtifactRequest(start=svc.PutArtifactRequest.Start(task=TASK, artifact=said))
        await until(lambda: shelf.kept == [b""])  # it was let in
        shelf.tasks.over[TASK] = clock.now()
        yield svc.PutArtifactRequest(data=b"late")

    assert (await refused(shelf.stub.PutArtifact(requests())))[1] == "TASK_WRONG_STATE"
    assert shelf.kept == []


async def test_there_has_to_be_such_a_task(shelf: Shelf) -> None:
    nowhere = "instances/global/tasks/nowhere"
    for call in (shelf.put(b"x", task=nowhere), shelf.listed(nowhere), shelf.get("a", nowhere)):
        assert (await refused(call))[:2] == ("NOT_FOUND", "TASK_NOT_FOUND")


async def test_what_is_beside_a_task_that_was_put_away_is_still_got(shelf: Shelf) -> None:
    await shelf.put(b"content")
    del shelf.tasks.chain[TASK]
    assert await shelf.get() == b"content"


async def test_there_has_to_be_such_a_file(shelf: Shelf) -> None:
    assert (await refused(shelf.get("nothing")))[:2] == ("NOT_FOUND", "ARTIFACT_NOT_FOUND")
    await shelf.put(b"content")
    assert (await refused(shelf.get(offset=8)))[:2] == ("INVALID_ARGUMENT", "INVALID_REQUEST")


@pytest.mark.parametrize("parts", ["", "d", "ss", "dsd"])
async def test_a_start_comes_first_and_once(shelf: Shelf, parts: str) -> None:
    made = {
        "s": svc.PutArtifactRequest(
            start=svc.PutArtifactRequest.Start(task=TASK, artifact=pb.Artifact(name="a"))
        ),
        "d": svc.PutArtifactRequest(data=b"x"),
    }
    assert (await refused(shelf.requested([made[part] for part in parts])))[:2] == (
        "INVALID_ARGUMENT",
        "INVALID_REQUEST",
    )
    assert shelf.kept == []


async def test_a_full_disk_is_told_and_heals(shelf: Shelf) -> None:
    shelf.disk.full = True
    assert (await refused(shelf.put(b"content")))[:2] == ("RESOURCE_EXHAUSTED", "STORAGE_FULL")
    shelf.disk.full = False
    await shelf.put(b"content")
    assert shelf.kept == [b"content"]


async def test_a_caller_who_goes_away_leaves_nothing(shelf: Shelf) -> None:
    async def requests() -> AsyncIterator[svc.PutArtifactRequest]:
        start = svc.PutArtifactRequest.Start(task=TASK, artifact=pb.Artifact(name="a"))
        yield svc.PutArtifactRequest(start=start)
        yield svc.PutArtifactRequest(data=b"half")
        await asyncio.Event().wait()

    call = shelf.stub.PutArtifact(requests())
    await until(lambda: shelf.kept == [b"half"])
    call.cancel()
    await until(lambda: not shelf.kept)


# What it is not.


async def test_a_zip_bomb_is_a_file_like_any_other(shelf: Shelf) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(16 * PIECE))
    content = packed.getvalue()
    assert len(content) < PIECE
    await shelf.put(content, "bomb.zip")
    assert shelf.kept == [content]
    assert await shelf.get("bomb.zip") == content


# What comes from peers.


@pytest.mark.parametrize(
    ("problem", "code", "reason", "says", "listed"),
    [
        (Problem.NONE, "UNAVAILABLE", "PEER_UNREACHABLE", "on its way", ""),
        (Problem.QUOTA, "UNAVAILABLE", "PEER_UNREACHABLE", "no room", "QUOTA"),
        (
            Problem.WRONG,
            "INVALID_ARGUMENT",
            "ARTIFACT_INVALID",
            "not what the peer had signed",
            "ARTIFACT_INVALID",
        ),
        (Problem.MALFORMED, "INVALID_ARGUMENT", "ARTIFACT_INVALID", "is no name", "ARTIFACT_INVALID"),
        (Problem.GONE, "NOT_FOUND", "ARTIFACT_NOT_FOUND", "does not have", "ARTIFACT_NOT_FOUND"),
    ],
)
async def test_why_a_file_of_a_peer_is_not_here_is_told(
    shelf: Shelf, clock: ManualClock, problem: Problem, code: str, reason: str, says: str, listed: str
) -> None:
    """By the list too: there the reason is that of its being missing."""
    coming = File(CHILD, "a", digest(b"abc"), 3, "", clock.now(), stored=False, problem=problem, peer="bob")
    await shelf.files.write(lambda store: store.save(coming))
    found = await refused(shelf.get("a"))
    assert found[:2] == (code, reason)
    assert says in found[2]
    stored = (await shelf.listed())["a"]
    assert (stored.stored, stored.problem) == (0, listed)
    assert (says in stored.detail) == bool(listed)


async def test_how_much_of_it_has_come_is_shown_and_nobody_puts_another_in_its_place(
    shelf: Shelf, clock: ManualClock
) -> None:
    coming = File(CHILD, "a", digest(b"abc"), 3, "", clock.now(), stored=False, peer="bob")
    await shelf.files.write(lambda store: store.save(coming))
    for piece in (b"ab", b"c"):
        incoming = shelf.blobs.resumed(digest(b"abc"))
        incoming.write(piece)
        incoming.close()
        assert (await shelf.listed())["a"].stored == 2  # all of it, once it is checked
    assert (await refused(shelf.put(b"mine", "a", CHILD)))[:2] == ("INVALID_ARGUMENT", "ARTIFACT_INVALID")
