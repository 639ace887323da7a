"""
The hot path's statements for PostgreSQL: each is one statement, one commit, one round trip.

Every statement that writes events first takes the lock that orders them (see `hopper_common.postgres`): the first CTE
takes it, and the generations come from what reads that. The statement's snapshot may be older than the lock; what it
may have missed is looked at again by `FOR UPDATE SKIP LOCKED`, by the conditions of UPDATE, and by ON CONFLICT.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import BigInteger, Boolean, Integer, LargeBinary

from hopper_common.timestamps import to_micros
from hopper_router import tables
from hopper_router.hot import (
    AFFINITY_GRACE,
    CLAIMED,
    CLAIMED_ROW,
    COMPLETED_ROW,
    RENEWED_ROW,
    Admission,
    End,
    Keep,
    Left,
    Repeat,
    Row,
    Want,
    by_queue,
)
from hopper_router.replicas import news_of_admitted
from hopper_router.rows import NEW, SHORT_ID, length, new_row

if TYPE_CHECKING:
    from hopper_common.postgres import PostgresDatabase

_TYPES: Final = ((Boolean, "bool"), (BigInteger, "bigint"), (Integer, "int"), (LargeBinary, "bytea"))


def _type(column: Any) -> str:
    return next((name for kind, name in _TYPES if isinstance(column.type, kind)), "text")


_ARRAYS: Final = ", ".join(f"${n}::{_type(tables.tasks.c[name])}[]" for n, name in enumerate(NEW, start=9))
# What new tasks have in common, by column.
_SAME: Final = {
    "short_id": f"right(id, {SHORT_ID})",
    "state": "'QUEUED'",
    "spec_version": "1",
    "live": "''",
    "result": "''::bytea",
    **dict.fromkeys(("worker", "affinity", "delegation"), "''"),
    **dict.fromkeys(("held", "offered", "awaited"), "false"),
    **dict.fromkeys(("blockers", "token", "attempt", "failures"), "0"),
    **dict.fromkeys(("create_time", "update_time", "queue_time"), "$3"),
}
_COLUMNS: Final = f"{', '.join((*NEW, *_SAME))}, generation"
_VALUES: Final = f"{', '.join((*NEW, *_SAME.values()))}, generation"
_LOCKED: Final = """
locked AS MATERIALIZED (SELECT pg_advisory_xact_lock($1)),
base AS MATERIALIZED (
    SELECT setval('task_events_version_seq', nextval('task_events_version_seq') + $2 - 1) - $2 + 1 AS generation
    FROM locked
)"""

_OTHERS: Final = "NOT pg_try_advisory_xact_lock($1::bigint # 1)"
"""Whether there are other routers to tell; see `presence_key` in `hopper_common.postgres_connection`."""

# $1 lock, $2 tasks, $3 now; calls: $4 request ids, $5 digests, $6 answers, $7 position of the first task;
# tasks: $8 position of the call, then the columns, then the decision's body; then the channel and what to tell there.
_ADMIT: Final = f"""
WITH {_LOCKED},
calls AS MATERIALIZED (
    SELECT * FROM unnest($4::text[], $5::bytea[], $6::bytea[], $7::int[])
        WITH ORDINALITY AS c(request_id, digest, answer, first_task, call)
),
remembered AS (
    INSERT INTO requests (request_id, digest, response, create_time, generation)
    SELECT request_id, digest, answer, $3, generation + first_task FROM calls, base WHERE request_id <> ''
    ON CONFLICT DO NOTHING RETURNING request_id
),
fresh AS MATERIALIZED (
    SELECT i.*, base.generation + i.position - 1 AS generation
    FROM unnest($8::int[], {_ARRAYS}, ${9 + len(NEW)}::bytea[])
        WITH ORDINALITY AS i(call, {", ".join(NEW)}, record, position)
    JOIN calls USING (call) CROSS JOIN base
    WHERE calls.request_id = '' OR calls.request_id IN (SELECT request_id FROM remembered)
),
stored AS (
    INSERT INTO tasks ({_COLUMNS}) SELECT {_VALUES} FROM fresh
),
logged AS (
    INSERT INTO task_events (version, topic, key, body, create_time)
    SELECT generation, 'SUBMIT', instance || '/tasks/' || id,
        convert_to(json_build_array(project, decision, ready_time)::text, 'UTF8'), $3 FROM fresh
),
decided AS (
    INSERT INTO routing_decisions (id, task, instance, project, body)
    SELECT substr(decision, 11), instance || '/tasks/' || id, instance, project, record FROM fresh
)
SELECT generation, ARRAY(SELECT request_id FROM remembered) AS remembered,
    CASE WHEN {_OTHERS} THEN pg_notify(${10 + len(NEW)}, ${11 + len(NEW)}) END FROM base
"""

_REPEATS: Final = (
    "SELECT request_id, digest, response, generation FROM requests WHERE request_id = ANY($1::text[])"
)

_MOST_TOLD: Final = 7000
"""Bytes of a line that a statement tells other routers; NOTIFY takes 8,000."""
_GRACE: Final = length(AFFINITY_GRACE)
_LEASE: Final = "LEAST(i.lease, t.heartbeat)"
# When a statement was sent it may have had to wait for the lock, behind one that was sent later: what happens to a task
# happens after what has happened to it.
_NOW: Final = "GREATEST($3, t.update_time)"


_SERVED: Final = """
    SELECT json_object_agg(queue || '@' || priority, rank) AS served FROM (
        SELECT CASE project WHEN '' THEN instance ELSE project END AS queue, priority, max(rank) AS rank
        FROM claimed GROUP BY 1, 2
    ) s"""
_LEFT: Final = """
    SELECT
        (SELECT json_object_agg(project, -n) FROM (SELECT project, count(*) n FROM done GROUP BY 1) p) AS projects,
        (SELECT json_object_agg(instance, -n) FROM (SELECT instance, count(*) n FROM done GROUP BY 1) i) AS instances
"""


def _tell(parameters: tuple[str, str, str], line: str, facts: str) -> str:
    """
    Tells other routers, once a statement and only if it changed something.

    Args:
        parameters: The channel, the prefix of a message, the origin.
        line: What is told of the *facts*; see replicas. If it is too long for NOTIFY, they are to look for themselves.
    """
    channel, prefix, origin = parameters
    return f"""(SELECT CASE WHEN {_OTHERS} THEN (
    SELECT pg_notify({channel}, {prefix} || CASE WHEN octet_length(line) < {_MOST_TOLD} THEN line
        ELSE json_build_object('o', {origin}::text, 'a', 1)::text END)
    FROM (SELECT json_build_object('o', {origin}::text, {line})::text AS line FROM ({facts}) facts OFFSET 0) told
) END)"""


def _columns(*names: str) -> str:
    return ", ".join(f"t.{name}" for name in names)


def _claim_statement(column: str) -> str:
    """
    $1 lock, $2 most tasks in all, $3 now; per want: $4 queue, $5 worker, $6 lease, $7 request id, $8 digest, $9 the
    first turn in its queue, $10 its own first turn, $11 its last; $12 whether any has a request id; per turn: $13 the
    want that it is of; per queue: $14 name, $15 most, $16 the turn before its first; $17 channel, $18 prefix of a
    message, $19 origin.

    A turn is a place in a queue, counted through all of them: so whose it is is looked up and not searched for.
    """
    below_root = f"AND {tables.BELOW_ROOT}" if column == "instance" else ""
    return f"""
WITH {_LOCKED},
picked AS MATERIALIZED (
    SELECT p.id, p.special, q.before + p.place AS turn
    FROM unnest($14::text[], $15::int[], $16::int[]) AS q(queue, most, before), base, LATERAL (
        SELECT id, special, row_number() OVER () AS place FROM (
            SELECT id, slots > 1 OR (affinity <> '' AND attempt = 0 AND update_time > $3::bigint - {_GRACE}) AS special
            FROM tasks WHERE ready AND {column} = q.queue {below_root}
            ORDER BY priority DESC, rank, id LIMIT q.most + 0 * base.generation FOR UPDATE SKIP LOCKED
        ) AS next
    ) AS p
),
special AS MATERIALIZED (SELECT turn FROM picked WHERE special),
cold AS MATERIALIZED (
    SELECT want FROM unnest($4::text[], $5::text[], $9::int[], $10::int[], $11::int[])
        WITH ORDINALITY AS w(queue, worker, first, low, high, want)
    WHERE (EXISTS (SELECT FROM special s WHERE s.turn BETWEEN w.first AND w.high)
            AND w.low IN (SELECT turn FROM picked))
        OR (SELECT true FROM tasks t
            WHERE t.ready AND t.affinity <> '' AND t.affinity = w.worker AND t.{column} || '' = w.queue LIMIT 1)
),
claimed AS (
    UPDATE tasks AS t SET state = 'RUNNING', ready = false, token = t.token + 1, attempt = t.attempt + 1,
        worker = i.worker, lease = {_LEASE}, lease_end = {_NOW} + {_LEASE}, claim_time = {_NOW},
        first_start = COALESCE(t.first_start, {_NOW}), update_time = {_NOW}, generation = i.generation,
        wake_time = LEAST({_NOW} + {_LEASE}, t.finish_by, {_NOW} + t.run_for)
    FROM (
        SELECT id, want, ($5::text[])[want] AS worker, ($6::bigint[])[want] AS lease,
            base.generation - 1 + turn AS generation
        FROM (SELECT id, turn, ($13::int[])[turn] AS want FROM picked) AS p, base
        WHERE want <> ALL (ARRAY(SELECT want FROM cold))
    ) AS i WHERE t.id = i.id
    RETURNING i.want, t.lease, t.first_start, {_columns(*CLAIMED_ROW)}
),
logged AS (
    INSERT INTO task_events (version, topic, key, body, create_time)
    SELECT generation, 'CLAIM', instance || '/tasks/' || id,
        convert_to(json_build_array({", ".join(CLAIMED)})::text, 'UTF8'), claim_time FROM claimed
),
remembered AS (
    INSERT INTO requests (request_id, digest, response, create_time, generation)
    SELECT request_id, ($8::bytea[])[want], convert_to(n::text, 'UTF8'), $3, generation
    FROM (
        SELECT want, ($7::text[])[want] AS request_id, count(*) AS n, min(generation) AS generation
        FROM claimed WHERE $12::bool GROUP BY want
    ) AS c WHERE request_id <> ''
)
SELECT ARRAY(SELECT want FROM cold) AS cold, c.want, {", ".join(f"c.{name}" for name in CLAIMED_ROW)},
    CASE WHEN c.id IS NOT NULL THEN {_tell(("$17", "$18", "$19"), "'v', served", _SERVED)} END AS told
FROM base LEFT JOIN claimed c ON true
"""


_CLAIM: Final = {column: _claim_statement(column) for column in ("project", "instance")}

# Not in the words of the index of what runs: a server that was told last when little ran would read all of that index
# for each set, instead of looking for the few ids.
_RUNS: Final = "t.state || '' = 'RUNNING'"
# Under the lock, though it writes no event: a clock that has run out, and a lease that is renewed in time, must not
# cross each other.
_RENEW: Final = f"""
WITH locked AS MATERIALIZED (SELECT pg_advisory_xact_lock($5))
UPDATE tasks AS t SET lease = {_LEASE}, lease_end = GREATEST(t.lease_end, $1 + {_LEASE}),
    wake_time = LEAST(GREATEST(t.lease_end, $1 + {_LEASE}), t.finish_by, t.claim_time + t.run_for)
FROM unnest($2::text[], $3::bigint[], $4::bigint[]) WITH ORDINALITY AS i(id, token, lease, position), locked
WHERE t.id = i.id AND t.token = i.token AND {_RUNS} AND t.lease_end > $1
RETURNING i.position - 1 AS position, {_columns(*RENEWED_ROW)}
"""

_COMPLETE: Final = f"""
WITH {_LOCKED},
done AS (
    UPDATE tasks AS t SET state = 'SUCCEEDED', result = i.result, finish_time = {_NOW}, update_time = {_NOW},
        wake_time = NULL, generation = base.generation + i.position - 1,
        live = CASE WHEN t.live = '' THEN '' ELSE
            replace((t.live::jsonb - 'failure' - 'progress')::text, '{{}}', '') END
    FROM unnest($4::text[], $5::bigint[], $6::bytea[]) WITH ORDINALITY AS i(id, token, result, position), base
    WHERE t.id = i.id AND t.token = i.token AND {_RUNS} AND t.lease_end > $3 AND t.delegation = ''
        AND NOT t.awaited AND strpos(t.live, '\\u0000') = 0  -- which jsonb does not take
    RETURNING i.position - 1 AS position, {_columns(*COMPLETED_ROW)}
),
logged AS (
    INSERT INTO task_events (version, topic, key, body, create_time)
    SELECT generation, 'COMPLETE', instance || '/tasks/' || id, '[]'::bytea, finish_time FROM done
)
SELECT d.*, {_tell(("$7", "$8", "$9"), "'p', projects, 'i', instances", _LEFT)} AS told FROM done d
"""


class PostgresHotStore:
    """`hot.HotStore` on PostgreSQL."""

    def __init__(self, db: PostgresDatabase) -> None:
        self._db = db

    async def admit(self, calls: Sequence[Admission], origin: str) -> Sequence[int | Repeat]:
        """See HotStore."""
        news = news_of_admitted([task for call in calls for task in call.tasks], calls[0].now)
        values = [
            *self._admission(calls),
            self._db.channel,
            self._db.message([news.told(origin, _MOST_TOLD)]),
        ]
        row = (await self._db.statement(lambda conn: conn.fetch(_ADMIT, *values)))[0]
        remembered = set(row["remembered"])
        repeated = [
            call.request_id for call in calls if call.request_id and call.request_id not in remembered
        ]
        repeats = await self._repeats(repeated) if repeated else {}
        answers: list[int | Repeat] = []
        generation = row["generation"]
        for call in calls:
            answers.append(repeats.get(call.request_id, generation))
            generation += len(call.tasks)
        return answers

    def _admission(self, calls: Sequence[Admission]) -> list[Any]:
        positions: list[int] = []
        firsts: list[int] = []
        rows: list[tuple[Any, ...]] = []
        for position, call in enumerate(calls, start=1):
            firsts.append(len(rows))
            for task, record in zip(call.tasks, call.records, strict=True):
                positions.append(position)
                rows.append((*new_row(task, call.now), record))
        return [
            self._db.lock_key,
            len(rows),
            to_micros(calls[0].now),
            [call.request_id for call in calls],
            [call.digest for call in calls],
            [call.answer for call in calls],
            firsts,
            positions,
            *zip(*rows, strict=True),
        ]

    async def _repeats(self, request_ids: Sequence[str]) -> dict[str, Repeat]:
        rows = await self._db.statement(
            lambda conn: conn.fetch(_REPEATS, request_ids), changed=lambda _: False
        )
        return {row["request_id"]: Repeat(row["digest"], row["response"], row["generation"]) for row in rows}

    async def claim(
        self, wants: Sequence[Want], now: datetime, origin: str
    ) -> Sequence[list[Row] | Repeat | Left]:
        """See HotStore."""
        known = [want.request_id for want in wants if want.request_id]
        repeats = await self._repeats(known) if known else {}
        answers: list[list[Row] | Repeat | Left] = [repeats.get(want.request_id, []) for want in wants]
        for column in ("project", "instance"):
            mine = [
                position
                for position, want in enumerate(wants)
                if want.column == column and want.request_id not in repeats
            ]
            if mine:
                await self._claim(column, [wants[position] for position in mine], mine, answers, now, origin)
        return answers

    async def _claim(
        self,
        column: str,
        wants: Sequence[Want],
        positions: Sequence[int],
        answers: list[list[Row] | Repeat | Left],
        now: datetime,
        origin: str,
    ) -> None:
        turns = _Turns.of(wants)
        values = [
            self._db.lock_key,
            len(turns.owners),
            to_micros(now),
            [want.queue for want in wants],
            [want.worker for want in wants],
            [length(want.lease) for want in wants],
            [want.request_id for want in wants],
            [want.digest for want in wants],
            turns.first,
            turns.low,
            turns.high,
            any(want.request_id for want in wants),
            turns.owners,
            [queue for queue, _, _ in turns.queues],
            [most for _, most, _ in turns.queues],
            [before for _, _, before in turns.queues],
            self._db.channel,
            self._db.message([""]),
            origin,
        ]
        rows = await self._db.statement(
            lambda conn: conn.fetch(_CLAIM[column], *values), changed=lambda rows: rows[0]["id"] is not None
        )
        for cold in rows[0]["cold"]:
            answers[positions[cold - 1]] = Left.COLD
        if rows[0]["id"] is None:
            return
        rows.sort(key=itemgetter("generation"))
        for row in rows:
            answer = answers[positions[row["want"] - 1]]
            if isinstance(answer, list):
                answer.append(row)

    async def renew(self, keeps: Sequence[Keep], now: datetime) -> Sequence[Row | None]:
        """See HotStore."""
        values = [
            to_micros(now),
            [keep.id for keep in keeps],
            [keep.token for keep in keeps],
            [length(keep.lease) for keep in keeps],
            self._db.lock_key,
        ]
        rows = await self._db.statement(lambda conn: conn.fetch(_RENEW, *values), changed=lambda _: False)
        return _by_position(rows, len(keeps))

    async def complete(self, ends: Sequence[End], now: datetime, origin: str) -> Sequence[Row | None]:
        """See HotStore."""
        values = [
            self._db.lock_key,
            len(ends),
            to_micros(now),
            [end.id for end in ends],
            [end.token for end in ends],
            [end.result for end in ends],
            self._db.channel,
            self._db.message([""]),
            origin,
        ]
        rows = await self._db.statement(lambda conn: conn.fetch(_COMPLETE, *values), changed=bool)
        return _by_position(rows, len(ends))


class _Turns(NamedTuple):
    """
    Whose turn it is at each place of each queue, counted through all of them from 1.

    Attributes:
        owners: By turn, the want that it is of, from 1.
        first: By want, the first turn in its queue; then its own first, and its last.
        queues: Each one's name, how many turns it has, and the turn before its first.
    """

    owners: list[int]
    first: list[int]
    low: list[int]
    high: list[int]
    queues: list[tuple[str, int, int]]

    @classmethod
    def of(cls, wants: Sequence[Want]) -> _Turns:
        """Wants of the same queue have their turns in the order in which they came."""
        size = len(wants)
        turns = cls([], [0] * size, [0] * size, [0] * size, [])
        for (_, queue), members in by_queue(wants).items():
            before = len(turns.owners)
            for member in members:
                turns.first[member], turns.low[member] = before + 1, len(turns.owners) + 1
                turns.owners.extend([member + 1] * wants[member].most)
                turns.high[member] = len(turns.owners)
            turns.queues.append((queue, len(turns.owners) - before, before))
        return turns


def _by_position(rows: Sequence[Row], size: int) -> list[Row | None]:
    found: list[Row | None] = [None] * size
    for row in rows:
        found[row["position"]] = row
    return found
