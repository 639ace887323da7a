"""Every service is found and called with a foreign client that knows nothing but reflection: `buf curl`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hopper_testing.processes import HopperProcess, temporary_directory
from tests.e2e.calls import connected, first_admin, register_crew, submit_request

BUF = str(Path(sys.executable).with_name("buf"))
HOPPER_SERVICES = [
    "hopper.common.v1.AuditService",
    "hopper.federation.v1.ArtifactService",
    "hopper.federation.v1.PeerAdminService",
    "hopper.federation.v1.RemoteDelegationService",
    "hopper.memory.v1.EpisodicMemoryService",
    "hopper.memory.v1.FeedbackService",
    "hopper.memory.v1.LearningService",
    "hopper.memory.v1.WorkingMemoryService",
    "hopper.registry.v1.AccessService",
    "hopper.registry.v1.InstanceService",
    "hopper.registry.v1.ProjectService",
    "hopper.router.v1.DelegationService",
    "hopper.router.v1.QueueService",
    "hopper.router.v1.RoutingService",
    "hopper.router.v1.ScheduleService",
    "hopper.router.v1.TaskService",
    "hopper.router.v1.WorkService",
]
OTHERS = ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]


class Curl:
    """`buf curl` against one address of a Hopper."""

    def __init__(self, process: HopperProcess, way: str, key: str) -> None:
        self.way = way
        shown = ["--header", f"authorization: Bearer {key}", "--reflect-header", "*"]
        self._address = {
            "socket": ["--unix-socket", process.address.removeprefix("unix:"), "http://localhost"],
            "port": [*shown, f"http://{process.tcp_address}"],
        }[way]

    def run(self, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
        *options, url = self._address
        command = [
            BUF,
            "curl",
            "--protocol",
            "grpc",
            "--http2-prior-knowledge",
            *options,
            *arguments,
            url + path,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    def lines(self, *arguments: str) -> list[str]:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def call(self, method: str, request: Any) -> Any:
        done = self.run("--data", json.dumps(request), path=f"/{method}")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout or "{}")


@pytest.fixture(scope="module")
def task() -> dict[str, str]:
    """Filled by `process`: a task's name, and its decision's."""
    return {}


@pytest.fixture(scope="module")
def process(task: dict[str, str]) -> Iterator[HopperProcess]:
    with (
        temporary_directory() as directory,
        HopperProcess(directory / "data", listen="127.0.0.1:0") as started,
    ):
        with connected(started.address) as stubs:
            register_crew(stubs)
            answer = stubs.tasks.SubmitTask(submit_request("listed"), timeout=60)
            task |= {"task": answer.task.name, "decision": answer.decision.name}
        yield started


@pytest.fixture(scope="module")
def key(process: HopperProcess) -> str:
    """Of an admin, who is nobody's owner."""
    return first_admin(process.address)


@pytest.fixture(params=["socket", "port"])
def curl(request: pytest.FixtureRequest, process: HopperProcess, key: str) -> Curl:
    return Curl(process, request.param, key)


def test_every_service_is_listed(curl: Curl) -> None:
    assert sorted(curl.lines("--list-services")) == sorted([*HOPPER_SERVICES, *OTHERS])


def test_every_method_of_every_service_is_described(curl: Curl) -> None:
    methods = curl.lines("--list-methods")
    assert {method.partition("/")[0] for method in methods} == {*HOPPER_SERVICES, *OTHERS}
    assert "hopper.router.v1.WorkService/ClaimTasks" in methods
    assert len(methods) > 50


CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "hopper.common.v1.AuditService/ListAuditRecords": ({}, "records"),
    "hopper.federation.v1.ArtifactService/ListArtifacts": ({"task": "<task>"}, ""),
    "hopper.federation.v1.PeerAdminService/ListPeers": ({}, ""),
    "hopper.federation.v1.RemoteDelegationService/ListRemoteDelegations": ({}, ""),
    "hopper.memory.v1.EpisodicMemoryService/GetProjectHistory": ({"project": "projects/crew"}, ""),
    "hopper.memory.v1.FeedbackService/GetStats": ({}, ""),
    "hopper.memory.v1.WorkingMemoryService/PutContext": (
        {"context": {"key": "k", "value": {"a": 1}}},
        "context",
    ),
    "hopper.registry.v1.AccessService/ListPrincipals": ({}, ""),
    "hopper.registry.v1.InstanceService/GetTree": ({}, "root"),
    "hopper.registry.v1.ProjectService/GetProject": ({"name": "projects/crew"}, "project"),
    "hopper.router.v1.DelegationService/ListDelegations": ({"task": "<task>"}, ""),
    "hopper.router.v1.QueueService/GetQueueStats": ({}, "total"),
    "hopper.router.v1.ScheduleService/ListSchedules": ({}, ""),
    "hopper.router.v1.RoutingService/GetDecision": ({"name": "<decision>"}, "decision"),
    "hopper.router.v1.TaskService/GetTask": ({"name": "<task>"}, "task"),
    "hopper.router.v1.WorkService/ClaimTasks": (
        {"queue": "projects/crew", "worker": "admin", "maxTasks": 1},
        "",
    ),
    "grpc.health.v1.Health/Check": ({}, "status"),
}


@pytest.mark.parametrize("method", CALLS)
def test_a_method_of_each_service_is_called(curl: Curl, task: dict[str, str], method: str) -> None:
    request, field = CALLS[method]
    filled = {
        key: task.get(value.strip("<>"), value) if isinstance(value, str) else value
        for key, value in request.items()
    }
    answer = curl.call(method, filled)
    assert not field or answer[field]


def test_every_service_has_a_call_here() -> None:
    refused = {"hopper.memory.v1.LearningService"}  # below
    assert {method.partition("/")[0] for method in CALLS} | refused >= set(HOPPER_SERVICES)


def test_a_model_that_nobody_has_saved_is_not_found(curl: Curl) -> None:
    done = curl.run("--data", '{"format": "test/1"}', path="/hopper.memory.v1.LearningService/GetModel")
    # That is for the router; and for the owner, who may do everything.
    assert json.loads(done.stderr)["code"] == {"socket": "not_found", "port": "permission_denied"}[curl.way]


def test_a_refusal_is_readable(curl: Curl) -> None:
    done = curl.run(
        "--data", '{"name": "instances/nowhere"}', path="/hopper.registry.v1.InstanceService/GetInstance"
    )
    assert done.returncode != 0
    refusal = json.loads(done.stderr)
    assert refusal["code"] == "not_found"
    assert "instances/nowhere" in refusal["message"]
    assert [detail["type"] for detail in refusal["details"]] == ["google.rpc.ErrorInfo"]
