"""
A Hopper's two ports for others in a process of its own, so that it can be killed, filled and measured from outside.

Whom it knows is written into its store before it starts:

    async with neighbour(directory) as alice:
        await alice.knows(bob)
    with Alone(directory) as alone:
        ...                             # alone.peers, alone.pairing: where it listens
        alone.kill()
        alone.start()                   # on the same ports
"""

import asyncio
import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Self

START_SECONDS: Final = 100.0
_WINDOW: Final = timedelta(hours=1)
_CALLER_GONE: Final = "ExecuteBatchError raised in core by servicer method"


class Alone:
    """
    One such process. Everything blocks.

    Args:
        directory: As a `neighbour` has made it.
        limits: `soft limit of open files`, if that is to be low.

    Attributes:
        peers: Where it listens for peers; known from the first start on.
        pairing: Where it listens for strangers.
        log: The file with everything it wrote to stderr, over all starts.
    """

    def __init__(self, directory: Path, *, open_files: int = 0) -> None:
        self.directory = directory
        self.log = directory.with_suffix(".log")
        self.peers = self.pairing = "127.0.0.1:0"
        self._open_files = open_files
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            self.kill()

    def start(self) -> Self:
        """Start it; it listens when this returns."""
        command = [sys.executable, "-m", "tests.federation.alone", str(self.directory)]
        command += [self.peers, self.pairing, str(self._open_files)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], START_SECONDS)
        line = stdout.readline() if ready else b""
        if not line:
            raise AssertionError(f"it did not start:\n{self.log_text()[-4_000:]}")
        self.peers, self.pairing = json.loads(line)
        return self

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and wait for its end; returns its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        process = self._process
        assert process is not None
        process.send_signal(number)
        code = process.wait(START_SECONDS)
        if process.stdout is not None:
            process.stdout.close()
        return code

    def rss_bytes(self) -> int:
        """How much memory it has in use. Linux only."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        (kilobytes,) = re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        return int(kilobytes) * 1024

    def open_files(self) -> int:
        """How many files and sockets it has open. Linux only."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def log_text(self) -> str:
        """All it has written to stderr."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def troubles(self) -> list[str]:
        """What it has logged that must not be: exceptions, but for gRPC's word that a caller has gone meanwhile."""
        return [
            line[:3_000]
            for line in self.log_text().splitlines()
            if ("Traceback" in line or "this is a defect" in line) and _CALLER_GONE not in line
        ]


# The process.


async def _run(directory: Path, peers: str, pairing: str) -> None:
    from hopper.federation.v1 import pairing_service_pb2
    from hopper.federation.v1.pairing_service_pb2_grpc import add_PairingServiceServicer_to_server
    from hopper_common.audit.model import Decision, Handling
    from hopper_common.auth.rates import Rate
    from hopper_common.rpc.server import Registered
    from hopper_federation.pairing_port import PairingPort, Window
    from hopper_federation.pairing_servicer import PairingServicer
    from hopper_federation.strangers import StrangerGuard
    from tests.federation.neighbours import Noted, neighbour

    class Forgotten(Noted):
        """Keeps nothing: a process whose memory is looked at must not grow by its tests."""

        def record(self, decision: Decision, handling: Handling) -> int:
            return 0

    often = Rate(1_000_000, 1_000_000)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with neighbour(directory) as own:
        own.audit = Forgotten()
        own.listen = peers
        window = Window(own.clock)
        servicer = PairingServicer(own.federation, own.introductions, own.clock, window)
        service = pairing_service_pb2.DESCRIPTOR.services_by_name["PairingService"]
        port = PairingPort(
            own.identity,
            own.federation,
            own.clock,
            listen=pairing,
            hosts=("127.0.0.1",),
            offered=[Registered.of(service, servicer, add_PairingServiceServicer_to_server)],
            # What is counted is not parsed, and how it is counted is tested elsewhere.
            guard=StrangerGuard(own.clock, own.audit, each=often, together=often),
            window=window,
        )
        async with own.running():
            await port.open_window(_WINDOW)
            keeping = asyncio.create_task(port.run())
            print(json.dumps([own.address, port.addresses()[0]]), flush=True)
            await stop.wait()
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping


def main(arguments: Sequence[str]) -> None:
    """Listen until SIGTERM."""
    import resource

    from hopper_common import logs

    directory, peers, pairing, open_files = arguments
    if int(open_files):
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(open_files), int(open_files)))
    logs.configure(level="info", form="json")
    asyncio.run(_run(Path(directory), peers, pairing))


if __name__ == "__main__":
    main(sys.argv[1:])
