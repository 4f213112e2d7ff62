"""``outboxd bench``: measure what was asked for, print the table, and write the report."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import uvloop

from bridges.errors import ConfigurationError
from outbox.bench import report
from outbox.bench.catalogue import chosen
from outbox.bench.harness import Result, compare
from outbox.bench.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says.

    Attributes:
        ids: benchmarks; all of them if empty.
        pairs: that count, of each comparison.
        scale: what counts and durations are multiplied by.
        to: the folder of the report; none if None.
    """

    ids: list[str] = field(default_factory=list)
    pairs: int = 5
    scale: float = 1.0
    to: Path | None = None


def run_bench(options: Options, say: Callable[[str], object]) -> list[Result]:
    """Measure, and tell. Raises `ConfigurationError` for an unknown benchmark or a missing engine before anything is measured."""
    comparisons = chosen(options.ids)
    with closing(Stage(options.scale)) as stage:
        for comparison in comparisons:
            for engine in comparison.needs:
                try:
                    stage.engine(engine)
                except ConfigurationError as problem:
                    raise ConfigurationError(f"{comparison.id}: {problem}") from None

        async def measure() -> list[Result]:
            results = []
            for comparison in comparisons:
                say(f"{comparison.id}: {comparison.name}")
                results += await compare(stage, comparison, options.pairs, say)
            return results

        results = uvloop.run(measure())
        about = {"outboxd": version("outboxd"), **stage.about(), "pairs": str(options.pairs)}
    if options.scale != 1:
        about["scale"] = f"{options.scale:g}: for a try, and no measurement"
    say(report.as_text(results))
    if options.to is not None:
        report.write(results, about, options.to)
    return results
