"""A peer on the same path: faststream-outbox, which relays an outbox table to the same JetStream stream. B2."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from outbox.bench.drains import drain, stream
from outbox.bench.harness import check_equal
from outbox.bench.stage import PAYLOAD, fill, until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from outbox.bench.stage import Stage

# As quick as its settings make it, and not as it comes: it was tried with 1 to 64 workers and batches of 10 to 1,000.
_SETTINGS: Final[dict[str, Any]] = {
    "max_workers": 16,
    "fetch_batch_size": 500,
    "terminal_flush_batch_size": 100,
    "min_fetch_interval": 0.001,
    "max_fetch_interval": 0.1,
}
_FILL: Final = """
INSERT INTO outbox (queue, payload, headers)
SELECT 'bench', convert_to(rpad(i::text, %s), 'UTF8'), jsonb_build_object('correlation_id', i::text, 'content-type', 'text/plain')
FROM generate_series(1, %s) AS i"""


async def beside_peer(stage: Stage, side: str) -> Mapping[str, float]:
    """Rows a second from a table to JetStream, each acknowledged by the stream before its row goes."""
    rows = stage.rows(100_000 if side == "outboxd" else 10_000)
    async with stage.database() as dsn, stream(stage) as (sink, stored):
        if side == "outboxd":
            await fill(dsn, rows)
            rate = await drain(dsn, sink, rows)
        else:
            rate = await _relay(stage, dsn, rows)
        check_equal(await stored(), rows, side)
    return {"rate": rate}


async def _relay(stage: Stage, dsn: str, rows: int) -> float:
    from faststream.nats import NatsBroker
    from faststream_outbox import OutboxBroker, make_outbox_table
    from sqlalchemy import URL, MetaData
    from sqlalchemy.ext.asyncio import create_async_engine

    metadata = MetaData()
    table = make_outbox_table(metadata, table_name="outbox")
    where = conninfo_to_dict(dsn)
    query = {"host": f"{where['host']}:{where['port']}", "user": str(where["user"])}
    url = URL.create("postgresql+asyncpg", database=str(where["dbname"]), query=query)
    engine = create_async_engine(url, pool_size=_SETTINGS["max_workers"] + 4)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as look:
            await look.execute(_FILL, (PAYLOAD, rows))
            await look.execute("VACUUM ANALYZE outbox")
            await look.execute("CHECKPOINT")

            async def is_empty() -> bool:
                return await (await look.execute("SELECT NOT EXISTS (SELECT FROM outbox)")).fetchone() == (True,)

            outbox, nats = OutboxBroker(engine, outbox_table=table, logger=None), NatsBroker(stage.nats.servers, logger=None)

            @nats.publisher("bench.rows", stream="BENCH")
            @outbox.subscriber("bench", **_SETTINGS)
            async def relay(body: str) -> str:
                return body

            async with nats:
                await nats.start()
                began = time.perf_counter()
                await outbox.start()
                try:
                    await until(is_empty, within=300, what="faststream-outbox to relay everything")
                    seconds = time.perf_counter() - began
                finally:
                    await outbox.stop()
    finally:
        await engine.dispose()
    return rows / seconds
