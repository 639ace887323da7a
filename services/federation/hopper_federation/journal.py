"""
What changes in whom this Hopper trusts, written into the audit log when it is in force: by whatever it came about, the
owner's word or an alarm.
"""

from collections.abc import Iterator

import structlog

from hopper_common.audit.model import PROCESS, Decision, Handling
from hopper_common.errors import Overloaded, ShuttingDown
from hopper_common.rpc.guard import Auditing
from hopper_federation.model import Revocation
from hopper_federation.trust_snapshot import TrustedPeer, TrustSnapshot, TrustSnapshots

log = structlog.get_logger(__name__)

CHANGED = "/hopper.federation.v1.Trust/Changed"
SPOILT = "/hopper.federation.v1.Trust/PolicyRefused"


class TrustJournal:
    """Writes from the snapshot of now on."""

    def __init__(self, audit: Auditing, snapshots: TrustSnapshots) -> None:
        self._audit = audit
        self._before = snapshots.current
        snapshots.on_change(self._take)

    def policy_refused(self, peer: str) -> None:
        """Note that the policy of `peers/{peer}` is not what was signed off, so nothing crosses by it."""
        self._write(SPOILT, peer, "the stored policy is not what was signed off", reason="SIGNATURE_INVALID")

    def _take(self, snapshot: TrustSnapshot) -> None:
        before, self._before = self._before.peers, snapshot
        for install_id, peer in snapshot.peers.items():
            for change in _changes(before.get(install_id), peer):
                self._write(CHANGED, peer.name, change)

    def _write(self, method: str, peer: str, rule: str, reason: str = "") -> None:
        decision = Decision(PROCESS, "", "none", "", method, not reason, reason, rule, (peer,))
        try:
            self._audit.record(decision, Handling.KEPT)
        except (Overloaded, ShuttingDown) as error:  # trust must change nevertheless
            log.error("a change of trust is not in the audit log", peer=peer, rule=rule, reason=error.reason)


def _changes(before: TrustedPeer | None, now: TrustedPeer) -> Iterator[str]:
    if before is None:
        yield f"a new peer, {now.level}"
        return
    if (before.level, before.alert) != (now.level, now.alert):
        because = f" ({now.alert})" if now.alert and now.alert != before.alert else ""
        yield f"level {before.level} -> {now.level}{because}"
    if before.policy_version != now.policy_version:
        yield f"policy version {before.policy_version} -> {now.policy_version}"
    if before.revocation != now.revocation and now.revocation is not Revocation.NONE:
        yield f"revoked: {now.revocation}"
    if before.name != now.name:
        yield f"was called {before.name}"
