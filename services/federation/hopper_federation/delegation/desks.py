"""
Transactions at the desk: each has a `Desk`, the rows under it and the service's store, all of which are gone with it.
What has to be told afterwards is told once it is durable.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from google.protobuf.message import Message

from hopper_common.database import Signal
from hopper_common.errors import HopperError
from hopper_federation.delegation.border import Border
from hopper_federation.delegation.desk import Desk, Raised
from hopper_federation.delegation.model import Delegation
from hopper_federation.delegation.steady import SteadyClock
from hopper_federation.delegation.store_sql import Outgoing, SqlDelegations
from hopper_federation.store_sql import Federation, SqlStore
from hopper_federation.trust_admin import TrustAdmin

log = structlog.get_logger(__name__)

T = TypeVar("T")
M = TypeVar("M", bound=Message)

Told = Callable[[str, Sequence[Outgoing] | None], None]


@dataclass(frozen=True, slots=True)
class Sitting:
    """
    One transaction.

    Attributes:
        now: Seconds of the steady clock.
        store: The rest of the service's tables.
    """

    desk: Desk
    rows: SqlDelegations
    border: Border
    store: SqlStore
    now: float


class Desks:
    """
    Made once.

    Args:
        own_install: This Hopper's install id.

    Attributes:
        steady: The clock of everything that is written down here.
        sending: Gives the ids of messages that are under way.
        asked: Fires when something is to be done at the router.
        under_way: What was begun and goes on to its end.
    """

    def __init__(
        self, federation: Federation, trust: TrustAdmin, steady: SteadyClock, own_install: str
    ) -> None:
        self.steady = steady
        self.own_install = own_install
        self.sending: Callable[[], Collection[str]] = frozenset
        self.asked = Signal()
        self._federation = federation
        self._trust = trust
        self.under_way: set[asyncio.Future[Any]] = set()
        self._on_told: list[Told] = []
        self._on_alarm: list[Callable[[Raised], None]] = []
        self._on_saved: list[Callable[[Delegation], None]] = []

    def on_told(self, callback: Told) -> None:
        """
        Call back for each peer for whom there are new messages: with its install id and those messages, in the order
        in which they were committed; None: with what there is in the outbox.
        """
        self._on_told.append(callback)

    def on_alarm(self, callback: Callable[[Raised], None]) -> None:
        """Call back with whatever a person should hear of."""
        self._on_alarm.append(callback)

    def on_saved(self, callback: Callable[[Delegation], None]) -> None:
        """Call back with each hand-over that a transaction of this process has changed, as it is now."""
        self._on_saved.append(callback)

    async def write(self, work: Callable[[Sitting], T]) -> T:
        """
        Run *work* in one transaction; return its result once that is durable.

        It may be run again: what it does outside of the sitting must not matter. It is told of though whoever wanted it
        has gone away.
        """
        return await self.to_the_end(self._write(work))

    async def _write(self, work: Callable[[Sitting], T]) -> T:
        def sit(store: SqlStore) -> tuple[T, Sitting]:
            sitting = self._sitting(store)
            with sitting.rows.gathering():
                return work(sitting), sitting

        result, sitting = await self._federation.write(sit)
        self._tell(sitting)
        return result

    async def answer(self, request: Message, response: type[M], effect: Callable[[Sitting], M]) -> M:
        """
        Answer a mutation in one transaction, or give the first answer again; see `Federation.answer`.

        Raises:
            IdempotencyConflict: The request's id was used for another request.
        """
        return await self.to_the_end(self._answer(request, response, effect))

    async def _answer(self, request: Message, response: type[M], effect: Callable[[Sitting], M]) -> M:
        sittings: list[Sitting] = []

        def sit(store: SqlStore) -> M:
            sittings[:] = [self._sitting(store)]
            with sittings[0].rows.gathering():
                return effect(sittings[0])

        answered = await self._federation.answer(request, response, sit)
        for sitting in sittings:
            self._tell(sitting)
        return answered

    async def to_the_end(self, writing: Coroutine[Any, Any, T]) -> T:
        """What was begun goes on though nobody waits for it any more."""
        task = asyncio.ensure_future(writing)
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_unheard)
            raise

    async def read(self, work: Callable[[SqlDelegations], T]) -> T:
        """Run *work* on one snapshot."""
        return await self._federation.read(lambda store: work(SqlDelegations(store.conn)))

    def _sitting(self, store: SqlStore) -> Sitting:
        now = self.steady()
        rows = SqlDelegations(store.conn, self.sending())
        border = Border(self._trust, store, rows, now)
        return Sitting(Desk(rows, now, border, self.own_install), rows, border, store, now)

    def raise_alarm(self, alarm: Raised) -> None:
        """Tell what was found outside of a transaction."""
        for raise_ in self._on_alarm:
            raise_(alarm)

    def _tell(self, sitting: Sitting) -> None:
        for peer, messages in sitting.rows.told.items():
            for tell in self._on_told:
                tell(peer, messages)
        for alarm in sitting.desk.alarms:
            self.raise_alarm(alarm)
        if sitting.rows.asked:
            self.asked.fire()
        for saved in sitting.rows.saved.values() if self._on_saved else ():
            for callback in self._on_saved:
                callback(saved)


def _unheard(done: asyncio.Future[Any]) -> None:
    """Whoever wanted to know has gone: a refusal is nobody's news, a defect is."""
    error = None if done.cancelled() else done.exception()
    if error is not None and not isinstance(error, HopperError):
        log.error("what was to be written failed, and its caller had gone", exc_info=error)
