"""Many offsets as few numbers: runs of them, each from its begin to its end, rising and apart. Pure."""

from __future__ import annotations

from bisect import bisect_right
from math import inf
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Run: TypeAlias = tuple[int, int]
"""The first of some offsets that follow each other, and the one behind the last."""
Runs: TypeAlias = tuple[Run, ...]


def runs_but(offsets: Sequence[int], begin: int, end: int) -> list[Run]:
    """Return the runs from ``begin`` to ``end`` that are left without these offsets, which rise and lie in between."""
    begins, ends = [begin, *(offset + 1 for offset in offsets)], [*offsets, end]
    return [(first, behind) for first, behind in zip(begins, ends, strict=True) if first < behind]


def clipped(runs: Iterable[Run], begin: int, end: float = inf) -> list[Run]:
    """Return what of the runs lies between two offsets."""
    return [(max(first, begin), int(min(behind, end))) for first, behind in runs if first < end and behind > begin]


def joined(runs: Iterable[Run]) -> list[Run]:
    """Return rising runs with those that touch made one."""
    those: list[Run] = []
    for first, behind in runs:
        if those and those[-1][1] >= first:
            those[-1] = those[-1][0], max(those[-1][1], behind)
        else:
            those.append((first, behind))
    return those


def within(runs: Sequence[Run], offset: int) -> bool:
    """Say whether an offset is in one of the runs."""
    at = bisect_right(runs, (offset, inf)) - 1
    return at >= 0 and offset < runs[at][1]
