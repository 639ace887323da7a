"""
Puts the parts of this package together, for `app`.

What peers may have is needed before there are ways to peers, and what is pulled after: so it is done in two steps.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc.aio

from hopper.federation.v1 import artifact_service_pb2
from hopper.federation.v1.artifact_service_pb2_grpc import add_ArtifactServiceServicer_to_server
from hopper_common.clock import Clock
from hopper_common.database import Database
from hopper_common.rpc.server import Registered
from hopper_federation.artifacts import place
from hopper_federation.artifacts.artifact_servicer import ArtifactServicer
from hopper_federation.artifacts.blobs import BlobStore
from hopper_federation.artifacts.keeping import ArtifactKeeper
from hopper_federation.artifacts.model import File, Limits
from hopper_federation.artifacts.puller import PeerBlobs, Puller
from hopper_federation.artifacts.serving import OwedFiles
from hopper_federation.artifacts.store_sql import Artifacts
from hopper_federation.artifacts.tasks import RouterTasks, Tasks
from hopper_federation.delegation.desk import Raised
from hopper_federation.delegation.model import Alarm
from hopper_federation.peer_links import PeerLinks
from hopper_federation.statuses import Statuses

REFUSED: Final = "artifact_invalid"
"""The kind of the alarm that tells of such files."""


@dataclass(frozen=True, slots=True)
class ArtifactParts:
    """
    What the rest of the service needs.

    Attributes:
        of_tasks: What is asked of tasks.
        owed: What peers may have.
        registered: What this Hopper's own callers are offered.
    """

    files: Artifacts
    blobs: BlobStore
    of_tasks: Tasks
    limits: Limits
    clock: Clock
    owed: OwedFiles
    registered: Registered

    def puller(self, links: PeerLinks, statuses: Statuses, alarm: Callable[[Raised], None]) -> Puller:
        """
        What fetches files from peers. Its `run` is to be run where there are ways to peers.

        Args:
            alarm: Told of files that are not what a peer had signed.
        """

        def refused(file: File) -> None:
            alarm(Raised(file.peer, file.delegation, Alarm(REFUSED)))

        made = Puller(self.files, self.blobs, PeerBlobs(links), self.limits, self.clock, refused=refused)
        statuses.on_heard(made.heard)
        return made

    @property
    def tasks(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """What runs beside the server in any case."""
        return [ArtifactKeeper(self.files, self.blobs, self.of_tasks, self.clock).run]


@asynccontextmanager
async def open_artifacts(
    db: Database, directory: Path, router: grpc.aio.Channel, limits: Limits, clock: Clock
) -> AsyncIterator[ArtifactParts]:
    """
    Open the store of blobs in a directory.

    Raises:
        DirectoryShared, BlobRefused: Somebody else has put something in its place.
    """
    blobs = await asyncio.to_thread(BlobStore, directory)
    await place.check(db, directory)
    files, tasks = Artifacts(db, clock), RouterTasks(router)
    yield ArtifactParts(
        files=files,
        blobs=blobs,
        of_tasks=tasks,
        limits=limits,
        clock=clock,
        owed=OwedFiles(files, blobs),
        registered=Registered.of(
            artifact_service_pb2.DESCRIPTOR.services_by_name["ArtifactService"],
            ArtifactServicer(files, blobs, tasks, limits, clock),
            add_ArtifactServiceServicer_to_server,
        ),
    )
