"""The levels of what ``outboxd check`` finds: which of them are counted, and for which the command fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from outbox.daemon import cli
from outbox.daemon.check import Finding, Level, check
from outbox.daemon.config import load
from tests.engines.command import configured

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.engines.command import Run

FINE = Finding("schemas", None)
LOOP = Finding("bridges a -> a", "they may feed each other", is_warning=True)
AWAY = Finding("sink events", "it is away")


@pytest.mark.parametrize(("finding", "level"), [(FINE, Level.OK), (LOOP, Level.WARNING), (AWAY, Level.PROBLEM)])
def test_a_finding_knows_its_level(finding: Finding, level: Level) -> None:
    assert finding.level is level


@pytest.mark.parametrize(
    ("found", "code", "last"),
    [
        ([FINE], 0, "all is well"),
        ([FINE, LOOP], 0, "1 warning"),
        ([LOOP, FINE, LOOP], 0, "2 warnings"),
        ([AWAY], 1, "1 problem"),
        ([AWAY, LOOP, AWAY, FINE], 1, "2 problems, 1 warning"),
    ],
)
def test_warnings_are_counted_and_only_a_problem_fails_it(
    outboxd: Run, monkeypatch: pytest.MonkeyPatch, found: list[Finding], code: int, last: str
) -> None:
    async def check(_: object) -> AsyncIterator[Finding]:
        for finding in found:
            yield finding

    monkeypatch.setattr("outbox.daemon.check.check", check)
    monkeypatch.setattr(cli, "load", lambda _: None)
    ended = outboxd("check")
    said = {
        FINE: "ok       schemas",
        LOOP: "WARNING  bridges a -> a: they may feed each other",
        AWAY: "PROBLEM  sink events: it is away",
    }
    assert (ended.code, ended.out.splitlines()) == (code, [*(said[finding] for finding in found), last])


async def test_bridges_that_may_feed_each_other_are_a_warning(tmp_path: Path) -> None:
    sinks = '[sinks.one]\nkind = "inprocess"\n[sinks.other]\nkind = "inprocess"\n'
    bridges = "".join(
        f'[[bridges]]\nname = "{name}"\nsource = "{name}"\nsink = "{sink}"\n' for name, sink in (("one", "other"), ("other", "one"))
    )
    settings = load(configured(tmp_path, sinks + bridges, dsn="postgresql://127.0.0.1:1/x"))
    (warning,) = [finding async for finding in check(settings) if finding.level is Level.WARNING]
    assert warning.what == "bridges one -> other -> one"
