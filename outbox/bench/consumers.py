"""What it costs a consumer to have each effect once: B7."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from bridges.message import Message, uuid7
from bridges.ports import Published
from dedupe.handler import HandlerSink
from outbox.bench.harness import check_equal
from outbox.bench.stage import PAYLOAD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from outbox.bench.stage import Stage


async def _handle(message: Message, connection: psycopg.AsyncConnection[Any]) -> None:
    """An effect as small as one can be, so that what is beside it shows."""
    await connection.execute("INSERT INTO public.effects (id) VALUES (%s)", (message.id,))


async def effects(stage: Stage, side: str, *, batch: int) -> Mapping[str, float]:
    """B7: messages a second through a consumer, and through its bare handler in transactions of as many messages."""
    rows = stage.rows(5_000 if batch == 1 else 20_000)
    now = datetime.now(UTC)
    messages = [Message(uuid7(), "bench.effects", b"x" * PAYLOAD, str(number), created_at=now) for number in range(rows)]
    batches = [messages[start : start + batch] for start in range(0, rows, batch)]
    async with stage.database() as dsn, await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("CREATE TABLE public.effects (id uuid)")
        async with AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
            await pool.wait()
            began = time.perf_counter()
            if side == "dedupe":
                sink = HandlerSink(pool, _handle, consumer="bench", concurrency=1)
                for each in batches:
                    outcomes = await sink.publish(each)
                    check_equal(sum(isinstance(outcome, Published) for outcome in outcomes), len(each), "the consumer")
            else:
                await _bare(pool, batches)
            seconds = time.perf_counter() - began
        row = await (await connection.execute("SELECT count(*) FROM public.effects")).fetchone()
        assert row is not None
        check_equal(row[0], rows, "effects")
    return {"rate": rows / seconds}


async def _bare(pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]], batches: Sequence[Sequence[Message]]) -> None:
    for batch in batches:
        async with pool.connection() as connection, connection.transaction():
            for message in batch:
                await _handle(message, connection)
