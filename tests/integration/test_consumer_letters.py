"""A consumer's dead letter, handed back: its handler runs again, and no other consumer's does."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from psycopg_pool import AsyncConnectionPool

from bridges.backoff import Backoff
from bridges.jetstream import JetStream, JetStreamSink, JetStreamSource
from bridges.message import Message, uuid7
from bridges.ports import PUBLISHED, Outcome, Published, Reason, Retry
from dedupe import Consumer, HandlerSink
from dedupe.retention import keep_processed
from migrations.partitions import database_now
from migrations.schedule import milliseconds
from outbox.daemon.consumer_letters import list_consumer_dead, requeue_consumer_dead
from outbox.selection import Selection
from tests.engines.deadline import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.conftest import Stream

DAY = timedelta(days=1)


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


async def test_a_letter_that_was_set_aside_for_its_age_is_handled_once_when_it_is_handed_back(
    database: str, connection: psycopg.AsyncConnection[Any]
) -> None:
    """The operator decides, and that counts in the database: the copy has one effect, and a later one has none."""
    await connection.execute("CREATE TABLE effects (id uuid)")
    await keep_processed(connection, keep=30 * DAY)
    late = Message(UUID(int=milliseconds(await database_now(connection) - 40 * DAY) << 80 | 7 << 76 | 2 << 62), "t", b"")
    async with AsyncConnectionPool(database, min_size=1, max_size=4, open=False) as pool:
        consumer = HandlerSink(pool, apply, consumer="shop", retry=Backoff(first=0.01, cap=0.01, max_attempts=1))
        assert await consumer.publish([late]) == [PUBLISHED]
        assert await effects(connection) == []

        class Early:
            """Hands the copy to the consumer before the operator's transaction has committed."""

            handling: asyncio.Task[Sequence[Outcome]]

            async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
                self.handling = asyncio.create_task(consumer.publish(messages))
                await eventually(lambda: somebody_waits(connection))
                return [answer] * len(messages)

        sink = Early()
        answer: Outcome = Retry(Reason.TIMEOUT, "lost")
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as operator:
            assert (await requeue_consumer_dead(operator, "shop", Selection(), sink, everything=True)).sent == []
            assert await sink.handling == [Published(duplicate=True)]
            assert await effects(connection) == [], "what was not handed back for good is not handled"
            await connection.execute("DELETE FROM dedupe.processed")  # as when its day is dropped
            answer = PUBLISHED
            assert (await requeue_consumer_dead(operator, "shop", Selection(), sink, everything=True)).sent == [late.id]
        assert await sink.handling == [PUBLISHED]
        assert await effects(connection) == [late.id]
        assert await list_consumer_dead(connection, "shop", Selection()) == []
        await connection.execute("DELETE FROM dedupe.processed")
        assert await consumer.publish([late]) == [PUBLISHED]
        assert await effects(connection) == [late.id], "the leave was for once"


async def somebody_waits(connection: psycopg.AsyncConnection[Any]) -> bool:
    cursor = await connection.execute(
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return await cursor.fetchone() == (True,)


async def apply(message: Message, connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("INSERT INTO effects VALUES (%s)", (message.id,))


async def effects(connection: psycopg.AsyncConnection[Any]) -> list[UUID]:
    return [row[0] for row in await (await connection.execute("SELECT id FROM effects")).fetchall()]
