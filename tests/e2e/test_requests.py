"""
Requests that no well-made client sends: refused with code, reason and the fields at fault, and nothing is stored.

What every method has in common is tried on every method of every service, found by their descriptors. The bytes
are written by hand where a generated message could not hold them.
"""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from hopper.common.v1 import options_pb2
from hopper.memory.v1 import episodic_service_pb2, feedback_service_pb2, working_service_pb2
from hopper.memory.v1.episode_pb2 import Episode, EpisodeCandidate, EpisodeOutcome, Feedback
from hopper.memory.v1.episodic_service_pb2 import RecordEpisodesRequest, SearchSimilarRequest
from hopper.memory.v1.feedback_service_pb2 import SubmitFeedbackRequest
from hopper.memory.v1.working_service_pb2 import Context, PutContextRequest
from hopper.registry.v1 import instance_service_pb2, project_service_pb2
from hopper.registry.v1.instance_pb2 import Instance, InstanceConfig
from hopper.registry.v1.instance_service_pb2 import CreateInstanceRequest, GetInstanceRequest
from hopper.registry.v1.project_pb2 import Capacity, Executor, Project, Worker
from hopper.registry.v1.project_service_pb2 import (
    GetProjectRequest,
    HeartbeatRequest,
    ListProjectsRequest,
    RegisterProjectRequest,
)
from hopper.router.v1 import (
    delegation_service_pb2,
    routing_service_pb2,
    task_service_pb2,
    work_service_pb2,
)
from hopper.router.v1.delegation_service_pb2 import DelegateTaskRequest
from hopper.router.v1.routing_service_pb2 import GetDecisionRequest, SuggestRouteRequest
from hopper.router.v1.task_pb2 import Clocks, Failure, Progress, RetryPolicy, Task, TaskSpec
from hopper.router.v1.task_service_pb2 import (
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    SubmitTaskRequest,
    SubmitTasksItem,
    SubmitTasksRequest,
    WatchTasksRequest,
)
from hopper.router.v1.work_service_pb2 import (
    ClaimRef,
    ClaimTasksRequest,
    CompleteTasksRequest,
    Completion,
    FailTaskRequest,
    RenewClaimsRequest,
    ReportProgressRequest,
)
from hopper_common.errors import HopperError, InvalidArgument
from hopper_common.rpc.errors import from_rpc_error
from hopper_testing.processes import HopperProcess, temporary_directory

ROOT = "instances/global"
TASK = "instances/global/tasks/01m83192kgvtgvgw6vbtw6zt82"
MEGABYTE = 1024 * 1024

FILES = (
    project_service_pb2,
    instance_service_pb2,
    task_service_pb2,
    routing_service_pb2,
    work_service_pb2,
    delegation_service_pb2,
    episodic_service_pb2,
    feedback_service_pb2,
    working_service_pb2,
)
SERVICES: list[ServiceDescriptor] = [
    service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()
]
METHODS: dict[str, MethodDescriptor] = {
    f"{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods
}


class Refusal(NamedTuple):
    """What came back instead of an answer."""

    code: grpc.StatusCode
    error: HopperError

    @property
    def reason(self) -> str:
        return self.error.reason

    @property
    def fields(self) -> dict[str, str]:
        assert isinstance(self.error, InvalidArgument)
        return {violation.field: violation.description for violation in self.error.violations}


class RawHopper:
    """A Hopper that is sent bytes."""

    def __init__(self, process: HopperProcess, channel: grpc.Channel) -> None:
        self.process = process
        self._channel = channel

    def refusal(self, method: str, body: bytes | Message) -> Refusal:
        """Call a method, of any shape, with one request; it must be refused."""
        raw = body if isinstance(body, bytes) else body.SerializeToString()
        # On the wire all shapes look the same.
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(
            f"/{METHODS[method].containing_service.full_name}/{METHODS[method].name}"
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(call(iter([raw]), timeout=60))
        error = caught.value
        assert isinstance(error, grpc.Call)
        return Refusal(error.code(), from_rpc_error(error))

    def stored(self) -> dict[str, int]:
        """How many rows each table has, of the three databases."""
        counts = {}
        for path in sorted(self.process.data_dir.glob("*.db")):
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
                tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                # Small things the router keeps for itself, such as its copy of the registry, do not count.
                for table in {name for (name,) in tables} - {"router_values"}:
                    rows = connection.execute(f'SELECT count(*) FROM "{table}"')
                    (counts[f"{path.name} {table}"],) = rows.fetchone()
        return counts


@pytest.fixture(scope="module")
def server() -> Iterator[RawHopper]:
    with temporary_directory() as directory, HopperProcess(directory / "data") as process:
        options = [("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]
        with grpc.insecure_channel(process.address, options=options) as channel:
            yield RawHopper(process, channel)
        assert '"level": "error"' not in process.log_text()


@pytest.fixture
def raw(server: RawHopper) -> Iterator[RawHopper]:
    """The same for all tests here, because none of them may change anything: that is checked after each."""
    before = server.stored()
    yield server
    assert server.stored() == before
    assert server.process.running


def short(method: str) -> str:
    return method.rpartition(".")[2]


every_method = pytest.mark.parametrize("method", METHODS, ids=short)


# ---------------------------------------------------------------- of every method


@every_method
def test_bytes_that_are_no_message(raw: RawHopper, method: str) -> None:
    refusal = raw.refusal(method, b"\xff\xff\xff\xff")
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    assert refusal.error.metadata["method"].endswith(METHODS[method].name)


@every_method
def test_a_field_the_server_does_not_know(raw: RawHopper, method: str) -> None:
    refusal = raw.refusal(method, varint_field(50_000, 1))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_FIELD")
    assert dict(refusal.error.metadata) == {
        "message": METHODS[method].input_type.full_name,
        "field_numbers": "50000",
    }


@every_method
def test_more_bytes_than_the_method_takes(raw: RawHopper, method: str) -> None:
    most = METHODS[method].GetOptions().Extensions[options_pb2.access].max_request_kib * 1024 or 256 * 1024
    refusal = raw.refusal(method, bytes(5 * MEGABYTE))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")
    assert dict(refusal.error.metadata) == {"bytes": str(5 * MEGABYTE), "max_bytes": str(most)}


@pytest.mark.parametrize(
    "method", [f"{service.full_name}/{service.methods[0].name}" for service in SERVICES], ids=short
)
def test_more_bytes_than_any_method_takes(raw: RawHopper, method: str) -> None:
    refusal = raw.refusal(method, bytes(20 * MEGABYTE))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")


with_required = [
    name
    for name, method in METHODS.items()
    if any(field.GetOptions().Extensions[options_pb2.limits].required for field in method.input_type.fields)
]


@pytest.mark.parametrize("method", with_required, ids=short)
def test_an_empty_request(raw: RawHopper, method: str) -> None:
    required = {
        field.name
        for field in METHODS[method].input_type.fields
        if field.GetOptions().Extensions[options_pb2.limits].required
    }
    refusal = raw.refusal(method, b"")
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert refusal.fields == dict.fromkeys(required, "is required")


def texts(message: Descriptor, seen: frozenset[str] = frozenset()) -> Iterator[tuple[int, ...]]:
    """The way, in field numbers, to a text in this message, if there is one in it or below."""
    for field in message.fields:
        if field.type == field.TYPE_STRING:
            yield (field.number,)
        elif field.message_type is not None and message.full_name not in seen:
            yield from (
                (field.number, *rest) for rest in texts(field.message_type, seen | {message.full_name})
            )


with_text = [name for name, method in METHODS.items() if any(texts(method.input_type))]


@pytest.mark.parametrize("method", with_text, ids=short)
def test_text_that_is_not_utf8(raw: RawHopper, method: str) -> None:
    *outer, number = next(texts(METHODS[method].input_type))
    body = bytes_field(number, b"caf\xe9")
    for around in reversed(outer):
        body = bytes_field(around, body)
    refusal = raw.refusal(method, body)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


# ---------------------------------------------------------------- of single fields


def lasting(seconds: float) -> Duration:
    length = Duration()
    length.FromTimedelta(timedelta(seconds=seconds))
    return length


def submit(**fields: Any) -> SubmitTaskRequest:
    return SubmitTaskRequest(parent=ROOT, spec=TaskSpec(**{"title": "a", **fields}))


def project(**fields: Any) -> RegisterProjectRequest:
    return RegisterProjectRequest(project_id="p", project=Project(**fields))


def record(**fields: Any) -> RecordEpisodesRequest:
    sound = {"decision": "decisions/d", "task": TASK, "instance": ROOT}
    return RecordEpisodesRequest(episodes=[Episode(**{**sound, **fields})])


MINUS = Duration(seconds=-1)
NEW: Any = 99  # a value that no enum has
SUBMIT = "hopper.router.v1.TaskService/SubmitTask"
WORDS = "must be one word of printable characters, without spaces"

WRONG: list[tuple[str, Message, list[str]]] = [
    # names of the wrong type, or of none
    (SUBMIT, SubmitTaskRequest(parent="projects/web", spec=TaskSpec(title="a")), ["parent"]),
    (SUBMIT, SubmitTaskRequest(parent="instances/UPPER", spec=TaskSpec(title="a")), ["parent"]),
    (SUBMIT, SubmitTaskRequest(parent="instances/../etc", spec=TaskSpec(title="a")), ["parent"]),
    (SUBMIT, submit(project="instances/global"), ["spec.project"]),
    (SUBMIT, submit(project="web"), ["spec.project"]),
    (
        SUBMIT,
        submit(dependencies=[TASK, "decisions/d", ""]),
        ["spec.dependencies[1]", "spec.dependencies[2]"],
    ),
    (SUBMIT, submit(requester="two words"), ["spec.requester"]),
    (SUBMIT, SubmitTaskRequest(parent=ROOT, spec=TaskSpec(title="a"), request_id="1"), ["request_id"]),
    # sizes and numbers
    (SUBMIT, submit(title=""), ["spec.title"]),
    (SUBMIT, submit(title="a" * 301), ["spec.title"]),
    (SUBMIT, submit(title="é" * 151), ["spec.title"]),
    (SUBMIT, submit(title="a\0b"), ["spec.title"]),
    (SUBMIT, submit(description="a" * 16385), ["spec.description"]),
    (SUBMIT, submit(payload=bytes(65537)), ["spec.payload"]),
    (SUBMIT, submit(tags=["a"] * 65), ["spec.tags"]),
    (SUBMIT, submit(tags=["a b", "a\u202eb", "a" * 101]), ["spec.tags[0]", "spec.tags[1]", "spec.tags[2]"]),
    (SUBMIT, submit(priority=101), ["spec.priority"]),
    (SUBMIT, submit(priority=-1), ["spec.priority"]),
    (SUBMIT, submit(labels={"a": "b" * 101}), ['spec.labels["a"]']),
    (SUBMIT, submit(retry=RetryPolicy(factor=math.nan)), ["spec.retry.factor"]),
    (SUBMIT, submit(retry=RetryPolicy(factor=math.inf)), ["spec.retry.factor"]),
    # times
    (
        SUBMIT,
        submit(clocks=Clocks(run_for=MINUS, heartbeat=MINUS)),
        ["spec.clocks.run_for", "spec.clocks.heartbeat"],
    ),
    (SUBMIT, submit(estimated_effort=MINUS), ["spec.estimated_effort"]),
    (SUBMIT, submit(before_event=MINUS), ["spec.before_event"]),
    (SUBMIT, submit(retry=RetryPolicy(first_backoff=MINUS)), ["spec.retry.first_backoff"]),
    (SUBMIT, submit(clocks=Clocks(run_for=Duration(seconds=1, nanos=-1))), ["spec.clocks.run_for"]),
    (SUBMIT, submit(clocks=Clocks(finish_by=Timestamp(seconds=-1))), ["spec.clocks.finish_by"]),
    # several at once
    (
        SUBMIT,
        SubmitTaskRequest(parent="x", spec=TaskSpec(tags=[" "], priority=500)),
        ["parent", "spec.title", "spec.tags[0]", "spec.priority"],
    ),
    # the other methods of the router
    (
        "hopper.router.v1.TaskService/SubmitTasks",
        SubmitTasksRequest(parent=ROOT, items=[SubmitTasksItem(spec=TaskSpec(title="a")), SubmitTasksItem()]),
        ["items[1].spec"],
    ),
    (
        "hopper.router.v1.TaskService/SubmitTasks",
        SubmitTasksRequest(
            parent=ROOT, items=[SubmitTasksItem(spec=TaskSpec(title="a", tags=["t"] * 1_000_000))]
        ),
        ["items[0].spec.tags"],
    ),
    ("hopper.router.v1.TaskService/GetTask", GetTaskRequest(name=ROOT), ["name"]),
    ("hopper.router.v1.TaskService/CancelTask", CancelTaskRequest(name="projects/web"), ["name"]),
    ("hopper.router.v1.TaskService/ListTasks", ListTasksRequest(page_size=-1), ["page_size"]),
    (
        "hopper.router.v1.TaskService/ListTasks",
        ListTasksRequest(states=[Task.STATE_QUEUED, NEW]),
        ["states[1]"],
    ),
    ("hopper.router.v1.TaskService/WatchTasks", WatchTasksRequest(after_generation=-1), ["after_generation"]),
    ("hopper.router.v1.RoutingService/GetDecision", GetDecisionRequest(name=TASK), ["name"]),
    (
        "hopper.router.v1.RoutingService/SuggestRoute",
        SuggestRouteRequest(parent=ROOT, spec=TaskSpec(title="a", priority=101)),
        ["spec.priority"],
    ),
    (
        "hopper.router.v1.WorkService/ClaimTasks",
        ClaimTasksRequest(queue=TASK, worker="", lease_duration=MINUS, wait=lasting(31)),
        ["queue", "worker", "lease_duration", "wait"],
    ),
    (
        "hopper.router.v1.WorkService/RenewClaims",
        RenewClaimsRequest(claims=[ClaimRef(task=TASK, fencing_token=-1)], lease_duration=lasting(3601)),
        ["claims[0].fencing_token", "lease_duration"],
    ),
    (
        "hopper.router.v1.WorkService/ReportProgress",
        ReportProgressRequest(claim=ClaimRef(task=TASK, fencing_token=1), progress=Progress(fraction=1.01)),
        ["progress.fraction"],
    ),
    (
        "hopper.router.v1.WorkService/CompleteTasks",
        CompleteTasksRequest(completions=[Completion(claim=ClaimRef(task=TASK))] * 2),
        ["completions[0].claim.fencing_token", "completions[1].claim.fencing_token"],
    ),
    (
        "hopper.router.v1.WorkService/FailTask",
        FailTaskRequest(claim=ClaimRef(task=TASK, fencing_token=1), failure=Failure(reason="two words")),
        ["failure.reason"],
    ),
    ("hopper.router.v1.DelegationService/DelegateTask", DelegateTaskRequest(task=TASK, kind=NEW), ["kind"]),
    # the registry
    (
        "hopper.registry.v1.ProjectService/RegisterProject",
        project(state=NEW, capacity=Capacity(max_running=-1), sla=MINUS, velocity_per_day=math.nan),
        ["project.velocity_per_day", "project.sla", "project.capacity.max_running", "project.state"],
    ),
    (
        "hopper.registry.v1.ProjectService/RegisterProject",
        project(executor=Executor(type=NEW)),
        ["project.executor.type"],
    ),
    (
        "hopper.registry.v1.ProjectService/RegisterProject",
        RegisterProjectRequest(project_id="projects/p", project=Project()),
        ["project_id"],
    ),
    (
        "hopper.registry.v1.ProjectService/RegisterProject",
        project(priority_boosts={"a": 11.0}, capabilities=["a"] * 201),
        ["project.capabilities", 'project.priority_boosts["a"]'],
    ),
    ("hopper.registry.v1.ProjectService/GetProject", GetProjectRequest(name=ROOT), ["name"]),
    ("hopper.registry.v1.ProjectService/ListProjects", ListProjectsRequest(page_size=1001), ["page_size"]),
    (
        "hopper.registry.v1.ProjectService/Heartbeat",
        HeartbeatRequest(worker=Worker(name="projects/p", slots=-1, time_to_live=MINUS)),
        ["worker.name", "worker.slots", "worker.time_to_live"],
    ),
    (
        "hopper.registry.v1.InstanceService/CreateInstance",
        CreateInstanceRequest(
            instance_id="A",
            instance=Instance(parent="projects/p", scope=NEW, config=InstanceConfig(offer_timeout=MINUS)),
        ),
        ["instance_id", "instance.parent", "instance.scope", "instance.config.offer_timeout"],
    ),
    ("hopper.registry.v1.InstanceService/GetInstance", GetInstanceRequest(name=TASK), ["name"]),
    # memory
    (
        "hopper.memory.v1.EpisodicMemoryService/RecordEpisodes",
        record(decision="episodes/e", confidence=1.5, candidates=[EpisodeCandidate(project="p")]),
        ["episodes[0].decision", "episodes[0].confidence", "episodes[0].candidates[0].project"],
    ),
    (
        "hopper.memory.v1.EpisodicMemoryService/RecordEpisodes",
        RecordEpisodesRequest(
            outcomes=[EpisodeOutcome(decision="decisions/d", outcome=NEW, run_duration=MINUS)]
        ),
        ["outcomes[0].finish_time", "outcomes[0].outcome", "outcomes[0].run_duration"],
    ),
    (
        "hopper.memory.v1.EpisodicMemoryService/SearchSimilar",
        SearchSimilarRequest(text="a" * 4001, limit=101),
        ["text", "limit"],
    ),
    (
        "hopper.memory.v1.FeedbackService/SubmitFeedback",
        SubmitFeedbackRequest(
            decision="decisions/d", feedback=Feedback(quality=1.1, match=NEW, actual_effort=MINUS)
        ),
        ["feedback.match", "feedback.actual_effort", "feedback.quality"],
    ),
    (
        "hopper.memory.v1.WorkingMemoryService/PutContext",
        PutContextRequest(context=Context(time_to_live=MINUS)),
        ["context.key", "context.time_to_live"],
    ),
]


@pytest.mark.parametrize(
    ("method", "request_", "fields"),
    WRONG,
    ids=[f"{short(method)}-{','.join(fields)}" for method, _, fields in WRONG],
)
def test_every_field_that_breaks_its_limits_is_named(
    raw: RawHopper, method: str, request_: Message, fields: list[str]
) -> None:
    refusal = raw.refusal(method, request_)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert sorted(refusal.fields) == sorted(fields)
    assert all(refusal.fields.values())


def test_a_million_tags_are_too_many(raw: RawHopper) -> None:
    refusal = raw.refusal(SUBMIT, submit(tags=["t"] * 1_000_000))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")


def test_values_are_not_quoted(raw: RawHopper) -> None:
    refusal = raw.refusal(SUBMIT, submit(tags=["SECRET word"], requester="SECRET person"))
    assert "SECRET" not in str(refusal.error) + str(refusal.fields)


@pytest.mark.parametrize(
    ("method", "request_", "reason"),
    [
        (
            SUBMIT,
            SubmitTaskRequest(parent="instances/nobody", spec=TaskSpec(title="a")),
            "INSTANCE_NOT_FOUND",
        ),
        (SUBMIT, submit(project="projects/nobody"), "PROJECT_NOT_FOUND"),
        (SUBMIT, submit(dependencies=[TASK]), "TASK_NOT_FOUND"),
        ("hopper.router.v1.TaskService/GetTask", GetTaskRequest(name=TASK), "TASK_NOT_FOUND"),
        (
            "hopper.router.v1.RoutingService/GetDecision",
            GetDecisionRequest(name="decisions/d"),
            "DECISION_NOT_FOUND",
        ),
        (
            "hopper.registry.v1.ProjectService/GetProject",
            GetProjectRequest(name="projects/p"),
            "PROJECT_NOT_FOUND",
        ),
        (
            "hopper.registry.v1.InstanceService/GetInstance",
            GetInstanceRequest(name="instances/i"),
            "INSTANCE_NOT_FOUND",
        ),
        (
            "hopper.memory.v1.FeedbackService/SubmitFeedback",
            SubmitFeedbackRequest(decision="decisions/d", feedback=Feedback(match=Feedback.MATCH_GOOD)),
            "EPISODE_NOT_FOUND",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isupper() else "",
)
def test_what_is_not_there(raw: RawHopper, method: str, request_: Message, reason: str) -> None:
    refusal = raw.refusal(method, request_)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, reason)


def test_a_method_that_no_server_offers(server: RawHopper) -> None:
    method = "/hopper.router.v1.TaskService/DropEverything"
    with grpc.insecure_channel(server.process.address) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=60)
    error = from_rpc_error(caught.value)
    assert (error.reason, dict(error.metadata)) == ("METHOD_NOT_OFFERED", {"method": method})


# ---------------------------------------------------------------- bytes


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def varint_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value
