"""The Sage that is checked: where it is, and, if the suite may start it, its process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
import grpc.aio

from hopper.sage.v1 import advice_pb2, sage_service_pb2
from hopper.sage.v1.sage_service_pb2_grpc import SageServiceStub
from hopper_common.rpc.address import check_address
from hopper_common.rpc.channel import OPTIONS
from hopper_common.timestamps import from_proto
from hopper_testing.sage_conformance.checking import Broken, NotApplicable, answered

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.sage.v1.sage_service_pb2_grpc import SageServiceAsyncStub

START_SECONDS: Final = 100.0
STOP_SECONDS: Final = 60.0
TIMEOUT: Final = 60.0

_SERVICE: Final = "/hopper.sage.v1.SageService/"


class Stage(Protocol):
    """A Sage that can be reached, and perhaps restarted."""

    @property
    def address(self) -> str:
        """Where it is."""

    def restart(self, *, kill: bool) -> None:
        """
        Stop it, with SIGTERM or with SIGKILL, and start it again on what it has kept; not waiting until it answers.

        Raises:
            NotApplicable: It is not ours to start.
        """


class Running:
    """A Sage that runs already; `Stage`."""

    def __init__(self, address: str) -> None:
        self.address = address

    def restart(self, *, kill: bool) -> None:
        raise NotApplicable("needs --start: only who starts a Sage may stop it")


class Started:
    """
    A Sage that is started here; `Stage`. A context manager: at its end the Sage is gone.

    Args:
        command: Its program and arguments.
        address: Where it will be.
        environment: Of its process. Default: ours.
        log: Where its output goes. Default: our stderr.
    """

    def __init__(
        self,
        command: Sequence[str],
        address: str,
        *,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self.address = address
        self._command = list(command)
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Started:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGKILL)

    def restart(self, *, kill: bool) -> None:
        self._end(signal.SIGKILL if kill else signal.SIGTERM)
        self._start()

    def _start(self) -> None:
        # A session of its own, so that whatever it starts is stopped with it.
        output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if self._log else os.dup(2)
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
            )
        finally:
            os.close(output)

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        self._process = None
        if process.poll() is None:
            os.killpg(process.pid, number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_SECONDS)
            raise Broken(f"the Sage does not end within {STOP_SECONDS:.0f} s of SIGTERM") from None


class Sage:
    """The Sage as checks see it. Open it with `connected`."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._channel = _separate_channel(stage.address)
        self.stub: SageServiceAsyncStub = SageServiceStub(self._channel)

    @classmethod
    @asynccontextmanager
    async def connected(cls, stage: Stage) -> AsyncIterator[Sage]:
        """
        A connection to the Sage, once it answers.

        Raises:
            Broken: It does not, within `START_SECONDS`.
        """
        sage = cls(stage)
        try:
            await sage._ready()
            yield sage
        finally:
            await sage._channel.close()

    async def about(self) -> advice_pb2.Sage:
        """Who it is."""
        call = self.stub.GetSage(sage_service_pb2.GetSageRequest(), timeout=TIMEOUT)
        return (await answered(call, "GetSage")).sage

    async def can(self, capability: advice_pb2.Sage.Capability.ValueType) -> bool:
        """Whether it says that it can do something."""
        return capability in (await self.about()).capabilities

    async def decide(
        self, request: sage_service_pb2.DecideRoutingRequest
    ) -> sage_service_pb2.DecideRoutingResponse:
        """Ask; not longer than the question gives it."""
        within = from_proto(request.answer_within) or timedelta(seconds=TIMEOUT)
        call = self.stub.DecideRouting(request, timeout=within.total_seconds())
        return await answered(call, "DecideRouting")

    async def record(self, *outcomes: advice_pb2.TaskOutcome) -> sage_service_pb2.RecordOutcomeResponse:
        """Tell it what came of decisions."""
        request = sage_service_pb2.RecordOutcomeRequest(outcomes=outcomes)
        return await answered(self.stub.RecordOutcome(request, timeout=TIMEOUT), "RecordOutcome")

    async def report(self) -> advice_pb2.SagePerformance:
        """Ask how it did, all in all."""
        call = self.stub.ReportPerformance(sage_service_pb2.ReportPerformanceRequest(), timeout=TIMEOUT)
        return (await answered(call, "ReportPerformance")).performance

    async def send(self, method: str, request: bytes) -> bytes:
        """Call a method with bytes as they are."""
        call: Any = self._channel.unary_unary(_SERVICE + method)
        answer: bytes = await call(request, timeout=TIMEOUT)
        return answer

    async def restart(self, *, kill: bool) -> None:
        """
        Restart it, and wait until it answers again.

        Raises:
            NotApplicable: It is not ours to start.
            Broken: It does not come back.
        """
        await asyncio.to_thread(self._stage.restart, kill=kill)
        # Of the old connection nothing is left, and the new one does not wait for it to notice.
        await self._channel.close()
        self._channel = _separate_channel(self._stage.address)
        self.stub = SageServiceStub(self._channel)
        await self._ready()

    async def _ready(self) -> None:
        call = self.stub.GetSage(
            sage_service_pb2.GetSageRequest(), timeout=START_SECONDS, wait_for_ready=True
        )
        try:
            await call
        except grpc.aio.AioRpcError as error:
            raise Broken(
                f"no Sage answers at {self._stage.address}: {error.code().name}, {error.details()}"
            ) from error


def _separate_channel(address: str) -> grpc.aio.Channel:
    """One with a connection of its own: others are shared by address, also with who was stopped a moment ago."""
    options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(check_address(address), options=options)
