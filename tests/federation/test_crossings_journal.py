"""What is written down of what a peer is refused, and how much of it."""

from datetime import timedelta

from hopper_federation.delegation.crossings_journal import MOST_A_MINUTE, TURNED_AWAY, CrossingsJournal
from hopper_federation.trust import Alert
from hopper_federation.trust_snapshot import TrustSnapshots
from hopper_testing.clock import ManualClock
from tests.federation.neighbours import Noted

PEER, ANOTHER = "p" * 32, "q" * 32


def nobody(_: str, alert: Alert) -> None:
    raise AssertionError(alert)


def test_a_flood_of_refusals_fills_no_disk_and_is_counted(clock: ManualClock) -> None:
    audit = Noted()
    journal = CrossingsJournal(audit, TrustSnapshots(), nobody, clock.monotonic)
    for _ in range(1_000):
        journal.turned_away(PEER, "QUOTA", "reviews")
    journal.turned_away(ANOTHER, "LABEL_DENIED", "nothing about health")
    of_peer, of_another = audit.decisions[:-1], audit.decisions[-1]
    assert len(of_peer) == MOST_A_MINUTE
    assert {(each.method, each.allowed, each.reason, each.rule) for each in of_peer} == {
        (TURNED_AWAY, False, "QUOTA", "reviews")
    }
    assert (of_another.reason, of_another.rule) == ("LABEL_DENIED", "nothing about health")
    clock.advance(timedelta(minutes=1))
    journal.turned_away(PEER, "QUOTA", "reviews")
    journal.turned_away(PEER, "QUOTA", "reviews")
    assert [each.rule for each in audit.decisions[-2:]] == [
        f"reviews, and {1_000 - MOST_A_MINUTE} more before it",
        "reviews",
    ]
