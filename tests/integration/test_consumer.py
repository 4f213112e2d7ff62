"""A consumer: its handlers by topic, its end, what it asks of its database, and what it refuses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from bridges.errors import ConfigurationError, InvalidPattern
from bridges.inprocess import Broker, InProcessSink, InProcessSource
from bridges.message import Message, uuid7
from bridges.ports import Outcome, Published
from dedupe import Consumer
from tests.engines.deadline import eventually
from tests.engines.effects import EFFECTS, apply, effects, made

if TYPE_CHECKING:
    import psycopg


@pytest.fixture(autouse=True)
async def table(connection: psycopg.AsyncConnection) -> None:
    await connection.execute(EFFECTS)


async def test_a_consumer_asks_for_a_server_that_takes_writes(
    database: str, connection: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    alter = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only TO {}', current_database()); END $$"
    await connection.execute(alter.format("on"))
    consumer = Consumer("billing", dsn=database)
    consumer.handler(">")(apply)
    broker = Broker()
    running = asyncio.create_task(consumer.run(InProcessSource(broker, ">", group="billing")))

    async def refused() -> bool:
        return "session is read-only" in caplog.text

    await eventually(refused)
    await connection.execute(alter.format("off"))
    assert await asyncio.wait_for(InProcessSink(broker).publish([made("m")]), 20) == [Published()]
    assert await effects(connection) == ["m"]
    consumer.stop()
    await asyncio.wait_for(running, 20)


async def run_consumer(consumer: Consumer, broker: Broker, dsn: str, messages: list[Message]) -> list[Outcome]:
    source = InProcessSource(broker, *consumer.patterns, group=consumer.name)
    running = asyncio.create_task(consumer.run(source, dsn=dsn))
    outcomes = await InProcessSink(broker).publish(messages)
    consumer.stop()
    await asyncio.wait_for(running, 20)
    source.close()
    return list(outcomes)


async def test_a_consumer_dispatches_by_topic(database: str, connection: psycopg.AsyncConnection) -> None:
    consumer = Consumer("billing")

    @consumer.handler("orders.created")
    async def created(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        await apply(message._replace(payload=b"created " + message.payload), conn)

    @consumer.handler("orders.*", "refunds.>")
    async def other(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        await apply(message._replace(payload=b"other " + message.payload), conn)

    assert consumer.patterns == ["orders.created", "orders.*", "refunds.>"]
    topics = ["orders.created", "orders.paid", "refunds.a.b"]
    messages = [Message(uuid7(), topic, b"x", "k") for topic in topics]
    assert await run_consumer(consumer, Broker(), database, messages) == [Published()] * 3
    assert await effects(connection) == ["created x", "other x", "other x"]


async def test_a_consumer_stops_gracefully(database: str, connection: psycopg.AsyncConnection) -> None:
    """What is being handled when it is told to stop is finished, committed and acknowledged."""
    consumer = Consumer("billing")
    begun, go_on = asyncio.Event(), asyncio.Event()

    @consumer.handler(">")
    async def slow(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        begun.set()
        await go_on.wait()
        await apply(message, conn)

    broker = Broker()
    source = InProcessSource(broker, ">", group="billing")
    running = asyncio.create_task(consumer.run(source, dsn=database))
    publishing = asyncio.create_task(InProcessSink(broker).publish([made("m")]))
    await begun.wait()
    consumer.stop()
    consumer.stop()
    go_on.set()
    await asyncio.wait_for(running, 20)
    assert await publishing == [Published()]
    assert await effects(connection) == ["m"]


async def test_a_consumer_that_was_stopped_before_it_ran_ends_at_once(database: str) -> None:
    consumer = Consumer("billing", dsn=database)
    consumer.handler(">")(apply)
    consumer.stop()
    await asyncio.wait_for(consumer.run(InProcessSource(Broker())), 20)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigurationError, match="consumer"):
        Consumer("")
    with pytest.raises(ConfigurationError, match="concurrency: 0"):
        Consumer("c", concurrency=0)
    with pytest.raises(InvalidPattern, match="'>'"):
        Consumer("c").handler("a.>.b")
    with pytest.raises(ConfigurationError, match="pattern"):
        Consumer("c").handler()


async def test_a_consumer_without_a_database_or_a_handler_is_refused() -> None:
    consumer = Consumer("c")
    with pytest.raises(ConfigurationError, match="dsn"):
        await consumer.run(InProcessSource(Broker()))
    with pytest.raises(ConfigurationError, match="no handler"):
        await consumer.run(InProcessSource(Broker()), dsn="postgresql://nowhere")
