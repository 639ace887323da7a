"""Token buckets: never more than the limit, never less than it for long, whatever the clock and the limit do."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_router.model import RateLimit
from hopper_router.rates import Bucket
from tests.router.harness import NOW, SECOND

limits = st.builds(RateLimit, st.integers(1, 1_000_000), st.timedeltas(SECOND, timedelta(days=1)))


def start(bucket: Bucket, state: int, most: int, after: timedelta) -> tuple[int, int]:
    """Start as many as may, up to *most*; how many that were, and the state."""
    started = 0
    while started < most and bucket.left(state, NOW + after) > 0:
        state = bucket.take(state, NOW + after)
        started += 1
    return started, state


@given(limits)
def test_a_full_bucket_has_as_many_as_the_limit(limit: RateLimit) -> None:
    assert Bucket(limit).left(0, NOW) == limit.count


@pytest.mark.parametrize("count", [1, 3, 7, 1000])
def test_an_empty_one_fills_within_a_period(count: int) -> None:
    bucket = Bucket(RateLimit(count, timedelta(seconds=9)))
    started, state = start(bucket, 0, count + 5, timedelta())
    assert (started, bucket.left(state, NOW)) == (count, 0)
    upcoming = bucket.next_time(state, NOW)
    assert bucket.left(state, upcoming) == 1
    assert bucket.left(state, upcoming - timedelta(microseconds=1)) == 0
    assert bucket.left(state, NOW + timedelta(seconds=9, microseconds=1)) == count
    assert bucket.left(state, NOW + timedelta(days=9)) == count  # what is not used does not add up


@given(
    st.integers(1, 20),
    st.integers(1, 60),
    st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 30)), max_size=30),
)
def test_in_any_time_no_more_start_than_a_bucket_and_what_came_back(
    count: int, period: int, moments: list[tuple[int, int]]
) -> None:
    bucket, state, starts = Bucket(RateLimit(count, timedelta(seconds=period))), 0, []
    at = 0
    for step, most in moments:
        at += step
        started, state = start(bucket, state, most, timedelta(milliseconds=at))
        starts += [at] * started
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            span = (starts[last] - starts[first]) / 1000
            assert last - first + 1 <= count + span * count / period + 1e-6


@given(limits, limits, st.timedeltas(timedelta(-5), timedelta(5)))
def test_no_state_stops_anything_for_longer_than_a_period(
    before: RateLimit, limit: RateLimit, step: timedelta
) -> None:
    """The limit was another, and the clock was set: the wait is never longer than one token takes."""
    _, state = start(Bucket(before), 0, 5, timedelta())
    bucket = Bucket(limit)
    upcoming = bucket.next_time(state, NOW + step)
    assert NOW + step <= upcoming <= NOW + step + limit.period + timedelta(microseconds=1)
    assert bucket.left(state, upcoming) >= 1


def test_the_bounds_for_a_query_say_the_same() -> None:
    bucket = Bucket(RateLimit(3, SECOND))
    low, high = bucket.empty_between(NOW)
    for state, left in ((0, 3), (low, 1), (low + 1, 0), (high, 0), (high + 1, 3)):
        assert bucket.left(state, NOW) == left
