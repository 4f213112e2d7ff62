"""JetStreamSink at a stream of its own on a private nats-server."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import nats
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

from bridges.jetstream import JetStream, JetStreamSink
from tests.contracts.messages import message
from tests.contracts.outages import Outages
from tests.contracts.wire import from_nats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nats.js.client import JetStreamContext

    from bridges.message import Message
    from bridges.ports import Sink
    from outbox.demo.engines import PrivateNats

LIMIT = 300_000
TIMEOUT = 1.0


class JetStreamSinkHarness:
    answers_within = 3 * TIMEOUT + 2.0  # the time to connect comes on top
    cancelled_within = 3.0
    outage = frozenset[str]()

    def __init__(self, engine: PrivateNats, connection: JetStream, topics: Sequence[str], *, allow_atomic: bool) -> None:
        self.topics = topics
        self._allow_atomic = allow_atomic
        self.stream = f"sink-{secrets.token_hex(6)}"
        self._url = engine.servers[0]
        self._connection = connection
        self._outages = Outages(engine)
        self.sink: Sink = JetStreamSink(connection, stream=self.stream, subject=f"{self.stream}.{{topic}}", timeout=TIMEOUT)
        self.go_away, self.come_back = self._outages.go_away, self._outages.come_back
        self.freeze, self.thaw = self._outages.freeze, self._outages.thaw

    async def make(self, stream: str) -> None:
        async with connected(self._url) as jetstream:
            config = StreamConfig(name=stream, subjects=[f"{stream}.>"], max_msg_size=LIMIT, allow_atomic=self._allow_atomic or None)
            await jetstream.add_stream(config)

    async def stored(self) -> list[Message]:
        async with connected(self._url) as jetstream:
            expected = (await jetstream.stream_info(self.stream)).state.messages
            config = ConsumerConfig(ack_policy=AckPolicy.NONE)
            reader = await jetstream.pull_subscribe("", stream=self.stream, config=config)
            found: list[Message] = []
            while len(found) < expected:
                found += [from_nats(each.headers or {}, each.data) for each in await reader.fetch(500, timeout=5)]
            return found

    def too_large(self) -> list[Message]:
        """Over the stream's limit, over the server's, and over the server's only with its headers."""
        return [message(self.topics[0], size=size) for size in (LIMIT + 1, 2_000_000, 1_048_576 - 20)]

    def invalid(self) -> list[Message]:
        """What would be another subject, many subjects, no subject, or a command of its own."""
        return [message(topic) for topic in ("with blank", "wild.*", "empty..token", "two\r\nPUB lines 0\r\n\r\n")]

    def unordered(self) -> Sink:
        return JetStreamSink(self._connection, stream=self.stream, subject=f"{self.stream}.{{topic}}", timeout=TIMEOUT, ordered=False)

    def without_destination(self) -> Sink:
        name = f"{self.stream}-missing"
        return JetStreamSink(self._connection, stream=name, subject=f"{name}.{{topic}}", timeout=TIMEOUT)

    async def make_destination(self) -> None:
        await self.make(f"{self.stream}-missing")

    async def undo(self) -> None:
        await self._outages.undo()
        async with connected(self._url) as jetstream:
            for info in await jetstream.streams_info():
                await jetstream.delete_stream(str(info.config.name))


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(url)
    try:
        yield client.jetstream()
    finally:
        await client.close()


@asynccontextmanager
async def jetstream_sink(
    engine: PrivateNats, topics: Sequence[str] = ("orders.created", "orders.paid"), *, allow_atomic: bool = False
) -> AsyncIterator[JetStreamSinkHarness]:
    async with JetStream(engine.servers, connect_timeout=TIMEOUT) as connection:
        harness = JetStreamSinkHarness(engine, connection, topics, allow_atomic=allow_atomic)
        await harness.make(harness.stream)
        try:
            yield harness
        finally:
            await harness.undo()
