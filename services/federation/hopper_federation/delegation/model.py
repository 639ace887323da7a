"""
The nouns of a hand-over between Hoppers: plain values, without grpc, SQL or a clock.

Times are seconds of a *steady* clock: it starts as the wall clock's seconds since 1970 when the process does, and does
not jump with it. Lengths of time travel between Hoppers, instants never do.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

GRACE: Final = 30.0
"""How long after the end of a lease who handed over takes the task back, in seconds: the other has stopped by then."""

STOPS_AT: Final = 0.9
"""At which part of an unrenewed lease who took over stops."""

RENEWS_AT: Final = 1 / 3
"""At which part of a lease who took over renews it."""

CLOCKS_APART: Final = 3600.0
"""By how much the clocks of two peers differ at most, in seconds: far more than what any greeting lets pass."""

KEPT_FOR: Final = 30 * 86_400.0
"""How long a hand-over that has ended, and what was said about it, are remembered."""


class Role(StrEnum):
    """On which side of a hand-over this Hopper is."""

    OUT = "OUT"
    IN = "IN"


class State(StrEnum):
    """
    Where a hand-over is, as one side knows it.

        OUT  OFFERED ─► QUARANTINED ─► ACCEPTED ─► RUNNING ─► COMPLETED, FAILED
             open ─► REJECTED (not taken), EXPIRED (not begun or ended in time), RECLAIMED (lease ran out, or peer gone)
             open ─► CANCELLING ─► CANCELLED, or however it ended     exclusive ─► SUSPECT ─► a person decides
        IN   QUARANTINED ─► ACCEPTED ─► RUNNING ─► COMPLETED, FAILED, CANCELLED, REJECTED (nobody here could)
             open ─► RECLAIMED (lease lost, or overtaken), ORPHANED (who handed over is gone)
    """

    OFFERED = "OFFERED"
    QUARANTINED = "QUARANTINED"
    ACCEPTED = "ACCEPTED"
    RUNNING = "RUNNING"
    SUSPECT = "SUSPECT"
    CANCELLING = "CANCELLING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    RECLAIMED = "RECLAIMED"
    ORPHANED = "ORPHANED"
    DISPUTED = "DISPUTED"

    @property
    def open(self) -> bool:
        """Whether something may still come of it by itself, or by a person."""
        return self in OPEN


OPEN: Final = frozenset(
    {State.OFFERED, State.QUARANTINED, State.ACCEPTED, State.RUNNING, State.SUSPECT, State.CANCELLING}
)
HELD: Final = frozenset({State.ACCEPTED, State.RUNNING, State.SUSPECT, State.CANCELLING})
"""States in which who took over may be working on it."""


class Outcome(StrEnum):
    """How a task ended where it was executed."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ENDED_AS: Final = {
    Outcome.SUCCEEDED: State.COMPLETED,
    Outcome.FAILED: State.FAILED,
    Outcome.CANCELLED: State.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Delegation:
    """
    One hand-over, as one side knows it. Change it with `dataclasses.replace`.

    Attributes:
        id: Made by who hands over, 26 letters and digits; the same on both sides.
        peer: Install id of the other side.
        task_uid: `{origin's install id}/{id}`: the same for every hand-over of the task, wherever.
        epoch: Grows with every hand-over of the task by the same Hopper; a later one makes earlier ones worth nothing.
        exclusive: It must not run twice: it is never taken back by itself once it may have begun.
        rule: The rule of the policy that let it cross.
        task: The task here. OUT: in the peer's instance. IN: what was made of it; empty: nothing yet.
        token: OUT: of this Hopper's claim on the task.
        lease: How long one is, in seconds.
        lease_end: OUT: when it is taken back. IN: when it is stopped. None: no lease runs.
        renew_at: IN: when the lease is to be renewed next.
        start_by: OUT: when it must have begun.
        close_by: OUT: when it must have ended.
        sent: The sequence of the last message sent about it.
        heard: The highest sequence that was taken from the peer.
        reason: Why it is as it is: a reason of the catalogue, or empty.
        detail: The same for people.
        settled: OUT: the router knows how it ended. IN: the peer knows.
        outcome: How it ended where it was executed.
        result: What came or was sent at the end: a serialised `Result`.
        late: A result came after the end, and was kept without being applied.
        from_copy: IN: it was in the copy that this Hopper was restored from: it may have been begun since.
        unconfirmed: IN: and who handed it over has not said yet that it still wants it.
        offer: What was offered: a serialised `Offer`.
        appraisal: What the peer said of how well it went: a serialised `Appraisal`.
        title: Of the task, for people.
    """

    id: str
    role: Role
    peer: str
    task_uid: str
    epoch: int
    state: State
    lease: float
    exclusive: bool = False
    rule: str = ""
    task: str = ""
    token: int = 0
    lease_end: float | None = None
    renew_at: float | None = None
    start_by: float | None = None
    close_by: float | None = None
    sent: int = 0
    heard: int = 0
    reason: str = ""
    detail: str = ""
    settled: bool = False
    outcome: Outcome | None = None
    result: bytes = b""
    late: bool = False
    from_copy: bool = False
    unconfirmed: bool = False
    fraction: float = 0.0
    offer: bytes = b""
    appraisal: bytes = b""
    title: str = ""
    created: float = 0.0
    updated: float = 0.0

    @property
    def may_be_begun(self) -> bool:
        """Whether work on what came may begin: or who handed it over may have had it done elsewhere meanwhile."""
        return not (self.exclusive and self.unconfirmed)


# ---------------------------------------------------------------- what one side tells the other


@dataclass(frozen=True, slots=True)
class OfferFacts:
    """
    What an offer says, once its signatures have been verified.

    Attributes:
        sealed: The serialised `Offer`.
        origin: Install id of the first Hopper.
        path: Install ids of every Hopper it came through, oldest first, the sender last.
        labels: Tags, and labels as `key=value`.
        hops: How many more Hoppers it may come to beyond this one.
        fan_out: How many copies may be under way below this Hopper.
        expired: It was not to be taken any more when it came.
        schedule_to_start: How long it may wait to be begun, in seconds.
        made: When it was made, in seconds since 1970 by the sender's clock; 0: nobody knows.
    """

    sealed: bytes
    task_uid: str
    origin: str
    path: tuple[str, ...]
    lease: float
    exclusive: bool = False
    capabilities: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    priority: int = 50
    size: int = 0
    hops: int = 0
    fan_out: int = 0
    expired: bool = False
    schedule_to_start: float | None = None
    title: str = ""
    made: float = 0.0


@dataclass(frozen=True, slots=True)
class Offer:
    """Asks to take a task over."""

    sealed: bytes
    facts: OfferFacts | None = None
    """Set where it is received, by who verified the signatures."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to an offer that had to wait; or what was taken turns out to be for nobody there."""

    accepted: bool
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """How far it is. A later one replaces it."""

    running: bool = True
    fraction: float = 0.0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Renewal:
    """The lease shall go on."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """It is no longer wanted."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """It has ended. `sealed`: a serialised `Result`."""

    outcome: Outcome
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Appraisal:
    """How well it went. `sealed`: a serialised `Appraisal`."""

    sealed: bytes


Body = Offer | Decision | Update | Renewal | Cancel | Result | Appraisal

REPLACED: Final = (Update, Renewal)
"""What a later one of the same kind makes pointless while it has not been sent."""


UNREADABLE: Final = frozenset(
    {"INVALID_REQUEST", "MALFORMED_REQUEST", "UNKNOWN_FIELD", "REQUEST_TOO_LARGE", "METHOD_NOT_OFFERED"}
)
"""Why a message is refused that the peer cannot read, as one that is older or newer: saying it again never helps."""


@dataclass(frozen=True, slots=True)
class Message:
    """
    One message about a hand-over.

    Attributes:
        digest: Of everything in it, to tell another message under the same id.
    """

    id: str
    delegation: str
    epoch: int
    sequence: int
    body: Body
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Receipt:
    """
    What became of a message: the first answer, whenever it is asked for.

    Attributes:
        state: Where the hand-over is at who answers; None: it knows of none.
        reason: Why it was refused; empty: it was taken.
        retry_after: In seconds; None: saying it again never helps.
    """

    message: str
    state: State | None = None
    reason: str = ""
    detail: str = ""
    retry_after: float | None = None

    @property
    def taken(self) -> bool:
        """Whether the message was."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class Note:
    """What one side knows of a hand-over, told to the other."""

    delegation: str
    epoch: int
    state: State
    heard: int
    handed_over: bool


# ---------------------------------------------------------------- what is to be done at home


class Task(StrEnum):
    """What is to be done at this Hopper's router."""

    SUBMIT = "SUBMIT"
    """IN: make a task of what came."""
    STOP = "STOP"
    """IN: cancel the task that was made of it."""
    PROGRESS = "PROGRESS"
    """OUT: say how far it is. Lossy."""
    COMPLETE = "COMPLETE"
    """OUT: complete the claim with the result."""
    FAIL = "FAIL"
    """OUT: fail the claim."""
    RETURN = "RETURN"
    """OUT: send the task back to who decides, without this peer unless what kept it passes."""
    FEEDBACK = "FEEDBACK"
    """Either: pass on to memory what the peer said of how well it went."""


@dataclass(frozen=True, slots=True)
class Errand:
    """
    Something to be done at the router, until it has been.

    Attributes:
        reason: For FAIL, RETURN, STOP: a word.
        detail: For people.
    """

    task: Task
    reason: str = ""
    detail: str = ""
    fraction: float = 0.0

    @property
    def may_come_again(self) -> bool:
        """Of RETURN: whether what kept the task passes, so that it may be handed over to the same peer again."""
        return self.reason in _PASSES


_PASSES: Final = frozenset({"LEASE_LOST", "DELEGATION_NOT_FOUND"})
"""The peer was not heard for as long as a lease, or was restored from a copy and has forgotten it."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something a person should hear of: a word of `trust.Alert`, or `suspect`, `orphaned`, `disputed`, `late`."""

    kind: str
    detail: str = ""


Action = Body | Errand | Alarm


@dataclass(frozen=True, slots=True)
class Step:
    """
    What a transition comes to.

    Attributes:
        delegation: As it is then.
        actions: Messages to the peer, errands at the router and alarms, in order.
        receipt: The answer to the message that caused it, if one did: without the message's id.
    """

    delegation: Delegation
    actions: tuple[Action, ...] = ()
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True)
class TaskNews:
    """
    What became of a task here.

    Attributes:
        running: Somebody works on it.
        outcome: It has ended.
        unplaced: It ended because nobody here could take it.
        sealed: The signed result, where it has ended.
    """

    running: bool = False
    fraction: float = 0.0
    message: str = ""
    outcome: Outcome | None = None
    unplaced: bool = False
    sealed: bytes = b""


DEFAULT_LEASE: Final = timedelta(minutes=15)
DEFAULT_START: Final = timedelta(days=7)
DEFAULT_CLOSE: Final = timedelta(days=30)


class Verdict(StrEnum):
    """What a person may say of a hand-over that waits for one."""

    RETRY = "RETRY"
    GIVE_UP = "GIVE_UP"
    KEEP = "KEEP"
    DISCARD = "DISCARD"


class Gone(StrEnum):
    """Why a peer is none any more, for what is under way with it."""

    REVOKED = "REVOKED"
    COMPROMISED = "COMPROMISED"
    REVOKED_BY_PEER = "REVOKED_BY_PEER"
