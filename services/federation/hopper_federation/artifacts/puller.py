"""
Fetches what results of peers name, from the peers that told of them.

    wanted rows ─► a task for each peer ─► one file after the other: `….part` ─► checked ─► blob ─► row
                        ▲                     │ cut off: goes on where it ended, also after a restart
                        └── a pause, doubled ◄┘ full: tried again later    wrong bytes: refused for good, and told

Size and hash are checked while the bytes come: nothing is taken beyond what was signed. What a restart or a dead link
left behind is gone on with; where the whole is wrong then, it may be the old part that was damaged, and it is fetched
once more from its beginning before anybody is blamed.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakValueDictionary

import grpc.aio
import structlog

from hopper.federation.v1.peer_service_pb2 import GetBlobRequest
from hopper_common.clock import Clock
from hopper_common.errors import HopperError, NotFound
from hopper_federation.artifacts.blobs import BlobStore, Incoming
from hopper_federation.artifacts.errors import QuotaReached
from hopper_federation.artifacts.model import File, Limits, Problem
from hopper_federation.artifacts.store_sql import Artifacts, ArtifactStore
from hopper_federation.errors import PeerUnreachable

if TYPE_CHECKING:
    from hopper_federation.peer_links import PeerLinks

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 5.0
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 300.0
PIECE_SECONDS: Final = 60.0
"""How long a peer that is there may take for a piece."""


class Sources(Protocol):
    """Where files are fetched from."""

    def blob(self, file: File, offset: int) -> AsyncGenerator[bytes, None]:
        """
        The bytes of a file, from an offset.

        Raises:
            HopperError: The peer does not answer, or what it answers instead.
        """


class PeerBlobs:
    """`Sources`: the peers themselves."""

    def __init__(self, links: "PeerLinks") -> None:
        self._links = links

    async def blob(self, file: File, offset: int) -> AsyncGenerator[bytes, None]:
        """See `Sources`."""
        link = self._links.to(file.peer)
        peer = link.peer
        request = GetBlobRequest(delegation=file.delegation, sha256=file.sha256, offset=offset)
        stream: Any = link.stub.GetBlob(request)
        try:
            while True:
                async with asyncio.timeout(PIECE_SECONDS):
                    message = await stream.read()
                if message is grpc.aio.EOF:
                    return
                yield message.data
        except grpc.aio.AioRpcError as error:
            raise link.problem_of(error, peer) from error
        except TimeoutError as error:
            raise PeerUnreachable(
                f"{peer.name} sends nothing more", peer=peer.name, cause="silent"
            ) from error
        finally:
            stream.cancel()


class Puller:
    """
    Runs beside the server.

    Args:
        refused: Told of files that are not what a peer had signed.
        first_pause: Seconds after the first failure; each further one doubles it.
    """

    def __init__(
        self,
        files: Artifacts,
        blobs: BlobStore,
        sources: Sources,
        limits: Limits,
        clock: Clock,
        *,
        refused: Callable[[File], None],
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self._files = files
        self._blobs = blobs
        self._sources = sources
        self._limits = limits
        self._clock = clock
        self._refused = refused
        self._first_pause = first_pause
        self._wake = asyncio.Event()
        self._heard: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._busy: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._coming: dict[File, int] = {}

    def look_soon(self) -> None:
        """Something may be wanted now."""
        self._wake.set()

    def heard(self, install_id: str) -> None:
        """A peer is there: a pause that waits for it is cut short."""
        if install_id in self._heard:
            self._heard[install_id].set()

    async def run(self) -> None:
        """Fetch, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                try:
                    peers = await self._files.read(lambda store: store.wanted_from())
                except HopperError as error:
                    log.warning("what is to be pulled is not known", reason=error.reason)
                    peers = []
                for peer in peers:
                    if peer not in self._tasks:
                        self._tasks[peer] = group.create_task(self._pull_from(peer))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY):
                        await self._wake.wait()

    async def _pull_from(self, peer: str) -> None:
        """Everything that a peer has for us."""
        self._heard[peer] = asyncio.Event()
        pause = self._first_pause
        try:
            while True:
                problem = await self._round(peer)
                if problem is None:
                    return
                await self._rest(peer, pause, until_heard=isinstance(problem, PeerUnreachable))
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            del self._tasks[peer], self._heard[peer]
            self._wake.set()  # there may be more since the last look

    async def _round(self, peer: str) -> HopperError | None:
        """Try each file once. Returns why something is left; None: nothing is."""
        left: HopperError | None = None
        try:
            for file in await self._files.read(lambda store: store.wanted(peer)):
                try:
                    await self.pull(file)
                except NotFound:  # it was told of, and is not there
                    await self._settle(file, Problem.GONE)
                except HopperError as error:
                    log.info("a file is not here yet", peer=peer, reason=error.reason, message=error.message)
                    left = error
                    if isinstance(error, PeerUnreachable):
                        break
        except HopperError as error:  # of the database
            left = error
        return left

    async def _rest(self, peer: str, seconds: float, *, until_heard: bool) -> None:
        heard = self._heard[peer]
        heard.clear()
        await asyncio.sleep(
            self._first_pause
        )  # one that is heard, and not reached, is not asked all the time
        seconds *= random.uniform(0.6, 1.0)  # noqa: S311 - spreads calls, hides nothing
        if not until_heard:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await heard.wait()

    async def pull(self, file: File) -> None:
        """
        Fetch a file.

        Raises:
            QuotaReached: There is no room for it, now.
            NotFound: The peer does not have it.
            HopperError: What else was in the way; what has come is kept.
        """
        lock = self._busy.setdefault(file.sha256, asyncio.Lock())  # several peers may tell of the same bytes
        async with lock:
            await self._make_room(file)
            try:
                if not await self._is_here(file) and not await self._fetch(file):
                    await self._settle(file, Problem.WRONG)
                    return
            finally:
                del self._coming[file]
            await self._settle(file, Problem.NONE)

    async def _make_room(self, file: File) -> None:
        try:
            self._limits.check_file(file.size, file.name)
            await self._files.read(lambda store: self._check_room(store, file))
        except QuotaReached:
            if file.problem is not Problem.QUOTA:
                await self._settle(file, Problem.QUOTA)
            raise
        self._coming[file] = file.size

    def _check_room(self, store: ArtifactStore, file: File) -> None:
        coming = dict(self._coming)
        theirs = sum(size for each, size in coming.items() if each.peer == file.peer)
        self._limits.check_peer(store.used(file.peer) + theirs + file.size, file.name)
        self._limits.check_total(store.used() + sum(coming.values()) + file.size, file.name)

    async def _is_here(self, file: File) -> bool:
        return await asyncio.to_thread(self._blobs.touch, file.sha256, file.size, self._now())

    async def _fetch(self, file: File) -> bool:
        """Whether what came is what was signed. Other bytes are thrown away."""
        incoming = await asyncio.to_thread(self._blobs.resumed, file.sha256)
        resumed = incoming.size > 0
        right = await self._receive(file, incoming)
        if not right and resumed:
            log.warning(
                "a file is fetched once more, from its beginning", peer=file.peer, delegation=file.delegation
            )
            right = await self._receive(file, await asyncio.to_thread(self._blobs.resumed, file.sha256))
        return right

    async def _receive(self, file: File, incoming: Incoming) -> bool:
        try:
            right = await self._fill(file, incoming) and incoming.digest == file.sha256
            await asyncio.to_thread(incoming.keep if right else _discard(incoming), self._now())
        finally:
            incoming.close()
        return right

    async def _fill(self, file: File, incoming: Incoming) -> bool:
        """Whether as many bytes came as there should be."""
        if incoming.size < file.size:
            async with aclosing(self._sources.blob(file, incoming.size)) as pieces:
                async for piece in pieces:
                    if incoming.size + len(piece) > file.size:
                        return False
                    await asyncio.to_thread(incoming.write, piece)
        return incoming.size == file.size

    async def _settle(self, file: File, problem: Problem) -> None:
        """Write down what became of it, if it is still wanted."""

        def work(store: ArtifactStore) -> bool:
            current = store.file(file.task, file.name)
            if current is None or not current.wanted or current.sha256 != file.sha256:
                return False
            store.save(replace(current, stored=problem is Problem.NONE, problem=problem))
            return True

        if await self._files.write(work) and problem is Problem.WRONG:
            self._refused(file)

    def _now(self) -> float:
        return self._clock.now().timestamp()


def _discard(incoming: Incoming) -> Callable[[float], None]:
    return lambda _: incoming.discard()
