"""How long a message takes from its commit to a consumer, beside a NOTIFY of the same commit: B3, and half of B5."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import psycopg

from bridges.ports import PUBLISHED
from outbox.bench.daemons import daemon
from outbox.bench.drains import pinned, stream
from outbox.bench.harness import TooSlow, check_equal
from outbox.bench.pgbench import pgbench
from outbox.bench.stage import PAYLOAD, until
from outbox.bench.writers import BARE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from outbox.bench.stage import Stage

_CLIENTS: Final = 8
"""Writers. A commit waits for the disk, so one alone would not come to 1,000 a second."""
_COMMITS: Final = 1000
"""Commits a second at the most; where there are to be more messages, each has several. On two cores eight writers come to 2,000."""
_WARM: Final = 1.0
"""Seconds at the beginning that do not count, while connections and statements are made."""

# The server's clock, right before the COMMIT is sent: consumers are on the same machine, and read the same clock. Both write the same row,
# since a commit that has written nothing does not wait for the disk.
_AT: Final = "extract(epoch FROM clock_timestamp())::text || n"  # no two alike, or one NOTIFY would stand for both
_ROWS: Final = f"(topic, payload) SELECT 'bench.latency', convert_to(rpad({_AT}, {PAYLOAD}), 'UTF8') FROM generate_series(1, {{each}}) AS n"
_PUT: Final = f"BEGIN;\nINSERT INTO outbox.messages {_ROWS};\nCOMMIT;\n"
_RING: Final = f"SELECT pg_notify('bench', {_AT}) FROM generate_series(1, {{each}}) AS n"
_NOTIFY: Final = f"BEGIN;\nINSERT INTO public.bare {_ROWS};\n{_RING};\nCOMMIT;\n"


class Latencies:
    """When messages were put, and how long they took, in seconds."""

    def __init__(self) -> None:
        self._put: list[float] = []
        self._took: list[float] = []

    def __len__(self) -> int:
        return len(self._put)

    def note(self, put: bytes | str) -> None:
        """One has arrived that was put at this time."""
        now, then = time.time(), float(put)
        self._put.append(then)
        self._took.append(now - then)

    def milliseconds(self) -> Mapping[str, float]:
        """Return the median and the 99th percentile."""
        first = min(self._put) + _WARM
        took = sorted(took for put, took in zip(self._put, self._took, strict=True) if put >= first)
        return {"p50": 1000 * took[len(took) // 2], "p99": 1000 * took[int(0.99 * len(took))]}


async def to_consumer(stage: Stage, side: str, *, rate: int) -> Mapping[str, float]:
    """B3: through the outbox, a daemon and JetStream to a consumer; or through NOTIFY to a listener."""
    async with stage.database() as dsn:
        if side == "NOTIFY":
            return await _notified(stage, dsn, rate)
        return await _delivered(stage, dsn, rate)


async def behind_a_snapshot(stage: Stage, side: str) -> Mapping[str, float]:
    """B5: the same with a session that holds a snapshot from before, and without one."""
    async with stage.database() as dsn, pinned(dsn if side == "pinned" else None):
        return await _delivered(stage, dsn, 1000)


async def _delivered(stage: Stage, dsn: str, rate: int) -> Mapping[str, float]:
    latencies = Latencies()
    async with stream(stage) as (_, stored), _consumed(stage, latencies), daemon(stage, dsn, "pump"):
        written = await _written(stage, dsn, _PUT, rate)
        await _all_arrive(latencies, written)
        check_equal(await stored(), written, "nats")
    return latencies.milliseconds()


@asynccontextmanager
async def _consumed(stage: Stage, latencies: Latencies) -> AsyncIterator[None]:
    """Consume the stream as a consumer does, with a durable that acknowledges."""
    from bridges.jetstream import JetStream, JetStreamSource

    async with JetStream(stage.nats.servers) as connection:
        source = JetStreamSource(connection, stream="BENCH", durable="bench")

        async def consume() -> None:
            while True:
                async with source.claim(1000) as batch:
                    for message in batch.messages:
                        latencies.note(message.payload)
                    await batch.settle([PUBLISHED] * len(batch.messages))
                if not batch.messages:
                    await source.wait(1.0)

        consuming = asyncio.create_task(consume())
        try:
            yield
        finally:
            consuming.cancel()
            await asyncio.wait({consuming})
            await source.close()


async def _notified(stage: Stage, dsn: str, rate: int) -> Mapping[str, float]:
    latencies = Latencies()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as listener:
        await listener.execute(BARE)
        await listener.execute("LISTEN bench")

        async def listen() -> None:
            async for notification in listener.notifies():
                latencies.note(notification.payload)

        listening = asyncio.create_task(listen())
        try:
            written = await _written(stage, dsn, _NOTIFY, rate)
            await _all_arrive(latencies, written)
        finally:
            listening.cancel()
            await asyncio.wait({listening})
    check_equal(len(latencies), written, "NOTIFY")
    return latencies.milliseconds()


def each_commit(rate: int) -> int:
    """Return how many messages each commit has, to come to so many a second."""
    return -(-rate // _COMMITS)


async def _written(stage: Stage, dsn: str, script: str, rate: int) -> int:
    """Write at a rate for a while, and return how many messages. Raises `TooSlow` if the writers do not come to it."""
    each = each_commit(rate)
    written = await pgbench(stage, dsn, script.format(each=each), clients=_CLIENTS, seconds=stage.seconds(6), rate=rate / each)
    if written.tps * each < 0.9 * rate:
        raise TooSlow(f"{rate:,} messages/s were to be written, and this machine came to {written.tps * each:,.0f}")
    return written.transactions * each


async def _all_arrive(latencies: Latencies, count: int) -> None:
    async def have_arrived() -> bool:
        return len(latencies) >= count

    await until(have_arrived, within=60, what=f"{count} messages to arrive")
