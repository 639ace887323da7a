"""
The guard of the pairing port: nobody there can prove who they are, so what counts is where they come from.

Each network may call once a second, and all together twenty times, before a request is even read: so a flood costs next
to nothing. Networks, not addresses, /24 of IPv4 and /64 of IPv6, because whoever has one address of such a network
usually has all of them.
"""

from datetime import timedelta
from typing import Any, Final

from google.protobuf.message import Message

from hopper_common.audit.model import Decision, Handling
from hopper_common.auth.rates import Bucket, Limiter, Rate, Rates, network_of
from hopper_common.clock import Clock
from hopper_common.errors import PermissionDenied, RateLimited
from hopper_common.rpc.guard import Auditing, Door, End, GuardedMethod, Refusal, Visit, source_of

EACH: Final = Rate(per_second=1, burst=5)
TOGETHER: Final = Rate(per_second=20, burst=40)

_TELLING: Final = frozenset({"Introduce", "GetRotation"})  # the methods that only tell what anybody may know


def caller_network(context: Any) -> str:
    """The network a call comes from."""
    return network_of(source_of(context))


class StrangerGuard:
    """
    Lets strangers in, not too often, to methods that are for strangers. What changes anything, and what is refused
    because it is not proved, is written down.

    Args:
        each: How often one network may call.
        together: How often all may.
    """

    def __init__(
        self, clock: Clock, audit: Auditing, *, each: Rate = EACH, together: Rate = TOGETHER
    ) -> None:
        self._clock = clock
        self._audit = audit
        self._networks = Limiter(Rates(strangers=each))
        self._together = Bucket(together, clock.monotonic())

    def door(self, method: GuardedMethod, end: End) -> Door:
        path = method.path
        handling = Handling.IGNORED if path.rpartition("/")[2] in _TELLING else Handling.KEPT

        def knock(context: Any) -> Visit:
            if not method.access.strangers:
                raise Refusal(PermissionDenied(method=path, rule="not for strangers"))
            self._count(context)
            return _Visit(self._audit, path, source_of(context), handling)

        return knock

    async def recorded(self, ticket: int) -> None:
        await self._audit.flushed(ticket)

    def _count(self, context: Any) -> None:
        now = self._clock.monotonic()
        # A network over its own limit uses up nothing of the others'.
        wait = self._networks.take_stranger(caller_network(context), now) or self._together.take(now)
        if wait:
            error = RateLimited("too many calls to pair: wait a moment", rate_class="STRANGER")
            error.retry_after = timedelta(seconds=max(wait, 0.001))
            raise Refusal(error)


class _Visit:
    """A stranger's call that was let in."""

    __slots__ = ("_audit", "_handling", "_path", "_source")

    def __init__(self, audit: Auditing, path: str, source: str, handling: Handling) -> None:
        self._audit = audit
        self._path = path
        self._source = source
        self._handling = handling

    def about(self, request: Message) -> int:
        if self._handling is Handling.IGNORED:
            return 0
        return self._audit.record(self._decision("strangers may ask", ""), self._handling)

    def another(self) -> float:
        return 0.0

    def denied(self, error: PermissionDenied) -> int:
        return self._audit.record(self._decision("not proved", error.reason), Handling.AWAITED)

    def leave(self) -> None:
        """Nothing was taken."""

    def _decision(self, rule: str, reason: str) -> Decision:
        return Decision("stranger", "", "none", self._source, self._path, not reason, reason, rule)
