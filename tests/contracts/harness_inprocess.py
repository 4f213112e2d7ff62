"""InProcessSink with a subscriber behind it that keeps what it acknowledges, and with a durable log in its place."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from errno import EIO
from typing import TYPE_CHECKING

from bridges.inprocess import Broker, InProcessSink
from bridges.inprocess.durable import DurableLog
from bridges.inprocess.stamps import PLAIN, Stamps
from bridges.ports import Reason, Sink
from tests.contracts.messages import message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from bridges.message import Message

LIMIT = 300_000
TIMEOUT = 1.0


class InProcessSinkHarness:
    answers_within = TIMEOUT + 1.0
    cancelled_within = 1.0
    outage = frozenset({Reason.MISSING})
    """Nobody subscribes: in one process, that is what being away looks like."""

    def __init__(self, topics: Sequence[str]) -> None:
        self.topics = topics
        self.broker = Broker()
        self.sink: Sink = InProcessSink(self.broker, timeout=TIMEOUT)
        self._stored: list[Message] = []
        self._going = asyncio.Event()
        self._going.set()
        self._subscriber: asyncio.Task[None] | None = None

    async def stored(self) -> list[Message]:
        return self._stored

    async def come_back(self) -> None:
        began = asyncio.Event()
        self._subscriber = asyncio.create_task(self._subscribe(began))
        await began.wait()

    async def go_away(self) -> None:
        if self._subscriber is not None:
            self._subscriber.cancel()
            await asyncio.wait({self._subscriber})

    async def freeze(self) -> None:
        self._going.clear()

    async def thaw(self) -> None:
        self._going.set()

    def too_large(self) -> list[Message]:
        """The broker has no limit of its own; the subscriber has one."""
        return [message(self.topics[1], size=LIMIT + 1)]

    def invalid(self) -> list[Message]:
        return [message(topic) for topic in ("with blank", "wild.*", "empty..token", "$SYS.x", "")]

    def unordered(self) -> Sink:
        return InProcessSink(self.broker, timeout=TIMEOUT, ordered=False)

    def without_destination(self) -> Sink:
        self._other = Broker()
        return InProcessSink(self._other, timeout=TIMEOUT)

    async def make_destination(self) -> None:
        self.broker = self._other
        await self.come_back()

    async def _subscribe(self, began: asyncio.Event) -> None:
        async with self.broker.subscribe(*self.topics) as subscription:
            began.set()
            async for delivery in subscription:
                await self._going.wait()
                if len(delivery.message.payload) > LIMIT:
                    delivery.reject(Reason.TOO_LARGE, "more than the subscriber takes")
                elif not delivery.over:
                    self._stored.append(delivery.message)
                    delivery.ack()


@asynccontextmanager
async def inprocess_sink(topics: Sequence[str] = ("orders.created", "orders.paid")) -> AsyncIterator[InProcessSinkHarness]:
    harness = InProcessSinkHarness(topics)
    await harness.come_back()
    try:
        yield harness
    finally:
        await harness.go_away()


class FaultyLog:
    """A durable log on a disk that may be away, or say nothing."""

    def __init__(self, log: DurableLog) -> None:
        self._log = log
        self.away = False
        self.going = asyncio.Event()
        self.going.set()
        self.durable = log.durable
        self.read, self.offset_at, self.close = log.read, log.offset_at, log.close
        self.listen, self.sync = log.listen, log.sync

    @property
    def first(self) -> int:
        return self._log.first

    @property
    def next(self) -> int:
        return self._log.next

    async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
        await self.going.wait()
        if self.away:
            raise OSError(EIO, "the disk is away")
        return await self._log.append(messages, time, stamps)


class DurableSinkHarness:
    """The destination is the log: there are no subscriptions at all."""

    answers_within = TIMEOUT + 1.0
    cancelled_within = 1.0
    outage = frozenset({Reason.MISSING})

    def __init__(self, topics: Sequence[str], log: DurableLog) -> None:
        self.topics = topics
        self._log = FaultyLog(log)
        self.broker = Broker()
        self.broker.keep("orders.>", self._log)
        self.sink: Sink = InProcessSink(self.broker, timeout=TIMEOUT, max_payload=LIMIT)

    async def stored(self) -> list[Message]:
        return [entry.message for entry in self._log.read(self._log.first, self._log.next)]

    async def come_back(self) -> None:
        self._log.away = False

    async def go_away(self) -> None:
        self._log.away = True

    async def freeze(self) -> None:
        self._log.going.clear()

    async def thaw(self) -> None:
        self._log.going.set()

    def too_large(self) -> list[Message]:
        return [message(self.topics[1], size=LIMIT + 1)]

    def invalid(self) -> list[Message]:
        return [message(topic) for topic in ("with blank", "wild.*", "empty..token", "$SYS.x", "")]

    def unordered(self) -> Sink:
        return InProcessSink(self.broker, timeout=TIMEOUT, max_payload=LIMIT, ordered=False)

    def without_destination(self) -> Sink:
        self._other = Broker()
        return InProcessSink(self._other, timeout=TIMEOUT)

    async def make_destination(self) -> None:
        self._other.keep("orders.>", self._log)


@asynccontextmanager
async def durable_sink(folder: Path, topics: Sequence[str] = ("orders.created", "orders.paid")) -> AsyncIterator[DurableSinkHarness]:
    log = await DurableLog.open(folder)
    try:
        yield DurableSinkHarness(topics, log)
    finally:
        await log.close()
