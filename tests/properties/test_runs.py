"""Runs of offsets say of every offset what the set of them would say."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bridges.inprocess.runs import clipped, joined, runs_but, within

OFFSETS = st.sets(st.integers(0, 30))


def spread(runs: list[tuple[int, int]]) -> list[int]:
    return [offset for begin, end in runs for offset in range(begin, end)]


@given(OFFSETS, OFFSETS, st.integers(0, 31), st.integers(0, 31))
def test_runs_agree_with_sets(without: set[int], others: set[int], begin: int, end: int) -> None:
    runs = runs_but(sorted(without), 0, 31)
    left = set(range(31)) - without
    assert spread(runs) == sorted(left)
    assert spread(clipped(runs, begin, end)) == [offset for offset in sorted(left) if begin <= offset < end]
    assert [within(runs, offset) for offset in range(31)] == [offset in left for offset in range(31)]
    more = runs_but(sorted(others), 0, 31)
    together = joined(sorted([*runs, *more]))
    assert spread(together) == sorted(left | (set(range(31)) - others))
    assert all(behind < begins for (_, behind), (begins, _) in pairwise(together)), "rising and apart"
