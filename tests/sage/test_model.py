import pytest

from hopper_sage.model import (
    Abstention,
    Bin,
    Choice,
    Clarification,
    Consulted,
    Cost,
    Outcome,
    Told,
    Why,
    performance,
    was_right,
)

WEB, API = "projects/web", "projects/api"


@pytest.mark.parametrize(
    ("outcome", "final_project", "success", "right"),
    [
        (Outcome.SUCCEEDED, WEB, None, True),
        (Outcome.FAILED, WEB, None, False),
        (Outcome.SUCCEEDED, API, None, False),
        (Outcome.FAILED, API, None, None),
        (Outcome.CANCELLED, WEB, None, None),
        (Outcome.CANCELLED, API, None, None),
        (Outcome.REROUTED, API, None, None),
        (Outcome.REROUTED, API, True, False),
        (Outcome.SUCCEEDED, WEB, False, False),  # done there, and it was the wrong place all the same
        (Outcome.FAILED, WEB, True, True),  # failed there, and still the right place
        (Outcome.SUCCEEDED, API, True, False),
        (Outcome.REJECTED, "", None, None),
        (Outcome.REJECTED, "", True, False),  # nobody should have had it
        (Outcome.REJECTED, "", False, None),
    ],
)
def test_whether_a_choice_was_right(
    outcome: Outcome, final_project: str, success: bool | None, right: bool | None
) -> None:
    assert was_right(WEB, Told("decisions/d", outcome, final_project, success)) is right


def consulted(confidence: float, right: bool | None) -> Consulted:
    told = None if right is None else Told("decisions/d", Outcome.SUCCEEDED, WEB if right else API)
    return Consulted(Choice(WEB, confidence, ""), Cost(1, 10, 5, 3), told)


def test_a_report_of_nothing() -> None:
    seen = performance([])
    assert (seen.decisions, seen.accuracy, seen.calibration_error, seen.bins) == (0, 0.0, 0.0, [])


def test_a_report_counts_judges_and_adds_up() -> None:
    others = [
        Consulted(Clarification("?"), Cost(), None),
        Consulted(Abstention(Why.UNSURE, ""), Cost(), Told("decisions/d", Outcome.SUCCEEDED, WEB)),
    ]
    seen = performance(
        [consulted(0.9, True), consulted(0.95, False), consulted(0.55, True), consulted(1, None), *others]
    )
    assert (seen.decisions, seen.choices, seen.clarifications, seen.abstentions) == (6, 4, 1, 1)
    assert (seen.judged, seen.right) == (3, 2)
    assert seen.accuracy == pytest.approx(2 / 3)
    assert seen.cost == Cost(4, 40, 20, 12)
    low, high = seen.bins
    assert low == Bin(0.5, 0.6, 1, 0.55, 1.0)
    assert (high.lower, high.upper, high.count, high.accuracy) == (0.9, 1.0, 2, 0.5)
    assert seen.calibration_error == pytest.approx((1 * 0.45 + 2 * 0.425) / 3)


def test_certainty_is_in_the_last_bin() -> None:
    assert performance([consulted(1.0, True), consulted(0.0, False)]).bins == [
        Bin(0.0, 0.1, 1, 0.0, 0.0),
        Bin(0.9, 1.0, 1, 1.0, 1.0),
    ]
