"""``outboxd tidy``: for those whose daemon may neither make nor drop partitions."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest

from dedupe.retention import PROCESSED
from migrations.partitions import Patience
from outbox.daemon import tidy
from outbox.janitor import ARCHIVE
from tests.engines.command import configured
from tests.engines.partitions import make, partitions, today

if TYPE_CHECKING:
    from datetime import date
    from pathlib import Path

    from tests.engines.command import Run

DAY = timedelta(days=1)
tidy_patience = tidy._BY_HAND
CONFIGURATION = """
[sinks.local]
kind = "inprocess"
[[routes]]
topics = "orders.>"
sink = "local"
archive = "7 days"
[[routes]]
topics = ">"
sink = "local"
[[consumers]]
app = "nowhere:consumer"
[dedupe]
keep = "2 days"
"""


@pytest.fixture
def file(tmp_path: Path, database: str) -> Path:
    return configured(tmp_path, CONFIGURATION, dsn=database)


def prepared(dsn: str) -> date:
    """Make a day of long ago in both tables, and return today."""

    async def prepare() -> date:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            begin = await today(connection)
            for daily, schema in ((ARCHIVE, "outbox"), (PROCESSED, "dedupe")):
                await make(connection, daily, [begin - 40 * DAY], schema=schema)
            await connection.execute(
                "INSERT INTO dedupe.processed (message_id, consumer, processed_at) VALUES (%s, 'c', now() - interval '40 days')", (uuid4(),)
            )
            return begin

    return asyncio.run(prepare())


def days_of(dsn: str, table: str) -> set[str]:
    async def look() -> set[str]:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            return await partitions(connection, table)

    return asyncio.run(look())


def test_it_makes_and_drops_what_the_configuration_says(outboxd: Run, database: str, file: Path) -> None:
    begin = prepared(database)
    code, said, _ = outboxd("tidy", "-c", str(file))
    assert code == 0
    assert days_of(database, "outbox.archive") == {ARCHIVE.name(begin + n * DAY) for n in range(7, 18)}
    assert days_of(database, "dedupe.processed") == {PROCESSED.name(begin + n * DAY) for n in range(-1, 11)}
    archive, processed = said.splitlines()
    assert archive.startswith(f"outbox.archive: made {ARCHIVE.name(begin + 7 * DAY)}, ")
    assert archive.endswith(f"; dropped {ARCHIVE.name(begin - 40 * DAY)}")
    assert processed.endswith(f"; dropped {PROCESSED.name(begin - 40 * DAY)}; 1 rows swept")
    assert outboxd("tidy", "-c", str(file))[:2] == (0, "outbox.archive: nothing to do\ndedupe.processed: nothing to do\n")


def test_with_another_dsn_it_goes_there_with_what_the_configuration_says(outboxd: Run, database: str, tmp_path: Path) -> None:
    """As the owner of the schemas, whom the daemon's configuration does not know."""
    begin = prepared(database)
    file = configured(tmp_path, CONFIGURATION, dsn="postgresql://127.0.0.1:1/x")
    assert outboxd("tidy", "-c", str(file), "--dsn", database)[0] == 0
    assert PROCESSED.name(begin - 40 * DAY) not in days_of(database, "dedupe.processed")


def test_without_a_configuration_no_processed_id_is_dropped(outboxd: Run, database: str) -> None:
    """How long they are kept is not known. What is archived bears the day on which it goes."""
    begin = prepared(database)
    code, said, _ = outboxd("tidy", "--dsn", database)
    assert code == 0
    assert f"outbox.archive: dropped {ARCHIVE.name(begin - 40 * DAY)}\n" in said
    assert PROCESSED.name(begin - 40 * DAY) in days_of(database, "dedupe.processed")
    assert PROCESSED.name(begin + 10 * DAY) in days_of(database, "dedupe.processed")


def test_what_is_left_is_exit_code_1(outboxd: Run, database: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has to come back for it."""
    begin = prepared(database)
    monkeypatch.setattr(tidy, "_BY_HAND", Patience(lock=0.01))
    with psycopg.connect(database) as reader:
        reader.execute("SELECT count(*) FROM dedupe.processed")
        code, said, _ = outboxd("tidy", "-c", str(file))
    assert code == 1
    assert f"dedupe.processed: left for the next time: {PROCESSED.name(begin - 40 * DAY)}: canceling statement due to lock timeout" in said
    assert Patience().lock < tidy_patience.lock, "by hand it is waited for longer"


def test_a_schema_that_is_not_there_is_said(outboxd: Run, empty_database: str) -> None:
    code, said, _ = outboxd("tidy", "--dsn", empty_database)
    assert code == 0
    assert "outbox: no schema outbox in database" in said
    assert "dedupe: no schema dedupe in database" in said


def test_what_somebody_must_look_at_is_exit_code_1(outboxd: Run, database: str, file: Path) -> None:
    begin = prepared(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE outbox.{ARCHIVE.name(begin + 7 * DAY)} ()".encode())
    code, said, _ = outboxd("tidy", "-c", str(file))
    assert code == 1
    assert f"outbox.archive: PROBLEM: {ARCHIVE.name(begin + 7 * DAY)}: relation" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tidy"], "postgres: is needed"),
        (["tidy", "-c", "/nowhere/outboxd.toml"], "/nowhere/outboxd.toml: no such file"),
        (["tidy", "--dsn", "nonsense"], "dsn: is not a libpq connection string"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(outboxd: Run, arguments: list[str], says: str) -> None:
    code, out, err = outboxd(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"outboxd: {says}")
    assert len(err.splitlines()) == 1
