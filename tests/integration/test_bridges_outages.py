"""Bridges between brokers that are killed and restarted: nothing is lost, keys keep their order, traces and ids go through; duplicates are
counted."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import nats as client_library
import pytest
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

from bridges.backoff import Backoff
from bridges.bridge import Bridge
from bridges.envelope import RENAMED, VIA
from bridges.inprocess import Broker, InProcessSource
from bridges.jetstream import JetStream, JetStreamSink, JetStreamSource
from bridges.kafka import Kafka, KafkaSink, KafkaSource
from bridges.message import Message, uuid7
from bridges.ports import Published
from bridges.topics import Mapping
from outbox.bridged import Crossing, CrossingSink
from outbox.demo.engines import PrivateKafka, PrivateNats
from tests.contracts.harness_kafka import made, read_all
from tests.contracts.wire import from_nats
from tests.engines.daemons import Daemon
from tests.engines.deadline import eventually
from tests.engines.pumps import is_empty

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

    import psycopg

    from bridges.ports import Outcome, Sink, Source

log = logging.getLogger("tests.bridges")

NUMBER = 50_000
KEYS = 1_000
"""Fifty messages a key: enough to see an order, and a batch of a thousand is still few waves."""
SOON = Backoff(first=0.05, cap=0.5)


def traceparent(number: int) -> str:
    return f"00-{number + 1:032x}-{number + 1:016x}-01"


def numbered(topic: str) -> list[Message]:
    """Messages that say their number, each in a trace of its own."""
    now = datetime.now(UTC)
    return [
        Message(uuid7(), topic, b"%d" % n, f"key-{n % KEYS}", "text/plain", {"traceparent": traceparent(n)}, now) for n in range(NUMBER)
    ]


class Counted:
    """A sink that remembers what was published through it, and how often something was that the broker had already."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._ids: set[object] = set()
        self.duplicates = 0

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        outcomes = await self._sink.publish(messages)
        for each, outcome in zip(messages, outcomes, strict=True):
            if isinstance(outcome, Published):
                self.duplicates += outcome.duplicate or each.id in self._ids
                self._ids.add(each.id)
        return outcomes

    @property
    def published(self) -> int:
        """How many different ones."""
        return len(self._ids)

    async def reaches(self, number: int, within: float = 60.0) -> None:
        async def so_many() -> bool:
            return self.published >= number

        await eventually(so_many, within=within, what=f"{number} published")


@asynccontextmanager
async def bridging(source: Source, sink: Sink, name: str, mapping: str | None = None) -> AsyncIterator[None]:
    crossing = CrossingSink(sink, Crossing(name, Mapping(mapping) if mapping else None))
    bridge = Bridge(source, crossing, name=name, outage=SOON, drain_timeout=5)
    running = asyncio.create_task(bridge.run())
    try:
        yield
    finally:
        bridge.stop()
        await running


async def make_stream(url: str, name: str, subject: str) -> None:
    """Make a stream that recognises duplicates for longer than a test takes."""
    client = await client_library.connect(url)
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[subject], duplicate_window=600))
    await client.close()


async def read_stream(url: str, name: str) -> list[Message]:
    """Everything in a stream, through the plain client."""
    client = await client_library.connect(url)
    jetstream = client.jetstream()
    expected = (await jetstream.stream_info(name)).state.messages
    reader = await jetstream.pull_subscribe("", stream=name, config=ConsumerConfig(ack_policy=AckPolicy.NONE))
    found: list[Message] = []
    while len(found) < expected:
        found += [from_nats(each.headers or {}, each.data) for each in await reader.fetch(min(1000, expected - len(found)), timeout=30)]
    await client.close()
    return found


async def publish_all(sink: Sink, messages: Sequence[Message]) -> None:
    for first in range(0, len(messages), 5000):
        outcomes = await sink.publish(messages[first : first + 5000])
        assert all(isinstance(outcome, Published) for outcome in outcomes)


def assert_arrived(sent: Sequence[Message], arrived: Iterable[Message], topic: Callable[[str], str], via: str) -> int:
    """Fail unless everything came, as it was, in the order of its keys; return how many copies came beside."""
    first: dict[object, Message] = {}
    copies = 0
    for each in arrived:
        copies += each.id in first
        first.setdefault(each.id, each)
    assert len(first) == len(sent), f"{len(sent) - len(first)} lost"
    for each in sent:
        name = topic(each.topic)
        renamed = {RENAMED: each.topic} if name != each.topic else {}
        assert first[each.id] == each._replace(topic=name, headers={**each.headers, VIA: via, **renamed})
    last: dict[str | None, int] = {}
    for each in first.values():
        assert last.get(each.key, -1) < int(each.payload), f"{each.key}: {last[each.key]} before {int(each.payload)}"
        last[each.key] = int(each.payload)
    return copies


@pytest.mark.timeout(180)
async def test_from_inside_the_process_to_nats_none_is_lost_when_its_server_is_killed() -> None:
    """And while it is away the buffer fills, and whoever publishes waits."""
    sent = numbered("orders.created")
    handed_over = 0
    broker = Broker()
    source = InProcessSource(broker, "orders.*", group="bridge", buffer=500)

    async def publish() -> None:
        nonlocal handed_over
        for each in sent:
            await broker.publish(each)
            handed_over += 1
            if not handed_over % 50:
                await asyncio.sleep(0)

    with PrivateNats() as server:
        await make_stream(server.servers[0], "s", "shop.>")
        async with JetStream(server.servers, connect_timeout=1) as connection:
            counted = Counted(JetStreamSink(connection, stream="s", subject="{topic}", timeout=1))
            async with bridging(source, counted, "out", "orders.* -> shop.{1}"):
                publishing = asyncio.create_task(publish())
                await counted.reaches(NUMBER // 3)
                await asyncio.to_thread(server.stop, signal.SIGKILL)
                stopped_at = -1

                async def waits() -> bool:
                    nonlocal stopped_at
                    before, stopped_at = stopped_at, handed_over
                    await asyncio.wait({publishing}, timeout=0.5)
                    return stopped_at == before

                await eventually(waits, what="the publisher waits")
                assert stopped_at < NUMBER
                assert stopped_at - counted.published <= 500 + 2 * 1000 + 1, "more in memory than buffer and claims hold"
                await asyncio.to_thread(server.start)
                await counted.reaches(NUMBER)
                await publishing
        arrived = await read_stream(server.servers[0], "s")
    copies = assert_arrived(sent, arrived, lambda _: "shop.created", "out")
    log.info("duplicates in the stream: %d", copies)
    log.info("duplicates that the server recognised: %d", counted.duplicates)
    assert copies == 0, "the server recognises ids, also those from before it was killed"
    broker.close()


DURABLE = """
[pump]
batch = 1000
drain_timeout = 10
[sinks.local]
kind = "inprocess"
[sinks.events]
kind = "jetstream"
servers = ["{url}"]
stream = "s"
timeout = 2
[[routes]]
topics = "orders.>"
sink = "local"
[[routes]]
topics = "shop.>"
sink = "events"
[[bridges]]
name = "durable"
source = "local"
sink = "events"
via = "outbox"
mapping = "orders.> -> shop.{{1}}"
"""


@pytest.mark.timeout(240)
async def test_through_the_outbox_none_is_lost_when_the_bridge_is_killed_three_times(
    database: str, connection: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    """A daemon publishes to its in-process broker, bridges that into the outbox, and pumps it to NATS, which is killed as well."""
    sent = numbered("orders.created")
    columns = "id, topic, key, payload, content_type, headers, created_at"
    async with connection.cursor().copy(f"COPY outbox.messages ({columns}) FROM STDIN") as copy:
        for each in sent:
            headers = json.dumps(dict(each.headers))
            await copy.write_row((each.id, each.topic, each.key, each.payload, each.content_type, headers, each.created_at))

    # A source that is told too late brings its messages again: each row that the bridge has put is noted.
    await connection.execute("CREATE TABLE bridged (id uuid)")
    await connection.execute(
        """CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN INSERT INTO bridged SELECT id FROM new WHERE topic LIKE 'shop.%'; RETURN NULL; END $$;
           CREATE TRIGGER note AFTER INSERT ON outbox.messages REFERENCING NEW TABLE AS new FOR EACH STATEMENT EXECUTE FUNCTION note()"""
    )

    async def rest() -> int:
        cursor = await connection.execute("SELECT count(*) FROM outbox.messages WHERE topic LIKE 'orders.%'")
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    with PrivateNats() as server:
        await make_stream(server.servers[0], "s", "shop.>")
        configuration = DURABLE.format(url=server.servers[0])
        for wanted in (40_000, 25_000, 10_000):
            async with Daemon(tmp_path, configuration, database) as daemon:

                async def fewer(wanted: int = wanted) -> bool:
                    return await rest() <= wanted

                await eventually(fewer, within=60, what=f"{wanted} left: {daemon.log.read_text()[-2000:]}")
                if wanted == 25_000:
                    await asyncio.to_thread(server.stop, signal.SIGKILL)
                daemon.signal(signal.SIGKILL)
                await daemon.ended()
        async with Daemon(tmp_path, configuration, database) as daemon:
            # The bridge goes on while NATS is away: what it takes is safe.
            await eventually(lambda: _is(rest, 0), within=60, what="everything taken")
            await asyncio.to_thread(server.start)
            await eventually(lambda: is_empty(connection), within=60, what="an empty outbox")
            daemon.signal(signal.SIGTERM)
            assert await daemon.ended() == 0
        arrived = await read_stream(server.servers[0], "s")
    copies = assert_arrived(sent, arrived, lambda _: "shop.created", "durable")
    assert copies == 0, "the server recognises ids"
    cursor = await connection.execute("SELECT count(*) - count(DISTINCT id) FROM bridged")
    ((repeated,),) = await cursor.fetchall()
    log.info("duplicates in the outbox: %d", repeated)
    assert repeated <= 3 * 2 * 1000, "more than what each kill found in flight"


async def _is(count: Callable[[], Awaitable[int]], wanted: int) -> bool:
    return await count() == wanted


@pytest.mark.timeout(240)
async def test_jetstream_to_kafka_and_back_with_a_restart_of_each() -> None:
    there, back = numbered("orders.created"), numbered("invoices.paid")
    kafka_engine = PrivateKafka()
    with (kafka_engine.folder / "kafka.properties").open("a") as properties:
        # A broker that was killed may come back when the controller has given up the one it was before: after nine seconds, by default.
        properties.write("broker.session.timeout.ms=4000\nbroker.heartbeat.interval.ms=500\ngroup.initial.rebalance.delay.ms=0\n")
    with PrivateNats() as nats, kafka_engine:
        url, servers = nats.servers[0], kafka_engine.servers[0]
        for name, subject in (("from-nats", "orders.>"), ("to-nats", "shop.>")):
            await make_stream(url, name, subject)
        for topic in ("shop.orders.created", "invoices.paid"):
            await made(servers, topic)
        async with JetStream([url], connect_timeout=1) as jetstream, Kafka([servers], connect_timeout=2) as kafka:
            await publish_all(JetStreamSink(jetstream, stream="from-nats", subject="{topic}"), there)
            await publish_all(KafkaSink(kafka), back)
            # A connection of its own for the source, as the daemon has it.
            async with JetStream([url], connect_timeout=1) as consuming:
                from_nats_ = JetStreamSource(consuming, stream="from-nats", durable="out", linger=0.2)
                from_kafka_ = KafkaSource(kafka, group="in", topics=["invoices.paid"], linger=0.2)
                to_kafka = Counted(KafkaSink(kafka, timeout=3))
                to_nats = Counted(JetStreamSink(jetstream, stream="to-nats", subject="{topic}", timeout=2))
                async with (
                    bridging(from_nats_, to_kafka, "out", "orders.> -> shop.orders.{1}"),
                    bridging(from_kafka_, to_nats, "in", "*.> -> shop.{1}.{2}"),
                ):
                    await asyncio.gather(to_kafka.reaches(NUMBER // 4), to_nats.reaches(NUMBER // 4))
                    for engine in (nats, kafka_engine):
                        await asyncio.to_thread(engine.stop, signal.SIGKILL)
                        await asyncio.to_thread(engine.start)
                    await asyncio.gather(to_kafka.reaches(NUMBER, 120), to_nats.reaches(NUMBER, 120))
                await from_nats_.close()
                await from_kafka_.close()
        at_kafka = await read_all(servers, ["shop.orders.created"])
        at_nats = await read_stream(url, "to-nats")
    log.info("duplicates at Kafka: %d", assert_arrived(there, at_kafka, lambda topic: f"shop.{topic}", "out"))
    log.info("duplicates at NATS: %d", assert_arrived(back, at_nats, lambda topic: f"shop.{topic}", "in"))
    log.info("duplicates that NATS recognised: %d", to_nats.duplicates)
