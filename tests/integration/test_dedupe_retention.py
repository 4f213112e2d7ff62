"""Processed ids are kept by day and dropped by day, and no duplicate has a second effect for it, however late it comes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql as compose
from psycopg_pool import AsyncConnectionPool

from bridges.backoff import Backoff
from bridges.inprocess import Broker, InProcessSink, InProcessSource
from bridges.message import Message, uuid7
from bridges.ports import Published
from dedupe import Consumer, HandlerSink, retention, sql
from dedupe.retention import PROCESSED, SLACK, keep_processed
from migrations.partitions import database_now
from migrations.schedule import milliseconds
from tests.engines.deadline import eventually
from tests.engines.partitions import make, partitions, rows, today

DAY = timedelta(days=1)
KEEP = 30 * DAY
RETRY = Backoff(first=0.01, cap=0.02, max_attempts=3)
DUPLICATE = Published(duplicate=True)
Handler = Callable[[Message, psycopg.AsyncConnection[Any]], Awaitable[None]]


@pytest.fixture
async def pool(database: str, connection: psycopg.AsyncConnection) -> AsyncIterator[AsyncConnectionPool]:
    await connection.execute("CREATE TABLE effects (place bigint GENERATED ALWAYS AS IDENTITY, id uuid)")
    async with AsyncConnectionPool(database, min_size=1, max_size=10, open=False, timeout=5) as pool:
        yield pool


async def apply(message: Message, connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("INSERT INTO effects (id) VALUES (%s)", (message.id,))


async def effects(connection: psycopg.AsyncConnection) -> list[UUID]:
    cursor = await connection.execute("SELECT id FROM effects ORDER BY place")
    return [row[0] for row in await cursor.fetchall()]


async def set_aside(connection: psycopg.AsyncConnection) -> dict[UUID, tuple[int, str]]:
    cursor = await connection.execute("SELECT message_id, attempts, error FROM dedupe.consumer_dead")
    return {row[0]: (row[1], row[2]) for row in await cursor.fetchall()}


def sink(pool: AsyncConnectionPool, handler: Handler = apply) -> HandlerSink:
    return HandlerSink(pool, handler, consumer="c", retry=RETRY)


def made_at(moment: datetime) -> Message:
    """Return a message whose id is a UUIDv7 of the moment."""
    random = secrets.randbits(62)
    return Message(UUID(int=milliseconds(moment) << 80 | 7 << 76 | 2 << 62 | random), "orders.created", b"")


async def old(connection: psycopg.AsyncConnection, age: timedelta) -> Message:
    return made_at(await database_now(connection) - age)


async def record(connection: psycopg.AsyncConnection, message: Message, age: timedelta) -> None:
    """Have the message processed some time ago."""
    await connection.execute(
        "INSERT INTO dedupe.processed (message_id, consumer, processed_at) VALUES (%s, 'c', clock_timestamp() - %s)", (message.id, age)
    )


# --- what is kept, and for how long -------------------------------------------------------------------------------------------------


async def test_days_are_made_ahead_and_ids_land_in_them(connection: psycopg.AsyncConnection) -> None:
    begin = await today(connection)
    tidied = await keep_processed(connection, keep=KEEP)
    wanted = {PROCESSED.name(begin + n * DAY) for n in range(-1, 4)}
    assert set(tidied.made) == wanted == await partitions(connection, "dedupe.processed")
    await connection.execute("INSERT INTO dedupe.processed (message_id, consumer) VALUES (outbox.uuid7(), 'c'), (%s, 'c')", (uuid7(),))
    strange = UUID("ffffffff-0000-4000-8000-000000000000")
    await connection.execute("INSERT INTO dedupe.processed (message_id, consumer) VALUES (%s, 'c')", (strange,))
    assert await rows(connection, "dedupe.processed") == {PROCESSED.name(begin): 2, "processed_default": 1}
    again = await keep_processed(connection, keep=KEEP)
    assert (again.made, again.dropped, again.left) == ([], [], {})


async def test_a_day_is_dropped_when_it_ended_longer_ago_than_ids_are_kept(connection: psycopg.AsyncConnection) -> None:
    begin = await today(connection)
    kept, over = [begin + n * DAY for n in (-3, -2, -1)], [begin - 40 * DAY, begin - 5 * DAY]
    await make(connection, PROCESSED, [*kept, *over], schema="dedupe")
    tidied = await keep_processed(connection, keep=3 * DAY)
    assert tidied.dropped == [PROCESSED.name(day) for day in over]
    assert {PROCESSED.name(day) for day in kept} <= await partitions(connection, "dedupe.processed")


async def test_ids_that_are_kept_for_ever_are(connection: psycopg.AsyncConnection) -> None:
    begin = await today(connection)
    await make(connection, PROCESSED, [begin - 4000 * DAY], schema="dedupe")
    await record(connection, Message(uuid4(), "t", b""), 9999 * DAY)
    tidied = await keep_processed(connection, keep=None)
    assert (tidied.dropped, tidied.swept, len(tidied.made)) == ([], 0, 5)


async def test_a_retention_of_minutes_takes_away_no_day_that_it_makes(connection: psycopg.AsyncConnection) -> None:
    for _ in range(2):
        tidied = await keep_processed(connection, keep=timedelta(minutes=1))
        assert tidied.dropped == []
    assert PROCESSED.name(await today(connection)) in await partitions(connection, "dedupe.processed")


async def test_the_default_partition_is_swept_by_the_time_of_the_effect(connection: psycopg.AsyncConnection) -> None:
    """And where the id bears a time, by that as well: the message is judged by it, and not by when it was handled."""
    young, long_ago = KEEP - DAY, KEEP + DAY
    kept = [Message(uuid4(), "t", b""), await old(connection, young), await old(connection, -DAY)]
    gone = [Message(uuid4(), "t", b""), await old(connection, long_ago)]
    await record(connection, kept[0], young)
    for message in [*kept[1:], *gone]:
        await record(connection, message, long_ago)
    tidied = await keep_processed(connection, keep=KEEP)
    assert tidied.swept == len(gone)
    cursor = await connection.execute("SELECT message_id FROM dedupe.processed")
    assert {row[0] for row in await cursor.fetchall()} == {message.id for message in kept}


async def test_an_id_that_lies_in_an_old_day_by_chance_is_not_dropped_with_it(connection: psycopg.AsyncConnection) -> None:
    begin = await today(connection)
    await make(connection, PROCESSED, [begin - 40 * DAY], schema="dedupe")
    lowest = UUID(PROCESSED.begin(begin - 40 * DAY))
    random = Message(UUID(int=lowest.int | 4 << 76 | 2 << 62), "t", b"")
    await record(connection, random, DAY)
    await record(connection, random._replace(id=UUID(int=random.id.int + 1)), 40 * DAY)
    await record(connection, Message(UUID(int=lowest.int | 7 << 76 | 2 << 62), "t", b""), DAY)
    tidied = await keep_processed(connection, keep=KEEP)
    assert tidied.dropped == [PROCESSED.name(begin - 40 * DAY)]
    cursor = await connection.execute("SELECT message_id, clock_timestamp() - processed_at FROM dedupe.processed")
    ((message_id, age),) = await cursor.fetchall()
    assert message_id == random.id
    assert DAY <= age < DAY + timedelta(minutes=5), "as old as it was"


async def test_what_stays_of_a_day_is_looked_up_and_not_looked_for(connection: psycopg.AsyncConnection) -> None:
    """The table is locked while that is asked."""
    begin = await today(connection)
    await make(connection, PROCESSED, [begin], schema="dedupe")
    await connection.execute(
        "INSERT INTO dedupe.processed (message_id, consumer) SELECT outbox.uuid7(), 'c' FROM generate_series(1, 20000)"
    )
    async with connection.transaction():
        await connection.execute("SET LOCAL enable_seqscan = off")
        condition = compose.SQL(sql.PROCESSED_STAYS).format(before=compose.SQL("now()"))
        table = compose.Identifier("dedupe", PROCESSED.name(begin))
        cursor = await connection.execute(
            compose.SQL("EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM ONLY {} WHERE {}").format(table, condition)
        )
        ((((plan,)),),) = await cursor.fetchall()
    node = plan["Plan"]
    while "Plans" in node:
        (node,) = node["Plans"]
    assert "processed_at_idx" in node["Index Name"]
    assert node.get("Rows Removed by Filter", 0) == 0


# --- duplicates ---------------------------------------------------------------------------------------------------------------------


async def test_a_duplicate_within_the_retention_has_one_effect(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    """Also when its id has moved from the default partition into that of its day."""
    messages = [await old(connection, age) for age in (timedelta(0), DAY, 2 * DAY, KEEP - timedelta(minutes=1))]
    handlers = sink(pool)
    assert await handlers.publish(messages) == [Published()] * 4
    tidied = await keep_processed(connection, keep=KEEP)
    assert tidied.moved == 2
    assert await handlers.publish(messages) == [DUPLICATE] * 4
    assert sorted(await effects(connection)) == sorted(message.id for message in messages)


async def test_a_message_older_than_ids_are_kept_is_set_aside(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    await keep_processed(connection, keep=KEEP)
    late, young = await old(connection, KEEP + DAY), await old(connection, DAY)
    handlers = sink(pool)
    assert await handlers.publish([late, young, late]) == [Published(), Published(), DUPLICATE]
    assert await effects(connection) == [young.id], "the others of its batch are handled"
    ((message_id, (attempts, error)),) = (await set_aside(connection)).items()
    assert (message_id, attempts) == (late.id, 0)
    assert "since when processed ids are kept" in error
    assert await handlers.publish([late]) == [DUPLICATE]


async def test_an_old_message_whose_id_is_still_there_is_a_duplicate(
    pool: AsyncConnectionPool, connection: psycopg.AsyncConnection
) -> None:
    """Nothing need be guessed at."""
    late = await old(connection, KEEP + DAY)
    await record(connection, late, KEEP + DAY)
    assert await sink(pool).publish([late]) == [DUPLICATE]
    assert await set_aside(connection) == {}


async def test_an_id_of_another_kind_is_judged_by_when_its_message_was_put(
    pool: AsyncConnectionPool, connection: psycopg.AsyncConnection
) -> None:
    await keep_processed(connection, keep=KEEP)
    put = datetime.now(UTC)
    late = Message(uuid4(), "t", b"", created_at=put - KEEP - DAY)
    young, unknown = late._replace(id=uuid4(), created_at=put), late._replace(id=uuid4(), created_at=None)
    assert await sink(pool).publish([late, young, unknown]) == [Published()] * 3
    assert set(await effects(connection)) == {young.id, unknown.id}
    assert set(await set_aside(connection)) == {late.id}


async def test_without_a_retention_no_message_is_too_old(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    ancient = await old(connection, 9999 * DAY)
    assert await sink(pool).publish([ancient]) == [Published()]
    assert await effects(connection) == [ancient.id]


async def test_a_duplicate_of_a_dropped_day_is_set_aside(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    begin = await today(connection)
    await make(connection, PROCESSED, [begin - 40 * DAY], schema="dedupe")
    message = made_at(datetime(*(begin - 40 * DAY).timetuple()[:3], 12, tzinfo=UTC))
    assert await sink(pool).publish([message]) == [Published()]
    assert await rows(connection, "dedupe.processed") == {PROCESSED.name(begin - 40 * DAY): 1}
    assert (await keep_processed(connection, keep=KEEP)).dropped
    assert await sink(pool).publish([message]) == [Published()]
    assert await effects(connection) == [message.id]
    assert set(await set_aside(connection)) == {message.id}


async def test_a_failing_neighbour_does_not_undo_what_was_set_aside(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    await keep_processed(connection, keep=KEEP)
    bad, late = await old(connection, DAY), await old(connection, KEEP + DAY)

    async def broken(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        msg = "no"
        raise ValueError(msg)

    assert await HandlerSink(pool, broken, consumer="c", retry=RETRY, concurrency=1).publish([late, bad]) == [Published()] * 2
    letters = await set_aside(connection)
    assert letters[bad.id] == (3, "ValueError: no")
    assert letters[late.id][0] == 0


async def test_a_consumer_sets_aside_what_is_older_than_ids_are_kept(
    pool: AsyncConnectionPool, database: str, connection: psycopg.AsyncConnection
) -> None:
    consumer = Consumer("c")
    consumer.handler(">")(apply)
    broker = Broker()
    source = InProcessSource(broker, ">", group="c")
    running = asyncio.create_task(consumer.run(source, dsn=database))
    await keep_processed(connection, keep=KEEP)
    late, young = await old(connection, KEEP + DAY), await old(connection, DAY)
    assert await InProcessSink(broker).publish([late, young]) == [Published()] * 2
    consumer.stop()
    await asyncio.wait_for(running, 20)
    source.close()
    assert await effects(connection) == [young.id]


async def test_a_consumer_that_knows_of_no_retention_is_told_by_the_database(
    pool: AsyncConnectionPool, connection: psycopg.AsyncConnection
) -> None:
    """A daemon drops after 30 days; a program beside it, and a daemon that keeps for ever, have configured nothing of the kind."""
    begin = await today(connection)
    await make(connection, PROCESSED, [begin - 40 * DAY], schema="dedupe")
    message = made_at(datetime(*(begin - 40 * DAY).timetuple()[:3], 12, tzinfo=UTC))
    random = Message(uuid4(), "t", b"", created_at=await database_now(connection) - 40 * DAY)
    handlers = HandlerSink(pool, apply, consumer="c", retry=RETRY)
    assert await handlers.publish([message, random]) == [Published()] * 2
    await connection.execute("UPDATE dedupe.processed SET processed_at = processed_at - interval '40 days'")
    tidied = await keep_processed(connection, keep=KEEP)
    assert (len(tidied.dropped), tidied.swept) == (1, 1)
    await keep_processed(connection, keep=60 * DAY)
    await keep_processed(connection, keep=None)
    assert await handlers.publish([message, random]) == [Published()] * 2
    assert await effects(connection) == [message.id, random.id]
    assert set(await set_aside(connection)) == {message.id, random.id}


# --- races --------------------------------------------------------------------------------------------------------------------------


async def waiting_for_a_lock(connection: psycopg.AsyncConnection) -> bool:
    cursor = await connection.execute(
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return await cursor.fetchone() == (True,)


@pytest.mark.parametrize("isolation", psycopg.IsolationLevel)
@pytest.mark.parametrize("partitioned", [True, False], ids=["dropped", "swept"])
async def test_a_duplicate_that_waits_for_the_drop_is_judged_after_it(
    database: str, connection: psycopg.AsyncConnection, partitioned: bool, isolation: psycopg.IsolationLevel
) -> None:
    """It was young enough when its transaction began, and its id is gone when that can go on. Whatever the transaction sees of the rest."""
    await connection.execute("CREATE TABLE effects (place bigint GENERATED ALWAYS AS IDENTITY, id uuid)")
    begin = await today(connection)
    if partitioned:
        await make(connection, PROCESSED, [begin - 40 * DAY], schema="dedupe")
    message = made_at(datetime(*(begin - 40 * DAY).timetuple()[:3], 12, tzinfo=UTC))

    async def configure(given: psycopg.AsyncConnection[Any]) -> None:
        await given.set_isolation_level(isolation)

    async with (
        AsyncConnectionPool(database, min_size=1, max_size=2, open=False, configure=configure) as pool,
        await psycopg.AsyncConnection.connect(database, autocommit=True) as dropper,
    ):
        assert await sink(pool).publish([message]) == [Published()]
        await connection.execute("UPDATE dedupe.processed SET processed_at = processed_at - interval '40 days'")
        async with dropper.transaction():
            tidied = await keep_processed(dropper, keep=KEEP)
            assert (len(tidied.dropped), tidied.swept) == ((1, 0) if partitioned else (0, 1))
            publishing = asyncio.create_task(sink(pool).publish([message]))
            await eventually(lambda: waiting_for_a_lock(connection))
        outcomes = await publishing
    assert outcomes == [Published()]
    assert await effects(connection) == [message.id]
    assert set(await set_aside(connection)) == {message.id}


async def test_a_day_waits_for_whom_it_may_concern(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    """While a handler runs, no day is dropped: the effect is there before anything it was judged by is gone."""
    begin = await today(connection)
    await make(connection, PROCESSED, [begin - 40 * DAY], schema="dedupe")
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        begun.set()
        await go_on.wait()
        await apply(message, conn)

    publishing = asyncio.create_task(sink(pool, slow).publish([await old(connection, DAY)]))
    await begun.wait()
    tidied = await keep_processed(connection, keep=KEEP)
    assert tidied.dropped == []
    assert PROCESSED.name(begin - 40 * DAY) in tidied.left
    go_on.set()
    assert await publishing == [Published()]
    assert (await keep_processed(connection, keep=KEEP)).dropped == [PROCESSED.name(begin - 40 * DAY)]


@pytest.mark.parametrize("partitioned", [True, False], ids=["dropped", "swept"])
async def test_drops_and_duplicates_at_the_same_time(
    pool: AsyncConnectionPool, connection: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch, partitioned: bool
) -> None:
    """Without any slack, and at the very moment at which the day is over: one effect each."""
    monkeypatch.setattr(retention, "SLACK", timedelta(0))
    begin = await today(connection)
    midnight = datetime(*(begin - DAY).timetuple()[:3], tzinfo=UTC)
    messages = [made_at(midnight - timedelta(milliseconds=1 + n)) for n in range(0, 800, 10)]
    if partitioned:
        await make(connection, PROCESSED, [begin - 2 * DAY], schema="dedupe")
    assert await sink(pool).publish(messages) == [Published()] * len(messages)
    for message in messages:  # in the default partition they go by both
        await connection.execute("UPDATE dedupe.processed SET processed_at = %s WHERE message_id = %s", (midnight - DAY, message.id))
    keep = await database_now(connection) - midnight + timedelta(seconds=0.5)
    gone = False

    async def consume(shift: int) -> None:
        handlers = sink(pool)
        while not gone:
            for start in range(shift, len(messages), 20):
                outcomes = await handlers.publish(messages[start : start + 20])
                assert all(isinstance(outcome, Published) for outcome in outcomes)

    async def all_gone() -> bool:
        await keep_processed(connection, keep=keep)
        if partitioned:
            return PROCESSED.name(begin - 2 * DAY) not in await partitions(connection, "dedupe.processed")
        cursor = await connection.execute("SELECT count(*) FROM dedupe.processed WHERE processed_at < %s", (midnight,))
        return await cursor.fetchone() == (0,)

    async with asyncio.TaskGroup() as group:
        for shift in (0, 7, 13):
            group.create_task(consume(shift))
        await eventually(all_gone)
        gone = True
    await sink(pool).publish(messages)
    assert sorted(await effects(connection)) == sorted(message.id for message in messages)
    assert set(await set_aside(connection)) == {message.id for message in messages}


async def test_days_that_are_made_while_ids_are_recorded(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    """A row on its way to the default partition finds a day's partition attached: it is tried again, and has one effect."""
    messages: list[Message] = []
    made = False

    async def consume() -> None:
        handlers = sink(pool)
        while not made or len(messages) < 400:
            batch = [await old(connection, timedelta(seconds=1)) for _ in range(10)]
            messages.extend(batch)
            assert await handlers.publish(batch) == [Published()] * 10

    async def all_made() -> bool:
        await keep_processed(connection, keep=KEEP)
        return len(await partitions(connection, "dedupe.processed")) == 5

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(consume())
        for _ in range(5):
            await eventually(all_made)
            for name in await partitions(connection, "dedupe.processed"):
                await connection.execute(
                    f"BEGIN; LOCK dedupe.processed; ALTER TABLE dedupe.processed DETACH PARTITION dedupe.{name};"
                    f"INSERT INTO dedupe.processed SELECT * FROM dedupe.{name}; DROP TABLE dedupe.{name}; COMMIT".encode()
                )
        await eventually(all_made)
        made = True
    assert await set_aside(connection) == {}
    assert sorted(await effects(connection)) == sorted(message.id for message in messages)
    assert await sink(pool).publish(messages) == [DUPLICATE] * len(messages)


def test_the_slack_is_worth_something() -> None:
    """Clocks of databases may differ by minutes, and may go back by as much when a standby takes over."""
    assert timedelta(minutes=10) <= SLACK < DAY
