"""How fast waiting rows are drained: B1, B4, B5 and B9."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import psycopg

from bridges.bridge import Bridge
from bridges.message import Message, uuid7
from bridges.ports import PUBLISHED, Outcome, Published, Sink
from outbox.bench.daemons import daemon
from outbox.bench.harness import Unequal, check_equal
from outbox.bench.stage import FILL, PAYLOAD, fill, until, waiting
from outbox.source import OutboxSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from outbox.bench.stage import Stage

BATCH: Final = 1000
"""Messages in a call of a sink, as in the daemon."""
_PATIENCE: Final = 600.0
"""Seconds for a drain; the longest takes a tenth of it."""
_IN_FLIGHT: Final = 3
"""Calls at once, on both sides: ``pump.claims = 3``. With the daemon's default, 2, a drain is 5 to 9 % slower on two cores."""


class Accepting:
    """A Sink that takes everything at once: what is left is the Postgres side."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Publish nothing."""
        return [PUBLISHED] * len(messages)


class Counting:
    """A Sink around a Sink that says when enough was published, and how long that took from the first call on."""

    def __init__(self, sink: Sink, enough: int) -> None:
        self._sink = sink
        self.done = asyncio.Event()
        self.expect(enough)

    def expect(self, enough: int) -> None:
        """From now on it is so many that are enough."""
        self._left = enough
        self._began: float | None = None
        self.timed = enough
        """How many were published in `seconds`: those of the first call were claimed before it."""
        self.seconds = 0.0
        self.done.clear()

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Publish, and count."""
        if self._began is None:
            self._began = time.perf_counter()
            self.timed -= len(messages)
        outcomes = await self._sink.publish(messages)
        self._left -= sum(isinstance(outcome, Published) for outcome in outcomes)
        if self._left <= 0 and not self.done.is_set():
            self.seconds = time.perf_counter() - self._began
            self.done.set()
        return outcomes


@asynccontextmanager
async def stream(stage: Stage, *, allow_atomic: bool = False) -> AsyncIterator[tuple[Sink, Callable[[], Awaitable[int]]]]:
    """Make a JetStream stream, yield its sink and what says how many messages are stored, and delete it."""
    from bridges.jetstream import JetStream, JetStreamSink
    from bridges.jetstream.settings import delete_stream, make_stream, stored

    async with JetStream(stage.nats.servers) as connection:
        await make_stream(connection, "BENCH", ["bench.>"], allow_atomic=allow_atomic)
        try:
            yield JetStreamSink(connection, stream="BENCH", timeout=30.0), partial(stored, connection, "BENCH")
        finally:
            await delete_stream(connection, "BENCH")


@asynccontextmanager
async def topic(stage: Stage) -> AsyncIterator[tuple[Sink, Callable[[], Awaitable[int]]]]:
    """Make a Kafka topic of four partitions, and yield its sink and what says how many messages are stored."""
    from bridges.kafka import Kafka, KafkaSink
    from bridges.kafka.settings import make_topic, stored

    async with AsyncExitStack() as stack:
        connection = Kafka(stage.kafka.servers)
        stack.push_async_callback(connection.close)
        name = f"bench-{secrets.token_hex(4)}"
        await make_topic(connection, name, partitions=4)
        yield KafkaSink(connection, topic=name, timeout=30.0), partial(stored, connection, name)


BROKERS: Final = {"nats": stream, "kafka": topic}


async def drain(dsn: str, sink: Sink, rows: int) -> float:
    """Pump so many rows into a sink, and return rows a second."""
    counting = Counting(sink, rows)
    began = time.perf_counter()
    async with pumping(dsn, counting) as drained:
        await drained()
        return rows / (time.perf_counter() - began)


@asynccontextmanager
async def pumping(dsn: str, counting: Counting) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Run the pump's loop, without what the daemon puts around it, and yield what waits until enough was published."""
    async with OutboxSource(dsn, claims=_IN_FLIGHT) as source:
        bridge = Bridge(source, counting, batch=BATCH, claims=_IN_FLIGHT)
        running = asyncio.create_task(bridge.run())

        async def drained() -> None:
            enough = asyncio.create_task(counting.done.wait())
            ended, _ = await asyncio.wait({running, enough}, timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            if enough not in ended:
                enough.cancel()
                running.cancel()
                if running in ended:
                    running.result()  # an error that ended it says more
                raise TimeoutError(f"the pump: not everything was acknowledged within {_PATIENCE:g} s")

        yield drained
        bridge.stop()
        await running


async def from_memory(sink: Sink, rows: int) -> float:
    """Publish as many messages of the same kind from memory, as many calls at a time, and return messages a second."""
    now = datetime.now(UTC)
    batches = [
        [Message(uuid7(), "bench.rows", b"x" * PAYLOAD, created_at=now) for _ in range(min(BATCH, rows - start))]
        for start in range(0, rows, BATCH)
    ]
    waiting = iter(batches)

    async def publish() -> None:
        for batch in waiting:
            outcomes = await sink.publish(batch)
            check_equal(sum(isinstance(outcome, Published) for outcome in outcomes), len(batch), "from memory")

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(_IN_FLIGHT):
            group.create_task(publish())
    return rows / (time.perf_counter() - began)


async def beside_memory(stage: Stage, side: str, *, broker: str) -> Mapping[str, float]:
    """B1: what the pump publishes, and what the same sink publishes from memory with the same acknowledgements."""
    rows = stage.rows(200_000)
    async with BROKERS[broker](stage) as (sink, stored):
        if side == "memory":
            rate = await from_memory(sink, rows)
        else:
            async with stage.database() as dsn:
                await fill(dsn, rows)
                rate = await drain(dsn, sink, rows)
        check_equal(await stored(), rows, broker)
    return {"rate": rate}


async def in_processes(stage: Stage, side: str) -> Mapping[str, float]:
    """B1, with a pump of two processes: each has a core, as far as there are any."""
    rows = stage.rows(200_000)
    async with stream(stage) as (sink, stored):
        if side == "memory":
            rate = await from_memory(sink, rows)
        else:
            async with stage.database() as dsn, daemon(stage, dsn, "pumps", processes=2):
                rate = await _put_and_drained(dsn, rows, "NULL", stored)
        check_equal(await stored(), rows, "nats")
    return {"rate": rate}


async def by_backlog(stage: Stage, side: str) -> Mapping[str, float]:
    """B4: rows drained from a long queue and from short ones, from the first that is published on: a wake-up is no part of it."""
    rows, short = stage.rows(1_000_000, least=10 * BATCH), stage.rows(10_000, least=3 * BATCH)
    async with stage.database() as dsn:
        if side == "long":
            await fill(dsn, rows)
            counting = Counting(Accepting(), rows)
            async with pumping(dsn, counting) as drained:
                await drained()
            rate = counting.timed / counting.seconds
        else:
            rate = await _by_turns(dsn, max(1, rows // short // 5), short)
        check_equal(rows - await waiting(dsn), rows, "drained")
    return {"rate": rate}


async def _by_turns(dsn: str, turns: int, rows: int) -> float:
    counting = Counting(Accepting(), rows)
    timed, seconds = 0, 0.0
    async with pumping(dsn, counting) as drained, await psycopg.AsyncConnection.connect(dsn) as connection:
        for turn in range(turns + 1):
            counting.expect(rows)
            await connection.execute(FILL.format(key="NULL"), (rows,))
            await connection.commit()
            await drained()
            if turn:  # the first has sessions and statements to prepare
                timed += counting.timed
                seconds += counting.seconds
    return timed / seconds


async def behind_a_snapshot(stage: Stage, side: str) -> Mapping[str, float]:
    """B5: rows drained while a session holds a snapshot from before, and without one."""
    rows = stage.rows(200_000)
    async with stage.database() as dsn, pinned(dsn if side == "pinned" else None):
        await fill(dsn, rows)
        rate = await drain(dsn, Accepting(), rows)
        check_equal(rows - await waiting(dsn), rows, "drained")
    return {"rate": rate}


@asynccontextmanager
async def pinned(dsn: str | None) -> AsyncIterator[None]:
    """Have a session hold a snapshot, so that nothing that is deleted from now on can be cleared away; none without a dsn."""
    if dsn is None:
        yield
        return
    async with await psycopg.AsyncConnection.connect(dsn) as session:
        await session.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await session.execute("SELECT count(*) FROM outbox.messages")
        yield


# The keys of an ordinary shop: the k-th most frequent has a k-th of the messages of the first (Zipf's law with an exponent of 1).
ZIPF: Final = "'k' || floor(exp(random() * ln(10000)))::int"


async def by_pumps(stage: Stage, side: str) -> Mapping[str, float]:
    """B9: one queue of skewed keys, drained by three daemons or by one; and the order of each key in the stream."""
    rows, pumps = stage.rows(100_000), 3 if side == "three" else 1
    async with stage.database() as dsn, stream(stage, allow_atomic=True) as (_, stored):
        async with AsyncExitStack() as stack:
            for number in range(pumps):
                await stack.enter_async_context(daemon(stage, dsn, f"pump-{number}"))
            rate = await _put_and_drained(dsn, rows, ZIPF, stored)
        check_equal(await stored(), rows, "nats")
        await _check_order(stage, rows)
    return {"rate": rate}


async def _put_and_drained(dsn: str, rows: int, key: str, stored: Callable[[], Awaitable[int]]) -> float:
    """Put rows in one transaction, and return how many a second daemons that were waiting for them have stored after its commit."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute(FILL.format(key=key), (rows,))
        began = time.perf_counter()
        await connection.commit()

    async def all_stored() -> bool:
        return await stored() >= rows

    await until(all_stored, within=_PATIENCE, what="the queue to be drained")
    return rows / (time.perf_counter() - began)


async def _check_order(stage: Stage, rows: int) -> None:
    """Read the stream and raise `Unequal` if a key's messages are not in the order in which they were put."""
    from bridges.jetstream import JetStream, JetStreamSource

    last: dict[str | None, int] = {}
    seen = 0
    async with JetStream(stage.nats.servers) as connection:
        source = JetStreamSource(connection, stream="BENCH", durable="auditor")
        try:
            while seen < rows:
                async with source.claim(BATCH) as batch:
                    for message in batch.messages:
                        place = int(message.payload)
                        if place <= last.get(message.key, 0):
                            raise Unequal(f"key {message.key!r}: {place} comes after {last[message.key]}")
                        last[message.key] = place
                    seen += len(batch.messages)
                    await batch.settle([PUBLISHED] * len(batch.messages))
        finally:
            await source.close()
