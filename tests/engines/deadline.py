"""Waiting for a condition with a deadline, in place of sleeping."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


async def eventually(condition: Callable[[], Awaitable[T]], *, within: float = 20.0, what: str = "the condition") -> T:
    """Return the condition's first truthy value. Fails if there is none ``within`` seconds, with the last value."""
    deadline = time.monotonic() + within
    while True:
        value = await condition()
        if value:
            return value
        if time.monotonic() > deadline:
            msg = f"{what} did not come true within {within:g} s; last seen: {value!r}"
            raise AssertionError(msg)
        await asyncio.sleep(0.01)
