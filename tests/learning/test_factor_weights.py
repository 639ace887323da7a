"""Weights of factors: what they are drawn to, what they cannot be made to be, and what is kept of them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator

import pytest

from hopper_learning import SnapshotCorrupt
from hopper_learning.factor_weights import MOST_OF_A_SOURCE, Advantage, FactorWeights, Range

RANGES = {"workload": Range(0.03, 0.3), "cost": Range(0.05, 0.2)}
UNIT = 0.15


def fresh() -> FactorWeights:
    return FactorWeights(RANGES, UNIT)


def weight(weights: FactorWeights, name: str = "workload") -> float:
    return weights.weights[name].value


def decisions(
    count: int, *, by_workload: float, by_ahead: float = 0.0, seed: int = 1
) -> Iterator[tuple[Advantage, bool]]:
    """Decisions that go well the more often the idler the chosen was, and the further it was ahead."""
    chance = random.Random(seed)
    for _ in range(count):
        workload, cost, ahead = (chance.uniform(-0.5, 0.5) for _ in range(3))
        odds = 0.5 + by_workload * workload + by_ahead * ahead
        well = chance.random() < 1.0 / (1.0 + math.exp(-odds))
        yield Advantage({"workload": workload, "cost": cost}, ahead), well


def teach(weights: FactorWeights, lessons: Iterator[tuple[Advantage, bool]], sources: int = 20) -> None:
    for number, (advantage, well) in enumerate(lessons):
        weights.learn(advantage, well=well, source=f"worker{number % sources}")


def test_before_a_lesson_they_are_as_shipped() -> None:
    assert fresh().weights == {"workload": (0.03, 0), "cost": (0.05, 0)}


def test_what_decides_how_it_goes_gains_weight_and_what_does_not_keeps_its_own() -> None:
    weights = fresh()
    teach(weights, decisions(3000, by_workload=3.0))
    assert weight(weights) > 0.15
    assert weight(weights, "cost") == pytest.approx(0.05, abs=0.04)
    assert weights.weights["workload"].lessons == 3000


def test_what_does_harm_loses_its_weight_and_is_never_turned_round() -> None:
    weights = fresh()
    teach(weights, decisions(3000, by_workload=-3.0))
    assert 0.0 <= weight(weights) < 0.02


def test_that_who_is_chosen_has_more_of_it_gains_it_nothing() -> None:
    """Decisions by a factor prefer those who have more of it: that says nothing of how they go."""
    weights = fresh()
    chance = random.Random(3)
    for number in range(3000):
        advantage = Advantage({"workload": chance.uniform(0.2, 0.5)}, chance.uniform(0.0, 2.0))
        weights.learn(advantage, well=chance.random() < 0.8, source=f"worker{number % 20}")
    assert weight(weights) < 0.09


def test_a_change_of_the_world_is_followed() -> None:
    weights = fresh()
    teach(weights, decisions(1500, by_workload=3.0))
    before = weight(weights)
    teach(weights, decisions(4000, by_workload=-3.0, seed=2))
    assert weight(weights) < before / 2


def test_one_lesson_is_a_small_step() -> None:
    weights = fresh()
    weights.learn(Advantage({"workload": 1e9, "cost": -1e9}, math.inf), well=False)
    assert abs(weight(weights) - 0.03) <= 0.02 * 0.3
    assert abs(weight(weights, "cost") - 0.05) <= 0.02 * 0.2


def test_one_source_moves_a_weight_only_so_far_however_often_it_speaks() -> None:
    weights = fresh()
    for _ in range(20_000):
        weights.learn(Advantage({"workload": -0.5}, 0.0), well=False, source="mallory")
    assert 0.05 < weight(weights) <= 0.03 + (MOST_OF_A_SOURCE + 0.01) * 0.3


def test_who_lies_is_outweighed_by_many_who_do_not() -> None:
    alone, beset = fresh(), fresh()
    for number, (advantage, well) in enumerate(decisions(3000, by_workload=3.0)):
        source = f"worker{number % 20}"
        alone.learn(advantage, well=well, source=source)
        lies = number % 20 == 0
        beset.learn(advantage, well=well != lies, source="mallory" if lies else source)
    assert weight(beset) > 0.6 * weight(alone)


def test_a_lesson_of_no_weight_teaches_nothing_and_what_makes_no_difference_is_not_counted() -> None:
    weights = fresh()
    weights.learn(Advantage({"workload": 0.4}, 0.0), well=False, weight=0.0)
    assert weight(weights) == 0.03
    weights.learn(Advantage({"workload": 0.0, "cost": math.nan}, math.nan), well=False)
    assert weights.weights["cost"].lessons == 0


def test_the_same_lessons_in_order_give_the_same_to_the_last_bit() -> None:
    one, other = fresh(), fresh()
    teach(one, decisions(500, by_workload=2.0))
    teach(other, decisions(500, by_workload=2.0))
    assert one.state() == other.state()


def test_what_is_restored_goes_on_as_if_nothing_had_been() -> None:
    whole, resumed = fresh(), fresh()
    lessons = list(decisions(600, by_workload=2.0))
    teach(whole, iter(lessons))
    half = fresh()
    teach(half, iter(lessons[:300]))
    resumed.restore(json.loads(json.dumps(half.state())))
    teach(resumed, iter(lessons[300:]))
    assert resumed.state() == whole.state()


def test_a_factor_that_was_not_there_begins_as_shipped_and_one_that_is_gone_is_forgotten() -> None:
    old = FactorWeights({"workload": RANGES["workload"], "gone": Range(0.1, 1.0)}, UNIT)
    teach(old, decisions(500, by_workload=3.0))
    weights = fresh()
    weights.restore(old.state())
    assert weight(weights) == weight(old)
    assert weights.weights["cost"] == (0.05, 0)
    assert "gone" not in weights.weights


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"values": []},
        {"values": {"workload": "x"}, "squares": {}, "hold": {}, "lessons": {}, "moved": []},
        {"values": {"workload": math.nan}, "squares": {}, "hold": {}, "lessons": {}, "moved": []},
        {"values": {}, "squares": {}, "hold": {}, "lessons": {}, "moved": [1]},
    ],
)
def test_what_is_no_state_is_refused_and_changes_nothing(broken: dict[str, object]) -> None:
    weights = fresh()
    teach(weights, decisions(50, by_workload=3.0))
    before = weights.state()
    with pytest.raises(SnapshotCorrupt):
        weights.restore(broken)
    assert weights.state() == before


def test_sources_that_were_not_heard_for_long_are_forgotten() -> None:
    weights = fresh()
    for number in range(3000):
        weights.learn(Advantage({"cost": 0.1}, 0.0), well=True, source=f"source{number}")
    assert len(weights.state()["moved"]) <= 1024
