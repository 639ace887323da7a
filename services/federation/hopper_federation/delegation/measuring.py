"""What Prometheus is told of what crosses: numbers alone, and few labels however much there is."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import structlog
from sqlalchemy import func, select

from hopper_common.errors import Overloaded, StorageFull, StorageUnavailable
from hopper_common.metrics import Measure
from hopper_federation.delegation.model import OPEN, Role
from hopper_federation.delegation.tables import DELEGATIONS, ERRANDS, OUTBOX
from hopper_federation.store_sql import Federation, SqlStore

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 5.0
_PUT_OFF: Final = (StorageFull, StorageUnavailable, Overloaded)


@dataclass(frozen=True, slots=True)
class _Counted:
    """Open hand-overs by role and state, messages that are not answered, errands that are not done."""

    open: dict[tuple[str, str], int] = field(default_factory=dict)
    outbox: int = 0
    errands: int = 0


class CrossingMeasures:
    """Counts every few seconds, beside the server; a scrape is told what was counted last."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._counted = _Counted()
        self._delivered = 0

    def delivered(self) -> None:
        """A peer has answered messages."""
        self._delivered += 1

    async def run(self) -> None:
        """Count for ever."""
        while True:
            try:
                self._counted = await self._federation.read(_count)
            except _PUT_OFF as error:
                log.info("what crosses is not counted", reason=error.reason)
            await asyncio.sleep(LOOK_EVERY)

    def __call__(self) -> Iterator[Measure]:
        """All of it."""
        counted = self._counted
        hand_overs = [
            ({"role": role.value, "state": state.value}, float(counted.open.get((role, state), 0)))
            for role in Role
            for state in sorted(OPEN)
        ]
        yield Measure("hopper_hand_overs", "gauge", "Open hand-overs to and from peers.", hand_overs)
        yield Measure(
            "hopper_outbox", "gauge", "Messages that peers have not answered.", [({}, counted.outbox)]
        )
        yield Measure(
            "hopper_errands", "gauge", "What is still to be done at the router.", [({}, counted.errands)]
        )
        yield Measure(
            "hopper_deliveries", "counter", "Calls that brought messages to peers.", [({}, self._delivered)]
        )


def _count(store: SqlStore) -> _Counted:
    by_state = (
        select(DELEGATIONS.c.role, DELEGATIONS.c.state, func.count())
        .where(DELEGATIONS.c.open)
        .group_by(DELEGATIONS.c.role, DELEGATIONS.c.state)
    )
    return _Counted(
        open={(role, state): count for role, state, count in store.conn.execute(by_state)},
        outbox=store.conn.scalar(select(func.count()).select_from(OUTBOX)) or 0,
        errands=store.conn.scalar(select(func.count()).select_from(ERRANDS)) or 0,
    )
