"""Levels rise by an owner's word alone, and fall when something does not add up."""

import itertools

import pytest

from hopper_federation import trust
from hopper_federation.errors import PeerWrongState
from hopper_federation.trust import BY_PAIRING, Alert, Level

LINE = (Level.UNTRUSTED, Level.KNOWN, Level.TRUSTED, Level.VERIFIED)


@pytest.mark.parametrize(("level", "needed"), list(itertools.product(Level, LINE)))
def test_a_level_reaches_those_below_it_and_a_blocked_one_none(level: Level, needed: Level) -> None:
    expected = level is not Level.BLOCKED and LINE.index(level) >= LINE.index(needed)
    assert trust.reaches(level, needed) is expected


@pytest.mark.parametrize(("level", "alert"), list(itertools.product(Level, Alert)))
def test_an_alert_never_raises_a_level(level: Level, alert: Alert) -> None:
    after = trust.after_alert(level, alert)
    if Level.BLOCKED in (level, after):
        assert after is Level.BLOCKED
    else:
        assert LINE.index(after) <= min(LINE.index(level), LINE.index(Level.KNOWN))


def test_an_impersonation_blocks() -> None:
    assert trust.after_alert(Level.VERIFIED, Alert.IMPERSONATION) is Level.BLOCKED


@pytest.mark.parametrize("offered", sorted(BY_PAIRING))
def test_pairing_lets_in_who_is_new_or_was_blocked_and_takes_nothing_away(offered: Level) -> None:
    assert trust.after_pairing(None, offered) is offered
    assert trust.after_pairing(Level.BLOCKED, offered) is offered
    for level in (Level.KNOWN, Level.TRUSTED, Level.VERIFIED):
        assert trust.after_pairing(level, offered) is level


def test_pairing_gives_no_more_than_known() -> None:
    assert frozenset({Level.UNTRUSTED, Level.KNOWN}) == BY_PAIRING


@pytest.mark.parametrize("wanted", sorted(Level))
def test_a_blocked_peer_is_let_in_by_pairing_again_only(wanted: Level) -> None:
    if wanted is Level.BLOCKED:
        assert _grant(Level.BLOCKED, wanted) is Level.BLOCKED
        return
    with pytest.raises(PeerWrongState, match="pair again") as caught:
        _grant(Level.BLOCKED, wanted)
    assert caught.value.metadata == {"peer": "peers/bob", "level": "BLOCKED", "verb": f"SET_{wanted}"}


def _grant(level: Level, wanted: Level, *, has_policy: bool = True, compared: bool = True) -> Level:
    return trust.after_grant("peers/bob", level, wanted, has_policy=has_policy, compared=compared)


def test_an_owner_raises_and_lowers() -> None:
    assert _grant(Level.KNOWN, Level.TRUSTED, compared=False) is Level.TRUSTED
    assert _grant(Level.TRUSTED, Level.VERIFIED) is Level.VERIFIED
    assert _grant(Level.VERIFIED, Level.KNOWN, has_policy=False, compared=False) is Level.KNOWN
    assert _grant(Level.VERIFIED, Level.BLOCKED, has_policy=False) is Level.BLOCKED


def test_trusted_needs_a_policy_and_verified_words_compared() -> None:
    with pytest.raises(PeerWrongState, match="no policy"):
        _grant(Level.KNOWN, Level.TRUSTED, has_policy=False)
    with pytest.raises(PeerWrongState, match="compares the words"):
        _grant(Level.TRUSTED, Level.VERIFIED, compared=False)
    with pytest.raises(PeerWrongState, match="block it instead"):
        _grant(Level.KNOWN, Level.UNTRUSTED)
