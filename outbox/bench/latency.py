"""How long a message takes from its commit to a consumer, beside the NOTIFY that no message can outrun: B3, and half of B5."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import psycopg

from outbox.bench.daemons import daemon
from outbox.bench.drains import pinned, stream
from outbox.bench.harness import check_equal
from outbox.bench.pgbench import pgbench
from outbox.bench.stage import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from outbox.bench.stage import Stage

_CLIENTS: Final = 8
"""Writers. A commit waits for the disk, so one alone would not come to 4,000 a second."""
_WARM: Final = 1.0
"""Seconds at the beginning that do not count, while connections and statements are made."""

# The server's clock, right before the COMMIT is sent: consumers are on the same machine, and read the same clock.
_PUT: Final = """
BEGIN;
INSERT INTO outbox.messages (topic, payload) VALUES ('bench.latency', convert_to(extract(epoch FROM clock_timestamp())::text, 'UTF8'));
COMMIT;
"""
_NOTIFY: Final = """
BEGIN;
SELECT pg_notify('bench', extract(epoch FROM clock_timestamp())::text);
COMMIT;
"""


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
    """B3: through the outbox, a daemon and JetStream to a subscriber; or through NOTIFY to a listener."""
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
    async with stream(stage) as (_, stored), _subscribed(stage, latencies), daemon(stage, dsn, "pump"):
        written = await pgbench(stage, dsn, _PUT, clients=_CLIENTS, seconds=stage.seconds(10), rate=rate)
        await _all_arrive(latencies, written.transactions)
        check_equal(await stored(), written.transactions, "nats")
    return latencies.milliseconds()


@asynccontextmanager
async def _subscribed(stage: Stage, latencies: Latencies) -> AsyncIterator[None]:
    from bridges.jetstream import JetStream

    async with JetStream(stage.nats.servers) as connection:

        async def note(message: Any) -> None:
            latencies.note(message.data)

        client = await connection.client()
        await client.subscribe("bench.>", cb=note)
        await client.flush()
        yield


async def _notified(stage: Stage, dsn: str, rate: float) -> Mapping[str, float]:
    latencies = Latencies()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as listener:
        await listener.execute("LISTEN bench")

        async def listen() -> None:
            async for notification in listener.notifies():
                latencies.note(notification.payload)

        listening = asyncio.create_task(listen())
        try:
            written = await pgbench(stage, dsn, _NOTIFY, clients=_CLIENTS, seconds=stage.seconds(10), rate=rate)
            await _all_arrive(latencies, written.transactions)
        finally:
            listening.cancel()
            await asyncio.wait({listening})
    check_equal(len(latencies), written.transactions, "NOTIFY")
    return latencies.milliseconds()


async def _all_arrive(latencies: Latencies, count: int) -> None:
    async def have_arrived() -> bool:
        return len(latencies) >= count

    await until(have_arrived, within=60, what=f"{count} messages to arrive")
