"""The policies an instance has had: every version is kept, so that an earlier one can be put back."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, insert, select

from hopper_common.timestamps import from_micros, to_micros
from hopper_router import tables
from hopper_router.store_sql import PolicyRow

_V: Final = tables.policy_versions.c


def keep(conn: Connection, row: PolicyRow) -> None:
    """Keep a version, once."""
    conn.execute(
        insert(tables.policy_versions),
        {
            "instance": row.instance,
            "version": row.version,
            "source": row.source,
            "update_time": to_micros(row.update_time),
        },
    )


def version(conn: Connection, instance: str, number: int) -> PolicyRow | None:
    """One version; None: there never was one."""
    query = select(tables.policy_versions).where(_V.instance == instance, _V.version == number)
    row = conn.execute(query).one_or_none()
    return (
        None
        if row is None
        else PolicyRow(row.instance, row.version, row.source, from_micros(row.update_time))
    )


def versions(conn: Connection, instance: str, *, before: int, limit: int) -> list[PolicyRow]:
    """The newest versions of an instance before one; 0: of all."""
    query = select(tables.policy_versions).where(_V.instance == instance)
    if before:
        query = query.where(_V.version < before)
    rows = conn.execute(query.order_by(_V.version.desc()).limit(limit))
    return [PolicyRow(row.instance, row.version, row.source, from_micros(row.update_time)) for row in rows]
