from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hopper_common.database import Database
from hopper_common.migrations import differences
from hopper_sage.app import MIGRATIONS, NAME
from hopper_sage.errors import QuestionConflict
from hopper_sage.journal import SqlJournal
from hopper_sage.model import (
    Abstention,
    Advised,
    Answer,
    Choice,
    Clarification,
    Cost,
    Outcome,
    Task,
    Told,
    Why,
)
from hopper_sage.tables import METADATA
from tests.sage.factories import API, OPS, WEB, question, task
from tests.sage.harness import opened_journal

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqlJournal]:
    async with opened_journal(tmp_path) as opened:
        yield opened


async def ask(
    journal: SqlJournal,
    decision: str,
    about: Task,
    answer: Answer,
    *,
    now: datetime = NOW,
    cost: Cost = Cost(),  # noqa: B008 - frozen
) -> None:
    asked = question(decision=decision, about=about)
    await journal.write_answer(asked, decision.encode(), Advised(answer, cost), b"response", now)


async def test_the_migrations_make_the_table_as_it_is_described(tmp_path: Path) -> None:
    database = await Database.open(
        tmp_path / "sage.db", metadata=METADATA, migrations=MIGRATIONS, service=NAME
    )
    try:
        assert await database.read(lambda conn: differences(conn, metadata=METADATA, service=NAME)) == []
    finally:
        await database.close()


async def test_the_first_answer_counts(journal: SqlJournal) -> None:
    asked, first = question(decision="d1"), Advised(Choice(WEB, 0.9, "so"))
    assert await journal.answered(asked.decision, b"digest") is None
    assert await journal.write_answer(asked, b"digest", first, b"one", NOW) == b"one"
    assert await journal.write_answer(asked, b"digest", Advised(Choice(API, 0.9, "")), b"two", NOW) == b"one"
    assert await journal.answered(asked.decision, b"digest") == b"one"
    (kept,) = await journal.consulted(None, None)
    assert kept.answer == Choice(WEB, 0.9, "")


async def test_another_question_about_a_decision_is_a_conflict(journal: SqlJournal) -> None:
    await ask(journal, "d1", task(), Choice(WEB, 0.9, ""))
    with pytest.raises(QuestionConflict) as caught:
        await journal.answered("decisions/d1", b"other")
    assert dict(caught.value.metadata) == {"request_id": "decisions/d1", "method": "DecideRouting"}
    with pytest.raises(QuestionConflict):
        await journal.write_answer(question(), b"other", Advised(Choice(WEB, 0.9, "")), b"", NOW)


async def test_all_kinds_of_answers_come_back_with_their_cost(journal: SqlJournal) -> None:
    answers: list[Answer] = [Choice(WEB, 0.5, ""), Clarification(""), *(Abstention(why, "") for why in Why)]
    for number, answer in enumerate(answers):
        await ask(journal, f"d{number}", task(), answer, cost=Cost(1, 2, 3, 4))
    kept = await journal.consulted(None, None)
    assert [one.answer for one in kept] == answers
    assert {one.cost for one in kept} == {Cost(1, 2, 3, 4)}


async def test_a_time_is_from_its_start_to_before_its_end(journal: SqlJournal) -> None:
    for days in range(4):
        await ask(journal, f"d{days}", task(), Choice(WEB, days / 4, ""), now=NOW + days * DAY)
    kept = await journal.consulted(NOW + DAY, NOW + 3 * DAY)
    assert [one.answer.confidence for one in kept if isinstance(one.answer, Choice)] == [0.25, 0.5]


async def test_an_outcome_may_come_before_the_question(journal: SqlJournal) -> None:
    told = Told("decisions/d1", Outcome.SUCCEEDED, WEB, task=task())
    assert await journal.record([told], NOW) == (1, 0)
    assert await journal.consulted(None, None) == []
    await ask(journal, "d1", task(), Choice(WEB, 0.9, ""), now=NOW + DAY)
    (kept,) = await journal.consulted(NOW + DAY, None)
    assert kept.told is not None
    assert kept.told.final_project == WEB


async def test_the_greatest_revision_counts_in_any_order(journal: SqlJournal) -> None:
    await ask(journal, "d1", task(), Choice(WEB, 0.9, ""))
    told = [
        Told("decisions/d1", Outcome.REROUTED, API, revision=1),
        Told("decisions/d1", Outcome.SUCCEEDED, API, True, DAY, revision=7),
        Told("decisions/d1", Outcome.FAILED, WEB, revision=3),
        Told("decisions/d1", Outcome.FAILED, WEB, revision=7),
    ]
    assert await journal.record(told, NOW) == (2, 0)
    (kept,) = await journal.consulted(None, None)
    assert kept.told == told[1]


async def test_outcomes_of_strange_decisions_are_not_kept(journal: SqlJournal) -> None:
    assert await journal.record([Told("decisions/d1", Outcome.SUCCEEDED, WEB)], NOW) == (0, 1)
    assert await journal.similar([task()], limit=5) == [[]]


async def test_like_tasks_are_found_with_what_is_known_of_them(journal: SqlJournal) -> None:
    await ask(journal, "right", task("Fix the login page"), Choice(WEB, 0.9, ""))
    await ask(journal, "wrong", task("Fix the login form"), Choice(WEB, 0.9, ""))
    await ask(journal, "failed", task("The login page failed"), Choice(OPS, 0.9, ""))
    await ask(journal, "open", task("Fix the login page"), Choice(WEB, 0.9, ""))
    await ask(journal, "other", task("Renew a certificate"), Choice(OPS, 0.9, ""))
    told = [
        Told("decisions/right", Outcome.SUCCEEDED, WEB, duration=DAY),
        Told("decisions/wrong", Outcome.REROUTED, API, True),
        Told("decisions/failed", Outcome.FAILED, OPS),
        Told("decisions/other", Outcome.SUCCEEDED, OPS),
    ]
    assert await journal.record(told, NOW) == (4, 0)
    (found,) = await journal.similar([task("Fix the login page")], limit=5)
    assert [(one.decision, one.belongs, set(one.not_with)) for one in found] == [
        ("decisions/right", WEB, set()),
        ("decisions/wrong", API, {WEB}),
        ("decisions/failed", None, {OPS}),
    ]
    assert found[0].similarity == pytest.approx(1.0)
    assert found[0].duration == DAY


async def test_the_words_of_other_forms_are_found_too(journal: SqlJournal) -> None:
    await ask(journal, "d1", task("Failing payments"), Choice(WEB, 0.9, ""))
    await journal.record([Told("decisions/d1", Outcome.SUCCEEDED, WEB)], NOW)
    (found,) = await journal.similar([task("payments that failed")], limit=5)
    assert [one.decision for one in found] == ["decisions/d1"]


@pytest.mark.parametrize(
    "title", ['"', "AND OR NOT", "*", "?!", "a'; DROP TABLE entries; --", "請求書", "NEAR(a b)"]
)
async def test_any_text_can_be_searched_for(journal: SqlJournal, title: str) -> None:
    await ask(journal, "d1", task(title), Choice(WEB, 0.9, ""))
    await journal.record([Told("decisions/d1", Outcome.SUCCEEDED, WEB)], NOW)
    (found,) = await journal.similar([task(title)], limit=5)
    assert len(found) <= 1
    assert len(await journal.consulted(None, None)) == 1


async def test_several_tasks_are_looked_up_at_once(journal: SqlJournal) -> None:
    await ask(journal, "d1", task("Fix the login page"), Choice(WEB, 0.9, ""))
    await journal.record([Told("decisions/d1", Outcome.SUCCEEDED, WEB)], NOW)
    found = await journal.similar([task("login page"), task("certificate"), task("page")], limit=5)
    assert [len(one) for one in found] == [1, 0, 1]


async def test_what_was_said_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    async with opened_journal(tmp_path) as journal:
        await ask(journal, "d1", task(), Choice(WEB, 0.9, ""))
        await journal.record([Told("decisions/d1", Outcome.SUCCEEDED, WEB)], NOW)
    async with opened_journal(tmp_path) as journal:
        assert await journal.answered("decisions/d1", b"d1") == b"response"
        assert await journal.record([Told("decisions/d1", Outcome.SUCCEEDED, WEB)], NOW) == (0, 0)
