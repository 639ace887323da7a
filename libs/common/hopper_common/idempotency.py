"""
The first answer again, for a request that comes again.

A caller that got no answer cannot know whether its request was carried out. So it sends the same `request_id`
once more, and gets what it would have got: the answer is stored in the transaction of the effect, and both
are there or neither is. Failures are not stored; they took their effects back, and trying again is what a
retry is for.

The id stands for one request: the same id with other content is a mistake of the caller's, and is refused
rather than answered with somebody else's answer.
"""

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar, cast

from google.protobuf.message import Message
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    delete,
    insert,
    select,
)

from hopper_common.clock import Clock
from hopper_common.errors import IdempotencyConflict
from hopper_common.timestamps import to_micros

M = TypeVar("M", bound=Message)


def requests_table(metadata: MetaData, name: str = "requests") -> Table:
    """The table of answered requests, to be made by the service's migrations."""
    return Table(
        name,
        metadata,
        Column("request_id", String, primary_key=True),
        Column("digest", LargeBinary, nullable=False),
        Column("response", LargeBinary, nullable=False),
        Column("create_time", BigInteger, nullable=False, index=True),  # microseconds
    )


class Requests:
    """Answered requests of one service, kept for as long as callers may retry."""

    def __init__(self, table: Table, clock: Clock) -> None:
        self._table = table
        self._clock = clock
        self._find = select(table.c.digest, table.c.response).where(
            table.c.request_id == bindparam("request_id")
        )
        self._store = insert(table)

    def once(
        self,
        conn: Connection,
        method: str,
        request: Message,
        response_type: type[M],
        effect: Callable[[], M],
    ) -> M:
        """
        Carry out *request* by calling *effect*, unless it has been carried out: then return the answer of
        that time.

        Args:
            conn: Of the unit of work that the effect is part of.
            method: The RPC's name, part of what the id stands for.
            request: Has a field `request_id`; empty means that the caller does not ask for any of this.

        Raises:
            IdempotencyConflict: The id was used for another method or other content.
        """
        request_id = cast("Any", request).request_id
        if not request_id:
            return effect()
        digest = digest_of(method, request)
        first = conn.execute(self._find, {"request_id": request_id}).one_or_none()
        if first is None:
            response = effect()
            self._remember(conn, request_id, digest, response)
            return response
        if first.digest != digest:
            raise IdempotencyConflict(request_id=request_id, method=method)
        return response_type.FromString(first.response)

    def forget(self, conn: Connection, *, before: datetime) -> int:
        """Drop the answers given before a time; returns how many."""
        return conn.execute(delete(self._table).where(self._table.c.create_time < to_micros(before))).rowcount

    def _remember(self, conn: Connection, request_id: str, digest: bytes, response: Message) -> None:
        row = {
            "request_id": request_id,
            "digest": digest,
            "response": response.SerializeToString(),
            "create_time": to_micros(self._clock.now()),
        }
        conn.execute(self._store, row)


def digest_of(method: str, request: Message) -> bytes:
    """What a request id stands for: the method and all of the request but the id."""
    content = type(request)()
    content.CopyFrom(request)
    content.ClearField("request_id")
    return hashlib.sha256(method.encode() + b"\0" + content.SerializeToString(deterministic=True)).digest()
