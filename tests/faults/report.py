"""The table of a suite's runs: for people, as Markdown, and as JSON.

python -m tests.faults.report .faults/faults.json [...]  # one table of all sinks, from one report or several, for the README
"""

from __future__ import annotations

import json
import statistics
import sys
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tests.faults.history import History
    from tests.faults.invariants import Violation


KEPT = "kept"
NOT_RUN = "not run"
"""Of what no mixture came to."""


class Line(NamedTuple):
    """What came of a nemesis with a sink, over all runs."""

    fault: str
    sink: str
    runs: int
    messages: int
    duplicates: int
    recovery: float | None
    """Seconds from the end of the harm to nine tenths of the former rate, the median of those that came to it; None if none did."""
    verdict: str
    unrecovered: int = 0
    """How many were not seen to come to it before their run's end."""


HEADINGS = ("fault", "sink", "runs", "messages", "duplicates", "recovery", "verdict")


def lines(runs: Sequence[tuple[History, Sequence[Violation]]]) -> Iterator[Line]:
    """Yield a line for each nemesis and sink. The messages and duplicates of a mixture stand beside each of its nemeses."""
    by_fault: dict[tuple[str, str], list[tuple[History, Sequence[Violation]]]] = {}
    for history, violations in runs:
        for name in sorted({fault.nemesis for fault in history.faults} | set(history.nemeses)):
            by_fault.setdefault((name, history.sink), []).append((history, violations))
    for (name, sink), those in by_fault.items():
        done = [(history, violations) for history, violations in those if any(fault.nemesis == name for fault in history.faults)]
        found = sorted({violation.invariant for _, violations in done for violation in violations})
        faults = [fault for history, _ in done for fault in history.faults if fault.nemesis == name]
        seconds = [fault.recovery for fault in faults if fault.recovery is not None and isfinite(fault.recovery)]
        yield Line(
            name,
            sink,
            len(faults),
            sum(len(history.puts) for history, _ in those),
            sum(duplicates(history) for history, _ in those),
            statistics.median(seconds) if seconds else None,
            (", ".join(found) or KEPT) if faults else NOT_RUN,
            len(faults) - len(seconds),
        )


def duplicates(history: History) -> int:
    """Return how many copies there are beyond the first of each message."""
    return len(history.copies) - len({copy.id for copy in history.copies})


def as_markdown(table: Iterable[Line], about: Mapping[str, str]) -> str:
    """Return the table, with what it was measured on above it."""
    rows = [HEADINGS, tuple("---" for _ in HEADINGS), *map(_cells, table)]
    facts = "; ".join(f"{name} {value}" for name, value in about.items())
    return "\n".join([facts, "", *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def as_text(table: Iterable[Line]) -> str:
    """Return the table for a terminal."""
    rows = [HEADINGS, *map(_cells, table)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def write(table: Sequence[Line], about: Mapping[str, str], folder: Path) -> None:
    """Write ``faults.json`` and ``faults.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faults.md").write_text(as_markdown(table, about))
    (folder / "faults.json").write_text(json.dumps({"about": dict(about), "lines": [line._asdict() for line in table]}, indent=2) + "\n")


def as_matrix(reports: Sequence[tuple[Mapping[str, str], Sequence[Line]]]) -> str:
    """Return one table of several reports: a row for each fault, and for each sink how often it was done and what recovery took."""
    table = [line for _, lines_ in reports for line in lines_]
    sinks = sorted({line.sink for line in table})
    by_place = {(line.fault, line.sink): line for line in table}
    rows: list[Sequence[str]] = [("fault", *sinks), ("---",) * (len(sinks) + 1)]
    rows += [(fault, *(_cell(by_place.get((fault, sink))) for sink in sinks)) for fault in sorted({line.fault for line in table})]
    sums = []
    for sink in sinks:
        of_sink = [line for line in table if line.sink == sink]
        broken = sorted({line.verdict for line in of_sink} - {KEPT, NOT_RUN})
        sums.append(
            f"{sink}: {sum(line.runs for line in of_sink):,} faults among {max(line.messages for line in of_sink):,} messages, "
            f"{max(line.duplicates for line in of_sink):,} duplicates, {', '.join(broken) or 'every promise kept'}"
        )
    facts = "; ".join(f"{name} {value}" for name, value in reports[0][0].items())
    return "\n".join([f"{facts}.", "", *(f"- {each}" for each in sums), "", *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _cell(line: Line | None) -> str:
    if line is None:
        return ""
    return ", ".join(filter(None, (str(line.runs), _recovery(line), "" if line.verdict in {KEPT, NOT_RUN} else line.verdict)))


def _recovery(line: Line) -> str:
    seconds = [] if line.recovery is None else [f"{line.recovery:.1f} s"]
    return ", ".join(seconds + ([f"{line.unrecovered} not seen"] if line.unrecovered else []))


def read(file: Path) -> tuple[dict[str, str], list[Line]]:
    """Return what a ``faults.json`` says, and what it was measured on."""
    report = json.loads(file.read_text())
    return report["about"], [Line(**line) for line in report["lines"]]


def _cells(line: Line) -> tuple[str, ...]:
    return (line.fault, line.sink, str(line.runs), f"{line.messages:,}", f"{line.duplicates:,}", _recovery(line), line.verdict)


if __name__ == "__main__":
    sys.stdout.write(as_matrix([read(Path(file)) for file in sys.argv[1:]]))
