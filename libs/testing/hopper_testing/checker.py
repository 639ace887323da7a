"""
Whether a Hopper kept its promises: decided from what its callers wrote down, and from what is there in the end.

`check` knows nothing of how Hopper works, only what its contract says (protos/hopper/router/v1, the README of the
router). It reads a `History` and a `Dump` and returns a `Report` with everything that does not fit, each under one of
the `Rule`s.

**Who owned a task when** is judged twice. By the server's times: a claim holds from its start to the end of its lease,
renewals included, or to the moment its owner or a canceller ended it; the next may not begin before. And by the
clients': a claim of 30 s that was asked for at one moment cannot have run out 29 s later, whatever the server's clock
says. The second is what finds a server whose clock was stepped.

**What was not answered** may have been done or not. Each rule gives such a call the benefit of the doubt: it may have
happened at any time since it was asked, or never; but not twice, and not otherwise than asked.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Final, TypeVar

from hopper_testing.dump import Dump, Event, TaskFacts
from hopper_testing.history import ENDS, FOREVER, Grant, History, Kind, Operation, Outcome, Watcher

K = TypeVar("K")
V = TypeVar("V")

SECOND: Final = 1_000_000
PROMISE: Final = SECOND
"""A task whose lease has run out is ready again within this."""
SLACK: Final = 0.01
"""By what part a server's second may differ from a client's, and by how many seconds a short time: far more than
clocks that are followed differ by, far less than a lease that was not kept."""


class Rule(StrEnum):
    """What can be broken."""

    LOST = "an acknowledged task is gone"
    DOUBLED = "one submission made two tasks"
    UNASKED = "a task is there that nobody asked for"
    RENAMED = "a repeat was answered with another task"
    TOKENS = "fencing tokens do not grow with each claim"
    OVERLAP = "a task had two owners at once"
    UNLOGGED = "an acknowledged step is not in the log"
    COMPLETED_TWICE = "a task was completed under two claims"
    NOT_COMPLETED = "a completion was acknowledged and did not come to stay"
    OTHER_RESULT = "a task has another result than was acknowledged, or one that nobody gave"
    STALE_ACCEPTED = "a claim that had been lost could still end its task"
    LIVE_REFUSED = "a live claim was refused"
    DONE_REFUSED = "a completion was refused that is in the log"
    NOT_CANCELLED = "a cancellation was acknowledged and did not come to stay"
    LATE = "a task was not ready again in time after its lease had run out"
    ORDER = "generations do not grow"
    CHAIN = "the log of a task does not lead from each state to the next"
    MOVE = "a change that the life of a task does not have"
    LAST = "a task is not as the log left it"
    GAP = "a watcher was not shown a change"
    REPEATED = "a watcher was shown a change twice, or out of order"
    UNEXPECTED = "a refusal that nothing explains"


_OPEN: Final = ("SUBMITTED", "QUEUED", "RUNNING", "INPUT_REQUIRED", "DELEGATED")
_WAITING: Final = ("SUBMITTED", "QUEUED")
FINAL: Final = frozenset({"SUCCEEDED", "FAILED", "REJECTED", "CANCELLED"})


def _to(state: str, *sources: str) -> frozenset[tuple[str, str]]:
    return frozenset((source, state) for source in sources)


def _staying(*states: str) -> frozenset[tuple[str, str]]:
    return frozenset((state, state) for state in states)


MOVES: Final[Mapping[str, frozenset[tuple[str, str]]]] = MappingProxyType(
    {
        "SUBMIT": frozenset(("", state) for state in ("SUBMITTED", "QUEUED", "REJECTED", "DELEGATED")),
        "OFFER": _to("SUBMITTED", ""),
        "ACCEPT": _staying("SUBMITTED"),
        "DECIDE": _to("SUBMITTED", *_WAITING, "INPUT_REQUIRED"),
        "QUEUE": _to("QUEUED", "SUBMITTED"),
        "REJECT": _to("REJECTED", "SUBMITTED"),
        "READY": _staying("SUBMITTED", "QUEUED", "DELEGATED"),
        "BLOCK": _staying(*_WAITING),
        "UNBLOCK": _staying(*_WAITING),
        "UPDATE": _staying(*_WAITING),
        "CLAIM": _to("RUNNING", "QUEUED"),
        "PROGRESS": _staying("RUNNING"),
        "ASK": _to("INPUT_REQUIRED", "RUNNING", "SUBMITTED"),
        "ANSWER": _to("RUNNING", "INPUT_REQUIRED"),
        "COMPLETE": _to("SUCCEEDED", "RUNNING"),
        "RETRY": _to("QUEUED", "RUNNING"),
        "FAIL": _to("FAILED", "RUNNING"),
        "EXPIRE": _to("QUEUED", "RUNNING"),
        "RELEASE": _to("QUEUED", "RUNNING"),
        "DELEGATE": _to("DELEGATED", *_WAITING),
        "RETURN": _to("SUBMITTED", "DELEGATED"),
        "CHILDREN_DONE": _to("SUCCEEDED", "DELEGATED"),
        "CHILD_FAILED": _to("FAILED", "DELEGATED"),
        "CANCEL": _to("CANCELLED", *_OPEN),
        "TIME_OUT": _to("FAILED", *_OPEN),
        "REPLAY": _to("SUBMITTED", "FAILED", "REJECTED"),
    }
)
"""A task's life as the contract tells it: kind of change -> from where to where."""

EXPLAINED: Final[Mapping[Kind, frozenset[str]]] = MappingProxyType(
    {
        Kind.SUBMIT: frozenset(),
        Kind.CLAIM: frozenset({"TASK_CLAIMED", "TASK_NOT_READY", "TASK_WRONG_STATE"}),
        Kind.RENEW: frozenset({"STALE_TOKEN"}),
        Kind.COMPLETE: frozenset({"STALE_TOKEN"}),
        Kind.FAIL: frozenset({"STALE_TOKEN"}),
        Kind.RELEASE: frozenset({"STALE_TOKEN"}),
        Kind.CANCEL: frozenset({"TASK_WRONG_STATE"}),
    }
)
"""Refusals that a caller has to live with; those of a server that is too busy are besides these."""
_BUSY: Final = frozenset({"OVERLOADED", "STORAGE_FULL", "RATE_LIMITED"})


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is not as it was promised."""

    rule: Rule
    subject: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule.name} ({self.rule}): {self.subject}: {self.detail}"


@dataclass(slots=True)
class Report:
    """
    What was found.

    Attributes:
        counts: How much there was to check: submits, acks, claims, completes ...
        back_after: How long after their lease's end tasks came back, in microseconds, outages not counted.
    """

    violations: list[Violation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    back_after: list[int] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Acknowledged tasks that are gone."""
        return self.found(Rule.LOST)

    @property
    def doubled(self) -> int:
        """Submissions that made two tasks, and tasks that were completed twice."""
        return self.found(Rule.DOUBLED) + self.found(Rule.COMPLETED_TWICE)

    def found(self, rule: Rule) -> int:
        """How often a rule was broken."""
        return sum(violation.rule is rule for violation in self.violations)

    def add(self, other: "Report") -> None:
        """Count another report in."""
        self.violations += other.violations
        self.counts += other.counts
        self.back_after += other.back_after


def check(history: History, dump: Dump, *, promise: int = PROMISE) -> Report:
    """
    Everything that is not as it was promised.

    Args:
        dump: Taken when the callers had ended and the server was up; of everything since a moment at which no task
            was open, and the callers had not begun.
        promise: Microseconds in which a task has to be ready again after its lease's end.
    """
    books = _Books(history, dump)
    report = Report(counts=_counts(history, dump), back_after=list(_back_after(books)))
    for rule in (
        *(
            _submissions,
            _refusals,
            _tokens,
            _owners_by_server,
            _owners_by_clients,
            _grants_logged,
        ),
        *(
            _completions,
            _results,
            _stale_ends,
            _refused_ends,
            _cancellations,
            partial(_late, promise=promise),
        ),
        *(_log_order, _chains, _last_states, _watchers),
    ):
        report.violations += rule(books)
    return report


def _counts(history: History, dump: Dump) -> Counter[str]:
    done = [operation for operation in history.operations if operation.outcome is Outcome.OK]
    asked = Counter(str(operation.kind) for operation in history.operations)
    return Counter(
        {
            "submits": len(
                {operation.title for operation in history.operations if operation.kind is Kind.SUBMIT}
            ),
            "acks": len({operation.title for operation in done if operation.kind is Kind.SUBMIT}),
            "claims": len({grant for operation in done for grant in operation.grants}),
            "completes": len(
                {(one.task, one.token) for one in done if one.kind is Kind.COMPLETE},
            ),
            "refused": sum(operation.outcome is Outcome.REFUSED for operation in history.operations),
            "unanswered": sum(operation.outcome is Outcome.UNKNOWN for operation in history.operations),
            "cancels": asked[Kind.CANCEL],
            "tasks": len(dump.tasks),
            "events": len(dump.events),
            "watched": sum(len(watcher.seen) for watcher in history.watchers),
        }
    )


# ---------------------------------------------------------------- the books


@dataclass(slots=True)
class _Tenure:
    """
    A claim in the log, from CLAIM to what ended it.

    Attributes:
        grant: As a caller was told it; None if nobody was.
        last: What ended it; None while it lasts.
        lease_end: By the log and by all renewals that were acknowledged.
    """

    claim: Event
    grant: Grant | None
    last: Event | None = None
    lease_end: int = 0
    renewed_perhaps: bool = False


class _Books:
    """The history and the dump, arranged for looking things up."""

    def __init__(self, history: History, dump: Dump) -> None:
        self.history = history
        self.dump = dump
        self.tasks: dict[str, TaskFacts] = {task.name: task for task in dump.tasks}
        self.log: dict[str, list[Event]] = _by(dump.events, lambda event: event.task)
        self.submits = [one for one in history.operations if one.kind is Kind.SUBMIT]
        self.claims = [one for one in history.operations if one.kind is Kind.CLAIM]
        claimed = [one for one in history.operations if one.token]
        self.of_claim = _by(claimed, lambda one: (one.task, one.token))
        self.cancels = _by(
            (one for one in history.operations if one.kind is Kind.CANCEL), lambda one: one.task
        )
        self.first_asked = _first_asked(history.operations)
        self.grants = self._grants()
        self.tenures = {name: self._tenures(name, events) for name, events in self.log.items()}

    def asked_first(self, operation: Operation) -> float:
        """When a request was sent for the first time: a repeat is answered with what was done then."""
        return self.first_asked.get(operation.request_id, operation.asked_at)

    def _grants(self) -> dict[str, list[tuple[Grant, float, float]]]:
        """Of each task: its grants by token, each with when it was first asked for and first known."""
        known: dict[Grant, tuple[float, float]] = {}
        for operation in self.claims:
            for grant in operation.grants:
                asked, ended = known.get(grant, (FOREVER, FOREVER))
                known[grant] = min(asked, self.asked_first(operation)), min(ended, operation.ended_at)
        ordered = sorted(known.items(), key=lambda item: (item[0].token, item[0].start))
        return _by(((grant, *times) for grant, times in ordered), lambda entry: entry[0].task)

    def _tenures(self, name: str, events: Sequence[Event]) -> list[_Tenure]:
        grants = {(grant.worker, grant.start): grant for grant, _, _ in self.grants.get(name, ())}
        tenures: list[_Tenure] = []
        for event in events:
            if event.kind == "CLAIM":
                grant = grants.get((event.worker, event.start))
                tenures.append(self._renewed(_Tenure(event, grant, lease_end=event.lease_end)))
            elif tenures and tenures[-1].last is None:
                tenures[-1].lease_end = max(tenures[-1].lease_end, event.lease_end)
                if event.state not in ("RUNNING", "INPUT_REQUIRED"):
                    tenures[-1].last = event
        return tenures

    def _renewed(self, tenure: _Tenure) -> _Tenure:
        if tenure.grant is None:
            return tenure
        for operation in self.of_claim.get((tenure.grant.task, tenure.grant.token), ()):
            if operation.kind is Kind.RENEW:
                tenure.lease_end = max(tenure.lease_end, operation.lease_end)
                tenure.renewed_perhaps |= operation.outcome is Outcome.UNKNOWN
        return tenure

    def surely_live_until(self, grant: Grant, asked: float, *, at: float) -> float:
        """
        Until when, by clients' time, a claim cannot have run out.

        Args:
            at: Only renewals that were answered by then count.
        """
        until = asked + _surely((grant.lease_end - grant.start) / SECOND)
        for operation in self.of_claim.get((grant.task, grant.token), ()):
            renewed = operation.kind is Kind.RENEW and operation.outcome is Outcome.OK
            if renewed and operation.ended_at <= at:
                until = max(until, operation.asked_at + _surely(operation.lease))
        return until

    def perhaps_ended(self, grant: Grant, *, before: float, other_than: frozenset[str] = frozenset()) -> bool:
        """Whether the owner, or a canceller, may have ended a claim before a time of the clients'."""
        calls = (*self.of_claim.get((grant.task, grant.token), ()), *self.cancels.get(grant.task, ()))
        return any(
            one.asked_at < before
            and one.may_be_done
            and (one.kind in ENDS or one.kind is Kind.CANCEL)
            and one.request_id not in other_than
            for one in calls
        )


def _surely(seconds: float) -> float:
    return max(0.0, seconds * (1 - SLACK) - SLACK)


def _by(items: Iterable[V], key: Callable[[V], K]) -> dict[K, list[V]]:
    sorted_out: dict[K, list[V]] = defaultdict(list)
    for item in items:
        sorted_out[key(item)].append(item)
    return dict(sorted_out)


def _first_asked(operations: Iterable[Operation]) -> dict[str, float]:
    first: dict[str, float] = {}
    for operation in operations:
        if operation.request_id:
            first[operation.request_id] = min(first.get(operation.request_id, FOREVER), operation.asked_at)
    return first


# ---------------------------------------------------------------- taken in


def _submissions(books: _Books) -> Iterator[Violation]:
    asked_for = {operation.title for operation in books.submits}
    for title, there in _by(books.dump.tasks, lambda task: task.title).items():
        if len(there) > 1:
            yield Violation(Rule.DOUBLED, title, f"is {', '.join(task.name for task in there)}")
        if title not in asked_for:
            yield Violation(Rule.UNASKED, there[0].name, f"is called {title!r}")
    for title, operations in _by(books.submits, lambda operation: operation.title).items():
        names = {operation.task for operation in operations if operation.outcome is Outcome.OK}
        if len(names) > 1:
            yield Violation(Rule.RENAMED, title, f"was answered as {', '.join(sorted(names))}")
        for name in sorted(names):
            task = books.tasks.get(name)
            if task is None:
                yield Violation(Rule.LOST, title, f"was acknowledged as {name}")
            elif task.title != title:
                yield Violation(Rule.LOST, title, f"was acknowledged as {name}, which is {task.title!r}")


def _refusals(books: _Books) -> Iterator[Violation]:
    for operation in books.history.operations:
        explained = EXPLAINED[operation.kind] | _BUSY
        if operation.outcome is Outcome.REFUSED and operation.reason not in explained:
            subject = operation.task or operation.title or operation.client
            yield Violation(Rule.UNEXPECTED, subject, f"{operation.kind} was refused: {operation.reason}")


# ---------------------------------------------------------------- owned


def _tokens(books: _Books) -> Iterator[Violation]:
    for name, grants in books.grants.items():
        for (earlier, _, _), (later, _, _) in pairwise(grants):
            if later.token == earlier.token:
                yield Violation(Rule.TOKENS, name, f"{earlier.worker} and {later.worker} have {later.token}")
            elif later.start < earlier.start - SLACK * SECOND:  # two routers' clocks differ a little
                early = (earlier.start - later.start) / SECOND
                detail = f"{later.token} began {early:.6f} s before {earlier.token}"
                yield Violation(Rule.TOKENS, name, detail)


def _owners_by_server(books: _Books) -> Iterator[Violation]:
    for name, tenures in books.tenures.items():
        for tenure, later in pairwise(tenures):
            if tenure.last is None:
                detail = f"{later.claim.worker} claimed it while {tenure.claim.worker} had it"
                yield Violation(Rule.OVERLAP, name, detail)
        for tenure in tenures:
            if tenure.last is not None and tenure.last.kind == "EXPIRE":
                early = tenure.lease_end - tenure.last.time
                if early > 0:
                    detail = (
                        f"was taken from {tenure.claim.worker} {early / SECOND:.6f} s before its lease ended"
                    )
                    yield Violation(Rule.OVERLAP, name, detail)


def _owners_by_clients(books: _Books) -> Iterator[Violation]:
    for name, grants in books.grants.items():
        for (grant, asked, _), (later, _, known) in pairwise(grants):
            until = books.surely_live_until(grant, asked, at=known)
            if known < until and not books.perhaps_ended(grant, before=known):
                detail = (
                    f"{later.worker} had it {until - known:.3f} s before {grant.worker}'s lease "
                    f"({grant.token}) can have ended"
                )
                yield Violation(Rule.OVERLAP, name, detail)


def _grants_logged(books: _Books) -> Iterator[Violation]:
    for name, grants in books.grants.items():
        logged = {(event.worker, event.start) for event in books.log.get(name, ()) if event.kind == "CLAIM"}
        for grant, _, _ in grants:
            if (grant.worker, grant.start) not in logged:
                yield Violation(Rule.UNLOGGED, name, f"claim {grant.token} of {grant.worker}")


# ---------------------------------------------------------------- ended


def _completions(books: _Books) -> Iterator[Violation]:
    for name, done in _acknowledged(books, Kind.COMPLETE).items():
        tokens = {operation.token for operation in done}
        if len(tokens) > 1:
            yield Violation(Rule.COMPLETED_TWICE, name, f"under {sorted(tokens)}")
        state = books.tasks[name].state if name in books.tasks else "gone"
        if state != "SUCCEEDED":
            yield Violation(Rule.NOT_COMPLETED, name, f"is {state}")
    for name, events in books.log.items():
        if sum(event.kind == "COMPLETE" for event in events) > 1:
            yield Violation(Rule.COMPLETED_TWICE, name, "in the log")


def _results(books: _Books) -> Iterator[Violation]:
    asked = _by((one for one in books.history.operations if one.kind is Kind.COMPLETE), lambda one: one.task)
    for name, task in books.tasks.items():
        if task.state != "SUCCEEDED":
            continue
        of_task = asked.get(name, [])
        acknowledged = {one.result for one in of_task if one.outcome is Outcome.OK}
        if len(acknowledged) > 1:
            yield Violation(Rule.OTHER_RESULT, name, f"{sorted(acknowledged)} were acknowledged")
        possible = acknowledged or {one.result for one in of_task if one.may_be_done}
        if task.result not in possible and "CHILDREN_DONE" not in _kinds(books, name):
            yield Violation(Rule.OTHER_RESULT, name, f"has {task.result!r}, of {sorted(possible)}")


def _kinds(books: _Books, name: str) -> set[str]:
    return {event.kind for event in books.log.get(name, ())}


_LOGGED_AS: Final[Mapping[Kind, frozenset[str]]] = MappingProxyType(
    {
        Kind.COMPLETE: frozenset({"COMPLETE"}),
        Kind.FAIL: frozenset({"RETRY", "FAIL"}),
        Kind.RELEASE: frozenset({"RELEASE"}),
    }
)


def _stale_ends(books: _Books) -> Iterator[Violation]:
    """What was acknowledged to have ended a claim did end that very claim, while it was live."""
    for kind, logged_as in _LOGGED_AS.items():
        for name, done in _acknowledged(books, kind).items():
            for operation in done:
                yield from _stale_end(books, name, operation, logged_as)


def _stale_end(
    books: _Books, name: str, operation: Operation, logged_as: frozenset[str]
) -> Iterator[Violation]:
    tenure = next(
        (one for one in books.tenures.get(name, ()) if one.grant and one.grant.token == operation.token), None
    )
    what = f"{operation.kind} under {operation.token}"
    if tenure is None:
        if name in books.log:
            yield Violation(Rule.UNLOGGED, name, f"{what}, of a claim that the log does not have")
        return
    ended = tenure.last
    if ended is None or ended.kind not in logged_as:
        became = "lasts" if ended is None else f"ended with {ended.kind}"
        yield Violation(Rule.STALE_ACCEPTED, name, f"{what} was acknowledged, and the claim {became}")
    elif ended.time >= tenure.lease_end and not tenure.renewed_perhaps:
        late = (ended.time - tenure.lease_end) / SECOND
        yield Violation(Rule.STALE_ACCEPTED, name, f"{what} {late:.6f} s after the lease")
    else:
        yield from _late_by_client(books, name, operation, what)


def _late_by_client(books: _Books, name: str, operation: Operation, what: str) -> Iterator[Violation]:
    """By clients' time: asked for when the lease must have run out."""
    of_claim = books.of_claim[name, operation.token]
    if any(one.kind is Kind.RENEW and one.may_be_done for one in of_claim):
        return
    for grant, _, known in books.grants.get(name, ()):
        length = (grant.lease_end - grant.start) / SECOND
        late = books.asked_first(operation) - (known + length * (1 + SLACK) + SLACK)
        if grant.token == operation.token and late > 0:
            yield Violation(
                Rule.STALE_ACCEPTED, name, f"{what} {late:.3f} s after the lease, by its own time"
            )


def _refused_ends(books: _Books) -> Iterator[Violation]:
    for name, grants in books.grants.items():
        for grant, asked, _ in grants:
            for operation in books.of_claim.get((name, grant.token), ()):
                if operation.outcome is Outcome.REFUSED and operation.reason == "STALE_TOKEN":
                    yield from _refused_end(books, grant, asked, operation)


def _refused_end(books: _Books, grant: Grant, asked: float, refused: Operation) -> Iterator[Violation]:
    until = books.surely_live_until(grant, asked, at=refused.asked_at)
    own = frozenset({refused.request_id} - {""})
    ended = books.perhaps_ended(grant, before=refused.ended_at, other_than=own)
    what = f"{refused.kind} under {grant.token}"
    if refused.ended_at < until and not ended:
        detail = f"{what}, {until - refused.ended_at:.3f} s before the lease can have ended"
        yield Violation(Rule.LIVE_REFUSED, grant.task, detail)
    if refused.kind is Kind.COMPLETE:
        calls = [one for one in books.of_claim[grant.task, grant.token] if one.kind is Kind.COMPLETE]
        if all(one.outcome is Outcome.REFUSED for one in calls) and _completed_by(books, grant):
            yield Violation(Rule.DONE_REFUSED, grant.task, what)


def _completed_by(books: _Books, grant: Grant) -> bool:
    return any(
        tenure.grant == grant and tenure.last is not None and tenure.last.kind == "COMPLETE"
        for tenure in books.tenures.get(grant.task, ())
    )


def _cancellations(books: _Books) -> Iterator[Violation]:
    for name in _acknowledged(books, Kind.CANCEL):
        state = books.tasks[name].state if name in books.tasks else "gone"
        if state != "CANCELLED":
            yield Violation(Rule.NOT_CANCELLED, name, f"is {state}")
    for name, task in books.tasks.items():
        unasked = not any(one.may_be_done for one in books.cancels.get(name, ()))
        if task.state == "CANCELLED" and unasked:
            yield Violation(Rule.NOT_CANCELLED, name, "is CANCELLED, and nobody called it off")


def _acknowledged(books: _Books, kind: Kind) -> dict[str, list[Operation]]:
    done = (one for one in books.history.operations if one.kind is kind and one.outcome is Outcome.OK)
    return _by(done, lambda operation: operation.task)


# ---------------------------------------------------------------- back in time


def _expired(books: _Books) -> Iterator[tuple[str, int]]:
    """Claims whose lease ran out: the task, and how long it then took until it was ready, outages not counted."""
    for name, tenures in books.tenures.items():
        for tenure in tenures:
            if tenure.renewed_perhaps:
                continue  # nobody knows when its lease ended
            if tenure.last is None and name in books.tasks and books.tasks[name].state == "RUNNING":
                yield name, _delay(books, tenure.lease_end, books.dump.taken)
            elif tenure.last is not None and tenure.last.kind == "EXPIRE":
                yield name, _delay(books, tenure.lease_end, tenure.last.time)


def _back_after(books: _Books) -> Iterator[int]:
    return (delay for _, delay in _expired(books) if delay > 0)


def _late(books: _Books, *, promise: int) -> Iterator[Violation]:
    for name, delay in _expired(books):
        if delay > promise:
            yield Violation(Rule.LATE, name, f"{delay / SECOND:.3f} s after its lease's end")


def _delay(books: _Books, due: int, done: int) -> int:
    """How long something took that was due, from the end of the last outage within on."""
    for outage in sorted(books.history.outages, key=lambda outage: outage.begin):
        # What became due a moment before the outage could not be seen to in time either.
        if outage.begin <= done and outage.end > due:
            due = outage.end
    return done - due


# ---------------------------------------------------------------- the log


def _log_order(books: _Books) -> Iterator[Violation]:
    for earlier, later in pairwise(books.dump.events):
        if later.generation <= earlier.generation:
            yield Violation(Rule.ORDER, later.task, f"{later.generation} comes after {earlier.generation}")


def _chains(books: _Books) -> Iterator[Violation]:
    for name, events in books.log.items():
        if events[0].kind not in ("SUBMIT", "OFFER"):
            yield Violation(Rule.CHAIN, name, f"begins with {events[0].kind}")
        for earlier, later in pairwise(events):
            if later.from_state != earlier.state:
                detail = (
                    f"{later.kind} ({later.generation}) comes from {later.from_state}, not {earlier.state}"
                )
                yield Violation(Rule.CHAIN, name, detail)
        for event in events:
            if (event.from_state, event.state) not in MOVES.get(event.kind, frozenset()):
                detail = (
                    f"{event.kind} ({event.generation}): {event.from_state or 'nothing'} to {event.state}"
                )
                yield Violation(Rule.MOVE, name, detail)


def _last_states(books: _Books) -> Iterator[Violation]:
    for name, task in books.tasks.items():
        events = books.log.get(name)
        if not events:
            if task.generation > books.dump.after:
                yield Violation(Rule.LAST, name, f"is {task.state}, and the log does not know it")
            continue
        last = events[-1]
        if (last.state, last.generation) != (task.state, task.generation):
            detail = f"is {task.state} at {task.generation}, the log says {last.state} at {last.generation}"
            yield Violation(Rule.LAST, name, detail)
    for name in books.log.keys() - books.tasks.keys():
        yield Violation(Rule.LAST, name, "is in the log, and not there")


# ---------------------------------------------------------------- watchers


def _watchers(books: _Books) -> Iterator[Violation]:
    logged = {event.generation: (event.task, event.kind) for event in books.dump.events}
    for number, watcher in enumerate(books.history.watchers):
        yield from _watched(books, f"watcher {number}", watcher, logged)


def _watched(
    books: _Books, subject: str, watcher: Watcher, logged: Mapping[int, tuple[str, str]]
) -> Iterator[Violation]:
    last = watcher.start
    shown: set[int] = set()
    for change in watcher.seen:
        if change.generation <= last:
            yield Violation(Rule.REPEATED, subject, f"{change.generation} after {last}")
        last = max(last, change.generation)
        shown.add(change.generation)
        known = logged.get(change.generation)
        if books.dump.after < change.generation <= books.dump.head and known != (change.task, change.kind):
            detail = f"saw {change.kind} at {change.generation}; the log has {known}"
            yield Violation(Rule.UNLOGGED, subject, detail)
    for generation in logged:
        if watcher.start < generation <= last and generation not in shown:
            yield Violation(Rule.GAP, subject, f"{generation}, {' '.join(logged[generation])}")
