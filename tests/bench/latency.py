"""How long a message that is put while the pump sleeps takes to reach a JetStream subscriber, and what an idle pump asks of Postgres.

python -m tests.bench.latency [--messages 200] [--idle 10]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from contextlib import ExitStack

import nats
import psycopg
import uvloop
from nats.js.api import StreamConfig

from bridges.bridge import Bridge
from bridges.jetstream import JetStream, JetStreamSink
from migrations.runner import migrate
from outbox import Outbox
from outbox.demo.engines import PrivateNats
from outbox.embedded import PrivatePostgres
from outbox.source import OutboxSource
from tests.engines.deadline import eventually

STATEMENTS = "SELECT sum(calls) FROM pg_stat_statements WHERE query NOT LIKE '%%pg_stat_statements%%'"
ASLEEP = "SELECT count(*) = 2 FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'"


async def asleep(look: psycopg.AsyncConnection) -> bool:
    return await (await look.execute(ASLEEP)).fetchone() == (True,)


async def measure(options: argparse.Namespace, dsn: str, server: PrivateNats) -> None:
    client = await nats.connect(server.servers[0])
    await client.jetstream().add_stream(StreamConfig(name="BENCH", subjects=["bench.>"]))
    arrived: asyncio.Queue[float] = asyncio.Queue()

    async def note(_: object) -> None:
        arrived.put_nowait(time.perf_counter())

    await client.subscribe("bench.>", cb=note)
    await client.flush()
    outbox, took = Outbox(), []
    async with (
        JetStream(server.servers) as connection,
        OutboxSource(dsn) as source,
        await psycopg.AsyncConnection.connect(dsn) as writer,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as look,
    ):
        bridge = Bridge(source, JetStreamSink(connection, stream="BENCH"))
        running = asyncio.create_task(bridge.run())
        for _ in range(options.messages):
            await eventually(lambda: asleep(look))
            await outbox.aput(writer, "bench.latency", b"x" * 300)
            began = time.perf_counter()
            await writer.commit()
            took.append(await asyncio.wait_for(arrived.get(), 10) - began)
        took_ms = sorted(1000 * seconds for seconds in took)
        print(f"commit to subscriber: median {statistics.median(took_ms):.1f} ms, p99 {took_ms[int(0.99 * len(took_ms))]:.1f} ms")
        before = await (await look.execute(STATEMENTS)).fetchone()
        await asyncio.sleep(options.idle)
        after = await (await look.execute(STATEMENTS)).fetchone()
        assert before is not None
        assert after is not None
        print(f"idle: {float(after[0] - before[0]) / options.idle:.2f} statements a second, over {options.idle} s")
        bridge.stop()
        await running
    await client.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--idle", type=int, default=40)
    options = parser.parse_args()
    with ExitStack() as stack:
        settings = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_utility": "on"}
        postgres = stack.enter_context(PrivatePostgres(settings=settings))
        server = stack.enter_context(PrivateNats())
        with psycopg.connect(postgres.dsn) as connection:
            migrate(connection, "outbox", schema="outbox")
            connection.execute("CREATE EXTENSION pg_stat_statements")
        uvloop.run(measure(options, postgres.dsn, server))


if __name__ == "__main__":
    main()
