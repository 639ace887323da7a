"""How a Hopper starts, refuses to start, and stops."""

import re
import signal
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hopper.router.v1.task_pb2 import Failure, Task, TaskSpec
from hopper.router.v1.task_service_pb2 import SubmitTaskRequest, SubmitTaskResponse
from hopper.router.v1.work_service_pb2 import (
    ClaimRef,
    CompleteTasksRequest,
    Completion,
    FailTaskRequest,
)
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub
from hopper_client import Hopper
from hopper_common.rpc.errors import code_of, from_rpc_error
from hopper_testing.processes import HopperProcess, NotStarted, occupied_port
from tests.e2e.calls import ROOT, Stubs, all_tasks, claim_request, connected, register_crew, submit_request
from tests.e2e.conftest import Figure

# ---------------------------------------------------------------- starting


def test_it_takes_tasks_when_it_says_so_and_needs_little_memory(
    hopper: HopperProcess, figure: Figure
) -> None:
    began = time.monotonic()
    hopper.start()
    with connected(hopper.address) as stubs:
        # No retries: what is ready must be ready.
        answer = stubs.tasks.SubmitTask(
            SubmitTaskRequest(parent=ROOT, spec=TaskSpec(title="first")), timeout=60
        )
    accepted = time.monotonic() - began
    assert answer.task.state == Task.STATE_SUBMITTED
    figure("first start to ready (s)", round(hopper.start_seconds, 2))
    figure("first start to first accepted task (s)", round(accepted, 2))
    hopper.stop()
    hopper.start()
    figure("second start to ready (s)", round(hopper.start_seconds, 2))
    rss = hopper.rss_bytes() / 2**20
    figure("resident memory after the start (MiB)", round(rss))
    assert rss < 300


def test_every_start_is_ready_for_tasks_when_it_says_so(hopper: HopperProcess) -> None:
    """Also the first, on empty data, when the router has never heard of the registry."""
    for name in ("a", "b"):
        process = HopperProcess(hopper.data_dir.with_name(name))
        with process, connected(process.address) as stubs:
            request = SubmitTaskRequest(parent=ROOT, spec=TaskSpec(title="at once"))
            assert stubs.tasks.SubmitTask(request, timeout=60).task.name


def test_health_says_serving(hopper: HopperProcess) -> None:
    hopper.start()
    for address in hopper.addresses:
        with grpc.insecure_channel(address) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_second_one_on_the_same_data_is_refused_and_told_who_has_it(hopper: HopperProcess) -> None:
    hopper.start()
    second = HopperProcess(hopper.data_dir)
    second.log = hopper.log.with_name("second.log")
    with pytest.raises(NotStarted) as refused:
        second.start()
    assert refused.value.exit_code == 3
    assert refused.value.message == (
        f"hopper: process {hopper.pid} runs on {hopper.data_dir} already: stop it, or choose another directory "
        "(HOPPER_DATA_DIR)"
    )
    with Hopper(hopper.address) as client:
        assert client.submit("the first goes on").task.name


def test_a_part_of_what_runs_as_a_whole_is_refused(hopper: HopperProcess) -> None:
    hopper.start()
    alone = HopperProcess(hopper.data_dir, service="router")
    with pytest.raises(NotStarted) as refused:
        alone.start()
    assert refused.value.exit_code == 5
    assert f"{hopper.data_dir}/router.db is in use by process {hopper.pid}" in refused.value.message


def test_a_port_that_is_taken_is_named(data_dir: Path) -> None:
    with occupied_port() as port, pytest.raises(NotStarted) as refused:
        HopperProcess(data_dir, listen=f"127.0.0.1:{port}").start()
    assert refused.value.exit_code == 4
    assert refused.value.message == (
        f"hopper: cannot listen on 127.0.0.1:{port}: port {port} is taken; stop whoever has it, or choose another "
        "(HOPPER_LISTEN)"
    )


def test_plain_text_for_others_and_names_are_refused(data_dir: Path) -> None:
    plainly = {"HOPPER_LISTEN_TLS": "false"}
    with pytest.raises(NotStarted) as refused:
        HopperProcess(data_dir, listen="0.0.0.0:0", environment=plainly).start()
    assert refused.value.exit_code == 4
    assert refused.value.message.startswith("hopper: 0.0.0.0:0 is not of this machine: plain text")
    with pytest.raises(NotStarted) as refused:
        HopperProcess(data_dir, listen="example.com:8300").start()
    assert refused.value.exit_code == 4
    assert refused.value.message.startswith(
        "hopper: example.com:8300: listen on the IP address of an interface"
    )


def test_a_setting_that_is_wrong_is_named(data_dir: Path) -> None:
    with pytest.raises(NotStarted) as refused:
        HopperProcess(data_dir, environment={"HOPPER_LOG_LEVEL": "loud"}).start()
    assert refused.value.exit_code == 2
    assert refused.value.message.startswith("hopper: HOPPER_LOG_LEVEL: ")


def test_only_the_owner_can_get_at_it(hopper: HopperProcess) -> None:
    hopper.start()
    with Hopper(hopper.address) as client:
        client.submit("so that there is something")
    paths = [hopper.data_dir, *hopper.data_dir.rglob("*")]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    names = {path.name for path in paths}
    assert names > {"hopper.sock", "registry.db", "router.db", "router.db-wal", "memory.db", "audit.db"}
    assert modes == {path: 0o700 if path.is_dir() else 0o600 for path in paths}


def test_a_directory_that_others_may_write_to_is_refused(data_dir: Path) -> None:
    data_dir.mkdir()
    data_dir.chmod(0o777)
    with pytest.raises(NotStarted) as refused:
        HopperProcess(data_dir).start()
    assert refused.value.exit_code == 4
    assert f"others may write to {data_dir}: run chmod 700" in refused.value.message


# ---------------------------------------------------------------- stopping


class Submitters:
    """Threads that submit until the Hopper has gone; each notes what was acknowledged, and how its last call ended."""

    def __init__(self, address: str) -> None:
        self.acknowledged: dict[str, str] = {}
        self.ends: list[tuple[grpc.StatusCode, str]] = []
        self._address = address
        self._threads = [threading.Thread(target=self._submit) for _ in range(8)]
        self.busy = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            for thread in self._threads:
                thread.join()

    def _submit(self) -> None:
        with connected(self._address) as stubs:
            try:
                while True:
                    title = str(uuid.uuid4())
                    answer: SubmitTaskResponse = stubs.tasks.SubmitTask(submit_request(title), timeout=60)
                    self.acknowledged[title] = answer.task.name
                    if len(self.acknowledged) > 50:
                        self.busy.set()
            except grpc.RpcError as error:
                made = from_rpc_error(error)
                self.ends.append((code_of(made), made.reason))


def test_a_stop_under_load_loses_nothing_and_answers_every_call(
    hopper: HopperProcess, figure: Figure
) -> None:
    hopper.start()
    with connected(hopper.address) as stubs:
        register_crew(stubs)
    submitters = Submitters(hopper.address)
    with submitters.at_work():
        assert submitters.busy.wait(60)
        began = time.monotonic()
        code = hopper.stop()
        took = time.monotonic() - began
    assert code == 0
    figure("stop under load (s)", round(took, 2))
    # In flight: done and answered, or turned away with the reason; afterwards nobody answers at all.
    assert {code for code, _ in submitters.ends} == {grpc.StatusCode.UNAVAILABLE}
    assert {reason for _, reason in submitters.ends} <= {"SHUTTING_DOWN", "SERVICE_UNAVAILABLE"}
    assert '"level": "error"' not in hopper.log_text()
    hopper.start()
    with connected(hopper.address) as stubs:
        there = {task.spec.title: task.name for task in all_tasks(stubs)}
    assert there.items() >= submitters.acknowledged.items()
    # Whoever was not answered did not get through, or was cut off after the commit: one call each at most.
    assert len(there) <= len(submitters.acknowledged) + len(submitters.ends)


def test_a_stop_answers_long_polls_at_once(hopper: HopperProcess) -> None:
    hopper.environment["HOPPER_DRAIN_TIMEOUT"] = "600"
    hopper.start()
    with connected(hopper.address) as stubs, grpc.insecure_channel(hopper.address) as channel:
        register_crew(stubs)
        check(channel)  # connected: from here on calls arrive in order
        poll = WorkServiceStub(channel).ClaimTasks.future(claim_request("w", wait=30), timeout=60)
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        began = time.monotonic()
        hopper.signal(signal.SIGTERM)
        assert list(poll.result().tasks) == []
        assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert time.monotonic() - began < 25  # of the thirty seconds that it would have waited
        assert hopper.wait() == 0


def check(channel: grpc.Channel) -> None:
    """A call there and back."""
    health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)


def unfinished_call(channel: grpc.Channel, release: threading.Event) -> Any:
    """A call of SubmitTask whose request does not come: its headers have, and the server waits."""

    def never() -> Iterator[bytes]:
        release.wait()
        yield from ()

    check(channel)  # connected: from here on calls arrive in order
    method = "/hopper.router.v1.TaskService/SubmitTask"
    call: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(method)
    future = call.future(never(), timeout=600)
    check(channel)
    return future


def test_a_second_signal_does_not_wait_for_calls_in_flight(hopper: HopperProcess) -> None:
    hopper.environment["HOPPER_DRAIN_TIMEOUT"] = "600"
    hopper.start()
    release = threading.Event()
    with grpc.insecure_channel(hopper.address) as channel, connected(hopper.address) as stubs:
        call = unfinished_call(channel, release)  # kept: it is cancelled when nobody holds it
        name = stubs.tasks.SubmitTask(
            SubmitTaskRequest(parent=ROOT, spec=TaskSpec(title="kept")), timeout=60
        ).task.name
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        hopper.signal(signal.SIGTERM)
        assert [answer.status for answer in health] == [health_pb2.HealthCheckResponse.NOT_SERVING]
        assert hopper.running  # it waits for the call
        assert not call.done()
        hopper.signal(signal.SIGTERM)
        assert hopper.wait() == 130
        release.set()
    hopper.start()
    with connected(hopper.address) as stubs:
        assert [task.name for task in all_tasks(stubs)] == [name]


def test_a_client_that_never_finishes_its_call_does_not_hold_up_a_stop_for_ever(
    hopper: HopperProcess,
) -> None:
    hopper.environment["HOPPER_DRAIN_TIMEOUT"] = "1"
    hopper.start()
    release = threading.Event()
    with grpc.insecure_channel(hopper.address) as channel:
        call = unfinished_call(channel, release)  # kept: it is cancelled when nobody holds it
        began = time.monotonic()
        assert hopper.stop() == 0
        assert time.monotonic() - began > 0.9
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        release.set()


# ---------------------------------------------------------------- logs

CANARY = "canaryword"


def test_logs_tell_nothing_of_what_tasks_say(hopper: HopperProcess) -> None:
    """At debug level, through a whole life, refusals and trouble included."""
    hopper.environment["HOPPER_LOG_LEVEL"] = "debug"
    hopper.start()
    with connected(hopper.address) as stubs:
        register_crew(stubs)
        live_with_canary(stubs)
    hopper.kill()
    hopper.start()
    hopper.stop()
    log = hopper.log_text()
    assert len(re.findall('"event": "call finished"', log)) > 5
    assert '"level": "error"' not in log
    assert CANARY not in log


def live_with_canary(stubs: Stubs) -> None:
    """One task that succeeds, one that fails, and requests that are refused: all of them with the word in them."""
    request = submit_request(f"title {CANARY}")
    request.spec.description = f"description {CANARY}"
    request.spec.payload = CANARY.encode()
    request.spec.tags.append(CANARY)
    request.spec.labels["note"] = CANARY
    for _ in range(2):
        stubs.tasks.SubmitTask(request, timeout=60)
    first, second = stubs.work.ClaimTasks(claim_request("w", 2), timeout=60).tasks
    done = Completion(
        claim=ClaimRef(task=first.name, fencing_token=first.claim.fencing_token), result=CANARY.encode()
    )
    stubs.work.CompleteTasks(CompleteTasksRequest(completions=[done]), timeout=60)
    claim = ClaimRef(task=second.name, fencing_token=second.claim.fencing_token)
    failure = Failure(reason="NO_LUCK", message=f"message {CANARY}", permanent=True)
    stubs.work.FailTask(FailTaskRequest(claim=claim, failure=failure), timeout=60)
    for broken in (
        SubmitTaskRequest(parent=ROOT, spec=TaskSpec(title=CANARY * 100)),
        SubmitTaskRequest(parent=ROOT, spec=TaskSpec(title=CANARY, tags=[f"{CANARY} {CANARY}"])),
        SubmitTaskRequest(parent=ROOT, spec=TaskSpec(title=CANARY), request_id=CANARY),
    ):
        with pytest.raises(grpc.RpcError):
            stubs.tasks.SubmitTask(broken, timeout=60)
