"""The engines that the suites run on. A new one is added here, and passes them all or is not ready."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from hopper_memory.app import MIGRATIONS
from hopper_memory.ports import EpisodeStore, WorkingMemory
from hopper_memory.store_sql import SqlEpisodeStore
from hopper_memory.tables import METADATA
from hopper_memory.working import InProcessWorkingMemory
from hopper_testing.clock import ManualClock
from hopper_testing.database import temporary_database

MakeEpisodeStore = Callable[[], AbstractAsyncContextManager[EpisodeStore]]
# The clock it forgets by, and how many contexts it may hold.
MakeWorkingMemory = Callable[[ManualClock, int], AbstractAsyncContextManager[WorkingMemory]]


@asynccontextmanager
async def _sqlite() -> AsyncIterator[EpisodeStore]:
    async with temporary_database(metadata=METADATA, migrations=MIGRATIONS, service="memory") as database:
        yield SqlEpisodeStore(database, ManualClock())


@asynccontextmanager
async def _in_process(clock: ManualClock, most: int) -> AsyncIterator[WorkingMemory]:
    yield InProcessWorkingMemory(clock, most=most)


EPISODE_STORES: Mapping[str, MakeEpisodeStore] = {"sqlite": _sqlite}
WORKING_MEMORIES: Mapping[str, MakeWorkingMemory] = {"in-process": _in_process}
