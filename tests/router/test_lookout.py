"""Duplicates over real gRPC: warned of, linked and refused, in every way of submitting, with many at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from hopper.router.v1 import routing_service_pb2 as routing_svc
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as svc
from hopper.router.v1.decision_pb2 import Policy
from hopper_router import lookout
from hopper_router.duplicates import Index, read
from hopper_router.lookout import LINK, PAGE
from hopper_router.model import Scope
from hopper_router.store_sql import EVENTS
from tests.router.harness import ROOT, Code, Router, State, refusal, until
from tests.router.test_replicas import routers

TITLE = "Crash on login with error E4711"
AGAIN = "crash on login, Error E4711!"
OTHER = "Export of charts is slow"


async def put_policy(router: Router, source: str, instance: str = ROOT) -> None:
    policy = Policy(name=f"{instance}/policy", source=source)
    await router.routing.UpdatePolicy(routing_svc.UpdatePolicyRequest(policy=policy))


@asynccontextmanager
async def looking_out(router: Router, kind: str = "warn", *instances: str) -> AsyncIterator[Router]:
    """The router looks out for duplicates, and has read what is open."""
    if kind:
        await put_policy(router, f"duplicates: {kind}\n")
    running = asyncio.ensure_future(router.engine.lookout.run())
    try:
        for instance in (ROOT, *instances):
            await until(partial(knows, router, instance))
        yield router
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def knows(router: Router, instance: str = ROOT) -> bool:
    return router.engine.lookout.knows(instance)


async def finds(router: Router, title: str = TITLE) -> bool:
    """Whether a router's index has such a task; nothing is submitted."""
    return bool(_found(router, title))


async def finds_none(router: Router, title: str = TITLE) -> bool:
    return not _found(router, title)


def _found(router: Router, title: str) -> list[Any]:
    return router.engine.lookout._indexes[ROOT].find(read(title), 0.8)


async def submit(router: Router, title: str, **fields: Any) -> svc.SubmitTaskResponse:
    request = svc.SubmitTaskRequest(parent=ROOT, spec=pb.TaskSpec(title=title), **fields)
    return await router.tasks.SubmitTask(request)


async def submit_all(router: Router, *titles: str, **fields: Any) -> list[svc.SubmitTasksResult]:
    items = [svc.SubmitTasksItem(spec=pb.TaskSpec(title=title)) for title in titles]
    request = svc.SubmitTasksRequest(parent=ROOT, items=items, **fields)
    return list((await router.tasks.SubmitTasks(request)).results)


async def submit_on_stream(router: Router, *titles: str, **fields: Any) -> list[svc.SubmitStreamResponse]:
    async def requests() -> AsyncIterator[svc.SubmitStreamRequest]:
        for title in titles:
            yield svc.SubmitStreamRequest(parent=ROOT, spec=pb.TaskSpec(title=title), **fields)

    return [answer async for answer in router.tasks.SubmitStream(requests())]


def names(duplicates: Any) -> list[str]:
    return [one.task for one in duplicates]


@pytest.fixture(autouse=True)
def web(router: Router) -> None:
    """Somewhere for tasks to go."""
    router.registry.project("web")


# ---------------------------------------------------------------- by policy


async def test_nobody_looks_unless_a_policy_asks(router: Router) -> None:
    await submit(router, TITLE)
    assert not (await submit(router, TITLE)).duplicates
    assert not router.engine.lookout._indexes


async def test_warns(router: Router) -> None:
    async with looking_out(router):
        first = await submit(router, TITLE)
        other = await submit(router, OTHER)
        again = await submit(router, AGAIN)
    assert not first.duplicates
    assert not other.duplicates
    (found,) = again.duplicates
    assert (found.task, found.state) == (first.task.name, State.STATE_QUEUED)
    assert found.score == pytest.approx(1.0)
    assert found.shared_words[0] == "e4711"
    assert set(found.shared_words) == {"crash", "login", "error", "e4711"}
    assert again.task.state == State.STATE_QUEUED
    assert again.decision.project == first.decision.project == "projects/web"


async def test_links_to_the_likest(router: Router) -> None:
    async with looking_out(router, "link"):
        first = await submit(router, TITLE)
        again = await submit(router, AGAIN)
        mine = await router.submit(TITLE, labels={LINK: "something else"})
        full = await router.submit(TITLE, labels={f"l{n}": "" for n in range(64)})
    assert dict(again.task.spec.labels) == {LINK: first.task.name}
    stored = await router.get(again.task)
    assert dict(stored.spec.labels) == {LINK: first.task.name}
    assert dict(mine.spec.labels) == {LINK: "something else"}
    assert len(full.spec.labels) == 64


async def test_refuses_unless_it_is_allowed(router: Router) -> None:
    async with looking_out(router, "refuse"):
        first = await submit(router, TITLE)
        await refusal(
            submit(router, AGAIN),
            Code.FAILED_PRECONDITION,
            "DUPLICATE_TASK",
            task=first.task.name,
            score="1.00",
            state="QUEUED",
        )
        allowed = await submit(router, AGAIN, allow_duplicate=True)
        assert names(allowed.duplicates) == [first.task.name]
    assert {task.name for task in await router.found()} == {first.task.name, allowed.task.name}


async def test_how_alike_is_the_policys_choice(router: Router) -> None:
    near = "Crash on login with error E4711 again today"
    await put_policy(router, "duplicates: warn\nduplicates_above: 0.99\n")
    async with looking_out(router, ""):
        await submit(router, TITLE)
        assert not (await submit(router, near)).duplicates
    await put_policy(router, "duplicates: warn\nduplicates_above: 0.6\n")
    async with looking_out(router, ""):
        assert (await submit(router, near)).duplicates


async def test_every_instance_has_its_own(router: Router) -> None:
    """The policy is that of the nearest instance above, the open tasks are the instance's own."""
    team = router.registry.instance("team", Scope.PERSONAL)
    quiet = router.registry.instance("quiet", Scope.PERSONAL)
    await put_policy(router, "duplicates: off\n", quiet)
    async with looking_out(router, "warn", team):
        first = await router.submitted(TITLE, team)
        await router.submitted(TITLE, quiet)
        assert not (await submit(router, TITLE)).duplicates
        assert names((await router.submitted(TITLE, team)).duplicates) == [first.task.name]
        assert not (await router.submitted(TITLE, quiet)).duplicates
        assert not router.engine.lookout.knows(quiet)


@pytest.mark.parametrize(
    ("source", "field", "place"),
    [
        ("strategy: rules\nduplicates: wran\n", "duplicates", "line 2, column 13"),
        ("duplicates: on\n", "duplicates", "line 1, column 13"),
        ("duplicates: warn\nduplicates_above: 0.3\n", "duplicates_above", "line 2, column 19"),
    ],
)
async def test_a_policy_says_where_it_is_wrong(router: Router, source: str, field: str, place: str) -> None:
    (error,) = (await router.routing.ValidatePolicy(routing_svc.ValidatePolicyRequest(source=source))).errors
    assert (error.path, f"line {error.line}, column {error.column}") == (field, place)


# ---------------------------------------------------------------- what is open


async def test_what_was_open_before_is_read_at_the_start(router: Router) -> None:
    first = await submit(router, TITLE)
    done = await router.submit(OTHER)
    await router.cancel(done)
    async with looking_out(router):
        assert names((await submit(router, AGAIN)).duplicates) == [first.task.name]
        assert not (await submit(router, OTHER)).duplicates


async def test_a_router_that_starts_again_looks_out_at_once(router: Router) -> None:
    async with looking_out(router):
        first = await submit(router, TITLE)
    await router.stop()
    await router.start()
    async with looking_out(router, ""):
        assert names((await submit(router, AGAIN)).duplicates) == [first.task.name]


async def test_what_is_finished_is_no_duplicate(router: Router) -> None:
    """The rows say so at once, the index a moment later."""
    async with looking_out(router, "refuse"):
        first = await submit(router, TITLE)
        running = await router.claim_one("projects/web")
        assert running.name == first.task.name
        error = await refusal(
            submit(router, AGAIN),
            Code.FAILED_PRECONDITION,
            "DUPLICATE_TASK",
            task=first.task.name,
            score="1.00",
            state="RUNNING",
        )
        assert first.task.name in error.message
        await router.complete(running)
        again = await submit(router, AGAIN)
        assert not again.duplicates
        await router.cancel(again.task)
        assert not (await submit(router, AGAIN)).duplicates


async def test_the_index_follows_the_log(router: Router) -> None:
    async with looking_out(router):
        first = await submit(router, TITLE)
        assert await finds(router)
        await router.update(first.task, title=OTHER)
        await until(lambda: finds(router, OTHER))
        assert not await finds(router)
        await router.cancel(first.task)
        await until(lambda: finds_none(router, OTHER))
        second = await submit(router, TITLE)
        await router.complete(await router.claim_one("projects/web"))
        await until(lambda: finds_none(router))
        assert (await router.get(second.task)).state == State.STATE_SUCCEEDED


async def test_a_policy_that_asks_no_more_ends_it(router: Router) -> None:
    async with looking_out(router):
        await submit(router, TITLE)
        await put_policy(router, "duplicates: off\n")
        assert not (await submit(router, TITLE)).duplicates
        await until(lambda: knows_not(router))
        await put_policy(router, "duplicates: warn\n")
        await until(lambda: knows(router))
        assert len((await submit(router, TITLE)).duplicates) == 2


async def knows_not(router: Router) -> bool:
    return not router.engine.lookout._indexes


async def test_all_that_is_open_is_read(router: Router) -> None:
    """Page by page, however much it is."""
    await submit_all(router, *[f"{TITLE} number{number}" for number in range(2 * PAGE + 50)])
    async with looking_out(router):
        assert len(router.engine.lookout._indexes[ROOT]) == 2 * PAGE + 50
        for number in (0, PAGE, 2 * PAGE + 49):
            assert await finds(router, f"{TITLE} number{number}")


async def test_a_log_that_was_trimmed_is_no_trouble(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is open is read anew."""
    async with looking_out(router):
        before = router.engine.lookout._indexes[ROOT]
        monkeypatch.setattr(lookout, "PACE", 0.5)  # so that it falls behind
        await until(partial(overtaken, router, before))
        await until(partial(warns, router))  # it may just be overtaken once more
        await until(partial(has_all, router))


async def warns(router: Router) -> bool:
    return bool((await submit(router, TITLE)).duplicates)


async def has_all(router: Router) -> bool:
    return len(router.engine.lookout._indexes.get(ROOT, ())) == len(await router.found())


async def overtaken(router: Router, before: Index) -> bool:
    """Log and trim a little; whether the index was read anew by now."""
    for _ in range(3):
        await submit(router, TITLE)
        await router.db.write(lambda conn: EVENTS.trim(conn, before=EVENTS.head(conn)))
    return await knows(router) and router.engine.lookout._indexes[ROOT] is not before


async def test_the_oldest_are_forgotten(router: Router) -> None:
    for number in range(6):
        await submit(router, f"{TITLE} number{number}")
    router.engine.lookout._limit = 4
    async with looking_out(router):
        assert not await finds(router, f"{TITLE} number1")
        assert await finds(router, f"{TITLE} number2")


# ---------------------------------------------------------------- repeats


async def test_a_repeat_is_no_duplicate_of_itself(router: Router) -> None:
    async with looking_out(router, "refuse"):
        one = str(uuid4())
        first = await submit(router, TITLE, request_id=one)
        assert (await submit(router, TITLE, request_id=one)).task.name == first.task.name
        (streamed,) = await submit_on_stream(router, TITLE, request_id=one)
        assert streamed.task.name == first.task.name
        two = str(uuid4())
        allowed = await submit(router, AGAIN, request_id=two, allow_duplicate=True)
        repeated = await submit(router, AGAIN, request_id=two, allow_duplicate=True)
        assert repeated == allowed
        assert names(repeated.duplicates) == [first.task.name]
    assert len(await router.found()) == 2


async def test_the_repeat_of_many_says_the_same(router: Router) -> None:
    async with looking_out(router, "refuse"):
        request_id = str(uuid4())
        titles = (TITLE, OTHER, AGAIN, "Send mail to the team")
        first = await submit_all(router, *titles, request_id=request_id)
        again = await submit_all(router, *titles, request_id=request_id)
        assert [result.task.name for result in again] == [result.task.name for result in first]
        assert [result.error for result in again] == [result.error for result in first]
        assert [result.error.reason for result in first] == ["", "", "DUPLICATE_TASK", ""]
    assert len(await router.found()) == 3


# ---------------------------------------------------------------- many


async def test_items_of_one_call_are_compared_with_each_other(router: Router) -> None:
    async with looking_out(router):
        open_ = (await submit(router, OTHER)).task.name
        results = await submit_all(router, TITLE, "Send mail to the team", AGAIN, OTHER, TITLE)
    taken = [result.task.name for result in results]
    assert all(taken)
    assert [set(names(result.duplicates)) for result in results] == [
        set(),
        set(),
        {taken[0]},
        {open_},
        {taken[0], taken[2]},
    ]


async def test_an_item_that_was_refused_is_nobodys_duplicate(router: Router) -> None:
    items = [
        svc.SubmitTasksItem(spec=pb.TaskSpec(title=TITLE, project="projects/none")),
        svc.SubmitTasksItem(spec=pb.TaskSpec(title=TITLE)),
        svc.SubmitTasksItem(spec=pb.TaskSpec(title=TITLE)),
    ]
    async with looking_out(router, "refuse"):
        answer = await router.tasks.SubmitTasks(svc.SubmitTasksRequest(parent=ROOT, items=items))
        reasons = [result.error.reason for result in answer.results]
        assert reasons == ["PROJECT_NOT_FOUND", "", "DUPLICATE_TASK"]
        assert answer.results[2].error.metadata["task"] == answer.results[1].task.name
        everything = svc.SubmitTasksRequest(parent=ROOT, items=items[1:], allow_duplicate=True)
        allowed = (await router.tasks.SubmitTasks(everything)).results
        assert [len(result.duplicates) for result in allowed] == [1, 2]


async def test_linked_items_are_still_in_order(router: Router) -> None:
    async with looking_out(router, "link"):
        items = [
            svc.SubmitTasksItem(spec=pb.TaskSpec(title=TITLE)),
            svc.SubmitTasksItem(spec=pb.TaskSpec(title=AGAIN), after=[0]),
        ]
        request = svc.SubmitTasksRequest(parent=ROOT, items=items)
        first, second = (await router.tasks.SubmitTasks(request)).results
        assert list(second.task.spec.dependencies) == [first.task.name]
        assert dict(second.task.spec.labels) == {LINK: first.task.name}


async def test_a_stream_is_compared_with_itself(router: Router) -> None:
    async with looking_out(router, "refuse"):
        answers = await submit_on_stream(router, *[TITLE, OTHER] * 20)
        taken = [answer.task.name for answer in answers if answer.HasField("task")]
        refused = [answer.error for answer in answers if answer.HasField("error")]
        assert [answer.HasField("task") for answer in answers[:3]] == [True, True, False]
        assert len(taken) == 2
        assert {error.reason for error in refused} == {"DUPLICATE_TASK"}
        assert {error.metadata["task"] for error in refused} == set(taken)
        (allowed,) = await submit_on_stream(router, TITLE, allow_duplicate=True)
        assert names(allowed.duplicates) == [taken[0]]


async def test_of_many_at_once_one_is_taken_in(router: Router) -> None:
    async with looking_out(router, "refuse"):
        outcomes = await asyncio.gather(
            *[submit(router, TITLE) for _ in range(30)],
            *[submit_all(router, *[OTHER] * 10) for _ in range(5)],
            return_exceptions=True,
        )
        assert sum(not isinstance(outcome, BaseException) for outcome in outcomes[:30]) == 1
    titles = sorted(task.spec.title for task in await router.found())
    assert titles == [TITLE, OTHER]
    assert not router.engine.lookout.arriving


async def test_one_that_is_refused_leaves_no_trace(router: Router) -> None:
    async with looking_out(router):
        spec = pb.TaskSpec(title=TITLE, project="projects/none")
        request = svc.SubmitTaskRequest(parent=ROOT, spec=spec)
        await refusal(
            router.tasks.SubmitTask(request), Code.NOT_FOUND, "PROJECT_NOT_FOUND", project="projects/none"
        )
        assert not await finds(router)
        assert not (await submit(router, TITLE)).duplicates


async def test_another_router_hears_of_it() -> None:
    """Of a task that another router on the same database took in, or finished, a moment later."""
    async with routers(2) as (here, there):
        await put_policy(here, "duplicates: warn\n")
        await there.engine.refresh_policies()
        async with looking_out(here, ""), looking_out(there, ""):
            first = await submit(here, TITLE)
            await until(lambda: finds(there))
            assert names((await submit(there, AGAIN)).duplicates) == [first.task.name]
            await until(lambda: finds(here, AGAIN))
            await here.cancel(first.task)
            assert first.task.name not in names((await submit(there, AGAIN)).duplicates)
