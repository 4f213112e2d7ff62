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
from outbox.bench.harness import Unequal, check_equal
from outbox.bench.pgbench import Written, pgbench
from outbox.bench.stage import PAYLOAD, until
from outbox.bench.writers import BARE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from outbox.bench.stage import Stage

_CLIENTS: Final = 8
"""Writers. A commit waits for the disk, so one alone would not come to 4,000 a second."""
_WARM: Final = 1.0
"""Seconds at the beginning that do not count, while connections and statements are made."""

# The server's clock, right before the COMMIT is sent: consumers are on the same machine, and read the same clock. Both write the same row,
# since a commit that has written nothing does not wait for the disk.
_ROW: Final = f"(topic, payload) VALUES ('bench.latency', convert_to(rpad(extract(epoch FROM clock_timestamp())::text, {PAYLOAD}), 'UTF8'))"
_PUT: Final = f"BEGIN;\nINSERT INTO outbox.messages {_ROW};\nCOMMIT;\n"
_RING: Final = "SELECT pg_notify('bench', extract(epoch FROM clock_timestamp())::text)"
_NOTIFY: Final = f"BEGIN;\nINSERT INTO public.bare {_ROW};\n{_RING};\nCOMMIT;\n"


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


async def to_consumer(stage: Stage, side: str, *, rate: float) -> Mapping[str, float]:
    """B3: through the outbox, a daemon and JetStream to a consumer; or through NOTIFY to a listener."""
    async with stage.database() as dsn:
        if side == "NOTIFY":
            return await _notified(stage, dsn, rate)
        return await _delivered(stage, dsn, rate)


async def behind_a_snapshot(stage: Stage, side: str) -> Mapping[str, float]:
    """B5: the same with a session that holds a snapshot from before, and without one."""
    async with stage.database() as dsn, pinned(dsn if side == "pinned" else None):
        return await _delivered(stage, dsn, 1000)


async def _delivered(stage: Stage, dsn: str, rate: float) -> Mapping[str, float]:
    latencies = Latencies()
    async with stream(stage) as (_, stored), _consumed(stage, latencies), daemon(stage, dsn, "pump"):
        written = await pgbench(stage, dsn, _PUT, clients=_CLIENTS, seconds=stage.seconds(6), rate=rate)
        await _all_arrive(latencies, written.transactions)
        _check_rate(written, rate)
        check_equal(await stored(), written.transactions, "nats")
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


async def _notified(stage: Stage, dsn: str, rate: float) -> Mapping[str, float]:
    latencies = Latencies()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as listener:
        await listener.execute(BARE)
        await listener.execute("LISTEN bench")

        async def listen() -> None:
            async for notification in listener.notifies():
                latencies.note(notification.payload)

        listening = asyncio.create_task(listen())
        try:
            written = await pgbench(stage, dsn, _NOTIFY, clients=_CLIENTS, seconds=stage.seconds(6), rate=rate)
            await _all_arrive(latencies, written.transactions)
            _check_rate(written, rate)
        finally:
            listening.cancel()
            await asyncio.wait({listening})
    check_equal(len(latencies), written.transactions, "NOTIFY")
    return latencies.milliseconds()


def _check_rate(written: Written, rate: float) -> None:
    """Raise `Unequal` if the writers did not come to the rate: what was measured then is another one."""
    if written.tps < 0.9 * rate:
        raise Unequal(f"{rate:,.0f} messages/s were to be written, and this machine came to {written.tps:,.0f}")


async def _all_arrive(latencies: Latencies, count: int) -> None:
    async def have_arrived() -> bool:
        return len(latencies) >= count

    await until(have_arrived, within=60, what=f"{count} messages to arrive")
