"""
Working memory in this process: a dictionary that forgets.

When something is forgotten is decided by the monotonic clock, so that a change of the time of day neither
loses nor keeps it; what callers are told is the time of day it came out as. Entries leave when their time is
over, at the next call of any kind, not only when somebody asks for them.
"""

import heapq
from datetime import timedelta
from typing import NamedTuple

from hopper_common.clock import Clock
from hopper_memory.errors import ContextNotFound, WorkingMemoryFull
from hopper_memory.model import Context

MOST_CONTEXTS = 100_000


class _Entry(NamedTuple):
    context: Context
    deadline: float  # of the monotonic clock


class InProcessWorkingMemory:
    """
    A `ports.WorkingMemory` that ends with its process.

    Args:
        most: Contexts held at a time.
    """

    def __init__(self, clock: Clock, *, most: int = MOST_CONTEXTS) -> None:
        self._clock = clock
        self._most = most
        self._entries: dict[str, _Entry] = {}
        # Every deadline ever set, soonest first. Those of replaced entries stay until their time comes, or
        # until they outnumber the others.
        self._deadlines: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: str) -> Context:
        self._forget()
        entry = self._entries.get(key)
        if entry is None:
            raise ContextNotFound(f"working memory holds nothing under {key!r} (any more)", context=key)
        return entry.context

    async def put(self, key: str, value: bytes, time_to_live: timedelta) -> Context:
        self._forget()
        if key not in self._entries and len(self._entries) >= self._most:
            raise WorkingMemoryFull(service="memory")
        context = Context(key, value, time_to_live, self._clock.now() + time_to_live)
        deadline = self._clock.monotonic() + time_to_live.total_seconds()
        self._entries[key] = _Entry(context, deadline)
        heapq.heappush(self._deadlines, (deadline, key))
        self._tidy()
        return context

    def _forget(self) -> None:
        now = self._clock.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, key = heapq.heappop(self._deadlines)
            entry = self._entries.get(key)
            if entry is not None and entry.deadline == deadline:
                del self._entries[key]

    def _tidy(self) -> None:
        if len(self._deadlines) > 2 * len(self._entries) + 64:
            self._deadlines = [(entry.deadline, key) for key, entry in self._entries.items()]
            heapq.heapify(self._deadlines)
