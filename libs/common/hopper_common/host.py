"""
A process that runs one service, or all of them, behind one gRPC server.

    settings ─► data directory, lock ─► audit log and services open, in order ─► server binds and starts ─► long-running
    tasks │ SIGTERM, SIGINT, or a task fails ◄──────────────────────────────────────────────────┘ health
    NOT_SERVING, streams told to go, no new calls ─► calls in flight finish ─► services close, in reverse

Lifetimes are one `AsyncExitStack`; what runs for as long as the process is one `TaskGroup`, of which the
first failure ends everything: a Hopper that has silently lost a part of itself is worse than one that is
restarted. Which services there are is not known here, nor which process a service runs in known to the
service: it asks for a channel (`HostContext.open_channel`).

Exit codes, for systemd and scripts:

| code | meaning |
|---|---|
| 0 | stopped when asked to |
| 1 | a service failed while it ran; the log has the error |
| 2 | an environment variable is wrong |
| 3 | another process has this data directory |
| 4 | the socket or port cannot be listened on |
| 5 | a service could not be opened; the message names the file and the remedy |
| 130 | killed by a second signal, without waiting for calls in flight |
"""

import asyncio
import contextlib
import fcntl
import gc
import importlib.metadata
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import grpc.aio
import structlog
from pydantic import ValidationError

from hopper_common import logs
from hopper_common.audit.app import Audit, open_audit
from hopper_common.audit.sink import AuditSink
from hopper_common.auth.directory import Directory
from hopper_common.auth.follow import AccessFollower
from hopper_common.auth.model import Service as HopperService
from hopper_common.clock import Clock, SystemClock
from hopper_common.errors import HopperError
from hopper_common.identity.store import Identity, IdentityStore, read_passphrase
from hopper_common.identity.tls import open_secure_channel
from hopper_common.listening import Listening
from hopper_common.metrics import Measures, serve_metrics
from hopper_common.rpc.address import check_secure_address
from hopper_common.rpc.channel import open_channel
from hopper_common.rpc.guard import OwnerGuard
from hopper_common.rpc.server import HopperServer, Registered, build_server
from hopper_common.settings import HostSettings, load_settings
from hopper_common.startup import StartupError, make_private

log = structlog.get_logger(__name__)

KILLED = 130

_Task = Callable[[], Awaitable[None]]
Listen = Callable[[HopperServer, HostSettings], list[str]]
"""Binds a server, and returns its addresses, the Unix socket first."""


class AlreadyRunning(StartupError):
    """Another process has this data directory."""

    exit_code = 3


class ServiceNotOpened(StartupError):
    """A service could not be opened."""

    exit_code = 5


class ServiceFailed(StartupError):
    """A service failed while it ran."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class HostContext:
    """
    What a service is given to open itself with.

    Attributes:
        data_dir: Exists, and belongs to this user alone. Each service has files of its own name in it.
        stopping: Set when the process begins to stop. Long polls should answer then, and loops should end; whatever
            still runs when calls are drained is cancelled.
        identity: This Hopper's.
        directory: Who may call here. The registry fills it, where it runs in this process.
        here: The services of this process.
        audit: Where to write down what the service decides by itself. Calls are written down without it.
        service: The one that is opened.
    """

    data_dir: Path
    clock: Clock
    settings: HostSettings
    stopping: asyncio.Event
    identity: Identity
    directory: Directory
    audit: AuditSink
    here: frozenset[str]
    service: str = ""

    def open_channel(self, service: str) -> grpc.aio.Channel:
        """
        Open a channel to a service. It connects with its first call.

        In this process that is this process's own socket, which answers once all services are open: call in a task, or
        lazily, not while opening. One in another process is shown this service's certificate, and must show its own.

        Raises:
            AddressRefused: Its address is malformed.
            IdentityRefused: There is no certificate to show.
        """
        if service in self.here:
            return open_channel(f"unix:{self.settings.socket_path}")
        address = check_secure_address(self.settings.address_of(service))
        return open_secure_channel(address, self.identity, service, path=f"/svc/{self.service}")

    def database(self, service: str) -> str:
        """Where a service keeps its data, for `hopper_common.database.Database.open`. Not for logs."""
        return self.settings.database_of(service)


@dataclass(frozen=True, slots=True)
class Running:
    """
    An open service.

    Attributes:
        registered: What its gRPC server offers.
        tasks: What runs beside it, started once the server listens. One may end by itself; one that raises
        stops the process. Cancelled before the service is closed.
        measures: What Prometheus is told, if anybody asks.
    """

    registered: Sequence[Registered] = ()
    tasks: Sequence[_Task] = ()
    measures: Sequence[Measures] = ()


@dataclass(frozen=True, slots=True)
class Service:
    """
    A service that a host can run: `SERVICE` of its `app` module.

    Attributes:
        name: Short, as in `HOPPER_<NAME>_ADDRESS`: `router`.
        open: Makes everything it needs from the context; leaving it closes that in reverse.
    """

    name: str
    open: Callable[[HostContext], AbstractAsyncContextManager[Running]]


@dataclass(frozen=True, slots=True)
class Ready:
    """Where a started process can be reached. The first address is the Unix socket."""

    addresses: Sequence[str]
    data_dir: Path
    services: Sequence[str]
    pid: int = field(default_factory=os.getpid)


def installed_services(group: str = "hopper.services") -> list[Service]:
    """
    All installed services, by their entry points, in the order of their names.

    One that cannot be imported raises: a Hopper that leaves a part of itself out should not seem whole.
    """
    found = importlib.metadata.entry_points(group=group)
    return [entry.load() for entry in sorted(found, key=lambda entry: entry.name)]


# Serving.


async def serve(
    services: Sequence[Service],
    settings: HostSettings,
    *,
    ready: Callable[[Ready], None],
    stop: asyncio.Event | None = None,
    clock: Clock | None = None,
    listen: Listen | None = None,
) -> None:
    """
    Run services until *stop* is set, then drain and close them. Cancelling does the same without draining.

    Args:
        ready: Called once, when calls are answered.
        clock: What time it is. Default: this machine's, steadied.
        listen: Where to be reached. Default: where the settings say (`hopper_common.listening`).

    Raises:
        StartupError: Of the kind that says what to mend. Whatever was opened has been closed.
    """
    stopping = asyncio.Event() if stop is None else stop
    async with AsyncExitStack() as stack:
        make_private(settings.data_dir)
        stack.enter_context(_hold(settings.lock_path))
        clock = clock or SystemClock()
        identity = _open_identity(settings, clock)
        audit = await _open_audit(settings, clock, stack)
        context = HostContext(
            data_dir=settings.data_dir,
            clock=clock,
            settings=settings,
            stopping=stopping,
            identity=identity,
            directory=Directory(clock.monotonic),
            audit=audit.sink,
            here=frozenset(service.name for service in services),
        )
        running = {service.name: await _open(service, context, stack) for service in services}
        offered = [registered for service in running.values() for registered in service.registered]
        server = build_server([*offered, audit.registered], owner=OwnerGuard(audit.sink))
        stack.push_async_callback(server.stop, None)
        addresses = listen(server, settings) if listen else _listening(context, audit).listen(server)
        await server.start()
        _keep_ready(server, context.identity, audit)
        if settings.metrics:
            measures = [measure for service in running.values() for measure in service.measures]
            address, port = settings.metrics
            url = stack.enter_context(serve_metrics(measures, address=address, port=port))
            log.info("metrics are served", url=url)
        ready(Ready(addresses, settings.data_dir, list(running)))
        tasks = [(name, task) for name, service in running.items() for task in service.tasks]
        tasks += [("audit", task) for task in audit.tasks]
        tasks += [("identity", context.identity.keep_fresh)]
        tasks += [("access", task) for task in await _following(context, stack)]
        await _until_stopped(server, tasks, stopping, settings.drain_timeout.total_seconds())


def _open_identity(settings: HostSettings, clock: Clock) -> Identity:
    file = settings.identity_passphrase_file
    passphrase = None if file is None else read_passphrase(file)
    return IdentityStore.open(settings.identity_path, clock, passphrase=passphrase)


async def _open_audit(settings: HostSettings, clock: Clock, stack: AsyncExitStack) -> Audit:
    try:
        return await stack.enter_async_context(open_audit(settings, clock))
    except HopperError as error:
        raise ServiceNotOpened(f"cannot open the audit log: {error.message}") from error


def _keep_ready(server: HopperServer, identity: Identity, audit: Audit) -> None:
    """Let health say whether the process is whole, now and after every change."""

    def tell(*_: object) -> None:
        server.set_ready(audit.sink.ready and identity.problem is None)

    audit.sink.on_ready(tell)
    identity.on_change(tell)
    tell()


def _listening(context: HostContext, audit: Audit) -> Listening:
    return Listening(
        context.settings, context.here, context.identity, context.directory, audit.sink, context.clock
    )


async def _following(context: HostContext, stack: AsyncExitStack) -> Sequence[_Task]:
    """What keeps up with who may call, where the registry is in another process."""
    known = {service.name.lower() for service in HopperService}  # a Sage, say, has no registry to follow
    if _REGISTRY in context.here or context.settings.process not in known:
        return []
    channel = replace(context, service=context.settings.process).open_channel(_REGISTRY)
    return [AccessFollower(await stack.enter_async_context(channel), context.directory).run]


_REGISTRY: Final = "registry"


async def _open(service: Service, context: HostContext, stack: AsyncExitStack) -> Running:
    try:
        return await stack.enter_async_context(service.open(replace(context, service=service.name)))
    except ValidationError as error:
        raise ServiceNotOpened(f"the settings of {service.name} are wrong: {error}") from error
    except HopperError as error:
        raise ServiceNotOpened(f"cannot open {service.name}: {error.message}") from error
    except StartupError:
        raise
    except Exception as error:
        log.exception("cannot open a service", service=service.name)
        raise ServiceNotOpened(f"cannot open {service.name}: {type(error).__name__}, see the log") from error


async def _until_stopped(
    server: HopperServer, tasks_of: Sequence[tuple[str, _Task]], stopping: asyncio.Event, drain: float
) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_keep(name, task)) for name, task in tasks_of]
            await stopping.wait()
            log.info("stopping", drain_seconds=drain)
            await server.stop(drain)  # before the tasks: calls in flight may need them
            for task in tasks:
                task.cancel()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None  # each has been logged


async def _keep(service: str, task: _Task) -> None:
    try:
        await task()
    except Exception as error:
        log.exception("a background task failed", service=service)
        raise ServiceFailed(
            f"a background task of {service} failed with {type(error).__name__}: see the log"
        ) from error


# The data directory.


@contextlib.contextmanager
def _hold(path: Path) -> Iterator[None]:
    """Hold the lock of a data directory; the kernel lets go of it however this process ends."""
    # Never removed: whoever waits for the file of that name must find the one that is locked.
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = file.read().strip() or "unknown"
            raise AlreadyRunning(
                f"process {holder} runs on {path.parent} already: stop it, or choose another directory "
                "(HOPPER_DATA_DIR)"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


# A process.


def main(service: Service) -> int:
    """
    Run one service as this process: `python -m hopper_router`.

    Returns:
        The exit code.
    """
    try:
        settings = load_settings().for_one(service.name)
    except StartupError as error:
        return _complain(error)
    return run([service], settings)


def run(
    services: Sequence[Service],
    settings: HostSettings,
    *,
    ready: Callable[[Ready], None] | None = None,
    clock: Clock | None = None,
    listen: Listen | None = None,
) -> int:
    """
    Run services as this process, until a signal.

    Args:
        ready: Called once, when calls are answered. Default: prints a line for people.
        clock, listen: As of `serve`.

    Returns:
        The exit code.
    """
    logs.configure(level=settings.log_level, form=settings.log_format)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_until_signal(services, settings, ready or _print, clock, listen))
    except StartupError as error:
        return _complain(error)
    except asyncio.CancelledError:
        return KILLED
    return 0


async def _until_signal(
    services: Sequence[Service],
    settings: HostSettings,
    ready: Callable[[Ready], None],
    clock: Clock | None,
    listen: Listen | None,
) -> None:
    stop = asyncio.Event()
    serving = asyncio.create_task(
        serve(services, settings, ready=_then_freeze(ready), stop=stop, clock=clock, listen=listen)
    )

    def asked() -> None:
        if stop.is_set():
            serving.cancel()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    await serving


# A busy server makes thousands of objects in a set of calls, and nearly all go by themselves: looking for rings after
# every 700, as Python does by itself, cost 8 % of its time.
_COLLECT_AFTER: Final = (20_000, 20, 20)


def _then_freeze(ready: Callable[[Ready], None]) -> Callable[[Ready], None]:
    def freeze(reached: Ready) -> None:
        collect_seldom()
        ready(reached)

    return freeze


def collect_seldom() -> None:
    """What start-up made stays until the end; the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


def _print(reached: Ready) -> None:
    names = ", ".join(reached.services)
    where = " and ".join(reached.addresses)
    print(f"hopper ({names}) listens on {where}; data in {reached.data_dir}; pid {reached.pid}", flush=True)


def _complain(error: StartupError) -> int:
    print(f"hopper: {error}", file=sys.stderr, flush=True)
    return error.exit_code


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - may be absent
    except ImportError:  # no wheel for this platform; asyncio's own does
        return None
    return uvloop.new_event_loop
