"""Files are pulled from a peer over real TLS, gone on with after anything, and refused when they are not as signed."""

import asyncio
import contextlib
import errno
import gzip
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio
from sqlalchemy import delete

from hopper.federation.v1 import delegation_pb2 as pb
from hopper.federation.v1 import peer_service_pb2 as svc
from hopper_common.rpc.errors import from_rpc_error
from hopper_federation.artifacts.blobs import PIECE, BlobStore, RealDisk
from hopper_federation.artifacts.manifests import expect
from hopper_federation.artifacts.model import File, Limits, Problem
from hopper_federation.artifacts.puller import PeerBlobs, Puller
from hopper_federation.artifacts.serving import OwedFiles
from hopper_federation.artifacts.tables import ARTIFACTS
from hopper_federation.delegation.model import Role
from hopper_federation.delegation.store_sql import SqlDelegations
from hopper_federation.delegation.tables import DELEGATIONS
from hopper_federation.trust import Level
from hopper_testing.proxy import ChaosProxy
from tests.federation.artifacts.stage import CHILD, DELEGATION, artifact, digest, handed_over
from tests.federation.neighbours import PATIENCE, Neighbour, Owed, neighbour, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Asked:
    """Passes on what a Hopper asks for, and remembers from where."""

    def __init__(self, sources: PeerBlobs) -> None:
        self._sources = sources
        self.offsets: list[int] = []

    async def blob(self, file: File, offset: int) -> AsyncGenerator[bytes, None]:
        self.offsets.append(offset)
        async with contextlib.aclosing(self._sources.blob(file, offset)) as pieces:
            async for piece in pieces:
                yield piece


class Pair:
    """Alice has handed a task to bob, who has ended it; between them a network that the test may break."""

    def __init__(self, alice: Neighbour, bob: Neighbour, proxy: ChaosProxy, root: Path) -> None:
        self.root = root
        self.alice = alice
        self.bob = bob
        self.proxy = proxy
        self.refused: list[str] = []
        self.asked = Asked(PeerBlobs(alice.peering.links))
        self.limits = Limits()
        self.blobs = alice.blobs

    async def result_names(self, artifacts: Sequence[pb.Artifact], *, delegation: str = DELEGATION) -> None:
        """Bob has said so, and alice has heard it."""
        taken = handed_over(Role.IN, self.alice.install_id, artifacts, id=delegation)
        await self.bob.db.write(lambda conn: SqlDelegations(conn).save(taken))
        given = handed_over(Role.OUT, self.bob.install_id, artifacts, id=delegation)
        await self.alice.files.write(lambda store: expect(store, given))

    async def bob_has(self, *contents: bytes) -> None:
        for content in contents:
            incoming = self.bob.blobs.incoming()
            incoming.write(content)
            incoming.keep(0.0)

    @asynccontextmanager
    async def pulling(self) -> AsyncIterator[Puller]:
        """For as long as that lasts."""
        puller = Puller(
            self.alice.files,
            self.blobs,
            self.asked,
            self.limits,
            self.alice.clock,
            refused=lambda file: self.refused.append(file.name),
            first_pause=0.01,
        )
        task = asyncio.ensure_future(puller.run())
        try:
            yield puller
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def pulled(
        self, condition: Callable[[dict[str, File]], object] | None = None, *, refusals: int = 0
    ) -> dict[str, File]:
        """
        Pull until nothing is wanted, or something else holds of the files beside the task, by name.

        Args:
            refusals: How many must have been told of, too: that comes after they are written down.
        """
        met = condition or (lambda files: not any(file.wanted for file in files.values()))
        async with self.pulling():
            files = await self.files_when(met)
            await until(lambda: len(self.refused) >= refusals)
            return files

    async def files_when(self, condition: Callable[[dict[str, File]], object]) -> dict[str, File]:
        """The files beside the task, by name, once that holds."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = {
                    file.name: file
                    for file in await self.alice.files.read(lambda store: store.beside([CHILD]))
                }
                if condition(found):
                    return found
                await asyncio.sleep(0.01)

    def here(self, content: bytes) -> bool:
        """Whether alice has it, whole."""
        reader = self.blobs.open(digest(content))
        if reader is None:
            return False
        found = bytearray()
        while piece := reader.read(len(found)):
            found += piece
        reader.close()
        return bytes(found) == content

    @property
    def left(self) -> int:
        """How many files alice has on her disk, under any name."""
        return sum(path.is_file() for path in self.root.rglob("*"))


@dataclass
class Street:
    """Alice, bob, and the network between them."""

    alice: Neighbour
    bob: Neighbour
    proxy: ChaosProxy
    root: Path
    """Of alice's blobs."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def street(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Street]:
    place = tmp_path_factory.mktemp("street")
    async with AsyncExitStack() as stack:
        alice, bob = [await stack.enter_async_context(neighbour(place / name)) for name in ("alice", "bob")]
        await stack.enter_async_context(bob.running(contact=False))
        proxy = await stack.enter_async_context(ChaosProxy(bob.address))
        await stack.enter_async_context(alice.running(contact=False))
        await alice.knows(bob, level=Level.TRUSTED, address=proxy.address)
        yield Street(alice, bob, proxy, place / "alice" / "blobs")


@pytest_asyncio.fixture(loop_scope="module")
async def pair(street: Street) -> Pair:
    """Nothing has been handed over yet, and nobody has a file."""
    for each in (street.alice, street.bob):
        await each.db.write(lambda conn: conn.execute(delete(ARTIFACTS)))
        await each.db.write(lambda conn: conn.execute(delete(DELEGATIONS)))
    for path in street.root.parents[1].glob("*/blobs/**/*"):
        if path.is_file():
            path.unlink(missing_ok=True)  # what was interrupted may be thrown away meanwhile
    street.bob.owed = OwedFiles(street.bob.files, street.bob.blobs).pieces
    await street.bob.knows(street.alice, level=Level.TRUSTED)
    return Pair(street.alice, street.bob, street.proxy, street.root)


def halting(serve: Owed, after: int, go_on: asyncio.Event) -> Owed:
    """As that, but it halts after so many pieces until it may go on."""

    async def owed(caller: str, request: svc.GetBlobRequest) -> AsyncGenerator[bytes, None]:
        sent = 0
        async with contextlib.aclosing(serve(caller, request)) as pieces:
            async for piece in pieces:
                if sent == after:
                    await go_on.wait()
                yield piece
                sent += 1

    return owed


def saying(*contents: bytes) -> Owed:
    """Says something else each time it is asked, the last for ever, from wherever it is asked to begin."""
    said = list(contents)

    async def owed(caller: str, request: svc.GetBlobRequest) -> AsyncGenerator[bytes, None]:
        content = said.pop(0) if len(said) > 1 else said[0]
        for begin in range(request.offset, len(content), PIECE):
            yield content[begin : begin + PIECE]

    return owed


async def test_what_a_result_names_is_pulled(pair: Pair) -> None:
    contents = [b"", b"small", os.urandom(2 * PIECE + 5)]
    await pair.bob_has(*contents)
    await pair.result_names([artifact(f"{place}.bin", each) for place, each in enumerate(contents)])
    found = await pair.pulled()
    assert all(file.stored and not file.problem for file in found.values())
    assert all(map(pair.here, contents))
    assert pair.refused == []


async def test_it_is_looked_for_as_soon_as_somebody_says_so(pair: Pair) -> None:
    async with pair.pulling() as puller:
        await pair.bob_has(b"content")
        await pair.result_names([artifact("a", b"content")])
        puller.look_soon()
        await pair.files_when(lambda files: files["a"].stored)


async def test_what_is_here_already_is_not_asked_for(pair: Pair) -> None:
    await pair.result_names([artifact("a", b"content"), artifact("b", b"content")])
    await pair.bob_has(b"content")
    await pair.pulled()
    assert pair.asked.offsets == [0]


async def test_one_that_is_killed_half_way_goes_on_where_it_was(pair: Pair) -> None:
    content = os.urandom(5 * PIECE)
    await pair.bob_has(content)
    await pair.result_names([artifact("a", content)])
    go_on = asyncio.Event()
    pair.bob.owed = halting(pair.bob.owed, 2, go_on)
    async with pair.pulling():
        await until(lambda: pair.blobs.partial(digest(content)) == 2 * PIECE)
    go_on.set()
    pair.blobs = BlobStore(pair.root)
    found = await pair.pulled()
    assert found["a"].stored
    assert pair.here(content)
    assert pair.asked.offsets == [0, 2 * PIECE]
    assert pair.left == 1


async def test_one_whose_connection_is_reset_goes_on_where_it_was(pair: Pair) -> None:
    content = os.urandom(5 * PIECE)
    await pair.bob_has(content)
    await pair.result_names([artifact("a", content)])
    go_on = asyncio.Event()
    pair.bob.owed = halting(pair.bob.owed, 3, go_on)
    async with pair.pulling():
        await until(lambda: pair.blobs.partial(digest(content)) == 3 * PIECE)
        pair.proxy.reset()
        go_on.set()
        await pair.files_when(lambda files: files["a"].stored)
    assert pair.here(content)
    assert pair.asked.offsets[0] == 0
    assert set(pair.asked.offsets[1:]) == {3 * PIECE}


async def test_a_peer_that_is_away_is_asked_again_when_it_is_heard(pair: Pair) -> None:
    await pair.bob_has(b"content")
    await pair.result_names([artifact("a", b"content")])
    pair.proxy.down()
    async with pair.pulling() as puller:
        await until(lambda: pair.asked.offsets)
        pair.proxy.up()
        async with asyncio.timeout(PATIENCE):
            while not (await pair.files_when(bool))["a"].stored:
                puller.heard(pair.bob.install_id)
                await asyncio.sleep(0.01)
    assert pair.here(b"content")


# What is not as it was signed.


@pytest.mark.parametrize(
    "served",
    [
        b"other bytes",  # of the same length
        b"too short",
        b"signed bytes, and then some more",
        b"",
    ],
)
async def test_what_has_another_hash_or_length_is_thrown_away_and_told(pair: Pair, served: bytes) -> None:
    signed = b"signed byte"
    await pair.bob_has(b"fine")
    await pair.result_names([artifact("a", signed)])
    pair.bob.owed = saying(served)
    found = await pair.pulled(refusals=1)
    assert (found["a"].stored, found["a"].problem) == (False, Problem.WRONG)
    assert pair.refused == ["a"]
    assert pair.left == 0
    await pair.pulled()  # and nobody asks again
    assert pair.asked.offsets == [0]


async def test_one_that_never_ends_is_cut_off_where_it_should_have_ended(pair: Pair) -> None:
    sent = 0

    async def endless(caller: str, request: svc.GetBlobRequest) -> AsyncGenerator[bytes, None]:
        nonlocal sent
        while True:
            sent += 1
            yield bytes(PIECE)

    await pair.result_names([artifact("a", b"signed", size=3 * PIECE)])
    pair.bob.owed = endless
    found = await pair.pulled()
    assert found["a"].problem is Problem.WRONG
    assert pair.left == 0
    assert sent < 100


async def test_content_that_has_changed_meanwhile_is_noticed_and_pulled_anew(pair: Pair) -> None:
    signed, before = os.urandom(3 * PIECE), os.urandom(3 * PIECE)
    await pair.result_names([artifact("a", signed)])
    incoming = pair.blobs.resumed(digest(signed))
    incoming.write(before[:PIECE])
    incoming.close()
    pair.bob.owed = saying(signed)
    found = await pair.pulled()
    assert found["a"].stored
    assert pair.here(signed)
    assert pair.asked.offsets == [PIECE, 0]
    assert pair.refused == []


async def test_content_that_goes_on_changing_is_refused(pair: Pair) -> None:
    signed = os.urandom(3 * PIECE)
    await pair.result_names([artifact("a", signed)])
    incoming = pair.blobs.resumed(digest(signed))
    incoming.write(signed[:PIECE])
    incoming.close()
    pair.bob.owed = saying(os.urandom(3 * PIECE), os.urandom(3 * PIECE))
    found = await pair.pulled(refusals=1)
    assert found["a"].problem is Problem.WRONG
    assert pair.asked.offsets == [PIECE, 0]
    assert (pair.refused, pair.left) == (["a"], 0)


async def test_a_bad_file_holds_up_no_other(pair: Pair) -> None:
    await pair.bob_has(b"fine")
    await pair.result_names([artifact("absent", b"never there"), artifact("fine", b"fine")])
    found = await pair.pulled()
    assert found["fine"].stored
    assert found["absent"].problem is Problem.GONE


async def test_what_was_packed_stays_packed(pair: Pair) -> None:
    bomb = gzip.compress(bytes(16 * PIECE))
    await pair.bob_has(bomb)
    await pair.result_names([artifact("bomb.gz", bomb)])
    await pair.pulled()
    assert pair.here(bomb)
    assert pair.left == 1


# How much.


async def test_ten_gigabytes_are_not_even_asked_for(pair: Pair) -> None:
    await pair.result_names([artifact("a", b"signed", size=10_000_000_000)])
    found = await pair.pulled(lambda files: files["a"].problem)
    assert (found["a"].problem, found["a"].wanted) == (Problem.QUOTA, True)
    assert pair.asked.offsets == []
    assert pair.left == 0


async def test_a_peer_has_so_much_room_and_gets_more_when_there_is(pair: Pair) -> None:
    first, second = b"a" * 600, b"b" * 600
    await pair.bob_has(first, second)
    await pair.result_names([artifact("a", first), artifact("b", second)])
    pair.limits = Limits(peer=1_000)
    found = await pair.pulled(lambda files: files["a"].stored and files["b"].problem)
    assert (found["b"].problem, pair.here(second)) == (Problem.QUOTA, False)
    pair.limits = Limits()
    found = await pair.pulled()
    assert (found["b"].problem, pair.here(second)) == (Problem.NONE, True)


async def test_all_together_have_so_much_room(pair: Pair) -> None:
    await pair.bob_has(b"a" * 600)
    await pair.result_names([artifact("a", b"a" * 600)])
    pair.limits = Limits(total=599)
    found = await pair.pulled(lambda files: files["a"].problem)
    assert (found["a"].problem, pair.asked.offsets) == (Problem.QUOTA, [])


class Disk(RealDisk):
    """Full for a while."""

    def __init__(self, times: int) -> None:
        self.times = times

    def write(self, descriptor: int, data: bytes) -> None:
        if self.times:
            self.times -= 1
            raise OSError(errno.ENOSPC, "no space left on device")
        super().write(descriptor, data)


async def test_a_disk_that_is_full_for_a_while_loses_nothing(pair: Pair) -> None:
    content = os.urandom(2 * PIECE)
    await pair.bob_has(content)
    await pair.result_names([artifact("a", content)])
    pair.blobs = BlobStore(pair.root, Disk(times=3))
    found = await pair.pulled()
    assert found["a"].stored
    assert pair.here(content)
    assert pair.asked.offsets == [0, 0, 0, 0]


# Whose they are.


async def refused(caller: Neighbour, bob: Neighbour, request: svc.GetBlobRequest) -> tuple[str, str]:
    async with caller.calling(bob) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.GetBlob(request, timeout=PATIENCE):
                pass
    return caught.value.code().name, from_rpc_error(caught.value).reason


async def test_nobody_gets_what_is_not_theirs(pair: Pair, tmp_path: Path) -> None:
    await pair.bob_has(b"owed", b"other")
    await pair.result_names([artifact("a", b"owed")])
    ours = svc.GetBlobRequest(delegation=DELEGATION, sha256=digest(b"owed"))
    other = svc.GetBlobRequest(delegation=DELEGATION, sha256=digest(b"other"))
    unknown = svc.GetBlobRequest(delegation="e" * 26, sha256=digest(b"owed"))
    beyond = svc.GetBlobRequest(delegation=DELEGATION, sha256=digest(b"owed"), offset=5)
    async with neighbour(tmp_path / "carol") as carol:
        await pair.bob.knows(carol, level=Level.VERIFIED, address="127.0.0.1:9")
        not_found = "NOT_FOUND", "ARTIFACT_NOT_FOUND"
        assert await refused(carol, pair.bob, ours) == not_found
        assert await refused(pair.alice, pair.bob, other) == not_found
        assert await refused(pair.alice, pair.bob, unknown) == not_found
        assert await refused(pair.alice, pair.bob, beyond) == ("INVALID_ARGUMENT", "INVALID_REQUEST")


async def test_a_peer_that_is_only_known_gets_none(pair: Pair) -> None:
    await pair.bob_has(b"owed")
    await pair.result_names([artifact("a", b"owed")])
    await pair.bob.knows(pair.alice, level=Level.KNOWN)
    ours = svc.GetBlobRequest(delegation=DELEGATION, sha256=digest(b"owed"))
    assert (await refused(pair.alice, pair.bob, ours))[0] == "PERMISSION_DENIED"


async def test_what_has_not_come_from_a_third_hopper_yet_is_waited_for(pair: Pair) -> None:
    await pair.result_names([artifact("a", b"of carol")])
    third = handed_over(Role.OUT, "carol", [artifact("a", b"of carol")], id="e" * 26)
    await pair.bob.files.write(lambda store: expect(store, third))
    async with pair.pulling():
        await until(lambda: pair.asked.offsets)
        await pair.bob_has(b"of carol")

        def arrived(file: File) -> File:
            return File(file.task, file.name, file.sha256, file.size, "", file.create_time, peer="carol")

        coming = await pair.bob.files.read(lambda store: store.beside([CHILD]))
        await pair.bob.files.write(lambda store: store.save(arrived(coming[0])))
        await pair.files_when(lambda files: files["a"].stored)
    assert pair.here(b"of carol")
