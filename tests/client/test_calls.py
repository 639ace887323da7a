"""Calls over a real channel, async and blocking, and what becomes of them when things go wrong."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hopper.memory.v1.working_service_pb2 import PutContextRequest
from hopper.router.v1.task_pb2 import ItemError, Task, TaskSpec
from hopper.router.v1.task_service_pb2 import GetTaskRequest, SubmitTaskRequest, UpdateTaskRequest
from hopper.router.v1.work_service_pb2 import ClaimTasksRequest, FailTaskRequest
from hopper_client import (
    AmbiguousTask,
    AsyncHopper,
    DeadlineExceeded,
    Hopper,
    HopperError,
    InvalidArgument,
    LostRace,
    MethodNotOffered,
    NotFound,
    TaskNotFound,
    Unavailable,
    Unreachable,
    default_address,
    from_item,
    policy,
)
from hopper_common.startup import AddressRefused
from tests.client.router import Down, DownUntil, Router, RunningRouter, raising, waiting

SUBMIT = SubmitTaskRequest(parent="instances/global", spec=TaskSpec(title="sweep"))

Call = Callable[[str, Any], Any]


@pytest.fixture(params=["async", "blocking"])
def call(request: pytest.FixtureRequest, running: RunningRouter, hopper: AsyncHopper) -> Iterator[Call]:
    """Make a call by the name of its stub and method, with either client."""
    stubs: dict[str, str] = {"PutContext": "working_memory", "ClaimTasks": "work", "FailTask": "work"}
    blocking = Hopper(running.address)

    async def make(method: str, message: Any, **options: Any) -> Any:
        client: Any = hopper if request.param == "async" else blocking
        made = getattr(getattr(client, stubs.get(method, "tasks")), method)
        if request.param == "async":
            return await made(message, **options)
        return await asyncio.to_thread(made, message, **options)

    yield make
    blocking.close()


async def test_every_call_has_a_deadline(router: Router, call: Call) -> None:
    await call("SubmitTask", SUBMIT)
    assert 1.0 < router.calls.remaining["SubmitTask"][0] < 10.5


async def test_a_deadline_of_the_caller_s_counts(router: Router, call: Any) -> None:
    await call("SubmitTask", SUBMIT, timeout=300.0)
    assert 200.0 < router.calls.remaining["SubmitTask"][0] < 310.0


async def test_a_long_poll_gets_its_wait_and_more(router: Router, call: Call) -> None:
    await router.add("ready")
    request = ClaimTasksRequest(queue="projects/alpha", worker="w")
    request.wait.FromTimedelta(timedelta(seconds=20))
    await call("ClaimTasks", request)
    assert 11.0 < router.calls.remaining["ClaimTasks"][0] < 26.0


async def test_two_calls_with_one_request_object_are_two_requests(router: Router, call: Call) -> None:
    await call("SubmitTask", SUBMIT)
    await call("SubmitTask", SUBMIT)
    ids = {request.request_id for request in router.calls.requests["SubmitTask"]}
    assert len(router.tasks) == 2
    assert len(ids) == 2
    assert "" not in ids


async def test_a_retry_is_the_same_request(router: Router, call: Call) -> None:
    router.calls.before["SubmitTask"].extend([raising(Down()), raising(Down())])
    await call("SubmitTask", SUBMIT)
    assert router.calls.count("SubmitTask") == 3
    assert len({request.request_id for request in router.calls.requests["SubmitTask"]}) == 1


async def test_a_lost_answer_comes_with_the_retry_and_nothing_is_done_twice(
    router: Router, call: Call
) -> None:
    router.calls.after["SubmitTask"].append(raising(Down()))
    response = await call("SubmitTask", SUBMIT)
    assert router.calls.count("SubmitTask") == 2
    assert list(router.tasks) == [response.task.name]


async def test_the_deadline_covers_all_attempts(
    router: Router, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pauses of 1.2 s together: what is sent of a deadline may be a few hundredths of it too much.
    monkeypatch.setattr(policy, "Backoff", partial(policy.Backoff, first=0.4, jitter=lambda: 1.0))
    router.calls.before["SubmitTask"].extend([raising(Down()), raising(Down())])
    await call("SubmitTask", SUBMIT, timeout=20.0)
    first, *_, last = router.calls.remaining["SubmitTask"]
    assert last <= first - 0.4


async def test_reads_are_retried_too(router: Router, call: Call) -> None:
    name = await router.add("sweep")
    router.calls.before["GetTask"].append(raising(DownUntil()))
    assert (await call("GetTask", GetTaskRequest(name=name))).task.spec.title == "sweep"
    assert router.calls.count("GetTask") == 2


async def test_what_might_be_done_twice_is_not_retried(router: Router, call: Call) -> None:
    router.calls.before["PutContext"].append(raising(Down()))
    request = PutContextRequest()
    request.context.key = "session/1"
    with pytest.raises(Unavailable):
        await call("PutContext", request)
    assert router.calls.count("PutContext") == 1


async def test_after_the_last_retry_the_error_is_the_answer(router: Router, call: Call) -> None:
    router.calls.before["GetTask"].extend([raising(Down())] * 9)
    with pytest.raises(Unavailable) as caught:
        await call("GetTask", GetTaskRequest(name="instances/global/tasks/a"))
    assert caught.value.reason == "STORAGE_UNAVAILABLE"
    assert router.calls.count("GetTask") == 5


async def test_errors_are_hopper_s_with_reason_and_metadata(call: Call) -> None:
    with pytest.raises(NotFound) as caught:
        await call("GetTask", GetTaskRequest(name="instances/global/tasks/zz"))
    assert caught.value.reason == "TASK_NOT_FOUND"
    assert caught.value.metadata == {"task": "instances/global/tasks/zz"}


async def test_violations_come_with_their_fields(call: Call) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await call("FailTask", FailTaskRequest())
    assert {violation.field for violation in caught.value.violations} == {"claim", "failure"}


async def test_a_method_the_server_lacks_is_typed(call: Call) -> None:
    with pytest.raises(MethodNotOffered):
        await call("UpdateTask", UpdateTaskRequest(task=Task(name="instances/global/tasks/a")))


async def test_no_answer_in_time_is_typed_and_names_who_and_what(running: RunningRouter, call: Any) -> None:
    never = asyncio.Event()
    running.router.calls.before["GetTask"].append(waiting(never))
    with pytest.raises(DeadlineExceeded, match=r"to GetTask within 0\.2 s") as caught:
        await call("GetTask", GetTaskRequest(name="instances/global/tasks/a"), timeout=0.2)
    assert caught.value.metadata["address"] == running.address


async def test_nobody_there_is_typed_and_names_the_remedy(running: RunningRouter, call: Call) -> None:
    await running.stop()
    with pytest.raises(Unreachable) as caught:
        await call("GetTask", GetTaskRequest(name="instances/global/tasks/a"))
    assert caught.value.message == f"no Hopper answers at {running.address}; start one with `hopper up`"
    assert caught.value.metadata == {"address": running.address}


async def test_a_restart_within_the_retries_goes_unnoticed(
    running: RunningRouter, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A start may take longer on a busy machine than all pauses together.
    monkeypatch.setattr(policy, "Backoff", partial(policy.Backoff, first=1.0))
    await call("SubmitTask", SUBMIT)
    started = asyncio.Event()
    running.router.calls.before["SubmitTask"].append(waiting(started))
    under_way = asyncio.ensure_future(call("SubmitTask", SUBMIT, timeout=60.0))
    await running.router.calls.wait_for("SubmitTask", 2)
    await running.stop()
    await running.start()
    await under_way
    assert len(running.router.tasks) == 2


async def test_cancelling_a_call_is_a_cancellation(router: Router, hopper: AsyncHopper) -> None:
    router.calls.before["GetTask"].append(waiting(asyncio.Event()))
    under_way = asyncio.ensure_future(_get(hopper))
    await router.calls.wait_for("GetTask", 1)
    under_way.cancel()
    with pytest.raises(asyncio.CancelledError):
        await under_way


async def _get(hopper: AsyncHopper) -> None:
    await hopper.tasks.GetTask(GetTaskRequest(name="instances/global/tasks/a"))


async def test_submit_fills_the_spec(router: Router, hopper: AsyncHopper) -> None:
    answer = await hopper.submit(
        "sweep", tags=["type:Chore"], priority=0, payload=b"x", labels={"a": "b"}, exclusive=True
    )
    spec = router.tasks[answer.task.name].spec
    assert (spec.title, list(spec.tags), spec.payload, dict(spec.labels)) == (
        "sweep",
        ["type:Chore"],
        b"x",
        {"a": "b"},
    )
    assert spec.HasField("priority")
    assert spec.exclusive
    await hopper.submit("mop", priority=None)
    assert not next(task.spec for task in router.tasks.values() if task.spec.title == "mop").HasField(
        "priority"
    )


async def test_a_task_is_found_by_the_end_of_its_id(router: Router, hopper: AsyncHopper) -> None:
    names = [await router.add(str(number)) for number in range(12)]
    assert await hopper.resolve_task(names[3]) == names[3]
    assert await hopper.resolve_task(" 00011 ") == names[11]
    with pytest.raises(TaskNotFound, match="9999"):
        await hopper.resolve_task("9999")
    with pytest.raises(InvalidArgument, match="too short"):
        await hopper.resolve_task("003")


async def test_an_ambiguous_end_names_the_candidates(router: Router, hopper: AsyncHopper) -> None:
    names = [await router.add(str(number)) for number in range(2)]
    router.tasks = {
        name.replace("/global/", f"/{index}/"): task
        for index, (name, task) in enumerate(router.tasks.items())
    }
    for name, task in router.tasks.items():
        task.name = name[:-26] + "0" * 26
    with pytest.raises(AmbiguousTask) as caught:
        await hopper.resolve_task("0000")
    assert caught.value.candidates == ("instances/0/tasks/" + "0" * 26, "instances/1/tasks/" + "0" * 26)
    assert len(names) == 2


async def test_the_blocking_client_works_in_many_threads(running: RunningRouter) -> None:
    with Hopper(running.address) as hopper, ThreadPoolExecutor(4) as threads:
        loop = asyncio.get_running_loop()
        answers = await asyncio.gather(
            *(loop.run_in_executor(threads, hopper.submit, f"task {number}") for number in range(20))
        )
    assert {answer.task.name for answer in answers} == set(running.router.tasks)


async def test_the_blocking_client_watches(running: RunningRouter) -> None:
    await running.router.add("a")

    def watch() -> list[int]:
        with Hopper(running.address) as hopper:
            changes = hopper.watch_tasks()
            seen = [next(changes).generation, next(changes).generation]
            asyncio.run_coroutine_threadsafe(_break_and_add(running.router), loop).result()
            seen.append(next(changes).generation)
            changes.close()
            return seen

    loop = asyncio.get_running_loop()
    assert await asyncio.to_thread(watch) == [1, 1, 2]
    await running.router.wait_for(lambda: running.router.watchers == 0)


async def _break_and_add(router: Router) -> None:
    await router.break_streams()
    await router.add("b")


SERVER = """
import asyncio, sys
from pathlib import Path
from tests.client.router import RunningRouter

async def main():
    running = RunningRouter(Path(sys.argv[1]))
    await running.start()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await running.stop()

asyncio.run(main())
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[str]:
    """The address of a router in another process."""
    socket = tmp_path / "hopper.sock"
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(socket)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield f"unix:{socket}"
        server.stdin.close()
        server.wait(60)


async def test_the_blocking_client_works_where_an_event_loop_runs(elsewhere: str) -> None:
    with Hopper(elsewhere) as hopper:
        name = hopper.submit("sweep").task.name
        assert hopper.resolve_task(name[-6:]) == name


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HOPPER_ADDRESS", raising=False)
    monkeypatch.delenv("HOPPER_DATA_DIR", raising=False)
    assert default_address() == f"unix:{tmp_path}/.hopper/hopper.sock"
    monkeypatch.setenv("HOPPER_DATA_DIR", "/data")
    assert default_address() == "unix:/data/hopper.sock"
    monkeypatch.setenv("HOPPER_ADDRESS", "127.0.0.1:8300")
    assert default_address() == "127.0.0.1:8300"


async def test_other_machines_are_not_dialled() -> None:
    with pytest.raises(AddressRefused):
        AsyncHopper("10.0.0.1:8300")


def test_an_item_s_error_is_what_a_call_would_have_raised() -> None:
    error = from_item(ItemError(code=10, reason="STALE_TOKEN", message="lost", metadata={"task": "t"}))
    assert isinstance(error, LostRace)
    assert (error.reason, error.message, dict(error.metadata)) == ("STALE_TOKEN", "lost", {"task": "t"})
    assert isinstance(from_item(ItemError(code=99)), HopperError)
