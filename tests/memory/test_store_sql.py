"""Episodes in SQL: the suite on every engine, and what is peculiar to SQLite."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, event, text

from hopper_common.errors import StorageFull
from hopper_memory import full_text
from hopper_memory.app import MIGRATIONS
from hopper_memory.full_text import COMMON
from hopper_memory.model import (
    Episode,
    EpisodeOutcome,
    Feedback,
    Match,
    Outcome,
    bins_of,
    prevailing,
    verdict,
)
from hopper_memory.ports import Position
from hopper_memory.store_sql import SqlEpisodeStore
from hopper_memory.tables import EPISODES, METADATA, PENDING_OUTCOMES
from hopper_testing.clock import ManualClock
from hopper_testing.database import FaultyDatabase, differences, temporary_database
from tests.memory.factories import EPISODE_STORES
from tests.memory.samples import START, decision, episode, outcome
from tests.memory.suite_episodes import BAD, EpisodeStoreSuite, chain, feedback_on, found, give


class TestEpisodeStore(EpisodeStoreSuite):
    pass


@pytest.fixture
async def database() -> AsyncIterator[FaultyDatabase]:
    async with temporary_database(metadata=METADATA, migrations=MIGRATIONS, service="memory") as database:
        yield database


@pytest.fixture
def store(database: FaultyDatabase) -> SqlEpisodeStore:
    return SqlEpisodeStore(database, ManualClock())


async def test_the_migrations_make_the_tables() -> None:
    assert await differences(metadata=METADATA, migrations=MIGRATIONS, service="memory") == []


async def test_nothing_waits_that_has_been_joined(database: FaultyDatabase, store: SqlEpisodeStore) -> None:
    await store.record([episode(1)], [outcome(1), outcome(2), outcome(3)])
    await store.record([episode(2)], [outcome(1, Outcome.FAILED)])
    waiting = await database.read(lambda conn: list(conn.scalars(PENDING_OUTCOMES.select())))
    assert waiting == [decision(3)]


async def test_a_request_that_fails_leaves_nothing(database: FaultyDatabase, store: SqlEpisodeStore) -> None:
    broken = replace(episode(2), task=None)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="NOT NULL"):
        await store.record([episode(1, title="login"), broken], [outcome(1)])
    assert await found(store, "login") == []
    assert (await store.stats(project="", instance="")).decisions == 0


async def test_an_answer_that_is_lost_can_be_asked_for_again(
    database: FaultyDatabase, store: SqlEpisodeStore
) -> None:
    await store.record(chain(1, 2), [])
    database.set_next_error(StorageFull(service="memory"), at="answer")
    with pytest.raises(StorageFull):
        await give(store, 2, BAD, request_id="r")
    assert (await give(store, 2, BAD, request_id="r")).passed_to == [decision(1)]
    assert len(await feedback_on(store, 1)) == 1


async def test_the_full_text_index_keeps_in_step(database: FaultyDatabase, store: SqlEpisodeStore) -> None:
    await store.record([episode(1, title="login"), episode(2, title="login", tags=("a", "b"))], [outcome(1)])

    def remove(conn: Connection) -> None:
        conn.execute(EPISODES.delete().where(EPISODES.c.decision == decision(1)))
        # Fails if the index is not what the table says.
        conn.execute(text("INSERT INTO episodes_fts (episodes_fts, rank) VALUES ('integrity-check', 1)"))

    await database.write(remove)
    assert await found(store, "login") == [decision(2)]


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """What is executed meanwhile, with its parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.parametrize("instance", ["", "instances/global"])
async def test_lists_and_sums_come_from_an_index(
    database: FaultyDatabase, store: SqlEpisodeStore, instance: str
) -> None:
    place = Position(START, decision(1))
    with statements() as seen:
        await store.history("projects/web", limit=50, after=place)
        await store.mistakes(instance, limit=50, after=place)
        await store.recent(instance, since=START, limit=20)
        await store.stats(project="", instance=instance)

    def plans(conn: Connection) -> list[str]:
        return [
            "; ".join(
                step.detail for step in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            )
            for statement, parameters in seen
            if "FROM episodes" in statement
        ]

    history, mistakes, recent, counts, score = await database.read(plans)
    of = "instance_" if instance else ""
    assert "INDEX ix_episodes_project (project=? AND (decide_time,decision)<(?,?))" in history
    assert f"INDEX ix_episodes_{of}mistakes" in mistakes
    assert f"INDEX ix_episodes_{'instance' if instance else 'time'}" in recent
    assert f"COVERING INDEX ix_episodes_{'instance' if instance else 'time'}" in counts
    assert "COVERING INDEX ix_episodes_score" in score
    assert "FOR ORDER BY" not in history + mistakes


async def test_a_search_is_sorted_by_the_full_text_index_itself(
    database: FaultyDatabase, store: SqlEpisodeStore
) -> None:
    await store.record([episode(1, title="login")], [])
    with statements() as seen:
        await store.search("login", limit=10, project="projects/web")
    ((query, parameters),) = [entry for entry in seen if "bm25" in entry[0]]
    steps = await database.read(
        lambda conn: [row.detail for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", parameters)]
    )
    assert steps[0].startswith("SCAN episodes_fts VIRTUAL TABLE")
    assert steps[1] == "SEARCH episodes USING INTEGER PRIMARY KEY (rowid=?)"
    assert len(steps) == 2


async def searched(store: SqlEpisodeStore, text: str) -> list[tuple[set[str], int]]:
    """The lookups that a search made: their words, and the oldest row they looked at."""
    with statements() as seen:
        await store.search(text, limit=10)
    lookups = [parameters for statement, parameters in seen if "bm25" in statement]
    return [(set(re.findall(r'"(\w+)"', query)), oldest) for query, oldest, *_ in lookups]


async def test_common_words_are_looked_up_among_the_newest_only(store: SqlEpisodeStore) -> None:
    for start in range(0, 3 * COMMON, 500):
        episodes = [episode(n, title="deploy", tags=("urgent",) * (n % 2)) for n in range(start, start + 500)]
        await store.record(episodes, [])
    await store.record([episode("rare", title="zeppelin")], [])
    first, second = await searched(store, "deploy an urgent zeppelin")
    assert first == ({"zeppelin"}, 0)
    # Of the 3,000 rows with the commonest word, the 1,000 newest.
    assert second == ({"deploy", "urgent", "zeppelin"}, 2 * COMMON + 1)


async def test_rare_words_are_looked_up_until_they_are_too_many(
    store: SqlEpisodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_text, "MOST_SCORED", 20)
    await store.record([episode(n, title="login page" if n < 12 else "login") for n in range(15)], [])
    ((words, oldest),) = await searched(store, "login page")
    assert (words, oldest) == ({"page"}, 0)
    monkeypatch.setattr(full_text, "MOST_SCORED", 27)
    ((words, oldest),) = await searched(store, "login page")
    assert (words, oldest) == ({"login", "page"}, 0)


async def test_words_that_nobody_says_are_not_looked_up(store: SqlEpisodeStore) -> None:
    await store.record([episode(1, title="login")], [])
    assert await searched(store, "nobody says this") == []
    assert await searched(store, "login nobody") == [({"login"}, 0)]


REPORTS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(Outcome)), max_size=12)


@settings(max_examples=30, deadline=None)
@given(REPORTS, st.randoms(use_true_random=False))
def test_however_reports_are_cut_up_the_same_is_left(
    reports: list[tuple[int, Outcome]], random: Random
) -> None:
    """Decisions and outcomes, in requests of any size: what is left is what the model says is left."""
    outcomes = [outcome(number, kind) for number, kind in reports]

    async def play() -> list[EpisodeOutcome | None]:
        async with EPISODE_STORES["sqlite"]() as store:
            sent: list[Episode | EpisodeOutcome] = list(outcomes)
            for number in range(4):
                sent.insert(random.randint(0, len(sent)), episode(number))
            new = 0
            while sent:
                size = random.randint(1, len(sent))
                batch, sent = sent[:size], sent[size:]
                recorded = await store.record(
                    [item for item in batch if isinstance(item, Episode)],
                    [item for item in batch if isinstance(item, EpisodeOutcome)],
                )
                new += recorded.new_episodes
            assert new == 4
            return [(await store.get(decision(number))).outcome for number in range(4)]

    left = {report.decision: report for report in prevailing(outcomes)}
    assert asyncio.run(play()) == [left.get(decision(number)) for number in range(4)]


JUDGEMENTS = st.lists(
    st.tuples(st.floats(0, 1), st.lists(st.sampled_from([None, *Match]), max_size=3)), max_size=15
)


@settings(max_examples=30, deadline=None)
@given(JUDGEMENTS)
def test_the_score_is_what_the_model_makes_of_all_feedback(
    judgements: list[tuple[float, list[Match | None]]],
) -> None:
    async def play() -> None:
        async with EPISODE_STORES["sqlite"]() as store:
            await store.record([episode(n, confidence=c) for n, (c, _) in enumerate(judgements)], [])
            for number, (_, matches) in enumerate(judgements):
                for match in matches:
                    await give(store, number, Feedback(match=match))
            stats = await store.stats(project="", instance="")
            expected = bins_of(newest_verdicts(judgements))
            for made, meant in zip(stats.bins, expected, strict=True):
                assert (made.index, made.count, made.right) == (meant.index, meant.count, meant.right)
                assert made.confidence == pytest.approx(meant.confidence)
                assert made.misplaced == pytest.approx(meant.misplaced)

    asyncio.run(play())


def newest_verdicts(judgements: list[tuple[float, list[Match | None]]]) -> list[tuple[float, bool]]:
    judged = []
    for confidence, matches in judgements:
        verdicts = [verdict(match, project="projects/web") for match in matches]
        said = [right for right in verdicts if right is not None]
        if said:
            judged.append((confidence, said[-1]))
    return judged
