"""Faults on purpose, so that a test can have a process end, stop or hang exactly where it hurts.

``OUTBOXD_FAILPOINT=pump.publish.after:kill:3`` kills the daemon when a call of the pump's sink has returned for the third time, and before
anything is settled. A point is a side of a step of a loop, and so it is a wrapper: without the variable
nothing is wrapped, and nothing asked.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import asynccontextmanager
from itertools import product
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from bridges.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from bridges.message import Message
    from bridges.ports import Batch, Outcome, Sink, Source

log = logging.getLogger("outboxd.failpoints")

C = TypeVar("C")

VARIABLE: Final = "OUTBOXD_FAILPOINT"
"""``name:action[:nth]``, several with commas between them; the nth time that the point is reached, which is the first if none is given."""

_LOOPS: Final = ("pump", "consumer", "bridge")
_STEPS: Final = ("claim", "publish", "settle")
POINTS: Final = (
    *(".".join(point) for point in product(_LOOPS, _STEPS, ("before", "after"))),
    *("consumer.handler.before", "consumer.handler.after"),
)
"""The points that there are. ``consumer.handler.after`` is within the effect's transaction, before its COMMIT."""

ACTIONS: Final = ("kill", "stop", "raise", "hang", "sleep")
"""``kill`` and ``stop`` are the signals; ``hang`` ends when it is cancelled; ``sleep`` is for `SLEEP` seconds."""

SLEEP: Final = 3.0


class FailpointError(Exception):
    """What ``raise`` raises."""


class _Trap(NamedTuple):
    action: str
    nth: int


class Failpoints:
    """The points that are armed, by a text as in `VARIABLE`. Raises `ConfigurationError` for a text that names none that there is."""

    def __init__(self, text: str) -> None:
        self._traps = dict(_parse(part) for part in text.split(",")) if text else {}
        self._reached = dict.fromkeys(self._traps, 0)

    @classmethod
    def from_environment(cls) -> Failpoints:
        """Return those that the environment names: none, nearly always."""
        return cls(os.environ.get(VARIABLE, ""))

    async def reach(self, point: str) -> None:
        """Do what the point is armed with, if this is the time."""
        trap = self._traps.get(point)
        if trap is None:
            return
        self._reached[point] += 1
        if self._reached[point] != trap.nth:
            return
        log.warning("failpoint %s: %s", point, trap.action)
        match trap.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "raise":
                raise FailpointError(point)
            case "hang":
                await asyncio.Event().wait()
            case "sleep":
                await asyncio.sleep(SLEEP)  # as long as the fault is to take: nothing comes to wait for

    def source(self, loop: str, source: Source) -> Source:
        """Return the source with the loop's points around it, or the source itself if none is armed."""
        return _PiercedSource(source, loop, self) if self._has(f"{loop}.claim.", f"{loop}.settle.") else source

    def sink(self, loop: str, sink: Sink) -> Sink:
        """Return the sink with the loop's points around it, or the sink itself if none is armed."""
        return _PiercedSink(sink, loop, self) if self._has(f"{loop}.publish.") else sink

    def handler(self, handler: Callable[[Message, C], Awaitable[None]]) -> Callable[[Message, C], Awaitable[None]]:
        """Return a consumer's handler with its points around it, or the handler itself if none is armed."""
        if not self._has("consumer.handler."):
            return handler

        async def pierced(message: Message, connection: C) -> None:
            await self.reach("consumer.handler.before")
            await handler(message, connection)
            await self.reach("consumer.handler.after")

        return pierced

    def _has(self, *prefixes: str) -> bool:
        return any(point.startswith(prefixes) for point in self._traps)


class _PiercedSource:
    def __init__(self, source: Source, loop: str, points: Failpoints) -> None:
        self._source = source
        self._loop = loop
        self._points = points

    @asynccontextmanager
    async def claim(self, limit: int) -> AsyncIterator[Batch]:
        await self._points.reach(f"{self._loop}.claim.before")
        async with self._source.claim(limit) as batch:
            # An empty claim is not what anybody means by the nth.
            if batch.messages:
                await self._points.reach(f"{self._loop}.claim.after")
            yield _PiercedBatch(batch, self._loop, self._points)

    async def wait(self, timeout: float) -> None:
        await self._source.wait(timeout)


class _PiercedBatch:
    def __init__(self, batch: Batch, loop: str, points: Failpoints) -> None:
        self._batch = batch
        self._loop = loop
        self._points = points

    @property
    def messages(self) -> Sequence[Message]:
        return self._batch.messages

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        await self._points.reach(f"{self._loop}.settle.before")
        await self._batch.settle(outcomes)
        await self._points.reach(f"{self._loop}.settle.after")


class _PiercedSink:
    def __init__(self, sink: Sink, loop: str, points: Failpoints) -> None:
        self._sink = sink
        self._loop = loop
        self._points = points

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        await self._points.reach(f"{self._loop}.publish.before")
        outcomes = await self._sink.publish(messages)
        await self._points.reach(f"{self._loop}.publish.after")
        return outcomes


def _parse(text: str) -> tuple[str, _Trap]:
    point, _, rest = text.strip().partition(":")
    action, _, nth = rest.partition(":")
    if point not in POINTS:
        msg = f"{VARIABLE}: {point!r} is no failpoint; there are {', '.join(POINTS)}"
        raise ConfigurationError(msg)
    if action not in ACTIONS:
        msg = f"{VARIABLE}: {action!r} is no action; there are {', '.join(ACTIONS)}"
        raise ConfigurationError(msg)
    if nth and not (nth.isascii() and nth.isdigit() and int(nth) > 0):
        msg = f"{VARIABLE}: {nth!r} in {text!r} is not which time, from 1 on"
        raise ConfigurationError(msg)
    return point, _Trap(action, int(nth or 1))
