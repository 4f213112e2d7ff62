"""KafkaSink at topics of its own on a private Kafka."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from bridges.kafka import Kafka, KafkaSink
from tests.contracts.messages import message
from tests.contracts.outages import Outages
from tests.contracts.wire import from_kafka
from tests.engines.deadline import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from bridges.message import Message
    from bridges.ports import Sink
    from outbox.demo.engines import PrivateKafka

LIMIT = 300_000
TIMEOUT = 2.0
PARTITIONS = 3


class KafkaSinkHarness:
    topics = ("orders.created", "orders.paid")
    answers_within = TIMEOUT + 3.0  # a producer that is thrown away takes two seconds
    cancelled_within = 3.0
    outage = frozenset[str]()

    def __init__(self, engine: PrivateKafka, connection: Kafka) -> None:
        self.prefix = f"sink-{secrets.token_hex(6)}"
        self._servers = engine.servers[0]
        self._connection = connection
        self._outages = Outages(engine)
        self.sink: Sink = KafkaSink(connection, topic=f"{self.prefix}.{{topic}}", timeout=TIMEOUT)
        self.go_away, self.come_back = self._outages.go_away, self._outages.come_back
        self.freeze, self.thaw = self._outages.freeze, self._outages.thaw
        self.undo = self._outages.undo

    async def make(self, prefix: str) -> None:
        for topic in self.topics:
            await made(self._servers, f"{prefix}.{topic}", {"max.message.bytes": str(LIMIT)})

    async def stored(self) -> list[Message]:
        return await read_all(self._servers, [f"{self.prefix}.{topic}" for topic in self.topics])

    def too_large(self) -> list[Message]:
        """Over the topic's limit, over ours for a batch, and over the topic's only with its headers."""
        return [message(self.topics[0], size=size) for size in (LIMIT + 1, 2_000_000, LIMIT - 20)]

    def invalid(self) -> list[Message]:
        """What cannot be a part of a topic's name in Kafka."""
        return [message(topic) for topic in ("orders/created", "bestellungen.größe", "with blank", "x" * 250)]

    def unordered(self) -> Sink:
        return KafkaSink(self._connection, topic=f"{self.prefix}.{{topic}}", timeout=TIMEOUT, ordered=False)

    def without_destination(self) -> Sink:
        return KafkaSink(self._connection, topic=f"{self.prefix}-missing.{{topic}}", timeout=TIMEOUT)

    async def make_destination(self) -> None:
        await self.make(f"{self.prefix}-missing")


async def made(servers: str, name: str, configuration: Mapping[str, str] | None = None) -> None:
    """Make a topic, also on a broker that is still starting, and return when all of it has a leader."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)

    async def started() -> bool:
        with suppress(KafkaError, OSError):
            await admin.start()
            return True
        return False

    async def there() -> bool:
        # AttributeError: aiokafka's admin asks a controller that it does not know yet.
        with suppress(KafkaError, OSError, AttributeError):
            await admin.create_topics([NewTopic(name, PARTITIONS, 1, topic_configs=dict(configuration or {}))])
        with suppress(KafkaError, OSError):
            [topic] = await admin.describe_topics([name])
            led = [part for part in topic["partitions"] if part["error_code"] == 0 and part["leader"] >= 0]
            return len(led) == PARTITIONS
        return False

    try:
        await eventually(started, within=30, what="an admin client")
        await eventually(there, within=30, what=f"the topic {name}")
    finally:
        await admin.close()


async def read_all(servers: str, topics: list[str]) -> list[Message]:
    """Everything in the topics up to their ends, by a consumer without a group."""
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        places = [TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        found: list[Message] = []
        while any([await consumer.position(place) < end for place, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += [from_kafka(list(record.headers), record.key, record.value) for record in records]
        return found
    finally:
        await consumer.stop()


@asynccontextmanager
async def kafka_sink(engine: PrivateKafka) -> AsyncIterator[KafkaSinkHarness]:
    async with Kafka(engine.servers, connect_timeout=TIMEOUT) as connection:
        harness = KafkaSinkHarness(engine, connection)
        await harness.make(harness.prefix)
        try:
            yield harness
        finally:
            await harness.undo()
