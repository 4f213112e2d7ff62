"""The janitor: the backlog measured by one daemon and known to all, the archive kept by day, and nobody's way stood in."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bridges.backoff import Backoff
from migrations.partitions import Patience, Upkeep
from migrations.schedule import Schedule
from outbox import sql_watching
from outbox.janitor import ARCHIVE, Backlog, Janitor, keep_archive, measure_backlog
from tests.engines.daemons import Daemon
from tests.engines.deadline import eventually
from tests.engines.partitions import make, partitions, rows, today
from tests.integration import shop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from migrations.tidied import Tidied

DAY = timedelta(days=1)
SOON = Backoff(first=0.01, cap=0.05)
DRAIN = Patience(turn=60.0)

ARCHIVED = """INSERT INTO outbox.archive (position, id, created_at, drop_at, priority, lane, topic, content_type, headers, destination,
                                                     payload)
SELECT n, gen_random_uuid(), now(), clock_timestamp() + %s, 0, 0, 't', 'a', '{}', 'events', '' FROM generate_series(1, %s) AS n"""
HELD = """INSERT INTO outbox.held (position, id, created_at, priority, lane, topic, key, content_type, headers, hold, payload)
SELECT %(first)s + n, gen_random_uuid(), now() - %(age)s * interval '1 second', 0, 0, 't', 'k', 'a', '{}', %(hold)s, ''
FROM generate_series(1, %(number)s) AS n"""


class Figures:
    """What a janitor has handed out."""

    def __init__(self) -> None:
        self.seen: list[tuple[Backlog, float]] = []

    def __call__(self, backlog: Backlog, age: float) -> None:
        self.seen.append((backlog, age))

    async def some(self) -> bool:
        return bool(self.seen)


@asynccontextmanager
async def tidying(dsn: str, figures: Figures | None = None, **settings: Any) -> AsyncIterator[Janitor]:
    """Run a janitor for as long as the context lasts. An error of it is an error of the test."""
    janitor = Janitor(dsn, figures or Figures(), **{"measure_every": 0.05, "outage": SOON, **settings})
    running = asyncio.create_task(janitor.run())
    try:
        yield janitor
    finally:
        janitor.stop()
        await asyncio.wait_for(running, 10)


async def archive(connection: psycopg.AsyncConnection, drop_in: timedelta, number: int = 1) -> None:
    await connection.execute(ARCHIVED, (drop_in, number))


async def measured_at(connection: psycopg.AsyncConnection) -> object:
    cursor = await connection.execute("SELECT measured_at FROM outbox.figures")
    row = await cursor.fetchone()
    return row and row[0]


# --- partitions ---------------------------------------------------------------------------------------------------------------------


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


# --- figures ------------------------------------------------------------------------------------------------------------------------


async def test_what_is_held_is_told_apart(connection: psycopg.AsyncConnection) -> None:
    await connection.execute(
        "INSERT INTO outbox.holds (hold, head, lane, due_at, attempts, destination) VALUES ('key:a', 1, 0, now(), 1, NULL),"
        " ('key:b', 2, 0, NULL, 0, NULL), ('key:c', 3, 0, NULL, 0, NULL), ('sink:events/0', NULL, 0, now(), 0, 'events'),"
        " ('sink:events/1', NULL, 1, now(), 0, 'events'), ('sink:other/0', NULL, 0, now(), 0, 'other')"
    )
    for first, (hold, number) in enumerate({"key:a": 2, "key:b": 3, "sink:events/0": 4, "sink:events/1": 5, "sink:other/0": 1}.items()):
        age = 9999 if hold == "key:b" else 60
        await connection.execute(HELD, {"first": 100 * first, "hold": hold, "number": number, "age": age})
    backlog = await measure_backlog(connection)
    assert backlog.held == 15
    assert backlog.held_by == {"key": 2, "operator": 3, "events": 9, "other": 1}
    assert 60 <= backlog.oldest_seconds < 120, "what waits for an operator could not have gone"


async def test_an_empty_outbox_is_all_zero(connection: psycopg.AsyncConnection) -> None:
    assert await measure_backlog(connection) == Backlog(0, 0, 0, 0, 0.0, {})


async def test_one_measures_and_all_get_the_figures(database: str, connection: psycopg.AsyncConnection) -> None:
    await connection.execute(
        "CREATE TABLE measurements (n bigint GENERATED ALWAYS AS IDENTITY);"
        "CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.measurements DEFAULT VALUES; RETURN NEW; END $$;"
        "CREATE TRIGGER count_it BEFORE INSERT ON outbox.figures FOR EACH ROW EXECUTE FUNCTION count_it();"
        "SELECT outbox.put('t', '{}') FROM generate_series(1, 7)"
    )
    one, two, three = Figures(), Figures(), Figures()
    async with tidying(database, one, measure_every=60), tidying(database, two, measure_every=60):
        await eventually(one.some)
        async with tidying(database, two, measure_every=60), tidying(database, three, measure_every=60):
            await eventually(two.some)
            await eventually(three.some)
    for figures in (one, two, three):
        assert figures.seen[-1][0].messages == 7
        assert figures.seen[-1][1] < 10
    cursor = await connection.execute("SELECT count(*) FROM measurements")
    assert await cursor.fetchone() == (1,)


async def test_when_one_dies_another_takes_over(database: str, connection: psycopg.AsyncConnection) -> None:
    """The one that measures hangs in the middle of it; when its session ends, the next to come measures."""
    await connection.execute("INSERT INTO outbox.figures (measured_at, figures) VALUES (now() - interval '1 hour', %s)", (OLD,))
    figures = Figures()
    leader = await psycopg.AsyncConnection.connect(database)
    try:
        await leader.execute("SELECT pg_advisory_xact_lock(hashtextextended('outboxd.janitor.outbox', 0))")
        async with tidying(database, figures):
            await eventually(figures.some)
            assert figures.seen[-1][0].messages == 777
            assert figures.seen[-1][1] >= 3600, "their age is told, and is what readiness is judged by"
            await connection.execute("SELECT pg_terminate_backend(%s)", (leader.info.backend_pid,))

            async def measured() -> bool:
                return figures.seen[-1][0].messages == 0 and figures.seen[-1][1] < 10

            await eventually(measured)
    finally:
        await leader.close()


OLD = '{"messages": 777, "held": 0, "deferred": 0, "dead": 0, "oldest_seconds": 0.0, "held_by": {}, "of a newer version": 1}'


async def test_figures_from_the_future_are_measured_again(database: str, connection: psycopg.AsyncConnection) -> None:
    """The clock was set back, as it may be when a standby takes over."""
    await connection.execute("INSERT INTO outbox.figures (measured_at, figures) VALUES (now() + interval '1 hour', %s)", (OLD,))
    figures = Figures()
    async with tidying(database, figures, measure_every=60):
        await eventually(figures.some)
    assert figures.seen[0][0].messages == 0


async def test_a_lost_connection_is_logged_once_and_made_again(
    database: str, connection: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "outboxd")
    figures = Figures()
    async with tidying(database, figures):
        await eventually(figures.some)
        await connection.execute("ALTER TABLE outbox.figures RENAME TO figures_away")

        async def told() -> bool:
            return "the janitor cannot work" in caplog.text

        await eventually(told)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'outboxd janitor' AND datname = current_database()"
        )
        await connection.execute("ALTER TABLE outbox.figures_away RENAME TO figures")

        async def works() -> bool:
            return "the janitor works again" in caplog.text

        await eventually(works)
    assert caplog.text.count("the janitor cannot work") == caplog.text.count("the janitor works again")


async def test_a_backlog_that_takes_too_long_to_count_is_estimated_and_the_archive_is_kept(
    database: str, connection: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "outboxd")
    await connection.execute("SELECT outbox.put('t', '{}') FROM generate_series(1, 3)")
    await connection.execute("SELECT pg_stat_force_next_flush()" if connection.info.server_version >= 150000 else "SELECT 1")
    monkeypatch.setattr(sql_watching, "BACKLOG", "SELECT pg_sleep(3600)")
    monkeypatch.setattr(sql_watching, "CONFIGURE_JANITOR", sql_watching.CONFIGURE_JANITOR.replace("'10s'", "'100ms'", 1))
    figures = Figures()
    async with tidying(database, figures, archive=[DAY]):

        async def estimated() -> bool:
            return len(await partitions(connection, "outbox.archive")) == 4 and any(seen.messages == 3 for seen, _ in figures.seen)

        await eventually(estimated)
    assert figures.seen[-1][1] < 10
    assert len(caplog.records) == 1, "told once"
    assert "estimate" in caplog.text


async def test_figures_that_cannot_be_had_do_not_keep_the_archive_from_being_kept(
    database: str, connection: psycopg.AsyncConnection
) -> None:
    await connection.execute("ALTER TABLE outbox.figures RENAME TO figures_away")
    async with tidying(database, archive=[DAY]):

        async def kept() -> bool:
            return len(await partitions(connection, "outbox.archive")) == 4

        await eventually(kept)


async def test_a_postgres_that_is_away_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "outboxd")
    async with tidying("postgresql://127.0.0.1:1/nowhere") as janitor:

        async def tried() -> bool:
            return janitor._failures > 3

        await eventually(tried)
    assert len(caplog.records) == 1


async def test_it_stops_from_any_state(database: str) -> None:
    janitor = Janitor(database, Figures())
    janitor.stop()
    janitor.stop()
    await asyncio.wait_for(janitor.run(), 10)
    await asyncio.wait_for(janitor.run(), 10)
    figures = Figures()
    running = asyncio.create_task(Janitor(database, figures, measure_every=60).run())
    await eventually(figures.some)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert running.cancelled()


async def test_an_error_of_ours_ends_it(database: str) -> None:
    def broken(_: Backlog, __: float) -> None:
        msg = "ours"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="ours"):
        await asyncio.wait_for(Janitor(database, broken).run(), 20)


# --- rights, and the daemon ---------------------------------------------------------------------------------------------------------


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
    (warning,) = caplog.records
    assert "run `outboxd tidy` every day as the owner of the schema" in warning.getMessage()


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


CONFIGURATION = """
[pump]
batch = 20
[sinks.local]
kind = "inprocess"
[[routes]]
topics = "orders.>"
sink = "local"
archive = "7 days"
[[consumers]]
app = "tests.integration.shop:consumer"
[dedupe]
keep = "2 days"
"""


async def test_daemons_keep_the_days_and_export_the_same_figures(
    database: str, connection: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    await connection.execute(shop.TABLE)
    begin = await today(connection)
    await connection.execute(
        "INSERT INTO outbox.holds (hold, lane, due_at, attempts) VALUES ('key:k', 0, NULL, 0);"
        "INSERT INTO outbox.dead (position, id, created_at, attempts, priority, lane, topic, content_type, headers, reason, payload)"
        " SELECT -n, gen_random_uuid(), now(), 1, 0, 0, 't', 'a', '{}', 'invalid', '' FROM generate_series(1, 3) AS n"
    )
    async with Daemon(tmp_path, CONFIGURATION, database) as one, Daemon(tmp_path, CONFIGURATION, database) as two:
        for daemon in (one, two):
            text = await daemon.answers("/metrics", 200, having="outbox_dead_letters 3.0")
            assert 'outbox_held_for_destination{sink="local"} 0.0' in text
            await daemon.answers("/readyz", 200)

        async def all_made() -> bool:
            wanted = {ARCHIVE.name(begin + n * DAY) for n in (7, 8, 9, 10)}
            kept = {f"processed_{begin + n * DAY:%Y%m%d}" for n in range(-1, 4)}
            return wanted <= await partitions(connection, "outbox.archive") and kept <= await partitions(connection, "dedupe.processed")

        await eventually(all_made)


async def test_a_turn_that_has_no_time_left_leaves_the_rest(connection: psycopg.AsyncConnection) -> None:
    upkeep = Upkeep(connection, ARCHIVE, schema="outbox", patience=Patience(turn=-1.0))
    tidied = await upkeep.keep(Schedule(wanted=[await today(connection)]))
    assert tidied.left == {"archive_default": "no time is left in this turn of -1 s"}
