"""How long to wait, and when to give up."""

from __future__ import annotations

from typing import Any

import pytest

from bridges.backoff import Backoff
from bridges.errors import ConfigurationError


def ceiling(_: float, high: float) -> float:
    return high


def test_the_ceiling_doubles_up_to_the_cap() -> None:
    backoff = Backoff(first=1.0, cap=10.0)
    assert [backoff.delay(attempt, uniform=ceiling) for attempt in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_the_jitter_is_full() -> None:
    """Anything from nothing to the ceiling."""
    backoff = Backoff(first=3.0, cap=10.0)
    assert backoff.delay(1, uniform=lambda low, _: low) == 0
    drawn = [backoff.delay(2) for _ in range(500)]
    assert all(0 <= seconds <= 6 for seconds in drawn)
    assert min(drawn) < 1
    assert max(drawn) > 5


@pytest.mark.parametrize("attempt", [64, 1100, 10**9])
def test_no_number_of_attempts_overflows(attempt: int) -> None:
    assert Backoff(first=0.001, cap=300.0).delay(attempt, uniform=ceiling) == 300


def test_it_is_exhausted_with_the_last_attempt_allowed() -> None:
    backoff = Backoff(max_attempts=3)
    assert [backoff.exhausted(attempts) for attempts in range(5)] == [False, False, False, True, True]


def test_without_a_maximum_it_is_never_exhausted() -> None:
    assert not Backoff().exhausted(10**9)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"first": 0.0}, "0 < first <= cap"),
        ({"first": -1.0}, "0 < first <= cap"),
        ({"first": 2.0, "cap": 1.0}, "first is 2.0, cap is 1.0"),
        ({"first": float("nan")}, "0 < first <= cap"),
        ({"max_attempts": 0}, "max_attempts: 0 is below 1"),
    ],
)
def test_what_cannot_work_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Backoff(**fields)
