"""Queues that a Sage orders, within a priority and a requester's turns, while it answers; on both engines."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from hopper.router.v1 import routing_service_pb2 as svc
from hopper.router.v1 import task_pb2 as pb
from hopper.sage.v1 import advice_pb2, sage_service_pb2, sage_service_pb2_grpc
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.startup import AddressRefused
from hopper_router.advice_client import OpenSages
from hopper_router.model import Scope
from hopper_router.queue_order import reorder
from hopper_testing.clock import ManualClock
from hopper_testing.processes import temporary_directory
from tests.router.harness import HOUR, NOW, ROOT, Code, Router, refusal
from tests.router.test_advice import WEB, World, advising, sage_policy
from tests.sage.harness import serving, serving_bare

Respond = Callable[[list[str]], list[str]]


class Orders(sage_service_pb2_grpc.SageServiceServicer):
    """Answers what the test says."""

    def __init__(self) -> None:
        self.respond: Respond = lambda names: names[::-1]
        self.asked: list[sage_service_pb2.PrioritizeQueueRequest] = []

    async def PrioritizeQueue(self, request: Any, context: Any) -> sage_service_pb2.PrioritizeQueueResponse:
        self.asked.append(request)
        names = self.respond([task.name for task in request.tasks])
        order = [advice_pb2.RankedTask(task=name, reason="so") for name in names]
        return sage_service_pb2.PrioritizeQueueResponse(order=order)

    async def _none(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    GetSage = DecideRouting = RecordOutcome = ReportPerformance = _none


def policy(address: str, more: str = "") -> str:
    return f"""
strategy: hybrid
default_project: web
stages:
  - {{use: rules, threshold: 0.0}}
  - {{use: sage, address: '{address}', deadline: 60s, prioritize: true{more}}}
"""


@pytest.fixture
async def world(router: Router) -> AsyncIterator[World]:
    router.registry.project("web")
    router.registry.project("api")
    async with advising(router) as made:
        yield made


@pytest.fixture
async def orders(world: World) -> AsyncIterator[Orders]:
    stranger = Orders()
    with temporary_directory() as directory:
        async with serving_bare(directory, stranger) as address:
            await world.policy(policy(address))
            yield stranger


async def titles(world: World) -> list[str]:
    """What a worker gets, in order."""
    return [task.spec.title for task in await world.router.claim(WEB, max_tasks=100)]


async def test_what_waits_is_claimed_in_the_order_of_the_sage(world: World, orders: Orders) -> None:
    for title in "abc":
        await world.router.submit(title, project=WEB)
    assert await world.advice.order.order() == 2
    assert orders.asked[0].queue == WEB
    assert [task.title for task in orders.asked[0].tasks] == ["a", "b", "c"]
    assert await titles(world) == ["c", "b", "a"]


async def test_priorities_and_turns_stay_what_they_are(world: World, orders: Orders) -> None:
    for title, requester, priority in (
        ("flood 1", "ann", 50),
        ("flood 2", "ann", 50),
        ("flood 3", "ann", 50),
        ("one", "bob", 50),
        ("urgent 1", "ann", 90),
        ("urgent 2", "ann", 90),
    ):
        await world.router.submit(title, project=WEB, requester=requester, priority=priority)
    await world.advice.order.order()
    assert await titles(world) == ["urgent 2", "urgent 1", "flood 3", "one", "flood 2", "flood 1"]


async def test_a_queue_of_an_instance(world: World, orders: Orders) -> None:
    desk = world.router.registry.instance("desk", Scope.PERSONAL)
    for title in "ab":
        await world.router.submit(title, desk)
    assert await world.advice.order.order() == 2
    assert [task.spec.title for task in await world.router.claim(desk, max_tasks=9)] == ["b", "a"]


async def test_it_is_asked_once_unless_something_new_has_come(world: World, orders: Orders) -> None:
    for title in "ab":
        await world.router.submit(title, project=WEB)
    await world.advice.order.order()
    assert await world.advice.order.order() == 0
    await world.router.claim_one(WEB)
    await world.advice.order.order()
    assert len(orders.asked) == 1
    await world.router.submit("c", project=WEB)
    await world.advice.order.order()
    assert len(orders.asked) == 2


@pytest.mark.parametrize(
    "respond",
    [
        lambda names: names[:1],
        lambda names: [names[0]] * len(names),
        lambda names: [*names[1:], "instances/global/tasks/01hzzzzzzzzzzzzzzzzzzzzzzz"],
        lambda names: 1 / 0,
    ],
    ids=["not all", "one twice", "a stranger", "an error"],
)
async def test_what_is_no_order_changes_nothing(world: World, orders: Orders, respond: Respond) -> None:
    orders.respond = respond
    for title in "abc":
        await world.router.submit(title, project=WEB)
    assert await world.advice.order.order() == 0
    assert await titles(world) == ["a", "b", "c"]


async def test_who_left_meanwhile_is_left_out(world: World, orders: Orders) -> None:
    tasks = [await world.router.submit(title, project=WEB) for title in "abc"]
    names = [task.name for task in tasks]
    await world.router.cancel(tasks[1])
    moved = await world.router.engine.run(lambda unit: reorder(unit, ROOT, names[::-1]))
    assert moved == 2
    assert await titles(world) == ["c", "a"]


async def test_a_sage_that_is_down_costs_nothing(world: World, tmp_path: Path) -> None:
    await world.policy(policy(f"unix:{tmp_path}/nobody"))
    for title in "ab":
        await world.router.submit(title, project=WEB)
    for _ in range(5):
        assert await world.advice.order.order() == 0
    assert await titles(world) == ["a", "b"]


async def test_it_has_a_budget_and_a_switch(world: World) -> None:
    stranger = Orders()
    with temporary_directory() as directory:
        async with serving_bare(directory, stranger) as address:
            await world.policy(policy(address, ", calls_per_day: 1"))
            for title in "abc":
                await world.router.submit(title, project=WEB)
                await world.advice.order.order()
            assert len(stranger.asked) == 1
            await world.policy(policy(address).replace("prioritize: true", "prioritize: false"))
            assert await world.advice.order.order() == 0
    assert len(stranger.asked) == 1


async def test_the_reference_sage_puts_first_what_would_be_late(world: World) -> None:
    with temporary_directory() as directory:
        async with serving(directory, clock=world.router.clock) as address:
            await world.policy(policy(address))
            await world.router.submit("whenever", project=WEB)
            late = pb.Clocks()
            late.finish_by.FromDatetime(NOW + HOUR)
            await world.router.submit("soon", project=WEB, clocks=late)
            await world.advice.order.order()
    assert await titles(world) == ["soon", "whenever"]


# ---------------------------------------------------------------- how well it did


async def test_a_sage_reports_on_itself(world: World) -> None:
    routing = world.router.routing
    request = svc.ReportSageRequest(instance=ROOT)
    await refusal(
        routing.ReportSage(request),
        Code.FAILED_PRECONDITION,
        "SAGE_REFUSED",
        method="ReportPerformance",
    )
    with temporary_directory() as directory:
        async with serving(directory) as address:
            await world.policy(sage_policy(address))
            await world.advise(await world.router.submit("something is odd"))
            response = await routing.ReportSage(request)
            assert response.sage.name
            assert response.performance.decisions == 1
            request.start_time.FromDatetime(NOW.replace(year=NOW.year + 50))
            assert (await routing.ReportSage(request)).performance.decisions == 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await routing.ReportSage(request)
    assert from_rpc_error(caught.value).reason == "SAGE_UNAVAILABLE"


async def test_the_operators_sage_is_asked_where_the_policy_names_none(world: World) -> None:
    await world.policy("strategy: sage")
    placed = await world.advise(await world.router.submit("something is odd"))
    assert "set HOPPER_SAGE_ADDRESS" in (await world.decision(placed)).opinions[-1].reason
    with temporary_directory() as directory:
        async with serving(directory) as address:
            sages = OpenSages(world.router.clock, address)
            assert (await sages.at("").about()).name == "reference"
            await sages.close()


async def test_an_address_of_elsewhere_is_refused_at_the_start() -> None:
    with pytest.raises(AddressRefused):
        OpenSages(ManualClock(NOW), "sage.example:7000")
