"""What is made of what a run's watch has seen."""

from __future__ import annotations

from itertools import count
from uuid import UUID

import pytest

from tests.faults.history import Copy, Fault
from tests.faults.watched import Count, Look, audits, with_recovery


def counts(*seconds: int) -> list[Count]:
    """Four counts a second, from 0 on, of so many effects in each second."""
    at, effects, found = count(), 0, [Count(0.0, 0)]
    for many in seconds:
        for _ in range(4):
            effects += many // 4
            found.append(Count((next(at) + 1) / 4, effects))
    return found


def recoveries(faults: list[Fault], seen: list[Count]) -> list[float | None]:
    return [fault.recovery for fault in with_recovery(faults, seen, warm=2.0)]


def test_a_recovery_is_beside_the_rate_before_the_first_fault() -> None:
    """And not beside that of a backlog, nor beside nothing: the third begins while the second goes on."""
    seen = counts(0, 0, 40, 40, 0, 0, 200, 200, 0, 0, 0, 0, 40, 40)
    faults = [Fault("first", 4, 6), Fault("in a backlog", 8, 9), Fault("while nothing flows", 10, 11)]
    assert recoveries(faults, seen) == [pytest.approx(0.25), pytest.approx(4.0), pytest.approx(2.0)]


def test_what_does_not_come_again_or_was_not_seen_is_no_recovery() -> None:
    assert recoveries([Fault("kill", 4, 6)], counts(40, 40, 40, 40, 0, 0, 30, 30)) == [float("inf")]
    assert recoveries([Fault("kill", 4, 6)], [Count(7.0, 3), Count(8.0, 300)]) == [None]
    assert recoveries([], counts(40)) == []


def test_what_is_stored_while_the_outbox_is_looked_at_was_stored_by_then() -> None:
    before, during, after = (UUID(int=number) for number in range(3))
    copies = [Copy("log", place, id_, None, "d", at) for place, (id_, at) in enumerate([(before, 9.0), (during, 10.5), (after, 11.5)])]
    (audit,) = audits([Look(10.0, 11.0, frozenset({after}))], copies)
    assert (audit.at, audit.left, audit.stored) == (10.0, frozenset({after}), frozenset({before, during}))
