"""What both sides check of each other, and how long an invitation keeps the port open."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from hopper_federation.errors import ClockSkew, UnsupportedVersion
from hopper_federation.model import (
    MOST_SKEW,
    REPEATABLE_FOR,
    Invitation,
    InvitationState,
    agreed_version,
    check_clock,
)
from hopper_federation.transcript import Versions
from hopper_federation.trust import Level

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


@pytest.mark.parametrize("offset", [timedelta(), MOST_SKEW, -MOST_SKEW])
def test_clocks_may_differ_by_five_minutes(offset: timedelta) -> None:
    check_clock(NOW + offset, NOW)


@pytest.mark.parametrize(
    ("offset", "says", "seconds"),
    [
        (MOST_SKEW + MICROSECOND, "ahead of", "300"),
        (-MOST_SKEW - timedelta(seconds=1), "behind", "-301"),
        (timedelta(days=400), "ahead of", "34560000"),
    ],
)
def test_clocks_further_apart_are_named(offset: timedelta, says: str, seconds: str) -> None:
    with pytest.raises(ClockSkew, match=says) as caught:
        check_clock(NOW + offset, NOW)
    assert caught.value.metadata == {"offset_seconds": seconds, "limit_seconds": "300"}


@pytest.mark.parametrize(
    ("theirs", "ours", "agreed"),
    [
        (Versions(1, 0, 0), Versions(1, 0, 0), "1.0"),
        (Versions(1, 0, 3), Versions(1, 0, 1), "1.1"),
        (Versions(1, 1, 2), Versions(1, 0, 1), "1.1"),
        (Versions(1, 0, 0), Versions(1, 0, 7), "1.0"),
    ],
)
def test_the_newest_version_that_both_speak(theirs: Versions, ours: Versions, agreed: str) -> None:
    assert agreed_version(theirs, ours) == agreed_version(ours, theirs) == agreed


@pytest.mark.parametrize(
    "theirs", [Versions(2, 0, 0), Versions(0, 0, 0), Versions(1, 2, 3), Versions(1, 3, 2)]
)
def test_no_common_version_is_refused(theirs: Versions) -> None:
    with pytest.raises(UnsupportedVersion) as caught:
        agreed_version(theirs, Versions(1, 0, 1))
    assert caught.value.metadata == {"theirs": str(theirs), "ours": "1.0 to 1.1"}


def test_an_invitation_keeps_the_port_open_until_nobody_may_come() -> None:
    invitation = Invitation(
        id="i1",
        secret_id=bytes(16),
        key=bytes(32),
        root_key=bytes(33),
        peer_id="bob",
        level=Level.KNOWN,
        create_time=NOW,
        expire_time=NOW + timedelta(minutes=10),
    )
    assert invitation.redeemable(NOW)
    assert not invitation.redeemable(invitation.expire_time)
    assert invitation.listens_until() == invitation.expire_time
    redeemed = replace(invitation, state=InvitationState.REDEEMED, redeem_time=NOW)
    assert redeemed.listens_until() == NOW + REPEATABLE_FOR
    assert not redeemed.redeemable(NOW)
    assert replace(invitation, state=InvitationState.DEAD).listens_until() is None
    assert repr(invitation.key) not in repr(invitation)
