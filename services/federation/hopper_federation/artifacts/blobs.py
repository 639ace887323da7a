"""
Bytes by their SHA-256, in files of this user's alone.

    blobs/ab/cdef…         whole, verified, durable: named by its hash
    blobs/ab/cdef….part    the beginning of what is being pulled; goes on where it ended, also after a restart
    blobs/incoming/…       what is being put; thrown away at the next start

A file comes into being under its name at once and whole: written, synced, and then renamed. Nothing here is ever
unpacked, executed or looked into, and no link is followed: every step is opened beneath the directory before it, and
refused if it is a link.

All calls block; whoever runs an event loop makes them in a thread. An object that reads or writes may be closed while a
call on it is under way in another thread, as happens when a call is cancelled.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import structlog

from hopper_common.errors import HopperError, StorageFull, StorageUnavailable
from hopper_common.startup import make_private
from hopper_federation.artifacts.errors import BlobRefused

log = structlog.get_logger(__name__)

PIECE: Final = 1 << 20
"""Bytes that are read at a time."""

_INCOMING: Final = "incoming"
_PART: Final = ".part"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LINK: Final = os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | _NO_LINK
_READ: Final = os.O_RDONLY | _NO_LINK
_WRITE: Final = os.O_RDWR | os.O_CREAT | _NO_LINK
_FOLDER: Final = 2
"""Digits of a hash that make its directory."""


class Disk(Protocol):
    """What can run out of room."""

    def write(self, descriptor: int, data: bytes) -> None:
        """Write all of it where the file ends."""

    def sync(self, descriptor: int) -> None:
        """Return when it is durable."""


class RealDisk:
    """The operating system's."""

    def write(self, descriptor: int, data: bytes) -> None:
        """See `Disk`."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def sync(self, descriptor: int) -> None:
        """See `Disk`."""
        os.fsync(descriptor)


class Incoming:
    """
    Bytes that come in. Made by `BlobStore`.

    Attributes:
        size: How many there are.
    """

    def __init__(self, store: "BlobStore", descriptor: int, folder: str, file: str) -> None:
        self.size = 0
        self._store = store
        self._descriptor = descriptor
        self._place = folder, file
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def digest(self) -> bytes:
        """SHA-256 of what there is."""
        return self._hash.digest()

    def take_up(self) -> None:
        """Go on after what is in the file already."""
        with self._open():
            while piece := os.pread(self._descriptor, PIECE, self.size):
                self._hash.update(piece)
                self.size += len(piece)
            os.lseek(self._descriptor, 0, os.SEEK_END)

    def write(self, data: bytes) -> None:
        """
        Add bytes.

        Raises:
            StorageFull: There is no room.
            StorageUnavailable: It cannot be written.
        """
        with self._open():
            self._store.disk.write(self._descriptor, data)
            self._hash.update(data)
            self.size += len(data)

    def keep(self, now: float) -> None:
        """
        Make it a blob, under the hash that it has, and close it. Durable when this returns.

        Raises:
            StorageFull, StorageUnavailable: As `write`.
        """
        with self._open():
            self._store.disk.sync(self._descriptor)
            os.utime(self._descriptor, (now, now))
        self.close()
        self._store.adopt(*self._place, self.digest)

    def discard(self) -> None:
        """Throw it away, and close it."""
        self.close()
        self._store.throw_away(*self._place)

    def close(self) -> None:
        """Put it aside as it is. What is not closed in time would hold the file open."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock, _translated():
            if self._closed:
                raise StorageUnavailable("the file was closed meanwhile", service="federation")
            yield


class Reader:
    """A blob that is read. Made by `BlobStore.open`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._closed = False
        self.size = os.fstat(descriptor).st_size

    def read(self, offset: int) -> bytes:
        """Up to `PIECE` bytes from there; empty: it has ended."""
        with self._lock, _translated():
            if self._closed:
                return b""
            return os.pread(self._descriptor, PIECE, offset)

    def close(self) -> None:
        """Close it."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)


class BlobStore:
    """
    The blobs of one directory, which is this process's alone.

    Args:
        directory: Made if it is not there.

    Raises:
        DirectoryShared: Others may write to it.
        BlobRefused: It is a link, or something in it is no directory.
    """

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        self.disk: Disk = disk or RealDisk()
        self._root = directory
        self._moving = threading.Lock()
        if directory.is_symlink():
            raise _refused(directory)
        make_private(directory)
        self._clear_incoming()

    # Reading.

    def size(self, sha256: bytes) -> int | None:
        """How large a blob is; None: it is not here."""
        return self._size(*_place(sha256))

    def partial(self, sha256: bytes) -> int:
        """How many bytes of it have come."""
        folder, file = _place(sha256)
        return self._size(folder, file + _PART) or 0

    def open(self, sha256: bytes) -> Reader | None:
        """Read a blob; None: it is not here."""
        folder, file = _place(sha256)
        with _translated(self._root / folder / file), self._folder(folder) as opened:
            if opened is None:
                return None
            try:
                return Reader(_regular(os.open(file, _READ, dir_fd=opened)))
            except FileNotFoundError:
                return None

    # Writing.

    def incoming(self) -> Incoming:
        """Take in bytes whose hash is not known yet."""
        return self._incoming(_INCOMING, secrets.token_hex(16), os.O_EXCL)

    def resumed(self, sha256: bytes) -> Incoming:
        """Take in the bytes of that hash, after those that have come already. One at a time."""
        folder, file = _place(sha256)
        incoming = self._incoming(folder, file + _PART)
        incoming.take_up()
        return incoming

    def adopt(self, folder: str, file: str, sha256: bytes) -> None:
        """Move what has come in to where it belongs."""
        to_folder, to_file = _place(sha256)
        with (
            self._moving,
            _translated(self._root / to_folder),
            self._folder(folder) as source,
            self._folder(to_folder, make=True) as target,
        ):
            os.replace(file, to_file, src_dir_fd=source, dst_dir_fd=target)
            os.fsync(_there(target))

    def touch(self, sha256: bytes, size: int, now: float) -> bool:
        """
        Let a blob count as new, so that it is not collected before somebody has named it.

        Returns:
            False: it is not here, or not of that size, and so damaged.
        """
        folder, file = _place(sha256)
        with self._moving, _translated(self._root / folder / file), self._folder(folder) as opened:
            if opened is None:
                return False
            try:
                descriptor = _regular(os.open(file, _READ, dir_fd=opened))
            except FileNotFoundError:
                return False
            try:
                os.utime(descriptor, (now, now))
                return os.fstat(descriptor).st_size == size
            finally:
                os.close(descriptor)

    def throw_away(self, folder: str, file: str) -> None:
        """Remove a file, if it is there."""
        with (
            _translated(self._root / folder / file),
            self._folder(folder) as opened,
            contextlib.suppress(FileNotFoundError),
        ):
            if opened is not None:
                os.unlink(file, dir_fd=opened)

    def old(self, before: float) -> set[bytes]:
        """
        The hashes of what was last used before a moment, wholly here or in part. What is not ours is left alone.

        Args:
            before: Seconds since 1970.
        """
        found: set[bytes] = set()
        for folder in sorted(os.listdir(self._root)):
            if len(folder) == _FOLDER:
                try:
                    found.update(self._old_in(folder, before))
                except HopperError as error:
                    log.warning("blobs are not looked at", folder=folder, message=error.message)
        return found

    def remove(self, sha256: bytes, before: float) -> bool:
        """Remove what nobody names, if it has not been used since. False: it has been, or is not here."""
        folder, file = _place(sha256)
        whole, part = (self._remove_old(folder, each, before) for each in (file, file + _PART))
        return whole or part

    # Beneath.

    def _incoming(self, folder: str, file: str, flags: int = 0) -> Incoming:
        with _translated(self._root / folder / file), self._folder(folder, make=True) as opened:
            descriptor = _regular(os.open(file, _WRITE | flags, 0o600, dir_fd=opened))
            return Incoming(self, descriptor, folder, file)

    def _size(self, folder: str, file: str) -> int | None:
        with _translated(self._root / folder / file), self._folder(folder) as opened:
            if opened is None:
                return None
            try:
                found = os.stat(file, dir_fd=opened, follow_symlinks=False)
            except FileNotFoundError:
                return None
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.ELOOP, "not a file")
            return found.st_size

    @contextlib.contextmanager
    def _folder(self, name: str, *, make: bool = False) -> Iterator[int | None]:
        """Open a directory of this one; None: it is not there."""
        root = os.open(self._root, _DIRECTORY)
        opened = None
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=root)
                    os.fsync(root)
            with contextlib.suppress(FileNotFoundError):
                opened = os.open(name, _DIRECTORY, dir_fd=root)
            yield opened
        finally:
            os.close(root)
            if opened is not None:
                os.close(opened)

    def _clear_incoming(self) -> None:
        with _translated(self._root / _INCOMING), self._folder(_INCOMING, make=True) as opened:
            for file in os.listdir(opened):
                os.unlink(file, dir_fd=opened)

    def _old_in(self, folder: str, before: float) -> Iterator[bytes]:
        with _translated(self._root / folder), self._folder(folder) as opened:
            for file in os.listdir(_there(opened)):
                sha256 = _hash_of(folder + file.removesuffix(_PART))
                with contextlib.suppress(FileNotFoundError):
                    found = os.stat(file, dir_fd=opened, follow_symlinks=False)
                    if sha256 is not None and stat.S_ISREG(found.st_mode) and found.st_mtime < before:
                        yield sha256

    def _remove_old(self, folder: str, file: str, before: float) -> bool:
        with (
            self._moving,  # `touch` has either been here, or finds it gone
            _translated(self._root / folder / file),
            self._folder(folder) as opened,
        ):
            try:
                if opened is None or os.stat(file, dir_fd=opened, follow_symlinks=False).st_mtime >= before:
                    return False
                os.unlink(file, dir_fd=opened)
            except FileNotFoundError:
                return False
            return True


def _place(sha256: bytes) -> tuple[str, str]:
    name = sha256.hex()
    return name[:_FOLDER], name[_FOLDER:]


def _hash_of(name: str) -> bytes | None:
    try:
        sha256 = bytes.fromhex(name)
    except ValueError:
        return None
    return sha256 if len(sha256) == hashlib.sha256().digest_size else None


def _there(descriptor: int | None) -> int:
    if descriptor is None:
        raise OSError(errno.ENOENT, "no such directory")
    return descriptor


def _regular(descriptor: int) -> int:
    """The descriptor of a file; what is none is closed again."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ELOOP, "not a file")
    return descriptor


def _refused(path: Path | None) -> BlobRefused:
    return BlobRefused(f"{path} is a link, or no file: remove it", service="federation")


@contextlib.contextmanager
def _translated(path: Path | None = None) -> Iterator[None]:
    """What the operating system says, in the service's words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
            raise _refused(path) from error
        if error.errno in _FULL:
            raise StorageFull("there is no room on the disk for the file", service="federation") from error
        raise StorageUnavailable(
            f"a file cannot be kept: {os.strerror(error.errno or 0)}", service="federation"
        ) from error
