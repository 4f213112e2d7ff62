"""From a sink's configuration to its Sink, its Source, and what is wrong with its settings. The next broker is one more `Broker` here.

Clients are imported by the broker that needs them, so that an installation without Kafka's does without it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from prometheus_client import REGISTRY, CollectorRegistry

from bridges.errors import ConfigurationError
from bridges.topics import Destination, overlap
from outbox.daemon.config import InProcessSection, JetStreamSection, KafkaSection
from outbox.sink import RestoredSink

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AsyncExitStack
    from datetime import timedelta

    from bridges.message import Message
    from bridges.ports import Sink, Source
    from outbox.daemon.config import RouteSection
    from outbox.daemon.crossings import BridgeSection


class Broker(Protocol):
    """One of ``[sinks]``, connected to when it is used."""

    def sink(self, destination: str, *, ordered: bool = True) -> Sink:
        """Return a Sink for a route, whose topics are called ``destination`` there, and which keeps the order of keys or need not."""

    def source(self, consumer: str, patterns: Sequence[str], routes: Sequence[RouteSection], topics: Sequence[str] | None) -> Source:
        """Return a Source for a consumer: of ``topics`` in the broker's names, or of what its handlers' patterns and the routes say."""

    def source_of_bridge(self, bridge: BridgeSection, routes: Sequence[RouteSection], count_drop: Callable[[], object]) -> Source:
        """Return a Source for a bridge, likewise. ``count_drop`` is called for each message that it drops, if that is what it is to do."""

    async def problems(self, routes: Sequence[RouteSection]) -> list[str]:
        """Return, in plain words, what is wrong with the broker's settings; nothing if all is well. Does not raise for trouble."""

    async def risks(self, routes: Sequence[RouteSection], consumed: Sequence[str], keep: timedelta | None) -> list[tuple[str, str]]:
        """Return how the broker's settings could lose a message or repeat an effect, each with what to do. Does not raise for trouble.

        ``consumed`` is in the broker's names; ``keep`` is how long consumers remember what they have processed, None for ever.
        """


def make_broker(section: JetStreamSection | KafkaSection | InProcessSection, stack: AsyncExitStack) -> Broker:
    """Return the broker that is configured; its connection is closed by ``stack``. Raises `ConfigurationError`."""
    try:
        match section:
            case JetStreamSection():
                return _JetStreamBroker(section, stack)
            case KafkaSection():
                return _KafkaBroker(section, stack)
            case InProcessSection():
                return _InProcessBroker(section, stack)
    except ModuleNotFoundError as problem:
        extra = {"jetstream": "nats"}.get(section.kind, section.kind)
        msg = f"kind: {section.kind!r} needs a client that is not installed ({problem.name}): pip install 'outboxd[{extra}]'"
        raise ConfigurationError(msg) from problem


def expose_embedded(brokers: Mapping[str, Broker], registry: CollectorRegistry = REGISTRY) -> None:
    """Have the figures of the brokers that live in this process scraped, each by its name in ``[sinks]``. Once for a registry."""
    embedded = {name: broker.embedded for name, broker in brokers.items() if isinstance(broker, _InProcessBroker)}
    if embedded:
        from bridges.inprocess.metrics import BrokerMetrics

        BrokerMetrics(embedded, registry)


class _JetStreamBroker:
    def __init__(self, section: JetStreamSection, stack: AsyncExitStack) -> None:
        from bridges.jetstream import JetStream

        self._section = section
        self._connection = JetStream(section.servers, security=section.security())
        stack.push_async_callback(self._connection.close)
        self._stack = stack

    def sink(self, destination: str, *, ordered: bool = True) -> Sink:
        from bridges.jetstream import JetStreamSink

        sink = JetStreamSink(
            self._connection, stream=self._section.stream, subject=destination, timeout=self._section.timeout, ordered=ordered
        )
        return RestoredSink(sink)

    def source(self, consumer: str, patterns: Sequence[str], routes: Sequence[RouteSection], topics: Sequence[str] | None) -> Source:
        from bridges.jetstream import JetStream, JetStreamSource

        # A connection of its own: one that a missed deadline of the sink throws away would take the claims with it.
        connection = JetStream(self._section.servers, security=self._section.security(), name=f"outboxd consumer {consumer}")
        self._stack.push_async_callback(connection.close)
        subjects = list(topics or destinations(patterns, routes))
        if any(overlap(one, other) for place, one in enumerate(subjects) for other in subjects[:place]):
            subjects = []  # JetStream refuses filters that overlap; the whole stream, then, and the consumer skips what is not its own
        source = JetStreamSource(connection, stream=self._section.stream, durable=consumer, subjects=subjects)
        self._stack.push_async_callback(source.close)
        return source

    def source_of_bridge(self, bridge: BridgeSection, routes: Sequence[RouteSection], count_drop: Callable[[], object]) -> Source:
        return self.source(bridge.consumer, [bridge.takes], routes, bridge.topics)

    async def problems(self, routes: Sequence[RouteSection]) -> list[str]:
        from bridges.jetstream.settings import problems

        return await problems(self._connection, self._section.stream, destinations([route.topics for route in routes], routes))

    async def risks(self, routes: Sequence[RouteSection], consumed: Sequence[str], keep: timedelta | None) -> list[tuple[str, str]]:
        from bridges.jetstream.settings import risks

        return await risks(self._connection, self._section.stream, published=bool(routes), consumed=bool(consumed), keep=keep)


class _KafkaBroker:
    def __init__(self, section: KafkaSection, stack: AsyncExitStack) -> None:
        from bridges.kafka import Kafka

        self._section = section
        self._connection = Kafka(
            section.servers, security=section.security(), idempotence=section.idempotence, compression=section.compression
        )
        stack.push_async_callback(self._connection.close)
        self._stack = stack

    def sink(self, destination: str, *, ordered: bool = True) -> Sink:
        from bridges.kafka import KafkaSink

        return RestoredSink(KafkaSink(self._connection, topic=destination, timeout=self._section.timeout, ordered=ordered))

    def source(self, consumer: str, patterns: Sequence[str], routes: Sequence[RouteSection], topics: Sequence[str] | None) -> Source:
        from bridges.kafka import KafkaSource

        names = list(topics or destinations(patterns, routes))
        if any("*" in name or ">" in name for name in names):
            source = KafkaSource(self._connection, group=consumer, pattern="|".join(map(_as_regex, names)))
        else:
            source = KafkaSource(self._connection, group=consumer, topics=names)
        self._stack.push_async_callback(source.close)
        return source

    def source_of_bridge(self, bridge: BridgeSection, routes: Sequence[RouteSection], count_drop: Callable[[], object]) -> Source:
        return self.source(bridge.consumer, [bridge.takes], routes, bridge.topics)

    async def problems(self, routes: Sequence[RouteSection]) -> list[str]:
        from bridges.kafka.settings import problems

        names = [name for name in destinations([route.topics for route in routes], routes) if "*" not in name and ">" not in name]
        return await problems(self._connection, names)

    async def risks(self, routes: Sequence[RouteSection], consumed: Sequence[str], keep: timedelta | None) -> list[tuple[str, str]]:
        from bridges.kafka.settings import risks

        published = destinations([route.topics for route in routes], routes)
        return await risks(
            self._connection, published="|".join(map(_as_regex, published)), consumed="|".join(map(_as_regex, consumed)), keep=keep
        )


class _InProcessBroker:
    def __init__(self, section: InProcessSection, stack: AsyncExitStack) -> None:
        from bridges.inprocess import Broker as Embedded

        self._section = section
        self.embedded = Embedded(buffer=section.buffer)
        stack.callback(self.embedded.close)

    def sink(self, destination: str, *, ordered: bool = True) -> Sink:
        from bridges.inprocess import InProcessSink

        assert destination == "{topic}", "the configuration allows no other name"
        sink = InProcessSink(self.embedded, timeout=self._section.timeout, drop_unheard=self._section.drop_unheard, ordered=ordered)
        return RestoredSink(sink)

    def source(self, consumer: str, patterns: Sequence[str], routes: Sequence[RouteSection], topics: Sequence[str] | None) -> Source:
        from bridges.inprocess import InProcessSource

        return InProcessSource(self.embedded, *(topics or patterns), group=consumer)

    def source_of_bridge(self, bridge: BridgeSection, routes: Sequence[RouteSection], count_drop: Callable[[], object]) -> Source:
        from bridges.inprocess import Drop, InProcessSource

        def dropped(_: Message, why: Drop) -> None:
            if why is Drop.SHED:
                count_drop()

        return InProcessSource(
            self.embedded,
            *(bridge.topics or [bridge.takes]),
            group=bridge.consumer,
            buffer=bridge.buffer or self._section.buffer,
            policy="shed" if bridge.when_full == "drop" else "block",
            on_drop=dropped,
        )

    async def problems(self, routes: Sequence[RouteSection]) -> list[str]:
        return []

    async def risks(self, routes: Sequence[RouteSection], consumed: Sequence[str], keep: timedelta | None) -> list[tuple[str, str]]:
        return []


def destinations(patterns: Sequence[str], routes: Sequence[RouteSection]) -> list[str]:
    """Return the broker's names for the topics that both a pattern and a route stand for, as patterns, without repetition."""
    names = [Destination(route.destination).of(pattern) for route in routes for pattern in patterns if overlap(pattern, route.topics)]
    return list(dict.fromkeys(names or patterns))


def _as_regex(name: str) -> str:
    tokens = {"*": r"[^.]+", ">": r".+"}
    return "".join(tokens.get(part, re.escape(part)) for part in re.split(r"([*>])", name))
