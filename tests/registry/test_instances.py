"""InstanceService, but for watches: over real gRPC."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from hopper.registry.v1 import instance_pb2 as ipb
from hopper.registry.v1 import instance_service_pb2 as isvc
from hopper.registry.v1.instance_pb2 import Instance, InstanceConfig, RunSummary
from hopper.registry.v1.project_pb2 import Project
from hopper.registry.v1.project_service_pb2 import RegisterProjectRequest, UnregisterProjectRequest
from hopper_common.timestamps import from_proto
from tests.registry.harness import RunningRegistry, refusal, violations

CODE = grpc.StatusCode
ROOT = "instances/global"
STATE = ipb.Instance.State


async def register(registry: RunningRegistry, project_id: str) -> str:
    request = RegisterProjectRequest(project_id=project_id, project=Project())
    return (await registry.projects.RegisterProject(request)).project.name


async def create(
    registry: RunningRegistry,
    instance_id: str,
    scope: ipb.Scope.ValueType,
    parent: str = ROOT,
    **fields: Any,
) -> Instance:
    instance = Instance(scope=scope, parent=parent, **fields)
    request = isvc.CreateInstanceRequest(instance_id=instance_id, instance=instance)
    return (await registry.instances.CreateInstance(request)).instance


async def get(registry: RunningRegistry, name: str = ROOT) -> Instance:
    return (await registry.instances.GetInstance(isvc.GetInstanceRequest(name=name))).instance


async def state_of(registry: RunningRegistry, name: str) -> str:
    return STATE.Name((await get(registry, name)).state).removeprefix("STATE_")


async def start(registry: RunningRegistry, name: str) -> Instance:
    return (await registry.instances.StartInstance(isvc.StartInstanceRequest(name=name))).instance


async def pause(registry: RunningRegistry, name: str, reason: str = "") -> Instance:
    request = isvc.PauseInstanceRequest(name=name, reason=reason)
    return (await registry.instances.PauseInstance(request)).instance


async def resume(registry: RunningRegistry, name: str) -> Instance:
    return (await registry.instances.ResumeInstance(isvc.ResumeInstanceRequest(name=name))).instance


async def stop(registry: RunningRegistry, name: str, reason: str = "") -> Instance:
    request = isvc.StopInstanceRequest(name=name, reason=reason)
    return (await registry.instances.StopInstance(request)).instance


async def terminate(registry: RunningRegistry, name: str) -> Instance:
    request = isvc.TerminateInstanceRequest(name=name)
    return (await registry.instances.TerminateInstance(request)).instance


async def stopped(registry: RunningRegistry, name: str, **fields: Any) -> Instance:
    request = isvc.ReportInstanceRequest(name=name, state=STATE.STATE_STOPPED, **fields)
    return (await registry.instances.ReportInstance(request)).instance


async def failed(registry: RunningRegistry, name: str, reason: str = "disk died") -> Instance:
    request = isvc.ReportInstanceRequest(name=name, state=STATE.STATE_ERROR, reason=reason)
    return (await registry.instances.ReportInstance(request)).instance


async def update(registry: RunningRegistry, instance: Instance, *paths: str, **request: Any) -> Instance:
    mask = FieldMask(paths=paths) if paths else None
    answer = await registry.instances.UpdateInstance(
        isvc.UpdateInstanceRequest(instance=instance, update_mask=mask, **request)
    )
    return answer.instance


async def a_team(registry: RunningRegistry) -> str:
    """A running instance for a project."""
    await register(registry, "web")
    team = await create(registry, "team", ipb.SCOPE_PROJECT, project="projects/web")
    await start(registry, team.name)
    return team.name


async def a_run(registry: RunningRegistry, number: int = 1) -> str:
    """A running orchestration under `instances/team`."""
    run = await create(registry, f"run-{number}", ipb.SCOPE_ORCHESTRATION, "instances/team")
    await start(registry, run.name)
    return run.name


# The root.


async def test_the_root_runs_from_the_first_start(registry: RunningRegistry) -> None:
    root = await get(registry)
    assert (root.scope, root.parent, root.state) == (ipb.SCOPE_GLOBAL, "", STATE.STATE_RUNNING)
    await registry.restart()
    assert await get(registry) == root


async def test_the_root_is_not_stopped_or_terminated_but_may_pause(registry: RunningRegistry) -> None:
    wrong_state = (CODE.FAILED_PRECONDITION, "INSTANCE_WRONG_STATE")
    await refusal(stop(registry, ROOT), *wrong_state, instance=ROOT, state="RUNNING", verb="STOP")
    await refusal(terminate(registry, ROOT), *wrong_state, instance=ROOT, state="RUNNING", verb="TERMINATE")
    assert (await pause(registry, ROOT, "night")).state_reason == "night"
    await registry.restart()
    assert await state_of(registry, ROOT) == "PAUSED"
    resumed = await resume(registry, ROOT)
    assert (resumed.state, resumed.state_reason) == (STATE.STATE_RUNNING, "")


async def test_a_broken_root_can_be_started_again(registry: RunningRegistry) -> None:
    assert (await failed(registry, ROOT, "no disk")).state_reason == "no disk"
    assert (await start(registry, ROOT)).state == STATE.STATE_RUNNING


async def test_there_is_one_root(registry: RunningRegistry) -> None:
    another = create(registry, "top", ipb.SCOPE_GLOBAL, "")
    invalid = (CODE.FAILED_PRECONDITION, "INSTANCE_PARENT_INVALID")
    await refusal(another, *invalid, scope="GLOBAL", parent_scope="", allowed="")
    below = create(registry, "top", ipb.SCOPE_GLOBAL, ROOT)
    await refusal(below, *invalid, scope="GLOBAL", parent_scope="GLOBAL", allowed="")
    again = create(registry, "global", ipb.SCOPE_GLOBAL, "")
    await refusal(again, CODE.ALREADY_EXISTS, "INSTANCE_EXISTS", instance=ROOT)


# Creation.


async def test_a_created_instance_is_returned_as_stored(registry: RunningRegistry) -> None:
    await register(registry, "home")
    config = InstanceConfig(
        max_workers=3,
        complex_effort=Duration(seconds=60),
        members=["ann", "Bo@phone"],
        manual_accept=True,
        offer_timeout=Duration(seconds=90),
        peer="abc",
    )
    config.event_time.FromDatetime(datetime(2026, 12, 24, tzinfo=UTC))
    fields: dict[str, Any] = {"display_name": "Home", "project": "projects/home", "config": config}
    stored = await create(
        registry, "home", ipb.SCOPE_FAMILY, **fields, state=STATE.STATE_RUNNING, etag="x", state_reason="y"
    )
    expected = Instance(
        name="instances/home",
        parent=ROOT,
        scope=ipb.SCOPE_FAMILY,
        state=STATE.STATE_CREATED,
        etag=stored.etag,
        **fields,
    )
    expected.create_time.FromDatetime(registry.clock.now())
    expected.update_time.FromDatetime(registry.clock.now())
    assert stored == expected
    assert stored.etag not in ("", "x")
    assert await get(registry, stored.name) == stored


async def test_what_a_scope_needs_must_be_given(registry: RunningRegistry) -> None:
    assert await violations(create(registry, "x", ipb.SCOPE_UNSPECIFIED)) == {"instance.scope": "is required"}
    assert (await violations(create(registry, "x", ipb.SCOPE_EVENT, ""))).keys() == {"instance.parent"}
    assert (await violations(create(registry, "x", ipb.SCOPE_PROJECT))).keys() == {"instance.project"}
    assert (await violations(create(registry, "x", ipb.SCOPE_FAMILY))).keys() == {"instance.config.members"}
    two = InstanceConfig(members=["ann", "bo"])
    wrong = await violations(create(registry, "x", ipb.SCOPE_PERSONAL, config=two))
    assert wrong.keys() == {"instance.config.members"}
    run = create(registry, "x", ipb.SCOPE_ORCHESTRATION, project="projects/web")
    assert (await violations(run)).keys() == {"instance.project"}


async def test_an_instance_stands_only_where_its_scope_may(registry: RunningRegistry) -> None:
    await refusal(
        create(registry, "run", ipb.SCOPE_ORCHESTRATION),
        CODE.FAILED_PRECONDITION,
        "INSTANCE_PARENT_INVALID",
        scope="ORCHESTRATION",
        parent_scope="GLOBAL",
        allowed="EVENT, PROJECT",
    )


async def test_a_parent_must_be_another_that_exists_and_lives(registry: RunningRegistry) -> None:
    itself = create(registry, "x", ipb.SCOPE_EVENT, "instances/x")
    cycle = {"instance": "instances/x", "parent": "instances/x"}
    await refusal(itself, CODE.FAILED_PRECONDITION, "INSTANCE_CYCLE", **cycle)
    unknown = create(registry, "x", ipb.SCOPE_EVENT, "instances/none")
    await refusal(unknown, CODE.NOT_FOUND, "INSTANCE_NOT_FOUND", instance="instances/none")
    team = await create(registry, "fair", ipb.SCOPE_EVENT)
    await terminate(registry, team.name)
    await refusal(
        create(registry, "x", ipb.SCOPE_ORCHESTRATION, team.name),
        CODE.FAILED_PRECONDITION,
        "INSTANCE_WRONG_STATE",
        instance=team.name,
        state="TERMINATED",
        verb="CREATE",
    )


async def test_an_id_and_a_project_have_one_instance(registry: RunningRegistry) -> None:
    team = await a_team(registry)
    exists = (CODE.ALREADY_EXISTS, "INSTANCE_EXISTS")
    await refusal(create(registry, "team", ipb.SCOPE_EVENT), *exists, instance=team)
    again = create(registry, "team2", ipb.SCOPE_PROJECT, project="projects/web")
    await refusal(again, *exists, instance=team)
    missing = create(registry, "x", ipb.SCOPE_PROJECT, project="projects/none")
    await refusal(missing, CODE.NOT_FOUND, "PROJECT_NOT_FOUND", project="projects/none")


async def test_a_terminated_instance_leaves_its_project_to_the_next(registry: RunningRegistry) -> None:
    team = await a_team(registry)
    await stop(registry, team)
    await stopped(registry, team)
    await terminate(registry, team)
    assert (await create(registry, "team2", ipb.SCOPE_PROJECT, project="projects/web")).project
    assert (await get(registry, team)).project == "projects/web"


async def test_an_instance_keeps_the_name_of_a_project_that_went(registry: RunningRegistry) -> None:
    team = await a_team(registry)
    await registry.projects.UnregisterProject(UnregisterProjectRequest(name="projects/web"))
    assert (await get(registry, team)).project == "projects/web"
    assert (await update(registry, Instance(name=team, display_name="Team"))).display_name == "Team"


async def test_a_missing_instance_is_not_found(registry: RunningRegistry) -> None:
    name = "instances/none"
    calls: list[Callable[[RunningRegistry, str], Awaitable[Instance]]] = [
        get,
        start,
        pause,
        resume,
        stop,
        terminate,
        stopped,
        failed,
        lambda registry, name: update(registry, Instance(name=name, display_name="x")),
    ]
    for call in calls:
        await refusal(call(registry, name), CODE.NOT_FOUND, "INSTANCE_NOT_FOUND", instance=name)
    tree = registry.instances.GetTree(isvc.GetTreeRequest(root=name))
    await refusal(tree, CODE.NOT_FOUND, "INSTANCE_NOT_FOUND", instance=name)


# The verbs.


async def test_an_instance_lives_through_its_life(registry: RunningRegistry) -> None:
    team = await a_team(registry)
    etags = {(await get(registry, team)).etag}
    for verb, state, reason in (
        (pause(registry, team, "lunch"), STATE.STATE_PAUSED, "lunch"),
        (resume(registry, team), STATE.STATE_RUNNING, ""),
        (failed(registry, team, "disk died"), STATE.STATE_ERROR, "disk died"),
        (start(registry, team), STATE.STATE_RUNNING, ""),
        (stop(registry, team, "holidays"), STATE.STATE_STOPPING, "holidays"),
        (stopped(registry, team), STATE.STATE_STOPPED, "holidays"),
        (start(registry, team), STATE.STATE_RUNNING, ""),
        (stop(registry, team), STATE.STATE_STOPPING, ""),
        (stopped(registry, team, reason="all done"), STATE.STATE_STOPPED, "all done"),
        (terminate(registry, team), STATE.STATE_TERMINATED, ""),
    ):
        registry.clock.advance(timedelta(seconds=1))
        instance = await verb
        assert (instance.state, instance.state_reason) == (state, reason)
        assert from_proto(instance.update_time) == registry.clock.now()
        assert instance.etag not in etags
        etags.add(instance.etag)


# The whole table is gone through in test_model; here, that each verb is the one it says.
@pytest.mark.parametrize(
    ("call", "verb", "state"),
    [
        (start, "START", "RUNNING"),
        (resume, "RESUME", "RUNNING"),
        (terminate, "TERMINATE", "RUNNING"),
        (stopped, "FINISH", "RUNNING"),
        (pause, "PAUSE", "STOPPING"),
        (stop, "STOP", "STOPPING"),
        (failed, "FAIL", "CREATED"),
    ],
)
async def test_a_verb_in_the_wrong_state_is_refused(
    registry: RunningRegistry,
    call: Callable[[RunningRegistry, str], Awaitable[Instance]],
    verb: str,
    state: str,
) -> None:
    name = (await create(registry, "fair", ipb.SCOPE_EVENT)).name
    if state != "CREATED":
        await start(registry, name)
    if state == "STOPPING":
        await stop(registry, name)
    before = await get(registry, name)
    wrong_state = (CODE.FAILED_PRECONDITION, "INSTANCE_WRONG_STATE")
    await refusal(call(registry, name), *wrong_state, instance=name, state=state, verb=verb)
    assert await get(registry, name) == before


async def test_an_instance_starts_only_under_a_running_parent(registry: RunningRegistry) -> None:
    team = await a_team(registry)
    run = await create(registry, "run", ipb.SCOPE_ORCHESTRATION, team)
    await pause(registry, team)
    await refusal(
        start(registry, run.name),
        CODE.FAILED_PRECONDITION,
        "PARENT_NOT_RUNNING",
        instance=run.name,
        parent=team,
        state="PAUSED",
    )
    assert await state_of(registry, run.name) == "CREATED"
    await resume(registry, team)
    assert (await start(registry, run.name)).state == STATE.STATE_RUNNING


async def test_a_stop_reaches_everything_below_that_is_up(registry: RunningRegistry) -> None:
    team = await a_team(registry)
    fair = (await create(registry, "fair", ipb.SCOPE_EVENT, team)).name
    await start(registry, fair)
    for number in range(5):
        parent = fair if number % 2 else team
        await create(registry, f"run-{number}", ipb.SCOPE_ORCHESTRATION, parent)
    for number in range(4):
        await start(registry, f"instances/run-{number}")
    await pause(registry, "instances/run-1")
    await failed(registry, "instances/run-2")
    await stop(registry, "instances/run-3")
    await stopped(registry, "instances/run-3")

    await stop(registry, team, "office closes")
    names = [team, fair, *(f"instances/run-{number}" for number in range(5))]
    assert [await state_of(registry, name) for name in names] == [
        *["STOPPING"] * 5,
        "STOPPED",
        "CREATED",
    ]
    assert (await get(registry, "instances/run-1")).state_reason == "office closes"
    assert await state_of(registry, ROOT) == "RUNNING"


async def test_an_instance_with_children_is_terminated_last(registry: RunningRegistry) -> None:
    fair = (await create(registry, "fair", ipb.SCOPE_EVENT)).name
    runs = [(await create(registry, f"r{n}", ipb.SCOPE_ORCHESTRATION, fair)).name for n in range(7)]
    error = await refusal(
        terminate(registry, fair),
        CODE.FAILED_PRECONDITION,
        "INSTANCE_HAS_CHILDREN",
        instance=fair,
        children=", ".join(runs[:5]),
    )
    assert "7" in error.message
    for run in runs:
        await terminate(registry, run)
    assert (await terminate(registry, fair)).state == STATE.STATE_TERMINATED


# Reports.


async def test_an_ended_run_is_archived_into_its_parent(registry: RunningRegistry) -> None:
    team = await a_team(registry)
    for number in (1, 2):
        run = await a_run(registry, number)
        await stop(registry, run)
        registry.clock.advance(timedelta(hours=1))
        summary = RunSummary(succeeded=number, failed=3, returned=4) if number == 1 else None
        assert (await stopped(registry, run, run=summary)).state == STATE.STATE_STOPPED
    newest, oldest = (await get(registry, team)).archive
    assert (newest.instance, newest.succeeded) == ("instances/run-2", 0)
    assert (oldest.instance, oldest.succeeded, oldest.failed, oldest.returned) == ("instances/run-1", 1, 3, 4)
    assert from_proto(newest.end_time) == registry.clock.now()
    assert from_proto(oldest.end_time) == registry.clock.now() - timedelta(hours=1)


async def test_only_an_orchestrations_run_is_archived(registry: RunningRegistry) -> None:
    team = await a_team(registry)
    root = await get(registry)
    await stop(registry, team)
    await stopped(registry, team, run=RunSummary(instance=team, succeeded=1))
    assert await get(registry) == root


async def test_a_failed_run_is_not_archived(registry: RunningRegistry) -> None:
    team = await a_team(registry)
    await failed(registry, await a_run(registry))
    assert not (await get(registry, team)).archive


async def test_a_report_must_make_sense(registry: RunningRegistry) -> None:
    team = await a_team(registry)
    run = await a_run(registry)

    async def wrong(name: str, **fields: Any) -> set[str]:
        call = registry.instances.ReportInstance(isvc.ReportInstanceRequest(name=name, **fields))
        return set(await violations(call))

    assert await wrong(run) == {"state"}
    assert await wrong(run, state=STATE.STATE_RUNNING) == {"state"}
    assert await wrong(run, state=STATE.STATE_ERROR, run=RunSummary()) == {"reason", "run"}
    await stop(registry, team)
    other = RunSummary(instance="instances/other")
    assert await wrong(run, state=STATE.STATE_STOPPED, run=other) == {"run.instance"}
    assert await state_of(registry, run) == "STOPPING"


# Updates.


async def test_an_update_changes_what_it_names(registry: RunningRegistry) -> None:
    team = await a_team(registry)
    config = InstanceConfig(manual_accept=True, offer_timeout=Duration(seconds=60))
    first = await update(registry, Instance(name=team, config=config))
    assert (first.config, first.project) == (config, "projects/web")
    change = Instance(name=team, config=InstanceConfig(max_workers=2), display_name="not asked for")
    second = await update(registry, change, "config.max_workers", "config.offer_timeout")
    assert second.config == InstanceConfig(manual_accept=True, max_workers=2)
    assert second.display_name == "team"
    assert second.etag != first.etag
    assert await update(registry, second) == second == await get(registry, team)


@pytest.mark.parametrize("path", ["nonsense", "parent", "scope", "state", "archive", "config.bogus"])
async def test_a_mask_with_a_wrong_path_is_refused(registry: RunningRegistry, path: str) -> None:
    wrong = await violations(update(registry, Instance(name=ROOT, display_name="x"), path))
    assert wrong.keys() == {"update_mask"}
    assert path in wrong["update_mask"]


async def test_an_update_keeps_the_rules_of_the_scope(registry: RunningRegistry) -> None:
    team = await a_team(registry)
    await register(registry, "other")
    home = InstanceConfig(members=["ann"])
    await create(registry, "ann", ipb.SCOPE_PERSONAL, config=home, project="projects/other")
    no_member = update(registry, Instance(name="instances/ann"), "config.members")
    assert (await violations(no_member)).keys() == {"instance.config.members"}
    no_project = update(registry, Instance(name=team), "project")
    assert (await violations(no_project)).keys() == {"instance.project"}
    assert (await violations(update(registry, Instance(display_name="x")))).keys() == {"instance.name"}
    taken = update(registry, Instance(name=team, project="projects/other"))
    await refusal(taken, CODE.ALREADY_EXISTS, "INSTANCE_EXISTS", instance="instances/ann")
    missing = update(registry, Instance(name=team, project="projects/none"))
    await refusal(missing, CODE.NOT_FOUND, "PROJECT_NOT_FOUND", project="projects/none")
    await update(registry, Instance(name="instances/ann"), "project")
    assert (await update(registry, Instance(name=team, project="projects/other"))).project


async def test_an_edit_of_a_stale_read_is_refused(registry: RunningRegistry) -> None:
    read = await get(registry)
    paused = await pause(registry, ROOT)
    edit = update(registry, Instance(name=ROOT, etag=read.etag, display_name="Top"))
    await refusal(edit, CODE.ABORTED, "ETAG_MISMATCH", resource=ROOT, etag=paused.etag)
    fresh = await update(registry, Instance(name=ROOT, etag=paused.etag, display_name="Top"))
    assert fresh.display_name == "Top"


# Lists and trees.


async def test_instances_are_listed_by_id_in_pages(registry: RunningRegistry) -> None:
    team = await a_team(registry)
    for number in range(3):
        await create(registry, f"run-{number}", ipb.SCOPE_ORCHESTRATION, team)

    async def ids(**fields: Any) -> list[list[str]]:
        request = isvc.ListInstancesRequest(**fields)
        pages: list[list[str]] = []
        while not pages or request.page_token:
            answer = await registry.instances.ListInstances(request)
            pages.append([instance.name.removeprefix("instances/") for instance in answer.instances])
            request.page_token = answer.next_page_token
        return pages

    assert await ids(page_size=2) == [["global", "run-0"], ["run-1", "run-2"], ["team"]]
    assert await ids(parent=team, page_size=2) == [["run-0", "run-1"], ["run-2"]]
    assert await ids(parent="instances/run-0") == [[]]
    first = await registry.instances.ListInstances(isvc.ListInstancesRequest(page_size=1))
    foreign = isvc.ListInstancesRequest(page_token=first.next_page_token, parent=team)
    call = registry.instances.ListInstances(foreign)
    await refusal(call, CODE.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


def drawn(node: isvc.TreeNode) -> Any:
    return {node.instance.name.removeprefix("instances/"): [drawn(child) for child in node.children]}


async def test_a_tree_shows_who_stands_under_whom(registry: RunningRegistry) -> None:
    team = await a_team(registry)
    await create(registry, "fair", ipb.SCOPE_EVENT, team)
    for number in (2, 1):
        await create(registry, f"run-{number}", ipb.SCOPE_ORCHESTRATION, team)
    await create(registry, "run-3", ipb.SCOPE_ORCHESTRATION, "instances/fair")
    await terminate(registry, "instances/run-1")

    async def tree(**fields: Any) -> Any:
        return drawn((await registry.instances.GetTree(isvc.GetTreeRequest(**fields))).root)

    fair: dict[str, Any] = {"fair": [{"run-3": []}]}
    assert await tree() == {"global": [{"team": [fair, {"run-2": []}]}]}
    assert await tree(root=team, show_terminated=True) == {"team": [fair, {"run-1": []}, {"run-2": []}]}
    assert await tree(root="instances/fair") == fair
    assert await tree(root="instances/run-1") == {"run-1": []}


# Repeats.


async def test_a_repeated_request_gets_its_first_answer(registry: RunningRegistry) -> None:
    def fresh() -> str:
        return str(uuid4())

    calls = registry.instances
    event = Instance(scope=ipb.SCOPE_EVENT, parent=ROOT)
    name = "instances/fair"
    requests: list[tuple[str, Any]] = [
        (
            "CreateInstance",
            isvc.CreateInstanceRequest(instance_id="fair", instance=event, request_id=fresh()),
        ),
        (
            "UpdateInstance",
            isvc.UpdateInstanceRequest(instance=Instance(name=name, display_name="Fair"), request_id=fresh()),
        ),
        ("StartInstance", isvc.StartInstanceRequest(name=name, request_id=fresh())),
        ("PauseInstance", isvc.PauseInstanceRequest(name=name, request_id=fresh())),
        ("ResumeInstance", isvc.ResumeInstanceRequest(name=name, request_id=fresh())),
        ("StopInstance", isvc.StopInstanceRequest(name=name, request_id=fresh())),
        (
            "ReportInstance",
            isvc.ReportInstanceRequest(name=name, state=STATE.STATE_STOPPED, request_id=fresh()),
        ),
        ("TerminateInstance", isvc.TerminateInstanceRequest(name=name, request_id=fresh())),
    ]
    answers = [await getattr(calls, method)(request) for method, request in requests]
    last = await get(registry, name)
    assert last.state == STATE.STATE_TERMINATED
    repeats = [await getattr(calls, method)(request) for method, request in requests]
    assert repeats == answers
    assert await get(registry, name) == last

    for method, request in requests:
        other = type(request)()
        other.CopyFrom(request)
        if method in ("CreateInstance", "UpdateInstance"):
            other.instance.display_name = "Other"
        else:
            other.name = ROOT
        await refusal(
            getattr(calls, method)(other),
            CODE.ALREADY_EXISTS,
            "IDEMPOTENCY_CONFLICT",
            request_id=request.request_id,
            method=method,
        )


async def test_of_many_who_start_an_instance_one_does(registry: RunningRegistry) -> None:
    name = (await create(registry, "fair", ipb.SCOPE_EVENT)).name
    outcomes = await asyncio.gather(*(start(registry, name) for _ in range(8)), return_exceptions=True)
    assert len([outcome for outcome in outcomes if isinstance(outcome, Instance)]) == 1
    codes = [outcome.code() for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert codes == [CODE.FAILED_PRECONDITION] * 7
