"""OutboxSink at the outbox of a private Postgres."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from bridges.message import Message
from migrations.runner import migrate
from outbox.sink import OutboxSink
from tests.contracts.messages import message
from tests.contracts.outages import Outages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bridges.ports import Sink
    from outbox.embedded import PrivatePostgres

LIMIT = 1 << 20
TIMEOUT = 1.0
COLUMNS = "id, topic, payload, key, content_type, headers, created_at"


class OutboxSinkHarness:
    topics = ("orders.created", "orders.paid")
    answers_within = TIMEOUT + 2.0  # a connection that is cut may take a second to notice
    cancelled_within = 2.0
    outage = frozenset[str]()

    def __init__(self, engine: PrivatePostgres, pool: AsyncConnectionPool) -> None:
        self._dsn = engine.dsn
        self._pool = pool
        self._outages = Outages(engine)
        self.sink: Sink = OutboxSink(pool, timeout=TIMEOUT)
        self.go_away, self.come_back = self._outages.go_away, self._outages.come_back
        self.freeze, self.thaw = self._outages.freeze, self._outages.thaw

    async def stored(self) -> list[Message]:
        return [Message(*row) for row in await self._fetch(f"SELECT {COLUMNS} FROM outbox.messages ORDER BY position")]

    async def dead(self) -> dict[object, tuple[str, int]]:
        """The reasons and attempts of the dead letters by id."""
        return {one: (reason, attempts) for one, reason, attempts in await self._fetch("SELECT id, reason, attempts FROM outbox.dead")}

    def too_large(self) -> list[Message]:
        """Over the table's limit of a payload."""
        return [message(self.topics[0], size=size) for size in (LIMIT + 1, 3 * LIMIT)]

    def invalid(self) -> list[Message]:
        """What Python finds, each by another rule, and a time that only the table refuses."""
        plain = message(self.topics[0])
        assert plain.created_at is not None
        return [
            *(message(topic) for topic in ("with blank", "wild.*", "empty..token", "$SYS.x", "", "x" * 300)),
            plain._replace(headers={"outbox-id": "mine"}),
            plain._replace(headers={"two-lines": "a\nb"}),
            plain._replace(headers={"long": "x" * 33_000}),
            plain._replace(content_type="text/plain; ü"),
            plain._replace(created_at=plain.created_at.replace(year=1)),
        ]

    def without_destination(self) -> Sink:
        return OutboxSink(self._pool, schema="outbox_missing", timeout=TIMEOUT)

    async def make_destination(self) -> None:
        with psycopg.connect(self._dsn) as connection:
            migrate(connection, "outbox", schema="outbox_missing")

    async def undo(self) -> None:
        await self._outages.undo()
        async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
            await connection.execute("DROP SCHEMA IF EXISTS outbox_missing CASCADE")

    async def _fetch(self, query: str) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
            return await (await connection.execute(query.encode())).fetchall()


@asynccontextmanager
async def outbox_pool(dsn: str) -> AsyncIterator[AsyncConnectionPool]:
    async with AsyncConnectionPool(dsn, min_size=1, max_size=8, timeout=1.0, open=False) as pool:
        yield pool


@asynccontextmanager
async def outbox_sink(engine: PrivatePostgres) -> AsyncIterator[OutboxSinkHarness]:
    async with outbox_pool(engine.dsn) as pool:
        harness = OutboxSinkHarness(engine, pool)
        try:
            yield harness
        finally:
            await harness.undo()
