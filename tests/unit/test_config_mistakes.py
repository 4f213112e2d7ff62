"""Mistakes that are easily made, each named by its key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridges.errors import ConfigurationError
from outbox.daemon.config import load
from tests.engines.command import configured
from tests.unit.test_config import IN_PROCESS, KAFKA, MINIMAL

if TYPE_CHECKING:
    from pathlib import Path


def _lines(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(configured(tmp_path, text))
    return str(caught.value).splitlines()


@pytest.mark.parametrize("key", ["schema", "dedupe_schema"])
@pytest.mark.parametrize("name", ["Outbox", "a" * 64, 'a"b'])
def test_a_bad_schema_name_is_a_configuration_error_that_names_its_key(tmp_path: Path, key: str, name: str) -> None:
    name = name.replace('"', '\\"')
    (line,) = _lines(tmp_path, MINIMAL.replace("[sinks.events]", f'{key} = "{name}"\n[sinks.events]'))
    assert line.startswith(f"postgres.{key}: ")
    assert "^[a-z_][a-z0-9_]{0,62}$" in line


@pytest.mark.parametrize("name", ["kafka", "jetstream", "inprocess"])
def test_a_sink_named_like_a_kind_keeps_its_name_in_errors(tmp_path: Path, name: str) -> None:
    text = MINIMAL.replace(IN_PROCESS, f'[sinks.{name}]\nkind = "kafka"\nservers = ["127.0.0.1:9092"]\nbogus = 1\n')
    (line,) = _lines(tmp_path, text.replace('sink = "events"', f'sink = "{name}"'))
    assert line.startswith(f"sinks.{name}.bogus: ")


def test_an_unknown_key_is_told_what_is_allowed(tmp_path: Path) -> None:
    """The issue: one line that names the key and what is allowed."""
    (line,) = _lines(tmp_path, MINIMAL + "[pump]\nbacth = 3\n")
    assert "batch" in line.removeprefix("pump.bacth: ")


@pytest.mark.parametrize("variable", ["OUTBOXD_POSTGRES", "OUTBOXD_SINKS", "OUTBOXD_ROUTES"])
def test_a_variable_that_is_not_json_is_a_configuration_error(tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "not json")
    (line,) = _lines(tmp_path, MINIMAL)
    assert variable.removeprefix("OUTBOXD_").lower() in line.lower()


def test_a_first_wait_above_the_cap_is_refused_when_the_file_is_read(tmp_path: Path) -> None:
    (line,) = _lines(tmp_path, MINIMAL + "[pump.retry]\nfirst = 10.0\ncap = 1.0\n")
    assert line.startswith("pump.retry")


@pytest.mark.parametrize("key", ["pump.publish_timeout", "pump.drain_timeout"])
def test_an_endless_time_is_refused(tmp_path: Path, key: str) -> None:
    """TOML has ``inf``: the source's int() of it raises OverflowError at start, the drain's timer at SIGTERM."""
    section, name = key.split(".")
    (line,) = _lines(tmp_path, MINIMAL + f"[{section}]\n{name} = inf\n")
    assert line.startswith(f"{key}: ")


def test_a_port_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (line,) = _lines(tmp_path, MINIMAL.replace(IN_PROCESS, KAFKA) + '[http]\nlisten = "127.0.0.1:99999"\n')
    assert line.startswith("http.listen: ")


@pytest.mark.parametrize("dsn", ["postgres//app:hunter2@h/db", "postgresql://app:p%hunter2@h/db"])
def test_a_connection_string_that_is_none_is_not_repeated(tmp_path: Path, dsn: str) -> None:
    (line,) = _lines(tmp_path, MINIMAL.replace(MINIMAL.split('dsn = "')[1].split('"')[0], dsn, 1))
    assert line.startswith("postgres.dsn: is not a libpq connection string")
    assert "hunter2" not in line


def test_an_unknown_variable_of_ours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOXD_PMUP__BATCH", "5")
    (line,) = _lines(tmp_path, MINIMAL)
    assert line.startswith("OUTBOXD_PMUP__BATCH: is not a known variable")


def test_a_sink_may_not_take_longer_than_the_pump_waits(tmp_path: Path) -> None:
    (line,) = _lines(tmp_path, MINIMAL + "[pump]\npublish_timeout = 10\n")
    assert line.startswith("sinks.events.timeout: ")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('after_dead = "stop"', "after_dead: Input should be 'continue' or 'hold'"),
        ('order = "strict"', "order: Input should be 'key' or 'none'"),
        ('archive = "a week"', "archive: 'a week' is not a number and a unit, such as '7 days' or '12 hours'"),
        ('archive = "forever"', "archive: 'forever' is not a number and a unit, such as '7 days' or '12 hours'"),
        ('archive = "0 days"', "archive: '0 days' is not a number and a unit, such as '7 days' or '12 hours'"),
        ("archive = 7", "archive: 7 is not a number and a unit, such as '7 days' or '12 hours'"),
    ],
)
def test_what_a_route_may_say(tmp_path: Path, line: str, problem: str) -> None:
    assert _lines(tmp_path, f"{MINIMAL}\n{line}\n") == [f"routes.0.{problem}"]


@pytest.mark.parametrize("name", ["key", "operator", '"a b"', '"a/b"', '""'])
def test_a_sink_whose_name_says_something_else_is_refused(tmp_path: Path, name: str) -> None:
    text = MINIMAL.replace("[sinks.events]", f"[sinks.{name}]").replace(
        'sink = "events"', f"sink = {name if name[0] == chr(34) else chr(34) + name + chr(34)}"
    )
    (line,) = _lines(tmp_path, text)
    assert line.startswith(f"sinks.{name.strip(chr(34))}: the name of a sink is 1 to 64 characters")
