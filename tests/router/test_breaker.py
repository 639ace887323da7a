"""Leaving somebody alone who does not answer."""

import asyncio
from datetime import timedelta

import pytest

from hopper_common.errors import NotFound, Unavailable
from hopper_router.breaker import Breaker, Resting
from hopper_testing.clock import ManualClock
from tests.router.harness import NOW


class Trouble(Unavailable):
    reason = "SAGE_UNAVAILABLE"


class Refused(NotFound):
    reason = "TASK_NOT_FOUND"


def made() -> tuple[Breaker, ManualClock]:
    clock = ManualClock(NOW)
    return Breaker("somebody", clock, Trouble, failures=2), clock


def fails(breaker: Breaker) -> None:
    with pytest.raises(Trouble), breaker.call():
        raise Trouble


def rests(breaker: Breaker) -> timedelta:
    with pytest.raises(Resting) as caught, breaker.call():
        pytest.fail("it was called")
    return caught.value.rest


def test_after_failures_in_a_row_it_rests_and_twice_as_long_after_each_more() -> None:
    breaker, clock = made()
    fails(breaker)
    with breaker.call():  # answers: what failed before does not count
        pass
    fails(breaker)
    fails(breaker)
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
        assert rests(breaker) == timedelta(seconds=seconds)
        clock.advance(timedelta(seconds=seconds))
        fails(breaker)
    clock.advance(timedelta(minutes=1))
    with breaker.call():
        pass
    for _ in range(3):
        with breaker.call():
            pass
    fails(breaker)
    fails(breaker)
    assert rests(breaker) == timedelta(seconds=1)


def test_after_a_rest_one_tries_and_the_others_do_not() -> None:
    breaker, clock = made()
    fails(breaker)
    fails(breaker)
    clock.advance(timedelta(seconds=1))
    with breaker.call():
        assert rests(breaker) == timedelta(seconds=1)
    with breaker.call(), breaker.call():
        pass


def test_a_refusal_is_an_answer() -> None:
    breaker, _ = made()
    fails(breaker)
    for _ in range(3):
        with pytest.raises(Refused), breaker.call():
            raise Refused
    fails(breaker)
    with breaker.call():
        pass


def test_whoever_is_cancelled_while_trying_leaves_it_to_the_next() -> None:
    breaker, clock = made()
    fails(breaker)
    fails(breaker)
    clock.advance(timedelta(seconds=1))
    with pytest.raises(asyncio.CancelledError), breaker.call():
        raise asyncio.CancelledError
    with breaker.call():
        pass
