"""Pairing by digits, as a table: every step that is not in it is refused, and changes nothing."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from hopper_federation.errors import PairingWrongStep
from hopper_federation.pairing import (
    BROKEN,
    OPEN,
    TABLE,
    TIME_TO_LIVE,
    Event,
    Session,
    Step,
    Verdict,
    next_step,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
WAITING = Session(
    id="01",
    session=b"s" * 16,
    outgoing=False,
    install_id="a" * 32,
    claimed_name="alice",
    address="192.0.2.7:50000",
    create_time=NOW,
    expire_time=NOW + TIME_TO_LIVE,
)
COMPARE = WAITING.revealed(b"n" * 32, b"binding", "123456", NOW)


@pytest.mark.parametrize(("step", "event"), sorted(set(itertools.product(Step, Event)) - set(TABLE)))
def test_what_is_not_in_the_table_is_refused(step: Step, event: Event) -> None:
    with pytest.raises(PairingWrongStep) as caught:
        next_step(step, event)
    assert caught.value.metadata["step"] == step


def test_nothing_comes_of_what_is_over() -> None:
    for (step, event), after in TABLE.items():
        if step not in OPEN:
            assert after is step, (step, event)


def test_both_must_approve() -> None:
    """In every order of events that ends in DONE, both have."""
    paths = [(Step.WAITING, frozenset[Event]())]
    seen = set(paths)
    while paths:
        step, heard = paths.pop()
        if step is Step.DONE:
            assert {Event.REVEAL, Event.APPROVE_HERE, Event.APPROVE_THERE} <= heard
        for (before, event), after in TABLE.items():
            if before is step and (following := (after, heard | {event})) not in seen:
                seen.add(following)
                paths.append(following)
    assert any(step is Step.DONE for step, _ in seen)


def test_the_digits_are_shown_once_the_nonces_are_known() -> None:
    assert (WAITING.code, WAITING.verdict) == ("", Verdict.NONE)
    assert (COMPARE.code, COMPARE.step, COMPARE.verdict) == ("123456", Step.COMPARE, Verdict.NONE)
    assert "123456" not in repr(COMPARE)


@pytest.mark.parametrize("typed", ["123456", "123 456", " 123-456\n"])
def test_the_digits_may_be_typed_in_groups(typed: str) -> None:
    assert COMPARE.approved(typed, NOW).step is Step.APPROVED_HERE


@pytest.mark.parametrize("typed", ["", "yes", "123457", "12345", "1234567", "654321"])
def test_other_digits_end_it_at_once(typed: str) -> None:
    failed = COMPARE.approved(typed, NOW)
    assert (failed.step, failed.failure, failed.verdict) == (Step.FAILED, BROKEN, Verdict.DECLINED)
    with pytest.raises(PairingWrongStep):
        failed.approved("123456", NOW)


def test_digits_cannot_be_approved_before_they_are_known() -> None:
    with pytest.raises(PairingWrongStep):
        WAITING.approved("", NOW)


def test_an_approval_here_and_one_there_make_it() -> None:
    here = COMPARE.approved("123456", NOW)
    assert here.verdict is Verdict.APPROVED
    assert here.heard(Verdict.NONE, NOW) is here
    done = here.heard(Verdict.APPROVED, NOW)
    assert (done.step, done.verdict, done.end_time) == (Step.DONE, Verdict.APPROVED, NOW)
    assert COMPARE.heard(Verdict.APPROVED, NOW).approved("123456", NOW).step is Step.DONE


def test_an_approval_there_says_nothing_of_this_side() -> None:
    there = COMPARE.heard(Verdict.APPROVED, NOW)
    assert (there.step, there.verdict) == (Step.APPROVED_THERE, Verdict.NONE)
    assert there.heard(Verdict.APPROVED, NOW) == there


def test_either_side_declines() -> None:
    for session in (WAITING, COMPARE, COMPARE.approved("123456", NOW)):
        declined = session.heard(Verdict.DECLINED, NOW)
        assert (declined.step, declined.verdict) == (Step.DECLINED, Verdict.DECLINED)


def test_its_time_runs_out() -> None:
    assert not COMPARE.overdue(NOW + TIME_TO_LIVE - timedelta(microseconds=1))
    assert COMPARE.overdue(NOW + TIME_TO_LIVE)
    assert COMPARE.moved(Event.EXPIRE, NOW, failure="DEADLINE_EXCEEDED").step is Step.FAILED
    done = COMPARE.heard(Verdict.APPROVED, NOW).approved("123456", NOW)
    assert not done.overdue(NOW + TIME_TO_LIVE)
