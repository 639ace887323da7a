"""
What a person should hear of about hand-overs: written into the audit log and the log, and where a level falls because
of it, passed on to `alarms`. Never a word of a task.
"""

from collections.abc import Callable
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
ALARM: Final = "/hopper.federation.v1.HandOver/Alarm"
GONE: Final = "/hopper.federation.v1.HandOver/PeerGone"

_ALERTS: Final = frozenset(Alert)


class CrossingsJournal:
    """
    Writes.

    Args:
        alarm: Told of what lowers a peer's level.
    """

    def __init__(
        self, audit: Auditing, snapshots: TrustSnapshots, alarm: Callable[[str, Alert], None]
    ) -> None:
        self._audit = audit
        self._snapshots = snapshots
        self._alarm = alarm

    def refused(self, peer: str, reason: str, rule: str) -> None:
        """A task may not leave for a peer."""
        log.info("a task may not leave", peer=self._name(peer), reason=reason, rule=rule)
        self._write(REFUSED, peer, reason, rule)

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
