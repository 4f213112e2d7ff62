"""The proxy's faults at a moment of the protocol, before real engines."""

from __future__ import annotations

import asyncio
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import nats
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bridges.jetstream import JetStream, JetStreamSink
from bridges.kafka import Kafka, KafkaSink
from bridges.ports import PUBLISHED, Outcome, Published, Reason, Released
from outbox.demo.engines import PrivateKafka
from outbox.embedded import free_port
from tests.contracts.harness_kafka import made, read_all
from tests.contracts.messages import ids, message, series
from tests.engines.deadline import eventually
from tests.faults.echo import WITHIN, calling, echoing, until
from tests.faults.protocols import KafkaProtocol, NatsProtocol, PostgresProtocol
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import Stream

Connection = psycopg.AsyncConnection[Any]
HOW = ["simple", "pipeline", "prepared"]


@pytest.fixture
async def before_postgres(database: str, connection: Connection) -> AsyncIterator[Proxy]:
    """A proxy in front of a server with an empty table."""
    await connection.execute("CREATE TABLE effects (number int)")
    parts = conninfo_to_dict(database)
    async with Proxy((str(parts.get("host")), int(parts.get("port") or 5432)), PostgresProtocol()) as proxy:
        yield proxy


@asynccontextmanager
async def session(database: str, proxy: Proxy) -> AsyncIterator[Connection]:
    dsn = make_conninfo(database, host="127.0.0.1", port=proxy.port, application_name="through")
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        yield connection


async def insert(connection: Connection, how: str, number: int = 1) -> None:
    """A transaction in the way that is asked for."""
    insertion, numbers = "INSERT INTO effects VALUES (%s)", (number,)
    if how == "simple":
        async with connection.transaction():
            await connection.execute(insertion, numbers)
    else:
        async with connection.pipeline():
            for statement in ("BEGIN", insertion, "COMMIT"):
                await connection.execute(statement, numbers if "%" in statement else None, prepare=how == "prepared")


async def effects(connection: Connection) -> list[int]:
    """What is committed, once no session through the proxy can commit any more."""

    async def alone() -> bool:
        cursor = await connection.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'through'")
        return await cursor.fetchone() == (0,)

    await eventually(alone, what="the end of the session")
    return [number for (number,) in await (await connection.execute("SELECT number FROM effects ORDER BY number")).fetchall()]


@pytest.mark.parametrize("how", HOW)
async def test_cut_after_commit(before_postgres: Proxy, database: str, connection: Connection, how: str) -> None:
    """The client has an error, and the row is there. One commit is as any other: the third of them here, on the second connection."""
    cut = before_postgres.cut("after_commit", nth=3)
    async with session(database, before_postgres) as one, session(database, before_postgres) as two:
        await insert(one, how, 1)
        await insert(two, how, 2)
        assert not cut.is_set()
        with pytest.raises(psycopg.OperationalError) as lost:
            await insert(two, how, 3)
        assert lost.value.sqlstate is None
        assert cut.is_set()
        await insert(one, how, 4)
    assert await effects(connection) == [1, 2, 3, 4]
    assert before_postgres.faults == {"cut": 1}


@pytest.mark.parametrize("how", HOW)
async def test_cut_before_commit(before_postgres: Proxy, database: str, connection: Connection, how: str) -> None:
    """The client has an error, and the row is not there."""
    async with session(database, before_postgres) as one:
        await insert(one, how, 1)
        cut = before_postgres.cut("before_commit")
        with pytest.raises(psycopg.OperationalError):
            await insert(one, how, 2)
    await asyncio.wait_for(cut.wait(), 5)
    assert await effects(connection) == [1]


async def test_a_rollback_is_no_commit(before_postgres: Proxy, database: str, connection: Connection) -> None:
    """Nor is a COMMIT that the server answers with ROLLBACK, or one that a healed fault was for."""
    cut = before_postgres.cut("after_commit")
    async with session(database, before_postgres) as one:
        await one.execute("BEGIN")
        await one.execute("ROLLBACK")
        await one.execute("BEGIN")
        with pytest.raises(psycopg.errors.DivisionByZero):
            await one.execute("SELECT 1/0")
        assert (await one.execute("COMMIT")).statusmessage == "ROLLBACK"
        before_postgres.heal()
        await insert(one, "simple")
    assert not cut.is_set()
    assert await effects(connection) == [1]


@pytest.mark.parametrize("moment", ["before_commit", "after_commit"])
@pytest.mark.parametrize("how", HOW)
async def test_a_late_commit(before_postgres: Proxy, database: str, connection: Connection, how: str, moment: str) -> None:
    """It takes so long, in single bytes as well, and nothing is wrong with it."""
    loop = asyncio.get_running_loop()
    async with session(database, before_postgres) as one:
        before_postgres.slice()
        before_postgres.late(moment, 0.3)
        began = loop.time()
        await insert(one, how, 1)
        assert loop.time() - began >= 0.3
        before_postgres.heal()
        before_postgres.late(moment, 60)
        committing = asyncio.create_task(insert(one, how, 2))
        await eventually(lambda: _late(before_postgres, 2))
        before_postgres.heal()
        await asyncio.wait_for(committing, 5)
    assert await effects(connection) == [1, 2]


async def _late(proxy: Proxy, times: int) -> bool:
    return proxy.faults["late"] == times


@pytest.fixture
async def before_nats(stream: Stream) -> AsyncIterator[Proxy]:
    parts = urlsplit(stream.url)
    async with Proxy((parts.hostname or "127.0.0.1", parts.port or 4222), NatsProtocol()) as proxy:
        yield proxy


@pytest.fixture
async def sink(before_nats: Proxy, stream: Stream) -> AsyncIterator[JetStreamSink]:
    async with JetStream([f"nats://127.0.0.1:{before_nats.port}"]) as connection:
        yield JetStreamSink(connection, stream=stream.name, subject=stream.subject, timeout=1.0)


async def stored(stream: Stream) -> int:
    client = await nats.connect(stream.url)
    try:
        return (await client.jetstream().stream_info(stream.name)).state.messages
    finally:
        await client.close()


@pytest.mark.parametrize(("action", "reason"), [("lose", Reason.TIMEOUT), ("cut", Reason.UNAVAILABLE)])
async def test_a_lost_acknowledgement(before_nats: Proxy, sink: JetStreamSink, stream: Stream, action: str, reason: Reason) -> None:
    """The message is released, and in the stream. Published again, it is a duplicate."""
    one = message("orders")
    happened = getattr(before_nats, action)("after_pub")
    [outcome] = await sink.publish([one])
    assert isinstance(outcome, Released)
    assert outcome.reason is reason
    assert happened.is_set()
    assert await stored(stream) == 1
    assert await sink.publish([one]) == [Published(duplicate=True)]
    assert before_nats.faults == {action: 1}


async def test_one_acknowledgement_of_many_is_lost(before_nats: Proxy, sink: JetStreamSink, stream: Stream) -> None:
    """Only the third: questions about the stream do not count, and what follows on the connection arrives."""
    messages = series(["orders"], 6, keys=6)
    lost = before_nats.lose("after_pub", nth=3)
    outcomes = await sink.publish(messages)
    assert lost.is_set()
    assert [type(outcome) for outcome in outcomes] == [Published, Published, Released, Published, Published, Published]
    assert await stored(stream) == 6
    same_key = series(["orders"], 3)
    lost = before_nats.lose("after_pub", nth=3)
    outcomes = await sink.publish(same_key)
    assert lost.is_set()
    assert [type(outcome) for outcome in outcomes] == [Published, Published, Released]


async def test_an_acknowledgement_twice_and_one_late(before_nats: Proxy, sink: JetStreamSink, stream: Stream) -> None:
    """An acknowledgement that comes twice changes nothing; one that comes late is waited for."""
    before_nats.repeat("after_pub", nth=2)
    assert await sink.publish(series(["orders"], 5, keys=5)) == [PUBLISHED] * 5
    before_nats.late("after_pub", 0.3)
    began = asyncio.get_running_loop().time()
    assert await sink.publish(series(["orders"], 5, keys=5)) == [PUBLISHED] * 5
    assert asyncio.get_running_loop().time() - began >= 0.3
    assert await sink.publish(series(["orders"], 5, keys=5)) == [PUBLISHED] * 5
    assert await stored(stream) == 15
    assert before_nats.faults == {"repeat": 1, "late": 1}
    assert before_nats.connections == 1


async def test_a_lost_response_of_kafka_blocks_its_connection() -> None:
    """Responses come in order, so that nothing may come after it; healed, the connection is reset, and another goes on."""
    produce = struct.pack("!IhhI", 8, 0, 7, 7)  # sent back, it is the response to itself
    async with echoing() as echo, Proxy(("127.0.0.1", echo.port), KafkaProtocol()) as proxy, calling(proxy) as one, calling(proxy) as two:
        await one.says(produce)
        await two.says(produce)
        lost = proxy.lose("after_produce")
        one.writer.write(produce)
        await asyncio.wait_for(lost.wait(), WITHIN)
        one.writer.write(produce)
        await until(lambda: len(echo.got) == 4 * len(produce))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.reader.read(1), 0.1)
        proxy.heal()
        await one.is_reset()
        await two.says(produce)


async def test_kafka_behind_a_proxy() -> None:
    """A response that is lost or cut off leaves the record in the topic; the producer's retry of it is no second one."""
    port = free_port()
    async with Proxy(("127.0.0.1", port), KafkaProtocol()) as proxy:
        engine = await asyncio.to_thread(PrivateKafka, port=port, advertised=proxy.port)
        try:
            await asyncio.to_thread(engine.start)
            await _lose_and_cut(proxy)
        finally:
            await asyncio.to_thread(engine.remove)


async def _lose_and_cut(proxy: Proxy) -> None:
    servers = f"127.0.0.1:{proxy.port}"
    await made(servers, "orders")
    lost, cut, late, after = (message("orders") for _ in range(4))
    async with Kafka([servers], connect_timeout=5.0) as connection:
        sink = KafkaSink(connection, topic="orders", timeout=2.0)

        async def publish(one: Any) -> Outcome:
            [outcome] = await sink.publish([one])
            return outcome

        assert await publish(message("orders")) == PUBLISHED
        happened = proxy.lose("after_produce")
        outcome = await publish(lost)
        assert isinstance(outcome, Released)
        assert outcome.reason is Reason.TIMEOUT
        assert happened.is_set()
        proxy.heal()
        happened = proxy.cut("after_produce")
        assert await publish(cut) == PUBLISHED  # the client tries again by itself, and the broker knows the record
        assert happened.is_set()
        proxy.late("after_produce", 0.3)
        began = asyncio.get_running_loop().time()
        assert await publish(late) == PUBLISHED
        assert asyncio.get_running_loop().time() - began >= 0.3
        assert await publish(after) == PUBLISHED
    assert proxy.faults == {"lose": 1, "cut": 1, "late": 1}
    there = ids(await read_all(servers, ["orders"]))
    assert [there.count(each.id) for each in (lost, cut, late, after)] == [1, 1, 1, 1]
