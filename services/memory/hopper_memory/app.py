"""Builds memory from its settings, in order, and closes it in reverse."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hopper.memory.v1 import (
    episodic_service_pb2,
    episodic_service_pb2_grpc,
    feedback_service_pb2,
    feedback_service_pb2_grpc,
    learning_service_pb2,
    learning_service_pb2_grpc,
    working_service_pb2,
    working_service_pb2_grpc,
)
from hopper_common.clock import Clock
from hopper_common.database import Database, dialect_of
from hopper_common.errors import DatabaseUnsupported
from hopper_common.host import HostContext, Running, Service
from hopper_common.rpc.server import Registered
from hopper_memory.learning import LearningServicer, Watchers
from hopper_memory.ports import EpisodeStore, LessonStore, ModelStore, WorkingMemory
from hopper_memory.servicer import EpisodicMemoryServicer, FeedbackServicer, WorkingMemoryServicer
from hopper_memory.settings import MemorySettings
from hopper_memory.store_lessons import SqlLessonStore, SqlModelStore
from hopper_memory.store_sql import SqlEpisodeStore
from hopper_memory.tables import METADATA
from hopper_memory.working import InProcessWorkingMemory

NAME = "memory"
MIGRATIONS = "hopper_memory.migrations"


def registered(
    store: EpisodeStore, lessons: LessonStore, models: ModelStore, working: WorkingMemory, clock: Clock
) -> list[Registered]:
    """The gRPC services of memory, over any storage."""
    watchers = Watchers()
    return [
        Registered.of(
            episodic_service_pb2.DESCRIPTOR.services_by_name["EpisodicMemoryService"],
            EpisodicMemoryServicer(store, clock),
            episodic_service_pb2_grpc.add_EpisodicMemoryServiceServicer_to_server,
        ),
        Registered.of(
            feedback_service_pb2.DESCRIPTOR.services_by_name["FeedbackService"],
            FeedbackServicer(store, clock, watchers),
            feedback_service_pb2_grpc.add_FeedbackServiceServicer_to_server,
        ),
        Registered.of(
            learning_service_pb2.DESCRIPTOR.services_by_name["LearningService"],
            LearningServicer(lessons, models, watchers),
            learning_service_pb2_grpc.add_LearningServiceServicer_to_server,
        ),
        Registered.of(
            working_service_pb2.DESCRIPTOR.services_by_name["WorkingMemoryService"],
            WorkingMemoryServicer(working, store, clock),
            working_service_pb2_grpc.add_WorkingMemoryServiceServicer_to_server,
        ),
    ]


@asynccontextmanager
async def _open(context: HostContext) -> AsyncIterator[Running]:
    settings = MemorySettings()
    where = context.database(NAME)
    if dialect_of(where) != "sqlite":
        raise DatabaseUnsupported(
            "memory keeps its data in a file only, until its search runs on PostgreSQL: set HOPPER_MEMORY_DATABASE "
            "to a file"
        )
    database = await Database.open(where, metadata=METADATA, migrations=MIGRATIONS, service=NAME)
    try:
        store = SqlEpisodeStore(database, context.clock)
        lessons, models = (
            SqlLessonStore(database),
            SqlModelStore(database, context.clock, keep_lessons=settings.keep_lessons),
        )
        working = InProcessWorkingMemory(context.clock, most=settings.contexts)
        yield Running(registered(store, lessons, models, working, context.clock))
    finally:
        await database.close()


SERVICE = Service(NAME, _open)
