"""
Who may come in: asked at every call, before its request is read, and again when what it is about is known.

    who calls? ──► may they call this method, anywhere? ──► not too often? ──► the request is read
      │ Callers        │ hopper_common.auth.decide              │ rates            │ what does it name?
      ▼                ▼                                        ▼                  ▼
    UNAUTHENTICATED  PERMISSION_DENIED                    RATE_LIMITED      may they, there? ──► the handler

How somebody proves who they are depends on where they knock, so each kind of listener has a guard of its own:

    the Unix socket          whoever can open it is the owner                       `OwnerGuard`
    the port for people      a key or a token, in `authorization`                   `CallerGuard` with `People`
    the port for services    a certificate of this Hopper; a token for whom they    `CallerGuard` with `Services`
                             pass a call on

A verdict holds for as long as nothing changes. Calls under way are asked again when something does, and once a second
for what runs out by itself: one that would no longer be let in is ended with the reason, be it a stream or a long poll.

Refusals, and whatever changes anything, are handed to the audit log, which may have to be waited for before anything is
done or said.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final, Protocol, cast
from urllib.parse import unquote

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from hopper_common.audit.model import Decision, Handling
from hopper_common.audit.sink import handling_of
from hopper_common.auth.bearer import Bearers, Proof
from hopper_common.auth.current import CURRENT, OWNER
from hopper_common.auth.decide import PERMISSION_DENIED, Session, Verdict, owns_worker
from hopper_common.auth.directory import Directory
from hopper_common.auth.model import Access, Kind, Principal, RateClass, Service
from hopper_common.auth.rates import Bucket, Limiter, network_of
from hopper_common.clock import Clock
from hopper_common.errors import (
    HopperError,
    PathDenied,
    PermissionDenied,
    RateLimited,
    Unauthenticated,
)
from hopper_common.rpc.named import Named
from hopper_common.rpc.presented import Certificates, Presented


class Door(Protocol):
    """What the interceptor asks of a guard, made once for each method."""

    def __call__(self, context: Any) -> "Visit":
        """
        Let a call in, or raise.

        Raises:
            Refusal: Not this one.
        """
        ...


class Visit(Protocol):
    """A call that was let in."""

    def about(self, request: Message) -> int:
        """
        Judge what the request names.

        Returns:
            0, or what the guard's `recorded` is to be called with before anything is done.

        Raises:
            Refusal: Not that.
        """
        ...

    def another(self) -> float:
        """Count one more message of a stream; returns the seconds to wait before it is taken."""
        ...

    def denied(self, error: PermissionDenied) -> int:
        """The handler itself has refused. Returns as `about`."""
        ...

    def leave(self) -> None:
        """The call is over."""
        ...


class Guard(Protocol):
    """Who may come in at one kind of listener."""

    def door(self, method: "GuardedMethod", end: "End") -> Door:
        """
        What to ask for a method.

        Args:
            end: Ends a call under way, with a reason.
        """
        ...

    async def recorded(self, ticket: int) -> None:
        """
        Wait until a decision is in the audit log for good.

        Raises:
            HopperError: It cannot be written; nothing is to be done.
        """
        ...


End = Callable[["asyncio.Task[Any]", HopperError], None]


class GuardedMethod(Protocol):
    """What a guard knows of a method."""

    @property
    def path(self) -> str:
        """`/package.Service/Method`."""
        ...

    @property
    def service(self) -> str:
        """`package.Service`."""
        ...

    @property
    def access(self) -> Access:
        """What it declares."""
        ...

    @property
    def streams_in(self) -> bool:
        """Whether it takes a stream of requests."""
        ...

    @property
    def streams_out(self) -> bool:
        """Whether it answers with a stream."""
        ...

    @property
    def names(self) -> Callable[[Message], Named]:
        """What a request names."""
        ...


class Refusal(Exception):
    """
    A call that is not let in.

    Attributes:
        error: What to answer.
        ticket: What to wait for before that.
    """

    def __init__(self, error: HopperError, ticket: int = 0) -> None:
        super().__init__(error.message)
        self.error = error
        self.ticket = ticket


class _Unnoticed:
    """A call about which nothing is asked or written down."""

    def about(self, request: Message) -> int:
        return 0

    def another(self) -> float:
        return 0.0

    def denied(self, error: PermissionDenied) -> int:
        return 0

    def leave(self) -> None:
        pass


UNNOTICED: Final = _Unnoticed()
_HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class NoGuard:
    """Lets everybody in, and writes nothing down: for servers that are in no danger, as in tests."""

    def door(self, method: GuardedMethod, end: End) -> Door:
        return lambda context: UNNOTICED

    async def recorded(self, ticket: int) -> None:
        """Nothing is."""


# What is written down.


class Auditing(Protocol):
    """The part of `hopper_common.audit.sink.AuditSink` that is used here."""

    def record(self, decision: Decision, handling: Handling) -> int:
        """See there."""
        ...

    async def flushed(self, ticket: int | None = None) -> None:
        """See there."""
        ...


def _handling(method: GuardedMethod) -> Handling:
    """What becomes of the decision to let a call of the method in."""
    rate_class = method.access.rate_class
    if rate_class is None:
        return Handling.IGNORED
    if rate_class is RateClass.WATCH and method.streams_in:
        return Handling.COUNTED  # each of its messages may change something
    return handling_of(cast("Any", int(rate_class)), allowed=True)


def _decision(
    principal: Principal, method: GuardedMethod, verdict: Verdict, names: tuple[str, ...] = ()
) -> Decision:
    person = principal.acting_for
    return Decision(
        principal=principal.name if principal.kind is not Kind.STRANGER else "stranger",
        acting_for="" if person is None else person.name,
        credential=principal.credential,
        source=principal.source,
        method=method.path,
        allowed=verdict.allowed,
        reason=verdict.reason,
        rule=verdict.rule,
        resources=names,
    )


# The owner.


class OwnerGuard:
    """
    The guard of the Unix socket: it is for the owner alone, because nobody else can open it, so there is nothing to
    ask. What changes anything is written down.
    """

    def __init__(self, audit: Auditing) -> None:
        self._audit = audit

    def door(self, method: GuardedMethod, end: End) -> Door:
        handling = _handling(method)
        if handling is Handling.IGNORED:
            return lambda context: UNNOTICED
        visit = _OwnersVisit(self._audit, method, handling)
        return lambda context: visit

    async def recorded(self, ticket: int) -> None:
        await self._audit.flushed(ticket)


class _OwnersVisit:
    """Calls of one method by the owner: they are all alike."""

    __slots__ = ("_audit", "_decision", "_handling", "_names")

    def __init__(self, audit: Auditing, method: GuardedMethod, handling: Handling) -> None:
        self._audit = audit
        self._handling = handling
        self._names = method.names
        self._decision = _decision(OWNER, method, Verdict(True, "the owner may do everything"))

    def about(self, request: Message) -> int:
        if self._handling is Handling.COUNTED:  # the hot path; what each of thousands names is not looked for
            return self._audit.record(self._decision, self._handling)
        names = self._names(request).names
        return self._audit.record(self._decision._replace(resources=names), self._handling)

    def another(self) -> float:
        return 0.0

    def denied(self, error: PermissionDenied) -> int:
        return 0

    def leave(self) -> None:
        pass


# Everybody else.


class Callers(Protocol):
    """How callers prove who they are, at one kind of listener."""

    def session(self, context: Any) -> Session:
        """
        Who calls.

        Raises:
            HopperError: They have not proved it.
        """
        ...

    def again(self, session: Session) -> Session:
        """
        The same as it is now, for a call that is under way.

        Raises:
            HopperError: It would not be let in any more.
        """
        ...

    def spend(self, session: Session) -> None:
        """
        Use up what is good for one far-reaching call only.

        Raises:
            HopperError: It was used before.
        """
        ...


class People:
    """Callers with a key or a token."""

    def __init__(self, bearers: Bearers) -> None:
        self._bearers = bearers

    def session(self, context: Any) -> Session:
        header = authorization(context)
        if header is None:
            raise Unauthenticated(
                "say who you are: a key or token in the authorization header (HOPPER_API_KEY)"
            )
        return self._bearers.proof_of(header, source_of(context))

    def again(self, session: Session) -> Session:
        return self._bearers.again(cast("Proof", session))

    def spend(self, session: Session) -> None:
        self._bearers.spend(cast("Proof", session))


class _OfService(Session):
    """A service, by its certificate."""

    __slots__ = ("presented",)

    def __init__(self, principal: Principal, presented: Presented) -> None:
        super().__init__(principal)
        self.presented = presented


class _PassedOn(Session):
    """Somebody in whose name a service calls."""

    __slots__ = ("proof", "service")

    def __init__(self, service: _OfService, proof: Proof) -> None:
        super().__init__(proof.principal, verdicts=proof.verdicts, kept=proof.kept)
        self.service = service
        self.proof = proof


class Services:
    """
    Callers with a certificate of this Hopper: its services.

    One that brings a token too, calls in the name of whom that is for, and may then do what they may, not what it may
    itself.
    """

    def __init__(self, certificates: Certificates, bearers: Bearers, trust_domain: str) -> None:
        self._certificates = certificates
        self._bearers = bearers
        self._trust_domain = trust_domain
        self._known: dict[bytes, _OfService] = {}

    def session(self, context: Any) -> Session:
        presented = self._certificates.presented(context.auth_context())
        session = self._known.get(presented.pem)
        if session is None or session.presented is not presented:
            session = self._keep(presented, source_of(context))
        header = authorization(context)
        if header is None:
            return session
        return _PassedOn(session, self._bearers.proof_of(header, session.principal.source, keys=False))

    def again(self, session: Session) -> Session:
        if isinstance(session, _PassedOn):
            service = self._service_again(session.service)
            proof = self._bearers.again(session.proof)
            return session if proof is session.proof else _PassedOn(service, proof)
        return self._service_again(cast("_OfService", session))

    def spend(self, session: Session) -> None:
        if isinstance(session, _PassedOn):
            self._bearers.spend(session.proof)

    def _service_again(self, session: _OfService) -> _OfService:
        presented = self._certificates.again(session.presented)
        if presented is session.presented:
            return session
        return self._keep(presented, session.principal.source)

    def _keep(self, presented: Presented, source: str) -> _OfService:
        if presented.name.trust_domain != self._trust_domain:
            raise PathDenied("only services of this Hopper call here", path=presented.name.path)
        service = _SERVICES.get(presented.name.path)
        if service is None:
            raise PathDenied(path=presented.name.path)
        principal = Principal(
            name=str(presented.name),
            kind=Kind.SERVICE,
            credential="certificate",
            source=source,
            service=service,
            expires=presented.not_after,
        )
        if len(self._known) >= _MOST_SERVICES:
            self._known.clear()
        session = self._known[presented.pem] = _OfService(principal, presented)
        return session


_SERVICES: Final[Mapping[str, Service]] = {service.path: service for service in Service}
_MOST_SERVICES: Final = 256


def authorization(context: Any) -> str | None:
    """
    The one `authorization` header of a call.

    Raises:
        Unauthenticated: There are several, or it is not text.
    """
    found = None
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            if found is not None or not isinstance(value, str):
                raise Unauthenticated("there must be one authorization header")
            found = value
    return found


def source_of(context: Any) -> str:
    """Where a call comes from: an address without its port, or `unix`."""
    return _source(context.peer())


@lru_cache(4096)
def _source(peer: str) -> str:
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return "unix" if kind == "unix" else ""
    host = unquote(rest).rpartition(":")[0]
    return host.removeprefix("[").removesuffix("]").partition("%")[0].lower()


class CallerGuard:
    """
    The guard of a listener where callers have to prove who they are.

    Args:
        directory: The tree that places are in; and what it says of a change.
        limiter: One for all listeners of a process.

    Attributes:
        ended: By a principal's name, how many of its calls were ended under way.
    """

    def __init__(
        self, callers: Callers, directory: Directory, limiter: Limiter, audit: Auditing, clock: Clock
    ) -> None:
        self.callers = callers
        self.directory = directory
        self.limiter = limiter
        self.audit = audit
        self.monotonic = clock.monotonic
        self.ended: Counter[str] = Counter()
        self._visits: dict[asyncio.Task[Any], _Visit] = {}
        self._watching = False
        self._looking = False
        directory.on_change(self.look_soon)

    def door(self, method: GuardedMethod, end: End) -> Door:
        if method.service == _HEALTH:
            return lambda context: UNNOTICED
        return _Door(self, method, end)

    async def recorded(self, ticket: int) -> None:
        await self.audit.flushed(ticket)

    def known(self, principal: str) -> bool:
        """Whether there is a principal of that name."""
        return self.directory.principal(principal) is not None

    # Calls under way.

    @property
    def under_way(self) -> int:
        """How many calls are."""
        return len(self._visits)

    def enter(self, task: "asyncio.Task[Any]", visit: "_Visit") -> None:
        """Keep an eye on a call."""
        self._visits[task] = visit
        if not self._watching:
            self._watching = True
            asyncio.get_running_loop().call_later(_LOOK_EVERY, self._look_again)

    def leave(self, task: "asyncio.Task[Any]") -> None:
        """It is over."""
        self._visits.pop(task, None)

    def look_soon(self) -> None:
        """Ask again about all calls under way, as soon as whatever changes now is done."""
        if self._visits and not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self.look)

    def _look_again(self) -> None:
        self.look()
        self._watching = bool(self._visits)
        if self._watching:
            asyncio.get_running_loop().call_later(_LOOK_EVERY, self._look_again)

    def look(self) -> None:
        """Ask again about all calls under way, now."""
        self._looking = False
        for task, visit in list(self._visits.items()):
            error = visit.objection()
            if error is not None:
                del self._visits[task]
                self.ended[visit.session.principal.name] += 1
                visit.end(task, error)


_LOOK_EVERY: Final = 0.5


class _Door:
    """Where calls of one method come in. What every call needs is looked up beforehand."""

    def __init__(self, guard: CallerGuard, method: GuardedMethod, end: End) -> None:
        self.guard = guard
        self.method = method
        self.end = end
        self.path = method.path
        self.access = method.access
        self.names = method.names
        self.handling = _handling(method)
        self.declared = method.access.rate_class is not None
        self.streams = method.streams_in or method.streams_out
        # A stream with one answer is one request: what it is about, its first message says.
        self.one_in_pieces = method.streams_in and not method.streams_out
        self._session = guard.callers.session
        self._monotonic = guard.monotonic
        self._rate_class = method.access.rate_class or RateClass.READ
        self._special = self.streams or self._rate_class is RateClass.ADMIN

    def __call__(self, context: Any) -> "Visit":
        try:
            session = self._session(context)
        except HopperError as error:
            raise self._stranger(error, source_of(context)) from error
        bucket: Bucket = session.kept.get(self) or self._allowed(session)
        wait = bucket.take(self._monotonic())
        if wait:
            raise Refusal(_limited(self._rate_class, wait))
        if self._special:
            self._count(session)
        CURRENT.set(session.principal)
        visit = _Visit(self, session)
        self.guard.enter(visit.task, visit)
        return visit

    def decide(self, session: Session, places: tuple[str, ...] | None) -> Verdict:
        """Whether the principal may call the method, about these places."""
        return session.decide(self.path, self.access, places, self.guard.directory)

    def _allowed(self, session: Session) -> Bucket:
        """What calls by somebody who may call are counted with; kept, as the verdict is, while nothing changes."""
        if self.declared:
            verdict = self.decide(session, None)
            if not verdict.allowed:
                raise self.refusal(session.principal, verdict)
        kept = session.kept
        bucket: Bucket | None = kept.get(self._rate_class)
        if bucket is None:
            bucket = self.guard.limiter.bucket(session.principal, self._rate_class, self._monotonic())
            kept[self._rate_class] = bucket
        kept[self] = bucket
        return bucket

    def _count(self, session: Session) -> None:
        guard, principal = self.guard, session.principal
        if self._rate_class is RateClass.ADMIN:
            try:
                guard.callers.spend(session)
            except HopperError as error:
                verdict = Verdict(False, "a token is good once", error.reason)
                raise self.refusal(principal, verdict, error) from error
        if self.streams and not guard.limiter.open(principal):
            raise Refusal(_limited(RateClass.WATCH, 1.0))

    def refusal(
        self,
        principal: Principal,
        verdict: Verdict,
        error: HopperError | None = None,
        names: tuple[str, ...] = (),
    ) -> Refusal:
        """Write a refusal down, and say it."""
        ticket = self.guard.audit.record(_decision(principal, self.method, verdict, names), Handling.AWAITED)
        return Refusal(error or denial(verdict, self.method.path), ticket)

    def _stranger(self, error: HopperError, source: str) -> Refusal:
        guard = self.guard
        # Counted before it is written down: who knocks as fast as they can must not fill the log.
        wait = guard.limiter.take_stranger(network_of(source), guard.monotonic())
        if wait:
            return Refusal(_limited(RateClass.STRANGER, wait))
        principal = Principal("stranger", Kind.STRANGER, source=source)
        return self.refusal(principal, Verdict(False, "not proved who calls", error.reason), error)


def denial(verdict: Verdict, method: str) -> PermissionDenied:
    """What a caller is told who may not do that."""
    return PermissionDenied(f"you may not do that: {verdict.rule}", method=method, rule=verdict.rule)


def _limited(rate_class: RateClass, wait: float) -> RateLimited:
    error = RateLimited(rate_class=rate_class.name)
    error.retry_after = timedelta(seconds=max(wait, 0.001))
    return error


_current_task: Final = cast("Callable[[], asyncio.Task[Any]]", asyncio.current_task)


class _Visit:
    """A call that was let in, by whom it is, and what it was found to be about."""

    __slots__ = ("_about", "_door", "session", "task")

    def __init__(self, door: _Door, session: Session) -> None:
        self.task = _current_task()
        self.session = session
        self._door = door
        self._about: tuple[str, ...] | None = None

    def about(self, request: Message) -> int:
        door, session = self._door, self.session
        if not door.declared:
            return 0
        places, names, workers = door.names(request)
        if self._about and places == () and door.one_in_pieces:
            places = self._about
        self._about = places
        verdict = session.verdicts.get((door.path, places)) or door.decide(session, places)
        if workers and verdict.allowed:
            verdict = self._as_workers(workers) or verdict
        if not verdict.allowed:
            raise door.refusal(session.principal, verdict, names=names)
        if door.handling is Handling.IGNORED:
            return 0
        decision = session.kept.get((door.path, names)) or self._decision(verdict, names)
        return door.guard.audit.record(decision, door.handling)

    def _decision(self, verdict: Verdict, names: tuple[str, ...]) -> Decision:
        """What is written down; kept for the few that come again and again."""
        kept = self.session.kept
        if len(kept) >= _MOST_DECISIONS:
            kept.clear()
        decision = _decision(self.session.principal, self._door.method, verdict, names)
        kept[self._door.path, names] = decision
        return decision

    def _as_workers(self, workers: tuple[str, ...]) -> Verdict | None:
        """Why the caller may not work as those; None: they may."""
        principal, known = self.session.principal, self._door.guard.known
        if principal.kind not in _WORKING or all(owns_worker(principal, each, known) for each in workers):
            return None
        own = principal.name.rpartition("/")[2]
        return Verdict(False, f"a worker of somebody else: ids of yours begin with {own}", PERMISSION_DENIED)

    def another(self) -> float:
        guard = self._door.guard
        return guard.limiter.take(self.session.principal, RateClass.WORK, guard.monotonic())

    def denied(self, error: PermissionDenied) -> int:
        rule = error.metadata.get("rule", "refused by the service")
        verdict = Verdict(False, rule, error.reason)
        return self._door.refusal(self.session.principal, verdict, error).ticket

    def objection(self) -> HopperError | None:
        """Why the call would not be let in now; None: it would."""
        door = self._door
        try:
            session = door.guard.callers.again(self.session)
        except HopperError as error:
            return error
        if session is self.session:
            return None
        self.session = session
        if not door.declared:
            return None
        verdict = door.decide(session, self._about)
        return None if verdict.allowed else denial(verdict, door.path)

    def end(self, task: "asyncio.Task[Any]", error: HopperError) -> None:
        """End it under way."""
        self._door.end(task, error)

    def leave(self) -> None:
        self._door.guard.leave(self.task)
        if self._door.streams:
            self._door.guard.limiter.close(self.session.principal)


_MOST_DECISIONS: Final = 256
_WORKING: Final = frozenset({Kind.PERSON, Kind.AGENT})
