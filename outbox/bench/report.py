"""The table of results: for a terminal, as Markdown, as JSON, and as a chart."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from outbox.bench.harness import Failure, Result

_HEADINGS: Final = ("", "what", "figure", "measured", "ratio", "spread", "target", "")


def as_text(results: Sequence[Result]) -> str:
    """Return the table for a terminal."""
    rows = [_HEADINGS, *map(_cells, results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def as_markdown(results: Sequence[Result], failures: Sequence[Failure], about: Mapping[str, str]) -> str:
    """Return the table with what it was measured on above it, and what could not be measured below."""
    rows = [_HEADINGS, tuple("---" for _ in _HEADINGS), *map(_cells, results)]
    facts = "; ".join(f"{name}: {value}" for name, value in about.items())
    table = [f"{facts}.", "", *("| " + " | ".join(row) + " |" for row in rows)]
    missing = [f"- {failure.comparison.id}, {failure.comparison.name}: not measured: {failure.why}" for failure in failures]
    return "\n".join([*table, *(["", *missing] if missing else [])]) + "\n"


def as_json(results: Sequence[Result], failures: Sequence[Failure], about: Mapping[str, str]) -> dict[str, Any]:
    """Return everything that was measured, and what could not be."""
    return {
        "about": dict(about),
        "results": [
            {
                "id": result.comparison.id,
                "what": result.comparison.name,
                "figure": result.figure,
                "unit": result.comparison.unit,
                "values": {side: list(values) for side, values in result.values.items()},
                "ratios": list(result.ratios),
                "median": result.median,
                "target": {"value": result.target.value, "least": result.target.least},
                "met": result.met,
                "disturbed": result.disturbed,
                "repeated": result.repeated,
            }
            for result in results
        ],
        "not_measured": [{"id": failure.comparison.id, "what": failure.comparison.name, "why": failure.why} for failure in failures],
    }


def write(results: Sequence[Result], failures: Sequence[Failure], about: Mapping[str, str], folder: Path) -> str:
    """Write ``bench.md``, ``bench.json`` and, where matplotlib is installed, ``bench.png``; return what is to be told of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.md").write_text(as_markdown(results, failures, about))
    (folder / "bench.json").write_text(json.dumps(as_json(results, failures, about), indent=2) + "\n")
    try:
        draw(results, about, folder / "bench.png")
    except ImportError as missing:
        return f"written to {folder}, without a chart: {missing}"
    return f"written to {folder}"


def draw(results: Sequence[Result], about: Mapping[str, str], file: Path) -> None:
    """Draw each figure as a part of its target, so that right of the line is better: the median, and the spread of the pairs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.5 + 0.34 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, result in enumerate(reversed(results)):
        low, middle, high = (_of_target(result, value) for value in (result.spread[0], result.median, result.spread[1]))
        colour = "tab:green" if result.met else "tab:red"
        axes.plot([low, high], [place, place], color=colour, alpha=0.5, linewidth=3, solid_capstyle="round")
        axes.plot([middle], [place], "o", color=colour)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(results)), [f"{each.comparison.id}  {each.comparison.name}: {each.figure}" for each in reversed(results)])
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("times its target (log scale); right of the line is better; " + about["engines"], fontsize=8)
    figure.savefig(file, dpi=120)


def _of_target(result: Result, value: float) -> float:
    tiny = 1e-6  # what costs nothing at all has no place on a log scale
    share = max(value, tiny) / result.target.value
    return share if result.target.least else 1 / share


def _cells(result: Result) -> tuple[str, ...]:
    comparison = result.comparison
    sides = [statistics.median(result.values[side]) for side in comparison.sides]
    measured = " : ".join(f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in sides)
    low, high = result.spread
    return (
        comparison.id,
        comparison.name,
        result.figure,
        f"{measured} {comparison.unit}".strip(),
        f"{result.median:.3g}",
        f"{low:.3g} to {high:.3g}",
        str(result.target),
        "; ".join(_judged(result)),
    )


def _judged(result: Result) -> Iterator[str]:
    yield "met" if result.met else "missed"
    if result.repeated:
        yield f"{result.repeated} measured again"
    if result.disturbed:
        yield f"{result.disturbed} of {len(result.ratios)} pairs disturbed"
