from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from google.protobuf.duration_pb2 import Duration
from rich.console import Console, RenderableType

from hopper.memory.v1.episode_pb2 import Episode, Feedback
from hopper.router.v1.decision_pb2 import Candidate, Decision, Exclusion, Factor, Opinion, WeightOrigin
from hopper.router.v1.task_pb2 import Claim, Task, TaskSpec, Wait
from hopper.router.v1.task_service_pb2 import LearnedOpinion, LearnedReason, LearnedWord
from hopper_cli.render import (
    FINAL,
    bar,
    decision_line,
    exclusion_table,
    factor_table,
    how_it_went,
    lead_table,
    opinion_table,
    stage_table,
    state_word,
    task_facts,
    task_table,
    wait_word,
    word_table,
)
from hopper_common.timestamps import to_proto

NOW = datetime(2026, 3, 6, 12, tzinfo=UTC)


def shown(thing: RenderableType) -> str:
    """What a pipe would get."""
    console = Console(width=400, markup=False, highlight=False)
    with console.capture() as capture:
        console.print(thing)
    return capture.get()


def task(**fields: object) -> Task:
    """A queued task, five minutes old."""
    made = Task(
        name="instances/global/tasks/01m832czxxffqaz3cbask4xfj6",
        state=Task.STATE_QUEUED,
        project="projects/moodle",
        spec=TaskSpec(title="mend [the] fence", priority=50),
        create_time=to_proto(NOW - timedelta(minutes=5)),
    )
    made.MergeFrom(Task(**fields))  # type: ignore[arg-type]
    return made


def test_every_state_has_words() -> None:
    """Also one that only a newer Hopper has."""
    words = [state_word(state) for state in Task.State.values()]
    assert words[4] == "input required"
    assert state_word(99) == "state_99"
    assert {state_word(state) for state in FINAL} == {"succeeded", "failed", "rejected", "cancelled"}


def test_a_list_has_a_line_for_each_task() -> None:
    """Brackets of a title are text, not styles."""
    waiting = task(wait=Wait(reason=Wait.REASON_WORKER, on=["projects/moodle"]))
    lines = shown(task_table([waiting], NOW)).splitlines()
    assert lines[1].split() == [
        "k4xfj6",
        "queued",
        "50",
        "moodle",
        "worker",
        "(moodle)",
        "5m",
        "mend",
        "[the]",
        "fence",
    ]


def test_a_running_task_waits_for_nothing() -> None:
    """An empty reason is an empty word."""
    assert wait_word(task(state=Task.STATE_RUNNING)) == ""


def test_facts_that_are_not_there_are_left_out() -> None:
    """A task has thirty of them; most have five."""
    text = shown(task_facts(task(claim=Claim(worker="jane", lease_expire_time=to_proto(NOW))), NOW))
    assert "jane, lease until" in text
    assert "failure" not in text
    assert "Fri 2026-03-06 11:55 (5 min ago)" in text


@pytest.mark.parametrize(
    ("share", "drawn"), [(0, ""), (1, "████"), (0.5, "██"), (0.3, "█▎"), (7, "████"), (-1, "")]
)
def test_bars_are_drawn_to_an_eighth(share: float, drawn: str) -> None:
    """And never beyond their ends."""
    assert bar(share, 4) == drawn


def test_a_decision_is_told_in_one_line() -> None:
    """Where, how sure, why; or that nobody was found."""
    routed = Decision(
        outcome=Decision.OUTCOME_ROUTED, project="projects/p", confidence=0.83, reasoning="it\nfits"
    )
    assert decision_line(routed) == "p (83% sure): it fits"
    unsure = Decision(outcome=Decision.OUTCOME_NO_CANDIDATE)
    assert decision_line(unsure) == "nobody yet (no candidate)"
    queued = Decision(outcome=Decision.OUTCOME_QUEUED, instance="instances/jane")
    assert decision_line(queued) == "the queue of jane"


def test_factors_that_say_nothing_are_left_out() -> None:
    """The largest fills its bar; what speaks against is negative."""
    candidate = Candidate(
        factors=[
            Factor(name="rules", value=2, weight=0.5, evidence=["a-rule"]),
            Factor(name="boost", value=-0.5, weight=1),
            Factor(name="cost", value=0, weight=1),
        ]
    )
    lines = shown(factor_table(candidate)).splitlines()[1:]
    assert lines[0].split() == ["rules", "2.00", "0.50", "+1.000", "█" * 20, "a-rule"]
    assert lines[1].split() == ["boost", "-0.50", "1.00", "-0.500", "█" * 10]
    assert len(lines) == 2


def test_a_weight_says_where_it_comes_from() -> None:
    """Shipped ones say nothing; learned ones how many lessons they are of."""
    origins = [
        (0.015, WeightOrigin.WEIGHT_ORIGIN_UNSPECIFIED, 0),
        (0.3, WeightOrigin.WEIGHT_ORIGIN_POLICY, 0),
        (0.042, WeightOrigin.WEIGHT_ORIGIN_LEARNED, 7),
        (0.0, WeightOrigin.WEIGHT_ORIGIN_LEARNED, 200),
    ]
    factors = [
        Factor(name="f", value=1, weight=weight, evidence=["x"], weight_origin=origin, weight_lessons=count)
        for weight, origin, count in origins
    ]
    lines = [line.split() for line in shown(factor_table(Candidate(factors=factors))).splitlines()[1:]]
    assert lines[0][2:4] == ["0.015", "+0.015"]
    assert lines[1][2:5] == ["0.30", "policy", "+0.300"]
    assert lines[2][2:6] == ["0.042", "learned,", "7", "+0.042"]
    assert lines[3][2:6] == ["0.00", "learned,", "200+", "+0.000"]


def test_what_put_one_before_another_adds_up() -> None:
    """The greatest difference first; what makes none is left out."""
    first = Candidate(
        project="projects/web",
        score=1.4,
        factors=[
            Factor(name="semantic", value=0.5, weight=2.0),
            Factor(name="learned", value=0.25, weight=2.0),
            Factor(name="workload", value=0.5, weight=-0.2),
            Factor(name="cost", value=1.0, weight=0.0),
        ],
    )
    second = Candidate(
        project="projects/ops",
        score=0.9,
        factors=[
            Factor(name="semantic", value=0.55, weight=2.0),
            Factor(name="learned", value=-0.1, weight=2.0),
            Factor(name="workload", value=0.25, weight=-0.2),
        ],
    )
    lines = [line.split() for line in shown(lead_table(first, second)).splitlines()]
    assert lines == [
        ["FACTOR", "WEB", "OPS", "LEAD"],
        ["learned", "+0.500", "-0.200", "+0.700", "█" * 20],
        ["semantic", "+1.000", "+1.100", "-0.100", "██▉"],
        ["workload", "-0.100", "-0.050", "-0.050", "█▍"],
        ["together", "+1.400", "+0.900", "+0.500"],
    ]


def test_exclusions_name_filter_and_projects() -> None:
    """And what was missing."""
    decision = Decision(
        exclusions=[Exclusion(filter="capability", count=2, projects=["a", "b"], detail="java")]
    )
    assert shown(exclusion_table(decision)).splitlines()[1].split() == ["capability", "2", "a,", "b", "java"]


def test_words_are_shown_with_their_signs() -> None:
    """Beside each other for the first two; what the second has nothing of stays empty."""
    first = LearnedReason(
        project="projects/web",
        probability=0.7,
        words=[LearnedWord(word="pages", weight=2.0), LearnedWord(word="slow", weight=-0.5)],
        opinions=[LearnedOpinion(name="nb", probability=0.9, weight=1.25)],
    )
    second = LearnedReason(
        project="projects/ops", probability=0.2, words=[LearnedWord(word="slow", weight=0.75)]
    )
    lines = [line.split() for line in shown(word_table([first, second])).splitlines()]
    assert lines == [
        ["WORD", "WEB", "70%", "OPS", "20%"],
        ["pages", "+2.00", "████████████████████"],
        ["slow", "-0.50", "+0.75", "█████"],
    ]
    assert shown(opinion_table(first)).splitlines()[1].split()[:3] == ["nb", "90.0%", "1.25"]


def test_stages_say_whom_they_chose_and_what_that_took() -> None:
    """And why there was no answer, where there was none."""
    opinions = [
        Opinion(
            stage="learned",
            word=Opinion.WORD_CHOICE,
            project="projects/web",
            confidence=0.41,
            threshold=0.8,
            elapsed=Duration(nanos=2_000_000),
            reason="like others",
        ),
        Opinion(
            stage="llm",
            word=Opinion.WORD_FAILED,
            threshold=0.6,
            elapsed=Duration(seconds=5),
            money_micros=1500,
            reason="timeout",
        ),
    ]
    lines = [line.split() for line in shown(stage_table(opinions)).splitlines()[1:]]
    assert lines[0][:4] == ["learned", "web", "41%", "80%"]
    assert lines[1][:4] == ["llm", "no", "answer", "60%"]
    assert "0.0015" in lines[1]
    assert lines[1][-1] == "timeout"


@pytest.mark.parametrize(
    ("episode", "words"),
    [
        (Episode(), "open"),
        (Episode(outcome=Episode.OUTCOME_SUCCEEDED), "succeeded"),
        (Episode(outcome=Episode.OUTCOME_REROUTED, rerouted_to="projects/ops"), "rerouted to ops"),
        (Episode(outcome=99), "99"),  # type: ignore[arg-type]  # of a newer Hopper
        (
            Episode(
                outcome=Episode.OUTCOME_SUCCEEDED,
                feedback=[Feedback(), Feedback(match=Feedback.MATCH_BAD, better_project="projects/ops")],
            ),
            "wrong: ops",
        ),
        (Episode(feedback=[Feedback(match=Feedback.MATCH_NONE)]), "nobody's"),
    ],
)
def test_how_it_went_is_what_people_say_or_else_how_it_ended(episode: Episode, words: str) -> None:
    """The newest feedback that says so counts."""
    assert words in str(how_it_went(episode))


def test_what_an_advisers_word_is_worth_is_told_where_it_differs() -> None:
    choice = partial(Opinion, stage="llm", word=Opinion.WORD_CHOICE, project="projects/web", threshold=0.6)
    assert "55% (says 90%)" in shown(stage_table([choice(confidence=0.55, stated_confidence=0.9)]))
    assert "says" not in shown(stage_table([choice(confidence=0.9, stated_confidence=0.9)]))
