"""The table of a suite's runs: for people, as Markdown, and as JSON."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.faults.history import History
    from tests.faults.invariants import Violation


class Line(NamedTuple):
    """What came of a nemesis with a sink, over all runs."""

    fault: str
    sink: str
    runs: int
    messages: int
    duplicates: int
    recovery: float | None
    """Seconds to nine tenths of the former rate, the median; None if that rate was never measured."""
    verdict: str


HEADINGS = ("fault", "sink", "runs", "messages", "duplicates", "recovery, s", "verdict")


def lines(runs: Sequence[tuple[History, Sequence[Violation]]]) -> Iterator[Line]:
    """Yield a line for each nemesis and sink. The messages and duplicates of a mixture stand beside each of its nemeses."""
    by_fault: dict[tuple[str, str], list[tuple[History, Sequence[Violation]]]] = {}
    for history, violations in runs:
        for name in sorted({fault.nemesis for fault in history.faults}):
            by_fault.setdefault((name, history.sink), []).append((history, violations))
    for (name, sink), those in by_fault.items():
        found = sorted({violation.invariant for _, violations in those for violation in violations})
        seconds = [history.recovery[name] for history, _ in those if name in history.recovery]
        yield Line(
            name,
            sink,
            sum(Counter(fault.nemesis for fault in history.faults)[name] for history, _ in those),
            sum(len(history.puts) for history, _ in those),
            sum(duplicates(history) for history, _ in those),
            statistics.median(seconds) if seconds else None,
            ", ".join(found) or "kept",
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


def _cells(line: Line) -> tuple[str, ...]:
    recovery = "" if line.recovery is None else f"{line.recovery:.1f}"
    return (line.fault, line.sink, str(line.runs), f"{line.messages:,}", f"{line.duplicates:,}", recovery, line.verdict)
