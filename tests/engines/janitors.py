"""A janitor beside a test, and what it is to look after."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bridges.backoff import Backoff
from outbox.janitor import Backlog, Janitor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import psycopg
    import pytest

DAY = timedelta(days=1)
SOON = Backoff(first=0.01, cap=0.05)
ARCHIVED = """INSERT INTO outbox.archive (position, id, created_at, drop_at, priority, lane, topic, content_type, headers, destination,
                                                     payload)
SELECT n, gen_random_uuid(), now(), clock_timestamp() + %s, 0, 0, 't', 'a', '{}', 'events', '' FROM generate_series(1, %s) AS n"""


class Figures:
    """What a janitor has handed out."""

    def __init__(self) -> None:
        self.seen: list[tuple[Backlog, float]] = []

    def __call__(self, backlog: Backlog, age: float) -> None:
        self.seen.append((backlog, age))

    async def some(self) -> bool:
        return bool(self.seen)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what outboxd has logged: psycopg says so when a query that it cancels is cut short, which is nobody's trouble here."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("outboxd")]


@asynccontextmanager
async def tidying(dsn: str, figures: Figures | None = None, **settings: Any) -> AsyncIterator[Janitor]:
    """Run a janitor for as long as the context lasts. An error of it is an error of the test."""
    janitor = Janitor(dsn, figures or Figures(), **{"measure_every": 0.05, "outage": SOON, **settings})
    running = asyncio.create_task(janitor.run())
    try:
        yield janitor
    finally:
        janitor.stop()
        await asyncio.wait_for(running, 10)


async def archive(connection: psycopg.AsyncConnection, drop_in: timedelta, number: int = 1) -> None:
    """Put rows into the archive that are to be dropped in so long."""
    await connection.execute(ARCHIVED, (drop_in, number))
