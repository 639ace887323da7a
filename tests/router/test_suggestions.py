"""What an LLM suggests besides a place: tags, effort, parts; by gRPC, on both engines."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest

from hopper.router.v1 import delegation_service_pb2 as svc
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1.delegation_pb2 import Delegation
from hopper.router.v1.delegation_service_pb2_grpc import DelegationServiceStub
from hopper_common.rpc.address import listen_unix
from hopper_common.rpc.channel import open_channel
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.rpc.server import build_server
from hopper_router.app import _registered
from hopper_testing.processes import temporary_directory
from tests.router.harness import Code, Router, State, refusal
from tests.router.llm.published import MODEL, check_openai, completion
from tests.router.llm.server import says
from tests.router.test_advice import API, LLM, World, advising

if TYPE_CHECKING:
    from hopper.router.v1.delegation_service_pb2_grpc import DelegationServiceAsyncStub

SUGGEST = LLM.replace("deadline: 60s", "deadline: 60s, suggest: [tags, effort, subtasks]")


@pytest.fixture
async def world(router: Router) -> AsyncIterator[World]:
    router.registry.project("web", description="pages, forms, buttons")
    router.registry.project("api", description="interfaces, tokens, rate limits")
    async with advising(router) as made:
        yield made


@asynccontextmanager
async def delegations(world: World) -> AsyncIterator["DelegationServiceAsyncStub"]:
    """The service of a router that has an LLM."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(temporary_directory())
        server = build_server(_registered(world.router.engine, advice=world.advice))
        listen_unix(server, directory / "s")
        await server.start()
        stack.push_async_callback(server.stop, 0)
        yield DelegationServiceStub(await stack.enter_async_context(open_channel(f"unix:{directory / 's'}")))


def answers(world: World, **said: Any) -> None:
    """The model answers so from now on."""
    world.behaves(
        says(completion(json.dumps({"reason": "because", "project": API, "confidence": 0.9} | said)))
    )


# ---------------------------------------------------------------- tags and effort


async def test_what_the_requester_left_open_is_suggested_and_recorded(world: World) -> None:
    await world.policy(SUGGEST)
    answers(world, tags=["Login Page", "oauth", "oauth"], estimated_effort_minutes=90)
    placed = await world.advise(await world.router.submit("something is odd"))
    full = await world.router.get(placed, pb.TASK_VIEW_FULL)
    assert list(full.spec.tags) == ["Login-Page", "oauth"]
    assert full.spec.estimated_effort.ToTimedelta() == timedelta(minutes=90)
    said = (await world.decision(placed)).opinions[-1]
    assert list(said.suggested_tags) == ["Login-Page", "oauth"]
    assert said.suggested_effort.ToTimedelta() == timedelta(minutes=90)
    assert [complaint for sent in world.server.sent for complaint in check_openai(sent)] == []
    assert [task.name for task in await world.router.found(tag="oauth")] == [placed.name]


async def test_what_the_requester_said_is_not_asked_about_and_stays(world: World) -> None:
    await world.policy(SUGGEST)
    answers(world, estimated_effort_minutes=90)
    placed = await world.advise(await world.router.submit("something is odd", tags=["mine"]))
    assert list(placed.spec.tags) == ["mine"]
    assert placed.spec.estimated_effort.ToTimedelta() == timedelta(minutes=90)
    (sent,) = world.server.sent
    wanted = sent.body["response_format"]["json_schema"]["schema"]["properties"]
    assert "tags" not in wanted
    assert "estimated_effort_minutes" in wanted


async def test_suggestions_that_were_not_asked_for_make_the_answer_none(world: World) -> None:
    await world.policy(LLM + "default_project: web")
    answers(world, tags=["oauth"])
    placed = await world.advise(await world.router.submit("something is odd"))
    assert not placed.spec.tags
    assert "tags" in (await world.decision(placed)).opinions[-1].reason


async def test_who_gives_tags_meanwhile_is_not_overruled(world: World) -> None:
    await world.policy(SUGGEST)
    task = await world.router.submit("something is odd")

    async def change() -> None:
        await world.router.update(task, tags=["mine"])

    answers(world, tags=["oauth"], estimated_effort_minutes=None)
    world.memory.before = change
    await world.adviser.inquire(task.name)
    assert list((await world.router.get(task, pb.TASK_VIEW_FULL)).spec.tags) == ["mine"]


# ---------------------------------------------------------------- parts


def part(title: str, *after: int) -> dict[str, Any]:
    return {"title": title, "description": f"do {title}", "after": list(after)}


async def propose(stub: "DelegationServiceAsyncStub", task: pb.Task) -> svc.ProposeSubtasksResponse:
    return await stub.ProposeSubtasks(svc.ProposeSubtasksRequest(task=task.name))


async def test_parts_are_proposed_and_decomposed_into(world: World) -> None:
    await world.policy(SUGGEST)
    parts = [part("design"), part("build", 0), part("test", 0, 1)]
    answers(world, project=None, subtasks=parts)
    task = await world.router.submit("a new login", project=API, priority=70, requester="bob")
    async with delegations(world) as stub:
        proposed = await propose(stub, task)
        assert [(one.spec.title, list(one.after)) for one in proposed.subtasks] == [
            ("design", []),
            ("build", [0]),
            ("test", [0, 1]),
        ]
        assert {(one.spec.priority, one.spec.requester) for one in proposed.subtasks} == {(70, "bob")}
        assert (proposed.reason, proposed.money_micros) == ("because", 150)
        assert proposed.model.startswith(MODEL)
        assert (await world.router.get(task)).state == State.STATE_QUEUED  # nothing has happened yet
        assert [complaint for sent in world.server.sent for complaint in check_openai(sent)] == []
        request = svc.DelegateTaskRequest(
            task=task.name, kind=Delegation.KIND_DECOMPOSE, subtasks=proposed.subtasks
        )
        made = (await stub.DelegateTask(request)).delegation
    children = [await world.router.get(name, pb.TASK_VIEW_FULL) for name in made.child_tasks]
    assert [list(child.spec.dependencies) for child in children] == [
        [],
        [children[0].name],
        [children[0].name, children[1].name],
    ]


async def test_a_task_may_stay_in_one_piece(world: World) -> None:
    await world.policy(SUGGEST)
    answers(world, project=None, subtasks=[], reason="it is small")
    async with delegations(world) as stub:
        proposed = await propose(stub, await world.router.submit("a typo", project=API))
    assert (list(proposed.subtasks), proposed.reason) == ([], "it is small")


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"subtasks": [part("a", 1), part("b", 0)]}, "wait for each other"),
        ({"subtasks": [part("a", 0)]}, "wait for each other"),
        ({"subtasks": [part("a", 7)]}, "there is no part 7"),
        ({"subtasks": [part(" ")]}, "title: is empty"),
        ({"subtasks": [part("a")] * 21}, "subtasks"),
        ({"subtasks": [{"title": "a"}]}, "subtasks.0.description"),
        ({"subtasks": [part("a") | {"project": "projects/admin"}]}, "extra_forbidden"),
        ({"subtasks": "all of it"}, "subtasks"),
    ],
    ids=[
        "loop",
        "itself",
        "no such part",
        "no title",
        "too many",
        "half a part",
        "more than asked",
        "no list",
    ],
)
async def test_what_is_no_plan_is_refused_and_paid_for(
    world: World, said: Mapping[str, Any], problem: str
) -> None:
    await world.policy(SUGGEST)
    answers(world, **{"project": None, **said})
    task = await world.router.submit("a new login", project=API)
    async with delegations(world) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await propose(stub, task)
    error = from_rpc_error(caught.value)
    assert (error.reason, caught.value.code()) == ("LLM_ANSWER_INVALID", Code.UNAVAILABLE)
    assert problem in error.metadata["problem"]
    assert (await world.spent()).money == 150


async def test_only_a_policy_that_says_so_has_parts_proposed(world: World) -> None:
    await world.policy(LLM)
    task = await world.router.submit("a new login", project=API)
    async with delegations(world) as stub:
        request = svc.ProposeSubtasksRequest(task=task.name)
        await refusal(
            stub.ProposeSubtasks(request),
            Code.FAILED_PRECONDITION,
            "LLM_NOT_CONFIGURED",
            missing="suggest: [subtasks]",
        )
        await world.policy(SUGGEST.replace("suggest", "calls_per_day: 0, suggest"))
        await refusal(
            stub.ProposeSubtasks(request),
            Code.RESOURCE_EXHAUSTED,
            "BUDGET_EXHAUSTED",
            instance="instances/global",
            limit="calls",
        )
        await world.router.cancel(task)
        await refusal(
            stub.ProposeSubtasks(request),
            Code.FAILED_PRECONDITION,
            "TASK_WRONG_STATE",
            task=task.name,
            state="CANCELLED",
            event="DELEGATE",
        )
    request = svc.ProposeSubtasksRequest(task=(await world.router.submit("more", project=API)).name)
    await refusal(
        world.router.delegations.ProposeSubtasks(request),
        Code.FAILED_PRECONDITION,
        "LLM_NOT_CONFIGURED",
        missing="HOPPER_LLM_URL",
    )
    assert not world.server.sent


async def test_a_part_of_a_part_of_a_part_stays_in_one_piece(world: World) -> None:
    await world.policy(SUGGEST)
    answers(world, project=None, subtasks=[part("smaller")])
    task = await world.router.submit("a new login", project=API)
    async with delegations(world) as stub:
        for _ in range(3):
            proposed = await propose(stub, task)
            kind = Delegation.KIND_DECOMPOSE
            made = await stub.DelegateTask(
                svc.DelegateTaskRequest(task=task.name, kind=kind, subtasks=proposed.subtasks)
            )
            task = await world.router.get(made.delegation.child_tasks[0])
        await refusal(
            stub.ProposeSubtasks(svc.ProposeSubtasksRequest(task=task.name)),
            Code.FAILED_PRECONDITION,
            "DELEGATION_LOOP",
            path="instances/global",
            instance="instances/global",
        )
    assert len(world.server.sent) == 3
