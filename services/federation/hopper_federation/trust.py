"""
How far a peer is trusted: the levels, and the only ways from one to another.

A level is a ceiling, over which no policy goes. It rises because this Hopper's owner said so and for no other reason:
nothing is earned by good behaviour. It falls by itself when something does not add up, and then an *alert* says why.

    pairing ──► KNOWN ◄──────── owner ────────► TRUSTED ◄── owner, with the words compared ──► VERIFIED
                  ▲                                │                                              │
                  └──────────── an alert ──────────┴──────────────────────────────────────────────┘
    any ── owner, or an impersonation ──► BLOCKED ── pairing again, and nothing else ──► KNOWN
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from hopper_common.border.levels import LINE, Level, reaches
from hopper_federation.errors import PeerWrongState

__all__ = ["BY_PAIRING", "Alert", "Level", "after_alert", "after_grant", "after_pairing", "reaches"]


class Alert(StrEnum):
    """What does not add up about a peer. The values are what its owner's tools show."""

    KEY_CHANGED = "key_changed"
    SIGNATURE_FAILED = "signature_failed"
    POLICY_BREACH = "policy_breach"
    IMPERSONATION = "impersonation"
    INVITATION_CONTESTED = "invitation_contested"


_CEILING_AFTER: Final[Mapping[Alert, Level]] = {
    Alert.KEY_CHANGED: Level.KNOWN,
    Alert.SIGNATURE_FAILED: Level.KNOWN,
    Alert.POLICY_BREACH: Level.KNOWN,
    Alert.INVITATION_CONTESTED: Level.KNOWN,
    Alert.IMPERSONATION: Level.BLOCKED,
}
# What an invitation or six digits may give.
BY_PAIRING: Final = frozenset({Level.UNTRUSTED, Level.KNOWN})


def after_alert(level: Level, alert: Alert) -> Level:
    """The level after an alert: never higher than before."""
    ceiling = _CEILING_AFTER[alert]
    if Level.BLOCKED in (level, ceiling):
        return Level.BLOCKED
    return min(level, ceiling, key=LINE.index)


def after_pairing(level: Level | None, offered: Level) -> Level:
    """
    The level of a peer that has been paired, perhaps not for the first time.

    Args:
        level: What it had; None: it is new.
        offered: What the invitation gives, one of `BY_PAIRING`.
    """
    if level in (None, Level.BLOCKED):
        return offered
    return max(level, offered, key=LINE.index)


def after_grant(peer: str, level: Level, wanted: Level, *, has_policy: bool, compared: bool) -> Level:
    """
    The level that an owner gives a peer.

    Args:
        peer: Its name, for the error.
        has_policy: Whether it has a policy, or gets one now.
        compared: Whether somebody has compared the words, now or before.

    Raises:
        PeerWrongState: Blocked, which only pairing again ends; or something that the level needs is missing.
    """
    if wanted is Level.BLOCKED:
        return wanted
    problem = ""
    if level is Level.BLOCKED:
        problem = "is blocked: pair again to let it in"
    elif wanted is Level.UNTRUSTED:
        problem = "was paired and is not untrusted again: block it instead"
    elif wanted in (Level.TRUSTED, Level.VERIFIED) and not has_policy:
        problem = f"has no policy, and without one {wanted} means nothing: give one"
    elif wanted is Level.VERIFIED and not compared:
        problem = "is verified by a person who compares the words: say how that was done"
    if problem:
        raise PeerWrongState(f"{peer} {problem}", peer=peer, level=level, verb=f"SET_{wanted}")
    return wanted
