"""The janitor: the backlog measured by one daemon and known to all, the archive kept by day, and nobody's way stood in."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg
import pytest

from outbox import sql_watching
from outbox.janitor import ARCHIVE, Backlog, Janitor, measure_backlog
from tests.engines.daemons import Daemon
from tests.engines.deadline import eventually
from tests.engines.janitors import DAY, Figures, tidying, told
from tests.engines.partitions import partitions, today
from tests.integration import shop

if TYPE_CHECKING:
    from pathlib import Path


HELD = """INSERT INTO outbox.held (position, id, created_at, priority, lane, topic, key, content_type, headers, hold, payload)
SELECT %(first)s + n, gen_random_uuid(), now() - %(age)s * interval '1 second', 0, 0, 't', 'k', 'a', '{}', %(hold)s, ''
FROM generate_series(1, %(number)s) AS n"""


async def measured_at(connection: psycopg.AsyncConnection) -> object:
    cursor = await connection.execute("SELECT measured_at FROM outbox.figures")
    row = await cursor.fetchone()
    return row and row[0]


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
    assert len(told(caplog)) == 1, "told once"
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
    assert len(told(caplog)) == 1


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
