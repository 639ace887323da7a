"""Starting, stopping and failing of a process with services in it."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from pydantic_settings import BaseSettings

from hopper_common.auth.current import current
from hopper_common.clock import SystemClock
from hopper_common.errors import DatabaseCorrupt
from hopper_common.host import (
    AlreadyRunning,
    HostContext,
    Ready,
    Running,
    Service,
    ServiceFailed,
    ServiceNotOpened,
    installed_services,
    serve,
)
from hopper_common.identity.store import IdentityStore
from hopper_common.identity.tls import open_secure_channel, own_roots
from hopper_common.rpc.channel import OPTIONS, open_channel
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.settings import HostSettings
from hopper_common.startup import AddressRefused, DirectoryShared
from tests.channels import separate_channel
from tests.common.rpc_toy import Refusal, Toy, Unary, echo, pb, pb_grpc, registered

Task = Callable[[], Awaitable[None]]


@dataclass
class Probe:
    """A service that tells what happens to it."""

    name: str
    story: list[str]
    answer: Unary | None = None
    tasks: Sequence[Task] = ()
    opening: Callable[[HostContext], None] = field(default=lambda context: None)

    def service(self) -> Service:
        return Service(self.name, self.open)

    @asynccontextmanager
    async def open(self, context: HostContext) -> AsyncIterator[Running]:
        self.story.append(f"open {self.name}")
        self.opening(context)
        try:
            yield Running([registered(Toy(self.answer))] if self.answer else [], self.tasks)
        finally:
            self.story.append(f"close {self.name}")


class Hosted:
    """A host in a task of the test."""

    def __init__(self, services: Sequence[Service], settings: HostSettings) -> None:
        self.stop = asyncio.Event()
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(
            serve(services, settings, ready=self._ready.set_result, stop=self.stop)
        )

    async def ready(self) -> Ready:
        either: list[asyncio.Future[Any]] = [self.task, self._ready]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            self.task.result()
        return self._ready.result()

    async def stopped(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, 60)


@pytest.fixture
def settings(tmp_path: Path) -> HostSettings:
    return HostSettings(data_dir=tmp_path / "hopper", drain_timeout=timedelta(seconds=10))


async def put(address: str) -> str:
    async with separate_channel(address) as channel:
        response = await pb_grpc.ToyServiceStub(channel).Put(pb.Request(name="a"))
        return str(response.text)


async def test_services_are_reached_by_the_owner_on_the_socket_and_by_others_on_a_port(
    settings: HostSettings,
) -> None:
    hosted = Hosted([Probe("toy", [], echo).service()], settings.model_copy(update={"listen": "127.0.0.1:0"}))
    ready = await hosted.ready()
    assert ready.addresses[0] == f"unix:{settings.data_dir}/hopper.sock"
    assert ready.addresses[1].startswith("127.0.0.1:")
    assert await put(ready.addresses[0]) == "a"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await put(ready.addresses[1])
    assert from_rpc_error(refused.value).reason == "UNAUTHENTICATED"
    assert (ready.services, ready.pid, ready.data_dir) == (["toy"], os.getpid(), settings.data_dir)
    assert settings.data_dir.stat().st_mode & 0o777 == 0o700
    await hosted.stopped()


async def test_services_open_in_order_and_close_in_reverse(settings: HostSettings) -> None:
    story: list[str] = []
    hosted = Hosted([Probe("a", story, echo).service(), Probe("b", story).service()], settings)
    await hosted.ready()
    assert story == ["open a", "open b"]
    await hosted.stopped()
    assert story == ["open a", "open b", "close b", "close a"]


async def test_a_stop_finishes_calls_then_tasks_then_closes(settings: HostSettings) -> None:
    story: list[str] = []
    started, go = asyncio.Event(), asyncio.Event()

    async def answer(request: Any, context: Any) -> Any:
        started.set()
        await go.wait()
        story.append("answered")
        return pb.Response(text="done")

    async def task() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            story.append("task ended")

    hosted = Hosted([Probe("toy", story, answer, [task]).service()], settings)
    ready = await hosted.ready()
    call = asyncio.create_task(put(ready.addresses[0]))
    await started.wait()
    hosted.stop.set()
    await asyncio.sleep(0)
    go.set()
    assert await call == "done"
    await hosted.stopped()
    assert story == ["open toy", "answered", "task ended", "close toy"]


async def test_cancelling_waits_for_no_call_and_still_closes(settings: HostSettings) -> None:
    story: list[str] = []
    started = asyncio.Event()

    async def forever(request: Any, context: Any) -> Any:
        started.set()
        await asyncio.Event().wait()

    patient = settings.model_copy(update={"drain_timeout": timedelta(seconds=600)})
    hosted = Hosted([Probe("toy", story, forever).service()], patient)
    ready = await hosted.ready()
    call = asyncio.create_task(Refusal.of(put(ready.addresses[0])))
    await started.wait()
    hosted.stop.set()
    await asyncio.sleep(0)
    hosted.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(hosted.task, 60)
    assert (await call).code in ("UNAVAILABLE", "CANCELLED")
    assert story[-1] == "close toy"


async def test_the_first_failure_ends_everything(settings: HostSettings) -> None:
    story: list[str] = []
    fail = asyncio.Event()

    async def failing() -> None:
        await fail.wait()
        raise ValueError("boom")

    async def waiting() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            story.append("cancelled")

    a, b = Probe("a", story, echo, [waiting]), Probe("b", story, None, [failing])
    hosted = Hosted([a.service(), b.service()], settings)
    await hosted.ready()
    fail.set()
    with pytest.raises(ServiceFailed, match="a background task of b failed with ValueError: see the log"):
        await asyncio.wait_for(hosted.task, 60)
    assert story == ["open a", "open b", "cancelled", "close b", "close a"]


async def test_a_task_may_end_by_itself(settings: HostSettings) -> None:
    ended = asyncio.Event()

    async def once() -> None:
        ended.set()

    hosted = Hosted([Probe("toy", [], echo, [once]).service()], settings)
    ready = await hosted.ready()
    await ended.wait()
    assert await put(ready.addresses[0]) == "a"
    await hosted.stopped()


async def test_tasks_start_when_the_server_answers(settings: HostSettings) -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def task() -> None:
        answer.set_result(await put(f"unix:{settings.socket_path}"))

    hosted = Hosted([Probe("toy", [], echo, [task]).service()], settings)
    assert await asyncio.wait_for(answer, 60) == "a"
    await hosted.stopped()


def opening(error: Exception) -> Callable[[HostContext], None]:
    def fail(context: HostContext) -> None:
        raise error

    return fail


class PickySettings(BaseSettings):
    colour: int


def _picky(context: HostContext) -> None:
    PickySettings(colour="red")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fail", "says"),
    [
        (
            opening(DatabaseCorrupt("b.db is damaged: restore it")),
            "cannot open b: b.db is damaged: restore it",
        ),
        (opening(ValueError("secret")), "cannot open b: ValueError, see the log"),
        (_picky, "the settings of b are wrong: .*colour"),
    ],
)
async def test_a_service_that_does_not_open_closes_those_before_it(
    settings: HostSettings, fail: Callable[[HostContext], None], says: str
) -> None:
    story: list[str] = []
    hosted = Hosted([Probe("a", story, echo).service(), Probe("b", story, opening=fail).service()], settings)
    with pytest.raises(ServiceNotOpened, match=f"(?s){says}"):
        await hosted.ready()
    assert story == ["open a", "open b", "close a"]


async def test_a_refused_address_closes_what_was_opened(settings: HostSettings) -> None:
    story: list[str] = []
    elsewhere = settings.model_copy(update={"listen": "10.0.0.1:80", "listen_tls": False})
    with pytest.raises(AddressRefused, match="plain text"):
        await Hosted([Probe("a", story).service()], elsewhere).ready()
    assert story == ["open a", "close a"]


async def test_a_second_instance_is_refused_and_names_the_first(settings: HostSettings) -> None:
    first = Hosted([Probe("toy", [], echo).service()], settings)
    ready = await first.ready()
    story: list[str] = []
    with pytest.raises(AlreadyRunning, match=rf"process {os.getpid()} runs on {settings.data_dir} already"):
        await Hosted([Probe("toy", story, echo).service()], settings).ready()
    assert story == []
    assert await put(ready.addresses[0]) == "a"
    await first.stopped()
    third = Hosted([Probe("toy", [], echo).service()], settings)
    assert await put((await third.ready()).addresses[0]) == "a"
    await third.stopped()


async def test_services_in_processes_of_their_own_call_each_other_by_certificate(
    settings: HostSettings,
) -> None:
    async with AsyncExitStack() as stack:

        def look(context: HostContext) -> None:
            calls.append(pb_grpc.ToyServiceStub(context.open_channel("registry")))

        calls: list[Any] = []
        for name in ("registry", "router", "memory"):
            hosted = Hosted([Probe(name, [], whoever, opening=look).service()], settings.for_one(name))
            ready = await hosted.ready()
            stack.push_async_callback(hosted.stopped)
            assert ready.addresses == [f"unix:{settings.data_dir}/{name}{end}.sock" for end in ("", ".mtls")]
        itself, router, memory = calls
        assert (await itself.Put(pb.Request(name="a"))).text == "owner"
        name = (await router.Collect(iter([pb.Request(name="a")]))).text
        assert re.fullmatch(r"spiffe://[a-z2-7]{32}\.hopper/svc/router", name)
        # What a service may do it may do by its name alone: never what people may.
        for call in (memory.Collect(iter([pb.Request(name="a")])), router.Put(pb.Request(name="a"))):
            refused = await Refusal.of(call)
            assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
            assert "is not named by the method" in refused.metadata["rule"]


async def whoever(request: Any, context: Any) -> Any:
    return pb.Response(text=current().name)


async def test_nobody_without_a_certificate_of_this_hopper_reaches_the_socket_for_services(
    settings: HostSettings, tmp_path: Path
) -> None:
    hosted = Hosted([Probe("registry", [], whoever).service()], settings.for_one("registry"))
    address = (await hosted.ready()).addresses[1]
    stranger = IdentityStore.open(tmp_path / "other" / "identity", SystemClock())
    async with open_secure_channel(address, stranger, "registry") as channel:
        refused = await Refusal.of(pb_grpc.ToyServiceStub(channel).Put(pb.Request(name="a"), timeout=30))
        assert refused.code == "UNAVAILABLE"  # it does not even finish the handshake
    assert (await Refusal.of(plainly(address))).code == "UNAVAILABLE"
    await hosted.stopped()


async def plainly(address: str) -> Any:
    async with open_channel(address) as channel:
        return await pb_grpc.ToyServiceStub(channel).Put(pb.Request(name="a"), timeout=30)


async def test_in_one_process_all_services_are_at_its_own_socket(settings: HostSettings) -> None:
    calls: list[Any] = []

    def look(context: HostContext) -> None:
        calls.append(pb_grpc.ToyServiceStub(context.open_channel("registry")))

    both = [Probe("registry", [], whoever).service(), Probe("router", [], opening=look).service()]
    elsewhere = settings.model_copy(update={"registry_address": "127.0.0.1:1"})
    hosted = Hosted(both, elsewhere)
    assert (await hosted.ready()).addresses == [f"unix:{settings.socket_path}"]
    assert (await calls[0].Put(pb.Request(name="a"))).text == "owner"
    await hosted.stopped()


async def test_a_port_that_others_can_reach_speaks_tls(settings: HostSettings) -> None:
    open_to_all = settings.model_copy(update={"listen": "0.0.0.0:0"})
    hosted = Hosted([Probe("toy", [], whoever).service()], open_to_all)
    port = (await hosted.ready()).addresses[1].rpartition(":")[2]
    assert (await Refusal.of(plainly(f"127.0.0.1:{port}"))).code == "UNAVAILABLE"
    identity = IdentityStore.open(settings.identity_path, SystemClock())
    options = [*OPTIONS, ("grpc.ssl_target_name_override", f"api.{identity.trust_domain}")]
    credentials = grpc.ssl_channel_credentials(own_roots(identity))
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        refused = await Refusal.of(pb_grpc.ToyServiceStub(channel).Put(pb.Request(name="a"), timeout=30))
    assert refused.reason == "UNAUTHENTICATED"
    await hosted.stopped()


async def test_a_directory_others_may_write_to_is_refused(settings: HostSettings) -> None:
    settings.data_dir.mkdir(mode=0o700)
    settings.data_dir.chmod(0o777)
    with pytest.raises(DirectoryShared, match="chmod 700"):
        await Hosted([], settings).ready()


async def test_services_learn_that_the_process_stops(settings: HostSettings) -> None:
    contexts: list[HostContext] = []
    started = asyncio.Event()

    async def long_poll(request: Any, context: Any) -> Any:
        started.set()
        await contexts[0].stopping.wait()
        return pb.Response(text="nothing yet")

    hosted = Hosted([Probe("toy", [], long_poll, opening=contexts.append).service()], settings)
    ready = await hosted.ready()
    call = asyncio.create_task(put(ready.addresses[0]))
    await started.wait()
    await hosted.stopped()
    assert await call == "nothing yet"


INSTALLED = Service("installed", Probe("installed", []).open)


def test_installed_services_are_found_by_their_entry_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "plugin-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        f"[hopper.test]\nz = {__name__}:INSTALLED\na = {__name__}:INSTALLED\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [service.name for service in installed_services("hopper.test")] == ["installed"] * 2
    assert installed_services("hopper.nobody") == []


def test_a_service_that_cannot_be_imported_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "broken-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[hopper.broken]\nx = hopper_nowhere.app:SERVICE\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="hopper_nowhere"):
        installed_services("hopper.broken")


# Real processes.


def test_grpc_is_told_not_to_watch_forks_before_it_is_imported() -> None:
    check = (
        "import os, sys, hopper_common.rpc; assert 'grpc' not in sys.modules;"
        "assert os.environ['GRPC_ENABLE_FORK_SUPPORT'] == '0'; import hopper_common.host"
    )
    clean = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    subprocess.run([sys.executable, "-c", check], check=True, env=clean)


PROCESS = """
import asyncio, os, sys
from hopper_common.host import main
from tests.common.rpc_toy import pb
from tests.common.test_host import Probe

async def answer(request, context):
    if request.name == "hang":
        print("hanging", flush=True)
        await asyncio.Event().wait()
    return pb.Response(text=type(asyncio.get_running_loop()).__module__)

async def failing():
    if os.environ.get("FAIL"):
        raise ValueError("boom")

sys.exit(main(Probe("toy", [], answer, [failing]).service()))
"""


@dataclass
class Process:
    child: asyncio.subprocess.Process
    data_dir: Path

    @classmethod
    async def start(cls, data_dir: Path, **environment: str) -> "Process":
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PROCESS,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "HOPPER_DATA_DIR": str(data_dir), **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return cls(child, data_dir)

    async def line(self) -> str:
        assert self.child.stdout is not None
        return (await asyncio.wait_for(self.child.stdout.readline(), 100)).decode()

    async def end(self) -> tuple[int, str]:
        _, errors = await asyncio.wait_for(self.child.communicate(), 100)
        assert self.child.returncode is not None
        return self.child.returncode, errors.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_says_where_it_is_and_stops_cleanly(tmp_path: Path, number: int) -> None:
    process = await Process.start(tmp_path, HOPPER_LISTEN="127.0.0.1:0")
    line = await process.line()
    assert line.startswith(f"hopper (toy) listens on unix:{tmp_path}/toy.sock and 127.0.0.1:")
    assert f" and unix:{tmp_path}/toy.mtls.sock; " in line
    assert line.endswith(f"data in {tmp_path}; pid {process.child.pid}\n")
    assert await put(f"unix:{tmp_path}/toy.sock") == "uvloop"
    process.child.send_signal(number)
    code, errors = await process.end()
    assert (code, "Traceback" in errors) == (0, False)
    assert '"event": "stopping"' in errors


async def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    process = await Process.start(tmp_path, HOPPER_DRAIN_TIMEOUT="600")
    await process.line()
    async with open_channel(f"unix:{tmp_path}/toy.sock") as channel:
        call = pb_grpc.ToyServiceStub(channel).Put(pb.Request(name="hang"), timeout=100)
        assert await process.line() == "hanging\n"
        process.child.send_signal(signal.SIGTERM)
        await _not_serving(channel)
        process.child.send_signal(signal.SIGTERM)
        code, errors = await process.end()
        assert (code, "Traceback" in errors) == (130, False)
        assert (await Refusal.of(call)).code in ("UNAVAILABLE", "CANCELLED")


async def _not_serving(channel: grpc.aio.Channel) -> None:
    """Wait until the server takes no new calls."""
    code = grpc.StatusCode.OK
    while code is not grpc.StatusCode.UNAVAILABLE:
        code = await pb_grpc.ToyServiceStub(channel).Put(pb.Request(name="a"), timeout=10).code()


async def test_exit_codes_tell_what_is_wrong(tmp_path: Path) -> None:
    running = await Process.start(tmp_path / "a")
    await running.line()
    again = await Process.start(tmp_path / "a")
    failing = await Process.start(tmp_path / "b", FAIL="1")
    wrong = await Process.start(tmp_path / "c", HOPPER_LOG_LEVEL="loud")
    refused = await Process.start(tmp_path / "d", HOPPER_LISTEN="192.0.2.1:80", HOPPER_LISTEN_TLS="false")
    code, errors = await again.end()
    assert (code, f"process {running.child.pid} runs on" in errors) == (3, True)
    code, errors = await failing.end()
    assert (code, "a background task of toy failed with ValueError" in errors) == (1, True)
    code, errors = await wrong.end()
    assert (code, errors.startswith("hopper: HOPPER_LOG_LEVEL: ")) == (2, True)
    code, errors = await refused.end()
    assert (code, "hopper: 192.0.2.1:80 is not of this machine" in errors) == (4, True)
    running.child.kill()  # leaves a stale socket and a lock that nobody holds
    await running.end()
    successor = await Process.start(tmp_path / "a")
    assert "listens on" in await successor.line()
    successor.child.terminate()
    assert (await successor.end())[0] == 0
