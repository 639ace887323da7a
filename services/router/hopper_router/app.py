"""Builds the router from what its host gives it, in order, and closes it in reverse: it alone knows everything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Final, NamedTuple

import grpc.aio

from hopper.router.v1 import (
    delegation_service_pb2,
    queue_service_pb2,
    routing_service_pb2,
    schedule_service_pb2,
    task_service_pb2,
    work_service_pb2,
)
from hopper.router.v1.delegation_service_pb2_grpc import add_DelegationServiceServicer_to_server
from hopper.router.v1.queue_service_pb2_grpc import add_QueueServiceServicer_to_server
from hopper.router.v1.routing_service_pb2_grpc import add_RoutingServiceServicer_to_server
from hopper.router.v1.schedule_service_pb2_grpc import add_ScheduleServiceServicer_to_server
from hopper.router.v1.task_service_pb2_grpc import add_TaskServiceServicer_to_server
from hopper.router.v1.work_service_pb2_grpc import add_WorkServiceServicer_to_server
from hopper_common.clock import Ahead, Clock, SharedClock
from hopper_common.database import Database
from hopper_common.errors import HopperError
from hopper_common.host import HostContext, Running, Service
from hopper_common.rpc.server import Registered
from hopper_router import tables
from hopper_router.advice import Adviser
from hopper_router.advice_client import MemoryClient, OpenSages
from hopper_router.advice_store import SqlBudgetStore
from hopper_router.clockwork import CLOCKS_APART, Clockwork
from hopper_router.decomposing import Decomposer
from hopper_router.delegation_servicer import DelegationServicer
from hopper_router.engine import Engine
from hopper_router.episode_source import StoredEpisodes
from hopper_router.episodes import EpisodeSender
from hopper_router.holders import Holders
from hopper_router.learned import Learned
from hopper_router.lessons import LessonWatch
from hopper_router.llm.budget import Budget
from hopper_router.llm.guarded import GuardedAdvisor
from hopper_router.llm.opening import open_advisor
from hopper_router.llm.settings import LlmSettings
from hopper_router.measures import RouterMeasures
from hopper_router.queue_order import QueueOrder
from hopper_router.queue_servicer import QueueServicer
from hopper_router.registry_client import RegistryClient
from hopper_router.retention import Retention
from hopper_router.routing_servicer import RoutingServicer
from hopper_router.sage_outcomes import SageOutcomes
from hopper_router.schedule_servicer import ScheduleServicer
from hopper_router.scheduling import Scheduler
from hopper_router.shadow import Shadow
from hopper_router.store_sql import EVENTS
from hopper_router.task_servicer import TaskServicer
from hopper_router.verdicts import MemoryVerdicts, NoVerdicts, Verdicts
from hopper_router.work_servicer import WorkServicer

AGREE_EVERY: Final = 30.0
MOST_AHEAD: Final = timedelta(days=1)


@asynccontextmanager
async def open_router(context: HostContext) -> AsyncIterator[Running]:
    """Open the database and the channels; what runs beside the server is started by the host."""
    db = await Database.open(
        context.database("router"),
        metadata=tables.metadata,
        migrations="hopper_router.migrations",
        service="router",
    )
    registry_channel = context.open_channel("registry")
    memory_channel = context.open_channel("memory")
    stack = AsyncExitStack()
    try:
        registry = RegistryClient(registry_channel, db)
        await registry.load()
        clock = SharedClock(context.clock)
        clock.agree(await _first_ahead(context.clock, db))
        learned = Learned()
        engine = await Engine.open(db, registry, clock, learned)
        lessons = LessonWatch(memory_channel, learned, file=context.data_dir / "learned.model")
        learned.catch_up = lessons.wait_caught_up
        episodes = EpisodeSender(memory_channel, StoredEpisodes(db, lambda: registry.current.projects))
        advice = await stack.enter_async_context(
            _open_advice(engine, memory_channel, clock, context.settings.sage_address or "")
        )
        clockwork = Clockwork(engine, apart=CLOCKS_APART if db.dialect == "postgresql" else timedelta())
        scheduler = Scheduler(engine)
        shadow = Shadow(engine)

        async def keep_agreeing() -> None:
            while True:
                await asyncio.sleep(AGREE_EVERY)
                with contextlib.suppress(HopperError):  # the database is away; its clock can wait
                    clock.agree(await db.clock_ahead(context.clock))

        async def learn() -> None:
            await learned.wanted.wait()
            await lessons.run()

        async def stop_waiting() -> None:
            await context.stopping.wait()
            engine.stop()

        yield Running(
            registered=_registered(
                engine, MemoryVerdicts(memory_channel), advice, Holders(db, context.directory)
            ),
            measures=[RouterMeasures(engine)] if context.settings.metrics else [],
            tasks=[
                registry.run,
                # Of several routers on one database one does each of these; all of them are right whoever does them.
                lambda: db.lead("episodes", episodes.run),
                lambda: db.lead("sweep", clockwork.sweep_forever),
                lambda: db.lead("follow", clockwork.follow_forever),
                lambda: db.lead("housekeep", clockwork.housekeep_forever),
                lambda: db.lead("words", engine.words.run),
                lambda: db.lead("scheduler", scheduler.schedule_forever),
                lambda: db.lead("shadow", shadow.run),
                lambda: db.lead("advise", advice.adviser.run),
                lambda: db.lead("queue-order", advice.order.run),
                lambda: db.lead("sage-outcomes", SageOutcomes(engine, advice.sages).run),
                engine.queues.run,
                engine.lookout.run,  # for each router its own, as it is in memory
                learn,  # every router for itself: they learn the same
                lambda: db.lead("retention", Retention(db, context.clock).run),
                stop_waiting,
                keep_agreeing,
            ],
        )
    finally:
        await stack.aclose()
        await memory_channel.close()
        await registry_channel.close()
        await db.close()


class Advice(NamedTuple):
    """Those who ask others, and whom they ask."""

    sages: OpenSages
    adviser: Adviser
    order: QueueOrder
    decomposer: Decomposer


@asynccontextmanager
async def _open_advice(
    engine: Engine, memory: grpc.aio.Channel, clock: Clock, sage_address: str
) -> AsyncIterator[Advice]:
    """The language model that the settings describe, if they do, and the Sages that policies name."""
    settings = LlmSettings()
    sages = OpenSages(clock, sage_address)
    client = open_advisor(settings, clock) if settings.url else None
    model = None
    if client is not None:
        model = GuardedAdvisor(client, Budget(SqlBudgetStore(engine.db, "llm"), clock), clock)
    sage_budget = Budget(SqlBudgetStore(engine.db, "sage"), clock)
    adviser = Adviser(engine, MemoryClient(memory), sages, sage_budget, clock, model)
    try:
        order = QueueOrder(engine, sages, sage_budget)
        yield Advice(sages, adviser, order, Decomposer(engine, model))
    finally:
        await sages.close()
        if client is not None:
            await client.close()


async def _first_ahead(clock: Clock, db: Database) -> Ahead:
    """
    How far the clock to begin with is ahead of ours: the one of the database, but not before what has been logged.

    Leases are given by one router and ended by another: all of a database read the same clock, its server's; of a file,
    our own. If it was stepped back while we were away, the leases of before would last longer by that. A log that is
    far ahead is not believed: then its clock was wrong.
    """
    ahead = await db.clock_ahead(clock)
    logged = await db.read(EVENTS.newest_time)
    shared = clock.now() + ahead.middle
    return Ahead.by(logged - clock.now()) if logged and shared < logged <= shared + MOST_AHEAD else ahead


def _registered(
    engine: Engine,
    verdicts: Verdicts | None = None,
    advice: Advice | None = None,
    holders: Holders | None = None,
) -> Sequence[Registered]:
    return [
        Registered.of(
            task_service_pb2.DESCRIPTOR.services_by_name["TaskService"],
            TaskServicer(engine),
            add_TaskServiceServicer_to_server,
        ),
        Registered.of(
            routing_service_pb2.DESCRIPTOR.services_by_name["RoutingService"],
            RoutingServicer(
                engine, verdicts or NoVerdicts(), advice.sages if advice else OpenSages(engine.clock)
            ),
            add_RoutingServiceServicer_to_server,
        ),
        Registered.of(
            work_service_pb2.DESCRIPTOR.services_by_name["WorkService"],
            WorkServicer(engine, holders),
            add_WorkServiceServicer_to_server,
        ),
        Registered.of(
            delegation_service_pb2.DESCRIPTOR.services_by_name["DelegationService"],
            DelegationServicer(engine, advice.decomposer if advice else Decomposer(engine), holders),
            add_DelegationServiceServicer_to_server,
        ),
        Registered.of(
            schedule_service_pb2.DESCRIPTOR.services_by_name["ScheduleService"],
            ScheduleServicer(engine),
            add_ScheduleServiceServicer_to_server,
        ),
        Registered.of(
            queue_service_pb2.DESCRIPTOR.services_by_name["QueueService"],
            QueueServicer(engine),
            add_QueueServiceServicer_to_server,
        ),
    ]


SERVICE = Service(name="router", open=open_router)
