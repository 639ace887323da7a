"""
What a person should hear of about hand-overs: written into the audit log and the log, and where a level falls because
of it, passed on to `alarms`. Never a word of a task.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from hopper_common.audit.model import PROCESS, Decision, Handling
from hopper_common.errors import Overloaded, ShuttingDown
from hopper_common.rpc.guard import Auditing
from hopper_federation.delegation.desk import Raised
from hopper_federation.trust import Alert
from hopper_federation.trust_snapshot import TrustSnapshots

log = structlog.get_logger(__name__)

REFUSED: Final = "/hopper.federation.v1.Border/Leave"
TURNED_AWAY: Final = "/hopper.federation.v1.Border/Enter"
ALARM: Final = "/hopper.federation.v1.HandOver/Alarm"
GONE: Final = "/hopper.federation.v1.HandOver/PeerGone"

MOST_A_MINUTE: Final = 10
"""How many records there are of what one peer is refused: a flood fills no disk. The next one tells of the others."""

_MINUTE: Final = 60.0
_MOST_RULE: Final = 150
_ALERTS: Final = frozenset(Alert)


@dataclass(slots=True)
class _Minute:
    """What a peer was refused since a moment."""

    since: float
    written: int = 0
    left_out: int = 0


class CrossingsJournal:
    """
    Writes.

    Args:
        alarm: Told of what lowers a peer's level.
        monotonic: Seconds, of a clock that never goes back.
    """

    def __init__(
        self,
        audit: Auditing,
        snapshots: TrustSnapshots,
        alarm: Callable[[str, Alert], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._audit = audit
        self._snapshots = snapshots
        self._alarm = alarm
        self._monotonic = monotonic
        self._minutes: dict[str, _Minute] = {}

    def refused(self, peer: str, reason: str, rule: str) -> None:
        """A task may not leave for a peer."""
        log.info("a task may not leave", peer=self._name(peer), reason=reason, rule=rule)
        self._write(REFUSED, peer, reason, rule)

    def turned_away(self, peer: str, reason: str, rule: str) -> None:
        """
        What a peer offers may not come in.

        Args:
            rule: What decided, for people.
        """
        now = self._monotonic()
        minute = self._minutes.setdefault(peer, _Minute(now))
        if now - minute.since >= _MINUTE:
            minute.since, minute.written = now, 0
        if minute.written >= MOST_A_MINUTE:
            minute.left_out += 1
            return
        more = f", and {minute.left_out} more before it" if minute.left_out else ""
        minute.written, minute.left_out = minute.written + 1, 0
        log.info("an offer may not come in", peer=self._name(peer), reason=reason, rule=rule)
        self._write(TURNED_AWAY, peer, reason, f"{rule[:_MOST_RULE]}{more}")

    def raised(self, raised: Raised) -> None:
        """Something about a hand-over does not add up, or waits for a person."""
        kind = raised.alarm.kind
        log.warning(
            "a hand-over needs a look", peer=self._name(raised.peer), delegation=raised.delegation, kind=kind
        )
        self._write(ALARM, raised.peer, kind.upper(), f"hand-over {raised.delegation}")
        if kind in _ALERTS:
            self._alarm(raised.peer, Alert(kind))

    def gone(self, peer: str, reason: str, count: int) -> None:
        """Hand-overs with a peer were ended because it is none any more."""
        log.warning("hand-overs with a peer are ended", peer=self._name(peer), reason=reason, count=count)
        self._write(GONE, peer, "PEER_REVOKED", f"{count} hand-overs: {reason}")

    def _name(self, peer: str) -> str:
        known = self._snapshots.current.peers.get(peer)
        return peer if known is None else known.name

    def _write(self, method: str, peer: str, reason: str, rule: str) -> None:
        decision = Decision(PROCESS, "", "none", "", method, False, reason, rule, (self._name(peer),))
        try:
            self._audit.record(decision, Handling.KEPT)
        except (Overloaded, ShuttingDown) as error:  # it has happened nevertheless
            log.error("what happened at the border is not in the audit log", reason=error.reason)
