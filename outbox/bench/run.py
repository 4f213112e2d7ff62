"""``outboxd bench``: measure what was asked for, print the table, and write the report."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import uvloop

from bridges.errors import ConfigurationError
from outbox.bench import report
from outbox.bench.catalogue import chosen
from outbox.bench.harness import Comparison, Failure, Patience, Result, Unequal, compare
from outbox.bench.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
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
    """Measure, and tell. What cannot be measured is told with the reason, and the others are measured nevertheless.

    Raises `ConfigurationError` for an unknown benchmark, or for what one needs and is not to be had, before anything is measured; and
    `Unequal` at the end, if something could not be measured.
    """
    comparisons = chosen(options.ids)
    patience = Patience(options.pairs)
    results: list[Result] = []
    failures: list[Failure] = []
    with closing(Stage(options.scale)) as stage:
        for comparison in comparisons:
            _check(stage, comparison)

        async def measure() -> None:
            for comparison in comparisons:
                say(f"{comparison.id}: {comparison.name}")
                try:
                    results.extend(await compare(stage, comparison, options.pairs, say, patience))
                except (Unequal, TimeoutError, RuntimeError) as problem:
                    say(f"  not measured: {problem}")
                    failures.append(Failure(comparison, str(problem)))

        try:
            uvloop.run(measure())
        finally:
            about = {"outboxd": version("outboxd"), **stage.about(), "pairs": _pairs(comparisons, options.pairs)}
            if options.scale != 1:
                about["scale"] = f"{options.scale:g}: for a try, and no measurement"
            if results:
                say(report.as_text(results))
                if options.to is not None:
                    say(report.write(results, failures, about, options.to))
    if failures:
        raise Unequal("; ".join(f"{failure.comparison.id}: {failure.why}" for failure in failures))
    return results


def _pairs(comparisons: Sequence[Comparison], pairs: int) -> str:
    split = {comparison.id: comparison.split for comparison in comparisons if comparison.split > 1}
    return ", ".join([str(pairs), *(f"{name} {pairs * times} short ones" for name, times in split.items())])


def _check(stage: Stage, comparison: Comparison) -> None:
    """Start what a comparison needs. Raises `ConfigurationError` if that cannot be."""
    try:
        for engine in ("postgres", *comparison.needs):
            stage.engine(engine)
    except ConfigurationError as problem:
        raise ConfigurationError(f"{comparison.id}: {problem}") from None
    for module in comparison.modules:
        if find_spec(module) is None:
            raise ConfigurationError(f"{comparison.id}: {module} is not installed: pip install 'outboxd[bench]'")
