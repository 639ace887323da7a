"""The router beside the real registry and memory, in one process: what only the three together can show."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from hopper.memory.v1 import episodic_service_pb2
from hopper.memory.v1.episode_pb2 import Episode
from hopper.memory.v1.episodic_service_pb2_grpc import EpisodicMemoryServiceStub
from hopper.registry.v1 import instance_pb2, instance_service_pb2, project_pb2, project_service_pb2
from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceStub
from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceStub
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as task_svc
from hopper.router.v1 import work_service_pb2 as work_svc
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper.router.v1.work_service_pb2_grpc import WorkServiceStub
from hopper_common.database import Database
from hopper_common.host import Ready, installed_services, serve
from hopper_common.settings import HostSettings
from hopper_router import app
from hopper_router.model import InstanceState
from hopper_router.registry_client import RegistryClient
from tests.channels import separate_channel
from tests.router.harness import ROOT, Code, Reason, State, refusal, until

Instance = instance_pb2.Instance
LONG = Duration(seconds=30)  # the longest there is, and in vain if nobody is woken
MINE = instance_pb2.InstanceConfig(members=["ann"])


class Hopper:
    """
    A whole Hopper on its own directory.

    Attributes:
        copy: The router's copy of the registry, which has patience with a registry on a slow machine.
    """

    copy: RegistryClient

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._settings = HostSettings(data_dir=directory, drain_timeout=timedelta(seconds=1))
        self._stack = AsyncExitStack()
        monkeypatch.setattr(app, "RegistryClient", self._opened)

    def _opened(self, channel: grpc.aio.Channel, db: Database) -> RegistryClient:
        self.copy = RegistryClient(channel, db, ask_timeout=timedelta(seconds=60))
        return self.copy

    async def start(self) -> None:
        channel = await self._stack.enter_async_context(
            separate_channel(f"unix:{self._settings.socket_path}")
        )
        await self._stack.enter_async_context(_served(self._settings))
        self.projects, self.instances = ProjectServiceStub(channel), InstanceServiceStub(channel)
        self.tasks, self.work = TaskServiceStub(channel), WorkServiceStub(channel)
        self.episodes = EpisodicMemoryServiceStub(channel)

    async def stop(self) -> None:
        await self._stack.aclose()

    async def project(self, id_: str, *capabilities: str, **fields: Any) -> str:
        project = project_pb2.Project(capabilities=capabilities, **fields)
        request = project_service_pb2.RegisterProjectRequest(project_id=id_, project=project)
        return (await self.projects.RegisterProject(request)).project.name

    async def pause(self, project: str, *, paused: bool) -> None:
        state = project_pb2.Project.STATE_PAUSED if paused else project_pb2.Project.STATE_ACTIVE
        request = project_service_pb2.UpdateProjectRequest(
            project=project_pb2.Project(name=project, state=state)
        )
        request.update_mask.paths.append("state")
        await self.projects.UpdateProject(request)

    async def instance(self, id_: str, scope: Any, parent: str = ROOT, **fields: Any) -> str:
        """Create and start one."""
        made = Instance(scope=scope, parent=parent, **fields)
        request = instance_service_pb2.CreateInstanceRequest(instance_id=id_, instance=made)
        name = (await self.instances.CreateInstance(request)).instance.name
        await self.instances.StartInstance(instance_service_pb2.StartInstanceRequest(name=name))
        return name

    async def running(self, id_: str, scope: Any, parent: str = ROOT, **fields: Any) -> str:
        """Create and start one, and wait until the router has heard that it runs."""
        name = await self.instance(id_, scope, parent, **fields)

        async def runs() -> bool:
            assert await self.copy.refresh_instance(name)
            return self.copy.current.instances[name].state is InstanceState.RUNNING

        await until(runs)
        return name

    async def state_of(self, instance: str) -> Any:
        request = instance_service_pb2.GetInstanceRequest(name=instance)
        return (await self.instances.GetInstance(request)).instance

    async def submit(self, title: str = "work", parent: str = ROOT, **fields: Any) -> pb.Task:
        spec = pb.TaskSpec(title=title, **fields)
        return (await self.tasks.SubmitTask(task_svc.SubmitTaskRequest(parent=parent, spec=spec))).task

    async def placed(self, title: str = "work", **fields: Any) -> pb.Task:
        """Submit a task whose executor may have been registered a moment ago, and wait until it is placed."""
        there = (State.STATE_QUEUED, State.STATE_DELEGATED)
        return await self.reaches(await self.submit(title, **fields), lambda now: now.state in there)

    async def get(self, task: pb.Task) -> pb.Task:
        return (await self.tasks.GetTask(task_svc.GetTaskRequest(name=task.name))).task

    async def claim(self, queue: str, **fields: Any) -> list[pb.Task]:
        request = work_svc.ClaimTasksRequest(queue=queue, worker="ann", **fields)
        return list((await self.work.ClaimTasks(request)).tasks)

    async def complete(self, task: pb.Task) -> None:
        claim = work_svc.ClaimRef(task=task.name, fencing_token=task.claim.fencing_token)
        request = work_svc.CompleteTasksRequest(completions=[work_svc.Completion(claim=claim)])
        (result,) = (await self.work.CompleteTasks(request)).results
        assert result.HasField("updated")

    async def reaches(self, task: pb.Task, condition: Callable[[pb.Task], bool]) -> pb.Task:
        async def reached() -> pb.Task | None:
            now = await self.get(task)
            return now if condition(now) else None

        found = await until(reached)
        assert found is not None
        return found


@asynccontextmanager
async def _served(settings: HostSettings) -> AsyncIterator[None]:
    stop = asyncio.Event()
    started: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(
            serve(installed_services(), settings, ready=started.set_result, stop=stop)
        )
        waits: list[asyncio.Future[Any]] = [started, serving]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        yield
        stop.set()


@pytest.fixture
async def hopper(no_safety_net: None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hopper]:
    with tempfile.TemporaryDirectory(prefix="hopper-") as directory:
        made = Hopper(Path(directory) / "h", monkeypatch)
        await made.start()
        yield made
        await made.stop()


async def test_what_was_registered_a_moment_ago_can_be_used_at_once(hopper: Hopper) -> None:
    """Each right after the other, ten times: the copy of the registry must never be in the way."""
    for number in range(10):
        web = await hopper.project(f"web{number}", f"c{number}")
        assert (await hopper.submit(project=web)).project == web
        desk = await hopper.instance(f"desk{number}", instance_pb2.SCOPE_PERSONAL, config=MINE)
        assert (await hopper.submit(parent=desk)).state == State.STATE_QUEUED
        assert len(await hopper.claim(desk)) == 1
    await refusal(
        hopper.submit(project="projects/none"), Code.NOT_FOUND, "PROJECT_NOT_FOUND", project="projects/none"
    )
    await refusal(
        hopper.submit(parent="instances/none"),
        Code.NOT_FOUND,
        "INSTANCE_NOT_FOUND",
        instance="instances/none",
    )


async def test_an_executor_that_appears_gets_what_waits_for_it(hopper: Hopper) -> None:
    await hopper.project("web", "html")
    task = await hopper.submit(required_capabilities=["rust"])
    assert task.wait.reason == Reason.REASON_NO_ELIGIBLE_EXECUTOR
    crab = await hopper.project("crab", "rust")
    (claimed,) = await hopper.claim(crab, wait=LONG)
    assert claimed.name == task.name


async def test_a_project_that_goes_on_wakes_its_workers(hopper: Hopper) -> None:
    web = await hopper.project("web", "html")
    task = await hopper.placed(required_capabilities=["html"])
    await hopper.pause(web, paused=True)
    await hopper.reaches(task, lambda now: now.wait.reason == Reason.REASON_PROJECT)
    polling = asyncio.ensure_future(hopper.claim(web, wait=LONG))
    await hopper.pause(web, paused=False)
    (claimed,) = await polling
    assert claimed.name == task.name


async def test_a_run_stops_when_its_work_is_done_and_is_archived_in_its_parent(hopper: Hopper) -> None:
    web = await hopper.project("web", "html")
    team = await hopper.running("web", instance_pb2.SCOPE_PROJECT, project=web)
    run = await hopper.running("run", instance_pb2.SCOPE_ORCHESTRATION, team)
    big: dict[str, Any] = {"required_capabilities": ["html"], "estimated_effort": timedelta(hours=9)}
    first = await hopper.placed("first", **big)
    (worked,) = await hopper.claim(run)
    second = await hopper.placed("second", **big)
    assert (first.state, second.state) == (State.STATE_DELEGATED, State.STATE_DELEGATED)
    await hopper.instances.StopInstance(instance_service_pb2.StopInstanceRequest(name=run))
    stopping = await hopper.state_of(run)
    assert stopping.state == Instance.STATE_STOPPING
    # What nobody had goes back, and is kept by the team; what is worked on is finished.
    moved = (await hopper.claim(team, wait=LONG))[0]
    assert moved.spec.title == "second"
    assert (await hopper.state_of(run)).state == Instance.STATE_STOPPING
    await hopper.complete(worked)

    async def stopped() -> bool:
        return bool((await hopper.state_of(run)).state == Instance.STATE_STOPPED)

    await until(stopped)
    (summary,) = (await hopper.state_of(team)).archive
    assert (summary.instance, summary.succeeded, summary.failed, summary.returned) == (run, 1, 0, 1)
    assert summary.start_time.ToDatetime() < summary.end_time.ToDatetime()
    assert (await hopper.get(first)).state == State.STATE_SUCCEEDED
    await hopper.complete(moved)
    assert (await hopper.get(second)).state == State.STATE_SUCCEEDED


async def test_stopping_the_team_stops_everything_below(hopper: Hopper) -> None:
    web = await hopper.project("web", "html")
    team = await hopper.running("web", instance_pb2.SCOPE_PROJECT, project=web)
    run = await hopper.running("run", instance_pb2.SCOPE_ORCHESTRATION, team)
    task = await hopper.placed(required_capabilities=["html"], estimated_effort=timedelta(hours=9))
    assert task.state == State.STATE_DELEGATED
    await hopper.instances.StopInstance(instance_service_pb2.StopInstanceRequest(name=team))

    async def stopped() -> bool:
        states = [(await hopper.state_of(name)).state for name in (team, run)]
        return states == [Instance.STATE_STOPPED] * 2

    await until(stopped)
    back = await hopper.get(task)
    assert (back.state, back.wait.reason) == (State.STATE_SUBMITTED, Reason.REASON_NO_ELIGIBLE_EXECUTOR)
    # Started again it takes work again; but not this, which it sent back.
    await hopper.instances.StartInstance(instance_service_pb2.StartInstanceRequest(name=team))
    again = await hopper.placed(required_capabilities=["html"])
    await hopper.reaches(again, lambda now: now.state == State.STATE_DELEGATED)
    assert (await hopper.get(task)).state == State.STATE_SUBMITTED


async def test_unregistering_a_project_moves_its_tasks(hopper: Hopper) -> None:
    web = await hopper.project("web", "html")
    tasks = [await hopper.placed(required_capabilities=["html"]) for _ in range(5)]
    app = await hopper.project("app", "html")
    await hopper.projects.UnregisterProject(project_service_pb2.UnregisterProjectRequest(name=web))
    for task in tasks:
        await hopper.reaches(task, lambda now: now.project == app)
    assert len(await hopper.claim(app, max_tasks=10)) == 5


async def test_everything_is_there_after_a_restart(hopper: Hopper) -> None:
    web = await hopper.project("web", "html")
    waiting = await hopper.placed("waiting", required_capabilities=["html"])
    running = await hopper.placed("running", required_capabilities=["html"], priority=90)
    (worked,) = await hopper.claim(web)
    assert worked.name == running.name
    await hopper.stop()
    await hopper.start()
    assert await hopper.get(waiting) == waiting
    await hopper.complete(worked)
    (claimed,) = await hopper.claim(web)
    assert claimed.name == waiting.name


async def test_memory_hears_of_a_decision_and_how_it_went(hopper: Hopper) -> None:
    web = await hopper.project("web", "html")
    task = await hopper.placed("fix the page", required_capabilities=["html"])
    await hopper.complete((await hopper.claim(web))[0])

    async def told() -> Any:
        request = episodic_service_pb2.SearchSimilarRequest(text="fix the page")
        found = (await hopper.episodes.SearchSimilar(request)).matches
        return [match for match in found if match.episode.outcome == Episode.OUTCOME_SUCCEEDED]

    (match,) = await until(told)
    assert match.episode.decision == task.decision
