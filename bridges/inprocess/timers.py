"""What is to happen at a time: one heap, and one call of the event loop for the first of them."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer:
    """Something that is to happen, until it has or is cancelled."""

    __slots__ = ("_timers", "call", "when")

    def __init__(self, timers: Timers, when: float, call: Callable[[], object]) -> None:
        self._timers = timers
        self.when = when
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """It will not happen. Any number of times."""
        if self.call is not None:
            self.call = None
            self._timers._cancelled_one()


class Timers:
    """Calls by time, in monotonic seconds. Needs a running event loop when something is added."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._handle: asyncio.TimerHandle | None = None
        self._handle_at = 0.0
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def at(self, when: float, call: Callable[[], object]) -> Timer:
        """Have something called at ``when``, by `time.monotonic`, or as soon after it as the event loop comes to it."""
        timer = Timer(self, when, call)
        heapq.heappush(self._heap, (when, next(self._numbers), timer))
        if self._handle is None or when < self._handle_at:
            self._arm()
        return timer

    def clear(self) -> None:
        """Forget everything."""
        self._heap.clear()
        self._cancelled = 0
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._heap:
            self._handle_at = self._heap[0][0]
            self._handle = asyncio.get_running_loop().call_later(max(0.0, self._handle_at - monotonic()), self._ring)

    def _ring(self) -> None:
        self._handle = None
        now = monotonic()
        try:
            while self._heap and self._heap[0][0] <= now:
                timer = heapq.heappop(self._heap)[2]
                call, timer.call = timer.call, None
                if call is None:
                    self._cancelled -= 1
                else:
                    call()
        finally:
            self._arm()

    def _cancelled_one(self) -> None:
        self._cancelled += 1
        if self._cancelled > len(self._heap) // 2:  # or a heap of far timers that were all cancelled would only grow
            self._heap = [entry for entry in self._heap if entry[2].call is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0
