"""Who is asked next and when that is over: as a state machine, in decisions, and as policies write it."""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_router import asking, routing
from hopper_router.cascade import (
    MOST_CLARIFICATIONS,
    Await,
    Consult,
    Decided,
    Exhausted,
    Stage,
    Use,
    asked_before,
    best,
    following,
)
from hopper_router.model import (
    Basis,
    Candidate,
    Decision,
    Instance,
    InstanceState,
    Opinion,
    Outcome,
    Project,
    Scope,
    TaskSpec,
    Word,
)
from hopper_router.policy_yaml import check_policy, load_policy
from hopper_router.routing import Candidates
from hopper_router.rules import Policy

WEB, API, OPS = "projects/web", "projects/api", "projects/ops"

# ---------------------------------------------------------------- the state machine

shares = st.floats(0, 1)
projects = st.sampled_from([WEB, API, OPS])


@st.composite
def cascades(draw: st.DrawFn) -> tuple[Stage, ...]:
    uses = draw(st.lists(st.sampled_from(list(Use)), min_size=1, unique=True))
    ordered = [use for use in Use if use in uses]
    return tuple(Stage(use, threshold=draw(shares)) for use in ordered)


@st.composite
def opinions(draw: st.DrawFn, stage: Stage) -> Opinion:
    word = draw(st.sampled_from(list(Word)))
    if word is Word.ASKED and stage.use is not Use.SAGE:
        word = Word.FAILED
    project = draw(projects) if word is Word.CHOICE else ""
    return Opinion(stage.use.value, word, project, draw(shares), stage.threshold, "why")


def sure(opinion: Opinion) -> bool:
    return opinion.word is Word.CHOICE and opinion.confidence >= opinion.threshold


@given(st.data())
def test_everybody_is_asked_once_in_order_until_one_is_sure(data: st.DataObject) -> None:
    stages = data.draw(cascades())
    said: list[Opinion] = []
    consulted: list[Use] = []
    while True:
        step = following(stages, said)
        if isinstance(step, Consult):
            said.append(data.draw(opinions(step.stage)))
            if said[-1].word is Word.ASKED:  # the one who is asked again may go on asking, but not here
                assert following(stages, said) == Await(said[-1])
                assert asked_before(said) <= MOST_CLARIFICATIONS
                answered = Opinion("sage", Word.ASKED, reason="why", answer="so")
                said[-1] = answered
                again = following(stages, said)
                assert isinstance(again, Consult)
                assert again.stage.use is Use.SAGE
                said.append(Opinion("sage", Word.UNSURE, threshold=step.stage.threshold))
            consulted.append(step.stage.use)
            assert not any(map(sure, said[:-1]))
        else:
            break
    assert consulted == [stage.use for stage in stages][: len(consulted)]
    match step:
        case Decided(opinion):
            assert opinion is said[-1]
            assert sure(opinion)
        case Exhausted(choice, nobody):
            assert not any(map(sure, said))
            refused = said[-1].word is Word.NOTHING_FITS
            assert (nobody is not None) == refused
            assert len(consulted) == len(stages) or (nobody is not None and nobody.stage == "person")
            choices = [opinion for opinion in said if opinion.word is Word.CHOICE]
            if choices and not (nobody and nobody.stage == "person"):
                assert choice is not None
                nearest = max(one.confidence / one.threshold for one in choices)
                assert choice.confidence / choice.threshold == nearest
            else:
                assert choice is None


def opinion(stage: str, project: str, confidence: float, threshold: float = 0.8, **more: Any) -> Opinion:
    return Opinion(stage, Word.CHOICE, project, confidence, threshold, **more)


def test_the_best_is_who_came_nearest_to_what_was_asked_of_it() -> None:
    said = [opinion("learned", WEB, 0.6, 0.8), opinion("llm", API, 0.5, 0.6)]
    assert best(said) is said[1]
    assert best([opinion("learned", WEB, 0.79), opinion("llm", API, 0.1)]) == opinion("learned", WEB, 0.79)
    assert best([Opinion("llm", Word.FAILED)]) is None


def test_of_two_as_near_the_later_knew_more() -> None:
    said = [opinion("learned", WEB, 0.4), opinion("llm", API, 0.4)]
    assert best(said) is said[1]


def test_a_person_who_says_nobody_ends_it() -> None:
    said = [opinion("learned", WEB, 0.9), Opinion("person", Word.NOTHING_FITS)]
    assert following((Stage(Use.LEARNED),), said) == Exhausted(None, said[1])


# ---------------------------------------------------------------- in decisions

PROJECTS = (Project(WEB, description="the shop"), Project(API, description="tokens"), Project(OPS))
UNSURE = TaskSpec(title="something is odd")


def policy(on_unsure: str = "route", more: str = "") -> Policy:
    return load_policy(
        f"strategy: hybrid\non_unsure: {on_unsure}\n{more}\n"
        "stages: [{use: rules, threshold: 0.8}, {use: llm, threshold: 0.6}, {use: person}]"
    )


def decide(
    said: Sequence[Opinion] = (),
    by: Policy | None = None,
    spec: TaskSpec = UNSURE,
    among: Sequence[Project] = PROJECTS,
) -> Decision:
    return routing.decide(
        spec, Candidates.compile(among), by or policy(), load={}, refused={}, basis=Basis(), said=said
    )


FAILED_LLM = Opinion("llm", Word.FAILED, reason="the LLM at x does not answer in time")
NOBODY = Opinion("person", Word.NOTHING_FITS, confidence=1.0, reason="answered by ann")
NO_PERSON = load_policy("strategy: hybrid\nstages: [{use: rules}, {use: llm, threshold: 0.6}]")


def test_who_is_sure_at_once_asks_nobody() -> None:
    ruled = policy(more="rules: [{name: r, when: {keyword: odd}, then: {project: ops}}]")
    decision = decide(by=ruled)
    assert (decision.outcome, decision.project, decision.strategy) == (Outcome.ROUTED, OPS, "rules")
    assert decision.opinions[0].confidence == decision.confidence >= 0.8
    pinned = decide(spec=TaskSpec(title="x", project=OPS))
    assert (pinned.outcome, pinned.strategy, pinned.opinions[0].stage) == (Outcome.ROUTED, "pin", "rules")
    alone = decide(among=PROJECTS[:1])
    assert (alone.outcome, alone.strategy) == (Outcome.ROUTED, "only-candidate")


def test_one_after_the_other() -> None:
    first = decide()
    assert (first.outcome, first.project) == (Outcome.UNSURE, "")
    assert first.reasoning == "rules: nothing speaks for anybody: the LLM is asked"
    second = decide([opinion("llm", API, 0.3, 0.6)])
    assert second.outcome is Outcome.UNSURE
    assert second.reasoning.endswith("llm: 0.30 for api, less than 0.60: a person is asked")
    third = decide(
        [opinion("llm", API, 0.3, 0.6), opinion("person", WEB, 1.0, 0.0, reason="answered by ann")]
    )
    assert (third.outcome, third.project, third.strategy) == (Outcome.ROUTED, WEB, "person")
    assert third.confidence == 1.0
    assert [said.stage for said in third.opinions] == ["rules", "llm", "person"]


def test_the_llms_word_counts_with_its_confidence() -> None:
    decision = decide([opinion("llm", API, 0.7, 0.6, reason="tokens")])
    assert (decision.project, decision.strategy, decision.confidence) == (API, "llm", 0.7)
    assert decision.reasoning == "the LLM chose api: tokens"


def test_who_cannot_have_it_any_more_is_not_chosen() -> None:
    decision = decide([opinion("llm", API, 0.9, 0.6)], among=(PROJECTS[0], PROJECTS[2]), by=NO_PERSON)
    assert decision.project != API
    assert decision.opinions[-1].word is Word.FAILED
    assert "api cannot take it any more" in decision.reasoning


@pytest.mark.parametrize(
    ("on_unsure", "outcome"),
    [("route", Outcome.ROUTED), ("ask", Outcome.UNSURE), ("reject", Outcome.REJECTED)],
)
def test_in_the_end_the_policy_says(on_unsure: str, outcome: Outcome) -> None:
    by = load_policy(f"strategy: llm\non_unsure: {on_unsure}")
    decision = decide([FAILED_LLM], by)
    assert decision.outcome is outcome
    assert "the LLM at x does not answer in time" in decision.reasoning
    assert bool(decision.project) == (outcome is Outcome.ROUTED)


def test_in_the_end_the_best_so_far_is_routed() -> None:
    decision = decide([opinion("llm", API, 0.3, 0.6, reason="perhaps")], NO_PERSON)
    assert (decision.project, decision.strategy, decision.confidence) == (API, "llm", 0.3)
    assert decision.reasoning.endswith("but it routes all the same")


def test_when_nobody_chose_the_default_project_has_it() -> None:
    by = load_policy("strategy: llm\ndefault_project: ops")
    assert (decide([FAILED_LLM], by).project, decide([FAILED_LLM], by).strategy) == (OPS, "default")
    assert decide([FAILED_LLM], load_policy("strategy: llm")).outcome is Outcome.ROUTED


def test_nothing_fits_is_not_forced_into_a_project() -> None:
    nothing = Opinion("llm", Word.NOTHING_FITS, confidence=0.9, threshold=0.6, reason="about cooking")
    by = load_policy("strategy: llm\non_unsure: reject")
    assert decide([nothing], by).outcome is Outcome.REJECTED
    by = load_policy("strategy: llm\ndefault_project: ops")
    assert decide([nothing], by).project == OPS
    refused = decide([FAILED_LLM, NOBODY])
    assert (refused.outcome, refused.strategy) == (Outcome.REJECTED, "person")


def test_what_was_said_counts_where_only_one_is_left() -> None:
    assert decide([FAILED_LLM, NOBODY], among=PROJECTS[:1]).outcome is Outcome.REJECTED


@given(st.lists(st.sampled_from(["llm", "sage", "person"]), unique=True), st.data())
def test_a_decision_is_always_made_and_never_for_a_stranger(uses: list[str], data: st.DataObject) -> None:
    said = [data.draw(opinions(Stage(Use(use), threshold=0.5))) for use in uses]
    by = load_policy(
        "strategy: hybrid\nstages: [{use: learned}, {use: llm}, {use: sage, address: 'unix:/x'}, {use: person}]"
    )
    left = data.draw(st.lists(st.sampled_from(PROJECTS), min_size=1, unique_by=lambda one: one.name))
    decision = decide(said, by, among=left)
    assert (decision.outcome is Outcome.ROUTED) == bool(decision.project)
    assert decision.project in {"", *(project.name for project in left)}
    assert 0 <= decision.confidence <= 1


# ---------------------------------------------------------------- asking a person


def test_the_question_has_the_shortlist_and_finds_who_is_to_answer() -> None:
    candidates = [Candidate(WEB, 1.0, 0.43), Candidate(API, 0.5, 0.2)]
    desk = Instance("instances/desk", Scope.PERSONAL, InstanceState.RUNNING, members=frozenset({"ann"}))
    stage = Stage(Use.PERSON, desk="instances/desk")
    question = asking.where_to(candidates, stage, {desk.name: desk})
    assert question.question == "Where does this task go? web (43%), api (20%), another project, or none"
    assert question.from_ == "ann"
    assert asking.where_to(candidates, stage, {}).from_ == "desk"
    assert asking.where_to(candidates, Stage(Use.PERSON), {}).from_ == ""


@pytest.mark.parametrize(
    ("answer", "project"),
    [("web", WEB), (" projects/web\n", WEB), ("'Web'", WEB), ("none", ""), ("Nobody", "")],
)
def test_answers(answer: str, project: str) -> None:
    said = asking.chosen(answer, {WEB: PROJECTS[0]})
    assert said is not None
    assert (said.project, said.word is Word.CHOICE) == (project, bool(project))


def test_what_is_no_answer() -> None:
    assert asking.chosen("the web team, I think", {WEB: PROJECTS[0]}) is None
    assert asking.chosen("", {WEB: PROJECTS[0]}) is None


# ---------------------------------------------------------------- as policies write it

FULL = """\
strategy: hybrid
wait: 500ms
stages:
  - {use: rules, threshold: 0.9}
  - {use: learned, threshold: 0.7}
  - {use: llm, threshold: 0.6, deadline: 2m, calls_per_day: 500, money_per_day: 2.50}
  - {use: sage, address: "unix:/run/sage.sock", deadline: 1.5s, calls_per_day: 0}
  - {use: person, desk: ann}
"""


def test_stages_as_they_are_written() -> None:
    by = load_policy(FULL)
    assert by.wait == timedelta(milliseconds=500)
    assert by.judges == ("rules", "learned")
    rules, learned, llm, sage, person = by.stages
    assert (rules.threshold, learned.threshold) == (0.9, 0.7)
    assert (llm.threshold, llm.deadline) == (0.6, timedelta(minutes=2))
    assert (llm.calls_per_day, llm.money_per_day) == (500, 2_500_000)
    assert (sage.address, sage.deadline) == ("unix:/run/sage.sock", timedelta(seconds=1.5))
    assert (sage.calls_per_day, sage.money_per_day, sage.threshold) == (0, None, 0.5)
    assert person.desk == "instances/ann"


def test_one_strategy_alone_is_asked_about_everything() -> None:
    assert load_policy("strategy: llm").stages == (Stage(Use.LEARNED, threshold=1.0), Stage(Use.LLM))
    assert load_policy("strategy: sage").stages == (Stage(Use.LEARNED, threshold=1.0), Stage(Use.SAGE))
    alone = load_policy("strategy: sage\nstages: [{use: sage, address: '127.0.0.1:7000'}]")
    assert [stage.use for stage in alone.stages] == [Use.LEARNED, Use.SAGE]


def hybrid(*stages: str) -> str:
    return "strategy: hybrid\nstages:\n" + "\n".join(f"  - {stage}" for stage in stages)


@pytest.mark.parametrize(
    ("source", "where", "message"),
    [
        ("strategy: hybrid", "1:11 stages", "'stages' is missing"),
        ("stages: [{use: llm}]", "1:9 stages", "goes with strategy hybrid, llm or sage"),
        ("strategy: learned\nwait: 1s", "2:7 wait", "goes with strategy hybrid"),
        ("strategy: llm\nstages: [{use: person}]", "2:9 stages", "there is one stage, {use: llm"),
        (hybrid("[]"), "3:5 stages[0]", "must be a mapping of use"),
        ("strategy: hybrid\nstages: []", "2:9 stages", "the list is empty"),
        (hybrid("{threshold: 0.5}"), "3:5 stages[0].use", "'use' is missing"),
        (hybrid("{use: lmm}"), "3:11 stages[0].use", r"unknown stage 'lmm' \(did you mean 'llm'"),
        (hybrid("{use: llm}", "{use: llm}"), "4:5 stages[1].use", "is there already"),
        (hybrid("{use: llm}", "{use: rules}"), "4:5 stages[1].use", "it comes first"),
        (hybrid("{use: person}", "{use: llm}"), "4:5 stages[1].use", "a person comes last"),
        (hybrid("{use: rules, deadline: 1s}"), "3:18 stages[0].deadline", "unknown key 'deadline'"),
        (hybrid("{use: sage, address: 'unix:/x', money_per_day: 1}"), "", "unknown key 'money_per_day'"),
        (hybrid("{use: llm, suggest: [tags, jokes]}"), "3:32 stages[0].suggest[1]", "unknown"),
        (hybrid("{use: sage, prioritize: 7}"), "3:29 stages[0].prioritize", "must be true or false"),
        ("strategy: learned\nanswer_within: 1h", "2:16 answer_within", "goes with strategy hybrid"),
        (hybrid("{use: person}") + "\nanswer_within: 91d", "4:16 answer_within", "must be from 1s"),
        (hybrid("{use: person}") + "\nif_unanswered: ask", "4:16 if_unanswered", "must be route or reject"),
        (hybrid("{use: sage, address: 'evil.example:1'}"), "3:26 stages[0].address", "of this machine"),
        (hybrid("{use: llm, threshold: 2}"), "3:27 stages[0].threshold", "must be from 0 to 1"),
        (hybrid("{use: llm, deadline: soon}"), "3:26 stages[0].deadline", "such as 500ms, 5s, 2m or 4h"),
        (hybrid("{use: llm, deadline: 1h}"), "3:26 stages[0].deadline", "from 0.01s to 600s"),
        (hybrid("{use: llm, deadline: 11m}"), "3:26 stages[0].deadline", "from 0.01s to 600s"),
        (hybrid("{use: llm, calls_per_day: -1}"), "3:31 stages[0].calls_per_day", "from 0"),
        (hybrid("{use: llm, calls_per_day: 1.5}"), "3:31 stages[0].calls_per_day", "must be an integer"),
        (hybrid("{use: llm, money_per_day: lots}"), "3:31 stages[0].money_per_day", "must be a number"),
        (hybrid("{use: person, desk: A B}"), "3:25 stages[0].desk", "must be an instance"),
        (hybrid("{use: llm}") + "\nwait: 31s", "4:7 wait", "must be from 0s to 30s"),
    ],
)
def test_every_error_has_its_place(source: str, where: str, message: str) -> None:
    loaded, ((line, column, path, said),), _ = check_policy(source)
    assert loaded is None
    assert re.search(message, said), said
    if where:
        assert f"{line}:{column} {path}" == where
