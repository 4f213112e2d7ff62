"""What the tests of the broker as a Sink share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bridges.ports import Published

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.inprocess import Delivery, InProcessSink, Subscription
    from bridges.ports import Outcome, Reason

SHORT = 0.3
"""Seconds for a call that is to be late, and in which the test does the rest."""


async def take(subscription: Subscription, count: int) -> list[Delivery]:
    """Take so many, by themselves or together."""
    taken: list[Delivery] = []
    while len(taken) < count:
        taken += await asyncio.wait_for(subscription.take(count - len(taken)), 10)
    return taken


def reasons(outcomes: Sequence[Outcome]) -> list[Reason | None]:
    """Why each was released; None for what is published."""
    return [None if isinstance(outcome, Published) else outcome.reason for outcome in outcomes]


def patient(sink: InProcessSink) -> InProcessSink:
    """From now on it waits longer than any test."""
    sink._timeout = 60
    return sink


async def acknowledge(subscription: Subscription, handled: list[bytes]) -> None:
    """A reader that is done with everything at once."""
    async for delivery in subscription:
        handled.append(delivery.payload)  # noqa: PERF401 -- seen while it runs
