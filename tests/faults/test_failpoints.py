"""Every failpoint is reached in a real daemon, which is killed there, and every promise is kept; and what the variable may say."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from bridges.errors import ConfigurationError
from bridges.failpoints import ACTIONS, POINTS, Failpoints
from tests.engines.command import run_outboxd
from tests.faults.checker import check, told
from tests.faults.fleet import BRIDGED
from tests.faults.nemeses.processes import failpoints
from tests.faults.scenario import play

if TYPE_CHECKING:
    from pathlib import Path

    from bridges.ports import Sink, Source

KILLED = {
    ("pump", "jetstream"): [point for point in POINTS if point.startswith("pump.")],
    ("consumer", "jetstream"): [point for point in POINTS if point.startswith("consumer.")],
    ("bridge", BRIDGED): [point for point in POINTS if point.startswith("bridge.")],
}
OTHERWISE = {
    ("pump", "inprocess"): ["pump.settle.before:raise", "pump.publish.after:stop", "pump.claim.after:sleep", "pump.publish.before:hang"],
    ("consumer", "inprocess"): ["consumer.handler.after:raise", "consumer.publish.before:hang"],
}


def test_each_point_and_each_action_is_in_a_run() -> None:
    assert {point for points in KILLED.values() for point in points} == set(POINTS)
    assert {each.partition(":")[2] for armed in OTHERWISE.values() for each in armed} == set(ACTIONS) - {"kill"}


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("loop", "sink"), KILLED)
async def test_killed_at_any_point_every_promise_is_kept(loop: str, sink: str, tmp_path: Path) -> None:
    """Reached it was: the daemon says so, and a nemesis that does not hear it fails."""
    await run(loop, sink, [f"{point}:kill" for point in KILLED[loop, sink]], tmp_path)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("loop", "sink"), OTHERWISE)
async def test_whatever_happens_at_a_point_every_promise_is_kept(loop: str, sink: str, tmp_path: Path) -> None:
    await run(loop, sink, OTHERWISE[loop, sink], tmp_path)


async def run(loop: str, sink: str, armed: list[str], folder: Path) -> None:
    """Play a run with the failpoints, and check it."""
    history = await play(sink, folder, [failpoints(loop, armed)], seed=1, rate=25.0, calm=0.2)
    assert len(history.faults) == 1
    assert not [told(history, violation) for violation in check(history)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("pump.publish.afterwards:kill", "'pump.publish.afterwards' is no failpoint; there are pump.claim.before, pump.claim.after"),
        ("pump.publish.after", "'' is no action; there are kill, stop, raise, hang, sleep"),
        ("pump.publish.after:explode", "'explode' is no action; there are kill, stop, raise, hang, sleep"),
        ("pump.publish.after:kill:0", "'0' in 'pump.publish.after:kill:0' is not which time, from 1 on"),
        ("pump.publish.after:kill:1:2", "'1:2' in 'pump.publish.after:kill:1:2' is not which time, from 1 on"),
        ("pump.publish.after:kill,", "'' is no failpoint"),
    ],
)
def test_a_text_that_names_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Failpoints(text)
    assert why in str(refused.value)


def test_the_daemon_refuses_it_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database: str) -> None:
    monkeypatch.setenv("OUTBOXD_FAILPOINT", "nowhere:kill")
    file = tmp_path / "outboxd.toml"
    file.write_text('[sinks.local]\nkind = "inprocess"\n[[routes]]\ntopics = ">"\nsink = "local"\n')
    ended = run_outboxd("run", "-c", str(file), dsn=database)
    assert ended.code == 2
    assert "'nowhere' is no failpoint; there are pump.claim.before" in ended.said


def test_without_the_variable_nothing_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUTBOXD_FAILPOINT", raising=False)
    points = Failpoints.from_environment()
    source, sink = cast("Source", object()), cast("Sink", object())

    async def handler(*_: object) -> None:
        """Whatever."""

    assert points.source("pump", source) is source
    assert points.sink("pump", sink) is sink
    assert points.handler(handler) is handler


def test_only_the_loop_that_is_named_is_wrapped() -> None:
    points = Failpoints("pump.publish.after:kill,consumer.claim.before:hang:7")
    source, sink = cast("Source", object()), cast("Sink", object())
    assert points.source("pump", source) is source
    assert points.sink("pump", sink) is not sink
    assert points.source("consumer", source) is not source
