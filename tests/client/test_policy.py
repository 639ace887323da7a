"""The decisions about calls, without making any."""

import importlib
import pkgutil
from collections.abc import Iterator
from datetime import timedelta
from types import ModuleType

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

import hopper.memory.v1
import hopper.registry.v1
import hopper.router.v1
from hopper.common.v1 import options_pb2
from hopper.memory.v1.working_service_pb2 import PutContextRequest
from hopper.router.v1.task_service_pb2 import GetTaskRequest, SubmitTaskRequest
from hopper.router.v1.work_service_pb2 import ClaimTasksRequest, RenewClaimsRequest
from hopper_client.policy import (
    MOST_RETRIES,
    Attempts,
    Backoff,
    deadline_of,
    may_retry,
    with_request_id,
)
from hopper_common.errors import NotFound, RateLimited, ServiceUnavailable, ShuttingDown, Unavailable

SUBMIT = "/hopper.router.v1.TaskService/SubmitTask"
GET = "/hopper.router.v1.TaskService/GetTask"


class Broken(Unavailable):
    """The connection broke."""

    reason = "SERVICE_UNAVAILABLE"


class NoTask(NotFound):
    """No task of that name."""

    reason = "TASK_NOT_FOUND"


def methods() -> Iterator[MethodDescriptor]:
    """Every unary method of the contract."""
    packages: list[ModuleType] = [hopper.registry.v1, hopper.router.v1, hopper.memory.v1]
    for package in packages:
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.name.endswith("_service_pb2"):
                for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
                    yield from (method for method in service.methods if not method.server_streaming)


def path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def test_the_contract_is_covered() -> None:
    assert len(list(methods())) > 40


@pytest.mark.parametrize("method", list(methods()), ids=path)
def test_what_the_contract_calls_a_read_is_retried_and_a_mutation_only_if_it_is_safe(
    method: MethodDescriptor,
) -> None:
    request = with_request_id(GetMessageClass(method.input_type)())
    has_id = "request_id" in method.input_type.fields_by_name
    reads = method.GetOptions().Extensions[options_pb2.access].rate_class == options_pb2.RATE_CLASS_READ
    safe_by_nature = {"RenewClaims", "ReportProgress", "Heartbeat", "RecordEpisodes", "ReplayPolicy"}
    assert may_retry(path(method), request) is (has_id or reads or method.name in safe_by_nature)


def test_a_method_nobody_knows_is_not_retried() -> None:
    assert not may_retry("/other.Service/Gettysburg", GetTaskRequest())
    assert not may_retry("/hopper.memory.v1.WorkingMemoryService/PutContext", PutContextRequest())


def test_a_mutation_without_its_request_id_is_not_retried() -> None:
    assert not may_retry(SUBMIT, SubmitTaskRequest())


def test_the_caller_s_request_is_left_as_it_is() -> None:
    request = SubmitTaskRequest(parent="instances/global")
    first, second = with_request_id(request), with_request_id(request)
    assert request == SubmitTaskRequest(parent="instances/global")
    assert first.parent == "instances/global"
    assert len({first.request_id, second.request_id, ""}) == 3


def test_a_request_id_of_the_caller_s_is_kept() -> None:
    request = SubmitTaskRequest(request_id="c0ffee00-0000-4000-8000-000000000000")
    assert with_request_id(request) is request


def test_a_request_without_the_field_is_left_alone() -> None:
    request = GetTaskRequest(name="x")
    assert with_request_id(request) is request


@pytest.mark.parametrize(("wait", "seconds"), [(0, 10), (2, 10), (20, 25)])
def test_a_long_poll_has_time_for_its_wait(wait: int, seconds: float) -> None:
    request = ClaimTasksRequest()
    request.wait.FromTimedelta(timedelta(seconds=wait))
    assert deadline_of(request, 10.0) == seconds
    assert deadline_of(RenewClaimsRequest(), 10.0) == 10.0


def test_pauses_grow_to_a_longest_and_half_of_each_is_chance() -> None:
    least = Backoff(first=1.0, longest=4.0, jitter=lambda: 0.0)
    most = Backoff(first=1.0, longest=4.0, jitter=lambda: 1.0)
    assert [least.next() for _ in range(4)] == [0.5, 1.0, 2.0, 2.0]
    assert [most.next() for _ in range(4)] == [1.0, 2.0, 4.0, 4.0]
    most.reset()
    assert most.next() == 1.0
    assert most.next(at_least=30.0) == 30.0


def attempts(method: str = GET, timeout: float | None = None) -> Attempts[GetTaskRequest]:
    return Attempts(method, GetTaskRequest(), timeout=timeout, default=10.0, now=100.0)


def test_there_are_so_many_retries_and_then_the_error_is_the_answer() -> None:
    call = attempts()
    pauses = [call.pause_after(Broken(), 100.0) for _ in range(MOST_RETRIES + 1)]
    assert None not in pauses[:MOST_RETRIES]
    assert pauses[MOST_RETRIES] is None


def test_no_pause_outlasts_the_deadline() -> None:
    call = attempts(timeout=0.5)
    assert call.remaining(100.2) == pytest.approx(0.3)
    assert call.pause_after(Broken(), 100.49) is None
    assert call.remaining(101.0) == 0.0
    assert attempts(timeout=0.5).pause_after(ShuttingDown(), 100.0) is None  # it says: in a second


def test_a_server_that_says_when_is_believed() -> None:
    pause = attempts().pause_after(RateLimited(), 100.0)
    assert pause is not None
    assert pause >= 1.0


def test_an_error_that_will_not_pass_is_the_answer() -> None:
    assert attempts().pause_after(NoTask(), 100.0) is None
    assert attempts("/x/DoIt").pause_after(ServiceUnavailable(), 100.0) is None
