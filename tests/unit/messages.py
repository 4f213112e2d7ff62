"""Messages for the tests of the broker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bridges.message import Message, uuid7

if TYPE_CHECKING:
    from bridges.inprocess import Broker


def made(payload: bytes | int = b"", topic: str = "orders.created", key: str | None = None) -> Message:
    """A message of its own; a number is its payload in digits."""
    return Message(uuid7(), topic, str(payload).encode() if isinstance(payload, int) else payload, key)


async def publish(broker: Broker, count: int, topic: str = "orders.created") -> None:
    """Publish messages numbered from 0."""
    for number in range(count):
        await broker.publish(made(number, topic))


async def whether(condition: bool) -> bool:
    """A condition as `tests.engines.deadline.eventually` wants it."""
    return condition


async def turn() -> None:
    """Let whatever is ready have its turn of the loop: a task that was just made begins, and does what it can before it waits."""
    await asyncio.sleep(0)
