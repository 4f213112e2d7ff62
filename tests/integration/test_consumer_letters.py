"""A consumer's dead letter, handed back: its handler runs again, and no other consumer's does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from bridges.backoff import Backoff
from bridges.jetstream import JetStream, JetStreamSink, JetStreamSource
from bridges.message import Message, uuid7
from bridges.ports import PUBLISHED
from dedupe import Consumer
from outbox.daemon.consumer_letters import list_consumer_dead, requeue_consumer_dead
from outbox.selection import Selection
from tests.engines.deadline import eventually

if TYPE_CHECKING:
    import psycopg

    from tests.conftest import Stream


async def test_a_letter_handed_back_is_handled_again_by_its_consumer_alone(
    database: str, connection: psycopg.AsyncConnection[Any], stream: Stream
) -> None:
    healed = False
    effects: list[str] = []

    def make(name: str) -> Consumer:
        consumer = Consumer(name, dsn=database, retry=Backoff(first=0.01, cap=0.01, max_attempts=1))

        @consumer.handler("orders.>")
        async def handle(message: Message, connection: psycopg.AsyncConnection[Any]) -> None:
            if name == "shop" and not healed:
                raise ValueError(name)
            effects.append(name)

        return consumer

    async def both_are_done() -> bool:
        cursor = await connection.execute("SELECT count(*) FROM dedupe.processed WHERE consumer IN ('shop', 'billing')")
        return await cursor.fetchone() == (2,)

    async def both_have_acknowledged() -> bool:
        client = await jetstream.client()
        states = [await client.jetstream().consumer_info(stream.name, consumer.name) for consumer in consumers]
        return all(state.ack_floor and state.ack_floor.stream_seq == 2 for state in states)

    async with JetStream([stream.url]) as jetstream:
        sink = JetStreamSink(jetstream, stream=stream.name, subject=stream.subject)
        consumers = [make("shop"), make("billing")]
        sources = [JetStreamSource(jetstream, stream=stream.name, durable=consumer.name) for consumer in consumers]
        running = [asyncio.create_task(consumer.run(source)) for consumer, source in zip(consumers, sources, strict=True)]
        message = Message(uuid7(), "orders.created", b"", key="k")
        assert await sink.publish([message]) == [PUBLISHED]
        await eventually(both_are_done)
        (letter,) = await list_consumer_dead(connection, "shop", Selection())
        assert (letter.id, letter.attempts, letter.error) == (message.id, 1, "ValueError: shop")

        healed = True
        done = await requeue_consumer_dead(connection, "shop", Selection(key="k"), sink)
        assert (done.sent, done.kept) == ([message.id], {})
        await eventually(both_are_done)
        await eventually(both_have_acknowledged)
        assert sorted(effects) == ["billing", "shop"]
        assert await list_consumer_dead(connection, "shop", Selection()) == []
        for consumer in consumers:
            consumer.stop()
        await asyncio.gather(*running)
        for source in sources:
            await source.close()
