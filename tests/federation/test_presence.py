"""What the registry should have of a peer, and what a peer says of itself."""

from datetime import timedelta

from hopper.common.v1.options_pb2 import TRUST_LEVEL_BLOCKED, TRUST_LEVEL_KNOWN, TRUST_LEVEL_TRUSTED
from hopper.federation.v1.peer_service_pb2 import GetCapabilitiesResponse
from hopper.registry.v1.project_pb2 import Border, Project, WorkingHours, WorkingStretch
from hopper_federation.delegation.advertising import _merged
from hopper_federation.delegation.credits import Credits
from hopper_federation.delegation.inquiring import Advertised, advertised
from hopper_federation.delegation.presence import _differing, place_of
from hopper_federation.trust import Level
from hopper_federation.trust_snapshot import TrustedPeer
from hopper_testing.clock import ManualClock

BOB = "b" * 32
HOURS = WorkingHours(
    time_zone="Europe/Berlin", stretches=[WorkingStretch(weekday=1, from_minute=540, to_minute=1020)]
)


def bob(level: Level) -> TrustedPeer:
    return TrustedPeer("peers/bob", BOB, level)


def test_a_trusted_peer_is_shown_with_its_policy_and_what_it_says() -> None:
    place = place_of(bob(Level.TRUSTED), "[[rule]]", Advertised(("docs.review",), HOURS, 12.0))
    assert place.open
    assert place.project == Project(
        display_name="bob",
        capabilities=["docs.review"],
        working_hours=HOURS,
        velocity_per_day=12.0,
        border=Border(policy="[[rule]]", level=TRUST_LEVEL_TRUSTED, peer=BOB),
    )
    assert list(_differing(place.project, place)) == []


def test_what_a_peer_said_earlier_stays_until_it_says_something_else() -> None:
    known = place_of(bob(Level.TRUSTED), "[[rule]]", Advertised(("docs.review",), HOURS, 12.0)).project
    assert list(_differing(known, place_of(bob(Level.TRUSTED), "[[rule]]", None))) == []
    said = place_of(bob(Level.TRUSTED), "[[rule]]", Advertised())
    assert sorted(_differing(known, said)) == ["capabilities", "velocity_per_day", "working_hours"]


def test_nothing_is_handed_to_who_is_trusted_less_and_its_policy_is_gone() -> None:
    for level in (Level.BLOCKED, Level.UNTRUSTED):
        assert not place_of(bob(level), "[[rule]]", None).open
    assert not place_of(bob(Level.TRUSTED), "", None).open
    assert not place_of(bob(Level.TRUSTED), "[[rule]]", None, refuses=True).open
    border = place_of(bob(Level.BLOCKED), "[[rule]]", None).project.border
    assert (border.policy, border.level) == ("", TRUST_LEVEL_BLOCKED)


def test_who_is_no_more_than_known_has_a_place_that_the_router_does_not_choose() -> None:
    place = place_of(bob(Level.KNOWN), "[[rule]]", None)
    assert place.open
    assert place.project.border == Border(policy="", level=TRUST_LEVEL_KNOWN, peer=BOB)
    assert not place_of(bob(Level.KNOWN), "", None, refuses=True).open


def test_what_a_peer_says_is_believed_as_far_as_it_can_be() -> None:
    answer = GetCapabilitiesResponse(
        capabilities=["b", "a", "a", "", "two words", "x" * 101, "right\u202eleft"],
        working_hours=HOURS,
        velocity_per_day=float("inf"),
    )
    assert advertised(answer) == Advertised(("a", "b"), HOURS, 0.0)
    answer.working_hours.time_zone = "Nowhere/Land"
    assert advertised(answer).working_hours is None
    answer.working_hours.time_zone = ""
    answer.working_hours.stretches[0].to_minute = 10
    assert advertised(answer).working_hours is None


def test_a_peer_is_offered_no_more_than_it_said() -> None:
    credit = Credits(ManualClock().monotonic)
    assert credit.of(BOB) == 0
    credit.told(BOB, 2)
    credit.spent(BOB, 3)
    assert credit.of(BOB) == 0
    credit.earned(BOB)
    assert credit.of(BOB) == 1
    assert credit.changed.count == 2


def test_hours_of_several_are_told_as_one_week() -> None:
    stretches = [(1, 0, 60), (1, 50, 90), (1, 100, 110), (2, 0, 10)]
    assert list(_merged(stretches)) == [(1, 0, 90), (1, 100, 110), (2, 0, 10)]


def test_what_a_quota_holds_back_goes_on_when_its_time_is_over_or_something_else_is() -> None:
    clock = ManualClock()
    credit = Credits(clock.monotonic)
    credit.told(BOB, 2)
    for go_on in (lambda: clock.advance(timedelta(seconds=60)), lambda: credit.earned(BOB), credit.let_go):
        credit.hold(BOB, 60.0)
        assert (credit.held(BOB), credit.of(BOB)) == (True, 0)
        go_on()
        assert not credit.held(BOB)
        assert credit.of(BOB) >= 2
