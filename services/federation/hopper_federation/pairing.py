"""
Two Hoppers that show each other six digits: where it stands, as a table, on either side.

    asker                                       answerer
    StartPairing(commitment)        ──────►     draws its nonce, WAITING
    RevealPairing(nonce)            ──────►     checks the commitment; both are at COMPARE and show the digits
    owner types the other's digits              owner types the other's digits
    ConfirmPairing(verdict), again  ──────►     verdicts are exchanged until both have approved: DONE

`next_step` is the whole of it: what is not in the table is refused and changes nothing. A session has one attempt:
digits that differ end it, because the next ones would be the attacker's second try.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from hopper_federation.errors import PairingWrongStep

TIME_TO_LIVE: Final = timedelta(minutes=10)
MOST_PENDING: Final = 20
MOST_PENDING_OF_SOURCE: Final = 3
BROKEN: Final = "PAIRING_COMMITMENT_BROKEN"
EXPIRED: Final = "DEADLINE_EXCEEDED"


class Step(StrEnum):
    """Where a session stands on one side."""

    WAITING = "WAITING"  # the nonces are not known to both yet
    COMPARE = "COMPARE"
    APPROVED_HERE = "APPROVED_HERE"
    APPROVED_THERE = "APPROVED_THERE"
    DONE = "DONE"
    DECLINED = "DECLINED"
    FAILED = "FAILED"


class Event(StrEnum):
    """What moves it. The names are sent as `step` in errors."""

    REVEAL = "REVEAL"
    APPROVE_HERE = "APPROVE_HERE"
    APPROVE_THERE = "APPROVE_THERE"
    DECLINE = "DECLINE"  # on either side
    BREAK = "BREAK"  # something does not add up
    EXPIRE = "EXPIRE"


class Verdict(StrEnum):
    """What an owner decided."""

    NONE = "NONE"
    APPROVED = "APPROVED"
    DECLINED = "DECLINED"


OPEN: Final = frozenset({Step.WAITING, Step.COMPARE, Step.APPROVED_HERE, Step.APPROVED_THERE})

TABLE: Final[Mapping[tuple[Step, Event], Step]] = {
    (Step.WAITING, Event.REVEAL): Step.COMPARE,
    (Step.COMPARE, Event.APPROVE_HERE): Step.APPROVED_HERE,
    (Step.COMPARE, Event.APPROVE_THERE): Step.APPROVED_THERE,
    (Step.APPROVED_HERE, Event.APPROVE_THERE): Step.DONE,
    (Step.APPROVED_THERE, Event.APPROVE_HERE): Step.DONE,
    # Said again: the answer was lost.
    (Step.APPROVED_THERE, Event.APPROVE_THERE): Step.APPROVED_THERE,
    (Step.DONE, Event.APPROVE_THERE): Step.DONE,
    (Step.DECLINED, Event.DECLINE): Step.DECLINED,
    **{(step, Event.DECLINE): Step.DECLINED for step in sorted(OPEN)},
    **{(step, Event.BREAK): Step.FAILED for step in sorted(OPEN)},
    **{(step, Event.EXPIRE): Step.FAILED for step in sorted(OPEN)},
}


def next_step(step: Step, event: Event) -> Step:
    """
    Where an event leads.

    Raises:
        PairingWrongStep: Nowhere from there.
    """
    after = TABLE.get((step, event))
    if after is None:
        raise PairingWrongStep(f"the pairing is {step}: {event} does not fit", step=step)
    return after


@dataclass(frozen=True, slots=True)
class Session:
    """
    One pairing, as one side knows it.

    Attributes:
        id: Of the resource `pairings/{id}`; this side's own.
        session: What the two call it; 16 bytes.
        outgoing: Whether this Hopper asked.
        source: The network that the asker is in; empty where this Hopper asked.
        theirs: What the other said of itself, serialised as it was received.
        commitment: The asker's.
        our_nonce, their_nonce: 32 bytes; theirs is empty until it is known.
        leaf: The certificate that the answerer showed, DER.
        binding: See `transcript`; empty until both nonces are known.
        code: The digits; empty until both nonces are known.
        peer_id: What the peer is called here; empty until its owner says.
        failure: Why it failed: a reason of the catalogue.
    """

    id: str
    session: bytes
    outgoing: bool
    install_id: str
    claimed_name: str
    address: str
    create_time: datetime
    expire_time: datetime
    step: Step = Step.WAITING
    source: str = ""
    ours: bytes = field(default=b"", repr=False)
    theirs: bytes = field(default=b"", repr=False)
    commitment: bytes = b""
    our_nonce: bytes = field(default=b"", repr=False)
    their_nonce: bytes = field(default=b"", repr=False)
    leaf: bytes = field(default=b"", repr=False)
    binding: bytes = b""
    code: str = field(default="", repr=False)
    peer_id: str = ""
    failure: str = ""
    end_time: datetime | None = None

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"pairings/{self.id}"

    @property
    def open(self) -> bool:
        """Whether something may still come of it."""
        return self.step in OPEN

    @property
    def verdict(self) -> Verdict:
        """What this side's owner decided, as the other is told."""
        if self.step in (Step.APPROVED_HERE, Step.DONE):
            return Verdict.APPROVED
        if self.step in (Step.DECLINED, Step.FAILED):
            return Verdict.DECLINED
        return Verdict.NONE

    def moved(self, event: Event, now: datetime, *, failure: str = "") -> "Session":
        """
        The session after an event.

        Raises:
            PairingWrongStep: It does not fit.
        """
        try:
            step = next_step(self.step, event)
        except PairingWrongStep as error:
            raise PairingWrongStep(error.message, session=self.name, step=self.step) from None
        end_time = self.end_time if step in OPEN else self.end_time or now
        return replace(self, step=step, failure=failure or self.failure, end_time=end_time)

    def revealed(self, their_nonce: bytes, binding: bytes, code: str, now: datetime) -> "Session":
        """
        The session once both nonces are known and the commitment has been checked.

        Raises:
            PairingWrongStep: They were before, and others.
        """
        moved = self.moved(Event.REVEAL, now)
        return replace(moved, their_nonce=their_nonce, binding=binding, code=code)

    def approved(self, typed: str, now: datetime) -> "Session":
        """
        The session after its owner has typed in the digits from the other's screen: FAILED where they differ.

        Raises:
            PairingWrongStep: There is nothing to approve.
        """
        approved = self.moved(Event.APPROVE_HERE, now)
        digits = "".join(character for character in typed if character.isdigit())
        if hmac.compare_digest(digits.encode(), self.code.encode()):
            return approved
        return self.moved(Event.BREAK, now, failure=BROKEN)

    def heard(self, verdict: Verdict, now: datetime) -> "Session":
        """
        The session after the other's owner has decided, or not yet.

        Raises:
            PairingWrongStep: It cannot have.
        """
        if verdict is Verdict.APPROVED:
            return self.moved(Event.APPROVE_THERE, now)
        if verdict is Verdict.DECLINED:
            return self.moved(Event.DECLINE, now)
        return self

    def overdue(self, now: datetime) -> bool:
        """Whether its time has run out."""
        return self.open and self.expire_time <= now
