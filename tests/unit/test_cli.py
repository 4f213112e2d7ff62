"""The command line: what it prints, and the one line and the exit code of a mistake."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import psycopg
import pytest

from bridges.errors import ConfigurationError
from migrations.runner import TRACKS, check_up_to_date, migrate
from outbox.daemon import cli
from tests.engines.command import configured, run_outboxd

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engines.command import Run


def execute(database: str, script: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(script.encode())


def test_version(outboxd: Run) -> None:
    assert outboxd("version") == (0, f"outboxd {version('outboxd')}\n", "")


def test_it_runs_as_a_module() -> None:
    assert run_outboxd("version") == (0, f"outboxd {version('outboxd')}\n", "")


def test_migrate_sql_prints_what_migrate_would_do(outboxd: Run, empty_database: str) -> None:
    """As a script, and so that migrate knows of it afterwards."""
    code, script, _ = outboxd("migrate", "--sql")
    assert code == 0
    execute(empty_database, script)
    with psycopg.connect(empty_database) as connection:
        for track in TRACKS:
            check_up_to_date(connection, track, schema=track)
            assert migrate(connection, track, schema=track) == []
        connection.execute("SELECT outbox.put('t', '{}')")
        assert connection.execute("SELECT count(*) FROM outbox.messages").fetchone() == (1,)


def test_migrate_sql_for_a_track_and_a_schema_of_ones_own(outboxd: Run, empty_database: str) -> None:
    code, script, _ = outboxd("migrate", "--sql", "--track", "outbox", "--schema", "shop")
    assert code == 0
    execute(empty_database, script)
    with psycopg.connect(empty_database) as connection:
        check_up_to_date(connection, "outbox", schema="shop")
        assert connection.execute("SELECT to_regnamespace('outbox'), to_regnamespace('dedupe')").fetchone() == (None, None)


def test_migrate_sql_with_a_database_prints_what_it_lacks_and_runs_nothing(outboxd: Run, empty_database: str) -> None:
    code, script, _ = outboxd("migrate", "--sql", "--dsn", empty_database)
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT to_regnamespace('outbox')").fetchone() == (None,)
    execute(empty_database, script)
    assert outboxd("migrate", "--sql", "--dsn", empty_database)[:2] == (0, "\n\n")
    assert code == 0


def test_migrate_brings_the_schemas_up_to_date_and_says_so(outboxd: Run, empty_database: str) -> None:
    code, first, _ = outboxd("migrate", "--dsn", empty_database, "--max-payload", "2048")
    assert code == 0
    assert "outbox: schema outbox: outbox/0001_outbox" in first
    assert "the limit of payloads is set" in first
    code, second, _ = outboxd("migrate", "--dsn", empty_database)
    assert (code, second) == (0, "outbox: schema outbox: up to date\ndedupe: schema dedupe: up to date\n")
    with psycopg.connect(empty_database) as connection, pytest.raises(psycopg.errors.CheckViolation, match="payload_within_max_payload"):
        connection.execute("SELECT outbox.put_bytes('t', convert_to(repeat('x', 2049), 'UTF8'))")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["migrate", "--track", "inbox", "--sql"], "track: 'inbox' is not one of outbox, dedupe"),
        (["migrate", "--track", "inbox", "--dsn", "postgresql://127.0.0.1:1/x"], "track: 'inbox' is not one of outbox, dedupe"),
        (["migrate"], "dsn: "),
        (["migrate", "--sql", "--schema", "Shop"], "schema: 'Shop' does not match ^[a-z_][a-z0-9_]{0,62}$"),
        (["run"], "postgres: is needed"),
        (["check"], "postgres: is needed"),
        (["run", "--config", "/nowhere/outboxd.toml"], "/nowhere/outboxd.toml: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(outboxd: Run, arguments: list[str], says: str) -> None:
    code, out, err = outboxd(*arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"outboxd: {says}")


@pytest.mark.parametrize("command", ["run", "check", "migrate"])
def test_a_mistake_in_the_file_is_one_line_that_names_the_key(outboxd: Run, tmp_path: Path, command: str) -> None:
    wrong = '[sinks.a]\nkind = "inprocess"\n[[routes]]\ntopics = ">"\nsink = "b"\n'
    file = configured(tmp_path, wrong, dsn="postgresql://u:hunter2@127.0.0.1:1/x")
    code, out, err = outboxd(command, "--config", str(file))
    assert (code, out) == (2, "")
    assert err == "outboxd: routes.0.sink: 'b' is not one of [sinks]: a\n"


def test_each_of_several_mistakes_is_a_line(outboxd: Run, tmp_path: Path) -> None:
    file = configured(tmp_path, "[pump]\nbatch = 0\n[postgres]\n")
    code, _, err = outboxd("run", "--config", str(file))
    assert code == 2
    assert [line.split(":")[1].strip() for line in err.splitlines()] == ["postgres.dsn", "pump.batch"]


def test_a_postgres_that_is_not_there_is_exit_code_1_without_the_password(outboxd: Run) -> None:
    code, _, err = outboxd("migrate", "--dsn", "postgresql://u:hunter2@127.0.0.1:1/x")
    assert code == 1
    assert "hunter2" not in err
    assert all(line.startswith("outboxd: ") for line in err.splitlines())
    assert "Traceback" not in err


def test_mistakes_found_while_it_runs_are_lines_too(outboxd: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come out of task groups, in groups of their own."""

    def run(_: object) -> int:
        inner = ExceptionGroup("tasks", [ConfigurationError("consumer 'b' has no handler")])
        raise ExceptionGroup("tasks", [ConfigurationError("consumer 'a' has no handler"), inner])

    monkeypatch.setattr("outbox.daemon.app.run", run)
    monkeypatch.setattr(cli, "load", lambda _: None)
    code, _, err = outboxd("run")
    assert (code, err) == (2, "outboxd: consumer 'a' has no handler\noutboxd: consumer 'b' has no handler\n")


def test_migrate_sql_works_for_both_tracks_in_one_schema(outboxd: Run, empty_database: str) -> None:
    """CREATE SCHEMA and the bookkeeping are printed twice; `migrate` itself makes them once."""
    code, script, _ = outboxd("migrate", "--sql", "--schema", "shared")
    assert code == 0
    execute(empty_database, script)
    with psycopg.connect(empty_database) as connection:
        for track in TRACKS:
            check_up_to_date(connection, track, schema="shared")


def test_migrate_sql_prints_the_limit_of_the_payload_too(outboxd: Run) -> None:
    """ "Print what would run": --max-payload is passed over in silence."""
    _, script, _ = outboxd("migrate", "--sql", "--max-payload", "2048")
    assert "SELECT 2048" in script
