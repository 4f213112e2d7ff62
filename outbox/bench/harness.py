"""How two sides are compared: in pairs, in turns, the first thrown away, the disturbed measured again, the median of the ratios judged."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from bridges.errors import OutboxError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from outbox.bench.stage import Stage

DISTURBED: Final = 0.05
"""Which part of the processors' time the machine's neighbours may take in a pair: what took more is measured again."""

Measure: TypeAlias = "Callable[[Stage, str], Awaitable[Mapping[str, float]]]"
"""Measures one side, named by its place in `Comparison.sides`, and returns a value for each figure."""


class Unequal(OutboxError):
    """What arrived is not what was sent, or not at all: there is no speed to speak of."""


class TooSlow(Unequal):
    """This machine does not come to the load under which something was to be measured."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure must reach: at least, or at most, so much."""

    value: float
    least: bool = True

    def met_by(self, value: float) -> bool:
        """Say whether a value reaches it."""
        return value >= self.value if self.least else value <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides, or one whose values are judged as they are.

    Attributes:
        id: of the benchmark that it is part of, such as ``B1``.
        name: what is compared.
        sides: what is claimed, and what it is measured against.
        unit: of both sides' values.
        targets: of the ratio of the first side to the second, for each figure; with one side, of its value.
        measure: measures one side once.
        needs: names of the engines beside Postgres.
        modules: that are optional, and needed.
        timed: whether it is a speed, and so a matter of what else the machine does.
        split: short pairs in the place of one: where a few percent are judged, and the machine's speed changes from second to second.
    """

    id: str
    name: str
    sides: tuple[str, ...]
    unit: str
    targets: Mapping[str, Target]
    measure: Measure
    needs: Sequence[str] = ()
    modules: Sequence[str] = ()
    timed: bool = True
    split: int = 1


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one figure of a comparison.

    Attributes:
        comparison: which.
        figure: which of its figures.
        values: of each side, in the order of the pairs.
        disturbed: how many of the pairs were so by the machine's neighbours.
        repeated: how many others were, and were measured again.
    """

    comparison: Comparison
    figure: str
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    disturbed: int = 0
    repeated: int = 0

    @property
    def ratios(self) -> Sequence[float]:
        """The first side over the second, pair by pair; with one side, its values."""
        first, *second = (self.values[side] for side in self.comparison.sides)
        return [a / b for a, b in zip(first, second[0], strict=True)] if second else first

    @property
    def median(self) -> float:
        """What is judged."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest ratio."""
        return min(self.ratios), max(self.ratios)

    @property
    def target(self) -> Target:
        """What it must reach."""
        return self.comparison.targets[self.figure]

    @property
    def met(self) -> bool:
        """Whether it does."""
        return self.target.met_by(self.median)


@dataclass(frozen=True, slots=True)
class Failure:
    """A comparison that came to nothing, and why."""

    comparison: Comparison
    why: str


@dataclass(slots=True)
class Patience:
    """How often in a row a pair that was disturbed is measured again. On a machine that is never left alone, waiting for that is in vain.

    Attributes:
        most: as often.
        left: of it. A pair that was left alone gives it all back.
    """

    most: int
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.most


async def compare(stage: Stage, comparison: Comparison, pairs: int, say: Callable[[str], object], patience: Patience) -> list[Result]:
    """Measure pair after pair and return a result for each figure. Raises `Unequal`, or an engine's error.

    Where the machine's neighbours take too much of it, a pair of speeds is measured again: twice as many are, at the most, and while
    there is patience. Then what is disturbed counts too.

    Args:
        stage: the engines.
        comparison: what to measure.
        pairs: that count, each time as often as the comparison says; one more is measured before them, while caches fill.
        say: is told each pair.
        patience: with the neighbours, over all comparisons.
    """
    pairs *= comparison.split
    kept: list[dict[str, Mapping[str, float]]] = []
    again = most = pairs if comparison.timed else 0
    disturbed = 0
    warm = False
    while len(kept) < pairs:
        readings: dict[str, Mapping[str, float]] = {}
        problem = None
        began = stage.ticks()
        try:
            for side in comparison.sides if warm and len(kept) % 2 == 0 else reversed(comparison.sides):
                readings[side] = await comparison.measure(stage, side)
        except TooSlow as slow:
            problem = slow
        taken = stage.taken_since(began)
        is_disturbed = comparison.timed and taken > DISTURBED
        if problem is not None and not (is_disturbed and again):
            raise problem
        told = str(problem) if problem is not None else ", ".join(_told(comparison, readings))
        told += f"; the neighbours took {taken:.0%}" if is_disturbed else ""
        if taken <= DISTURBED:
            patience.left = patience.most
        if problem is not None or (warm and is_disturbed and again and patience.left > 0):
            again -= 1
            patience.left -= 1
            say(f"  again: {told}")
        elif not warm:
            warm = True
            say(f"  warm-up: {told}")
        else:
            kept.append(readings)
            disturbed += is_disturbed
            say(f"  {len(kept)}: {told}")
    return [
        Result(
            comparison, figure, {side: [readings[side][figure] for readings in kept] for side in comparison.sides}, disturbed, most - again
        )
        for figure in comparison.targets
    ]


def check_equal(stored: int, sent: int, where: str) -> None:
    """Raise `Unequal` unless as much arrived as was sent."""
    if stored != sent:
        msg = f"{where}: {sent:,} were sent and {stored:,} are there"
        raise Unequal(msg)


def _told(comparison: Comparison, readings: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for figure in comparison.targets:
        sides = " to ".join(f"{readings[side][figure]:,.4g}" for side in comparison.sides)
        yield f"{figure} {sides} {comparison.unit}"
