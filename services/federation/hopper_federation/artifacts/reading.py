"""A blob, piece by piece, to whoever may have it."""

import asyncio
from collections.abc import AsyncGenerator

from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_federation.artifacts.blobs import BlobStore
from hopper_federation.artifacts.errors import ArtifactNotFound


async def pieces(blobs: BlobStore, sha256: bytes, offset: int) -> AsyncGenerator[bytes, None]:
    """
    The bytes of a blob from an offset, at most 1 MiB at a time. Close it, or exhaust it.

    Raises:
        ArtifactNotFound: It is not here.
        InvalidArgument: It ends before the offset.
    """
    reader = await asyncio.to_thread(blobs.open, sha256)
    if reader is None:
        raise ArtifactNotFound("its bytes are not here", artifact=sha256.hex())
    try:
        if offset > reader.size:
            violation = FieldViolation("offset", f"must be at most {reader.size}, its size")
            raise InvalidArgument(violations=[violation])
        while piece := await asyncio.to_thread(reader.read, offset):
            offset += len(piece)
            yield piece
    finally:
        reader.close()
