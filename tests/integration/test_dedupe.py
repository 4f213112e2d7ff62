"""Promise 5: what a handler writes through its connection takes effect once per consumer and message id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.pq import PipelineStatus
from psycopg_pool import AsyncConnectionPool

from bridges.backoff import Backoff
from bridges.message import Message, uuid7
from bridges.ports import Published, Reason, Released
from dedupe import HandlerSink, first_time
from tests.engines.deadline import eventually
from tests.engines.effects import EFFECTS, apply, effects, made

RETRY = Backoff(first=0.01, cap=0.02, max_attempts=3)
Handler = Callable[[Message, psycopg.AsyncConnection[Any]], Awaitable[None]]


@pytest.fixture
async def pool(database: str, connection: psycopg.AsyncConnection) -> AsyncIterator[AsyncConnectionPool]:
    await connection.execute(EFFECTS)
    async with AsyncConnectionPool(database, min_size=1, max_size=10, open=False, timeout=5) as pool:
        yield pool


@pytest.fixture
async def single(pool: AsyncConnectionPool, database: str) -> AsyncIterator[AsyncConnectionPool]:
    """A pool of one connection, for what happens to that one."""
    async with AsyncConnectionPool(database, min_size=1, max_size=1, open=False, timeout=5) as single:
        yield single


def sink(pool: AsyncConnectionPool, handler: Handler = apply, consumer: str = "c") -> HandlerSink:
    return HandlerSink(pool, handler, consumer=consumer, retry=RETRY)


async def test_first_time_says_which_are_new(database: str) -> None:
    one, two = uuid7(), uuid7()
    async with await psycopg.AsyncConnection.connect(database) as connection:
        assert await first_time(connection, "c", [one, one]) == {one}
        assert await first_time(connection, "c", [one, two]) == {two}
        assert await first_time(connection, "other", [one]) == {one}, "each consumer sees each message for itself"
        assert await first_time(connection, "c", []) == set()
        await connection.rollback()
        assert await first_time(connection, "c", [one]) == {one}, "a rollback takes the record with it"


async def test_duplicates_have_no_second_effect(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    message = made("once")
    handlers = sink(pool)
    assert await handlers.publish([message, message]) == [Published(), Published(duplicate=True)]
    assert await handlers.publish([message]) == [Published(duplicate=True)]
    assert await effects(connection) == ["once"]


async def test_concurrent_duplicates_have_one_effect(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    """Overlapping batches, in different orders, in consumers that do not know of each other."""
    messages = [made(str(n), key=str(n % 5)) for n in range(50)]

    async def consume(shift: int) -> None:
        handlers = sink(pool)
        rotated = messages[shift:] + messages[:shift]
        for start in range(0, 50, 10):
            outcomes = await handlers.publish(rotated[start : start + 10])
            assert all(isinstance(outcome, Published) for outcome in outcomes)

    async with asyncio.TaskGroup() as group:
        for shift in (0, 7, 25, 40):
            group.create_task(consume(shift))
    assert sorted(await effects(connection), key=int) == [str(n) for n in range(50)]


async def test_a_key_is_handled_in_order_also_across_calls(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    handlers = sink(pool)
    async with asyncio.TaskGroup() as group:
        for call in range(5):
            group.create_task(handlers.publish([made(f"{call}-{n}", key="k") for n in range(4)]))
            await asyncio.sleep(0)
    assert await effects(connection) == [f"{call}-{n}" for call in range(5) for n in range(4)]


async def test_a_handler_that_raises_leaves_no_effect_and_is_tried_again(
    pool: AsyncConnectionPool, connection: psycopg.AsyncConnection
) -> None:
    failures = 2

    async def flaky(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        nonlocal failures
        await apply(message, conn)
        if message.payload == b"flaky" and failures:
            failures -= 1
            msg = "not yet"
            raise RuntimeError(msg)

    messages = [made("before", "k"), made("flaky", "k"), made("after", "k")]
    assert await sink(pool, flaky).publish(messages) == [Published(), Published(), Published()]
    assert await effects(connection) == ["before", "flaky", "after"]


async def test_what_never_succeeds_is_a_dead_letter_as_a_row(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    async def broken(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        await apply(message, conn)
        if message.payload == b"bad":
            msg = "never\0"
            raise ValueError(msg)

    bad = made("bad", "k")._replace(headers={"Tenant": "é"})
    assert await sink(pool, broken).publish([bad, made("good", "k")]) == [Published(), Published()]
    assert await effects(connection) == ["good"]
    cursor = await connection.execute(
        "SELECT message_id, consumer, topic, key, headers, payload, attempts, error FROM dedupe.consumer_dead"
    )
    assert await cursor.fetchall() == [(bad.id, "c", "orders.created", "k", {"Tenant": "é"}, b"bad", 3, "ValueError: never\\0")]
    assert await sink(pool, broken).publish([bad]) == [Published(duplicate=True)], "it is not handled again"


async def test_an_error_of_the_handlers_own_sql_rolls_back(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    async def broken(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        await apply(message, conn)
        await conn.execute("SELECT 1 / 0")

    assert await sink(pool, broken).publish([made("bad")]) == [Published()]
    assert await effects(connection) == []
    cursor = await connection.execute("SELECT error FROM dedupe.consumer_dead")
    assert await cursor.fetchall() == [("DivisionByZero: division by zero",)]


async def test_a_collision_is_nobodys_fault_and_not_counted(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    collisions = 10  # more than there are attempts

    async def colliding(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        nonlocal collisions
        if collisions:
            collisions -= 1
            await conn.execute("DO $$ BEGIN RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'; END $$")
        await apply(message, conn)

    assert await sink(pool, colliding).publish([made("m")]) == [Published()]
    assert await effects(connection) == ["m"]


async def test_a_lost_connection_releases_and_counts_nothing(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    cut = True

    async def cut_off(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        if cut:
            await connection.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
        await apply(message, conn)

    message = made("m")
    (outcome,) = await sink(pool, cut_off).publish([message])
    assert isinstance(outcome, Released)
    assert outcome.reason is Reason.UNAVAILABLE
    cut = False
    assert await sink(pool, cut_off).publish([message]) == [Published()]
    assert await effects(connection) == ["m"]


async def test_a_connection_that_was_lost_before_releases_and_counts_nothing(
    single: AsyncConnectionPool, connection: psycopg.AsyncConnection
) -> None:
    """Then the transaction has not even begun."""
    async with single.connection() as conn:
        pid = conn.info.backend_pid
    await connection.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
    message = made("m")
    (outcome,) = await sink(single).publish([message])
    assert isinstance(outcome, Released)
    assert outcome.reason is Reason.UNAVAILABLE
    assert await sink(single).publish([message]) == [Published()]
    assert await effects(connection) == ["m"]


async def test_an_id_that_another_transaction_has_for_longer_than_the_lock_timeout_is_waited_for_again(
    database: str, pool: AsyncConnectionPool, connection: psycopg.AsyncConnection
) -> None:
    await connection.execute("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET lock_timeout TO 20', current_database()); END $$")
    message = made("m")

    async def rollbacks() -> int:
        cursor = await connection.execute("SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()")
        return sum([count for (count,) in await cursor.fetchall()])

    async with await psycopg.AsyncConnection.connect(database) as other, AsyncConnectionPool(database, min_size=1, open=False) as late:
        assert await first_time(other, "c", [message.id]) == {message.id}
        before = await rollbacks()
        handling = asyncio.create_task(sink(late).publish([message]))

        async def is_refused() -> bool:
            return await rollbacks() >= before + 2 * (RETRY.max_attempts or 0)

        await eventually(is_refused)
        assert not handling.done(), "who waits for another is not to blame"
        await other.rollback()
        assert await handling == [Published()]
    assert await effects(connection) == ["m"]


async def test_a_handler_knows_what_became_of_a_statement_when_it_goes_on(
    pool: AsyncConnectionPool, connection: psycopg.AsyncConnection
) -> None:
    """As in any transaction of psycopg: the count of rows, an error where it happened, several statements in one, COPY and a cursor."""
    seen: list[object] = []

    async def looking(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        seen.append(conn.pgconn.pipeline_status)
        seen.append((await conn.execute("UPDATE effects SET payload = 'x' WHERE false")).rowcount)
        try:
            async with conn.transaction():
                await conn.execute("INSERT INTO effects (id) VALUES ('no id')")
                seen.append("not told")
        except psycopg.errors.InvalidTextRepresentation:
            seen.append("told")
        await conn.execute("SELECT 1; SELECT 2")
        async with conn.cursor() as cursor, cursor.copy("COPY effects (id, payload) FROM STDIN") as copy:
            await copy.write_row((message.id, message.payload.decode()))
        async with conn.cursor(name="named") as cursor:
            await cursor.execute("SELECT payload FROM effects")
            seen.append(await cursor.fetchall())

    assert await sink(pool, looking).publish([made("m")]) == [Published()]
    assert seen == [PipelineStatus.OFF, 0, "told", [("m",)]]
    assert await effects(connection) == ["m"]


async def test_a_handler_that_goes_on_after_an_error_of_its_transaction_has_failed(
    pool: AsyncConnectionPool, connection: psycopg.AsyncConnection
) -> None:
    """Its COMMIT would be a ROLLBACK, without an error: the message would be acknowledged, and its effect lost."""

    async def swallowing(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        await apply(message, conn)
        with suppress(psycopg.Error):
            await conn.execute("INSERT INTO effects (id) VALUES ('no id')")

    message, other = made("m"), made("other")
    handlers = HandlerSink(pool, lambda m, conn: (swallowing if m.id == message.id else apply)(m, conn), consumer="c", retry=RETRY)
    assert await handlers.publish([other, message]) == [Published()] * 2
    assert await effects(connection) == ["other"]
    cursor = await connection.execute("SELECT message_id, attempts, error FROM dedupe.consumer_dead")
    ((dead, attempts, error),) = await cursor.fetchall()
    assert (dead, attempts) == (message.id, RETRY.max_attempts)
    assert "gone on after an error" in error


async def test_a_statement_of_a_handler_ends_with_the_handlers_time(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    async def slow(_: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("SELECT pg_sleep(3600)")

    handlers = HandlerSink(pool, slow, consumer="c", retry=Backoff(first=0.01, cap=0.01, max_attempts=1), handler_timeout=0.05)
    assert await asyncio.wait_for(handlers.publish([made("m")]), 10) == [Published()]
    cursor = await connection.execute("SELECT error FROM dedupe.consumer_dead")
    assert [error for (error,) in await cursor.fetchall()] == ["TimeoutError"]


async def test_a_database_that_is_read_only_for_a_while_is_away_and_no_message_is_to_blame(
    single: AsyncConnectionPool, connection: psycopg.AsyncConnection
) -> None:
    """The fault suite found two good messages dead: their attempts were over while it was read-only, and it was not when they were buried.

    So there is no attempt, and no session that stays with a server that takes no writes.
    """
    message = made("m")
    async with asyncio.timeout(20):
        async with single.connection() as fenced:
            await fenced.execute("SET default_transaction_read_only = on")
        handlers = HandlerSink(single, apply, consumer="c", retry=Backoff(first=3600, cap=3600, max_attempts=2))
        (outcome,) = await handlers.publish([message])
        assert isinstance(outcome, Released)
        assert outcome.reason is Reason.UNAVAILABLE
        assert "read-only" in outcome.detail
        assert fenced.closed
        assert await handlers.publish([message]) == [Published()]
    assert await effects(connection) == ["m"]


async def test_a_handler_that_makes_its_own_transaction_read_only_has_failed(
    pool: AsyncConnectionPool, connection: psycopg.AsyncConnection
) -> None:
    async def reading(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("SET TRANSACTION READ ONLY")
        await apply(message, conn)

    assert await sink(pool, reading).publish([made("m")]) == [Published()]
    cursor = await connection.execute("SELECT attempts FROM dedupe.consumer_dead")
    assert await cursor.fetchall() == [(RETRY.max_attempts,)]


async def test_a_handler_that_hangs_has_failed(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    async def hanging(_: Message, __: psycopg.AsyncConnection[Any]) -> None:
        await asyncio.Event().wait()

    handlers = HandlerSink(pool, hanging, consumer="c", retry=Backoff(first=0.01, cap=0.01, max_attempts=2), handler_timeout=0.05)
    assert await handlers.publish([made("m")]) == [Published()]
    cursor = await connection.execute("SELECT attempts, error FROM dedupe.consumer_dead")
    assert await cursor.fetchall() == [(2, "TimeoutError")]


async def test_stopping_releases_what_waits_for_another_attempt(pool: AsyncConnectionPool) -> None:
    failed = asyncio.Event()

    async def failing(_: Message, __: psycopg.AsyncConnection[Any]) -> None:
        failed.set()
        msg = "no"
        raise RuntimeError(msg)

    handlers = HandlerSink(pool, failing, consumer="c", retry=Backoff(first=3600, cap=3600))
    publishing = asyncio.create_task(handlers.publish([made("m")]))
    await failed.wait()
    handlers.stop()
    (outcome,) = await asyncio.wait_for(publishing, 10)
    assert isinstance(outcome, Released)
    assert outcome.reason is Reason.STOPPING


async def test_processed_ids_wait_for_the_other_transaction(database: str, connection: psycopg.AsyncConnection) -> None:
    """A duplicate that arrives while the first is being handled waits; if that one rolls back, it is the first."""
    message_id = uuid7()
    async with await psycopg.AsyncConnection.connect(database) as first, await psycopg.AsyncConnection.connect(database) as second:
        assert await first_time(first, "c", [message_id]) == {message_id}
        waiting = asyncio.create_task(first_time(second, "c", [message_id]))

        async def blocked() -> bool:
            cursor = await connection.execute(
                "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return await cursor.fetchone() == (True,)

        await eventually(blocked)
        assert not waiting.done()
        await first.rollback()
        assert await waiting == {message_id}


async def test_a_statement_timeout_is_the_handlers_fault_and_not_an_outage(
    pool: AsyncConnectionPool, connection: psycopg.AsyncConnection
) -> None:
    async def slow(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        if message.payload == b"slow":
            await conn.execute("SET LOCAL statement_timeout = 20")
            await conn.execute("SELECT pg_sleep(60)")
        await apply(message, conn)

    assert await sink(pool, slow).publish([made("slow", "k"), made("good", "k")]) == [Published(), Published()]
    assert await effects(connection) == ["good"]
    cursor = await connection.execute("SELECT attempts FROM dedupe.consumer_dead")
    assert await cursor.fetchall() == [(3,)]


async def test_a_foreign_message_that_postgres_cannot_store_as_it_is_can_be_given_up(
    pool: AsyncConnectionPool, connection: psycopg.AsyncConnection
) -> None:
    async def broken(_: Message, __: psycopg.AsyncConnection[Any]) -> None:
        msg = "no"
        raise ValueError(msg)

    foreign = Message(uuid7(), "t\0", b"", "\0\x01\ud800", headers={"a": "b\0c"})
    assert await sink(pool, broken).publish([foreign]) == [Published()]
    cursor = await connection.execute("SELECT topic, key, headers FROM dedupe.consumer_dead")
    assert await cursor.fetchall() == [("t\\0", "\\0\x01?", {"a": "b\\0c"})]


async def test_guilty_messages_in_every_lane_do_not_exhaust_the_pool(database: str, connection: psycopg.AsyncConnection) -> None:
    await connection.execute(EFFECTS)

    async def flaky(message: Message, conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("SELECT pg_sleep(0.05)")
        if message.payload == b"bad":
            msg = "no"
            raise ValueError(msg)
        await apply(message, conn)

    messages = [made("bad" if n % 5 == 0 else str(n), key=f"key-{n}") for n in range(40)]
    async with AsyncConnectionPool(database, min_size=1, max_size=2, open=False, timeout=0.5) as small:
        handlers = HandlerSink(small, flaky, consumer="c", concurrency=2, retry=RETRY)
        assert await handlers.publish(messages) == [Published()] * 40
    assert len(await effects(connection)) == 32


async def test_the_empty_key_is_a_key(pool: AsyncConnectionPool, connection: psycopg.AsyncConnection) -> None:
    await sink(pool).publish([made(str(n), key="") for n in range(20)])
    assert await effects(connection) == [str(n) for n in range(20)]
