"""What peers may have: the files that a result names which they are owed, and no others."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from hopper.federation.v1.peer_service_pb2 import GetBlobRequest
from hopper_federation.artifacts import reading
from hopper_federation.artifacts.blobs import BlobStore
from hopper_federation.artifacts.errors import ArtifactNotFound
from hopper_federation.artifacts.manifests import named_by
from hopper_federation.artifacts.store_sql import Artifacts, ArtifactStore
from hopper_federation.delegation.model import Role
from hopper_federation.delegation.store_sql import SqlDelegations
from hopper_federation.errors import PeerUnreachable


class OwedFiles:
    """The answers to `PeerService.GetBlob`."""

    def __init__(self, files: Artifacts, blobs: BlobStore) -> None:
        self._files = files
        self._blobs = blobs

    async def pieces(self, caller: str, request: GetBlobRequest) -> AsyncGenerator[bytes, None]:
        """
        The bytes that a peer asks for.

        Args:
            caller: Its install id, as proved.

        Raises:
            ArtifactNotFound: There is no such file; or it is not the caller's, which nobody is told.
            PeerUnreachable: It has not come from the Hopper that made it yet.
            InvalidArgument: It ends before the offset.
        """
        sha256 = request.sha256
        if not await self._files.read(lambda store: _owed(store, caller, request.delegation, sha256)):
            raise ArtifactNotFound(artifact=sha256.hex())
        if await self._files.read(lambda store: store.coming(sha256)):
            raise PeerUnreachable(
                "it has not come from the Hopper that made it yet", peer="", cause="not here yet"
            )
        async with aclosing(reading.pieces(self._blobs, sha256, request.offset)) as pieces:
            async for piece in pieces:
                yield piece


def _owed(store: ArtifactStore, caller: str, delegation: str, sha256: bytes) -> bool:
    taken_over = SqlDelegations(store.conn).delegation(Role.IN, delegation)
    if taken_over is None or taken_over.peer != caller:
        return False
    return any(artifact.sha256 == sha256 for artifact in named_by(taken_over.result))
