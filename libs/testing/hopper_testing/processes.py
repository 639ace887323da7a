"""
Hoppers as processes of their own: started, killed, stopped and started again on the same data.

    with temporary_directory() as directory:
        hopper = HopperProcess(directory / "data")
        hopper.start()                      # answers when this returns
        with Hopper(hopper.address) as client:
            client.submit("...")
        hopper.kill()                       # SIGKILL: nothing is flushed, nobody is told
        hopper.start()
        assert hopper.stop() == 0

Everything blocks, so that threads, scripts and benchmarks can use it too. A process belongs to its
`HopperProcess`, and nothing else is ever signalled. What it logs is kept in `log`, over all starts.
"""

import os
import re
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

# Every service in one process: what `hopper up` runs.
_WHOLE = """
import sys
from hopper_common.host import installed_services, run
from hopper_common.settings import load_settings
from hopper_common.startup import StartupError
try:
    settings = load_settings()
except StartupError as error:
    print(f"hopper: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
sys.exit(run(installed_services(), settings))
"""
_READY = re.compile(
    r"^hopper \((?P<services>[^)]*)\) listens on (?P<addresses>.*); data in (?P<data>.*); pid (?P<pid>\d+)$"
)

START_SECONDS = 240.0
STOP_SECONDS = 240.0


class NotStarted(Exception):
    """
    The process ended, or said nothing, instead of becoming ready.

    Attributes:
        exit_code: None if it had to be killed because it said nothing in time.
        message: What it told people: its lines on stderr that are no log lines.
    """

    def __init__(self, exit_code: int | None, message: str) -> None:
        super().__init__(exit_code, message)  # both, so that it can be pickled
        self.exit_code = exit_code
        self.message = message

    def __str__(self) -> str:
        return f"exit code {self.exit_code}: {self.message}"


class HopperProcess:
    """
    One process: a whole Hopper, or one service of it.

    Args:
        data_dir: Its data directory; short, because the path of a Unix socket is. Made by the process.
        service: `registry`, `router` or `memory`; "" for all of them in one process.
        listen: A TCP address besides the socket; port 0 lets the system choose. "": none.
        environment: More `HOPPER_...` variables. Those of the caller are not handed on.
        within: A command that becomes the process, such as `ip netns exec NAME`.

    Attributes:
        addresses: Where it listens, the Unix socket first; empty before the first start.
        log: The file with everything it wrote to stderr.
        start_seconds: How long the last start took, from the launch to the ready line.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        service: str = "",
        listen: str = "",
        environment: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> None:
        self.data_dir = data_dir
        self.service = service
        self.listen = listen
        self.environment = dict(environment or {})
        self._within = tuple(within)
        self.addresses: list[str] = []
        self.log = data_dir.with_name(f"{data_dir.name}-{service or 'hopper'}.log")
        self.start_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._launched = 0.0
        self._logged = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Its life.

    def start(self, *, timeout: float = START_SECONDS) -> Self:
        """
        Launch it, and return when it answers.

        Raises:
            NotStarted: It ended instead, or was not ready in time (and has been killed).
        """
        return self.launch().wait_ready(timeout=timeout)

    def launch(self) -> Self:
        """Start the process, and return at once."""
        if self.running:
            raise RuntimeError(f"process {self.pid} runs already")
        self._logged = self.log_size()
        self._launched = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=self._env()
            )
        return self

    def wait_ready(self, *, timeout: float = START_SECONDS) -> Self:
        """
        Wait until it answers.

        Raises:
            NotStarted: It ended instead, or was not ready in time (and has been killed).
        """
        deadline = self._launched + timeout
        ready = _READY.match(self._first_line(deadline))
        self.start_seconds = time.monotonic() - self._launched
        if ready is None:
            raise NotStarted(self._reap(deadline), self.complaint(after=self._logged))
        self.addresses = ready["addresses"].split(" and ")
        return self

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self, *, timeout: float = STOP_SECONDS) -> int:
        """SIGTERM, and wait for its end; returns its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        self._started().send_signal(number)

    def wait(self, timeout: float = STOP_SECONDS) -> int:
        """
        Wait for its end; returns its exit code, negative for the signal that killed it.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """
        process = self._started()
        code = process.wait(timeout)
        if process.stdout is not None:
            process.stdout.close()
        return code

    def close(self) -> None:
        """Kill it if it still runs."""
        if self._process is not None:
            self.kill()

    # What is known of it.

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._started().pid

    @property
    def address(self) -> str:
        """Its Unix socket."""
        return self.addresses[0]

    @property
    def tcp_address(self) -> str:
        """`host:port`, where `listen` asked for one."""
        return self.addresses[1]

    @property
    def identity_dir(self) -> Path:
        """Where its Hopper's keys are: `HOPPER_IDENTITY_DIR` of other processes of the same Hopper."""
        return Path(self.environment.get("HOPPER_IDENTITY_DIR", self.data_dir / "identity"))

    def services_address(self, service: str = "") -> str:
        """Where other processes of the same Hopper call one of its services; the only one by default."""
        return f"unix:{self.data_dir / (service or self.service)}.mtls.sock"

    def rss_bytes(self) -> int:
        """How much memory it has in use: its resident set. Linux only."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        (kilobytes,) = re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        return int(kilobytes) * 1024

    def log_size(self) -> int:
        """How much it has logged, in bytes: where what comes next will begin."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_text(self, *, after: int = 0) -> str:
        """What it has written to stderr, from that byte on."""
        return self.log.read_bytes()[after:].decode(errors="replace")

    def complaint(self, *, after: int = 0) -> str:
        """What it has written to stderr for people: every line but the log's, which are JSON."""
        lines = self.log_text(after=after).splitlines()
        return "\n".join(line for line in lines if line and not line.startswith("{"))

    # Inside.

    def _command(self) -> list[str]:
        if self.service:
            return [*self._within, sys.executable, "-m", f"hopper_{self.service}"]
        return [*self._within, sys.executable, "-c", _WHOLE]

    def _env(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOPPER_")}
        ours = {
            "HOPPER_DATA_DIR": str(self.data_dir),
            "HOPPER_LISTEN": self.listen,
            "HOPPER_LOG_FORMAT": "json",
        }
        return inherited | ours | self.environment

    def _first_line(self, deadline: float) -> str:
        """Its first line on stdout; what there is of one if it ends or takes too long."""
        stdout = self._started().stdout
        assert stdout is not None
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n") and selector.select(max(0.0, deadline - time.monotonic())):
                some = os.read(stdout.fileno(), 4096)
                if not some:
                    break
                line += some
        return line.decode(errors="replace").rstrip("\n")

    def _reap(self, deadline: float) -> int | None:
        """The exit code of a process that did not become ready; None if it had to be killed."""
        try:
            return self.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the process has not been started")
        return self._process


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory whose path is short enough for Unix sockets in it; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="hop-", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


def lonely_host() -> str:
    """
    A loopback address that nobody else uses: its ports stay free until they are wanted.

    A free port of 127.0.0.1 may be gone by then, because it is there that others are given theirs.
    """
    return f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(256)}.{secrets.randbelow(250) + 2}"


@contextmanager
def occupied_port() -> Iterator[int]:
    """A loopback port that somebody else has."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]
