"""Confidence set right."""

import random

import numpy as np
import pytest

from hopper_learning.calibration import Calibration


@pytest.mark.parametrize("chances", [[0.5, 0.3, 0.2], [0.34, 0.33, 0.33], [0.999, 0.0005, 0.0005], [0.2] * 5])
def test_the_first_stays_the_first_and_the_whole_stays_one(chances: list[float]) -> None:
    calibration = Calibration()
    for _ in range(500):
        calibration.learn(0.9, False, 1.0)
    calibrated = calibration.calibrate(np.array(chances), 0)
    assert calibrated.sum() == pytest.approx(1.0)
    assert calibrated[0] == calibrated.max()


def test_a_mass_in_front_of_the_targets_is_no_target() -> None:
    calibrated = Calibration().calibrate(np.array([0.9, 0.06, 0.04]), 1)
    assert calibrated.sum() == pytest.approx(1.0)
    assert calibrated[0] > 0.85
    assert calibrated[1] > calibrated[2]


def test_nothing_but_certainty_is_left_alone() -> None:
    assert Calibration().calibrate(np.array([1.0]), 0).tolist() == [1.0]


def test_too_much_confidence_is_unlearned() -> None:
    calibration, rng = Calibration(), random.Random(1)
    for _ in range(3000):
        calibration.learn(0.95, rng.random() < 0.7, 1.0)
    assert calibration.calibrate(np.array([0.95, 0.05]), 0)[0] == pytest.approx(0.7, abs=0.05)
