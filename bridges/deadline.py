"""Waiting for an event with a deadline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import Event


async def happens(event: Event, within: float) -> bool:
    """Wait for the event, for ``within`` seconds at the most, and say whether it is set.

    Not with `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes together with the event.
    """
    try:
        async with asyncio.timeout(within):
            await event.wait()
    except TimeoutError:
        return False
    return True
