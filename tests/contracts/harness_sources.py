"""The four sources, fed by their engines' plain clients."""

from __future__ import annotations

import json
import secrets
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psycopg
from aiokafka import AIOKafkaProducer
from nats.js.api import StreamConfig

from bridges.inprocess import Broker, InProcessSource
from bridges.inprocess.cursors import DurableCursors
from bridges.inprocess.durable import DurableLog
from bridges.inprocess.keeping import LogSettings
from bridges.jetstream import JetStream, JetStreamSource
from bridges.kafka import Kafka, KafkaSource
from outbox.source import OutboxSource
from tests.contracts.harness_jetstream import connected
from tests.contracts.harness_kafka import made
from tests.contracts.outages import Outages
from tests.contracts.source import RETRY
from tests.contracts.wire import to_kafka, to_nats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from bridges.message import Message
    from bridges.ports import Source
    from outbox.demo.engines import Engine, PrivateKafka, PrivateNats
    from outbox.embedded import PrivatePostgres

LINGER = 0.2


class InProcessSourceHarness:
    topics = ("orders.created", "orders.paid")
    redelivers_within = 1.0

    def __init__(self) -> None:
        self._broker = Broker()
        self.source = InProcessSource(self._broker, retry=RETRY)

    async def feed(self, messages: Sequence[Message]) -> None:
        for each in messages:
            await self._broker.publish(each)

    async def go_away(self) -> None:
        self._broker.close()

    async def come_back(self) -> None:
        msg = "a broker in this process ends with it; that it does not come back is declared in test_sources.py"
        raise AssertionError(msg)

    async def made_again(self) -> Source:
        """The same: its place in the broker ends with it."""
        return self.source

    async def dead(self) -> dict[object, str]:
        return {letter.message.id: letter.reason for letter in self._broker.dead_letters.list()}


class DurableSourceHarness:
    """A durable name at a log on disk. Made again, everything is: broker, log and cursors."""

    topics = ("orders.created", "orders.paid")
    redelivers_within = 1.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.source: InProcessSource

    async def make(self) -> InProcessSource:
        self._broker = Broker()
        log = await DurableLog.open(self._folder / "log", LogSettings(fsync="never"))
        self._broker.keep("orders.>", log, await DurableCursors.open(self._folder / "cursors", fsync="never"))
        self.source = InProcessSource(self._broker, "orders.>", durable="contract", start="beginning", retry=RETRY)
        return self.source

    async def feed(self, messages: Sequence[Message]) -> None:
        for each in messages:
            await self._broker.publish(each)

    async def go_away(self) -> None:
        await self._broker.aclose()

    async def come_back(self) -> None:
        msg = "a broker in this process ends with it; a source does not come back, it is made again"
        raise AssertionError(msg)

    async def made_again(self) -> Source:
        await self.go_away()
        return await self.make()

    async def dead(self) -> dict[object, str]:
        return {letter.message.id: letter.reason for letter in self._broker.dead_letters.list()}


@asynccontextmanager
async def durable_source(folder: Path) -> AsyncIterator[DurableSourceHarness]:
    harness = DurableSourceHarness(folder)
    await harness.make()
    try:
        yield harness
    finally:
        await harness.go_away()


class _EngineHarness(ABC):
    """A source at an engine that can be killed, and made again by its own ``_make`` when ``_close`` is over."""

    topics = ("orders.created", "orders.paid")

    def __init__(self, engine: Engine | PrivatePostgres) -> None:
        self._outages = Outages(engine)
        self.go_away, self.come_back = self._outages.go_away, self._outages.come_back
        self.source: Source = self._make()

    async def made_again(self) -> Source:
        await self._close()
        return self._make()

    async def undo(self) -> None:
        await self._close()
        await self._outages.undo()

    @abstractmethod
    def _make(self) -> Source: ...

    @abstractmethod
    async def _close(self) -> None: ...


class JetStreamSourceHarness(_EngineHarness):
    redelivers_within = 4.0

    def __init__(self, engine: PrivateNats, connection: JetStream) -> None:
        self._url = engine.servers[0]
        self._connection = connection
        self._stream = f"source-{secrets.token_hex(6)}"
        super().__init__(engine)

    async def _close(self) -> None:
        await self._connection.close()

    def _make(self) -> Source:
        return JetStreamSource(
            self._connection, stream=self._stream, durable="contract", ack_wait=self.redelivers_within / 2, retry=RETRY, linger=LINGER
        )

    async def make(self) -> None:
        async with connected(self._url) as jetstream:
            await jetstream.add_stream(StreamConfig(name=self._stream, subjects=[f"{self._stream}.>"]))

    async def feed(self, messages: Sequence[Message]) -> None:
        async with connected(self._url) as jetstream:
            for each in messages:
                await jetstream.publish(f"{self._stream}.{each.topic}", each.payload, headers=to_nats(each))

    async def dead(self) -> None:
        return None

    async def undo(self) -> None:
        await super().undo()
        async with connected(self._url) as jetstream:
            await jetstream.delete_stream(self._stream)


class KafkaSourceHarness(_EngineHarness):
    redelivers_within = 15.0

    def __init__(self, engine: PrivateKafka, connection: Kafka) -> None:
        self._servers = engine.servers[0]
        self._connection = connection
        self._prefix = f"source-{secrets.token_hex(6)}"
        super().__init__(engine)

    async def _close(self) -> None:
        await self._inner.close()

    def _make(self) -> Source:
        names = [f"{self._prefix}.{topic}" for topic in self.topics]
        self._inner = KafkaSource(self._connection, group=self._prefix, topics=names, retry=RETRY, linger=LINGER)
        return self._inner

    async def make(self) -> None:
        for topic in self.topics:
            await made(self._servers, f"{self._prefix}.{topic}")

    async def feed(self, messages: Sequence[Message]) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self._servers, acks="all") as producer:
            for each in messages:
                key = None if each.key is None else each.key.encode()
                await producer.send_and_wait(f"{self._prefix}.{each.topic}", each.payload, key=key, headers=to_kafka(each))

    async def dead(self) -> None:
        return None


class OutboxSourceHarness(_EngineHarness):
    redelivers_within = 2.0

    def __init__(self, engine: PrivatePostgres) -> None:
        self._dsn = engine.dsn
        super().__init__(engine)

    async def _close(self) -> None:
        await self._inner.close()

    def _make(self) -> Source:
        self._inner = OutboxSource(self._dsn, retry=RETRY)
        return self._wrap(self._inner)

    def _wrap(self, source: OutboxSource) -> Source:
        return source

    async def feed(self, messages: Sequence[Message]) -> None:
        insert = """
            INSERT INTO outbox.messages (id, topic, key, payload, content_type, headers, created_at)
            VALUES (%s, %s, %s, %s, %s, %s::jsonb, coalesce(%s, clock_timestamp()))"""
        async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
            for each in messages:
                row = (each.id, each.topic, each.key, each.payload, each.content_type, json.dumps(dict(each.headers)), each.created_at)
                await connection.execute(insert, row)

    async def dead(self) -> dict[object, str]:
        async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
            return dict(await (await connection.execute("SELECT id, reason FROM outbox.dead")).fetchall())


@asynccontextmanager
async def jetstream_source(engine: PrivateNats) -> AsyncIterator[JetStreamSourceHarness]:
    async with JetStream(engine.servers, connect_timeout=1.0) as connection:
        harness = JetStreamSourceHarness(engine, connection)
        await harness.make()
        try:
            yield harness
        finally:
            await harness.undo()


@asynccontextmanager
async def kafka_source(engine: PrivateKafka) -> AsyncIterator[KafkaSourceHarness]:
    async with Kafka(engine.servers, connect_timeout=2.0) as connection:
        harness = KafkaSourceHarness(engine, connection)
        await harness.make()
        try:
            yield harness
        finally:
            await harness.undo()


@asynccontextmanager
async def outbox_source(engine: PrivatePostgres) -> AsyncIterator[OutboxSourceHarness]:
    harness = OutboxSourceHarness(engine)
    try:
        yield harness
    finally:
        await harness.undo()
