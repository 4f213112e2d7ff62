"""Running a pump beside a test."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from bridges.backoff import Backoff
from bridges.bridge import Bridge
from outbox.source import OutboxSource
from tests.engines.deadline import eventually
from tests.engines.sinks import RecordingSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import psycopg

    from bridges.ports import Sink

SOON = Backoff(first=0.01, cap=0.05, max_attempts=1000)
"""Retries for tests: soon, and for ever."""


@asynccontextmanager
async def pumping(dsn: str, sink: Sink, *, batch: int = 100, retry: Backoff = SOON, **source: Any) -> AsyncIterator[Bridge]:
    """Pump the outbox into the sink for as long as the context lasts. An error of the pump is an error of the test."""
    async with OutboxSource(dsn, retry=retry, **source) as outbox:
        bridge = Bridge(outbox, sink, batch=batch, outage=Backoff(first=0.01, cap=0.05), drain_timeout=5)
        running = asyncio.create_task(bridge.run())
        try:
            yield bridge
        finally:
            bridge.stop()
            await running


async def count(connection: psycopg.AsyncConnection[Any], table: str) -> int:
    """Return the number of rows of one of the outbox's tables."""
    cursor = await connection.execute(f"SELECT count(*) FROM outbox.{table}")
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def is_empty(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Say whether nothing waits in the outbox."""
    return sum([await count(connection, table) for table in ("messages", "held", "deferred", "holds")]) == 0


async def pumped(dsn: str, connection: psycopg.AsyncConnection[Any]) -> list[str]:
    """Pump until nothing waits, and return the payloads in the order in which they were published."""
    sink = RecordingSink()
    async with pumping(dsn, sink):
        await eventually(lambda: is_empty(connection), what="the outbox to be empty")
    return [payload.decode() for payload in sink.payloads()]


async def sleeping(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Say whether a pump holds the doorbell's lock exclusively."""
    cursor = await connection.execute(
        "SELECT count(*) = 2 FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return await cursor.fetchone() == (True,)
