"""``make faults``: a mixture of nemeses on each sink, checked, with a table at the end.

python -m tests.faults [--sink jetstream] [--seconds 600] [--seed 1] [--runs 1] [--only NAME ...] [--each] [--to .faults] | --bugs
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bridges.errors import ConfigurationError
from tests.faults import report
from tests.faults.catalogue import chosen
from tests.faults.checker import check, told
from tests.faults.fleet import SINKS
from tests.faults.invariants import FEWEST_SAMPLES, warmed_up
from tests.faults.sabotage import SABOTAGES
from tests.faults.scenario import play, play_with

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.history import History
    from tests.faults.invariants import Violation
    from tests.faults.nemeses import Nemesis


async def run(sink: str, nemeses: Sequence[Nemesis], options: argparse.Namespace, seed: int) -> tuple[History, list[Violation]]:
    """Play one run and check it; what was not kept is told, and the run's folder stays."""
    folder = Path(tempfile.mkdtemp(prefix=f"outboxd-faults-{sink}-"))
    seconds = None if options.each else options.seconds
    history = await play(sink, folder, nemeses, seed=seed, seconds=seconds, pumps=options.pumps, rate=options.rate)
    history.again = f"python -m tests.faults --sink {sink} --seed {seed}{_again(options)}"
    violations = check(history)
    said = (
        "every promise kept" if not violations else f"NOT KEPT: {', '.join(sorted({each.invariant for each in violations}))}; see {folder}"
    )
    print(f"{sink}, seed {seed}: {len(history.faults)} faults, {len(history.puts):,} messages: {said}{unjudged(history)}", flush=True)
    for violation in violations:
        print(told(history, violation), flush=True)
    if not violations:
        shutil.rmtree(folder)
    return history, violations


def _again(options: argparse.Namespace) -> str:
    """Return what a run is repeated with, beside its sink and its seed."""
    said: str = f" --seconds {options.seconds:g} --rate {options.rate:g}" + (f" --pumps {options.pumps}" if options.pumps else "")
    said += " --each" * options.each + " --disks" * options.disks
    return said + "".join(f" --only {shlex.quote(name)}" for name in options.only)


def unjudged(history: History) -> str:
    """Say what a run was too short, or too broken, to judge."""
    few = sorted(name for name, samples in warmed_up(history).items() if len(samples) < FEWEST_SAMPLES)
    done = {fault.nemesis for fault in history.faults}
    left = [name for name in history.nemeses if name not in done]
    said = {
        f"too few quiet samples to judge what these use: {', '.join(few)}": few,
        "the order of effects was not judged, since the consumer was hit": history.consumer_hit,
        f"not come to: {', '.join(left)}": left,
    }
    return "".join(f"; {what}" for what, so in said.items() if so)


async def is_caught(name: str) -> bool:
    """Run daemons with a bug, and tell whether the checker finds the promise that it breaks."""
    bug = SABOTAGES[name]
    with tempfile.TemporaryDirectory(prefix="outboxd-faults-bug-") as folder:
        history = await play_with(name, Path(folder))
    found = {violation.invariant for violation in check(history)}
    others = f", and of {', '.join(sorted(found - {bug.invariant}))}" if found - {bug.invariant} else ""
    print(f"{name}: {f'caught, as a breach of {bug.invariant}' if bug.invariant in found else 'NOT CAUGHT'}{others}", flush=True)
    return bug.invariant in found


def main() -> int:
    """Return 0 if everything was kept, 1 if not, and 2 for a mistake on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--sink", action="append", help=f"one or more of {', '.join(SINKS)}; all by default")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long each mixture goes on")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1, help="mixtures for each sink, with this seed and those that follow")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a nemesis; may be given again")
    parser.add_argument("--each", action="store_true", help="each nemesis once, in order, and no mixture")
    parser.add_argument("--pumps", type=int, default=None)
    parser.add_argument("--rate", type=float, default=40.0, help="transactions a second")
    parser.add_argument("--disks", action="store_true", help="those that fill disks too: takes the right to mount one")
    parser.add_argument("--to", type=Path, default=Path(".faults"), help="the folder of the report")
    parser.add_argument(
        "--bugs", action="store_true", help="no faults, but daemons with one bug each, for each promise: all must be caught"
    )
    options = parser.parse_args()
    if options.bugs:
        missed = [name for name in SABOTAGES if not asyncio.run(is_caught(name))]
        return int(bool(missed))
    runs: list[tuple[History, list[Violation]]] = []
    try:
        plans = [(sink, chosen(options.only, sink)) for sink in options.sink or SINKS]
    except ConfigurationError as problem:
        sys.stderr.write(f"faults: {problem}\n")
        return 2
    for sink, nemeses in plans:
        fit = [nemesis for nemesis in nemeses if options.disks or options.only or not nemesis.small_disks]
        runs += [asyncio.run(run(sink, fit, options, seed)) for seed in range(options.seed, options.seed + options.runs)]
    table = sorted(report.lines(runs), key=lambda line: (line.sink, line.fault))
    print(report.as_text(table))
    about = {
        "outboxd": version("outboxd"),
        "seconds": f"{options.seconds:g}",
        "seeds": f"{options.seed} to {options.seed + options.runs - 1}",
        "disks": "that are filled" if options.disks else "as they are",
    }
    report.write(table, about, options.to)
    return int(any(violations for _, violations in runs))


if __name__ == "__main__":
    sys.exit(main())
