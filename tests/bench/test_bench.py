"""The benchmark itself: how pairs are judged, what it refuses, and what it says; and what a drain costs the server, exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from bridges.errors import ConfigurationError
from outbox.bench import costs, drains, report
from outbox.bench.catalogue import COMPARISONS, chosen
from outbox.bench.harness import Comparison, Failure, Patience, Result, Target, TooSlow, Unequal, check_equal, compare
from outbox.bench.run import Options, run_bench
from outbox.bench.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage(0.001)
    monkeypatch.setattr(stage, "taken_since", lambda _: 0.0)  # whatever else this machine does
    yield stage
    stage.close()


def comparison(*sides: str, target: Target, values: Mapping[str, Iterator[float]], order: list[str] | None = None) -> Comparison:
    async def measure(_: Stage, side: str) -> Mapping[str, float]:
        if order is not None:
            order.append(side)
        return {"rate": next(values[side])}

    return Comparison("B0", "a test", sides, "things/s", {"rate": target}, measure)


async def test_sides_take_turns_and_the_first_pair_is_thrown_away(stage: Stage) -> None:
    order: list[str] = []
    values = {"a": iter([1.0, 6.0, 8.0, 20.0]), "b": iter([99.0, 2.0, 2.0, 2.0])}
    (result,) = await compare(stage, comparison("a", "b", target=Target(4), values=values, order=order), 3, lambda _: None, Patience(2))
    assert order == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert (result.ratios, result.median, result.spread) == ([3.0, 4.0, 10.0], 4.0, (3.0, 10.0))
    assert result.met


async def test_one_side_is_judged_as_it_is(stage: Stage) -> None:
    one = comparison("a", target=Target(5, least=False), values={"a": iter([0.0, 4.0, 6.0, 9.0])})
    (result,) = await compare(stage, one, 3, lambda _: None, Patience(2))
    assert (result.median, result.met) == (6.0, False)


async def test_a_pair_that_the_neighbours_have_disturbed_is_measured_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not for ever; and where the machine was too slow for the load because of them, that is no result either."""
    taken = iter([0.0, 0.3, 0.0, 0.3, 0.3, 0.0, 0.0])
    monkeypatch.setattr(stage, "taken_since", lambda _: next(taken))
    said: list[str] = []
    speeds: list[float | None] = [0.0, 1.0, 2.0, None, 3.0]

    async def measure(_: Stage, __: str) -> Mapping[str, float]:
        if (speed := speeds.pop(0)) is None:
            raise TooSlow("752 a second")
        return {"rate": speed}

    one = Comparison("B0", "a test", ("a",), "things/s", {"rate": Target(1)}, measure)
    (result,) = await compare(stage, one, 2, said.append, Patience(2))
    assert (result.ratios, result.disturbed, result.repeated) == ([2.0, 3.0], 1, 2)
    assert said == [
        "  warm-up: rate 0 things/s",
        "  again: rate 1 things/s; the neighbours took 30%",
        "  1: rate 2 things/s",
        "  again: 752 a second; the neighbours took 30%",
        "  2: rate 3 things/s; the neighbours took 30%",
    ]
    assert "2 measured again; 1 of 2 pairs disturbed" in report.as_text([result])
    speeds += [4.0, None]
    taken = iter([0.0, 0.0])
    with pytest.raises(TooSlow, match="752 a second"):
        await compare(stage, one, 2, said.append, Patience(2))
    speeds += [None, None, None]
    taken = iter([0.3] * 3)
    with pytest.raises(TooSlow, match="752 a second"):
        await compare(stage, one, 2, said.append, Patience(2))


async def test_a_machine_that_is_never_left_alone_is_not_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([*[0.3] * 7, 0.0, *[0.3] * 4])
    monkeypatch.setattr(stage, "taken_since", lambda _: next(taken))
    patience = Patience(2)

    async def measured() -> tuple[int, int]:
        (result,) = await compare(stage, comparison("a", target=Target(1), values={"a": iter([1.0] * 6)}), 3, lambda _: None, patience)
        return result.repeated, result.disturbed

    assert await measured() == (2, 3)
    assert await measured() == (2, 2), "there is patience again once a pair was left alone"
    taken = iter([0.3] * 8)
    untimed = replace(comparison("a", target=Target(1), values={"a": iter([1.0] * 4)}), timed=False)
    await compare(stage, untimed, 3, lambda _: None, patience)
    assert await measured() == (0, 3), "and not because something was measured that is no speed"


async def test_the_order_alternates_among_the_pairs_that_count(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([0.3, 0.0, 0.3, 0.0, 0.3, 0.0])
    monkeypatch.setattr(stage, "taken_since", lambda _: next(taken))
    order: list[str] = []
    values = {side: iter([1.0] * 6) for side in "ab"}
    await compare(stage, comparison("a", "b", target=Target(1), values=values, order=order), 3, lambda _: None, Patience(2))
    assert "".join(order) == "baabbabaabab", "the first is thrown away, and each second of the others"


async def test_what_is_no_speed_is_not_measured_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "taken_since", lambda _: 0.3)
    exact = replace(comparison("a", target=Target(1), values={"a": iter([1.0, 2.0, 3.0])}), timed=False)
    (result,) = await compare(stage, exact, 2, lambda _: None, Patience(2))
    assert (result.ratios, result.disturbed, result.repeated) == ([2.0, 3.0], 0, 0)


def test_what_did_not_arrive_has_no_speed() -> None:
    check_equal(3, 3, "here")
    with pytest.raises(Unequal, match="here: 3 were sent and 2 are there"):
        check_equal(2, 3, "here")


@pytest.mark.parametrize(("target", "value", "met"), [(Target(2), 2, True), (Target(2), 1.9, False), (Target(2, least=False), 2.1, False)])
def test_targets(target: Target, value: float, met: bool) -> None:
    assert target.met_by(value) is met


def test_every_benchmark_of_the_list_is_there() -> None:
    assert list(dict.fromkeys(each.id for each in chosen([]))) == [f"B{number}" for number in range(1, 12)]
    assert {each.id for each in chosen(["b4", "B7"])} == {"B4", "B7"}
    with pytest.raises(ConfigurationError, match="benchmark: 'B99' is not one of B1, B2"):
        chosen(["B1", "B99"])


def test_the_report_says_everything_in_each_of_its_forms(tmp_path: Path) -> None:
    results = [
        Result(each, figure, {side: [1000.0 * place + 500, 2000.0] for place, side in enumerate(each.sides, start=1)})
        for each in COMPARISONS
        for figure in each.targets
    ]
    about = {"outboxd": "1", "engines": "PostgreSQL 18"}
    assert report.write(results, [Failure(COMPARISONS[0], "no room")], about, tmp_path) == f"written to {tmp_path}"
    table = (tmp_path / "bench.md").read_text()
    assert len(table.splitlines()) == len(results) + 6
    assert table.endswith("beside the same client from memory: not measured: no room\n")
    assert "engines: PostgreSQL 18" in table
    assert json.loads((tmp_path / "bench.json").read_text())["results"][0]["values"] == {
        "pump": [1500.0, 2000.0],
        "memory": [2500.0, 2000.0],
    }
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_without_a_chart_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = report.write([], [], {"outboxd": "1", "engines": "PostgreSQL 18"}, tmp_path)
    assert said.startswith(f"written to {tmp_path}, without a chart: ")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bench.json", "bench.md"]


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outbox.daemon", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env={**os.environ, **environment})


def test_an_unknown_name_lists_the_known_ones() -> None:
    done = bench("B1", "B12")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "outboxd: benchmark: 'B12' is not one of B1, B2, B3, B4, B5, B6, B7, B8, B9, B10, B11\n"


def test_a_missing_engine_is_named_and_nothing_is_measured(tmp_path: Path) -> None:
    done = bench("B7", "B1", "--scale", "0.001", PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path), PIP_NO_INDEX="1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("outboxd: B1: no NATS: give its servers, or put nats-server 2.11+ on the PATH")


@pytest.mark.parametrize("side", ["long", "short"])
async def test_a_queue_is_drained_to_its_end(stage: Stage, side: str) -> None:
    assert (await drains.by_backlog(stage, side))["rate"] > 0


async def test_what_a_drain_costs_the_server_is_exact(stage: Stage) -> None:
    """B8: bytes of WAL, dead rows, statements and transactions do not depend on the machine."""
    spent = await costs.per_message(stage, "outboxd")
    (targets,) = [each.targets for each in COMPARISONS if each.id == "B8"]
    assert {figure: value for figure, value in spent.items() if not targets[figure].met_by(value)} == {}, spent
    assert spent["dead rows a message"] == 1


def test_a_run_measures_what_it_was_asked_for(tmp_path: Path) -> None:
    said: list[str] = []
    results = run_bench(Options(["B7"], pairs=1, scale=0.01, to=tmp_path), said.append)
    assert [len(result.ratios) for result in results] == [1, 1]
    about = json.loads((tmp_path / "bench.json").read_text())["about"]
    assert about["scale"].endswith("no measurement")
    assert set(about) >= {"outboxd", "machine", "engines", "clients", "durability", "fsync", "payload", "pairs"}
    assert said[-2:] == [report.as_text(results), f"written to {tmp_path}"]


def test_what_cannot_be_measured_is_told_and_the_others_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(stage: Stage, side: str) -> dict[str, float]:
        return {"rate": 2.0}

    async def fail(stage: Stage, side: str) -> dict[str, float]:
        raise Unequal("the writers came to 3")

    good = Comparison("B98", "good", ("a", "b"), "x", {"rate": Target(1)}, measure)
    monkeypatch.setattr("outbox.bench.run.chosen", lambda _: [replace(good, id="B97", name="bad", measure=fail), good])
    said: list[str] = []
    with pytest.raises(Unequal, match="B97: the writers came to 3"):
        run_bench(Options(["B97"], pairs=1, to=tmp_path), said.append)
    assert "  not measured: the writers came to 3" in said
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [result["id"] for result in written["results"]] == ["B98"]
    assert written["not_measured"] == [{"id": "B97", "what": "bad", "why": "the writers came to 3"}]
