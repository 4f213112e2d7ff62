"""How a run goes: what comes when, and what becomes of a nemesis that waits in vain."""

from __future__ import annotations

import time
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.engines.deadline import eventually
from tests.faults.catalogue import chosen
from tests.faults.checker import check
from tests.faults.nemeses import Nemesis
from tests.faults.scenario import Watch, mixture, play

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.fleet import Fleet
    from tests.faults.history import History


def test_a_mixture_has_all_before_it_has_any_again_in_an_order_of_its_seed() -> None:
    nemeses = chosen([], "kafka")
    names = {seed: [each.name for each in islice(mixture(nemeses, Random(seed), 60.0), 2 * len(nemeses))] for seed in (1, 2)}
    for drawn in names.values():
        once, again = drawn[: len(nemeses)], drawn[len(nemeses) :]
        assert set(once) == set(again) == {each.name for each in nemeses}
        assert once != again
    assert names[1] != names[2]


@pytest.mark.timeout(120)
async def test_what_is_waited_for_in_vain_ends_the_mixture_and_is_found(tmp_path: Path) -> None:
    """And what a nemesis has noted is kept, and a recovery begins where its harm ends, and not when all are ready."""
    ready: list[float] = []

    async def restart(ours: Fleet, _: Random, history: History) -> None:
        history.exits.append(await ours.pumps[0].stop(15.0))
        ours.pumps[0].start()
        ready.append(time.time())
        await ours.ready()
        ready.append(time.time())

    async def pigs_fly() -> bool:
        return False

    async def wait(*_: object) -> None:
        await eventually(pigs_fly, within=0.1, what="pigs to fly")

    nemeses = [Nemesis("restart", restart), Nemesis("wait", wait), Nemesis("never", restart)]
    history = await play("inprocess", tmp_path, nemeses, seed=1, rate=25.0, calm=0.5)
    assert [fault.nemesis for fault in history.faults] == ["restart", "wait"]
    began, came = ready
    assert began <= history.faults[0].healed < came
    assert [(ended.process, ended.code) for ended in history.exits] == [("pump-1", 0), ("pump-1", 0)]
    (violation,) = check(history)
    assert violation.invariant == "no_hang"
    assert violation.text.startswith("wait: pigs to fly did not come true within 0.1 s")


@pytest.mark.timeout(120)
async def test_a_run_whose_watch_has_failed_has_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(*_: object) -> None:
        raise RuntimeError("blind")

    monkeypatch.setattr(Watch, "_look", look)
    with pytest.raises(RuntimeError, match="blind"):
        await play("inprocess", tmp_path, [], seed=1, rate=25.0)
