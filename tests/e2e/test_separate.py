"""The three services as processes of their own: the same Hopper, and each can be away for a while."""

import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from hopper.memory.v1.episode_pb2 import Episode
from hopper.memory.v1.feedback_service_pb2 import GetStatsRequest
from hopper.memory.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from hopper.registry.v1.project_pb2 import Project
from hopper.registry.v1.project_service_pb2 import GetProjectRequest, RegisterProjectRequest
from hopper.router.v1.decision_pb2 import Decision
from hopper.router.v1.task_pb2 import Task, TaskSpec
from hopper.router.v1.task_service_pb2 import SubmitTaskRequest, SubmitTaskResponse
from hopper.router.v1.work_service_pb2 import ClaimRef, CompleteTasksRequest, Completion
from hopper_client import Hopper
from hopper_common.errors import HopperError, NotFound, Unavailable
from hopper_common.rpc.errors import from_rpc_error
from hopper_testing.processes import HopperProcess, lonely_host
from tests.e2e.calls import (
    CREW,
    ROOT,
    Stubs,
    all_decisions,
    all_tasks,
    claim_request,
    connected,
    crew_episodes,
    eventually,
    register_crew,
    submit_request,
)
from tests.e2e.conftest import Figure

SERVICES = ("registry", "router", "memory")


class Parts(Mapping[str, HopperProcess]):
    """The processes by service, and connections to them."""

    def __init__(self, processes: Mapping[str, HopperProcess]) -> None:
        self._processes = processes

    def __getitem__(self, service: str) -> HopperProcess:
        return self._processes[service]

    def __iter__(self) -> Iterator[str]:
        return iter(self._processes)

    def __len__(self) -> int:
        return len(self._processes)

    def start(self) -> "Parts":
        """All of them, at once: no order is promised."""
        for process in self.values():
            process.launch()
        for process in self.values():
            process.wait_ready()
        return self


@pytest.fixture(params=["one data directory", "configured addresses"])
def either_way(request: pytest.FixtureRequest, directory: Path, processes: list[HopperProcess]) -> Parts:
    """Processes that find each other by the data directory they share, or by the addresses they are told."""
    if request.param == "one data directory":
        return made(directory, processes)
    host = lonely_host()
    ports = {service: f"{host}:{8301 + place}" for place, service in enumerate(SERVICES)}
    environment = {f"HOPPER_{service.upper()}_ADDRESS": address for service, address in ports.items()}
    environment["HOPPER_IDENTITY_DIR"] = str(directory / "identity")
    parts = {
        service: HopperProcess(
            directory / service,
            service=service,
            environment=environment | {"HOPPER_SERVICES_LISTEN": ports[service]},
        )
        for service in SERVICES
    }
    processes += parts.values()
    return Parts(parts)


@pytest.fixture
def parts(directory: Path, processes: list[HopperProcess]) -> Parts:
    return made(directory, processes)


def made(directory: Path, processes: list[HopperProcess]) -> Parts:
    parts = {service: HopperProcess(directory / "data", service=service) for service in SERVICES}
    processes += parts.values()
    return Parts(parts)


def do_one(router: Stubs, title: str) -> tuple[str, str]:
    """Submit, claim and complete a task; returns its name and its decision's."""
    answer = router.tasks.SubmitTask(submit_request(title), timeout=60)
    assert answer.decision.project == CREW
    (task,) = router.work.ClaimTasks(claim_request("w", wait=30), timeout=60).tasks
    assert task.name == answer.task.name
    claim = ClaimRef(task=task.name, fencing_token=task.claim.fencing_token)
    done = router.work.CompleteTasks(CompleteTasksRequest(completions=[Completion(claim=claim)]), timeout=60)
    assert done.results[0].updated.state == Task.STATE_SUCCEEDED
    return task.name, answer.decision.name


def remembered(memory: Stubs, decisions: int) -> list[str]:
    """Wait until memory has that many episodes that ended well; the decisions of all it has, sorted."""

    def ended(episodes: list[Episode]) -> bool:
        return sum(episode.outcome == Episode.OUTCOME_SUCCEEDED for episode in episodes) >= decisions

    return sorted(episode.decision for episode in eventually(lambda: crew_episodes(memory), ended))


def test_the_main_job_works_in_three_processes(either_way: Parts) -> None:
    either_way.start()
    with (
        connected(either_way["registry"].address) as registry,
        connected(either_way["router"].address) as router,
        connected(either_way["memory"].address) as memory,
    ):
        register_crew(registry)
        decisions = sorted(do_one(router, f"task {number}")[1] for number in range(5))
        assert remembered(memory, 5) == decisions
    assert [either_way[service].stop() for service in SERVICES] == [0, 0, 0]


def test_the_router_decides_without_the_registry_also_after_a_restart(parts: Parts) -> None:
    parts.start()
    with connected(parts["registry"].address) as registry, connected(parts["router"].address) as router:
        register_crew(registry)
        do_one(router, "before")
        stored_copy_has(parts["router"], CREW)
        parts["registry"].kill()
        do_one(router, "without the registry")
        routed = router.tasks.SubmitTask(
            SubmitTaskRequest(parent=ROOT, spec=TaskSpec(title="anyone")), timeout=60
        )
        assert (routed.decision.outcome, routed.task.project) == (Decision.OUTCOME_ROUTED, CREW)
        parts["router"].kill()
    parts["router"].start()
    with connected(parts["router"].address) as router:
        assert [task.name for task in router.work.ClaimTasks(claim_request("w", 5), timeout=60).tasks] == [
            routed.task.name
        ]
        do_one(router, "after a restart without the registry")
        unknown = submit_request("for nobody known")
        unknown.spec.project = "projects/new"
        with pytest.raises(grpc.RpcError) as refused:
            router.tasks.SubmitTask(unknown, timeout=60)
        # Not NOT_FOUND: nobody can say.
        refusal = from_rpc_error(refused.value)
        assert (refusal.reason, dict(refusal.metadata)) == ("SERVICE_UNAVAILABLE", {"service": "registry"})
        assert refusal.retry_after is not None
    # What is registered while the router could not see it is followed once it is back.
    parts["registry"].start()
    with connected(parts["registry"].address) as registry, Hopper(parts["router"].address) as client:
        request = RegisterProjectRequest(project_id="new", project=Project(description="came later"))
        registry.projects.RegisterProject(request, timeout=60)

        def followed() -> str:
            try:
                return client.submit("for the new one", project="projects/new").task.project
            except Unavailable:  # it may look again in a moment only
                return ""

        assert eventually(followed, bool) == "projects/new"


def stored_copy_has(router: HopperProcess, project: str) -> None:
    """Wait until the router's stored copy of the registry has a project; it is written once a second at most."""

    def has() -> bool:
        with closing(sqlite3.connect(f"file:{router.data_dir}/router.db?mode=ro", uri=True)) as connection:
            row = connection.execute("SELECT value FROM router_values WHERE key = 'registry'").fetchone()
        return row is not None and project.encode() in row[0]

    assert eventually(has, bool)


def test_nothing_is_forgotten_while_memory_is_away(parts: Parts) -> None:
    parts.start()
    decisions: list[str] = []
    with connected(parts["registry"].address) as registry, connected(parts["router"].address) as router:
        register_crew(registry)
        decisions.append(do_one(router, "with memory")[1])
        parts["memory"].kill()
        decisions += [do_one(router, f"without memory {number}")[1] for number in range(20)]
        parts["router"].kill()
    parts["router"].start()
    with connected(parts["router"].address) as router:
        decisions.append(do_one(router, "after a restart without memory")[1])
        parts["memory"].start()
        with connected(parts["memory"].address) as memory:
            assert remembered(memory, len(decisions)) == sorted(decisions)
        # It has kept them through a kill of its own, and nothing of it comes twice.
        parts["memory"].kill()
        parts["memory"].start()
        with connected(parts["memory"].address) as memory:
            assert remembered(memory, len(decisions)) == sorted(decisions)


def test_registry_and_memory_answer_without_the_router(parts: Parts) -> None:
    parts["registry"].start()
    parts["memory"].start()
    with connected(parts["registry"].address) as registry:
        register_crew(registry)
        assert registry.projects.GetProject(GetProjectRequest(name=CREW), timeout=60).project.name == CREW
    with grpc.insecure_channel(parts["memory"].address) as channel:
        assert FeedbackServiceStub(channel).GetStats(GetStatsRequest(), timeout=60).decisions == 0


class Load:
    """Threads that submit through the client, which retries, and that never see an error."""

    def __init__(self, address: str) -> None:
        self.acknowledged: dict[str, str] = {}
        self.errors: list[HopperError] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._submit, args=(address,)) for _ in range(3)]
        for thread in self._threads:
            thread.start()

    def _submit(self, address: str) -> None:
        with Hopper(address, timeout=60) as client:
            while not self._stop.is_set():
                title = str(uuid.uuid4())
                try:
                    answer: SubmitTaskResponse = client.submit(title, project=CREW)
                except HopperError as error:
                    self.errors.append(error)
                else:
                    self.acknowledged[title] = answer.task.name

    def goes_on(self) -> None:
        """Wait until some more were acknowledged."""
        before = len(self.acknowledged)
        assert eventually(lambda: len(self.acknowledged), lambda count: count > before + 10) > before

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_each_service_is_restarted_in_turn_under_load(parts: Parts, figure: Figure) -> None:
    parts.start()
    with connected(parts["registry"].address) as registry:
        register_crew(registry)
    load = Load(parts["router"].address)
    try:
        for service in SERVICES:
            load.goes_on()
            assert parts[service].stop() == 0
            if service != "router":
                load.goes_on()
            parts[service].start()
        load.goes_on()
    finally:
        load.end()
    # While the router is away its callers retry for a while, and may then be told so; nothing else.
    assert {error.reason for error in load.errors} <= {"SERVICE_UNAVAILABLE", "SHUTTING_DOWN"}
    assert not any(isinstance(error, NotFound) for error in load.errors)
    with connected(parts["router"].address) as router, connected(parts["memory"].address) as memory:
        there = {task.spec.title: task.name for task in all_tasks(router)}
        assert there.items() >= load.acknowledged.items()
        assert len(there) <= len(load.acknowledged) + len(load.errors)
        decisions = sorted(decision.name for decision in all_decisions(router))
        episodes = eventually(lambda: crew_episodes(memory), lambda episodes: len(episodes) >= len(decisions))
        assert sorted(episode.decision for episode in episodes) == decisions
    figure("restarts in turn: acknowledged, refused", (len(load.acknowledged), len(load.errors)))
