"""What the suite needs of each broker: a server of its own behind a proxy, the daemons' configuration, and the broker's own log."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import unquote
from uuid import UUID

import nats
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

from tests.conftest import make_topic
from tests.faults.application import NOTE, digest
from tests.faults.history import Copy

if TYPE_CHECKING:
    from pathlib import Path

    from outbox.demo.engines import Engine, PrivateKafka, PrivateNats
    from tests.faults.proxy import Proxy

CONSUMER: Final = '[[consumers]]\napp = "tests.faults.application:consumer"\n'
_ROUTE: Final = '[[routes]]\ntopics = "orders.>"\nsink = "events"\n'
_PARTITIONS: Final = 4
_STAMPED: Final = {"message.timestamp.type": "LogAppendTime"}
"""Of a topic in Kafka: else it is the producer that says when something was stored."""


class Broker(Protocol):
    """A broker of a run."""

    @property
    def kind(self) -> str:
        """One of `tests.faults.fleet.SINKS`."""

    @property
    def server(self) -> Engine | None:
        """Its process; None for the broker in the daemon."""

    @property
    def way(self) -> Proxy | None:
        """What the daemons reach it through."""

    @property
    def version(self) -> str:
        """Name and version, for people."""

    def pump(self) -> str:
        """Return the configuration of a pump, without what is the same for all."""

    def others(self) -> dict[str, str]:
        """Return those of the daemons beside the pumps: ``consumer``, unless the pumps consume, and ``bridge``."""

    async def copies(self) -> list[Copy]:
        """Read the broker's own log."""

    async def limit(self, size: int | None) -> None:
        """Lower the limit of a message's size to so many bytes; None: what it was."""


class InProcess:
    """The broker in the pump's process: each pump has one, and the consumer in it. What was delivered is its log."""

    kind = "inprocess"
    server = None
    way = None
    version = "in process"

    def __init__(self, deliveries: Path) -> None:
        self._deliveries = deliveries

    def pump(self) -> str:
        return f'[sinks.events]\nkind = "inprocess"\ntimeout = 2\n{_ROUTE}{CONSUMER}'

    def others(self) -> dict[str, str]:
        return {}

    async def copies(self) -> list[Copy]:
        if not self._deliveries.exists():
            return []
        lines = [json.loads(line) for line in self._deliveries.read_text().splitlines() if line.endswith("]")]
        return [Copy("deliveries", place, UUID(identity), key, its, at) for place, (identity, key, its, at) in enumerate(lines)]

    async def limit(self, size: int | None) -> None:
        """It has none."""


class JetStream:
    """A nats-server with one stream, which is made before anybody writes to it."""

    kind: str = "jetstream"
    stream: Final = "EVENTS"

    def __init__(self, server: PrivateNats, way: Proxy) -> None:
        self.server: Engine = server
        self.way = way
        self.version = server.version
        self.before: list[Copy] = []
        """Of streams that are no more."""

    def pump(self) -> str:
        return f"{self._sink()}{_ROUTE}"

    def others(self) -> dict[str, str]:
        return {"consumer": f"{self._sink()}{CONSUMER}"}

    def _sink(self) -> str:
        server = f"nats://127.0.0.1:{self.way.port}"
        return f'[sinks.events]\nkind = "jetstream"\nservers = ["{server}"]\nstream = "{self.stream}"\ntimeout = 2\n'

    async def make(self) -> None:
        """Make the stream; atomic batches are allowed in it, as a user would have it."""
        client = await nats.connect(self.server.servers[0])
        configuration = StreamConfig(name=self.stream, subjects=["orders.>"], allow_atomic=True)
        await client.jetstream().add_stream(configuration)
        await client.close()

    async def copies(self) -> list[Copy]:
        return [*self.before, *await self._stored()]

    async def _stored(self) -> list[Copy]:
        client = await nats.connect(self.server.servers[0])
        try:
            context = client.jetstream()
            wanted = (await context.stream_info(self.stream)).state.messages
            reader = await context.pull_subscribe("", stream=self.stream, config=ConsumerConfig(ack_policy=AckPolicy.NONE))
            found: list[Copy] = []
            while len(found) < wanted:
                for each in await reader.fetch(min(1000, wanted - len(found)), timeout=30):
                    headers = each.headers or {}
                    # As if it were one log: nothing is stored between the one stream's end and the other's beginning.
                    place, stored = len(self.before) + each.metadata.sequence.stream, each.metadata.timestamp.timestamp()
                    its = digest(each.subject, each.data, unquote(headers[NOTE]) if NOTE in headers else None)
                    found.append(Copy(self.stream, place, UUID(headers["outbox-id"]), headers.get("outbox-key"), its, stored))
            await reader.unsubscribe()
            return found
        finally:
            await client.close()

    async def delete(self) -> None:
        """Delete the stream; what was in it is remembered here."""
        self.before += await self._stored()
        client = await nats.connect(self.server.servers[0])
        await client.jetstream().delete_stream(self.stream)
        await client.close()

    async def limit(self, size: int | None) -> None:
        client = await nats.connect(self.server.servers[0])
        context = client.jetstream()
        configuration = (await context.stream_info(self.stream)).config
        await context.update_stream(configuration.evolve(max_msg_size=-1 if size is None else size))
        await client.close()


class Bridged(JetStream):
    """JetStream, and behind it a bridge to a broker in its process, where the consumer is."""

    kind: str = "bridged"

    def others(self) -> dict[str, str]:
        bridge = '[sinks.local]\nkind = "inprocess"\ntimeout = 2\n[[bridges]]\nname = "over"\nsource = "events"\nsink = "local"\n'
        return {"bridge": f'{self._sink()}{bridge}{CONSUMER}source = "local"\n'}


class Kafka:
    """A node of Kafka that advertises the proxy. One topic takes all of the application's, so that a key is in one partition."""

    kind = "kafka"
    topic: Final = "orders"

    def __init__(self, server: PrivateKafka, way: Proxy) -> None:
        self.server: Engine = server
        self.way = way
        self.version = server.version

    def pump(self) -> str:
        return f'{self._sink()}{_ROUTE}topic = "{self.topic}"\n'

    def others(self) -> dict[str, str]:
        return {"consumer": f'{self._sink()}{CONSUMER}topics = ["{self.topic}"]\n'}

    def _sink(self) -> str:
        return f'[sinks.events]\nkind = "kafka"\nservers = ["127.0.0.1:{self.way.port}"]\ntimeout = 2\n'

    async def make(self) -> None:
        """Make the topic."""
        await make_topic(f"127.0.0.1:{self.way.port}", self.topic, partitions=_PARTITIONS, **_STAMPED)

    async def copies(self) -> list[Copy]:
        reader = AIOKafkaConsumer(bootstrap_servers=f"127.0.0.1:{self.way.port}", enable_auto_commit=False, auto_offset_reset="earliest")
        await reader.start()
        try:
            places = [TopicPartition(self.topic, number) for number in range(_PARTITIONS)]
            reader.assign(places)
            ends = await reader.end_offsets(places)
            found: list[Copy] = []
            while any([await reader.position(place) < end for place, end in ends.items()]):
                for place, records in (await reader.getmany(timeout_ms=200)).items():
                    for record in records:
                        headers = {name: value.decode() for name, value in record.headers}
                        identity, its = UUID(headers["outbox-id"]), digest(headers.get("outbox-topic", ""), record.value, headers.get(NOTE))
                        key = None if record.key is None else record.key.decode()
                        log, stored = f"{place.topic} {place.partition}", record.timestamp / 1000
                        found.append(Copy(log, record.offset, identity, key, its, stored))
            return found
        finally:
            await reader.stop()

    async def limit(self, size: int | None) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{self.way.port}")
        await admin.start()
        try:
            value = str(1024 * 1024 if size is None else size)
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, self.topic, {"max.message.bytes": value, **_STAMPED})])
        finally:
            await admin.close()
