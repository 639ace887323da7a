"""
The sums of `routing_stats`, made by the database: one statement for each way of parting the decisions.

What a wrong decision should have been is said by the newest feedback on it that judges: a better project, or nobody.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    case,
    cast,
    func,
    select,
)

from hopper_common.timestamps import from_micros, to_micros
from hopper_memory.model import BINS, Bin, Match, Outcome, Stats
from hopper_memory.routing_stats import Confusion, Period, RoutingStats, Score, Verdict
from hopper_memory.tables import EPISODES, TASK_FEEDBACK

_E = EPISODES.c
_F = TASK_FEEDBACK.c

# CAST cuts off as `model.bin_of` does; those that nobody judged have no bin.
BIN = case(
    (_E.verdict.is_not(None), func.min(cast(_E.confidence * BINS, Integer), BINS - 1)), else_=None
).label("bin")
SCORE = select(
    BIN,
    func.count().label("decisions"),
    func.count(_E.outcome).label("with_outcome"),
    func.count(case((_E.outcome == Outcome.SUCCEEDED.value, 1))).label("succeeded"),
    func.count(case((_E.verdict.is_(True), 1))).label("right"),
    func.sum(_E.confidence).label("confidence"),
    func.sum(case((_E.verdict.is_(False), _E.confidence), else_=0.0)).label("misplaced"),
).group_by(BIN)


def stats(rows: Sequence[Row[Any]]) -> Stats:
    """What the rows of `SCORE` add up to."""
    judged = {
        row.bin: Bin(row.bin, row.decisions, row.right, row.confidence, row.misplaced)
        for row in rows
        if row.bin is not None
    }
    return Stats(
        decisions=sum(row.decisions for row in rows),
        with_outcome=sum(row.with_outcome for row in rows),
        succeeded=sum(row.succeeded for row in rows),
        bins=tuple(judged.get(index, Bin(index)) for index in range(BINS)),
    )


# By time, by strategy, by mistake.

_SUMS = (
    func.count().label("decisions"),
    func.count(_E.outcome).label("with_outcome"),
    func.count(case((_E.outcome == Outcome.SUCCEEDED.value, 1))).label("succeeded"),
    func.count(_E.verdict).label("judged"),
    func.count(case((_E.verdict.is_(True), 1))).label("right"),
    func.sum(case((_E.verdict.is_not(None), _E.confidence), else_=0.0)).label("confidence"),
)


def routing_stats(
    conn: Connection, instance: str, since: datetime, until: datetime, *, periods: int, confusions: int
) -> RoutingStats:
    """The decisions of an instance (empty: of any) from *since* until before *until*."""
    these = and_(
        _E.decide_time >= to_micros(since),
        _E.decide_time < to_micros(until),
        *([_E.instance == instance] if instance else []),
    )
    total = stats(conn.execute(SCORE.where(these)).all())
    first = conn.scalar(select(func.min(_E.decide_time)).where(these))
    if first is None:
        return RoutingStats(total)
    found = conn.execute(_CONFUSED.where(these)).all()
    return RoutingStats(
        total,
        _periods(conn, these, first, to_micros(until), periods),
        _strategies(conn, these),
        [Confusion(row.chosen, row.belonged, row.times) for row in found[:confusions]],
        sum(row.times for row in found),
    )


def _periods(conn: Connection, these: ColumnElement[bool], first: int, end: int, count: int) -> list[Period]:
    length = max(-((first - end) // count), 1)  # rounded up
    number = cast((_E.decide_time - first) / length, Integer).label("number")
    rows = {row.number: row for row in conn.execute(select(number, *_SUMS).where(these).group_by(number))}
    starts = range(first, end, length)
    return [
        Period(
            from_micros(start),
            from_micros(min(start + length, end)),
            _score(rows[n]) if n in rows else Score(),
        )
        for n, start in enumerate(starts)
    ]


def _strategies(conn: Connection, these: ColumnElement[bool]) -> list[tuple[str, Score]]:
    query = select(_E.strategy, *_SUMS).where(these).group_by(_E.strategy)
    found = [(row.strategy, _score(row)) for row in conn.execute(query)]
    return sorted(found, key=lambda item: (-item[1].decisions, item[0]))


def _score(row: Row[Any]) -> Score:
    return Score(row.decisions, row.with_outcome, row.succeeded, row.judged, row.right, row.confidence)


_any = TASK_FEEDBACK.alias("any_feedback").c
# The newest feedback on an episode that judges it.
_JUDGED_LAST = (
    select(func.max(_any.id))
    .where(_any.decision == _E.decision, _any.match.is_not(None))
    .correlate(EPISODES)
    .scalar_subquery()
)


_BELONGED = case((_F.match == Match.NONE.value, ""), else_=_F.better_project).label("belonged")
_CONFUSED: Select[Any] = (
    select(_E.project.label("chosen"), _BELONGED, func.count().label("times"))
    .join_from(EPISODES, TASK_FEEDBACK, _F.id == _JUDGED_LAST)
    .where(
        _E.verdict.is_(False),
        (_F.match == Match.NONE.value) | (_F.better_project.not_in(["", _E.project])),
    )
    .group_by(_E.project, _BELONGED)
    .order_by(func.count().desc(), _E.project, _BELONGED)
)


# One by one.

_asked = select(func.json_each(bindparam("decisions", type_=JSON)).table_valued("value").c.value)
_VERDICTS: Select[Any] = (
    select(_E.decision, _E.project, _E.outcome, _E.verdict, _F.match, _F.better_project)
    .join_from(EPISODES, TASK_FEEDBACK, _F.id == _JUDGED_LAST, isouter=True)
    .where(_E.decision.in_(_asked))
)


def verdicts(conn: Connection, decisions: Sequence[str]) -> list[Verdict]:
    """What is known of these decisions; those that are not recorded are left out."""
    return [_verdict(row) for row in conn.execute(_VERDICTS, {"decisions": list(decisions)})]


def _verdict(row: Row[Any]) -> Verdict:
    nobody = row.match == Match.NONE.value
    # That it was wrong, and should have gone where it went, says nothing of where.
    better = row.better_project if row.better_project != row.project else ""
    return Verdict(
        row.decision,
        right=row.verdict,
        project="" if nobody else better or (row.project if row.verdict else ""),
        nobody=nobody,
        outcome=Outcome(row.outcome) if row.outcome is not None else None,
    )
