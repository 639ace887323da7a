"""Asking others about tasks that nobody in memory is sure of: an LLM, a Sage, a person; by gRPC, on both engines."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from hopper.router.v1 import decision_pb2, routing_service_pb2
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as svc
from hopper_common.clock import SystemClock
from hopper_common.errors import NotFound
from hopper_router import advice_store
from hopper_router.advice import Adviser, Precedent
from hopper_router.advice_client import OpenSages
from hopper_router.advice_store import Said, SqlBudgetStore
from hopper_router.llm.budget import Breaker, Budget, Spent
from hopper_router.llm.endpoint import Endpoint, HttpAdvisor
from hopper_router.llm.guarded import GuardedAdvisor
from hopper_router.llm.openai import OpenAI
from hopper_router.model import Task
from tests.router.harness import NOW, ROOT, Code, Reason, Router, State, refusal, until, violations
from tests.router.llm.published import KEY, MODEL, Sent, check_openai, completion
from tests.router.llm.server import Behaviour, Server, a_server, answers, resets, says, truncates

Word = decision_pb2.Opinion.Word
WEB, API, OPS = "projects/web", "projects/api", "projects/ops"
LLM = """
strategy: hybrid
stages:
  - {use: rules, threshold: 0.8}
  - {use: llm, threshold: 0.6, deadline: 2s}
"""


class EpisodesOfTest:
    """`advice.Memory` that remembers what the test says."""

    def __init__(self) -> None:
        self.precedents: list[Precedent] = []
        self.told: list[Said] = []
        self.unknown: set[str] = set()

    async def similar(self, task: Task) -> Sequence[Precedent]:
        return self.precedents

    async def tell(self, said: Said) -> None:
        if said.decision in self.unknown:
            raise NotFound
        self.told.append(said)


@dataclass
class World:
    """A router with an adviser that asks a language model on a real HTTP server."""

    router: Router
    server: Server
    adviser: Adviser
    memory: EpisodesOfTest
    prices: Decimal = Decimal(1)
    asked: list[str] = field(default_factory=list)

    def says(self, project: str = API, confidence: float = 0.9, reason: str = "because") -> None:
        """The model answers so from now on."""
        self.server.then(answer(project, confidence, reason))

    def behaves(self, *behaviours: Behaviour) -> None:
        self.server.then(*behaviours)

    async def policy(self, source: str) -> None:
        policy = decision_pb2.Policy(name=f"{ROOT}/policy", source=source)
        await self.router.routing.UpdatePolicy(routing_service_pb2.UpdatePolicyRequest(policy=policy))

    async def advise(self, task: pb.Task | str) -> pb.Task:
        """Have the adviser ask about one task; returns it as it is then."""
        name = task if isinstance(task, str) else task.name
        await self.adviser.inquire(name)
        return await self.router.get(name)

    async def decision(self, task: pb.Task) -> decision_pb2.Decision:
        """The last decision about a task."""
        request = routing_service_pb2.GetDecisionRequest(name=task.decision)
        return (await self.router.routing.GetDecision(request)).decision

    async def answer(self, task: pb.Task, text: str, by: str = "ann") -> pb.Task:
        request = svc.AnswerTaskRequest(name=task.name, answer=text, answered_by=by)
        return (await self.router.tasks.AnswerTask(request)).task

    async def spent(self) -> Spent:
        return await SqlBudgetStore(self.router.db, "llm").change(ROOT, NOW.date(), lambda spent: spent)


def answer(project: str | None, confidence: float = 0.9, reason: str = "because") -> Behaviour:
    said = {"reason": reason, "project": project or "none", "confidence": confidence}
    return says(completion(json.dumps(said)))


@asynccontextmanager
async def advising(router: Router, *, configured: bool = True) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(a_server([answer(API)]))
        endpoint = Endpoint(
            url=f"http://127.0.0.1:{server.port}/v1",
            model=MODEL,
            key=KEY,
            price_in=Decimal(1),
            price_out=Decimal(1),
            attempts=1,
        )
        client = await stack.enter_async_context(HttpAdvisor(endpoint, OpenAI(), router.clock))
        budget = Budget(SqlBudgetStore(router.db, "llm"), router.clock)
        model = GuardedAdvisor(client, budget, Breaker(failures=1000), router.clock)
        sages = OpenSages(SystemClock())
        stack.push_async_callback(sages.close)
        memory = EpisodesOfTest()
        sage_budget = Budget(SqlBudgetStore(router.db, "sage"), router.clock)
        adviser = Adviser(
            router.engine, memory, sages, sage_budget, router.clock, model if configured else None
        )
        yield World(router, server, adviser, memory)


@pytest.fixture
async def world(router: Router) -> AsyncIterator[World]:
    """Three projects that know about different things."""
    router.registry.project("web", description="the shop: basket, checkout, payments")
    router.registry.project("api", description="interfaces, tokens, rate limits")
    router.registry.project("ops", description="servers, backups, deployment")
    async with advising(router) as made:
        yield made


# ---------------------------------------------------------------- the LLM


async def test_what_nobody_is_sure_of_waits_for_the_llm_and_goes_where_it_says(world: World) -> None:
    await world.policy(LLM)
    task = await world.router.submit("something is odd")
    assert (task.state, task.wait.reason, list(task.wait.on)) == (
        State.STATE_SUBMITTED,
        Reason.REASON_UNSURE,
        ["llm"],
    )
    placed = await world.advise(task)
    assert (placed.state, placed.project) == (State.STATE_QUEUED, API)
    decision = await world.decision(placed)
    assert (decision.strategy, decision.confidence) == ("llm", 0.9)
    assert "the LLM chose api: because" in decision.reasoning
    assert [(said.stage, said.word) for said in decision.opinions] == [
        ("rules", Word.WORD_UNSURE),
        ("llm", Word.WORD_CHOICE),
    ]
    said = decision.opinions[-1]
    assert said.model.startswith(MODEL)
    assert (said.input_tokens, said.output_tokens, said.money_micros) == (120, 30, 150)
    assert [complaint for sent in world.server.sent for complaint in check_openai(sent)] == []


async def test_what_is_sure_is_placed_at_once_and_nobody_is_asked(world: World) -> None:
    await world.policy(LLM + "rules: [{name: r, when: {keyword: odd}, then: {project: ops}}]")
    task = await world.router.submit("something is odd")
    assert (task.state, task.project) == (State.STATE_QUEUED, OPS)
    assert not world.server.sent
    (said,) = (await world.decision(task)).opinions
    assert (said.stage, said.word, said.project) == ("rules", Word.WORD_CHOICE, OPS)
