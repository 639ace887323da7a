"""TaskService over real gRPC: every call, every refusal, and what a repeat gets."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as svc
from hopper.router.v1 import work_service_pb2 as work_svc
from hopper.router.v1.decision_pb2 import Decision
from hopper_common.errors import StorageFull
from hopper_common.postgres import PostgresDatabase
from hopper_router.model import Instance, InstanceState, Project, Scope
from hopper_router.queue_counts import count_open
from tests.router.harness import (
    HOUR,
    MINUTE,
    NOW,
    ROOT,
    SECOND,
    Code,
    Reason,
    Router,
    State,
    ref,
    refusal,
    violations,
)

TICK = timedelta(microseconds=1)


def clocks(**times: Any) -> pb.Clocks:
    """Clocks: instants as datetimes, lengths as timedeltas."""
    made = pb.Clocks()
    for name, value in times.items():
        field = getattr(made, name)
        if isinstance(value, timedelta):
            field.FromTimedelta(value)
        else:
            field.FromDatetime(value)
    return made


async def block(router: Router, task: pb.Task, **hold: Any) -> pb.Task:
    request = svc.BlockTaskRequest(name=task.name, hold=pb.Hold(**hold))
    return (await router.tasks.BlockTask(request)).task


async def unblock(router: Router, task: pb.Task) -> pb.Task:
    return (await router.tasks.UnblockTask(svc.UnblockTaskRequest(name=task.name))).task


async def answer(router: Router, task: pb.Task, text: str, by: str = "cleo", **fields: Any) -> pb.Task:
    request = svc.AnswerTaskRequest(name=task.name, answer=text, answered_by=by, **fields)
    return (await router.tasks.AnswerTask(request)).task


async def search(router: Router, query: str, **fields: Any) -> list[str]:
    found = await router.tasks.SearchTasks(svc.SearchTasksRequest(query=query, **fields))
    return [task.spec.title for task in found.tasks]


async def batch(router: Router, *items: svc.SubmitTasksItem, parent: str = ROOT, **fields: Any) -> Any:
    request = svc.SubmitTasksRequest(parent=parent, items=items, **fields)
    return list((await router.tasks.SubmitTasks(request)).results)


def item(title: str, *after: int, **fields: Any) -> svc.SubmitTasksItem:
    return svc.SubmitTasksItem(spec=pb.TaskSpec(title=title, **fields), after=after)


# ---------------------------------------------------------------- submitting


async def test_a_task_is_taken_in_and_placed(router: Router) -> None:
    web = router.registry.project("web", "html")
    answer = await router.submitted(
        "fix the page", required_capabilities=["html"], payload=b"p", description="all"
    )
    task, decision = answer.task, answer.decision
    assert task.name.startswith(f"{ROOT}/tasks/")
    assert (task.state, task.project, task.decision) == (State.STATE_QUEUED, web, decision.name)
    assert (task.spec.payload, task.spec.description) == (b"p", "all")
    assert (task.spec.requester, task.spec.priority, task.spec.retry.max_attempts) == ("anonymous", 50, 3)
    assert (task.wait.reason, list(task.wait.on)) == (Reason.REASON_WORKER, [web])
    assert (decision.outcome, decision.project, decision.task, decision.instance) == (
        Decision.OUTCOME_ROUTED,
        web,
        task.name,
        ROOT,
    )
    assert task.create_time.ToDatetime(NOW.tzinfo) == NOW
    basic = await router.get(task)
    assert (basic.spec.payload, basic.spec.description, basic.generation) == (b"", "", task.generation)
    assert await router.get(task, pb.TASK_VIEW_FULL) == task


async def test_what_nobody_may_take_is_accepted_and_says_why(router: Router) -> None:
    router.registry.project("web", "html")
    router.registry.project("app", "html", paused=True)
    task = await router.submit(required_capabilities=["rust"])
    assert (task.state, task.wait.reason) == (State.STATE_SUBMITTED, Reason.REASON_NO_ELIGIBLE_EXECUTOR)
    assert dict(task.wait.exclusions) == {"capability": 1, "project-paused": 1}
    assert task.project == ""
    router.registry.project("crab", "rust")
    await router.follow()
    assert (await router.get(task)).project == "projects/crab"


async def test_the_same_request_gets_the_same_answer(router: Router) -> None:
    router.registry.project("web")
    once = str(uuid4())
    request = svc.SubmitTaskRequest(parent=ROOT, spec=pb.TaskSpec(title="a"), request_id=once)
    first = await router.tasks.SubmitTask(request)
    await router.cancel(first.task)
    assert await router.tasks.SubmitTask(request) == first  # the answer of that time, whatever came since
    assert len(await router.found(states=[State.STATE_CANCELLED])) == 1
    other = svc.SubmitTaskRequest(parent=ROOT, spec=pb.TaskSpec(title="b"), request_id=once)
    await refusal(
        router.tasks.SubmitTask(other),
        Code.ALREADY_EXISTS,
        "IDEMPOTENCY_CONFLICT",
        request_id=once,
        method="SubmitTask",
    )
    await refusal(
        router.tasks.CancelTask(svc.CancelTaskRequest(name=first.task.name, request_id=once)),
        Code.ALREADY_EXISTS,
        "IDEMPOTENCY_CONFLICT",
        request_id=once,
        method="CancelTask",
    )


async def test_the_same_request_at_the_same_time_makes_one_task(router: Router) -> None:
    router.registry.project("web")
    request = svc.SubmitTaskRequest(parent=ROOT, spec=pb.TaskSpec(title="a"), request_id=str(uuid4()))
    answers = await asyncio.gather(*(router.tasks.SubmitTask(request) for _ in range(20)))
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
    assert len(await router.found()) == 1


async def test_a_refused_request_may_be_sent_again(router: Router) -> None:
    """A refusal is not remembered: what was missing may have come."""
    request = svc.SubmitTaskRequest(
        parent=ROOT, spec=pb.TaskSpec(title="a", project="projects/web"), request_id=str(uuid4())
    )
    await refusal(
        router.tasks.SubmitTask(request), Code.NOT_FOUND, "PROJECT_NOT_FOUND", project="projects/web"
    )
    router.registry.project("web")
    assert (await router.tasks.SubmitTask(request)).task.project == "projects/web"


async def test_a_repeat_after_a_restart_gets_the_same_answer(router: Router) -> None:
    router.registry.project("web")
    request = svc.SubmitTaskRequest(parent=ROOT, spec=pb.TaskSpec(title="a"), request_id=str(uuid4()))
    first = await router.tasks.SubmitTask(request)
    await router.stop()
    await router.start()
    assert await router.tasks.SubmitTask(request) == first


async def test_a_pin_is_obeyed_and_filtered(router: Router) -> None:
    router.registry.project("web", "html")
    app = router.registry.project("app")
    pinned = await router.submitted("to app", project=app)
    assert (pinned.task.project, pinned.decision.strategy) == (app, "pin")
    unable = await router.submit("to app", project=app, required_capabilities=["html"])
    assert dict(unable.wait.exclusions) == {"capability": 1, "pin": 1}


async def test_a_pin_to_what_was_just_registered_is_found_by_asking(router: Router) -> None:
    router.registry.hidden["projects/new"] = Project("projects/new")
    assert (await router.submit(project="projects/new")).project == "projects/new"
    assert router.registry.asked == ["projects/new"]
    await router.submit(project="projects/new")
    assert router.registry.asked == ["projects/new"]


async def test_an_instance_just_created_is_found_by_asking(router: Router) -> None:
    name = "instances/desk"
    router.registry.hidden[name] = Instance(name, Scope.PERSONAL, InstanceState.RUNNING, parent=ROOT)
    assert (await router.submit(parent=name)).state == State.STATE_QUEUED


async def test_what_a_submission_names_must_exist(router: Router) -> None:
    ghost = f"{ROOT}/tasks/none"
    await refusal(
        router.submit(parent="instances/none"),
        Code.NOT_FOUND,
        "INSTANCE_NOT_FOUND",
        instance="instances/none",
    )
    await refusal(
        router.submit(project="projects/none"), Code.NOT_FOUND, "PROJECT_NOT_FOUND", project="projects/none"
    )
    await refusal(router.submit(dependencies=[ghost]), Code.NOT_FOUND, "TASK_NOT_FOUND", task=ghost)
    assert await router.found() == []


@pytest.mark.parametrize("state", list(InstanceState))
async def test_which_instances_take_tasks(router: Router, state: InstanceState) -> None:
    desk = router.registry.instance("desk", Scope.PERSONAL, state=state)
    if state in (InstanceState.STARTING, InstanceState.RUNNING, InstanceState.PAUSED):
        assert (await router.submit(parent=desk)).state == State.STATE_QUEUED
    else:
        await refusal(
            router.submit(parent=desk),
            Code.FAILED_PRECONDITION,
            "INSTANCE_NOT_RUNNING",
            instance=desk,
            state=state.value,
        )


async def test_limits_are_checked_before_anything_is_done(router: Router) -> None:
    assert set(await violations(router.submit(title=""))) == {"spec.title"}
    assert set(await violations(router.submit(title="x" * 301, tags=["a b"]))) == {
        "spec.title",
        "spec.tags[0]",
    }
    assert set(await violations(router.submit(priority=101))) == {"spec.priority"}
    assert set(await violations(router.tasks.SubmitTask(svc.SubmitTaskRequest()))) == {"parent", "spec"}
    await refusal(
        router.submit(payload=b"x" * 65536, description="y" * 16384, labels={str(n): "z" for n in range(65)}),
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )
    assert await router.found() == []


# ---------------------------------------------------------------- batches


async def test_a_batch_takes_each_on_its_own(router: Router) -> None:
    router.registry.project("web")
    ghost = f"{ROOT}/tasks/none"
    results = await batch(
        router,
        item("a"),
        item("b", project="projects/none"),
        item("c", dependencies=[ghost]),
        item("d", 0),
        item("e", 1),
        item("f", 6),
        item("g", 3, 3, 0),
    )
    assert [result.WhichOneof("result") for result in results] == [
        *("task", "error", "error", "task", "error", "error", "task")
    ]
    errors = {
        n: (r.error.code, r.error.reason, dict(r.error.metadata))
        for n, r in enumerate(results)
        if r.error.reason
    }
    assert errors == {
        1: (5, "PROJECT_NOT_FOUND", {"project": "projects/none"}),
        2: (5, "TASK_NOT_FOUND", {"task": ghost}),
        4: (3, "INVALID_REQUEST", {}),
        5: (3, "INVALID_REQUEST", {}),
    }
    assert list(results[3].task.spec.dependencies) == [results[0].task.name]
    assert list(results[6].task.spec.dependencies) == [results[3].task.name, results[0].task.name]
    assert len(await router.found()) == 3
    everything = await router.found(states=list(State.values())[1:])
    assert {task.spec.title for task in everything} == {"a", "d", "g"}


async def test_a_batch_runs_in_the_order_of_its_dependencies(router: Router) -> None:
    web = router.registry.project("web")
    await batch(router, item("a"), item("b", 0), item("c", 0, 1))
    order = []
    while claimed := await router.claim(web, max_tasks=10):
        order.append([task.spec.title for task in claimed])
        await router.complete(*claimed)
    assert order == [["a"], ["b"], ["c"]]


async def test_a_repeated_batch_gets_the_same_answer(router: Router) -> None:
    router.registry.project("web")
    once = str(uuid4())
    items = [item("a"), item("b", project="projects/none"), item("c", 0)]
    first = await batch(router, *items, request_id=once)
    assert await batch(router, *items, request_id=once) == first
    assert len(await router.found()) == 2


async def test_a_batch_keeps_to_the_room_a_project_has(router: Router) -> None:
    """Within one batch, too, a project that has all it can hold is left out."""
    small = router.registry.project("small", "x", max_open=3)
    results = await batch(router, *(item(str(n), required_capabilities=["x"]) for n in range(10)))
    placed = [result.task for result in results if result.task.project == small]
    assert len(placed) == 3
    waiting = [result.task for result in results if result.task.state == State.STATE_SUBMITTED]
    assert {dict(task.wait.exclusions)["capacity"] for task in waiting} == {1}
    assert len(waiting) == 7


async def test_room_that_is_made_is_filled_and_not_overfilled(router: Router) -> None:
    small = router.registry.project("small", "x", max_open=2)
    for _ in range(8):
        await router.submit(required_capabilities=["x"])
    await router.complete(await router.claim_one(small))
    await router.follow()
    states = [task.state for task in await router.found()]
    assert (states.count(State.STATE_QUEUED), states.count(State.STATE_SUBMITTED)) == (2, 5)


async def test_a_batch_is_spread_over_equal_orchestrations(router: Router) -> None:
    _, team = router.registry.team("web", "html")
    runs = [router.registry.instance(f"run{n}", Scope.ORCHESTRATION, team) for n in range(4)]
    await batch(router, *(item(str(n), estimated_effort=9 * HOUR) for n in range(40)), parent=team)
    assert [len(await router.found(parent=run)) for run in runs] == [10, 10, 10, 10]


# ---------------------------------------------------------------- looking up


async def test_lists_are_newest_first_in_pages_without_a_gap(router: Router) -> None:
    router.registry.project("web")
    for number in range(25):
        await router.submit(f"t{number}")
    titles: list[str] = []
    token = ""
    while True:
        page = await router.tasks.ListTasks(svc.ListTasksRequest(page_size=10, page_token=token))
        titles += [task.spec.title for task in page.tasks]
        await router.submit("newer")  # what comes meanwhile does not move the pages
        token = page.next_page_token
        if not token:
            break
    assert titles == [f"t{number}" for number in reversed(range(25))]


async def test_a_page_token_is_bound_to_its_list(router: Router) -> None:
    router.registry.project("web")
    for _ in range(3):
        await router.submit()
    page = await router.tasks.ListTasks(svc.ListTasksRequest(page_size=2))
    for wrong in (
        svc.ListTasksRequest(page_size=2, page_token=page.next_page_token, requester="ann"),
        svc.ListTasksRequest(page_token="nonsense"),
    ):
        await refusal(router.tasks.ListTasks(wrong), Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


async def test_lists_are_filtered(router: Router) -> None:
    web, app = router.registry.project("web", "html"), router.registry.project("app", "swift")
    desk = router.registry.instance("desk", Scope.PERSONAL)
    a = await router.submit("a", required_capabilities=["html"], tags=["type:Bug", "x"], requester="ann")
    b = await router.submit("b", required_capabilities=["swift"], tags=["type:Bugs"])
    c = await router.submit("c", parent=desk, tags=["x"])
    d = await router.submit("d", required_capabilities=["html"])
    await router.cancel(d)

    async def titles(**fields: Any) -> list[str]:
        return sorted(task.spec.title for task in await router.found(**fields))

    assert await titles() == ["a", "b", "c"]
    assert await titles(parent=desk) == ["c"]
    assert await titles(project=web) == ["a"]
    assert await titles(project=app) == ["b"]
    assert await titles(tag="type:Bug") == ["a"]
    assert await titles(tag="x") == ["a", "c"]
    assert await titles(requester="ann") == ["a"]
    assert await titles(states=[State.STATE_CANCELLED]) == ["d"]
    assert await titles(states=[State.STATE_CANCELLED, State.STATE_QUEUED]) == ["a", "b", "c", "d"]
    assert set(await violations(router.found(states=[State.STATE_UNSPECIFIED]))) == {"states"}
    assert {a.state, b.state, c.state} == {State.STATE_QUEUED}


async def test_a_task_is_found_by_the_end_of_its_id(router: Router) -> None:
    tasks = [await router.submit(str(n)) for n in range(3)]
    await router.cancel(tasks[1])
    ids = [task.name.rpartition("/")[2] for task in tasks]
    for length in (4, 5, 6, 7, 12, 26):
        for task, id_ in zip(tasks, ids, strict=True):
            found = [each.name for each in await router.found(id_suffix=id_[-length:])]
            assert found == sorted((t.name for t in tasks if t.name.endswith(id_[-length:])), reverse=True)
            assert task.name in found
    assert await router.found(id_suffix="0000") == []
    assert set(await violations(router.found(id_suffix=ids[0][-3:]))) == {"id_suffix"}


async def test_search_finds_words_in_title_description_and_tags(router: Router) -> None:
    desk = router.registry.instance("desk", Scope.PERSONAL)
    await router.submit("Fix the login page", description="users cannot sign in")
    await router.submit("Sign the contract", parent=desk, tags=["legal"])
    gone = await router.submit("Old login trouble")
    await router.cancel(gone)
    assert await search(router, "login") == ["Fix the login page"]
    assert await search(router, "login", include_finished=True) == ["Old login trouble", "Fix the login page"]
    assert await search(router, "sign in") == ["Fix the login page"]
    assert sorted(await search(router, "sign")) == ["Fix the login page", "Sign the contract"]
    assert await search(router, "sign", parent=desk) == ["Sign the contract"]
    assert await search(router, "legal") == ["Sign the contract"]
    assert await search(router, "contr") == ["Sign the contract"]  # the last word may be unfinished
    assert await search(router, "fixing pages") == ["Fix the login page"]
    for query in ('"', "AND", "title:login", "login OR", "NEAR(a b)", "*", "-- ;", "login) --"):
        if query.strip('"*- ;'):
            assert isinstance(await search(router, query), list)
        else:
            assert set(await violations(search(router, query))) == {"query"}


async def test_search_sees_open_tasks_behind_any_number_of_finished_ones(router: Router) -> None:
    for _ in range(3):
        done = await batch(router, *(item("login login") for _ in range(150)))
        for result in done:
            await router.cancel(result.task)
    await router.submit("something about the login, among a great many other words that are in this title")
    assert len(await search(router, "login")) == 1


async def test_search_follows_a_change_of_title(router: Router) -> None:
    task = await router.submit("red")
    await router.update(task, title="blue")
    assert await search(router, "red") == []
    assert await search(router, "blue") == ["blue"]


async def test_every_call_that_names_a_task_says_when_there_is_none(router: Router) -> None:
    name = f"{ROOT}/tasks/none"
    ghost = pb.Task(name=name)
    calls: list[Any] = [
        lambda: router.get(name),
        lambda: router.cancel(name),
        lambda: block(router, ghost),
        lambda: unblock(router, ghost),
        lambda: answer(router, ghost, "x"),
        lambda: router.update(ghost, priority=1),
        lambda: router.tasks.ExplainTask(svc.ExplainTaskRequest(name=name)),
    ]
    for call in calls:
        await refusal(call(), Code.NOT_FOUND, "TASK_NOT_FOUND", task=name)
    real = await router.submit()
    elsewhere = real.name.replace(ROOT, "instances/other")
    await refusal(router.get(elsewhere), Code.NOT_FOUND, "TASK_NOT_FOUND", task=elsewhere)


# ---------------------------------------------------------------- dependencies


async def test_dependencies_are_enforced(router: Router) -> None:
    web = router.registry.project("web")
    first, second = await router.submit("first"), await router.submit("second")
    third = await router.submit("third", dependencies=[first.name, second.name, first.name])
    fourth = await router.submit("fourth", dependencies=[second.name], priority=100)
    assert (third.wait.reason, sorted(third.wait.on)) == (
        Reason.REASON_DEPENDENCY,
        sorted([first.name, second.name]),
    )
    claimed = await router.claim(web, max_tasks=10)
    assert {task.spec.title for task in claimed} == {"first", "second"}
    await refusal(
        router.claim(web, task=third.name),
        Code.FAILED_PRECONDITION,
        "TASK_NOT_READY",
        task=third.name,
        wait="DEPENDENCY",
    )
    by_title = {task.spec.title: task for task in claimed}
    await router.complete(by_title["second"])
    assert (await router.claim_one(web)).name == fourth.name
    assert list((await router.get(third)).wait.on) == [first.name]
    await router.complete(by_title["first"])
    assert (await router.claim_one(web)).name == third.name


@pytest.mark.parametrize("end", ["fail", "cancel"])
async def test_a_dependency_that_failed_is_named(router: Router, end: str) -> None:
    web = router.registry.project("web")
    first = await router.submit("first")
    after = await router.submit("after", dependencies=[first.name])
    claimed = await router.claim_one(web)
    await (router.fail(claimed, permanent=True) if end == "fail" else router.cancel(first))
    waiting = await router.get(after)
    assert (waiting.wait.reason, list(waiting.wait.on)) == (Reason.REASON_DEPENDENCY, [first.name])
    assert "ended without success" in waiting.wait.message
    assert await router.claim(web) == []
    freed = await router.update(after, "spec.dependencies")
    assert freed.wait.reason == Reason.REASON_WORKER
    assert (await router.claim_one(web)).name == after.name


async def test_a_task_may_depend_on_what_is_done_already(router: Router) -> None:
    web = router.registry.project("web")
    first = await router.submit()
    await router.complete(await router.claim_one(web))
    assert (await router.submit(dependencies=[first.name])).wait.reason == Reason.REASON_WORKER


async def test_dependencies_reach_over_instances(router: Router) -> None:
    web = router.registry.project("web")
    desk = router.registry.instance("desk", Scope.PERSONAL)
    first = await router.submit(parent=desk)
    await router.submit("after", dependencies=[first.name])
    assert await router.claim(web) == []
    await router.complete(await router.claim_one(desk))
    assert (await router.claim_one(web)).spec.title == "after"


async def test_cycles_are_refused_with_the_way_back(router: Router) -> None:
    a = await router.submit("a")
    b = await router.submit("b", dependencies=[a.name])
    c = await router.submit("c", dependencies=[b.name])
    for names in ([a.name], [b.name], [c.name]):
        path = {a.name: [a], b.name: [a, b], c.name: [a, c, b]}[names[0]]
        await refusal(
            router.update(a, dependencies=names),
            Code.FAILED_PRECONDITION,
            "DEPENDENCY_CYCLE",
            task=a.name,
            path=",".join([*(task.name for task in path), a.name]),
        )
    assert list((await router.get(a)).spec.dependencies) == []
    assert (await router.get(a)).etag == "s1"


async def test_a_finished_dependency_closes_no_cycle(router: Router) -> None:
    web = router.registry.project("web")
    a = await router.submit("a")
    b = await router.submit("b", dependencies=[a.name])
    await router.complete(await router.claim_one(web))
    await router.complete(await router.claim_one(web))
    c = await router.submit("c")
    assert list((await router.update(c, dependencies=[b.name])).spec.dependencies) == [b.name]


# ---------------------------------------------------------------- updates


async def test_an_update_changes_what_the_mask_names_and_decides_anew(router: Router) -> None:
    router.registry.project("web", "html")
    app = router.registry.project("app", "swift")
    task = await router.submit("t", required_capabilities=["html"], labels={"a": "b"})
    changed = await router.update(task, required_capabilities=["swift"])
    assert (changed.project, changed.spec.title, dict(changed.spec.labels)) == (app, "t", {"a": "b"})
    assert changed.decision != task.decision
    assert changed.generation > task.generation
    assert changed.etag != task.etag
    cleared = await router.update(task, "spec.labels", "spec.required_capabilities")
    assert (dict(cleared.spec.labels), list(cleared.spec.required_capabilities)) == ({}, [])


async def test_an_update_without_a_mask_changes_what_is_set(router: Router) -> None:
    router.registry.project("web")
    task = await router.submit("t", description="d", priority=10)
    request = svc.UpdateTaskRequest(task=pb.Task(name=task.name, spec=pb.TaskSpec(priority=0)))
    changed = (await router.tasks.UpdateTask(request)).task
    assert (changed.spec.priority, changed.spec.title) == (0, "t")
    assert (await router.get(task, pb.TASK_VIEW_FULL)).spec.description == "d"


async def test_an_update_of_what_somebody_changed_is_refused(router: Router) -> None:
    task = await router.submit()
    changed = await router.update(task, priority=1, etag=task.etag)
    await refusal(
        router.update(task, priority=2, etag=task.etag),
        Code.ABORTED,
        "ETAG_MISMATCH",
        resource=task.name,
        etag=changed.etag,
    )
    assert (await router.get(task)).spec.priority == 1
    assert (await router.update(task, priority=3)).spec.priority == 3


async def test_only_the_spec_may_be_changed(router: Router) -> None:
    task = await router.submit()
    for path in ("state", "priority", "spec.nothing", "name"):
        assert set(await violations(router.update(task, path))) == {"update_mask"}
    assert set(await violations(router.update(task, "spec.title"))) == {"task.spec.title"}
    assert set(await violations(router.tasks.UpdateTask(svc.UpdateTaskRequest(task=pb.Task())))) == {
        "task.name"
    }
    await refusal(
        router.update(task, dependencies=[f"{ROOT}/tasks/none"]),
        Code.NOT_FOUND,
        "TASK_NOT_FOUND",
        task=f"{ROOT}/tasks/none",
    )
    await refusal(
        router.update(task, project="projects/none"),
        Code.NOT_FOUND,
        "PROJECT_NOT_FOUND",
        project="projects/none",
    )


async def test_a_task_can_be_changed_though_its_pin_is_gone(router: Router) -> None:
    web = router.registry.project("web")
    task = await router.submit(project=web)
    router.registry.remove(web)
    assert (await router.update(task, priority=9)).spec.priority == 9


@pytest.mark.parametrize("state", ["RUNNING", "INPUT_REQUIRED", "SUCCEEDED", "FAILED", "CANCELLED"])
async def test_verbs_mind_the_state(router: Router, state: str) -> None:
    web = router.registry.project("web")
    task = await router.submit()
    claimed = await router.claim_one(web)
    if state == "SUCCEEDED":
        await router.complete(claimed)
    elif state == "FAILED":
        await router.fail(claimed, permanent=True)
    elif state == "CANCELLED":
        await router.cancel(task)
    elif state == "INPUT_REQUIRED":
        await ask(router, claimed)
    calls: dict[str, Any] = {
        "UPDATE": lambda: router.update(task, priority=1),
        "BLOCK": lambda: block(router, task),
        "UNBLOCK": lambda: unblock(router, task),
        "ANSWER": lambda: answer(router, task, "x"),
        "CANCEL": lambda: router.cancel(task),
    }
    allowed = {"RUNNING": {"CANCEL"}, "INPUT_REQUIRED": {"ANSWER", "CANCEL"}, "CANCELLED": {"CANCEL"}}
    before = await router.get(task)
    for event, call in calls.items():
        if event not in allowed.get(state, set()):
            await refusal(
                call(), Code.FAILED_PRECONDITION, "TASK_WRONG_STATE", task=task.name, state=state, event=event
            )
    assert await router.get(task) == before


async def ask(router: Router, claimed: pb.Task, question: str = "which?", **fields: Any) -> pb.Task:
    request = work_svc.RequestInputRequest(
        claim=ref(claimed), input=pb.InputRequest(question=question, **fields)
    )
    return (await router.work.RequestInput(request)).task


async def test_blocking_and_unblocking(router: Router) -> None:
    web = router.registry.project("web")
    task = await router.submit()
    held = await block(router, task, by="cleo", reason="budget")
    assert (held.wait.reason, list(held.wait.on), held.hold.reason) == (
        Reason.REASON_PERSON,
        ["cleo"],
        "budget",
    )
    assert await router.claim(web) == []
    await refusal(
        router.claim(web, task=task.name),
        Code.FAILED_PRECONDITION,
        "TASK_NOT_READY",
        task=task.name,
        wait="PERSON",
    )
    freed = await unblock(router, task)
    assert (freed.wait.reason, freed.HasField("hold")) == (Reason.REASON_WORKER, False)
    assert (await unblock(router, task)).generation == freed.generation  # a repeat succeeds, and is no change
    assert (await router.claim_one(web)).name == task.name


async def test_an_answer_lets_the_worker_go_on(router: Router) -> None:
    web = router.registry.project("web")
    await router.submit()
    claimed = await router.claim_one(web, lease_duration=Duration(seconds=30))
    asking = await ask(router, claimed, "red or blue?", **{"from": "cleo"})
    assert (asking.state, asking.wait.reason, list(asking.wait.on)) == (
        State.STATE_INPUT_REQUIRED,
        Reason.REASON_PERSON,
        ["cleo"],
    )
    assert asking.claim.worker == "ann"
    await router.pass_time(10 * HOUR)  # its lease stands still
    once = str(uuid4())
    answered = await answer(router, asking, "blue", request_id=once)
    assert (answered.state, answered.input.answer, answered.input.answered_by) == (
        State.STATE_RUNNING,
        "blue",
        "cleo",
    )
    assert answered.claim.lease_expire_time.ToDatetime(NOW.tzinfo) == NOW + 10 * HOUR + 30 * SECOND
    assert await answer(router, asking, "blue", request_id=once) == answered
    (done,) = await router.complete(claimed)
    assert done.updated.state == State.STATE_SUCCEEDED


async def test_an_answer_to_a_worker_that_died_frees_the_task_in_time(router: Router) -> None:
    web = router.registry.project("web")
    await router.submit()
    claimed = await router.claim_one(web, lease_duration=Duration(seconds=30))
    await answer(router, await ask(router, claimed), "blue")
    await router.pass_time(30 * SECOND)
    assert (await router.get(claimed)).state == State.STATE_QUEUED


# ---------------------------------------------------------------- clocks


async def test_a_schedule_holds_a_task_until_its_microsecond(router: Router) -> None:
    web = router.registry.project("web")
    task = await router.submit(clocks=clocks(start_after=NOW + HOUR))
    assert (task.wait.reason, task.wait.until.ToDatetime(NOW.tzinfo)) == (Reason.REASON_SCHEDULE, NOW + HOUR)
    await router.pass_time(HOUR - TICK)
    assert await router.claim(web) == []
    await refusal(
        router.claim(web, task=task.name),
        Code.FAILED_PRECONDITION,
        "TASK_NOT_READY",
        task=task.name,
        wait="SCHEDULE",
    )
    await router.pass_time(TICK)
    assert (await router.claim_one(web)).name == task.name


@pytest.mark.parametrize(
    ("placed", "state", "reason"),
    [(True, State.STATE_FAILED, "START_TIMEOUT"), (False, State.STATE_REJECTED, "NO_ELIGIBLE_EXECUTOR")],
)
async def test_start_by_over_the_wire(router: Router, placed: bool, state: Any, reason: str) -> None:
    if placed:
        router.registry.project("web")
    task = await router.submit(clocks=clocks(start_by=NOW + MINUTE))
    await router.pass_time(MINUTE - TICK)
    assert (await router.get(task)).generation == task.generation
    await router.pass_time(TICK)
    ended = await router.get(task)
    assert (ended.state, ended.failure.reason) == (state, reason)
    assert ended.finish_time.ToDatetime(NOW.tzinfo) == NOW + MINUTE


@pytest.mark.parametrize("placed", [True, False])
async def test_finish_by_over_the_wire(router: Router, placed: bool) -> None:
    if placed:
        router.registry.project("web")
    task = await router.submit(clocks=clocks(finish_by=NOW + MINUTE))
    await router.pass_time(MINUTE)
    ended = await router.get(task)
    assert (ended.state, ended.failure.reason) == (State.STATE_FAILED, "DEADLINE")


async def test_a_sweep_does_a_great_many_at_once(router: Router) -> None:
    router.registry.project("web")
    await batch(router, *(item("x", clocks=clocks(start_by=NOW + MINUTE)) for _ in range(450)))
    await router.pass_time(MINUTE)
    assert await router.found() == []
    assert len(await router.found(states=[State.STATE_FAILED])) == 450


async def test_an_event_plans_back_from_its_date(router: Router) -> None:
    party = router.registry.instance("party", Scope.EVENT, event_time=NOW + 10 * HOUR)
    task = await router.submit(parent=party, before_event=Duration(seconds=3600))
    assert task.spec.clocks.finish_by.ToDatetime(NOW.tzinfo) == NOW + 9 * HOUR
    moved = await router.update(task, before_event=Duration(seconds=7200))
    assert moved.spec.clocks.finish_by.ToDatetime(NOW.tzinfo) == NOW + 8 * HOUR
    await router.pass_time(8 * HOUR)
    assert (await router.get(task)).failure.reason == "DEADLINE"


async def test_cancelling_is_final_and_repeatable(router: Router) -> None:
    web = router.registry.project("web")
    task = await router.submit()
    claimed = await router.claim_one(web)
    ended = await router.cancel(task, "no longer needed")
    assert (ended.state, ended.failure.message, ended.HasField("claim")) == (
        State.STATE_CANCELLED,
        "no longer needed",
        False,
    )
    assert await router.cancel(task) == ended
    (late,) = await router.complete(claimed)
    assert late.error.reason == "STALE_TOKEN"


async def test_cancel_against_complete_has_one_winner(router: Router) -> None:
    """Fifty races: whoever wins, the other is told, and the task says the same."""
    web = router.registry.project("web")
    wins = {State.STATE_SUCCEEDED: 0, State.STATE_CANCELLED: 0}
    for round_ in range(50):
        task = await router.submit()
        claimed = await router.claim_one(web)
        completing = asyncio.ensure_future(router.complete(claimed)) if round_ % 2 else None
        cancelling = asyncio.ensure_future(router.cancel(task))
        (completed,) = await (completing or router.complete(claimed))
        (cancelled,) = await asyncio.gather(cancelling, return_exceptions=True)
        final = await router.get(task)
        wins[final.state] += 1
        if final.state == State.STATE_SUCCEEDED:
            assert completed.updated == final
            assert isinstance(cancelled, grpc.aio.AioRpcError)
        else:
            assert (completed.error.reason, cancelled) == ("STALE_TOKEN", final)
    assert sum(wins.values()) == 50


async def test_load_is_what_a_recount_finds(router: Router) -> None:
    """Whatever happened, the counts in memory are those of the rows."""
    web = router.registry.project("web")
    router.registry.team("app", "swift")
    tasks = [await router.submit() for _ in range(5)]
    await router.submit(required_capabilities=["swift"])
    a, b = await router.claim(web, max_tasks=2)
    await router.complete(a)
    await router.fail(b)
    await router.cancel(tasks[4])
    await refusal(
        router.cancel(a),
        Code.FAILED_PRECONDITION,
        "TASK_WRONG_STATE",
        task=a.name,
        state="SUCCEEDED",
        event="CANCEL",
    )
    fresh = (await router.db.read(count_open)).load
    held = router.engine._load
    for now, counted in ((held.by_project, fresh.by_project), (held.by_instance, fresh.by_instance)):
        assert {key: count for key, count in now.items() if count} == dict(counted)


async def test_load_is_right_again_after_a_commit_that_failed(router: Router) -> None:
    """What was counted and then not committed is taken back, and nothing that came between is lost."""
    web = router.registry.project("web", max_open=2)
    write = router.db.write

    async def failing(work: Any) -> Any:
        def lost(conn: Any) -> None:
            work(conn)
            raise StorageFull(service="router")

        return await write(lost)

    async def refusing(_work: Any, **_options: Any) -> Any:
        raise StorageFull(service="router")

    if isinstance(router.db, PostgresDatabase):  # it takes simple tasks in by one statement
        router.db.statement = refusing  # type: ignore[method-assign, assignment]
    router.db.write = failing  # type: ignore[method-assign]
    for _ in range(5):
        await refusal(router.submit(), Code.RESOURCE_EXHAUSTED, "STORAGE_FULL", service="router")
    router.db.write = write  # type: ignore[method-assign]
    vars(router.db).pop("statement", None)
    assert [(await router.submit()).project for _ in range(3)] == [web, web, ""]


async def test_a_batch_of_all_kinds_is_one_call(router: Router) -> None:
    """Simple items go together, odd ones by themselves; a repeat gets the same, and nothing twice."""
    web = router.registry.project("web")
    router.registry.team("team", "lead")
    items = [
        svc.SubmitTasksItem(spec=pb.TaskSpec(title="plain", project=web)),
        svc.SubmitTasksItem(spec=pb.TaskSpec(title="handed over", required_capabilities=["lead"])),
        svc.SubmitTasksItem(spec=pb.TaskSpec(title="after", project=web), after=[0, 1]),
        svc.SubmitTasksItem(spec=pb.TaskSpec(title="nobody", required_capabilities=["magic"])),
        svc.SubmitTasksItem(spec=pb.TaskSpec(title="no such pin", project="projects/none")),
        svc.SubmitTasksItem(spec=pb.TaskSpec(title="forward", project=web), after=[6]),
        svc.SubmitTasksItem(spec=pb.TaskSpec(title="last", project=web)),
    ]
    request = svc.SubmitTasksRequest(parent=ROOT, items=items, request_id=str(uuid4()))
    first = await router.tasks.SubmitTasks(request)
    assert [result.WhichOneof("result") for result in first.results] == [
        "task", "task", "task", "task", "error", "error", "task",
    ]  # fmt: skip
    tasks = [result.task for result in first.results]
    assert [task.spec.title for task in tasks if task.name] == [
        "plain", "handed over", "after", "nobody", "last",
    ]  # fmt: skip
    assert [State.Name(tasks[n].state) for n in (0, 1, 2, 3)] == [
        "STATE_QUEUED", "STATE_DELEGATED", "STATE_QUEUED", "STATE_SUBMITTED",
    ]  # fmt: skip
    assert set(tasks[2].wait.on) == {tasks[0].name, tasks[1].name}
    before = {task.name for task in await router.found()}
    assert await router.tasks.SubmitTasks(request) == first
    assert {task.name for task in await router.found()} == before


async def test_an_answer_of_a_unit_is_given_again_when_it_would_be_simple_now(router: Router) -> None:
    request = svc.SubmitTaskRequest(parent=ROOT, spec=pb.TaskSpec(title="early"), request_id=str(uuid4()))
    first = await router.tasks.SubmitTask(request)
    assert first.task.state == State.STATE_SUBMITTED  # nobody is there yet: a unit's work
    router.registry.project("web")
    assert await router.tasks.SubmitTask(request) == first
