"""The RPCs of memory: check, call, convert, return. Limits of fields are checked before any of this runs."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from hopper.memory.v1 import (
    episode_pb2,
    episodic_service_pb2,
    episodic_service_pb2_grpc,
    feedback_service_pb2,
    feedback_service_pb2_grpc,
    working_service_pb2,
    working_service_pb2_grpc,
)
from hopper_common.clock import Clock
from hopper_common.pagination import PageTokens, page_size
from hopper_common.timestamps import from_micros, to_micros
from hopper_memory import convert
from hopper_memory.learning import Watchers
from hopper_memory.model import Episode, check_feedback
from hopper_memory.ports import EpisodeStore, Position, WorkingMemory

M = TypeVar("M", bound=Message)

Context = grpc.aio.ServicerContext[Any, Any]

# gRPC clients of other languages take 4 MiB unless told otherwise, and an episode with all its feedback can
# be a fifth of one.
MOST_ANSWER_BYTES = 3 * 1024 * 1024
RECENT = timedelta(hours=1)
DAYS, PERIODS, CONFUSIONS = 30, 12, 10
AHEAD = timedelta(seconds=1)  # a router's clock may be a little ahead of ours


class EpisodicMemoryServicer(episodic_service_pb2_grpc.EpisodicMemoryServiceServicer):
    """Records episodes and finds them again."""

    def __init__(self, store: EpisodeStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._tokens = PageTokens()

    async def RecordEpisodes(
        self, request: episodic_service_pb2.RecordEpisodesRequest, context: Context
    ) -> episodic_service_pb2.RecordEpisodesResponse:
        now = self._clock.now()
        recorded = await self._store.record(
            [convert.episode_from_proto(episode, now=now) for episode in request.episodes],
            [convert.episode_outcome_from_proto(outcome) for outcome in request.outcomes],
        )
        return episodic_service_pb2.RecordEpisodesResponse(
            new_episodes=recorded.new_episodes, new_outcomes=recorded.new_outcomes
        )

    async def GetEpisode(
        self, request: episodic_service_pb2.GetEpisodeRequest, context: Context
    ) -> episodic_service_pb2.GetEpisodeResponse:
        episode = await self._store.get(request.decision)
        return episodic_service_pb2.GetEpisodeResponse(episode=convert.episode_to_proto(episode))

    async def SearchSimilar(
        self, request: episodic_service_pb2.SearchSimilarRequest, context: Context
    ) -> episodic_service_pb2.SearchSimilarResponse:
        found = await self._store.search(
            request.text,
            limit=page_size(request.limit, default=10, maximum=100),
            project=request.project,
            instance=request.instance,
        )
        matches = _that_fit(convert.similar_to_proto(similar) for similar in found)
        return episodic_service_pb2.SearchSimilarResponse(matches=matches)

    async def GetProjectHistory(
        self, request: episodic_service_pb2.GetProjectHistoryRequest, context: Context
    ) -> episodic_service_pb2.GetProjectHistoryResponse:
        size = page_size(request.page_size)
        after = self._position(request.page_token, request)
        found = await self._store.history(request.project, limit=size + 1, after=after)
        page, token = self._page(found, size, request)
        return episodic_service_pb2.GetProjectHistoryResponse(episodes=page, next_page_token=token)

    async def ListMistakes(
        self, request: episodic_service_pb2.ListMistakesRequest, context: Context
    ) -> episodic_service_pb2.ListMistakesResponse:
        size = page_size(request.page_size)
        after = self._position(request.page_token, request)
        found = await self._store.mistakes(request.instance, limit=size + 1, after=after)
        page, token = self._page(found, size, request)
        return episodic_service_pb2.ListMistakesResponse(episodes=page, next_page_token=token)

    def _position(self, token: str, request: Message) -> Position | None:
        cursor = self._tokens.decode(token, request)
        return Position(from_micros(cursor["time"]), cursor["decision"]) if cursor else None

    def _page(
        self, found: Sequence[Episode], size: int, request: Message
    ) -> tuple[list[episode_pb2.Episode], str]:
        """The first *size* that fit, and the token of the rest; *found* has one more if there is a rest."""
        page = _that_fit(convert.episode_to_proto(episode) for episode in found[:size])
        if len(page) == len(found):
            return page, ""
        last = found[len(page) - 1]
        cursor = {"time": to_micros(last.decide_time), "decision": last.decision}
        return page, self._tokens.encode(cursor, request)


class FeedbackServicer(feedback_service_pb2_grpc.FeedbackServiceServicer):
    """Takes feedback, and keeps the score."""

    def __init__(self, store: EpisodeStore, clock: Clock, watchers: Watchers) -> None:
        self._store = store
        self._clock = clock
        self._watchers = watchers

    async def SubmitFeedback(
        self, request: feedback_service_pb2.SubmitFeedbackRequest, context: Context
    ) -> feedback_service_pb2.SubmitFeedbackResponse:
        feedback = convert.feedback_from_proto(request.feedback)
        check_feedback(feedback)
        given = await self._store.add_feedback(
            request.decision, feedback, request_id=request.request_id, now=self._clock.now()
        )
        if given.lesson:
            await self._watchers.learned(given.lesson)
        return convert.given_to_proto(given)

    async def GetStats(
        self, request: feedback_service_pb2.GetStatsRequest, context: Context
    ) -> feedback_service_pb2.GetStatsResponse:
        stats = await self._store.stats(project=request.project, instance=request.instance)
        return convert.stats_to_proto(stats)

    async def GetRoutingStats(
        self, request: feedback_service_pb2.GetRoutingStatsRequest, context: Context
    ) -> feedback_service_pb2.GetRoutingStatsResponse:
        now = self._clock.now()
        stats = await self._store.routing_stats(
            request.instance,
            since=now - timedelta(days=request.days or DAYS),
            until=now + AHEAD,
            periods=request.periods or PERIODS,
            confusions=request.confusions or CONFUSIONS,
        )
        return convert.routing_stats_to_proto(stats)

    async def ListVerdicts(
        self, request: feedback_service_pb2.ListVerdictsRequest, context: Context
    ) -> feedback_service_pb2.ListVerdictsResponse:
        found = await self._store.verdicts(request.decisions)
        return feedback_service_pb2.ListVerdictsResponse(verdicts=map(convert.verdict_to_proto, found))


class WorkingMemoryServicer(working_service_pb2_grpc.WorkingMemoryServiceServicer):
    """Keeps small contexts, and says what was decided lately."""

    def __init__(self, working: WorkingMemory, store: EpisodeStore, clock: Clock) -> None:
        self._working = working
        self._store = store
        self._clock = clock

    async def GetContext(
        self, request: working_service_pb2.GetContextRequest, context: Context
    ) -> working_service_pb2.GetContextResponse:
        found = await self._working.get(request.key)
        return working_service_pb2.GetContextResponse(context=convert.context_to_proto(found))

    async def PutContext(
        self, request: working_service_pb2.PutContextRequest, context: Context
    ) -> working_service_pb2.PutContextResponse:
        sent = request.context
        stored = await self._working.put(
            sent.key, sent.value.SerializeToString(deterministic=True), convert.time_to_live_of(sent)
        )
        return working_service_pb2.PutContextResponse(context=convert.context_to_proto(stored))

    async def GetRecentActivity(
        self, request: working_service_pb2.GetRecentActivityRequest, context: Context
    ) -> working_service_pb2.GetRecentActivityResponse:
        activity = await self._store.recent(
            request.instance,
            since=self._clock.now() - RECENT,
            limit=page_size(request.limit, default=20, maximum=100),
        )
        return convert.activity_to_proto(activity)


def _that_fit(messages: Iterable[M]) -> list[M]:
    """The first messages, as many as one answer holds, but one at least."""
    fit: list[M] = []
    room = MOST_ANSWER_BYTES
    for message in messages:
        room -= message.ByteSize()
        if room < 0 and fit:
            break
        fit.append(message)
    return fit
