"""Backlog figures: measured at intervals, apart from the pump."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from outbox import sql

if TYPE_CHECKING:
    import psycopg


class Backlog(NamedTuple):
    """What is in the outbox, and the age in seconds of the oldest message that could have gone by now."""

    messages: int
    held: int
    deferred: int
    dead: int
    oldest_seconds: float


async def measure_backlog(connection: psycopg.AsyncConnection[Any], *, schema: str = "outbox") -> Backlog:
    """Count what is in the outbox. Exact, and so its cost grows with the backlog: for every few seconds, not for every batch."""
    cursor = await connection.execute(sql.bind(sql.BACKLOG, schema))
    row = await cursor.fetchone()
    assert row is not None
    return Backlog(*row)
