"""Memory's words and the contract's, both directions side by side."""

from dataclasses import replace
from datetime import datetime, timedelta

from hopper.memory.v1 import episode_pb2 as pb
from hopper.memory.v1 import episodic_service_pb2 as episodic_pb
from hopper.memory.v1 import feedback_service_pb2 as feedback_pb
from hopper.memory.v1 import learning_service_pb2 as learning_pb
from hopper.memory.v1 import working_service_pb2 as working_pb
from hopper_common.timestamps import duration_field, from_proto, time_field, to_proto
from hopper_memory.lessons import Lesson, Truth
from hopper_memory.model import (
    Bin,
    Candidate,
    Context,
    Episode,
    EpisodeOutcome,
    Feedback,
    Match,
    Outcome,
    Stats,
)
from hopper_memory.ports import Activity, Given, Similar, Taught
from hopper_memory.routing_stats import RoutingStats, Score, Verdict

DEFAULT_TIME_TO_LIVE = timedelta(minutes=10)

# Enums.


def outcome_from_proto(value: pb.Episode.Outcome.ValueType) -> Outcome:
    return Outcome(pb.Episode.Outcome.Name(value).removeprefix("OUTCOME_"))


def outcome_to_proto(outcome: Outcome | None) -> pb.Episode.Outcome.ValueType:
    return pb.Episode.Outcome.Value(f"OUTCOME_{outcome or 'UNSPECIFIED'}")


def match_from_proto(value: pb.Feedback.Match.ValueType) -> Match | None:
    if value == pb.Feedback.MATCH_UNSPECIFIED:
        return None
    return Match(pb.Feedback.Match.Name(value).removeprefix("MATCH_"))


def match_to_proto(match: Match | None) -> pb.Feedback.Match.ValueType:
    return pb.Feedback.Match.Value(f"MATCH_{match or 'UNSPECIFIED'}")


# Episodes.


def episode_from_proto(message: pb.Episode, *, now: datetime) -> Episode:
    """What a decision came with; output-only fields are not read. Without a time it was decided *now*."""
    return Episode(
        decision=message.decision,
        task=message.task,
        instance=message.instance,
        decide_time=time_field(message, "decide_time") or now,
        parent_decision=message.parent_decision,
        title=message.title,
        description=message.description,
        tags=tuple(message.tags),
        project=message.project,
        confidence=message.confidence,
        strategy=message.strategy,
        candidates=tuple([_candidate_from_proto(candidate) for candidate in message.candidates]),
    )


def episode_to_proto(episode: Episode) -> pb.Episode:
    message = pb.Episode(
        name=episode.name,
        decision=episode.decision,
        task=episode.task,
        instance=episode.instance,
        parent_decision=episode.parent_decision,
        title=episode.title,
        description=episode.description,
        tags=episode.tags,
        project=episode.project,
        confidence=episode.confidence,
        strategy=episode.strategy,
        decide_time=to_proto(episode.decide_time),
        candidates=map(_candidate_to_proto, episode.candidates),
        feedback=[feedback_to_proto(feedback) for feedback in episode.feedback],
    )
    if episode.outcome is not None:
        message.MergeFrom(_end_to_proto(episode.outcome))
    return message


def _candidate_from_proto(message: pb.EpisodeCandidate) -> Candidate:
    factors = tuple([(factor.name, factor.value) for factor in message.factors]) if message.factors else ()
    return Candidate(message.project, message.confidence, message.rest, factors)


def _candidate_to_proto(candidate: Candidate) -> pb.EpisodeCandidate:
    return pb.EpisodeCandidate(
        project=candidate.project,
        confidence=candidate.confidence,
        rest=candidate.rest,
        factors=[pb.EpisodeFactor(name=name, value=value) for name, value in candidate.factors],
    )


def _end_to_proto(end: EpisodeOutcome) -> pb.Episode:
    return pb.Episode(
        outcome=outcome_to_proto(end.outcome),
        finish_time=to_proto(end.finish_time),
        attempts=end.attempts,
        worker=end.worker,
        failure_reason=end.failure_reason,
        queue_duration=to_proto(end.queue_duration),
        run_duration=to_proto(end.run_duration),
        rerouted_to=end.rerouted_to,
    )


def episode_outcome_from_proto(message: pb.EpisodeOutcome) -> EpisodeOutcome:
    return EpisodeOutcome(
        decision=message.decision,
        outcome=outcome_from_proto(message.outcome),
        finish_time=from_proto(message.finish_time),
        attempts=message.attempts,
        worker=message.worker,
        failure_reason=message.failure_reason,
        queue_duration=duration_field(message, "queue_duration"),
        run_duration=duration_field(message, "run_duration"),
        rerouted_to=message.rerouted_to,
    )


def similar_to_proto(similar: Similar) -> episodic_pb.SimilarEpisode:
    return episodic_pb.SimilarEpisode(episode=episode_to_proto(similar.episode), score=similar.score)


# Feedback.


def feedback_from_proto(message: pb.Feedback) -> Feedback:
    """What somebody says; output-only fields are not read."""
    return Feedback(
        match=match_from_proto(message.match),
        better_project=message.better_project,
        actual_effort=duration_field(message, "actual_effort"),
        quality=message.quality if message.HasField("quality") else None,
        rework=message.rework,
        blockers=tuple(message.blockers),
        comment=message.comment,
        author=message.author,
    )


def recorded_feedback_from_proto(message: pb.Feedback) -> Feedback:
    """All of it, as it was once answered."""
    return replace(
        feedback_from_proto(message),
        name=message.name,
        from_decision=message.from_decision,
        create_time=time_field(message, "create_time"),
    )


def feedback_to_proto(feedback: Feedback) -> pb.Feedback:
    return pb.Feedback(
        name=feedback.name,
        match=match_to_proto(feedback.match),
        better_project=feedback.better_project,
        actual_effort=to_proto(feedback.actual_effort),
        quality=feedback.quality,
        rework=feedback.rework,
        blockers=feedback.blockers,
        comment=feedback.comment,
        author=feedback.author,
        from_decision=feedback.from_decision,
        create_time=to_proto(feedback.create_time),
    )


def given_to_proto(given: Given) -> feedback_pb.SubmitFeedbackResponse:
    return feedback_pb.SubmitFeedbackResponse(
        feedback=feedback_to_proto(given.feedback), passed_to=given.passed_to
    )


def given_from_proto(message: feedback_pb.SubmitFeedbackResponse) -> Given:
    return Given(recorded_feedback_from_proto(message.feedback), list(message.passed_to))


# The score.


def stats_to_proto(stats: Stats) -> feedback_pb.GetStatsResponse:
    return feedback_pb.GetStatsResponse(
        decisions=stats.decisions,
        with_outcome=stats.with_outcome,
        succeeded=stats.succeeded,
        judged=stats.judged,
        right=stats.right,
        accuracy=stats.accuracy,
        calibration_error=stats.calibration_error,
        bins=[_bin_to_proto(bin) for bin in stats.bins],
        regret=stats.regret,
    )


def routing_stats_to_proto(stats: RoutingStats) -> feedback_pb.GetRoutingStatsResponse:
    return feedback_pb.GetRoutingStatsResponse(
        total=stats_to_proto(stats.total),
        periods=[
            feedback_pb.RoutingPeriod(
                start_time=to_proto(period.start),
                end_time=to_proto(period.end),
                score=_score_to_proto(period.score),
            )
            for period in stats.periods
        ],
        strategies=[
            feedback_pb.RoutingStrategy(strategy=strategy, score=_score_to_proto(score))
            for strategy, score in stats.strategies
        ],
        confusions=[
            feedback_pb.RoutingConfusion(chosen=pair.chosen, right=pair.right, count=pair.count)
            for pair in stats.confusions
        ],
        confused=stats.confused,
    )


def _score_to_proto(score: Score) -> feedback_pb.RoutingScore:
    return feedback_pb.RoutingScore(
        decisions=score.decisions,
        with_outcome=score.with_outcome,
        succeeded=score.succeeded,
        judged=score.judged,
        right=score.right,
        accuracy=score.accuracy,
        mean_confidence=score.mean_confidence,
    )


def verdict_to_proto(verdict: Verdict) -> feedback_pb.Verdict:
    return feedback_pb.Verdict(
        decision=verdict.decision,
        right=verdict.right,
        project=verdict.project,
        nobody=verdict.nobody,
        outcome=outcome_to_proto(verdict.outcome),
    )


def _bin_to_proto(bin: Bin) -> feedback_pb.CalibrationBin:
    message = feedback_pb.CalibrationBin(
        to=bin.upper, count=bin.count, mean_confidence=bin.mean_confidence, accuracy=bin.accuracy
    )
    setattr(message, "from", bin.lower)  # a keyword of Python's
    return message


# Lessons.


def taught_to_proto(taught: Taught) -> learning_pb.WatchLessonsResponse:
    return learning_pb.WatchLessonsResponse(
        lessons=[lesson_to_proto(lesson) for lesson in taught.lessons], head=taught.head
    )


def lesson_to_proto(lesson: Lesson) -> learning_pb.Lesson:
    teaching = lesson.teaching
    return learning_pb.Lesson(
        position=lesson.position,
        instance=lesson.instance,
        decision=lesson.decision,
        title=lesson.title,
        description=lesson.description,
        tags=lesson.tags,
        truth=_TRUTHS[teaching.truth],
        project=teaching.project,
        source=teaching.source,
        weight=teaching.weight,
        create_time=to_proto(lesson.create_time),
        sent_to=lesson.sent_to,
        candidates=map(_candidate_to_proto, lesson.candidates),
    )


_TRUTHS = {truth: learning_pb.Lesson.Truth.Value(f"TRUTH_{truth}") for truth in Truth}


# Working memory.


def time_to_live_of(message: working_pb.Context) -> timedelta:
    return duration_field(message, "time_to_live") or DEFAULT_TIME_TO_LIVE


def context_to_proto(context: Context) -> working_pb.Context:
    message = working_pb.Context(
        key=context.key,
        time_to_live=to_proto(context.time_to_live),
        expire_time=to_proto(context.expire_time),
    )
    if context.value:  # touching it would set it
        message.value.ParseFromString(context.value)
    return message


def activity_to_proto(activity: Activity) -> working_pb.GetRecentActivityResponse:
    return working_pb.GetRecentActivityResponse(
        decisions=[_recent_to_proto(episode) for episode in activity.decisions],
        decisions_by_project=activity.by_project,
    )


def _recent_to_proto(episode: Episode) -> working_pb.RecentDecision:
    return working_pb.RecentDecision(
        decision=episode.decision,
        task=episode.task,
        project=episode.project,
        confidence=episode.confidence,
        decide_time=to_proto(episode.decide_time),
    )
