"""The partitions that the janitor makes, drops and sweeps."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from migrations.partitions import Patience, Upkeep
from migrations.schedule import Schedule
from outbox.janitor import ARCHIVE, keep_archive
from tests.engines.deadline import eventually
from tests.engines.janitors import DAY, Figures, archive, tidying, told
from tests.engines.partitions import make, partitions, rows, today

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from migrations.tidied import Tidied


DRAIN = Patience(turn=60.0)


async def test_partitions_are_made_ahead_for_each_retention_and_rows_land_in_them(connection: psycopg.AsyncConnection) -> None:
    begin = await today(connection)
    tidied = await keep_archive(connection, keep=[DAY, 7 * DAY])
    wanted = {ARCHIVE.name(begin + n * DAY) for n in (1, 2, 3, 4, 7, 8, 9, 10)}
    assert set(tidied.made) == wanted == await partitions(connection, "outbox.archive")
    assert not tidied.left
    assert not tidied.wrong
    for days in (1, 7, 10, 5):
        await archive(connection, days * DAY)
    landed = {ARCHIVE.name(begin + n * DAY): 1 for n in (1, 7, 10)}
    assert await rows(connection, "outbox.archive") == {**landed, "archive_default": 1}, "a day without a table loses nothing"
    again = await keep_archive(connection, keep=[DAY, 7 * DAY])
    assert (again.made, again.dropped, again.moved, again.swept) == ([], [], 0, 0), "all of it can be repeated"


async def test_a_partition_is_like_its_table(connection: psycopg.AsyncConnection) -> None:
    """Whatever the table has, an index above all, each partition has: the whole table's are attached and not made twice."""
    await keep_archive(connection, keep=[DAY])
    cursor = await connection.execute(
        "SELECT tablename, count(*) FROM pg_indexes WHERE schemaname = 'outbox' AND tablename LIKE 'archive%' GROUP BY 1"
    )
    assert {name: number for name, number in await cursor.fetchall() if number != 2} == {"archive_default": 3}, "it alone is swept"
    cursor = await connection.execute("SELECT bool_and(indisvalid) FROM pg_index WHERE indrelid = 'outbox.archive'::regclass")
    assert await cursor.fetchone() == (True,)


async def test_a_day_is_dropped_when_it_is_over_and_not_before(connection: psycopg.AsyncConnection) -> None:
    begin = await today(connection)
    await make(connection, ARCHIVE, [begin + n * DAY for n in (-30, -1, 0, 1)], schema="outbox")
    for days in (-30, -1, 0, 1):
        await archive(connection, days * DAY)
    tidied = await keep_archive(connection)
    assert tidied.dropped == [ARCHIVE.name(begin - 30 * DAY), ARCHIVE.name(begin - DAY)]
    assert await rows(connection, "outbox.archive") == {ARCHIVE.name(begin): 1, ARCHIVE.name(begin + DAY): 1}


async def test_what_is_in_the_default_partition_moves_into_a_new_one_or_is_swept(connection: psycopg.AsyncConnection) -> None:
    begin = await today(connection)
    await archive(connection, DAY, 5)
    await archive(connection, -timedelta(minutes=1), 25_000)
    tidied = await keep_archive(connection, keep=[DAY], patience=DRAIN)
    assert (tidied.moved, tidied.swept) == (5, 25_000)
    assert await rows(connection, "outbox.archive") == {ARCHIVE.name(begin + DAY): 5}


async def test_rows_that_are_not_committed_yet_leave_a_day_for_the_next_turn(database: str, connection: psycopg.AsyncConnection) -> None:
    async with await psycopg.AsyncConnection.connect(database) as writer:
        await archive(writer, DAY)
        began = time.monotonic()
        tidied = await keep_archive(connection, keep=[DAY])
        assert time.monotonic() - began < 3
        begin = await today(connection)
        assert set(tidied.left) == {ARCHIVE.name(begin + n * DAY) for n in (1, 2, 3, 4)}, "one that fails does not end it"
        assert set(tidied.late) == {ARCHIVE.name(begin + n * DAY) for n in (1, 2)}, "for these there are rows by tomorrow"
        assert not tidied.made
        await writer.commit()
    tidied = await keep_archive(connection, keep=[DAY])
    assert (len(tidied.made), tidied.moved) == (4, 1)


async def test_a_table_that_is_no_days_is_neither_dropped_nor_in_the_way(connection: psycopg.AsyncConnection) -> None:
    """One made by hand has a day's name and another range; another table has the name of a day that is wanted."""
    begin = await today(connection)
    await connection.execute(
        "CREATE TABLE outbox.archive_20200101 PARTITION OF outbox.archive FOR VALUES FROM ('2020-01-01 00:00Z') TO ('2020-02-01 00:00Z')"
    )
    taken = ARCHIVE.name(begin + 2 * DAY)
    await connection.execute(f"CREATE TABLE outbox.{taken} ()".encode())
    tidied = await keep_archive(connection, keep=[DAY])
    assert tidied.dropped == []
    assert tidied.wrong == {taken: f'relation "{taken}" already exists'}
    assert tidied.made == [ARCHIVE.name(begin + n * DAY) for n in (1, 3, 4)], "it goes on with the others"
    assert "archive_20200101" in await partitions(connection, "outbox.archive")


async def test_a_session_in_another_time_zone_sees_the_same_days(connection: psycopg.AsyncConnection) -> None:
    await connection.execute("SET timezone = 'Pacific/Auckland'")
    await connection.execute("SET datestyle = 'German'")
    assert len((await keep_archive(connection, keep=[DAY])).made) == 4
    again = await keep_archive(connection, keep=[DAY])
    assert (again.made, again.left, again.wrong) == ([], {}, {})


async def test_a_default_partition_too_large_to_look_through_is_said_and_not_locked(connection: psycopg.AsyncConnection) -> None:
    await archive(connection, 40 * DAY, 50_000)

    async def is_too_large() -> Tidied | None:
        tidied = await keep_archive(connection, keep=[DAY], patience=Patience(statement=0.002))
        assert not tidied.made
        # So short a time may be over before it comes to that.
        said = {"archive_default": "archive_default is too large to be looked through within 0.001 s"}
        return tidied if tidied.left == said else None

    tidied = await eventually(is_too_large)
    assert tidied is not None
    assert "`outboxd tidy` is more patient" in tidied.late[ARCHIVE.name(await today(connection) + DAY)]
    assert len((await keep_archive(connection, keep=[DAY])).made) == 4


async def test_only_one_is_at_it(database: str, connection: psycopg.AsyncConnection) -> None:
    async with await psycopg.AsyncConnection.connect(database) as other:
        await other.execute("SELECT pg_advisory_xact_lock(hashtextextended('outboxd.partitions.outbox.archive', 0))")
        tidied = await keep_archive(connection, keep=[DAY])
        assert set(tidied.left.values()) == {"canceling statement due to lock timeout"}
        assert not tidied.made
    results = await asyncio.gather(*(keep_alone(database) for _ in range(4)))
    made = [name for names in results for name in names]
    assert sorted(made) == [ARCHIVE.name(await today(connection) + n * DAY) for n in (1, 2, 3, 4)], "each is made, and by one"


async def keep_alone(dsn: str) -> list[str]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        tidied = await keep_archive(connection, keep=[DAY])
        assert not tidied.wrong
        return tidied.made


async def test_a_lock_of_somebody_elses_holds_up_nobody_for_long(database: str, connection: psycopg.AsyncConnection) -> None:
    """A long reader keeps a day from being dropped. Behind the attempt, the pump's inserts wait for the lock_timeout at the most."""
    begin = await today(connection)
    over = ARCHIVE.name(begin - 2 * DAY)
    await make(connection, ARCHIVE, [begin - 2 * DAY, begin + DAY], schema="outbox")
    figures = Figures()
    async with await psycopg.AsyncConnection.connect(database) as reader:
        await reader.execute("SELECT count(*) FROM outbox.archive")
        async with tidying(database, figures, archive=[DAY], keep_every=0.05):
            slowest = 0.0
            until = time.monotonic() + 2
            while time.monotonic() < until:
                began = time.monotonic()
                await archive(connection, DAY)
                slowest = max(slowest, time.monotonic() - began)
            assert slowest < 1
            turns = len(figures.seen)

            async def more() -> bool:
                return len(figures.seen) > turns + 2

            await eventually(more, what="turns beside the lock")
            assert over in await partitions(connection, "outbox.archive")
            await reader.rollback()

            async def gone() -> bool:
                return over not in await partitions(connection, "outbox.archive")

            await eventually(gone)


@asynccontextmanager
async def role_without_ddl(connection: psycopg.AsyncConnection) -> AsyncIterator[str]:
    name = f"pump_{secrets.token_hex(4)}"
    role = sql.Identifier(name)
    await connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    for schema in ("outbox", "dedupe"):
        await connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema), role))
        await connection.execute(
            sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {} TO {}").format(sql.Identifier(schema), role)
        )
    try:
        yield name
    finally:
        await connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        await connection.execute(sql.SQL("DROP ROLE {}").format(role))


async def test_without_the_right_there_is_one_warning_and_all_goes_on(
    database: str, connection: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "outboxd")
    figures = Figures()
    async with role_without_ddl(connection) as role, tidying(make_conninfo(database, user=role), figures, archive=[DAY], keep_every=0.05):

        async def many_turns() -> bool:
            return len(figures.seen) > 10

        await eventually(many_turns)
        await archive(connection, DAY)
    assert await rows(connection, "outbox.archive") == {"archive_default": 1}
    (warning,) = told(caplog)
    assert "run `outboxd tidy` every day as the owner of the schema" in warning


async def test_a_partition_belongs_to_whom_the_table_belongs_to(database: str, connection: psycopg.AsyncConnection) -> None:
    """Made by a superuser, it can be dropped by the schema's owner."""
    name = f"owner_{secrets.token_hex(4)}"
    role = sql.Identifier(name)
    await connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    try:
        await connection.execute(sql.SQL("GRANT ALL ON SCHEMA outbox TO {}").format(role))
        for table in ("archive", "archive_default"):
            await connection.execute(sql.SQL("ALTER TABLE outbox.{} OWNER TO {}").format(sql.Identifier(table), role))
        begin = await today(connection)
        await make(connection, ARCHIVE, [begin - 3 * DAY], schema="outbox")
        async with await psycopg.AsyncConnection.connect(make_conninfo(database, user=name), autocommit=True) as owner:
            tidied = await keep_archive(owner, keep=[DAY])
        assert tidied.dropped == [ARCHIVE.name(begin - 3 * DAY)]
        assert len(tidied.made) == 4
    finally:
        await connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
        await connection.execute(sql.SQL("DROP ROLE {}").format(role))


async def test_a_turn_that_has_no_time_left_leaves_the_rest(connection: psycopg.AsyncConnection) -> None:
    upkeep = Upkeep(connection, ARCHIVE, schema="outbox", patience=Patience(turn=-1.0))
    tidied = await upkeep.keep(Schedule(wanted=[await today(connection)]))
    assert tidied.left == {"archive_default": "no time is left in this turn of -1 s"}
