"""What the adviser needs of the world outside: memory over gRPC, and the Sages that policies name."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

import grpc.aio
import structlog

from hopper.memory.v1.episode_pb2 import Episode, Feedback
from hopper.memory.v1.episodic_service_pb2 import SearchSimilarRequest, SimilarEpisode
from hopper.memory.v1.episodic_service_pb2_grpc import EpisodicMemoryServiceStub
from hopper.memory.v1.feedback_service_pb2 import SubmitFeedbackRequest
from hopper.memory.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from hopper_common.clock import Clock
from hopper_common.rpc.address import check_address
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.startup import AddressRefused
from hopper_router.advice import Precedent, request_id_of
from hopper_router.advice_store import Said
from hopper_router.model import Task
from hopper_router.replay import Verdict
from hopper_router.sage.client import SageClient, open_sage_channel
from hopper_router.sage.errors import SageUnavailable
from hopper_router.verdicts import MemoryVerdicts

SIMILAR_WITHIN: Final = timedelta(milliseconds=200)
MOST_SIMILAR: Final = 10
_MOST_TEXT_BYTES: Final = 4000
_TELL_WITHIN: Final = 5.0

_log = structlog.get_logger("hopper.router")


class MemoryClient:
    """`advice.Memory` over a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._verdicts = MemoryVerdicts(channel)
        self._episodes = EpisodicMemoryServiceStub(channel)
        self._feedback = FeedbackServiceStub(channel)

    async def similar(self, task: Task) -> Sequence[Precedent]:
        """See `advice.Memory`."""
        words = f"{task.spec.title}\n{task.spec.description}"
        text = words.encode()[:_MOST_TEXT_BYTES].decode(errors="ignore")
        request = SearchSimilarRequest(text=text, limit=MOST_SIMILAR + 1, instance=task.instance)
        try:
            response = await self._episodes.SearchSimilar(request, timeout=SIMILAR_WITHIN.total_seconds())
        except grpc.aio.AioRpcError as error:
            _log.info("asking without similar tasks", reason=from_rpc_error(error).reason)
            return ()
        matches = [match for match in response.matches if match.episode.task != task.name]
        most = max((match.score for match in matches), default=0.0)
        return [precedent(match, most) for match in matches[:MOST_SIMILAR]]

    async def verdicts(self, decisions: Sequence[str]) -> Mapping[str, Verdict]:
        """See `advice.Memory`."""
        return await self._verdicts.of(decisions)

    async def tell(self, said: Said) -> None:
        """See `advice.Memory`."""
        match = Feedback.MATCH_GOOD if said.fits else Feedback.MATCH_NONE
        request = SubmitFeedbackRequest(
            decision=said.decision,
            feedback=Feedback(match=match, author=said.author),
            request_id=request_id_of(said.decision),
        )
        try:
            await self._feedback.SubmitFeedback(request, timeout=_TELL_WITHIN)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


def precedent(match: SimilarEpisode, most: float) -> Precedent:
    """A similar episode, with where it belonged; feedback knows that better than how the task ended."""
    episode = match.episode
    project, success = episode.project, _ended_well(episode)
    if episode.feedback:
        newest = episode.feedback[0]
        match_ = newest.match
        if match_ == Feedback.MATCH_GOOD:
            success = True
        elif match_ == Feedback.MATCH_BAD and newest.better_project:
            project, success = newest.better_project, True
        elif match_ in (Feedback.MATCH_BAD, Feedback.MATCH_NONE):
            success = False
    if episode.outcome == Episode.OUTCOME_REROUTED and not episode.feedback and episode.rerouted_to:
        project, success = episode.rerouted_to, None
    similarity = max(0.0, min(1.0, match.score / most)) if most > 0 else 0.0
    return Precedent(episode.decision, episode.title, project, success, similarity)


def _ended_well(episode: Episode) -> bool | None:
    if episode.outcome == Episode.OUTCOME_SUCCEEDED:
        return True
    return False if episode.outcome == Episode.OUTCOME_FAILED else None


class OpenSages:
    """
    `advice.Sages`: a channel to each, opened when it is first asked.

    Args:
        default: Where the Sage is of policies that do not say; "": nowhere.

    Raises:
        AddressRefused: The default is no address of a Sage.
    """

    def __init__(self, clock: Clock, default: str = "") -> None:
        self._clock = clock
        self._default = check_address(default) if default else ""
        self._open: dict[str, tuple[grpc.aio.Channel, SageClient]] = {}

    def where(self, address: str) -> str:
        """See `advice.Sages`."""
        return address or self._default

    def at(self, address: str) -> SageClient:
        """See `advice.Sages`."""
        address = self.where(address)
        if not address:
            raise SageUnavailable(
                "no Sage is set up: give its address in the policy, or set HOPPER_SAGE_ADDRESS",
                method="DecideRouting",
                cause="not-set-up",
            )
        found = self._open.get(address)
        if found is None:
            try:
                channel = open_sage_channel(address)
            except AddressRefused as error:
                raise SageUnavailable(str(error), method="DecideRouting", cause="address") from None
            found = self._open[address] = channel, SageClient(channel, self._clock)
        return found[1]

    async def close(self) -> None:
        """Close the channels."""
        await asyncio.gather(*(channel.close() for channel, _ in self._open.values()))
        self._open.clear()
