"""
Sends back what was taken over and nobody here can do: after a while, because whoever could may just have been away.
"""

import asyncio
from typing import Final

import structlog

from hopper.router.v1.task_pb2 import Task, Wait
from hopper_common.errors import HopperError
from hopper_federation.delegation.claims import Claims
from hopper_federation.delegation.desks import Desks
from hopper_federation.delegation.model import Delegation, Role, State

log = structlog.get_logger(__name__)

PATIENCE: Final = 60.0
LOOK_EVERY: Final = 15.0
_WORKED_ON: Final = frozenset({State.ACCEPTED, State.RUNNING})


class Unplaced:
    """
    Runs beside the server. `look` is one round.

    Args:
        patience: How long somebody may be away, in seconds.
    """

    def __init__(self, desks: Desks, claims: Claims, *, patience: float = PATIENCE) -> None:
        self._desks = desks
        self._claims = claims
        self._patience = patience

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.look()
            except HopperError as error:
                log.info("what nobody here can do is not looked for", reason=error.reason)

    async def look(self) -> None:
        """Send back what has waited for long enough."""
        before = self._desks.steady() - self._patience
        waiting = await self._desks.read(
            lambda rows: [
                each
                for peer in rows.open_peers()
                for each in rows.open_of(peer)
                if each.role is Role.IN and each.state in _WORKED_ON and each.task and each.created < before
            ]
        )
        for each in waiting:
            await self._send_back(each)

    async def _send_back(self, waiting: Delegation) -> None:
        task = await self._claims.task(waiting.task)
        if task is None or task.state != Task.STATE_SUBMITTED:
            return
        if task.wait.reason != Wait.REASON_NO_ELIGIBLE_EXECUTOR:
            return
        log.info("nobody here can do what a peer has handed over", delegation=waiting.id)
        await self._desks.write(lambda sitting: sitting.desk.unplaced(waiting.id))
