"""Files for what is shown once: made before it is asked for, for their owner alone, removed if it does not come."""

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from hopper_cli.problems import UsageProblem


class KeyFile:
    """
    A new file for a key; a context manager.

    It is made on entering, because a key that cannot be written down any more would be lost, and removed on leaving if
    nothing was written.

    Args:
        path: None: no file.
    """

    def __init__(self, path: str | None) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self._written = False

    def __enter__(self) -> Self:
        if self.path is not None:
            _make(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is not None and not self._written:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()

    def write(self, secret: str) -> None:
        """Write it down; when this returns, a power failure does not undo it."""
        if self.path is None:
            raise ValueError("there is no file to write to")
        self._written = True
        with self.path.open("w", encoding="ascii") as file:
            file.write(f"{secret}\n")
            file.flush()
            os.fsync(file.fileno())


def _make(path: Path) -> None:
    try:
        # Never one that is there: others might have it open, or it is somebody's key.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        raise UsageProblem(f"there is a file {path} already", remedy="choose another, or remove it") from None
    except OSError as error:
        raise UsageProblem(f"{path} cannot be written: {error.strerror}") from error
