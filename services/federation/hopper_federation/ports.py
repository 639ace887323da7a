"""
What the federation service needs of a store: rows as they are inside one transaction.

An object of these types lives as long as one transaction, and its methods are plain calls. Every `save_peer` also puts
the change into the log that watchers read.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from hopper_federation.model import Invitation, Peer
from hopper_federation.pairing import Session


class PeerStore(Protocol):
    """Peers, and the keys they told."""

    @property
    def now(self) -> datetime:
        """When this transaction happens; UTC, aware."""

    def peer(self, name: str) -> Peer | None:
        """The peer of that name, if there is one."""

    def peer_of(self, install_id: str) -> Peer | None:
        """The peer that is that install, if there is one."""

    def peers(self, *, after: str = "", limit: int | None = None, blocked: bool = True) -> Sequence[Peer]:
        """Peers by name, from the one after *after*; perhaps without blocked ones."""

    def save_peer(self, peer: Peer) -> None:
        """Insert or replace the peer of that install id, and tell; a former name is told as removed."""

    def root_key(self, install_id: str) -> bytes:
        """The active root's public key that was known last, a compressed point; empty: none was."""

    def save_bundle(self, install_id: str, sequence: int, root_key: bytes, bundle: bytes) -> None:
        """Insert or replace the signed bundle of an install."""


class InvitationStore(PeerStore, Protocol):
    """Invitations that this Hopper made."""

    def invitation(self, name: str) -> Invitation | None:
        """The invitation of that resource name, if there is one."""

    def invitation_of(self, secret_id: bytes) -> Invitation | None:
        """The invitation that a token names, if there is one."""

    def invitations(self, limit: int) -> Sequence[Invitation]:
        """The newest first."""

    def open_invitations(self) -> int:
        """How many may be redeemed now."""

    def add_invitation(self, invitation: Invitation) -> None:
        """Insert it."""

    def redeem(
        self, secret_id: bytes, install_id: str, redeemer: bytes, nonce: bytes, our_nonce: bytes
    ) -> bool:
        """
        Redeem an invitation, if it may be: one conditional update, so that of many one has done it.

        Returns:
            Whether this call has.
        """

    def count_wrong_proof(self, secret_id: bytes, most: int) -> None:
        """Count one more wrong proof of an open invitation; *most* of them end it."""

    def count_contest(self, secret_id: bytes) -> None:
        """Count one more who proved to hold an invitation that somebody else had redeemed."""

    def end_invitation(self, secret_id: bytes) -> None:
        """End it, if it is open."""


class SessionStore(PeerStore, Protocol):
    """Pairings by digits."""

    def session(self, name: str) -> Session | None:
        """The pairing of that resource name, if there is one."""

    def session_of(self, session: bytes) -> Session | None:
        """The pairing that was asked for here under that id, if there is one."""

    def sessions(self, limit: int) -> Sequence[Session]:
        """The newest first."""

    def save_session(self, session: Session) -> None:
        """Insert or replace it."""

    def pending(self, source: str = "") -> int:
        """How many that others asked for may still come to something; only those of one network, if given."""
