"""HandlerSink with a handler that writes each message into a table of a private Postgres."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from bridges.backoff import Backoff
from bridges.message import Message
from dedupe.handler import HandlerSink
from tests.contracts.messages import message
from tests.contracts.outages import Outages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bridges.ports import Sink
    from outbox.embedded import PrivatePostgres

LIMIT = 300_000
COLUMNS = "id, topic, payload, key, content_type, headers, created_at"


class HandlerSinkHarness:
    topics = ("orders.created", "orders.paid")
    answers_within = 5.0
    cancelled_within = 5.0
    outage = frozenset[str]()

    def __init__(self, engine: PrivatePostgres, pool: AsyncConnectionPool) -> None:
        self._dsn = engine.dsn
        self._pool = pool
        self._outages = Outages(engine)
        self.sink: Sink = self._made("dedupe")
        self.go_away, self.come_back = self._outages.go_away, self._outages.come_back
        self.freeze_server, self.thaw_server = self._outages.freeze, self._outages.thaw

    async def freeze(self) -> None:
        """Somebody else locks the table: the server is there, and the handler waits."""
        self._locker = await psycopg.AsyncConnection.connect(self._dsn)
        await self._locker.execute("LOCK TABLE effects")

    async def thaw(self) -> None:
        await self._locker.close()

    async def stored(self) -> list[Message]:
        return [Message(*row) for row in await self._fetch(f"SELECT {COLUMNS} FROM effects ORDER BY place")]

    async def dead(self) -> dict[object, int]:
        """The attempts of the consumer's dead letters by id."""
        return dict(await self._fetch("SELECT message_id, attempts FROM dedupe.consumer_dead"))

    def unacceptable(self) -> Message:
        """What the handler raises for."""
        return message(self.topics[0], size=LIMIT + 1)

    def too_large(self) -> list[Message]:
        """None: what the handler does not like is one kind of fault, and its dead letter is Published."""
        return []

    def invalid(self) -> list[Message]:
        """None: a topic is no address here."""
        return []

    def without_destination(self) -> Sink:
        return self._made("dedupe_missing")

    async def make_destination(self) -> None:
        from migrations.runner import migrate

        with psycopg.connect(self._dsn) as connection:
            migrate(connection, "dedupe", schema="dedupe_missing")

    async def prepare(self) -> None:
        await self._execute(
            "CREATE TABLE effects (place bigserial, id uuid, topic text, payload bytea, key text, content_type text,"
            " headers jsonb, created_at timestamptz)"
        )

    async def undo(self) -> None:
        await self._outages.undo()
        await self._execute("DROP TABLE effects")
        await self._execute("DROP SCHEMA IF EXISTS dedupe_missing CASCADE")

    def _made(self, schema: str) -> HandlerSink:
        retry = Backoff(first=0.01, cap=0.01, max_attempts=3)
        return HandlerSink(self._pool, self._handle, consumer="contract", schema=schema, retry=retry, concurrency=4)

    async def _handle(self, each: Message, connection: psycopg.AsyncConnection[Any]) -> None:
        if len(each.payload) > LIMIT:
            msg = "more than the handler takes"
            raise ValueError(msg)
        row = (each.id, each.topic, each.payload, each.key, each.content_type, json.dumps(dict(each.headers)), each.created_at)
        await connection.execute(f"INSERT INTO effects ({COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s)".encode(), row)

    async def _fetch(self, query: str) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
            return await (await connection.execute(query.encode())).fetchall()

    async def _execute(self, statement: str) -> None:
        async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
            await connection.execute(statement.encode())


@asynccontextmanager
async def handler_sink(engine: PrivatePostgres) -> AsyncIterator[HandlerSinkHarness]:
    async with AsyncConnectionPool(engine.dsn, min_size=1, max_size=4, timeout=1.0, open=False) as pool:
        harness = HandlerSinkHarness(engine, pool)
        await harness.prepare()
        try:
            yield harness
        finally:
            await harness.undo()
