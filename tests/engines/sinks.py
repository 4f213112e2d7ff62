"""Sinks for tests of what stands before a sink: small enough to see that they are right."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bridges.ordering import Blocked
from bridges.ports import BEHIND, PUBLISHED, Outcome, Published, Reason, Released

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from bridges.message import Message


class RecordingSink:
    """Answers what ``judge`` says, keeps the key prefix, and remembers what it published, in order."""

    def __init__(self, judge: Callable[[Message], Outcome] = lambda _: PUBLISHED) -> None:
        self.judge = judge
        self.published: list[Message] = []
        self.calls = 0

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        self.calls += 1
        await asyncio.sleep(0)  # as any real sink lets others run
        blocked = Blocked()
        outcomes: list[Outcome] = []
        for message in messages:
            outcome = BEHIND if message in blocked else blocked.note(message, self.judge(message))
            if isinstance(outcome, Published):
                self.published.append(message)
            outcomes.append(outcome)
        return outcomes

    @property
    def ids(self) -> list[UUID]:
        """The ids of what was published, in order."""
        return [message.id for message in self.published]

    def payloads(self, key: str | None = None) -> list[bytes]:
        """The payloads of what was published, in order; of one key if it is given."""
        return [message.payload for message in self.published if key is None or message.key == key]


class DownSink:
    """A destination that is away, until it is let up."""

    def __init__(self, sink: RecordingSink) -> None:
        self.up = False
        self.refused = 0
        self._sink = sink

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        if self.up:
            return await self._sink.publish(messages)
        self.refused += 1
        return [Released(Reason.UNAVAILABLE, "down")] * len(messages)
