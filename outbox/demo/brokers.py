"""What lies between the pump and the consumer in the demo: the broker, and the daemons' configuration for it."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Final, Protocol

from bridges.errors import ConfigurationError
from bridges.ports import PUBLISHED
from outbox.demo import bank
from outbox.demo.engines import PrivateKafka, PrivateNats
from outbox.demo.ledger import Audit

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from uuid import UUID

    from bridges.ports import Source

_READ_DEADLINE: Final = 60
_CONSUMER: Final = '[[consumers]]\napp = "outbox.demo.ledger:consumer"\n'


class DemoBroker(Protocol):
    """One way from the pump to the consumer."""

    @property
    def version(self) -> str | None:
        """Name and version of the server, if there is one."""

    @property
    def has_log(self) -> bool:
        """Whether the broker keeps what was published, in its order."""

    def configurations(self) -> dict[str, str]:
        """Return the TOML of each daemon to run, by name."""

    async def read_log(self, dsn: str, count: int) -> None:
        """Write down ``count`` different messages of the broker's own log, in its order."""


def make_demo_broker(via: str, servers: str | None, stack: ExitStack) -> DemoBroker:
    """Return the broker, started if need be and set up. Raises `ConfigurationError`."""
    makers: dict[str, Callable[[], DemoBroker]] = {
        "inprocess": _InProcess,
        "nats": lambda: _Nats(servers, stack),
        "kafka": lambda: _Kafka(servers, stack),
    }
    if via not in makers:
        msg = f"via: {via!r} is not one of {', '.join(makers)}"
        raise ConfigurationError(msg)
    return makers[via]()


class _InProcess:
    version = None
    has_log = False

    def configurations(self) -> dict[str, str]:
        pump = '[sinks.demo]\nkind = "inprocess"\n[[routes]]\ntopics = "bank.>"\nsink = "demo"\n'
        return {"pump and consumer": pump + _CONSUMER}

    async def read_log(self, dsn: str, count: int) -> None:
        """There is none."""


class _Nats:
    has_log = True

    def __init__(self, servers: str | None, stack: ExitStack) -> None:
        engine = None if servers else stack.enter_context(PrivateNats())
        self.version = engine.version if engine else f"NATS at {servers}"
        self._servers = engine.servers if engine else str(servers).split(",")
        self._prefix = f"outboxd-demo-{secrets.token_hex(4)}"
        asyncio.run(self._make_stream())

    def configurations(self) -> dict[str, str]:
        sink = f'[sinks.demo]\nkind = "jetstream"\nservers = {self._servers}\nstream = "{self._prefix}"\n'
        route = f'[[routes]]\ntopics = "bank.>"\nsink = "demo"\nsubject = "{self._prefix}.{{topic}}"\n'
        # The consumer takes the whole of the demo's stream: it knows no route.
        consumer = f'{_CONSUMER}topics = ["{self._prefix}.>"]\n'
        return {"pump": sink + route, "consumer": sink + consumer}

    async def read_log(self, dsn: str, count: int) -> None:
        from bridges.jetstream import JetStream, JetStreamSource
        from bridges.jetstream.settings import delete_stream

        async with JetStream(self._servers) as connection:
            await _read(JetStreamSource(connection, stream=self._prefix, durable="auditor"), dsn, count)
            await delete_stream(connection, self._prefix)

    async def _make_stream(self) -> None:
        from bridges.jetstream import JetStream
        from bridges.jetstream.settings import make_stream

        async with JetStream(self._servers) as connection:
            await make_stream(connection, self._prefix, [f"{self._prefix}.>"])


class _Kafka:
    has_log = True

    def __init__(self, servers: str | None, stack: ExitStack) -> None:
        engine = None if servers else stack.enter_context(PrivateKafka())
        self.version = engine.version if engine else f"Kafka at {servers}"
        self._servers = engine.servers if engine else str(servers).split(",")
        self._topic = f"outboxd-demo-{secrets.token_hex(4)}"
        asyncio.run(self._make_topic())

    def configurations(self) -> dict[str, str]:
        sink = f'[sinks.demo]\nkind = "kafka"\nservers = {self._servers}\n'
        route = f'[[routes]]\ntopics = "bank.>"\nsink = "demo"\ntopic = "{self._topic}"\n'
        consumer = f'{_CONSUMER}topics = ["{self._topic}"]\n'
        return {"pump": sink + route, "consumer": sink + consumer}

    async def read_log(self, dsn: str, count: int) -> None:
        from bridges.kafka import Kafka, KafkaSource

        source = KafkaSource(Kafka(self._servers), group=f"{self._topic}-auditor", topics=[self._topic])
        try:
            await _read(source, dsn, count)
        finally:
            await source.close()

    async def _make_topic(self) -> None:
        from bridges.kafka import Kafka
        from bridges.kafka.settings import make_topic

        await make_topic(Kafka(self._servers), self._topic, partitions=4)


async def _read(source: Source, dsn: str, count: int) -> None:
    """Read the log from its beginning until ``count`` different messages were seen, or nothing more comes for a while."""
    auditor = Audit(dsn, bank.NOTE_LOG)
    seen: set[UUID] = set()
    try:
        async with asyncio.timeout(_READ_DEADLINE):
            while len(seen) < count:
                async with source.claim(1000) as batch:
                    if batch.messages:
                        await auditor.publish(batch.messages)
                        seen.update(message.id for message in batch.messages)
                        await batch.settle([PUBLISHED] * len(batch.messages))
    except TimeoutError:
        pass  # what is not in the log is what the comparison will show
