"""
Episodes in SQL: a `ports.EpisodeStore` over the tables of `tables`.

One request is one transaction and a handful of statements, however many episodes it brings. Recording goes
the same way for every order of arrival: decisions are inserted where they are new; outcomes are put where
outcomes wait; then all that wait for a decision which is there are joined to it, and wait no longer. The
rules of `model.prevails` are conditions of these statements, so that a second writer could not come between
looking and doing.

What is recorded teaches something, or not (`lessons`); that is written down in the same transaction.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.sqlite import insert as upsert

from hopper.memory.v1.feedback_service_pb2 import SubmitFeedbackRequest, SubmitFeedbackResponse
from hopper_common.clock import Clock
from hopper_common.database import Database
from hopper_common.idempotency import Requests
from hopper_common.ids import new_id
from hopper_common.timestamps import from_micros, to_micros
from hopper_memory import convert, full_text, score_sql
from hopper_memory.errors import EpisodeNotFound
from hopper_memory.lessons import Teaching, taught_by_feedback, taught_by_outcome
from hopper_memory.model import (
    MOST_FEEDBACK,
    MOST_LEVELS,
    Candidate,
    Episode,
    EpisodeOutcome,
    Feedback,
    Match,
    Outcome,
    Stats,
    candidates_of,
    feedback_name,
    first_of_each,
    passed_up,
    prevailing,
    verdict,
)
from hopper_memory.ports import Activity, Given, Position, Recorded, Similar
from hopper_memory.routing_stats import RoutingStats, Verdict
from hopper_memory.store_lessons import teach
from hopper_memory.tables import EPISODES, PENDING_OUTCOMES, REQUESTS, TASK_FEEDBACK, WENT_WRONG

_E = EPISODES.c
_P = PENDING_OUTCOMES.c
_F = TASK_FEEDBACK.c

_MICROSECOND = timedelta(microseconds=1)
_OUTCOME_FIELDS = [column.name for column in PENDING_OUTCOMES.columns if column.name != "decision"]


class SqlEpisodeStore:
    """
    The episodes of one database.

    Args:
        database: With the tables of `tables.METADATA`.
        clock: For the age of answered requests.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._requests = Requests(REQUESTS, clock)

    async def record(self, episodes: Sequence[Episode], outcomes: Sequence[EpisodeOutcome]) -> Recorded:
        episode_rows = [_episode_row(episode) for episode in first_of_each(episodes)]
        outcome_rows = [_outcome_row(outcome) for outcome in prevailing(outcomes)]
        if not episode_rows and not outcome_rows:
            return Recorded(0, 0)
        now = self._clock.now()
        return await self._database.write(lambda conn: _record(conn, episode_rows, outcome_rows, now))

    async def get(self, decision: str) -> Episode:
        found = await self._database.read(lambda conn: _episodes(conn, _ALL.where(_E.decision == decision)))
        if not found:
            raise _not_found(decision)
        return found[0]

    async def search(self, text: str, *, limit: int, project: str = "", instance: str = "") -> list[Similar]:
        def work(conn: Connection) -> list[Similar]:
            scores = full_text.similar(conn, text, limit=limit, project=project, instance=instance)
            rows = {row.id: row for row in conn.execute(_ALL.where(_E.id.in_(list(scores))))}
            episodes = _with_feedback(conn, [rows[row] for row in scores])
            return [Similar(*pair) for pair in zip(episodes, scores.values(), strict=True)]

        return await self._database.read(work)

    async def history(self, project: str, *, limit: int, after: Position | None) -> list[Episode]:
        query = _page(_ALL.where(_E.project == project), limit, after)
        return await self._database.read(lambda conn: _episodes(conn, query))

    async def mistakes(self, instance: str, *, limit: int, after: Position | None) -> list[Episode]:
        query = _page(_of(_ALL.where(WENT_WRONG), instance=instance), limit, after)
        return await self._database.read(lambda conn: _episodes(conn, query))

    async def recent(self, instance: str, *, since: datetime, limit: int) -> Activity:
        lately = _E.decide_time > to_micros(since)
        newest = _page(_of(_ALL.where(lately), instance=instance), limit, None)
        sent = select(_E.project, func.count().label("decisions")).where(lately, _E.project != "")
        # Not by the bare column: SQLite would walk the project index, all of it, to save sorting an hour.
        counts = _of(sent, instance=instance).group_by(_E.project.concat(""))

        def work(conn: Connection) -> Activity:
            return Activity(
                decisions=[_episode(row, ()) for row in conn.execute(newest)],
                by_project={row.project: row.decisions for row in conn.execute(counts)},
            )

        return await self._database.read(work)

    async def add_feedback(
        self, decision: str, feedback: Feedback, *, request_id: str, now: datetime
    ) -> Given:
        # What was answered is kept as the contract's message: that is what the same request gets again.
        request = SubmitFeedbackRequest(
            decision=decision, feedback=convert.feedback_to_proto(feedback), request_id=request_id
        )

        def work(conn: Connection) -> tuple[SubmitFeedbackResponse, int]:
            lesson = 0

            def effect() -> SubmitFeedbackResponse:
                nonlocal lesson
                given = _add_feedback(conn, decision, feedback, now)
                lesson = given.lesson
                return convert.given_to_proto(given)

            return self._requests.once(
                conn, "SubmitFeedback", request, SubmitFeedbackResponse, effect
            ), lesson

        answer, lesson = await self._database.write(work)
        return convert.given_from_proto(answer)._replace(lesson=lesson)

    async def stats(self, *, project: str, instance: str) -> Stats:
        query = _of(score_sql.SCORE, project=project, instance=instance)
        return await self._database.read(lambda conn: score_sql.stats(conn.execute(query).all()))

    async def routing_stats(
        self, instance: str, *, since: datetime, until: datetime, periods: int, confusions: int
    ) -> RoutingStats:
        return await self._database.read(
            lambda conn: score_sql.routing_stats(
                conn, instance, since, until, periods=periods, confusions=confusions
            )
        )

    async def verdicts(self, decisions: Sequence[str]) -> list[Verdict]:
        return await self._database.read(lambda conn: score_sql.verdicts(conn, decisions))


def _not_found(decision: str) -> EpisodeNotFound:
    return EpisodeNotFound(f"memory has no episode of {decision}, or not yet", decision=decision)


# Recording.

_NEW_EPISODES = upsert(EPISODES).on_conflict_do_nothing().returning(_E.decision)

_insert_pending = upsert(PENDING_OUTCOMES)
_WAIT = _insert_pending.on_conflict_do_update(
    index_elements=[_P.decision],
    set_={field: _insert_pending.excluded[field] for field in _OUTCOME_FIELDS},
    where=and_(
        _P.outcome == Outcome.REROUTED.value, _insert_pending.excluded.outcome != Outcome.REROUTED.value
    ),
).returning(_P.decision)

# A list as one parameter, which costs the same however long it is.
_touched = select(func.json_each(bindparam("touched", type_=JSON)).table_valued("value").c.value)
_WAITS = select(exists(select(_P.decision)))
_JOIN = (
    update(EPISODES)
    .where(
        _E.decision == _P.decision,
        _E.decision.in_(_touched),
        or_(
            _E.outcome.is_(None),
            and_(_E.outcome == Outcome.REROUTED.value, _P.outcome != Outcome.REROUTED.value),
        ),
    )
    .values({field: _P[field] for field in _OUTCOME_FIELDS})
    .returning(
        *(_E.finish_time, _E.decision, _E.project, _E.strategy, _E.verdict),
        *(_E.outcome, _E.worker, _E.failure_reason, _E.rerouted_to),
    )
)
_KNOWN = select(_E.decision).where(_E.decision.in_(_touched))
_WAIT_NO_LONGER = delete(PENDING_OUTCOMES).where(_P.decision.in_(_touched))


def _record(
    conn: Connection,
    episodes: Sequence[Mapping[str, Any]],
    outcomes: Sequence[Mapping[str, Any]],
    now: datetime,
) -> Recorded:
    new = set(conn.scalars(_NEW_EPISODES, episodes)) if episodes else set()
    waiting = set(conn.scalars(_WAIT, outcomes)) if outcomes else set()
    if not conn.scalar(_WAITS):
        return Recorded(len(new), 0)
    touched = list(new | {outcome["decision"] for outcome in outcomes})
    # The database joins in no order: what came together is learned in the order in which it happened.
    ended = sorted(conn.execute(_JOIN, {"touched": touched}), key=itemgetter(0, 1))
    joined = {decision for _, decision, *_ in ended}
    teach(conn, map(_taught, ended), now)
    known = list(conn.scalars(_KNOWN, {"touched": touched}))
    conn.execute(_WAIT_NO_LONGER, {"touched": known})
    # One that was put to wait is new unless its decision is here and had a better one.
    return Recorded(len(new), len(waiting & joined | waiting - set(known)))


def _taught(row: Row[Any]) -> tuple[str, Teaching | None]:
    """What a row that was joined teaches, and the decision."""
    _, decision, project, strategy, verdict, outcome, worker, reason, rerouted_to = tuple(row)
    taught = taught_by_outcome(
        Outcome(outcome),
        worker=worker,
        failure_reason=reason,
        rerouted_to=rerouted_to,
        project=project,
        strategy=strategy,
        judged=verdict is not None,
    )
    return decision, taught


def _episode_row(episode: Episode) -> dict[str, Any]:
    return {
        "decision": episode.decision,
        "task": episode.task,
        "instance": episode.instance,
        "parent_decision": episode.parent_decision,
        "title": episode.title,
        "description": episode.description,
        "tags": " ".join(episode.tags),
        "project": episode.project,
        "confidence": episode.confidence,
        "strategy": episode.strategy,
        "decide_time": to_micros(episode.decide_time),
        "candidates": [each if each.factors else each[:2] for each in episode.candidates],
    }


def _outcome_row(outcome: EpisodeOutcome) -> dict[str, Any]:
    return {
        "decision": outcome.decision,
        "outcome": outcome.outcome.value,
        "finish_time": to_micros(outcome.finish_time),
        "attempts": outcome.attempts,
        "worker": outcome.worker,
        "failure_reason": outcome.failure_reason,
        "queue_duration": _micros(outcome.queue_duration),
        "run_duration": _micros(outcome.run_duration),
        "rerouted_to": outcome.rerouted_to,
    }


def _micros(length: timedelta | None) -> int | None:
    return None if length is None else length // _MICROSECOND


def _length(micros: int | None) -> timedelta | None:
    return None if micros is None else micros * _MICROSECOND


# Reading.

_ALL = select(EPISODES)


def _of(query: Select[Any], *, project: str = "", instance: str = "") -> Select[Any]:
    if project:
        query = query.where(_E.project == project)
    return query.where(_E.instance == instance) if instance else query


def _page(query: Select[Any], limit: int, after: Position | None) -> Select[Any]:
    """Newest first. Decisions of the same moment are told apart by name, so that none is skipped."""
    if after is not None:
        query = query.where(
            tuple_(_E.decide_time, _E.decision) < tuple_(to_micros(after.decide_time), after.decision)
        )
    return query.order_by(_E.decide_time.desc(), _E.decision.desc()).limit(limit)


def _episodes(conn: Connection, query: Select[Any]) -> list[Episode]:
    return _with_feedback(conn, conn.execute(query).all())


def _with_feedback(conn: Connection, rows: Sequence[Row[Any]]) -> list[Episode]:
    feedback = _newest_feedback(conn, [row.decision for row in rows])
    return [_episode(row, feedback.get(row.decision, ())) for row in rows]


_numbered = (
    select(
        TASK_FEEDBACK,
        func.row_number().over(partition_by=_F.decision, order_by=_F.id.desc()).label("newness"),
    )
    .where(_F.decision.in_(bindparam("decisions", expanding=True)))
    .subquery()
)
_NEWEST_FEEDBACK = (
    select(_numbered).where(_numbered.c.newness <= MOST_FEEDBACK).order_by(_numbered.c.id.desc())
)


def _newest_feedback(conn: Connection, decisions: Sequence[str]) -> Mapping[str, Sequence[Feedback]]:
    found: dict[str, list[Feedback]] = {}
    for row in conn.execute(_NEWEST_FEEDBACK, {"decisions": decisions}):
        found.setdefault(row.decision, []).append(_feedback(row))
    return found


def _episode(row: Row[Any], feedback: Iterable[Feedback]) -> Episode:
    return Episode(
        decision=row.decision,
        task=row.task,
        instance=row.instance,
        decide_time=from_micros(row.decide_time),
        parent_decision=row.parent_decision,
        title=row.title,
        description=row.description,
        tags=tuple(row.tags.split()),
        project=row.project,
        confidence=row.confidence,
        strategy=row.strategy,
        candidates=_candidates(row),
        outcome=_outcome(row) if row.outcome is not None else None,
        feedback=tuple(feedback),
    )


def _candidates(row: Row[Any]) -> tuple[Candidate, ...]:
    return candidates_of(row.candidates)


def _outcome(row: Row[Any]) -> EpisodeOutcome:
    return EpisodeOutcome(
        decision=row.decision,
        outcome=Outcome(row.outcome),
        finish_time=from_micros(row.finish_time),
        attempts=row.attempts,
        worker=row.worker,
        failure_reason=row.failure_reason,
        queue_duration=_length(row.queue_duration),
        run_duration=_length(row.run_duration),
        rerouted_to=row.rerouted_to,
    )


def _feedback(row: Row[Any]) -> Feedback:
    return Feedback(
        match=Match(row.match) if row.match is not None else None,
        better_project=row.better_project,
        actual_effort=_length(row.actual_effort),
        quality=row.quality,
        rework=row.rework,
        blockers=tuple(row.blockers),
        comment=row.comment,
        author=row.author,
        name=feedback_name(row.decision, row.feedback),
        from_decision=row.from_decision,
        create_time=from_micros(row.create_time),
    )


# Feedback.

_known = (_E.decision, _E.parent_decision, _E.project, _E.strategy, _E.candidates)
_level = select(*_known, literal(0).label("level"))
_lowest = _level.where(_E.decision == bindparam("given_on")).cte("chain", recursive=True)
_chain = _lowest.union_all(
    select(*_known, _lowest.c.level + 1).where(
        _E.decision == _lowest.c.parent_decision, _lowest.c.level < MOST_LEVELS
    )
)
_CHAIN = select(_chain).order_by(_chain.c.level)

_ADD_FEEDBACK = insert(TASK_FEEDBACK)
_JUDGE = update(EPISODES).where(_E.decision == bindparam("judged")).values(verdict=bindparam("right"))


def _add_feedback(conn: Connection, decision: str, feedback: Feedback, now: datetime) -> Given:
    chain = _levels(conn, decision)
    if not chain:
        raise _not_found(decision)
    said = {
        level.decision: passed_up(
            feedback, given_on=decision, project=level.project, candidates=_candidates(level)
        )
        for level in chain[1:]
    }
    rows = [_feedback_row(on, what, now) for on, what in [(decision, feedback), *said.items()]]
    conn.execute(_ADD_FEEDBACK, rows)
    all_said = {decision: feedback} | said
    _judge(conn, chain, all_said)
    taught = (
        (at.decision, taught_by_feedback(all_said[at.decision], project=at.project, strategy=at.strategy))
        for at in chain
    )
    name = feedback_name(decision, rows[0]["feedback"])
    return Given(replace(feedback, name=name, create_time=now), list(said), teach(conn, taught, now))


def _levels(conn: Connection, decision: str) -> list[Row[Any]]:
    """The episode of a decision and those above it, nearest first, each once however they are tied."""
    first: dict[str, Row[Any]] = {}
    for row in conn.execute(_CHAIN, {"given_on": decision}):
        first.setdefault(row.decision, row)
    return list(first.values())


def _judge(conn: Connection, chain: Iterable[Row[Any]], said: Mapping[str, Feedback]) -> None:
    """Let the newest feedback decide whether each decision was right, where it says so."""
    verdicts = [
        {"judged": level.decision, "right": right}
        for level in chain
        if (right := verdict(said[level.decision].match, project=level.project)) is not None
    ]
    if verdicts:
        conn.execute(_JUDGE, verdicts)


def _feedback_row(decision: str, feedback: Feedback, now: datetime) -> dict[str, Any]:
    return {
        "feedback": new_id(now),
        "decision": decision,
        "match": feedback.match.value if feedback.match else None,
        "better_project": feedback.better_project,
        "actual_effort": _micros(feedback.actual_effort),
        "quality": feedback.quality,
        "rework": feedback.rework,
        "blockers": list(feedback.blockers),
        "comment": feedback.comment,
        "author": feedback.author,
        "from_decision": feedback.from_decision,
        "create_time": to_micros(now),
    }
