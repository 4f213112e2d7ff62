"""The quick selection of the fault suite: some nemeses on each sink, and every promise is kept. ``make faults`` is the whole of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridges.errors import ConfigurationError
from tests.faults import report
from tests.faults.__main__ import main
from tests.faults.catalogue import NEMESES, chosen
from tests.faults.checker import INVARIANTS, check, told
from tests.faults.fleet import SINKS
from tests.faults.sabotage import SABOTAGES
from tests.faults.scenario import play, play_with

if TYPE_CHECKING:
    from pathlib import Path

SELECTION = {
    "inprocess": ["kill pump", "cut after COMMIT", "Postgres stopped in immediate mode", "poison at the handler"],
    "jetstream": ["cut after the broker has stored", "acknowledgement lost", "kill broker", "stream deleted and made again"],
    "kafka": ["cut after the broker has stored", "kill broker", "poison at the broker", "sessions terminated"],
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("sink", SELECTION)
async def test_every_promise_is_kept(sink: str, tmp_path: Path) -> None:
    history = await play(sink, tmp_path, chosen(SELECTION[sink], sink), seed=1, rate=25.0, calm=1.0)
    assert [fault.nemesis for fault in history.faults] == SELECTION[sink]
    assert len(history.puts) > 100
    assert history.copies
    assert history.audits
    assert history.samples
    assert history.settled
    violations = check(history)
    assert not [told(history, violation) for violation in violations]
    assert {line.verdict for line in report.lines([(history, violations)])} == {report.KEPT}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("bug", ["some messages are settled and never sent", "batches are handled backwards"])
async def test_a_daemon_with_a_bug_is_caught(bug: str, tmp_path: Path) -> None:
    """Two of them; ``make faults FAULTS=--bugs`` runs them all."""
    assert SABOTAGES[bug].invariant in {violation.invariant for violation in check(await play_with(bug, tmp_path))}


def test_every_promise_has_a_bug_that_breaks_it_in_real_daemons() -> None:
    assert {bug.invariant for bug in SABOTAGES.values()} == set(INVARIANTS)


def test_all_of_a_sinks_nemeses_are_chosen_by_default() -> None:
    for sink in SINKS:
        everything = {name for name, nemesis in NEMESES.items() if sink in nemesis.sinks}
        assert {nemesis.name for nemesis in chosen([], sink)} == everything


@pytest.mark.parametrize(
    ("names", "sink", "why"),
    [
        (["kill everything"], "kafka", "nemesis: 'kill everything' is not one of those for kafka: 50 ms more on the way to Postgres, "),
        (["NATS's disk full"], "kafka", 'nemesis: "NATS\'s disk full" is not one of those for kafka: '),
        ([], "rabbit", "sink: 'rabbit' is not one of inprocess, jetstream, kafka"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(names: list[str], sink: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        chosen(names, sink)
    assert str(refused.value).startswith(why)


def test_the_command_says_it_and_ends_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["faults", "--only", "kill everything"])
    assert main() == 2
    assert "nemesis: 'kill everything' is not one of those for inprocess: " in capsys.readouterr().err
