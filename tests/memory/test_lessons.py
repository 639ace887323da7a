"""What teaches what: the whole table, and what teaches nothing."""

import pytest

from hopper_memory.lessons import WRONG_PLACE, Teaching, Truth, taught_by_feedback, taught_by_outcome
from hopper_memory.model import Feedback, Match, Outcome

WEB, OPS = "projects/web", "projects/ops"
RIGHT, WRONG, NONE, LATE, FAILED = Truth.RIGHT, Truth.WRONG, Truth.NONE, Truth.LATE, Truth.FAILED


def taught_by(
    kind: Outcome,
    fields: dict[str, str],
    *,
    project: str = WEB,
    strategy: str = "rules",
    judged: bool = False,
) -> Teaching | None:
    said = {"worker": "", "failure_reason": "", "rerouted_to": "", **fields}
    return taught_by_outcome(kind, **said, project=project, strategy=strategy, judged=judged)


def said(match: Match | None, better: str = "", author: str = "ann") -> Feedback:
    return Feedback(match=match, better_project=better, author=author)


@pytest.mark.parametrize(
    ("feedback", "taught"),
    [
        (said(Match.GOOD), Teaching(RIGHT, WEB, "ann", 1.0)),
        (said(Match.BAD, OPS), Teaching(RIGHT, OPS, "ann", 1.0)),
        (said(Match.BAD), Teaching(WRONG, WEB, "ann", 1.0)),
        (said(Match.NONE), Teaching(NONE, "", "ann", 1.0)),
        (said(Match.GOOD, author=""), Teaching(RIGHT, WEB, "anonymous", 1.0)),
        (said(Match.BAD, WEB), None),
        (said(None), None),
    ],
)
def test_what_feedback_teaches(feedback: Feedback, taught: Teaching | None) -> None:
    for strategy in ("rules", "learned", "default", "only-candidate", "pin"):
        assert taught_by_feedback(feedback, project=WEB, strategy=strategy) == taught


@pytest.mark.parametrize(
    ("feedback", "taught"),
    [
        (said(Match.GOOD), None),
        (said(Match.BAD), None),
        (said(Match.BAD, OPS), Teaching(RIGHT, OPS, "ann", 1.0)),
        (said(Match.NONE), Teaching(NONE, "", "ann", 1.0)),
    ],
)
def test_what_feedback_teaches_on_a_task_that_was_sent_nowhere(
    feedback: Feedback, taught: Teaching | None
) -> None:
    assert taught_by_feedback(feedback, project="", strategy="rules") == taught


ENDS: list[tuple[Outcome, dict[str, str], Teaching | None]] = [
    (Outcome.SUCCEEDED, {"worker": "ann"}, Teaching(RIGHT, WEB, "ann", 0.5)),
    (Outcome.SUCCEEDED, {}, Teaching(RIGHT, WEB, "router", 0.5)),
    (Outcome.SUCCEEDED, {"worker": "ann", "failure_reason": "LATE"}, Teaching(LATE, WEB, "ann", 0.5)),
    (Outcome.FAILED, {"worker": "ann", "failure_reason": "NO_NETWORK"}, Teaching(FAILED, WEB, "ann", 0.5)),
    (Outcome.FAILED, {"failure_reason": "RUN_TIMEOUT"}, Teaching(FAILED, WEB, "router", 0.5)),
    (Outcome.FAILED, {"failure_reason": "CHILD_FAILED"}, Teaching(FAILED, WEB, "router", 0.5)),
    (Outcome.REJECTED, {"failure_reason": "POLICY"}, None),
    (Outcome.REJECTED, {"failure_reason": "NO_ELIGIBLE_EXECUTOR"}, None),
    (Outcome.REJECTED, {"failure_reason": "NOT_MINE"}, Teaching(WRONG, WEB, "router", 0.5)),
    (Outcome.CANCELLED, {"worker": "ann", "failure_reason": "NOT_MINE"}, None),
    (Outcome.REROUTED, {"rerouted_to": OPS}, Teaching(WRONG, WEB, "router", 0.25)),
    (Outcome.REROUTED, {"rerouted_to": WEB}, None),
    (Outcome.REROUTED, {}, None),
]


@pytest.mark.parametrize(("kind", "fields", "taught"), ENDS)
def test_what_an_outcome_teaches(kind: Outcome, fields: dict[str, str], taught: Teaching | None) -> None:
    assert taught_by(kind, fields, strategy="learned") == taught


@pytest.mark.parametrize("reason", sorted(WRONG_PLACE))
def test_some_reasons_say_that_it_was_the_wrong_place(reason: str) -> None:
    taught = taught_by(Outcome.FAILED, {"worker": "ann", "failure_reason": reason})
    assert taught == Teaching(WRONG, WEB, "ann", 0.5)


@pytest.mark.parametrize(
    ("kind", "fields", "taught"),
    [
        (Outcome.SUCCEEDED, {}, Teaching(RIGHT, WEB, "router", 0.5)),
        (Outcome.FAILED, {"failure_reason": "NOT_MINE"}, Teaching(WRONG, WEB, "router", 0.5)),
        (Outcome.REROUTED, {"rerouted_to": OPS}, None),
    ],
)
def test_a_pin_is_the_requesters_choice(
    kind: Outcome, fields: dict[str, str], taught: Teaching | None
) -> None:
    assert taught_by(kind, fields, strategy="pin") == taught


@pytest.mark.parametrize("strategy", ["", "scope"])
def test_where_there_was_nothing_to_choose_nothing_is_learned(strategy: str) -> None:
    for match in Match:
        assert taught_by_feedback(said(match), project=WEB, strategy=strategy) is None
    for kind, fields, _ in ENDS:
        assert taught_by(kind, fields, strategy=strategy) is None


@pytest.mark.parametrize(("kind", "fields", "_taught"), ENDS)
def test_after_a_verdict_an_end_teaches_nothing(
    kind: Outcome, fields: dict[str, str], _taught: Teaching | None
) -> None:
    assert taught_by(kind, fields, judged=True) is None


@pytest.mark.parametrize("kind", Outcome)
def test_a_decision_that_sent_it_nowhere_has_no_outcome_to_learn_from(kind: Outcome) -> None:
    assert taught_by(kind, {"failure_reason": "NOT_MINE", "rerouted_to": OPS}, project="") is None
