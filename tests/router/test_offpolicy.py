"""What the record of one policy says of another: known cases, and worlds whose truth is known."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hopper_router.offpolicy import Log, Method, estimate

TRIALS = 50
PROJECTS = 8


def log(**said: Any) -> Log:
    """Some tasks, recorded and replayed alike unless said otherwise."""
    outcomes = np.asarray(said.pop("outcomes", [1.0, 0.0, 1.0, 1.0]), np.float64)
    n = len(outcomes)
    fields: dict[str, Any] = {
        "projects": np.zeros(n, np.intp),
        "confidences": np.full(n, 0.75),
        "chances": np.ones(n),
        "same": np.ones(n, np.bool_),
        "known": np.full(n, np.nan),
        "others": np.zeros(n, np.intp),
        "others_recorded": np.full(n, 0.75),
        "others_confidences": np.full(n, 0.75),
    }
    fields |= {name: np.asarray(value) for name, value in said.items()}
    return Log(outcomes=outcomes, **fields)


def test_the_same_policy_would_have_done_the_same() -> None:
    found = estimate(log())
    assert (found.value, found.recorded, found.gain, found.method) == (0.75, 0.75, 0.0, Method.KNOWN)
    assert (found.gain_lower, found.gain_upper, found.modelled) == (0.0, 0.0, 0)
    assert found.lower < 0.75 < found.upper


def test_where_feedback_names_the_right_place_nothing_is_modelled() -> None:
    found = estimate(log(same=[False] * 4, known=[0.0, 1.0, 1.0, 1.0], others=[1] * 4))
    assert (found.value, found.method) == (0.75, Method.KNOWN)
    assert found.expected.tolist() == [0.0, 1.0, 1.0, 1.0]


def test_what_parts_goes_as_such_choices_have_gone() -> None:
    """Project 1 was right nine times of ten wherever it was chosen; the task that would go there is one of its kind."""
    outcomes = [1.0] * 90 + [0.0] * 10 + [0.0]
    projects = [1] * 100 + [0]
    found = estimate(log(outcomes=outcomes, projects=projects, others=[1] * 101, same=[True] * 100 + [False]))
    assert found.method is Method.DIRECT
    assert found.modelled == 1
    assert found.expected[-1] == pytest.approx(0.9, abs=0.02)


def test_known_outcomes_of_what_parts_correct_the_model() -> None:
    """The record is sure of choices that were wrong wherever it is known."""
    n = 60
    outcomes = [1.0] * n + [0.0] * n
    known = [np.nan] * n + [0.0] * (n - 1) + [np.nan]
    found = estimate(log(outcomes=outcomes, same=[True] * n + [False] * n, known=known, others=[0] * 2 * n))
    assert found.expected[-1] < 0.1


def test_a_tie_is_weighed_by_its_chance() -> None:
    """Half of the ties fell to the choice of the other policy, by chance: it is as good as these were."""
    rng = np.random.default_rng(1)
    n = 4000
    same = rng.random(n) < 0.5
    outcomes = np.where(same, rng.random(n) < 0.8, rng.random(n) < 0.3).astype(np.float64)
    projects = np.where(same, 1, 0)
    # A model that is quite wrong: it takes both for the same project.
    found = estimate(
        log(
            outcomes=outcomes,
            chances=np.full(n, 0.5),
            same=same,
            projects=projects,
            others=np.zeros(n, np.intp),
        )
    )
    assert found.method is Method.DOUBLY_ROBUST
    assert found.value == pytest.approx(0.8, abs=0.03)
    assert found.lower < 0.8 < found.upper


def test_the_same_seed_gives_the_same() -> None:
    whole = World(3).log
    one, same = estimate(whole, seed=4), estimate(whole, seed=4)
    assert one._replace(expected=same.expected) == same
    other = estimate(whole, seed=5)
    assert other.value == one.value
    assert (other.lower, other.upper) != (one.lower, one.upper)


def test_nothing_to_tell_from_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to estimate from"):
        estimate(log(outcomes=[]))


def test_a_few_tasks_that_went_alike_make_nothing_certain() -> None:
    found = estimate(log(outcomes=[1.0] * 3, same=[False] * 3, known=[0.0] * 3, others=[1] * 3))
    assert (found.value, found.gain) == (0.0, -1.0)
    assert found.upper >= 0.25
    assert found.gain_upper >= -0.75


def test_one_task_is_enough_for_an_honest_answer() -> None:
    found = estimate(log(outcomes=[1.0], same=[False], others=[5]))
    assert (found.lower, found.upper) == (0.0, 1.0)
    assert 0.0 < found.value < 1.0


@pytest.mark.parametrize(
    ("change", "feedback", "ties"),
    [
        *itertools.product(["rules", "sees-more", "sees-less"], [0.0, 0.3, 1.0], [0.0]),
        ("rules", 0.3, 0.3),
        ("sees-more", 0.3, 0.3),
    ],
)
def test_the_truth_lies_in_the_interval(change: str, feedback: float, ties: float) -> None:
    """Fifty worlds: at least 45 intervals hold the value on these very tasks, and 45 that on tasks like these."""
    inside_these = inside_such = 0
    for seed in range(TRIALS):
        made = World(seed, change, feedback=feedback, ties=ties)
        found = estimate(made.log, seed=seed, samples=200)
        inside_these += found.lower <= made.value_of_these <= found.upper
        inside_such += found.lower <= made.value_of_such <= found.upper
    assert (inside_these >= 0.9 * TRIALS, inside_such >= 0.9 * TRIALS) == (True, True)


@pytest.mark.parametrize(("change", "better"), [("sees-more", True), ("sees-less", False)])
def test_a_gain_is_seen_and_so_is_a_loss(change: str, better: bool) -> None:
    """The interval is not only wide enough for anything."""
    found = estimate(World(7, change, size=2000, feedback=0.5).log)
    assert found.upper - found.lower < 0.1
    assert (found.gain_lower > 0, found.gain_upper < 0) == (better, not better)


class World:
    """
    Tasks that belong to one of some projects, a policy whose choices are recorded, and another one.

    Each policy sees noise with the truth in it, and is as sure of each project as it should be.

    Attributes:
        value_of_these: The share of these tasks that the other policy would place right.
        value_of_such: The same of very many.
    """

    def __init__(
        self, seed: int, change: str = "rules", *, size: int = 400, feedback: float = 0.3, ties: float = 0.0
    ) -> None:
        rng = np.random.default_rng(seed)
        many = 20 * size
        truth = rng.integers(0, PROJECTS, many)
        shares = _seen(rng, truth, 2.0)
        tied = rng.random(many) < ties
        first, second = shares.argmax(axis=1), np.argsort(shares, axis=1)[:, -2]
        recorded = np.where(tied & (rng.random(many) < 0.5), second, first)
        if change == "rules":  # a fifth of the tasks goes to who came second
            own, other = shares, np.where((rng.random(many) < 0.2) & ~tied, second, first)
        else:
            own = _seen(rng, truth, 2.6 if change == "sees-more" else 1.4)
            other = own.argmax(axis=1)
        self.value_of_these = float((other == truth)[:size].mean())
        self.value_of_such = float((other == truth).mean())
        told = rng.random(size) < feedback
        rows = np.arange(size)
        recorded, other, truth = recorded[:size], other[:size], truth[:size]
        self.log = Log(
            outcomes=(recorded == truth).astype(np.float64),
            projects=recorded,
            confidences=shares[rows, recorded],
            chances=np.where(tied[:size], 0.5, 1.0),
            same=recorded == other,
            known=np.where(told, other == truth, np.nan),
            others=other,
            others_recorded=shares[rows, other],
            others_confidences=own[rows, other],
        )


def _seen(rng: np.random.Generator, truth: npt.NDArray[np.int64], signal: float) -> npt.NDArray[np.float64]:
    """How likely each project is, of each task, to who sees its true one by so much among noise."""
    scores = rng.normal(0.0, 1.0, (len(truth), PROJECTS))
    scores[np.arange(len(truth)), truth] += signal
    shares: npt.NDArray[np.float64] = np.exp(signal * scores)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares
