"""When to try a peer again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_federation.delegation.breaker import LONGEST, OPENS_AT, REST, SHORTEST, Hold

NOW = 1_800_000_000.0


def failed(times: int, *, chance: float = 0.5, least: float = 0.0) -> Hold:
    """After so many failures, all at once."""
    hold = Hold()
    for _ in range(times):
        hold = hold.after(NOW, "PEER_UNREACHABLE", "no answer", chance=chance, least=least)
    return hold


@pytest.mark.parametrize(
    ("times", "pause"),
    [
        (1, 1.0),
        (2, 2.0),
        (3, 4.0),
        (4, 8.0),
        (5, 60.0),
        (6, 60.0),
        (7, 64.0),
        (8, 128.0),
        (9, 256.0),
        (10, 300.0),
    ],
)
def test_each_pause_is_twice_the_one_before_and_after_five_failures_it_rests(
    times: int, pause: float
) -> None:
    hold = failed(times)
    assert hold.until - NOW == pytest.approx(pause)
    assert hold.open == (times >= OPENS_AT)
    assert (hold.failures, hold.failed, hold.reason) == (times, NOW, "PEER_UNREACHABLE")


@given(times=st.integers(1, 20), chance=st.floats(0, 1))
def test_a_pause_varies_by_two_fifths_and_has_an_end(times: int, chance: float) -> None:
    middle, pause = failed(times).until - NOW, failed(times, chance=chance).until - NOW
    assert 0.6 * middle - 0.001 <= pause <= min(LONGEST, 1.4 * middle) + 0.001


def test_failures_are_counted_without_end() -> None:
    assert Hold(10**6).after(NOW, "", "", chance=0.5).until == NOW + LONGEST


@given(st.floats(0, 1e9), st.floats(0, 1))
def test_who_says_how_long_is_left_alone_so_long_but_not_for_ever(least: float, chance: float) -> None:
    pause = failed(1, chance=chance, least=least).until - NOW
    assert min(least, LONGEST) - 0.001 <= pause <= LONGEST


def test_a_sign_of_life_ends_a_pause_but_not_the_count() -> None:
    hold = failed(7)
    short = hold.shortened()
    assert short.until == NOW + SHORTEST
    assert (short.failures, short.open) == (7, True)
    assert short.shortened() == short
    soon = Hold(1, NOW, NOW + 0.1)
    assert soon.shortened() == soon


def test_at_a_start_the_clock_may_have_been_set_back() -> None:
    hold = failed(6)
    assert hold.begun(NOW - 10_000).until == NOW - 10_000 + REST  # as long as it was to be
    assert hold.begun(NOW - 10_000).shortened().until <= NOW - 10_000 + SHORTEST
    assert hold.begun(NOW + 1) == hold
    assert hold.until == pytest.approx(NOW + REST)
