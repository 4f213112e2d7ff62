"""The runner: once each, in order, never two at a time, and never over what it does not know."""

from __future__ import annotations

import re
import threading
import time
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from migrations import runner
from migrations.names import MigrationError
from migrations.runner import TRACKS, Migration, applied_to, check_up_to_date, max_payload_statement, migrate, migrations_of, script

# Everything a schema consists of, as Postgres itself writes it.
CATALOGUE = """
SELECT 'column', c.table_name || '.' || c.column_name,
       concat_ws(' ', c.ordinal_position, c.data_type, c.is_nullable, c.column_default, c.is_identity, c.generation_expression)
FROM information_schema.columns c WHERE c.table_schema = %(schema)s
UNION ALL SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = %(schema)s::regnamespace
UNION ALL SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = %(schema)s
UNION ALL SELECT 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid)
FROM pg_proc p WHERE pronamespace = %(schema)s::regnamespace
UNION ALL SELECT 'trigger', tgname, pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class r ON r.oid = tgrelid
    WHERE relnamespace = %(schema)s::regnamespace AND NOT tgisinternal
UNION ALL SELECT 'options', relname, array_to_string(reloptions, ',') FROM pg_class WHERE relnamespace = %(schema)s::regnamespace
ORDER BY 1, 2, 3"""


def catalogue(dsn: str, schema: str) -> list[tuple[str, str, str]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(CATALOGUE, {"schema": schema}).fetchall()


@pytest.mark.parametrize("track", TRACKS)
def test_it_applies_everything_once(empty_database: str, track: str) -> None:
    with psycopg.connect(empty_database) as connection:
        assert migrate(connection, track, schema=track) == migrations_of(track)
        assert migrate(connection, track, schema=track) == []
        check_up_to_date(connection, track, schema=track)


@pytest.mark.parametrize("track", TRACKS)
def test_fresh_equals_upgraded(empty_database: str, database: str, track: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema that went through every version one by one is the same, to the letter, as one that was made at once."""
    known = migrations_of(track)
    for version in range(1, len(known) + 1):
        monkeypatch.setattr(runner, "migrations_of", lambda _, upto=version: known[:upto])
        with psycopg.connect(empty_database) as connection:
            migrate(connection, track, schema=track)
    assert catalogue(empty_database, track) == catalogue(database, track)


@pytest.mark.parametrize("track", TRACKS)
def test_the_script_makes_the_same_schema_and_is_recognised(empty_database: str, database: str, track: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(script(track, schema=track))
    assert catalogue(empty_database, track) == catalogue(database, track)
    with psycopg.connect(empty_database) as connection:
        assert migrate(connection, track, schema=track) == []


def test_both_tracks_fit_into_one_schema(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        for track in TRACKS:
            migrate(connection, track, schema="together")
            check_up_to_date(connection, track, schema="together")


def test_two_runners_at_once(empty_database: str) -> None:
    """One applies, the other waits for it and finds nothing to do."""
    done: list[list[Migration]] = []

    def run() -> None:
        with psycopg.connect(empty_database) as connection:
            done.append(migrate(connection, "outbox", schema="outbox"))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, done)) == [0, 0, 0, len(migrations_of("outbox"))]


def test_a_newer_schema_is_refused(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO outbox.migrations VALUES (9999, now(), 'outbox', 'future', 'x')")
        connection.commit()
        for action in (migrate, check_up_to_date):
            with pytest.raises(MigrationError, match=r"9999 \(future\).*newer outboxd"):
                action(connection, "outbox", schema="outbox")


def test_a_changed_file_is_refused(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE outbox.migrations SET checksum = 'other'")
        connection.commit()
        with pytest.raises(MigrationError, match="changed after it was applied"):
            migrate(connection, "outbox", schema="outbox")


def test_a_failing_file_leaves_nothing_of_itself(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Migration("outbox", 2, "bad", 'CREATE TABLE :"schema".half (); SELECT 1 / 0;')
    known = migrations_of("outbox")
    monkeypatch.setattr(runner, "migrations_of", lambda _: [*known, bad])
    with psycopg.connect(empty_database) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            migrate(connection, "outbox", schema="outbox")
        assert connection.execute("SELECT to_regclass('outbox.half')").fetchone() == (None,)
        assert [row.version for row in applied_to(connection, "outbox", schema="outbox")] == [1]
        locks = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()").fetchone()
        assert locks == (0,), "the lock is given back"


def test_a_schema_that_lacks_something_is_named(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection, pytest.raises(MigrationError, match="outboxd migrate"):
        check_up_to_date(connection, "outbox", schema="outbox")


@pytest.mark.parametrize("name", ["", "Outbox", "a-b", "1a", 'a"b', "a" * 64, "a.b"])
def test_bad_schema_names_are_refused(name: str) -> None:
    with pytest.raises(MigrationError, match="schema"):
        script("outbox", schema=name)


def test_an_unknown_track_is_refused() -> None:
    with pytest.raises(MigrationError, match="outbox, dedupe"):
        migrations_of("inbox")


def test_a_role_that_owns_its_schema_needs_no_more(empty_database: str) -> None:
    """The schema was made for it, and it may create none."""
    role = sql.Identifier("owner_of_one_schema")
    with psycopg.connect(empty_database) as connection:
        connection.execute(sql.SQL("CREATE ROLE {}").format(role))
        connection.execute(sql.SQL("CREATE SCHEMA outbox AUTHORIZATION {}").format(role))
        connection.execute(sql.SQL("SET ROLE {}").format(role))
        connection.commit()
        try:
            assert migrate(connection, "outbox", schema="outbox") == migrations_of("outbox")
        finally:
            connection.execute("RESET ROLE")
            connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


def test_the_payload_limit_can_be_changed(database: str) -> None:
    insert = "INSERT INTO outbox.messages (topic, payload) VALUES ('t', %s)"
    with psycopg.connect(database) as connection:
        connection.execute(max_payload_statement(10, schema="outbox"))
        connection.execute(insert, (b"x" * 10,))
        with pytest.raises(psycopg.errors.CheckViolation, match="payload_within_max_payload"):
            connection.execute(insert, (b"x" * 11,))
        with pytest.raises(MigrationError, match="max_payload: 0"):
            max_payload_statement(0, schema="outbox")


def test_ids_are_version_7_and_sort_by_time_before_postgres_18_too(database: str) -> None:
    """Whatever server runs this test, the expression for the older ones is taken from the file and evaluated as well."""
    text = migrations_of("outbox")[0].text
    older = re.search(r"AS \$body\$\s*(SELECT encode.*?)\$body\$", text, re.DOTALL)
    assert older
    with psycopg.connect(database) as connection:
        for expression in ("SELECT outbox.uuid7()", older[1]):
            before = time.time_ns() // 1_000_000
            (made,) = connection.execute(expression).fetchone() or (None,)
            assert isinstance(made, UUID)
            assert made.version == 7
            assert made.variant == "specified in RFC 4122"
            assert before - 5_000 <= made.int >> 80 <= time.time_ns() // 1_000_000 + 5_000
