"""What memory knows of how decisions turned out: the client of `FeedbackService.ListVerdicts`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, Protocol

import grpc.aio

from hopper.memory.v1.episode_pb2 import Episode
from hopper.memory.v1.feedback_service_pb2 import ListVerdictsRequest
from hopper.memory.v1.feedback_service_pb2 import Verdict as VerdictMessage
from hopper.memory.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from hopper_common.rpc.errors import from_rpc_error
from hopper_router.replay import Verdict

MOST: Final = 1000
"""Decisions of one request."""
_WELL: Final = {
    Episode.OUTCOME_SUCCEEDED: True,
    Episode.OUTCOME_FAILED: False,
    Episode.OUTCOME_REJECTED: False,
    Episode.OUTCOME_REROUTED: False,
}


class Verdicts(Protocol):
    """Whoever knows how decisions turned out."""

    async def of(self, decisions: Sequence[str]) -> dict[str, Verdict]:
        """
        What is known of decisions, by name; those that nothing is known of are left out.

        Raises:
            HopperError: It cannot be told now.
        """


class NoVerdicts:
    """Knows nothing."""

    async def of(self, decisions: Sequence[str]) -> dict[str, Verdict]:
        """See `Verdicts`."""
        return {}


class MemoryVerdicts:
    """Asks memory."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout: timedelta = timedelta(seconds=10)) -> None:
        self._memory = FeedbackServiceStub(channel)
        self._timeout = timeout.total_seconds()

    async def of(self, decisions: Sequence[str]) -> dict[str, Verdict]:
        """See `Verdicts`."""
        found: dict[str, Verdict] = {}
        for begin in range(0, len(decisions), MOST):
            request = ListVerdictsRequest(decisions=decisions[begin : begin + MOST])
            try:
                answer = await self._memory.ListVerdicts(request, timeout=self._timeout)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from None
            found |= {verdict.decision: verdict_from_proto(verdict) for verdict in answer.verdicts}
        return found


def verdict_from_proto(said: VerdictMessage) -> Verdict:
    """A verdict in the router's words."""
    right = said.right if said.HasField("right") else None
    return Verdict(right, said.project, said.nobody, _WELL.get(said.outcome))
