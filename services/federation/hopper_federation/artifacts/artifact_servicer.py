"""`hopper.federation.v1.ArtifactService`: files beside tasks, put and got."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc.aio

from hopper.federation.v1 import artifact_service_pb2 as svc
from hopper.federation.v1.artifact_service_pb2_grpc import ArtifactServiceServicer
from hopper_common.clock import Clock
from hopper_common.errors import FieldViolation, InvalidArgument, NotFound
from hopper_common.rpc.channel import ACCEPTED
from hopper_federation.artifacts import reading
from hopper_federation.artifacts.blobs import BlobStore, Incoming
from hopper_federation.artifacts.errors import ArtifactInvalid, ArtifactNotFound, QuotaReached
from hopper_federation.artifacts.manifests import to_proto
from hopper_federation.artifacts.model import MOST_FILES, File, Limits, Problem, check_claims
from hopper_federation.artifacts.store_sql import Artifacts, ArtifactStore, nearest
from hopper_federation.artifacts.tasks import Tasks
from hopper_federation.errors import PeerUnreachable

_Context = grpc.aio.ServicerContext[Any, Any]
_Requests = AsyncIterator[svc.PutArtifactRequest]


class ArtifactServicer(ArtifactServiceServicer):
    """
    One method per RPC.

    Args:
        limits: How much may be kept.
    """

    def __init__(
        self, files: Artifacts, blobs: BlobStore, tasks: Tasks, limits: Limits, clock: Clock
    ) -> None:
        self._files = files
        self._blobs = blobs
        self._tasks = tasks
        self._limits = limits
        self._clock = clock
        self._arriving: set[Incoming] = set()

    async def PutArtifact(self, request_iterator: _Requests, context: _Context) -> svc.PutArtifactResponse:
        start = await _start(request_iterator)
        said = start.artifact
        check_claims(said.name, said.sha256, said.size, said.media_type)
        self._limits.check_file(said.size, said.name)
        await self._tasks.require_open(start.task)
        used = await self._files.read(lambda store: store.used())
        self._limits.check_total(used + said.size, said.name)
        await context.send_initial_metadata(ACCEPTED)  # the sender may wait for that
        incoming = await asyncio.to_thread(self._blobs.incoming)
        self._arriving.add(incoming)
        try:
            await self._take(request_iterator, incoming, said, used)
            _check_bytes(incoming, said)
            await self._tasks.require_open(start.task)  # it may have ended meanwhile
            file = await self._keep(start, incoming)
        finally:
            self._arriving.remove(incoming)
            await asyncio.shield(asyncio.to_thread(incoming.discard))
        return svc.PutArtifactResponse(artifact=to_proto(file))

    async def _take(self, requests: _Requests, incoming: Incoming, said: Any, used: int) -> None:
        async for request in requests:
            if request.WhichOneof("part") != "data":
                raise InvalidArgument(violations=[FieldViolation("data", "is all that may follow a start")])
            size = incoming.size + len(request.data)
            if said.size and size > said.size:
                raise ArtifactInvalid(
                    f"{said.name} has more than the {said.size} bytes that were said", artifact=said.name
                )
            self._limits.check_file(size, said.name)
            arriving = sum(each.size for each in self._arriving)  # of all calls
            self._limits.check_total(used + arriving + len(request.data), said.name)
            await asyncio.to_thread(incoming.write, request.data)

    async def _keep(self, start: svc.PutArtifactRequest.Start, incoming: Incoming) -> File:
        """Make it a file: its bytes first, then the row that names them."""
        now = self._clock.now().timestamp()
        if not await asyncio.to_thread(self._blobs.touch, incoming.digest, incoming.size, now):
            await asyncio.to_thread(incoming.keep, now)
        file = File(
            task=start.task,
            name=start.artifact.name,
            sha256=incoming.digest,
            size=incoming.size,
            media_type=start.artifact.media_type,
            create_time=self._clock.now(),
        )
        return await self._files.write(lambda store: _put(store, file, self._limits))

    async def ListArtifacts(
        self, request: svc.ListArtifactsRequest, context: _Context
    ) -> svc.ListArtifactsResponse:
        files = (await self._beside(request.task)).values()
        stored = await asyncio.to_thread(lambda: [self._stored(file) for file in files])
        return svc.ListArtifactsResponse(artifacts=stored)

    async def GetArtifact(
        self, request: svc.GetArtifactRequest, context: _Context
    ) -> AsyncIterator[svc.GetArtifactResponse]:
        file = (await self._beside(request.task)).get(request.name)
        if file is None:
            raise ArtifactNotFound(artifact=request.name)
        _require_here(file)
        async with aclosing(reading.pieces(self._blobs, file.sha256, request.offset)) as pieces:
            async for piece in pieces:
                yield svc.GetArtifactResponse(data=piece)

    async def _beside(self, task: str) -> dict[str, File]:
        """The files beside a task and what was made of it, by name."""
        try:
            chain = await self._tasks.below(task)
        except NotFound:  # the router may have put it away; what was beside it is kept for longer
            found = await self._files.read(lambda store: store.beside([task]))
            if not found:
                raise
            return nearest(found, [task])
        return nearest(await self._files.read(lambda store: store.beside(chain)), chain)

    def _stored(self, file: File) -> svc.StoredArtifact:
        here = file.size if file.stored else 0
        if file.wanted:  # whole it is once it has been checked
            here = max(0, min(self._blobs.partial(file.sha256), file.size - 1))
        reason, detail = _why_missing(file)
        return svc.StoredArtifact(artifact=to_proto(file), stored=here, problem=reason, detail=detail)


async def _start(requests: _Requests) -> svc.PutArtifactRequest.Start:
    async for request in requests:
        if request.WhichOneof("part") == "start":
            return request.start
        break
    raise InvalidArgument(violations=[FieldViolation("start", "must come first")])


def _check_bytes(incoming: Incoming, said: Any) -> None:
    if said.size and incoming.size != said.size:
        raise ArtifactInvalid(
            f"{said.name} has {incoming.size} bytes, not the {said.size} that were said", artifact=said.name
        )
    if said.sha256 and incoming.digest != said.sha256:
        raise ArtifactInvalid(f"{said.name} has another SHA-256 than was said", artifact=said.name)


def _put(store: ArtifactStore, file: File, limits: Limits) -> File:
    before = store.file(file.task, file.name)
    if before is None:
        if len(store.beside([file.task])) >= MOST_FILES:
            raise QuotaReached(
                f"there are {MOST_FILES} files beside {file.task}: put them into one archive",
                rule="artifacts of a task",
                quota="files",
                limit=str(MOST_FILES),
            )
    elif before.peer:
        raise ArtifactInvalid(f"{file.name} is the name of what a peer has sent", artifact=file.name)
    elif before.sha256 == file.sha256:
        return before
    replaced = 0 if before is None else before.size
    limits.check_total(store.used() - replaced + file.size, file.name)
    store.save(file)
    return file


def _require_here(file: File) -> None:
    if file.stored:
        return
    reason, detail = _why_missing(file)
    if file.wanted:
        cause = detail or "it is on its way"
        raise PeerUnreachable(f"{file.name} has not come yet: {cause}", peer=file.peer, cause=cause)
    if reason == ArtifactNotFound.reason:
        raise ArtifactNotFound(f"{file.name} is not here: {detail}", artifact=file.name)
    raise ArtifactInvalid(f"{file.name} was refused: {detail}", artifact=file.name)


def _why_missing(file: File) -> tuple[str, str]:
    """Why a file that a peer told of does not come: a reason of the catalogue, and the same for people."""
    match file.problem:
        case Problem.NONE:
            return "", ""
        case Problem.QUOTA:
            return QuotaReached.reason, "there is no room for it here: it is tried again every few minutes"
        case Problem.WRONG:
            return ArtifactInvalid.reason, "what came is not what the peer had signed"
        case Problem.MALFORMED:
            return ArtifactInvalid.reason, "what the peer had signed is no name, hash or size"
        case Problem.GONE:
            return ArtifactNotFound.reason, "the peer does not have it any more"
