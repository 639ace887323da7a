"""
How long SearchSimilar takes with 50,000 episodes: `python -m tests.memory.bench_search [episodes]`.

Words are drawn as people use them: few all the time, most of them hardly ever (Zipf), from a vocabulary of
20,000. Every query goes through the store, on a database file, one at a time.
"""

import asyncio
import itertools
import random
import sys
import time
from collections.abc import Sequence

from hopper_memory.app import MIGRATIONS
from hopper_memory.model import Outcome
from hopper_memory.store_sql import SqlEpisodeStore
from hopper_memory.tables import METADATA
from hopper_testing.clock import ManualClock
from hopper_testing.database import temporary_database
from tests.memory.samples import episode, outcome

VOCABULARY = [
    "".join(letters) for letters in itertools.product("bdfgklmnprst", "aeiou", "bdgklmnprst", "aeiou")
]
VOCABULARY += [f"{word}x{index}" for index, word in enumerate(VOCABULARY * 6)]
WEIGHTS = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(VOCABULARY))))
QUERIES = 300
REQUEST = 500


class Writer:
    """Somebody who writes, the same every time."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._words = list(VOCABULARY)
        self._random.shuffle(self._words)

    def text(self, words: int) -> str:
        return " ".join(self._random.choices(self._words, cum_weights=WEIGHTS, k=words))

    def project(self) -> str:
        return f"projects/p{min(int(self._random.paretovariate(1)), 50)}"


async def fill(store: SqlEpisodeStore, writer: Writer, count: int) -> Sequence[float]:
    """Record so many episodes with outcomes; returns seconds for each request of 500."""
    times = []
    for start in range(0, count, REQUEST):
        numbers = range(start, min(start + REQUEST, count))
        episodes = [
            episode(
                number,
                title=writer.text(8),
                description=writer.text(60),
                tags=tuple(writer.text(3).split()),
                project=writer.project(),
            )
            for number in numbers
        ]
        outcomes = [outcome(number, Outcome.SUCCEEDED) for number in numbers]
        began = time.perf_counter()
        await store.record(episodes, outcomes)
        times.append(time.perf_counter() - began)
    return times


def report(what: str, seconds: Sequence[float]) -> None:
    ordered = sorted(seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    print(f"{what:34} p50 {p50 * 1000:7.2f} ms   p99 {p99 * 1000:7.2f} ms", flush=True)


async def measure(store: SqlEpisodeStore, writer: Writer, what: str, words: int, **only: str) -> None:
    times = []
    for _ in range(QUERIES):
        text = writer.text(words)
        began = time.perf_counter()
        await store.search(text, limit=10, **only)
        times.append(time.perf_counter() - began)
    report(f"{what}, {words} words", times)


async def main(count: int) -> None:
    writer = Writer(seed=1)
    async with temporary_database(metadata=METADATA, migrations=MIGRATIONS, service="memory") as database:
        store = SqlEpisodeStore(database, ManualClock())
        report(f"record {REQUEST} of {count}", await fill(store, writer, count))
        for words in (1, 3, 8, 30, 200):
            await measure(store, writer, "search", words)
        for words in (3, 8, 30, 200):
            await measure(store, writer, "search in a large project", words, project="projects/p1")
        await measure(store, writer, "search in a small project", 8, project="projects/p40")
        await measure(store, writer, "search in the only instance", 8, instance="instances/global")
        began = time.perf_counter()
        await store.stats(project="", instance="")
        report("score of all", [time.perf_counter() - began])


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000))
