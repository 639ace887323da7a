"""What the desk needs of a store and of its owner's policy: rows as they are inside one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hopper_federation.delegation.model import Body, Delegation, Errand, OfferFacts, Receipt, Role


@dataclass(frozen=True, slots=True)
class Sent:
    """A message of the outbox, and on which side of which hand-over it was said."""

    role: Role
    delegation: str
    body: Body


class DelegationStore(Protocol):
    """Hand-overs and what is to be said and done about them. An object of it lives as long as one transaction."""

    def delegation(self, role: Role, delegation: str) -> Delegation | None:
        """The hand-over of that id, on that side."""

    def save(self, delegation: Delegation) -> None:
        """Insert or replace it."""

    def of_task_uid(self, task_uid: str) -> Sequence[Delegation]:
        """Every hand-over of a task, on either side."""

    def of_task(self, task: str) -> Delegation | None:
        """The newest hand-over that belongs to a task of this Hopper's router."""

    def open_of(self, peer: str) -> Sequence[Delegation]:
        """The open ones with a peer, by id."""

    def due(self, now: float, limit: int) -> Sequence[Delegation]:
        """Open ones of which a lease, a renewal or another clock has run out, the longest overdue first."""

    def answer_of(self, peer: str, message: str) -> tuple[bytes, Receipt] | None:
        """What a message of a peer was answered first, and its digest."""

    def keep_answer(self, peer: str, digest: bytes, receipt: Receipt, now: float) -> None:
        """Remember the first answer."""

    def send(self, delegation: Delegation, body: Body, now: float) -> None:
        """
        Put a message into the outbox, under the next sequence, which the delegation has already.

        A `REPLACED` body takes the place of one of the same kind that has not been sent.
        """

    def forget_message(self, message: str) -> Sent | None:
        """Take an answered message out of the outbox. Returns what it said; None: it is out already."""

    def unanswered(self, delegation: Delegation) -> Sequence[type[Body]]:
        """The kinds of what is in the outbox about a hand-over."""

    def postpone(self, message: str, until: float) -> None:
        """Do not send it before then, nor what was said later of the same hand-over, but for a `Cancel`."""

    def errand(self, delegation: Delegation, errand: Errand) -> None:
        """Have something done at the router. A PROGRESS takes the place of one that has not been done."""


class Ruling(Protocol):
    """What a policy says of an offer."""

    @property
    def allowed(self) -> bool:
        """Whether it may come in."""

    @property
    def quarantined(self) -> bool:
        """Whether a person must accept it first."""

    @property
    def rule(self) -> str:
        """Which rule decided."""

    @property
    def reason(self) -> str:
        """Why not: a reason of the catalogue."""

    @property
    def detail(self) -> str:
        """The same for people."""

    @property
    def retry_after(self) -> float | None:
        """When it may help to offer it again, in seconds; None: never."""


class BorderControl(Protocol):
    """This Hopper's policy for offers, within one transaction."""

    def rule_on(self, peer: str, facts: OfferFacts) -> Ruling:
        """Whether an offer of a peer may come in, by its level, its policy, and what it has used up."""

    def may_have_been_here(self, facts: OfferFacts) -> bool:
        """
        Whether an offer that is not known here may have been taken before this Hopper was restored from a copy: it was
        made before that.
        """


class Opener(Protocol):
    """Verifies what peers have signed, outside of any transaction."""

    def open_offer(self, peer: str, delegation: str, epoch: int, sealed: bytes) -> OfferFacts:
        """
        What an offer of a peer says.

        Raises:
            HopperError: It is not what it should be; its `retry_after`: it may be, later.
        """

    def check_result(self, peer: str, offer: bytes, sealed: bytes) -> None:
        """
        Check that a result is of what was offered to a peer, and by who may say so.

        Args:
            offer: A serialised `Offer`, as it was sent.

        Raises:
            HopperError: As `open_offer`.
        """
