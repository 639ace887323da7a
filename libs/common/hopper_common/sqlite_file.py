"""
One SQLite file: opened soundly, or refused with the reason and the remedy.

A service must never serve half of its data, so everything that can be known about the file is checked before
the first query: that nobody else has it (a lock held for life on `<file>.lock`, because two writers with
their own group commit would starve each other), that it is a database of Hopper's (header and application
id), and that its pages hang together (`PRAGMA quick_check`, which also finds a file that was cut short).

A new database is initialised under another name and then renamed. So an empty file is never one of ours that
was interrupted, but always damage, and is refused instead of being taken for a fresh start.
"""

import fcntl
import os
import sqlite3
from pathlib import Path

from hopper_common.errors import DatabaseCorrupt, DatabaseLocked, HopperError, StorageFull, StorageUnavailable

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_APPLICATION_ID = int.from_bytes(b"HOPR")
_BUSY_TIMEOUT_SECONDS = 5.0  # only an operator's sqlite3 shell can hold the file besides us

# FULL costs one fsync a commit, which a group shares. The log is folded into the file every 16 MB rather than
# every 4 MB, because a checkpoint is paid for by whoever commits next, and cut back to 64 MB after a long
# reader held it up.
_PRAGMAS = (
    "synchronous = FULL",
    "foreign_keys = ON",
    "temp_store = MEMORY",
    "wal_autocheckpoint = 4000",
    "journal_size_limit = 67108864",
    "cache_size = -16384",
)

# What SQLite makes of a quota or a limit on file sizes, and of no room for the index of the log: in the
# extended codes, because the primary one says no more than "I/O error".
_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_TROUBLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}


class FileLock:
    """
    The exclusive right to open *path*, held until `release` or the end of the process, however it ends.

    Raises:
        DatabaseLocked: Somebody has it; names the process.
    """

    def __init__(self, path: Path) -> None:
        lock = path.with_name(path.name + ".lock")
        self._descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._take(path)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take(self, path: Path) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise DatabaseLocked(
                f"{path} is in use by process {holder}: stop that process, or take another data directory",
                file=str(path),
                pid=holder,
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        # The lock file stays: removing it would let two openers lock two files of that name.
        os.close(self._descriptor)


def prepare(path: Path) -> None:
    """
    Create the file if there is none, or look at the header of the one that is there.

    Raises:
        DatabaseCorrupt: Cut off, overwritten, or not a database of Hopper's.
    """
    if path.exists():
        _check_header(path)
    else:
        _create(path)


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """
    A connection that begins and commits only when told to.

    It may be used by any thread, one at a time.
    """
    connection = sqlite3.connect(
        path,
        timeout=_BUSY_TIMEOUT_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=512,
    )
    try:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def check_pages(connection: sqlite3.Connection, path: Path) -> None:
    """
    Read every page once. About a second per gigabyte.

    Raises:
        DatabaseCorrupt: A page is missing, or not where others say it is.
    """
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise damaged(path, " ".join(verdict.split()))  # it comes in lines


def check_references(connection: sqlite3.Connection, path: Path) -> None:
    """
    Follow every foreign key.

    Raises:
        DatabaseCorrupt: Rows refer to rows that do not exist.
    """
    if dangling := connection.execute("PRAGMA foreign_key_check").fetchall():
        raise damaged(path, f"{len(dangling)} rows refer to rows that do not exist")


def damaged(path: Path, what: str) -> DatabaseCorrupt:
    """The error for a file that is not sound, with the remedy."""
    return DatabaseCorrupt(
        f"{path} is damaged ({what}): restore it from a backup, or move it away to start with an empty one",
        file=str(path),
    )


def storage_error(error: BaseException | None, service: str) -> HopperError | None:
    """
    What a driver's error means to the caller, in Hopper's words.

    Returns:
        None if it is not the storage's fault: a broken constraint, which is the store's to translate, or
        wrong SQL.
    """
    extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    if extended in _NO_ROOM:
        return StorageFull(service=service)
    code = extended & 0xFF
    if code in _DAMAGE:
        return DatabaseCorrupt(
            "the database file is damaged: stop the service and restore a backup", service=service
        )
    if code in _TROUBLE:
        return StorageUnavailable(
            f"the database does not answer ({error}); nothing was done", service=service
        )
    return None


def _create(path: Path) -> None:
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = sqlite3.connect(draft, isolation_level=None)
    try:
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    finally:
        connection.close()
    if mode != "wal":
        raise StorageUnavailable(
            f"{path.parent} cannot hold a database (no shared memory there): use a local disk", file=str(path)
        )
    draft.rename(path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES:
        raise damaged(path, f"only {len(header)} bytes long")
    if not header.startswith(_MAGIC):
        raise damaged(path, "not an SQLite database")
    if int.from_bytes(header[68:72]) != _APPLICATION_ID:
        raise damaged(path, "it belongs to another program")
