"""
Files beside tasks: sent and fetched in pieces, and checked by their SHA-256 at both ends.

`Upload` and `Download` keep the books, and are driven by the async and the blocking client. The same file may be sent
again and changes nothing, so a lost connection begins it anew; what is fetched goes on where it ended.
"""

import hashlib
import io
import mimetypes
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from hopper.federation.v1.artifact_service_pb2 import (
    GetArtifactRequest,
    ListArtifactsResponse,
    PutArtifactRequest,
)
from hopper.federation.v1.delegation_pb2 import Artifact
from hopper_client.errors import ArtifactDamaged, ArtifactNotFound
from hopper_client.policy import MOST_RETRIES, Backoff
from hopper_common.errors import HopperError, Unavailable

PIECE: Final = 1 << 20

Source = str | os.PathLike[str] | bytes
"""A file, or its bytes."""
Target = str | os.PathLike[str] | IO[bytes]
"""A file to write, or one that is open."""
Progress = Callable[[int, int], None]
"""Told how many bytes have gone or come, of how many."""

_NOT_YET: Final = "PEER_UNREACHABLE"


def nowhere(done: int, total: int) -> None:
    """Nobody is told."""


class Attempts:
    """When a transfer whose connection was lost is tried again."""

    def __init__(self) -> None:
        self._backoff = Backoff()

    def moved(self) -> None:
        """Bytes came: whatever went wrong before is over."""
        self._backoff.reset()

    def pause_after(self, error: HopperError) -> float:
        """
        Seconds to wait before the next attempt.

        Raises:
            HopperError: The one given: another attempt does not help.
        """
        passing = isinstance(error, Unavailable) and error.reason != _NOT_YET
        if not passing or self._backoff.count >= MOST_RETRIES:
            raise error
        return self._backoff.next()


class Upload:
    """
    A file that is sent.

    Args:
        name: Default: the file's own.
        media_type: Default: what the name suggests.

    Attributes:
        artifact: What it is, as the server is told. The file is read once to know it.

    Raises:
        OSError: The file cannot be read.
    """

    def __init__(self, task: str, source: Source, name: str, media_type: str, progress: Progress) -> None:
        if isinstance(source, bytes) and not name:
            raise ValueError("bytes have no name: give one")
        self._task = task
        self._source = source
        self._progress = progress
        called = name or unicodedata.normalize("NFC", Path(_path(source)).name)
        self.artifact = Artifact(
            name=called,
            media_type=media_type or mimetypes.guess_type(called)[0] or "application/octet-stream",
        )
        digest = hashlib.sha256()
        with self._open() as file:
            while piece := file.read(PIECE):
                digest.update(piece)
                self.artifact.size += len(piece)
        self.artifact.sha256 = digest.digest()
        self.attempts = Attempts()

    def requests(self) -> Iterator[PutArtifactRequest]:
        """What is sent, from the beginning. Whoever does not exhaust it should close it."""
        yield PutArtifactRequest(start=PutArtifactRequest.Start(task=self._task, artifact=self.artifact))
        sent = 0
        with self._open() as file:
            while piece := file.read(PIECE):
                yield PutArtifactRequest(data=piece)
                sent += len(piece)
                self._progress(sent, self.artifact.size)

    def _open(self) -> IO[bytes]:
        return (
            io.BytesIO(self._source)
            if isinstance(self._source, bytes)
            else Path(_path(self._source)).open("rb")
        )


def _path(source: Source) -> str:
    return "" if isinstance(source, bytes) else os.fspath(source)


class Download:
    """
    A file that is fetched. A file that is named by its path is there only once it is whole and checked.

    Args:
        listed: The files beside the task.

    Attributes:
        artifact: What it is.

    Raises:
        ArtifactNotFound: There is none of that name.
    """

    def __init__(
        self, listed: ListArtifactsResponse, task: str, name: str, target: Target, progress: Progress
    ) -> None:
        found = next((each.artifact for each in listed.artifacts if each.artifact.name == name), None)
        if found is None:
            raise ArtifactNotFound(f"there is no {name} beside {task}", artifact=name)
        self.artifact = found
        self.attempts = Attempts()
        self._task = task
        self._target = target
        self._progress = progress
        self._digest = hashlib.sha256()
        self._size = 0
        self._partial = ""
        self._file: IO[bytes]

    def __enter__(self) -> Self:
        if isinstance(self._target, str | os.PathLike):
            folder = Path(self._target).parent
            descriptor, self._partial = tempfile.mkstemp(prefix=".", suffix=".part", dir=folder)
            self._file = os.fdopen(descriptor, "wb")
        else:
            self._file = self._target
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._partial:
            self._file.close()
            Path(self._partial).unlink(missing_ok=True)

    def request(self) -> GetArtifactRequest:
        """What to ask for now."""
        return GetArtifactRequest(task=self._task, name=self.artifact.name, offset=self._size)

    def take(self, piece: bytes) -> None:
        """Take in what came."""
        self._file.write(piece)
        self._digest.update(piece)
        self._size += len(piece)
        self.attempts.moved()
        self._progress(self._size, self.artifact.size)

    def finish(self) -> Artifact:
        """
        Check it, and put it where it is wanted.

        Raises:
            ArtifactDamaged: It is not what it should be.
        """
        if self._digest.digest() != self.artifact.sha256:
            raise ArtifactDamaged(artifact=self.artifact.name)
        self._file.flush()
        if self._partial and isinstance(self._target, str | os.PathLike):
            Path(self._partial).chmod(0o666 & ~_umask())
            Path(self._partial).replace(self._target)
        return self.artifact


def _umask() -> int:
    """What this process denies others; there is no other way to ask."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
