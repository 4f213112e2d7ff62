"""How fast waiting rows are drained to JetStream, beside what the same sink publishes from memory with the same acknowledgements.

python -m tests.bench.drain [--rows 200000] [--size 300] [--pairs 3] [--keys 0]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psycopg
import uvloop
from nats.js.api import DiscardPolicy, StreamConfig

from bridges.bridge import Bridge
from bridges.jetstream import JetStream, JetStreamSink
from bridges.message import Message, uuid7
from bridges.ports import PUBLISHED, Outcome, Sink
from migrations.runner import migrate
from outbox.demo.engines import PrivateNats
from outbox.embedded import PrivatePostgres
from outbox.source import OutboxSource

if TYPE_CHECKING:
    from collections.abc import Sequence

FILL = """
INSERT INTO outbox.messages (topic, key, payload)
SELECT 'bench.drain', CASE WHEN %(keys)s > 0 THEN (i %% %(keys)s)::text END, decode(repeat('78', %(size)s), 'hex')
FROM generate_series(1, %(rows)s) AS i"""


class Counting:
    """A Sink that counts what was published, and says when there is enough."""

    def __init__(self, sink: Sink, enough: int) -> None:
        self._sink = sink
        self._left = enough
        self.done = asyncio.Event()

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        outcomes = await self._sink.publish(messages)
        self._left -= list(outcomes).count(PUBLISHED)
        if self._left <= 0:
            self.done.set()
        return outcomes


async def from_memory(sink: Sink, options: argparse.Namespace) -> float:
    """Publish as many messages of the same kind from memory, two calls at a time, and return messages a second."""
    payload, now = b"x" * options.size, datetime.now(UTC)
    keys = [str(i % options.keys) if options.keys else None for i in range(options.rows)]
    batches = [
        [Message(uuid7(), "bench.drain", payload, key, created_at=now) for key in keys[start : start + options.batch]]
        for start in range(0, options.rows, options.batch)
    ]
    waiting = iter(batches)

    async def publish() -> None:
        for batch in waiting:
            outcomes = await sink.publish(batch)
            assert list(outcomes).count(PUBLISHED) == len(batch), outcomes[:3]

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(publish())
    return float(options.rows) / (time.perf_counter() - began)


async def from_outbox(dsn: str, sink: Sink, options: argparse.Namespace) -> float:
    """Drain as many waiting rows, and return rows a second."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(FILL, {"rows": options.rows, "size": options.size, "keys": options.keys})
        await connection.execute("VACUUM ANALYZE outbox.messages")
        await connection.execute("CHECKPOINT")
    counting = Counting(sink, options.rows)
    async with OutboxSource(dsn, claims=options.claims) as source:
        bridge = Bridge(source, counting, batch=options.batch, claims=options.claims)
        began, used = time.perf_counter(), time.process_time()
        running = asyncio.create_task(bridge.run())
        await counting.done.wait()
        seconds, used = time.perf_counter() - began, time.process_time() - used
        print(f"  pump: {used / options.rows * 1e6:.1f} us of CPU a row, {used / seconds:.0%} of a core")
        bridge.stop()
        await running
    return float(options.rows) / seconds


async def measure(options: argparse.Namespace, dsn: str, nats: PrivateNats) -> None:
    ratios = []
    async with JetStream(nats.servers) as connection:
        manager = (await connection.client()).jsm()
        for pair in range(options.pairs + 1):
            rates = {}
            for what in ("memory", "outbox") if pair % 2 else ("outbox", "memory"):
                await manager.add_stream(StreamConfig(name="BENCH", subjects=["bench.>"], discard=DiscardPolicy.NEW))
                sink = JetStreamSink(connection, stream="BENCH")
                rates[what] = await (from_memory(sink, options) if what == "memory" else from_outbox(dsn, sink, options))
                stored = (await manager.stream_info("BENCH")).state.messages
                assert stored == options.rows, f"stored {stored} of {options.rows}"
                await manager.delete_stream("BENCH")
            ratio = rates["outbox"] / rates["memory"]
            note = "" if pair else "   (warm-up, not counted)"
            print(f"outbox {rates['outbox']:9,.0f}/s   memory {rates['memory']:9,.0f}/s   ratio {ratio:.2f}{note}")
            if pair:
                ratios.append(ratio)
    print(
        f"median ratio {statistics.median(ratios):.2f} of {len(ratios)} pairs; {options.rows} rows of {options.size} bytes; {nats.version}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 200_000), ("size", 300), ("pairs", 3), ("keys", 0), ("batch", 1000), ("claims", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with ExitStack() as stack:
        postgres = stack.enter_context(PrivatePostgres(settings={"shared_buffers": "512MB", "max_wal_size": "4GB"}))
        nats = stack.enter_context(PrivateNats())
        with psycopg.connect(postgres.dsn) as connection:
            migrate(connection, "outbox", schema="outbox")
        uvloop.run(measure(options, postgres.dsn, nats))


if __name__ == "__main__":
    main()
