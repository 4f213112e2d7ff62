"""Messages to send, and the two ports in their smallest form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from bridges.message import Message
from bridges.ports import PUBLISHED, Batch, Outcome

Publish = Callable[[Sequence[Message]], Awaitable[Sequence[Outcome]]]


def message(number: int, key: str | None = None, topic: str = "t") -> Message:
    """Return a message whose id is the number."""
    return Message(UUID(int=number), topic, b"", key=key)


def batch_of(*keys: str | None) -> list[Message]:
    """Return a message for each key, numbered from 0."""
    return [message(number, key) for number, key in enumerate(keys)]


class FakeSink:
    """Publishes by asking a function, and remembers what it was given."""

    def __init__(self, publish: Publish | None = None) -> None:
        self._publish = publish
        self.calls: list[list[Message]] = []

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        self.calls.append(list(messages))
        return await self._publish(messages) if self._publish else [PUBLISHED] * len(messages)


class FakeSource:
    """Lends the given batches one after the other, then nothing; an exception among them is raised by its claim."""

    def __init__(self, *script: Sequence[Message] | Exception) -> None:
        self._script = list(script)
        self.claims = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.settled: list[tuple[list[Message], list[Outcome]]] = []
        self.given_back: list[list[Message]] = []
        self.waits: list[float] = []
        self.drained = asyncio.Event()
        self.returned = asyncio.Event()

    @asynccontextmanager
    async def claim(self, limit: int) -> AsyncIterator[Batch]:
        self.claims += 1
        step = self._script.pop(0) if self._script else []
        if isinstance(step, Exception):
            raise step
        batch = _FakeBatch(list(step)[:limit], self)
        self.in_flight += bool(batch.messages)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            yield batch
        finally:
            self.in_flight -= bool(batch.messages)
            if not batch.settled and batch.messages:
                self.given_back.append(batch.messages)
                self.returned.set()

    async def wait(self, timeout: float) -> None:
        self.waits.append(timeout)
        if self._script:
            return
        self.drained.set()
        await asyncio.Event().wait()


class _FakeBatch:
    def __init__(self, messages: list[Message], source: FakeSource) -> None:
        self.messages = messages
        self.settled = False
        self._source = source

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        self.settled = True
        self._source.settled.append((self.messages, list(outcomes)))
