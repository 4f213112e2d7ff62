"""Every long-lived part is one `run` and one `stop`: it ends when it is told to, whenever that is, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pytest

from bridges.backoff import Backoff
from bridges.bridge import Bridge
from bridges.inprocess import Broker, InProcessSink, InProcessSource
from bridges.jetstream import JetStream, JetStreamSource
from bridges.kafka import Kafka, KafkaSource
from dedupe import Consumer
from outbox import Draft, Outbox
from outbox.janitor import Janitor
from outbox.source import OutboxSource
from tests.engines.deadline import eventually
from tests.engines.pumps import count, is_empty, pumping
from tests.engines.sinks import RecordingSink
from tests.engines.steps import Steps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from tests.conftest import Stream

ENDS_WITHIN = 10.0


class Part(Protocol):
    async def run(self) -> None: ...

    def stop(self) -> None: ...


class Parts:
    """One of each, made when a test asks for it."""

    def __init__(self, dsn: str, stream: Stream, kafka_servers: str, kafka_topic: str) -> None:
        self._dsn = dsn
        self._stream = stream
        self._kafka_servers = kafka_servers
        self._kafka_topic = kafka_topic

    @asynccontextmanager
    async def pump(self) -> AsyncIterator[Part]:
        async with OutboxSource(self._dsn, retry=Backoff(first=0.01, cap=0.05)) as source:
            yield Bridge(source, RecordingSink(), outage=Backoff(first=0.01, cap=0.05), drain_timeout=2)

    @asynccontextmanager
    async def janitor(self) -> AsyncIterator[Part]:
        yield Janitor(self._dsn, lambda *_: None, measure_every=0.01)

    @asynccontextmanager
    async def consumer(self) -> AsyncIterator[Part]:
        broker = Broker()
        consumer = Consumer("lifecycle", drain_timeout=2)

        @consumer.handler(">")
        async def handle(message: object, connection: psycopg.AsyncConnection[Any]) -> None:
            await connection.execute("SELECT 1")

        class Running:
            stop = staticmethod(consumer.stop)

            async def run(self) -> None:
                await consumer.run(InProcessSource(broker, ">", group="lifecycle"), dsn=self_dsn)

        self_dsn = self._dsn
        yield Running()
        broker.close()

    @asynccontextmanager
    async def from_jetstream(self) -> AsyncIterator[Part]:
        async with JetStream([self._stream.url]) as connection:
            source = JetStreamSource(connection, stream=self._stream.name, durable="lifecycle")
            yield Bridge(source, RecordingSink(), drain_timeout=2)
            await source.close()

    @asynccontextmanager
    async def from_kafka(self) -> AsyncIterator[Part]:
        async with Kafka([self._kafka_servers]) as connection:
            source = KafkaSource(connection, group="lifecycle", topics=[self._kafka_topic])
            yield Bridge(source, RecordingSink(), drain_timeout=2)
            await source.close()


PARTS = ("pump", "janitor", "consumer", "from_jetstream", "from_kafka")


@pytest.fixture
async def make(
    request: pytest.FixtureRequest, database: str, stream: Stream, kafka_servers: str, kafka_topic: str
) -> Callable[[], AbstractAsyncContextManager[Part]]:
    made: Callable[[], AbstractAsyncContextManager[Part]] = getattr(Parts(database, stream, kafka_servers, kafka_topic), request.param)
    return made


every_part = pytest.mark.parametrize("make", PARTS, indirect=True)


async def ended(running: asyncio.Task[None]) -> None:
    done, _ = await asyncio.wait({running}, timeout=ENDS_WITHIN)
    assert done, f"it has not ended within {ENDS_WITHIN:g} s"


def no_more_than(tasks: set[asyncio.Task[Any]]) -> Callable[[], Awaitable[bool]]:
    """Say whether no task is left but those."""

    async def left() -> bool:
        return asyncio.all_tasks() <= tasks

    return left


@every_part
async def test_it_runs_until_it_is_stopped(make: Callable[[], AbstractAsyncContextManager[Part]]) -> None:
    async with make() as part:
        running = asyncio.create_task(part.run())
        done, _ = await asyncio.wait({running}, timeout=0.2)
        assert not done
        part.stop()
        await ended(running)
        running.result()


@every_part
async def test_stopped_twice_is_stopped(make: Callable[[], AbstractAsyncContextManager[Part]]) -> None:
    async with make() as part:
        running = asyncio.create_task(part.run())
        await asyncio.wait({running}, timeout=0.05)
        part.stop()
        part.stop()
        await ended(running)
        running.result()
        part.stop()


@every_part
async def test_stopped_before_it_starts_it_ends_at_once(make: Callable[[], AbstractAsyncContextManager[Part]]) -> None:
    async with make() as part:
        part.stop()
        running = asyncio.create_task(part.run())
        await ended(running)
        running.result()


@every_part
async def test_cancelled_at_each_await_it_ends(make: Callable[[], AbstractAsyncContextManager[Part]]) -> None:
    """At each of the first steps, then at every few; nothing that it has started goes on after it."""
    loop = asyncio.get_running_loop()
    steps = Steps()
    before = asyncio.all_tasks()
    loop.set_task_factory(steps.make_task)
    try:
        for at in [*range(1, 25), *range(25, 120, 7)]:
            async with make() as part:
                running = asyncio.create_task(part.run())
                steps.cancel(running, at)
                await asyncio.wait({running}, timeout=0.5)  # one that is idle takes no steps: then it is cancelled as it sleeps
                running.cancel()
                await ended(running)
            await eventually(no_more_than(before), what=f"cancelled at step {at}: its tasks to end")
        gc.collect()  # what was left unclosed is to warn here, and not in some other test
    finally:
        loop.set_task_factory(None)


async def test_a_pump_that_is_cancelled_at_any_step_loses_nothing(database: str, connection: psycopg.AsyncConnection) -> None:
    """What it had claimed is in the outbox, or was published; no session of it stays; and the next one carries on, in order."""
    loop = asyncio.get_running_loop()
    steps = Steps()
    sink = RecordingSink()
    numbers = 0
    for at in [*range(1, 60), *range(60, 200, 9)]:
        async with await psycopg.AsyncConnection.connect(database) as writer:
            await Outbox().aput_many(writer, [Draft("t", str(n).encode(), key=str(n % 3)) for n in range(numbers, numbers + 10)])
        numbers += 10
        loop.set_task_factory(steps.make_task)
        try:
            async with OutboxSource(database) as source:
                running = asyncio.create_task(Bridge(source, sink, batch=4).run())
                steps.cancel(running, at)
                await asyncio.wait({running}, timeout=0.2)
                running.cancel()
                await ended(running)
        finally:
            loop.set_task_factory(None)
        firsts = set(sink.payloads())
        cursor = await connection.execute("SELECT payload FROM outbox.messages")
        waiting = {payload for (payload,) in await cursor.fetchall()}
        assert firsts | waiting == {str(n).encode() for n in range(numbers)}, f"cancelled at step {at}"
    async with pumping(database, sink):
        await eventually(lambda: is_empty(connection))

    async def no_session() -> bool:
        gc.collect()  # a connection that is cancelled while it is made is held by its task's traceback, and closed with it
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outboxd' AND datname = current_database()"
        )
        return await cursor.fetchone() == (0,)

    await eventually(no_session)
    for key in range(3):
        first = list(dict.fromkeys(sink.payloads(str(key))))
        assert first == sorted(first, key=int)
    assert await count(connection, "messages") == 0


async def test_in_process_everything_ends_with_its_broker(database: str) -> None:
    """A pump and a consumer joined by a broker, cancelled together in the middle of their work."""
    before = asyncio.all_tasks()
    broker = Broker()
    consumer = Consumer("both", drain_timeout=2)

    @consumer.handler(">")
    async def handle(message: object, connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute("SELECT 1")

    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(OutboxSource(database))
        pump = Bridge(source, InProcessSink(broker))
        tasks = {
            asyncio.create_task(pump.run()),
            asyncio.create_task(consumer.run(InProcessSource(broker, ">", group="both"), dsn=database)),
        }
        async with await psycopg.AsyncConnection.connect(database) as writer:
            await Outbox().aput_many(writer, [Draft("t", b"", key=str(n % 3)) for n in range(500)])
        await asyncio.wait(tasks, timeout=0.1)
        broker.close()
        for task in tasks:
            task.cancel()
        done, _ = await asyncio.wait(tasks, timeout=ENDS_WITHIN)
        assert done == tasks
    await eventually(no_more_than(before))
