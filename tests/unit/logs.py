"""Logs and cursors for the tests of topics that keep a log."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bridges.inprocess import Broker, MemoryLog
from bridges.inprocess.stamps import PLAIN, Stamps
from tests.unit.messages import made, turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.inprocess import Subscription
    from bridges.message import Message


class SlowLog(MemoryLog):
    """A log whose appends take a while, and which says that it is durable."""

    durable = True

    async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
        offset = await super().append(messages, time, stamps)
        await turn()
        await turn()
        return offset


class StuckLog(MemoryLog):
    """A log that says that it is durable, and whose appends never end."""

    durable = True

    async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
        await asyncio.Event().wait()
        raise AssertionError


async def taken(subscription: Subscription, count: int) -> list[int]:
    """Take so many, acknowledge them, and return their numbers."""
    got: list[int] = []
    while len(got) < count:
        for delivery in await asyncio.wait_for(subscription.take(count - len(got)), 10):
            got.append(int(delivery.payload))
            delivery.ack()
    return got


async def logged(count: int, log: MemoryLog | None = None) -> Broker:
    """A broker whose topic keeps a log, with messages numbered from 0 in it."""
    broker = Broker()
    broker.keep("orders.>", log or MemoryLog())
    for number in range(count):
        await broker.publish(made(number))
    return broker
