"""The public API as an application uses it: a type checker has nothing to say about this file."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bridges import (
    Backoff,
    Bridge,
    Message,
    Outcome,
    Pattern,
    Published,
    Reason,
    Rejected,
    Released,
    Retry,
    Route,
    Router,
    Security,
    Sink,
    Source,
)
from bridges.inprocess import Broker, DataclassCodec, Delivery, Functions, InProcessSink, InProcessSource, MemoryLog, Tenants, Topic
from bridges.jetstream import JetStream, JetStreamSink, JetStreamSource
from bridges.kafka import Kafka, KafkaSink, KafkaSource
from dedupe import Consumer, Handler, HandlerSink, first_time
from outbox import Draft, InvalidMessage, NoTransaction, Outbox
from outbox.source import OutboxSource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    import psycopg

outbox = Outbox(schema="outbox", max_payload=1024)
consumer = Consumer("billing", retry=Backoff(first=0.1, cap=1.0, max_attempts=3))


def pay(connection: psycopg.Connection, order: str) -> UUID:
    try:
        return outbox.put(connection, "orders.paid", {"order": order}, key=order, headers={"a": "b"}, deliver_at=datetime.now(UTC))
    except (InvalidMessage, NoTransaction) as problem:
        raise SystemExit(str(problem)) from problem


async def pay_many(connection: psycopg.AsyncConnection[Any], orders: Sequence[str]) -> list[UUID]:
    one: UUID = await outbox.aput(connection, "orders.paid", b"bytes", id="0190a5a0-0000-7000-8000-000000000001", priority=1)
    many: list[UUID] = await outbox.aput_many(connection, [Draft("orders.paid", {"order": order}, key=order) for order in orders])
    return [one, *many]


@consumer.handler("orders.*", "users.>")
async def bill(message: Message, connection: psycopg.AsyncConnection[Any]) -> None:
    order: str = message.payload.decode()
    await connection.execute("INSERT INTO invoices VALUES (%s, %s)", (message.id, order))


same: Handler = bill  # the decorator returns what it was given


class Printer:
    """A Sink of one's own needs no base class."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        return [self._judge(message) for message in messages]

    def _judge(self, message: Message) -> Outcome:
        if not message.payload:
            return Rejected(Reason.INVALID, "empty")
        if message.key is None:
            return Retry(Reason.REFUSED, after=1.0)
        return Published() if message.headers else Released(Reason.UNAVAILABLE)


def reasons(outcomes: Sequence[Outcome]) -> list[Reason]:
    return [outcome.reason for outcome in outcomes if not isinstance(outcome, Published)]


async def run(dsn: str) -> None:
    broker, nats, kafka = Broker(), JetStream(["127.0.0.1:4222"], security=Security(user="u", password="p")), Kafka(["127.0.0.1:9092"])
    sinks: list[Sink] = [Printer(), InProcessSink(broker), JetStreamSink(nats, stream="EVENTS"), KafkaSink(kafka, topic="shop-{topic}")]
    router: Sink = Router([Route(Pattern("orders.>"), sink) for sink in sinks])
    pump: Source = OutboxSource(dsn)
    sources: list[Source] = [
        InProcessSource(broker, "orders.>", group="billing"),
        JetStreamSource(nats, stream="EVENTS", durable="billing"),
        KafkaSource(kafka, group="billing", topics=["orders"]),
    ]
    bridge = Bridge(pump, router, batch=100, claims=2, outage=Backoff())
    async with asyncio.TaskGroup() as group:
        group.create_task(bridge.run())
        for source in sources:
            group.create_task(consumer.run(source, dsn=dsn))
    bridge.stop()


@dataclass
class OrderCreated:
    order: str
    amount: int = 0


ORDERS = Topic[OrderCreated]("orders.created", codec=DataclassCodec(OrderCreated))
WORDS = Topic[str]("words", codec=Functions(str.encode, bytes.decode, "text/plain"))


async def in_process(message: Message) -> tuple[int, str]:
    async with Broker(buffer=10) as broker:
        broker.keep("words", MemoryLog(max_messages=100))
        async with (
            ORDERS.subscribe(broker, group="billing", policy="drop_oldest", tenants=Tenants(rate=5.0)) as orders,
            WORDS.subscribe(broker, start="beginning") as words,
            broker.subscribe(">", policy="block", filter=lambda message: message.key is not None) as everything,
        ):
            await ORDERS.publish(broker, OrderCreated("o-1"), key="o-1", ttl=5.0, deliver_at=datetime.now(UTC))
            sent: list[Delivery] = await broker.publish_and_wait(message, 5.0, until="acknowledged")
            answer: Message = await broker.request(message, timeout=1.0)
            async for delivery in everything:
                await delivery.reply(answer.payload)
                delivery.nack(1.0)
            async for received in orders:
                amount: int = received.value.amount
                received.delivery.ack()
                async for word in words:
                    text: str = word.value
                    return amount + len(sent) + broker.figures().topics["words"].published, text
    return 0, ""


async def by_hand(connection: psycopg.AsyncConnection[Any], message: Message) -> bool:
    new: set[UUID] = await first_time(connection, "billing", [message.id])
    return message.id in new


__all__ = ["HandlerSink", "by_hand", "in_process", "pay", "pay_many", "reasons", "run", "same"]
