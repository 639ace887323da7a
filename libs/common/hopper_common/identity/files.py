"""
Files that belong to this user alone: written whole or not at all, and refused when others may read them.

A file is written under another name, synced, and then renamed, so whoever reads finds the old content or the new. What
others may read has to be taken for known to them: it is refused, with its path, rather than mended, because mending
would hide that it happened.
"""

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hopper_common import failpoints
from hopper_common.identity.errors import IdentityDamaged, IdentityLocked, IdentityShared

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_MOST_BYTES: Final = 1024 * 1024
_DRAFT: Final = ".new"
_LOCK_SECONDS: Final = 15.0


def make_directory(path: Path) -> None:
    """Make a directory for this user alone, or check one that is there."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        sync_directory(path.parent)
    check_directory(path)


def check_directory(path: Path) -> None:
    """
    Check that a directory is this user's alone.

    Raises:
        IdentityDamaged: There is none.
        IdentityShared: Others may look into it.
    """
    found = _look(path)
    if not stat.S_ISDIR(found.st_mode):
        raise IdentityDamaged(f"{path} is not a directory: move it away, or restore a backup")
    _check_owner(path, found, "700")


def read_private(path: Path) -> bytes:
    """
    Read a file.

    Raises:
        IdentityDamaged: There is none, or it cannot be read.
        IdentityShared: Others may read it, or it is not a plain file of this user's.
    """
    found = _look(path)
    if not stat.S_ISREG(found.st_mode):
        raise IdentityDamaged(f"{path} is not a plain file: move it away, or restore a backup")
    _check_owner(path, found, "600")
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise IdentityDamaged(f"{path} cannot be read ({error.strerror}): restore a backup") from error
    if not 0 < len(content) <= _MOST_BYTES:
        raise IdentityDamaged(f"{path} is {'empty' if not content else 'too large'}: restore a backup")
    return content


def write_private(path: Path, content: bytes) -> None:
    """Replace a file, whole or not at all; when this returns, a power failure does not undo it."""
    draft = path.with_name(path.name + _DRAFT)
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        failpoints.hit("identity.half", "identity")
        file.write(content[len(content) // 2 :])
        file.flush()
        os.fsync(file.fileno())
    failpoints.hit("identity.rename", "identity")
    draft.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make what was made, renamed or removed in a directory last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_draft(path: Path) -> bool:
    """Whether a file was being written when its process died."""
    return path.name.endswith(_DRAFT)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """
    Hold a lock among processes and threads. It is let go of however the process ends.

    Raises:
        IdentityLocked: Somebody has held it for too long; names the process.
    """
    # Never removed: whoever waits for the file of that name must find the one that is locked.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        _take(descriptor, path)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> None:
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise IdentityLocked(
                    f"process {holder} has held {path} for {_LOCK_SECONDS:.0f} seconds: see what it does, or stop it"
                ) from None
            time.sleep(0.01)


def _look(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except FileNotFoundError:
        raise IdentityDamaged(f"{path} is missing: restore a backup with `hopper identity restore`") from None
    except OSError as error:
        raise IdentityDamaged(f"{path} cannot be read ({error.strerror}): restore a backup") from error


def _check_owner(path: Path, found: os.stat_result, mode: str) -> None:
    if found.st_uid != os.geteuid():
        raise IdentityShared(f"{path} belongs to another user: chown it to the user that runs Hopper")
    if found.st_mode & _OTHERS:
        raise IdentityShared(
            f"others may get at {path} (mode {stat.S_IMODE(found.st_mode):04o}): run chmod {mode} on it, and "
            "if anybody else may have read it, `hopper ca rotate`"
        )
