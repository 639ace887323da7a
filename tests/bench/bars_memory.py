"""
Memory: how long it takes to find, record and score 50,000 episodes.

Words are drawn as people use them: few all the time, most of them hardly ever (Zipf), from a vocabulary of
20,000. Every query goes through the store, on a database file, one at a time.
"""

import itertools
import random
import time
from collections.abc import Sequence

from hopper_memory.app import MIGRATIONS
from hopper_memory.model import Outcome
from hopper_memory.store_sql import SqlEpisodeStore
from hopper_memory.tables import METADATA
from hopper_testing.clock import ManualClock
from hopper_testing.database import temporary_database
from tests.bench.bar import Result, bar, quantiles
from tests.bench.rig import Rig
from tests.memory.samples import episode, outcome

VOCABULARY = [
    "".join(letters) for letters in itertools.product("bdfgklmnprst", "aeiou", "bdgklmnprst", "aeiou")
]
VOCABULARY += [f"{word}x{index}" for index, word in enumerate(VOCABULARY * 6)]
WEIGHTS = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(VOCABULARY))))
QUERIES = 300
REQUEST = 500
EPISODES = 50_000


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


async def searched(store: SqlEpisodeStore, writer: Writer, words: int, **only: str) -> dict[str, float]:
    """How long it takes to find episodes like texts of so many words."""
    times = []
    for _ in range(QUERIES):
        text = writer.text(words)
        began = time.perf_counter()
        await store.search(text, limit=10, **only)
        times.append(time.perf_counter() - began)
    return quantiles(times)


@bar
async def memory(_: Rig) -> Sequence[Result]:
    """Searching, recording and scoring 50,000 episodes, through the store, one at a time."""
    writer = Writer(seed=1)
    async with temporary_database(metadata=METADATA, migrations=MIGRATIONS, service="memory") as database:
        store = SqlEpisodeStore(database, ManualClock())
        recorded = quantiles(await fill(store, writer, EPISODES))
        sides = {
            f"record {REQUEST} episodes with outcomes": recorded,
            **{f"search, {words} words": await searched(store, writer, words) for words in (3, 8, 200)},
            "search in a large project, 8 words": await searched(store, writer, 8, project="projects/p1"),
            "search in the only instance, 8 words": await searched(
                store, writer, 8, instance="instances/global"
            ),
        }
        began = time.perf_counter()
        await store.stats(project="", instance="")
        scored = (time.perf_counter() - began) * 1e3
    found = sides["search, 8 words"]["p99_ms"]
    return [
        Result(f"SearchSimilar by a title among {EPISODES:,} episodes, p99", found, "ms", sides=sides),
        Result(f"GetStats over {EPISODES:,} episodes", round(scored, 1), "ms"),
    ]
