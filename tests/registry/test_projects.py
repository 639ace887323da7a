"""ProjectService, but for watches: over real gRPC."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct

from hopper.registry.v1.project_pb2 import (
    Capacity,
    Executor,
    Presence,
    Project,
    RateLimit,
    Worker,
    WorkingHours,
    WorkingStretch,
)
from hopper.registry.v1.project_service_pb2 import (
    GetProjectRequest,
    HeartbeatRequest,
    HeartbeatResponse,
    ListProjectsRequest,
    ListWorkersRequest,
    RegisterProjectRequest,
    UnregisterProjectRequest,
    UpdateProjectRequest,
)
from hopper_common.timestamps import from_proto
from tests.registry.harness import RunningRegistry, refusal, violations

CODE = grpc.StatusCode


async def register(registry: RunningRegistry, project_id: str = "web", **fields: Any) -> Project:
    request = RegisterProjectRequest(project_id=project_id, project=Project(**fields))
    return (await registry.projects.RegisterProject(request)).project


async def get(registry: RunningRegistry, project_id: str = "web") -> Project:
    return (await registry.projects.GetProject(GetProjectRequest(name=f"projects/{project_id}"))).project


async def beat(
    registry: RunningRegistry, worker: str = "w1", *, project: str = "web", **fields: Any
) -> HeartbeatResponse:
    name = f"projects/{project}/workers/{worker}"
    return await registry.projects.Heartbeat(HeartbeatRequest(worker=Worker(name=name, **fields)))


async def update(registry: RunningRegistry, project: Project, *paths: str, **request: Any) -> Project:
    mask = FieldMask(paths=paths) if paths else None
    answer = await registry.projects.UpdateProject(
        UpdateProjectRequest(project=project, update_mask=mask, **request)
    )
    return answer.project


FULL: dict[str, Any] = {
    "display_name": "Web",
    "description": "Everything people click on.",
    "capabilities": ["css", "go"],
    "tags": ["frontend", "type:Bug"],
    "labels": {"region": "eu"},
    "examples": ["Fix the header"],
    "velocity_per_day": 2.5,
    "sla": Duration(seconds=3600),
    "capacity": Capacity(
        max_running=3,
        max_open=30,
        max_running_per_key=2,
        start_rate=RateLimit(count=100, period=Duration(seconds=60)),
        start_rate_per_key=RateLimit(count=5, period=Duration(seconds=1)),
    ),
    "cost_per_task": 0.25,
    "executor": Executor(type=Executor.TYPE_AGENT, requires_live_worker=True),
    "priority_boosts": {"urgent": 2.0},
    "state": Project.STATE_PAUSED,
    "working_hours": WorkingHours(
        time_zone="Europe/Berlin",
        stretches=[WorkingStretch(weekday=day, from_minute=540, to_minute=1020) for day in range(1, 6)],
    ),
}


async def test_a_registered_project_is_returned_as_stored(registry: RunningRegistry) -> None:
    stored = await register(registry, **FULL)
    expected = Project(name="projects/web", presence=Presence(), etag=stored.etag, **FULL)
    expected.create_time.FromDatetime(registry.clock.now())
    expected.update_time.FromDatetime(registry.clock.now())
    assert stored == expected
    assert stored.etag
    assert await get(registry) == stored


async def test_defaults_are_filled_in(registry: RunningRegistry) -> None:
    stored = await register(registry)
    assert (stored.display_name, stored.state) == ("web", Project.STATE_ACTIVE)
    assert stored.executor.type == Executor.TYPE_WORKERS


async def test_a_rate_without_a_period_is_of_a_second(registry: RunningRegistry) -> None:
    stored = await register(registry, capacity=Capacity(start_rate=RateLimit(count=7)))
    assert stored.capacity.start_rate == RateLimit(count=7, period=Duration(seconds=1))
    change = Project(name="projects/web")
    assert not (await update(registry, change, "capacity.start_rate")).capacity.HasField("start_rate")


async def test_hours_without_a_zone_are_those_of_utc_and_are_cleared_by_a_mask(
    registry: RunningRegistry,
) -> None:
    stored = await register(registry, working_hours=WorkingHours(stretches=[OFFICE]))
    assert stored.working_hours == WorkingHours(time_zone="UTC", stretches=[OFFICE])
    change = Project(name="projects/web")
    change.working_hours.time_zone = "Asia/Tokyo"
    moved = await update(registry, change, "working_hours.time_zone")
    assert moved.working_hours == WorkingHours(time_zone="Asia/Tokyo", stretches=[OFFICE])
    cleared = await update(registry, Project(name="projects/web"), "working_hours")
    assert not cleared.HasField("working_hours")


OFFICE = WorkingStretch(weekday=1, from_minute=540, to_minute=1020)


@pytest.mark.parametrize(
    ("hours", "field", "said"),
    [
        (WorkingHours(time_zone="Mars/Base", stretches=[OFFICE]), "time_zone", "IANA name"),
        (WorkingHours(), "stretches", "must name a stretch"),
        (
            WorkingHours(stretches=[OFFICE, WorkingStretch(weekday=2, from_minute=60, to_minute=60)]),
            "stretches[1].to_minute",
            "later than from_minute",
        ),
        (WorkingHours(stretches=[WorkingStretch(weekday=8, to_minute=60)]), "stretches[0].weekday", "7"),
    ],
)
async def test_hours_that_are_none_are_refused_by_name(
    registry: RunningRegistry, hours: WorkingHours, field: str, said: str
) -> None:
    await register(registry)
    for call in (
        register(registry, "other", working_hours=hours),
        update(registry, Project(name="projects/web", working_hours=hours), "working_hours"),
    ):
        ((found, description),) = (await violations(call)).items()
        assert found == f"project.working_hours.{field}"
        assert said in description
    assert not (await get(registry)).HasField("working_hours")


async def test_output_only_fields_are_ignored_at_registration(registry: RunningRegistry) -> None:
    stored = await register(registry, name="projects/other", etag="x", presence=Presence(live_workers=9))
    assert (stored.name, stored.presence) == ("projects/web", Presence())
    assert stored.etag != "x"


async def test_an_id_is_registered_once(registry: RunningRegistry) -> None:
    await register(registry)
    await refusal(register(registry), CODE.ALREADY_EXISTS, "PROJECT_EXISTS", project="projects/web")


async def test_limits_are_enforced(registry: RunningRegistry) -> None:
    wrong = await violations(register(registry, "No Id", tags=["two words"]))
    assert wrong.keys() == {"project_id", "project.tags[0]"}


async def test_an_executors_config_is_kept_as_it_is(registry: RunningRegistry) -> None:
    config = Struct()
    config.update({"model": "small", "depth": 3})
    stored = await register(registry, executor=Executor(type=Executor.TYPE_AGENT, config=config))
    assert stored.executor.config == config
    assert (await get(registry)).executor.config == config

    assert (await update(registry, stored)).etag == stored.etag
    cleared = await update(registry, Project(name=stored.name), "executor.config")
    assert not cleared.executor.HasField("config")
    assert cleared.etag != stored.etag


async def test_a_missing_project_is_not_found(registry: RunningRegistry) -> None:
    name = "projects/none"
    missing = (CODE.NOT_FOUND, "PROJECT_NOT_FOUND")
    await refusal(get(registry, "none"), *missing, project=name)
    await refusal(update(registry, Project(name=name, tags=["x"])), *missing, project=name)
    await refusal(beat(registry, project="none"), *missing, project=name)
    unregister = registry.projects.UnregisterProject(UnregisterProjectRequest(name=name))
    await refusal(unregister, *missing, project=name)
    workers = registry.projects.ListWorkers(ListWorkersRequest(project=name))
    await refusal(workers, *missing, project=name)


# Lists.


async def list_ids(registry: RunningRegistry, size: int = 0, **filters: str) -> list[list[str]]:
    """All pages, of ids."""
    pages, token = [], ""
    while True:
        request = ListProjectsRequest(page_size=size, page_token=token, **filters)
        answer = await registry.projects.ListProjects(request)
        pages.append([project.name.removeprefix("projects/") for project in answer.projects])
        token = answer.next_page_token
        if not token:
            return pages


async def test_a_list_comes_by_id_in_pages(registry: RunningRegistry) -> None:
    assert await list_ids(registry) == [[]]
    for project_id in ("c", "a", "e", "b", "d"):
        await register(registry, project_id)
    assert await list_ids(registry) == [["a", "b", "c", "d", "e"]]
    assert await list_ids(registry, 2) == [["a", "b"], ["c", "d"], ["e"]]
    assert await list_ids(registry, 5) == [["a", "b", "c", "d", "e"]]


async def test_filters_and_pages_go_together(registry: RunningRegistry) -> None:
    for number in range(6):
        tags = ["Odd"] if number % 2 else ["even"]
        await register(
            registry, f"p{number}", tags=tags, capabilities=["go"] if number > 1 else ["css", "css"]
        )
    assert await list_ids(registry, 2, tag="Odd") == [["p1", "p3"], ["p5"]]
    assert await list_ids(registry, tag="odd") == [[]]
    assert await list_ids(registry, 1, tag="even", capability="go") == [["p2"], ["p4"]]
    assert await list_ids(registry, capability="even") == [[]]


async def test_filters_follow_updates(registry: RunningRegistry) -> None:
    await register(registry, "a", tags=["old"])
    await update(registry, Project(name="projects/a", tags=["new"]))
    assert await list_ids(registry, tag="old") == [[]]
    assert await list_ids(registry, tag="new") == [["a"]]
    await registry.projects.UnregisterProject(UnregisterProjectRequest(name="projects/a"))
    assert await list_ids(registry, tag="new") == [[]]


async def test_a_page_token_belongs_to_its_request(registry: RunningRegistry) -> None:
    for project_id in "abc":
        await register(registry, project_id, tags=["x"])
    first = await registry.projects.ListProjects(ListProjectsRequest(page_size=1, tag="x"))
    token = first.next_page_token
    other_size = await registry.projects.ListProjects(
        ListProjectsRequest(page_size=2, page_token=token, tag="x")
    )
    assert [project.name for project in other_size.projects] == ["projects/b", "projects/c"]
    for request in (
        ListProjectsRequest(page_token=token),
        ListProjectsRequest(page_token=token, tag="y"),
        ListProjectsRequest(page_token="gibberish", tag="x"),
    ):
        call = registry.projects.ListProjects(request)
        await refusal(call, CODE.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
    workers = registry.projects.ListWorkers(ListWorkersRequest(project="projects/a", page_token=token))
    await refusal(workers, CODE.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


async def test_a_page_of_large_projects_ends_before_it_outgrows_a_message(registry: RunningRegistry) -> None:
    examples = [f"{number:03}" * 100 for number in range(50)]
    large: dict[str, Any] = {
        "description": "x" * 4000,
        "examples": examples,
        "tags": [f"{n:0100}" for n in range(200)],
    }
    large |= {"capabilities": [f"{n:0100}" for n in range(200)]}
    ids = [f"p{number:02}" for number in range(60)]
    await asyncio.gather(*(register(registry, project_id, **large) for project_id in ids))
    pages = await list_ids(registry, 1000)
    assert [project_id for page in pages for project_id in page] == ids
    assert len(pages) == 2


# Updates.


async def test_an_empty_mask_changes_what_is_set(registry: RunningRegistry) -> None:
    before = await register(registry, **FULL)
    registry.clock.advance(timedelta(minutes=1))
    after = await update(registry, Project(name="projects/web", tags=["api"], cost_per_task=1))
    assert from_proto(after.update_time) == registry.clock.now()
    assert after.etag != before.etag
    before.tags[:] = ["api"]
    before.cost_per_task = 1
    before.etag, after_time = after.etag, after.update_time
    before.update_time.CopyFrom(after_time)
    assert after == before == await get(registry)


async def test_a_mask_changes_and_clears_what_it_names(registry: RunningRegistry) -> None:
    await register(registry, **FULL)
    change = Project(name="projects/web", capacity=Capacity(max_open=7), description="not asked for")
    after = await update(registry, change, "capacity.max_open", "tags", "display_name", "sla")
    expected = Capacity()
    expected.CopyFrom(FULL["capacity"])
    expected.max_open = 7
    assert after.capacity == expected
    assert (list(after.tags), after.display_name, after.HasField("sla")) == ([], "web", False)
    assert after.description == FULL["description"]


async def test_a_project_can_be_sent_back_as_it_was_read(registry: RunningRegistry) -> None:
    stored = await register(registry, **FULL)
    assert await update(registry, stored) == stored


@pytest.mark.parametrize("path", ["nonsense", "presence", "presence.slots", "name", "etag", "capacity.bogus"])
async def test_a_mask_with_a_wrong_path_is_refused_and_changes_nothing(
    registry: RunningRegistry, path: str
) -> None:
    stored = await register(registry)
    wrong = await violations(update(registry, Project(name=stored.name, tags=["x"]), "tags", path))
    assert wrong.keys() == {"update_mask"}
    assert path in wrong["update_mask"]
    assert await get(registry) == stored


async def test_an_update_needs_a_name(registry: RunningRegistry) -> None:
    assert await violations(update(registry, Project(tags=["x"]))) == {"project.name": "is required"}


async def test_only_one_of_two_edits_of_the_same_read_is_taken(registry: RunningRegistry) -> None:
    read = await register(registry)
    mine = await update(registry, Project(name=read.name, etag=read.etag, tags=["mine"]))
    theirs = update(registry, Project(name=read.name, etag=read.etag, tags=["theirs"]))
    await refusal(theirs, CODE.ABORTED, "ETAG_MISMATCH", resource=read.name, etag=mine.etag)
    remove = registry.projects.UnregisterProject(UnregisterProjectRequest(name=read.name, etag=read.etag))
    await refusal(remove, CODE.ABORTED, "ETAG_MISMATCH", resource=read.name, etag=mine.etag)
    assert await get(registry) == mine


async def test_concurrent_edits_with_etags_are_never_lost(registry: RunningRegistry) -> None:
    await register(registry, description="0")

    async def increment() -> None:
        while True:
            read = await get(registry)
            change = Project(name=read.name, etag=read.etag, description=str(int(read.description) + 1))
            try:
                await update(registry, change)
            except grpc.aio.AioRpcError as error:
                if error.code() is not CODE.ABORTED:
                    raise
            else:
                return

    await asyncio.gather(*(increment() for _ in range(8)))
    assert (await get(registry)).description == "8"


async def test_an_unregistered_project_is_gone_with_its_workers(registry: RunningRegistry) -> None:
    first = await register(registry)
    await beat(registry)
    request = UnregisterProjectRequest(name=first.name, etag=first.etag)
    await registry.projects.UnregisterProject(request)
    await refusal(get(registry), CODE.NOT_FOUND, "PROJECT_NOT_FOUND", project=first.name)
    registry.clock.advance(timedelta(seconds=1))
    second = await register(registry)
    assert second.presence == Presence()
    assert second.etag != first.etag


# Repeats.


async def test_a_repeated_request_gets_its_first_answer(registry: RunningRegistry) -> None:
    ids = [str(uuid4()) for _ in range(3)]
    register_request = RegisterProjectRequest(
        project_id="web", project=Project(tags=["x"]), request_id=ids[0]
    )
    registered = await registry.projects.RegisterProject(register_request)
    update_request = UpdateProjectRequest(project=Project(name="projects/web", tags=["y"]), request_id=ids[1])
    updated = await registry.projects.UpdateProject(update_request)
    remove_request = UnregisterProjectRequest(name="projects/web", request_id=ids[2])
    removed = await registry.projects.UnregisterProject(remove_request)
    await registry.restart()
    assert await registry.projects.RegisterProject(register_request) == registered
    assert await registry.projects.UpdateProject(update_request) == updated
    assert await registry.projects.UnregisterProject(remove_request) == removed
    await refusal(get(registry), CODE.NOT_FOUND, "PROJECT_NOT_FOUND", project="projects/web")


async def test_a_request_id_with_other_content_is_refused(registry: RunningRegistry) -> None:
    request_id = str(uuid4())
    request = RegisterProjectRequest(project_id="web", project=Project(), request_id=request_id)
    await registry.projects.RegisterProject(request)
    request.project.tags.append("other")
    conflict = (CODE.ALREADY_EXISTS, "IDEMPOTENCY_CONFLICT")
    call = registry.projects.RegisterProject(request)
    await refusal(call, *conflict, request_id=request_id, method="RegisterProject")
    other = registry.projects.UnregisterProject(
        UnregisterProjectRequest(name="projects/web", request_id=request_id)
    )
    await refusal(other, *conflict, request_id=request_id, method="UnregisterProject")


async def test_a_refused_request_may_be_repeated_with_its_id(registry: RunningRegistry) -> None:
    request = UpdateProjectRequest(project=Project(name="projects/web", tags=["x"]), request_id=str(uuid4()))
    missing = (CODE.NOT_FOUND, "PROJECT_NOT_FOUND")
    await refusal(registry.projects.UpdateProject(request), *missing, project="projects/web")
    await register(registry)
    assert list((await registry.projects.UpdateProject(request)).project.tags) == ["x"]


# Heartbeats.


async def test_the_first_heartbeat_makes_a_worker_known(registry: RunningRegistry) -> None:
    project = await register(registry)
    answer = await beat(registry, "Ann@desk")
    assert from_proto(answer.next_heartbeat) == timedelta(seconds=10)
    worker = answer.worker
    assert (worker.name, worker.slots, worker.live) == ("projects/web/workers/Ann@desk", 1, True)
    assert from_proto(worker.time_to_live) == timedelta(seconds=30)
    assert from_proto(worker.last_heartbeat_time) == registry.clock.now()
    listed = await registry.projects.ListWorkers(ListWorkersRequest(project="projects/web"))
    assert list(listed.workers) == [worker]
    after = await get(registry)
    assert after.presence == Presence(live_workers=1, slots=1)
    assert (after.etag, after.update_time) == (project.etag, project.update_time)


async def test_presence_sums_what_workers_say_last(registry: RunningRegistry) -> None:
    await register(registry)
    await register(registry, "other")
    await beat(registry, "w1", slots=4, running=1)
    await beat(registry, "w2", slots=2, running=2, labels={"model": "small"})
    await beat(registry, "w1", project="other", slots=9)
    assert (await get(registry)).presence == Presence(live_workers=2, slots=6, running=3)
    answer = await beat(registry, "w2", slots=2, running=0, labels={"battery": "low"})
    assert dict(answer.worker.labels) == {"battery": "low"}
    listed = await registry.projects.ListProjects(ListProjectsRequest())
    assert {project.name: project.presence.running for project in listed.projects} == {
        "projects/other": 0,
        "projects/web": 1,
    }


async def test_workers_are_listed_in_pages(registry: RunningRegistry) -> None:
    await register(registry)
    for worker in ("c", "a", "b"):
        await beat(registry, worker)
    request = ListWorkersRequest(project="projects/web", page_size=2)
    first = await registry.projects.ListWorkers(request)
    request.page_token = first.next_page_token
    second = await registry.projects.ListWorkers(request)
    names = [worker.name[-1] for page in (first, second) for worker in page.workers]
    assert (names, second.next_page_token) == (["a", "b", "c"], "")


async def test_a_heartbeat_must_name_its_worker(registry: RunningRegistry) -> None:
    call = registry.projects.Heartbeat(HeartbeatRequest(worker=Worker(slots=1)))
    assert (await violations(call)).keys() == {"worker.name"}
    long_lived = beat(registry, time_to_live=Duration(seconds=3601))
    assert (await violations(long_lived)).keys() == {"worker.time_to_live"}


async def test_everything_survives_a_restart(registry: RunningRegistry) -> None:
    project = await register(registry, **FULL)
    worker = (await beat(registry, slots=2, labels={"a": "b"})).worker
    await registry.restart()
    project.presence.MergeFrom(Presence(live_workers=1, slots=2))
    assert await get(registry) == project
    listed = await registry.projects.ListWorkers(ListWorkersRequest(project="projects/web"))
    assert list(listed.workers) == [worker]


async def test_workers_that_went_silent_while_the_registry_was_down_are_dead(
    registry: RunningRegistry,
) -> None:
    await register(registry)
    await beat(registry)
    await registry.stop()
    registry.clock.advance(timedelta(seconds=31))
    await registry.start()
    assert (await get(registry)).presence == Presence()
    listed = await registry.projects.ListWorkers(ListWorkersRequest(project="projects/web"))
    assert [worker.live for worker in listed.workers] == [False]
