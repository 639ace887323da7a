"""What of an appraisal that a peer sends memory is told."""

from dataclasses import replace
from typing import Final

import pytest

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper.memory.v1.episode_pb2 import Feedback
from hopper_federation.delegation.appraising import feedback_of
from hopper_federation.delegation.model import Delegation, Role, State

DONE: Final = Delegation("d", Role.IN, "p", "p/t", 1, State.COMPLETED, 900.0)


def said(appraisal: dpb.Appraisal) -> Delegation:
    return replace(DONE, appraisal=appraisal.SerializeToString())


def test_what_a_trusted_peer_says_is_told() -> None:
    told = feedback_of(said(dpb.Appraisal(good_match=False, quality=0.5, comment="so\nso")), believed=True)
    assert told == Feedback(match=Feedback.MATCH_BAD, quality=0.5, comment="so so")


def test_what_another_peer_says_is_not() -> None:
    assert feedback_of(said(dpb.Appraisal(good_match=True)), believed=False) is None


@pytest.mark.parametrize("quality", [-0.1, 1.1, 1e300, float("inf"), float("nan")], ids=str)
def test_a_number_that_is_out_of_range_says_nothing(quality: float) -> None:
    told = feedback_of(said(dpb.Appraisal(good_match=True, quality=quality)), believed=True)
    assert told == Feedback(match=Feedback.MATCH_GOOD)
