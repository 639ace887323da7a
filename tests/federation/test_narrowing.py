"""How far a task may be handed on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_federation.delegation.narrowing import (
    DEFAULT_FAN_OUT,
    MOST_HOPS,
    NOBODY,
    Redelegation,
    at_origin,
    handed_on,
    share,
)
from hopper_federation.errors import CapabilityDenied, FanOutLimit, HopLimit

ANY = Redelegation(any=True, hops=3, fan_out=7)
NAMES = st.frozensets(st.sampled_from("abcde"))
REDELEGATIONS = st.builds(
    Redelegation, any=st.booleans(), installs=NAMES, hops=st.integers(0, 9), fan_out=st.integers(0, 99)
)


def test_three_hoppers_and_sixteen_copies_are_allowed_by_default() -> None:
    assert at_origin() == Redelegation(any=True, hops=2, fan_out=7)


def test_no_origin_allows_more_hoppers_than_there_may_be() -> None:
    assert at_origin(hops=100).hops == MOST_HOPS - 1


@pytest.mark.parametrize("least", [{"hops": 1}, {"fan_out": 2}, {"installs": ()}])
def test_where_nothing_is_left_nobody_may_hand_on(least: dict[str, int]) -> None:
    assert at_origin(**least) == NOBODY  # type: ignore[arg-type]


@given(budget=st.integers(1, 500))
def test_a_budget_is_spent_to_the_last_copy_and_no_further(budget: int) -> None:
    spent = 0
    while spent < budget:
        spent += 1 + share(budget, spent)
    assert spent == budget
    with pytest.raises(FanOutLimit):
        share(budget, spent)


def test_sixteen_copies_are_all_there_can_be_however_the_tree_grows() -> None:
    def grown(allowed: Redelegation) -> int:
        """Hand on as often as it is allowed, and let everybody below do the same."""
        copies = spent = 0
        while True:
            try:
                below = handed_on(allowed, "anybody", spent=spent)
            except (FanOutLimit, HopLimit, CapabilityDenied):
                return copies
            spent += 1 + below.fan_out
            copies += 1 + grown(below)

    for hops in range(1, MOST_HOPS + 1):
        copies = spent = 0
        while spent < DEFAULT_FAN_OUT:
            first = at_origin(hops=hops, spent=spent)
            spent += 1 + max(first.fan_out, share(DEFAULT_FAN_OUT, spent))
            copies += 1 + grown(first)
        assert copies <= DEFAULT_FAN_OUT


@given(allowed=REDELEGATIONS, to=st.sampled_from("abcde"), spent=st.integers(0, 99))
def test_what_is_handed_on_is_narrower_than_what_came(allowed: Redelegation, to: str, spent: int) -> None:
    try:
        below = handed_on(allowed, to, spent=spent)
    except CapabilityDenied:
        assert not allowed.allows(to)
    except HopLimit:
        assert allowed.hops == 0
    except FanOutLimit:
        assert allowed.fan_out <= spent
    else:
        assert below.within(allowed.below())


@given(one=REDELEGATIONS, other=REDELEGATIONS, to=st.sampled_from("abcde"))
def test_what_two_allow_together_is_within_both(one: Redelegation, other: Redelegation, to: str) -> None:
    both = one.meet(other)
    assert both.within(one)
    assert both.within(other)
    assert both.allows(to) == (one.allows(to) and other.allows(to))


def test_within_sees_every_way_of_widening() -> None:
    few = Redelegation(installs=frozenset("ab"), hops=2, fan_out=3)
    assert not ANY.within(few)
    assert not Redelegation(installs=frozenset("abc"), hops=2, fan_out=3).within(few)
    assert not Redelegation(installs=frozenset("ab"), hops=3, fan_out=3).within(few)
    assert not Redelegation(installs=frozenset("ab"), hops=2, fan_out=4).within(few)
    assert not Redelegation(hops=-1).within(few)
    assert Redelegation(installs=frozenset("b"), hops=2, fan_out=3).within(few)
