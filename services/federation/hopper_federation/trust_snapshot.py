"""
Whom this Hopper trusts, as the guard of the peer port reads it on every call: in memory, whole, and never changed.

A snapshot is swapped for the next one after each commit that changes a peer, and is confirmed every few seconds though
nothing has changed. Its *age* is the time since the store last confirmed it: a guard that reads an old one must let
nobody in, because a revocation may be missing from it.

    store ─► TrustSnapshots.replace / confirm ─► current ◄─ guard, handshakes (any thread: one attribute is read)
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from hopper_federation.model import Revocation
from hopper_federation.trust import Level, reaches

STALE_AFTER: Final = timedelta(seconds=30)
TOMBSTONE_FOR: Final = timedelta(days=30)
"""How long a revoked peer is still let through the handshake, so that it reads that it is revoked."""


@dataclass(frozen=True, slots=True)
class TrustedPeer:
    """
    A peer, blocked ones too, as a guard needs it.

    Attributes:
        name: `peers/{id}`.
        roots: Its certificates that its leaves may be issued by, DER; empty: none is accepted any more.
        bundle: Its TrustBundle, serialised, as it was verified: for the keys that it signs with.
    """

    name: str
    install_id: str
    level: Level
    revocation: Revocation = Revocation.NONE
    revoke_time: datetime | None = None
    drain_time: datetime | None = None
    addresses: tuple[str, ...] = ()
    roots: tuple[bytes, ...] = ()
    bundle: bytes = field(default=b"", repr=False)
    bundle_sequence: int = 0
    policy_version: int = 0
    alert: str = ""

    def may(self, needed: Level) -> bool:
        """Whether its level lets it do what needs the other."""
        return reaches(self.level, needed)

    def is_gone(self, now: datetime) -> bool:
        """Whether it is no peer any more: blocked, and not one whose open work may still be finished."""
        draining = (
            self.revocation is Revocation.DRAIN and self.drain_time is not None and now < self.drain_time
        )
        return self.level is Level.BLOCKED and not draining


@dataclass(frozen=True, slots=True)
class TrustSnapshot:
    """
    All peers at one moment.

    Attributes:
        generation: Grows with every change, and with nothing else.
        peers: By install id.
        confirmed: When the store last said that this is so, in seconds of a clock that never goes back; None: never.
    """

    generation: int = 0
    peers: Mapping[str, TrustedPeer] = field(default_factory=lambda: MappingProxyType({}))
    confirmed: float | None = None

    def age(self, now: float) -> float | None:
        """Seconds since the store confirmed it; None: it never has."""
        return None if self.confirmed is None else max(0.0, now - self.confirmed)

    def fresh(self, now: float) -> bool:
        """Whether somebody may be let in on its word."""
        age = self.age(now)
        return age is not None and age <= STALE_AFTER.total_seconds()


class TrustSnapshots:
    """
    Holds the current snapshot, and tells who wants to know when the next one differs.

    Attributes:
        current: May be read from any thread.
    """

    def __init__(self) -> None:
        self.current = TrustSnapshot()
        self._callbacks: list[Callable[[TrustSnapshot], None]] = []

    def on_change(self, callback: Callable[[TrustSnapshot], None]) -> Callable[[], None]:
        """Call back with each snapshot that differs from the one before; returns what ends that."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def replace(self, peers: Iterable[TrustedPeer], now: float) -> bool:
        """
        Take what the store says now.

        Returns:
            Whether it is something else than before.
        """
        by_id = {peer.install_id: peer for peer in peers}
        before = self.current
        if by_id == before.peers:
            self.current = replace(before, confirmed=now)
            return False
        self.current = TrustSnapshot(before.generation + 1, MappingProxyType(by_id), now)
        for callback in tuple(self._callbacks):
            callback(self.current)
        return True


def accepts_roots(revocation: Revocation, revoke_time: datetime | None, now: datetime) -> bool:
    """
    Whether a peer's roots still count in handshakes.

    A revoked peer's do for a while, because TLS could not tell it why it is refused; a compromised one's never.
    """
    if revocation is Revocation.COMPROMISED:
        return False
    if revocation is Revocation.NOW and revoke_time is not None:
        return now < revoke_time + TOMBSTONE_FOR
    return True
