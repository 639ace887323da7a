"""Deciding by what was learned: from nothing, from lessons, beside rules and circumstances; kept and restored."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from hopper_learning import Encoder, WordLlamaEncoder
from hopper_router import routing
from hopper_router.filters import Sieve, sieve
from hopper_router.learned import Learned
from hopper_router.load import Load, column_of
from hopper_router.model import Basis, Decision, Lesson, Outcome, Project, TaskSpec, Truth
from hopper_router.policy_yaml import load_policy
from hopper_router.routing import Candidates
from hopper_router.rules import Policy

HERE = "instances/global"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOWHERE = Basis(0, 0, "", 0)
SHOP = Project("projects/shop", display_name="Web shop", description="checkout, basket, payments, refunds")
INFRA = Project(
    "projects/infra", display_name="Infrastructure", description="servers, build agents, deployment"
)
DOCS = Project("projects/docs", display_name="Documentation", description="manuals, tutorials, release notes")
LEARNED = load_policy("strategy: learned")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return WordLlamaEncoder()


@pytest.fixture
async def learned(encoder: Encoder) -> Learned:
    learned = Learned(lambda: encoder)
    await learned.wake()
    return learned


def decide(
    learned: Learned,
    title: str,
    projects: Iterable[Project] = (SHOP, INFRA, DOCS),
    policy: Policy = LEARNED,
    **circumstances: int,
) -> Decision:
    return routing.decide(
        TaskSpec(title=title),
        Candidates.compile(projects),
        policy,
        load=Load({f"projects/{name}": count for name, count in circumstances.items()}),
        refused={},
        basis=NOWHERE,
        strategies=learned.strategies(HERE),
    )


def lessons(*said: tuple[str, str], truth: Truth = Truth.RIGHT, source: str = "ann") -> list[Lesson]:
    """What some titles teach about some projects."""
    return [
        Lesson(
            position,
            HERE,
            f"decisions/{position}",
            title,
            "",
            (),
            truth,
            f"projects/{project}",
            source,
            1.0,
            NOW,
        )
        for position, (title, project) in enumerate(said, start=1)
    ]


async def test_without_a_lesson_it_goes_by_what_projects_say_of_themselves(learned: Learned) -> None:
    decision = decide(learned, "payment at checkout fails")
    assert (decision.project, decision.strategy) == ("projects/shop", "learned")
    assert [candidate.factors[-1].name for candidate in decision.candidates] == ["learned"] * 3


async def test_semantic_and_learned_add_up_to_what_the_model_says(learned: Learned) -> None:
    title = "payment at checkout fails"
    untaught = decide(learned, title)
    learned.apply(lessons(*[(title, "infra"), ("zebra", "docs")] * 5))
    taught = decide(learned, title)
    shares = learned.shares(HERE, TaskSpec(title=title), ALL, _everybody())
    assert shares is not None
    for candidate in taught.candidates:
        semantic, outcomes = candidate.factors[-2:]
        assert (semantic.name, outcomes.name) == ("semantic", "learned")
        said = shares.factor[ALL.rows[candidate.project]]
        assert semantic.value + outcomes.value == pytest.approx(said, abs=1e-12)
        parts = sum(factor.value * factor.weight for factor in candidate.factors)
        assert parts == pytest.approx(candidate.score, abs=1e-8)
    by_name = {candidate.project: candidate.factors[-2:] for candidate in taught.candidates}
    assert by_name[INFRA.name][1].value > by_name[SHOP.name][1].value
    assert "the outcomes of tasks like it speak for infra" in taught.reasoning
    assert "what it is about speaks for shop" in untaught.reasoning


async def test_lessons_change_where_tasks_go(learned: Learned) -> None:
    before = decide(learned, "the zebra is lost again")
    learned.apply(lessons(*[("where is the zebra", "docs"), ("zebra lost in transit", "docs")] * 3))
    after = decide(learned, "the zebra is lost again")
    assert after.project == "projects/docs"
    assert after.confidence > before.confidence
    learned.apply(lessons(*[("zebra", "docs")] * 5, truth=Truth.WRONG))
    assert decide(learned, "zebra").confidence < after.confidence


async def test_another_instance_has_learned_nothing_of_it(learned: Learned) -> None:
    learned.apply(lessons(*[("zebra", "docs")] * 5))
    there = routing.decide(
        TaskSpec(title="zebra"),
        Candidates.compile((SHOP, INFRA, DOCS)),
        LEARNED,
        load={},
        refused={},
        basis=NOWHERE,
        strategies=learned.strategies("instances/other"),
    )
    assert there.confidence < decide(learned, "zebra").confidence


async def test_nobodys_tasks_lower_the_confidence(learned: Learned) -> None:
    words = ("tell me a joke", "sing a song", "what is the weather", "who won the game", "joke about cats")
    before = decide(learned, "tell me another joke").confidence
    learned.apply(lessons(*[(title, "") for title in words] * 3, truth=Truth.NONE))
    after = decide(learned, "tell me another joke").confidence
    assert after < 0.5 * before


async def test_a_rule_stays_in_front(learned: Learned) -> None:
    learned.apply(lessons(*[("payment fails", "shop")] * 3))
    policy = load_policy(
        "strategy: learned\nrules: [{name: r, when: {keyword: payment}, then: {project: infra}}]"
    )
    decision = decide(learned, "payment fails", policy=policy)
    assert decision.project == "projects/infra"
    assert "rule r" in decision.reasoning


async def test_of_two_alike_the_less_busy_has_it(learned: Learned) -> None:
    twins = [Project(f"projects/{name}", display_name="Desk", description="anything") for name in ("a", "b")]
    assert decide(learned, "anything", twins, a=9, b=2).project == "projects/b"
    assert decide(learned, "anything", twins, a=2, b=9).project == "projects/a"
    learned.apply(lessons(*[("payment fails", "shop")] * 5))
    assert (
        decide(learned, "payment fails", shop=500).project == "projects/shop"
    )  # the right one, however busy


async def test_who_is_gone_is_not_proposed_and_who_is_new_can_be(learned: Learned) -> None:
    learned.apply(lessons(*[("zebra", "docs")] * 5))
    assert decide(learned, "zebra").project == "projects/docs"
    gone = decide(learned, "zebra", (SHOP, INFRA))
    assert gone.project in ("projects/shop", "projects/infra")
    zoo = Project("projects/zoo", display_name="Zoo", description="animals: zebra, lion, elephant")
    assert decide(learned, "feed the lion and the elephant", (SHOP, INFRA, zoo)).project == "projects/zoo"


async def test_confidence_is_the_share_of_everybody_and_nobody(learned: Learned) -> None:
    learned.apply(lessons(*[("joke", "")] * 5, truth=Truth.NONE))
    decision = decide(learned, "joke")
    assert sum(candidate.confidence for candidate in decision.candidates) < 1.0
    assert decision.confidence == decision.candidates[0].confidence


@pytest.mark.parametrize("title", ["", "   ", "🦓" * 200, "ж" * 300, "a" * 300])
async def test_any_text_is_decided_about(learned: Learned, title: str) -> None:
    decision = decide(learned, title)
    assert decision.outcome is Outcome.ROUTED
    assert np.isfinite(decision.confidence)


async def test_nobody_or_one_to_choose_from(learned: Learned) -> None:
    assert decide(learned, "x", ()).outcome is Outcome.NO_CANDIDATE
    assert decide(learned, "x", (SHOP,)).strategy == "only-candidate"


async def test_before_it_is_loaded_rules_decide_and_the_record_says_so(encoder: Encoder) -> None:
    asleep = Learned(lambda: encoder)
    assert decide(asleep, "payment at checkout").strategy == "rules"


async def test_without_an_encoder_words_alone_have_to_do() -> None:
    learned = Learned(lambda: None)
    await learned.wake()
    learned.apply(lessons(*[("zebra", "docs")] * 3))
    assert decide(learned, "zebra").project == "projects/docs"


async def test_a_snapshot_knows_the_same(learned: Learned, encoder: Encoder) -> None:
    learned.apply(lessons(*[("zebra", "docs"), ("agents offline", "infra")] * 3))
    other = Learned(lambda: encoder)
    await other.wake()
    decide(learned, "zebra")
    assert other.restore(learned.snapshot(), 6)
    one, same = decide(learned, "zebra"), decide(other, "zebra")
    assert [(c.project, c.confidence) for c in same.candidates] == [
        (c.project, c.confidence) for c in one.candidates
    ]


async def test_a_broken_snapshot_changes_nothing(learned: Learned) -> None:
    learned.apply(lessons(*[("zebra", "docs")] * 3))
    before = decide(learned, "zebra").confidence
    whole = learned.snapshot()
    for broken in (b"", b"nonsense", whole[:-5], whole[:40] + b"\0" + whole[41:]):
        assert not learned.restore(broken, 3)
    assert decide(learned, "zebra").confidence == before


async def test_lessons_about_projects_that_nobody_knows_do_no_harm(learned: Learned) -> None:
    learned.apply(lessons(*[("zebra", "never-heard-of")] * 3))
    decision = decide(learned, "zebra")
    assert decision.project != "projects/never-heard-of"
    assert decision.outcome is Outcome.ROUTED


def test_all_of_a_stream_is_learned_and_one_liar_does_not_spoil_it(encoder: Encoder) -> None:
    projects = [Project(f"projects/p{number}", display_name=f"Team {number}") for number in range(6)]
    taught, held_out = stream(500, seed=1), stream(300, seed=2)
    alone, beset = (student(encoder) for _ in range(2))
    alone.apply(lessons(*taught))
    beset.apply(list(with_lies(taught)))
    right = [
        sum(decide(one, title, projects).project == f"projects/{team}" for title, team in held_out) / 300
        for one in (alone, beset)
    ]
    assert right[0] > 0.9
    assert right[0] - right[1] <= 0.02


def stream(count: int, seed: int) -> list[tuple[str, str]]:
    """Titles of six teams that share most of their words."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        team = chance.randrange(6)
        words = [f"own{team}x{chance.randrange(8)}" for _ in range(2)]
        words += [f"word{chance.randrange(60)}" for _ in range(5)]
        chance.shuffle(words)
        made.append((" ".join(words), f"p{team}"))
    return made


def with_lies(said: Sequence[tuple[str, str]]) -> Iterator[Lesson]:
    """The truth by many, and one who always says something else, for one task in twenty."""
    chance = random.Random(9)
    for position, (title, team) in enumerate(said, start=1):
        lies = position % 20 == 0
        source = "mallory" if lies else f"worker{chance.randrange(10)}"
        told = chance.choice([f"p{other}" for other in range(6) if f"p{other}" != team]) if lies else team
        (lesson,) = lessons((title, told), source=source)
        yield replace(lesson, position=position)


def student(encoder: Encoder) -> Learned:
    learned = Learned(lambda: encoder)
    asyncio.run(learned.wake())
    return learned


async def test_the_next_decision_knows_the_lesson_however_often_it_was_asked(learned: Learned) -> None:
    before = [decide(learned, "zebra").candidates for _ in range(3)]
    assert before[0] == before[1] == before[2]
    learned.apply(lessons(("zebra", "docs")))
    assert decide(learned, "zebra").candidates != before[0]


async def test_who_is_ruled_out_has_no_share(learned: Learned) -> None:
    learned.apply(lessons(*[("zebra", "docs")] * 5))
    projects = (SHOP, INFRA, replace(DOCS, paused=True))
    decision = decide(learned, "zebra", projects)
    assert {candidate.project for candidate in decision.candidates} == {SHOP.name, INFRA.name}
    assert sum(candidate.confidence for candidate in decision.candidates) == pytest.approx(1.0)


async def test_what_a_project_says_of_itself_later_counts(learned: Learned) -> None:
    assert decide(learned, "feed the lion").candidates[0].confidence < 0.6
    zoo = replace(DOCS, display_name="Zoo", description="feed lion, zebra and elephant")
    assert decide(learned, "feed the lion", (SHOP, INFRA, zoo)).project == DOCS.name


async def test_a_lesson_is_about_as_much_text_as_a_question(learned: Learned) -> None:
    """Memory keeps 4,000 bytes of a description, which may be less than the model reads."""
    whole = "動物園 " * 800
    kept = whole.encode()[:4000].decode(errors="ignore")
    task = TaskSpec(title="zebra", description=whole)
    seen = learned.shares(HERE, task, ALL, _everybody())
    same = learned.shares(HERE, replace(task, description=kept), ALL, _everybody())
    assert seen is not None
    assert same is not None
    assert seen.of.tolist() == same.of.tolist()


ALL = Candidates.compile((SHOP, INFRA, DOCS))


def _everybody() -> Sieve:
    return sieve(TaskSpec(title="x"), ALL, {}, column_of({}, ALL))


async def test_routers_that_learn_the_same_know_the_same(encoder: Encoder) -> None:
    """Also when one of them has decided all the time, and the other never."""
    busy, idle = Learned(lambda: encoder), Learned(lambda: encoder)
    there = [Candidates.compile((SHOP, INFRA))]
    for learned in (busy, idle):
        await learned.wake()
        learned.projects = lambda: there[-1]
    for number, lesson in enumerate(lessons(*[("zebra", "shop"), ("agents offline", "infra")] * 5)):
        decide(busy, "zebra", there[-1].projects)
        if number == 5:
            there.append(ALL)
        busy.apply([lesson])
        idle.apply([lesson])
    assert decide(busy, "zebra").candidates == decide(idle, "zebra").candidates


async def test_feedback_for_a_project_that_is_gone_changes_nothing_for_the_others(learned: Learned) -> None:
    learned.projects = lambda: ALL
    learned.apply(lessons(*[("zebra", "docs"), ("agents offline", "infra")] * 3))
    there = Candidates.compile((SHOP, INFRA))
    learned.projects = lambda: there
    learned.apply(lessons(*[("zebra", "docs")] * 3))
    gone = decide(learned, "zebra", (SHOP, INFRA))
    assert {candidate.project for candidate in gone.candidates} == {SHOP.name, INFRA.name}
    assert decide(learned, "agents offline", (SHOP, INFRA)).project == INFRA.name


async def test_feedback_that_names_what_never_was_takes_no_more_than_some_room(learned: Learned) -> None:
    learned.projects = lambda: ALL
    said = [("walrus", f"never{number}") for number in range(300)]
    learned.apply(lessons(*[("zebra", "docs")] * 3, *said))
    mind = learned._minds[HERE]
    assert len(mind.model.targets) < 100
    assert decide(learned, "zebra").project == DOCS.name
    more = Candidates.compile((*ALL.projects, Project("projects/zoo")))
    learned.projects = lambda: more
    learned.apply(lessons(("zebra", "docs")))
    assert {target.id for target in mind.model.targets} == set(more.names)
