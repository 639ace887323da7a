"""Where this service stands in the logs of others: written down with what it made of what they said."""

from sqlalchemy import BigInteger, Column, Connection, MetaData, String, Table, insert, select, update

METADATA = MetaData()
"""Part of the service's (`hopper_federation.tables`)."""

POSITIONS = Table(
    "positions",
    METADATA,
    Column("log", String, primary_key=True),
    Column("position", BigInteger, nullable=False),
)


def read(conn: Connection, log: str) -> int:
    """How far a log was read; 0: that is not known."""
    return conn.scalar(select(POSITIONS.c.position).where(POSITIONS.c.log == log)) or 0


def save(conn: Connection, log: str, position: int) -> None:
    """Note how far it has been."""
    where = update(POSITIONS).where(POSITIONS.c.log == log)
    if conn.execute(where.values(position=position)).rowcount == 0:
        conn.execute(insert(POSITIONS), {"log": log, "position": position})
