"""The days of the tables are kept however busy these are; what is not kept is told, by the daemon, by `doctor` and by `check`."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bridges.errors import ConfigurationError
from dedupe import Consumer
from dedupe.retention import PROCESSED, SLACK, keep_processed, processed_schedule
from migrations.partitions import Patience
from migrations.schedule import milliseconds
from migrations.tidied import Announcer, Tidied
from outbox import doctor
from outbox.daemon.check import check_days
from outbox.daemon.config import load
from outbox.daemon.days import ConsumersDays, days_of
from outbox.daemon.inspection import diagnose
from outbox.janitor import ARCHIVE, archive_schedule, keep_archive
from tests.engines.command import configured
from tests.engines.deadline import eventually
from tests.engines.janitors import told
from tests.engines.partitions import make, partitions, today

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from outbox.daemon.config import Settings

DAY = timedelta(days=1)
CONFIGURATION = """
[sinks.local]
kind = "inprocess"
[[routes]]
topics = "orders.>"
sink = "local"
archive = "40 days"
[[routes]]
topics = "other.>"
sink = "local"
[[consumers]]
app = "tests.integration.shop:consumer"
"""


@asynccontextmanager
async def busy(dsn: str, *, workers: int, seconds: float) -> AsyncIterator[None]:
    """Consumers whose transactions last for some time, the one beginning before the other ends."""
    stopping = asyncio.Event()
    begun = [asyncio.Event() for _ in range(workers)]

    async def consume(number: int) -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            if number:
                await begun[number - 1].wait()
            while not stopping.is_set():
                # A row on its way to the default partition finds its day attached: `HandlerSink` tries that again.
                with suppress(psycopg.errors.CheckViolation):
                    async with connection.transaction():
                        await connection.execute("INSERT INTO dedupe.processed (message_id, consumer) VALUES (outbox.uuid7(), 'c')")
                        await connection.execute("SELECT pg_sleep(%s)", (seconds / workers,))
                        begun[number].set()
                        await connection.execute("SELECT pg_sleep(%s)", (seconds - seconds / workers,))

    async with asyncio.TaskGroup() as group:
        for number in range(workers):
            group.create_task(consume(number))
        for each in begun:
            await each.wait()
        try:
            yield
        finally:
            stopping.set()


async def test_days_are_made_and_dropped_beside_consumers_who_are_always_at_work(
    database: str, connection: psycopg.AsyncConnection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """None of their transactions ends within the first patience of a turn; it grows until one has its turn."""
    caplog.set_level(logging.WARNING, "outboxd")
    begin = await today(connection)
    await make(connection, PROCESSED, [begin - 40 * DAY, begin - 41 * DAY], schema="dedupe")
    days = ConsumersDays(database, schema="dedupe", keep=2 * DAY, every=0.01)
    wanted = {PROCESSED.name(begin + n * DAY) for n in range(-1, 4)}
    async with busy(database, workers=3, seconds=1.5):
        running = asyncio.create_task(days.run())

        async def kept() -> bool:
            return await partitions(connection, "dedupe.processed") == wanted

        await eventually(kept, within=60)
        running.cancel()
        await asyncio.wait({running})
    said = told(caplog)
    assert any(line.startswith(f"{PROCESSED.name(begin)}: it is not made, though its rows come in by tomorrow (") for line in said)
    assert len(said) == len(set(said)), "each once"


def test_patience_grows_and_has_an_end() -> None:
    grown = [Patience().grown(turns) for turns in (0, 1, 2, 3, 99)]
    assert [each.lock for each in grown] == [0.2, 1.0, 5.0, 10.0, 10.0]
    assert all(each.statement > each.lock for each in grown), "a wait for a lock is part of its statement"


def test_a_trouble_is_told_when_it_comes_and_when_it_has_gone_each_time(caplog: pytest.LogCaptureFixture) -> None:
    announcer = Announcer(logging.getLogger("outboxd.test"))
    for late in ({"a": "late"}, {"a": "late"}, {}, {}, {"a": "late"}):
        announcer.tell(Tidied("processed", late=late))
    assert [record.getMessage() for record in caplog.records] == ["a: late", "a: is as it should be again", "a: late"]


def test_a_role_that_may_not_is_told_of_only_if_nobody_else_keeps_the_days(caplog: pytest.LogCaptureFixture) -> None:
    announcer = Announcer(logging.getLogger("outboxd.test"))
    announcer.tell(Tidied("processed", forbidden="must be owner"))
    assert not caplog.records
    announcer.tell(Tidied("processed", forbidden="must be owner", late={"processed_20260101": "late"}))
    (record,) = caplog.records
    assert "run `outboxd tidy` every day" in record.getMessage()


# --- what is told by doctor and check -----------------------------------------------------------------------------------------------


def settings(folder: Path, dsn: str, configuration: str = CONFIGURATION) -> Settings:
    return load(configured(folder, configuration, dsn=dsn))


async def test_the_doctor_finds_days_that_nobody_keeps(connection: psycopg.AsyncConnection[Any]) -> None:
    begin = await today(connection)
    await make(connection, ARCHIVE, [begin - 2 * DAY, begin - DAY, begin + 7 * DAY], schema="outbox")
    for days in (3, 0):
        await connection.execute(
            "INSERT INTO outbox.archive_default SELECT 1, gen_random_uuid(), now(), NULL, NULL, now(), now() - %s * interval '1 day', 0, 0,"
            " 't', NULL, 'a', '{}', 'events', ''",
            (days,),
        )

    async def found() -> dict[str, str]:
        search = doctor.find_late_days(connection, ARCHIVE, lambda now: archive_schedule(now, [7 * DAY]), schema="outbox")
        return {finding.what: finding.problem async for finding in search}

    assert await found() == {
        f"table outbox.{ARCHIVE.name(begin + 8 * DAY)}": "it is not made, though its rows come in by tomorrow",
        f"table outbox.{ARCHIVE.name(begin - 2 * DAY)}": "it is not dropped, though over for more than a day",
        "table outbox.archive_default": "1 row not deleted, though over for a day",
    }
    await keep_archive(connection, keep=[7 * DAY])
    assert await found() == {}


async def test_the_doctor_finds_processed_ids_that_nobody_deletes(connection: psycopg.AsyncConnection[Any]) -> None:
    begin = await today(connection)
    await make(connection, PROCESSED, [begin, begin + DAY], schema="dedupe")
    long_ago = 30 * DAY + SLACK + 2 * DAY
    await connection.execute(
        "INSERT INTO dedupe.processed (message_id, consumer, processed_at) VALUES (gen_random_uuid(), 'c', now() - %s)", (long_ago,)
    )
    search = doctor.find_late_days(connection, PROCESSED, lambda now: processed_schedule(now, 30 * DAY), schema="dedupe")
    assert [finding.what async for finding in search] == ["table dedupe.processed_default"]


async def test_the_doctor_finds_what_consumers_would_set_aside(
    database: str, connection: psycopg.AsyncConnection[Any], tmp_path: Path
) -> None:
    for topic, due in (("orders.late", 31), ("orders.soon", 29), ("unheard", 31)):
        await connection.execute(
            "INSERT INTO outbox.deferred (position, id, created_at, priority, lane, topic, content_type, headers, payload, due_at,"
            " attempts)"
            " SELECT %(due)s * -1 - length(%(topic)s), gen_random_uuid(), now(), 0, 0, %(topic)s, 'a', '{}', '',"
            " now() + %(due)s * interval '1 day', 0",
            {"topic": topic, "due": due},
        )
    await connection.execute(
        "INSERT INTO outbox.dead (position, id, created_at, attempts, priority, lane, topic, content_type, headers, reason, payload)"
        " VALUES (-1, gen_random_uuid(), now() - interval '31 days', 1, 0, 0, 'orders.dead', 'a', '{}', 'invalid', '')"
    )
    findings = {finding.what: finding.problem async for finding in diagnose(settings(tmp_path, database))}
    assert findings["deferred messages"].endswith("set them aside: orders.late")
    assert findings["dead messages"].endswith("set them aside: orders.dead")
    assert findings["route orders.>"].startswith("it is archived for 40 days, 0:00:00, and processed ids are kept for 30 days")


async def test_check_says_who_keeps_the_days(database: str, connection: psycopg.AsyncConnection[Any], tmp_path: Path) -> None:
    async def said(dsn: str) -> dict[str, str | None]:
        return {finding.what: finding.problem async for finding in check_days(settings(tmp_path, dsn))}

    assert set((await said(database)).values()) == {None}, "the daemons will"
    name = f"pump_{secrets.token_hex(4)}"
    role = sql.Identifier(name)
    await connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    try:
        for schema in ("outbox", "dedupe"):
            await connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema), role))
            await connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}").format(sql.Identifier(schema), role))
        there = make_conninfo(database, user=name)
        problems = await said(there)
        assert len(problems) == 2
        assert all(problem and "run `outboxd tidy` every day as the owner of the schema" in problem for problem in problems.values())
        begin = await today(connection)
        await make(connection, ARCHIVE, [begin + 40 * DAY, begin + 41 * DAY], schema="outbox")
        await make(connection, PROCESSED, [begin, begin + DAY], schema="dedupe")
        assert set((await said(there)).values()) == {None}, "somebody does"
    finally:
        await connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        await connection.execute(sql.SQL("DROP ROLE {}").format(role))


async def test_a_role_that_may_not_say_what_it_drops_drops_nothing(database: str, connection: psycopg.AsyncConnection[Any]) -> None:
    """It may delete processed ids, and not raise `processed_since`."""
    begin = await today(connection)
    name = f"pump_{secrets.token_hex(4)}"
    role = sql.Identifier(name)
    await connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    try:
        await connection.execute(sql.SQL("GRANT USAGE ON SCHEMA dedupe TO {}").format(role))
        await connection.execute(sql.SQL("GRANT SELECT, INSERT, DELETE ON ALL TABLES IN SCHEMA dedupe TO {}").format(role))
        old = UUID(int=milliseconds((await today_at_noon(connection)) - 40 * DAY) << 80 | 7 << 76 | 2 << 62)
        await connection.execute("INSERT INTO dedupe.processed VALUES (%s, now() - interval '40 days', 'c')", (old,))
        async with await psycopg.AsyncConnection.connect(make_conninfo(database, user=name), autocommit=True) as pump:
            tidied = await keep_processed(pump, keep=30 * DAY)
        assert tidied.swept == 0
        assert tidied.forbidden
        assert PROCESSED.name(begin) in tidied.late
        assert (await keep_processed(connection, keep=30 * DAY)).swept == 1
    finally:
        await connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        await connection.execute(sql.SQL("DROP ROLE {}").format(role))


async def today_at_noon(connection: psycopg.AsyncConnection[Any]) -> Any:
    ((noon,),) = await (await connection.execute("SELECT date_trunc('day', now()) + interval '12 hours'")).fetchall()
    return noon


def test_a_consumer_is_looked_for_where_it_was_made_for(tmp_path: Path) -> None:
    """And, if its program is not here, where the configuration says."""
    configuration = (
        CONFIGURATION + '[[consumers]]\napp = "b:c"\ndsn = "postgresql://127.0.0.1:1/b"\n[[consumers]]\napp = "nowhere:consumer"\n'
    )
    own = "postgresql://127.0.0.1:1/a"
    made = {
        "tests.integration.shop:consumer": Consumer("a", dsn="postgresql://127.0.0.1:1/made", schema="made"),
        "b:c": Consumer("b", schema="special"),
    }

    def imported(section: Any) -> Consumer:
        if section.app not in made:
            raise ConfigurationError(section.app)
        return made[section.app]

    found = [(days.dsn, days.schema) for days in days_of(settings(tmp_path, own, configuration), imported) if days.daily is PROCESSED]
    assert found == [("postgresql://127.0.0.1:1/made", "made"), ("postgresql://127.0.0.1:1/b", "special"), (own, "dedupe")]
