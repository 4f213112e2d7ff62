"""A bounded buffer of deliveries, and what becomes of each delivery."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from bridges.ports import PUBLISHED, Outcome, Reason, Rejected, Released

if TYPE_CHECKING:
    from bridges.message import Message

_ENDED = Released(Reason.UNAVAILABLE, "the subscription ended before it acknowledged")


class Delivery:
    """One message on its way to one subscription. It ends with `ack` or `reject`; `nack` sends it round again.

    Attributes:
        message: what is delivered.
        attempts: how often it was handed to a reader, this time included.
    """

    __slots__ = ("_mailbox", "_outcome", "attempts", "message")

    def __init__(self, message: Message, mailbox: Mailbox) -> None:
        self.message = message
        self.attempts = 0
        self._mailbox = mailbox
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    @property
    def over(self) -> bool:
        """Whether nobody waits for this delivery any more: acknowledged, rejected, withdrawn, or its subscription is gone."""
        return self._outcome.done()

    def ack(self) -> None:
        """It has taken effect. Any number of times."""
        self._end(PUBLISHED)

    def reject(self, reason: Reason, detail: str) -> None:
        """It will never be accepted."""
        self._end(Rejected(reason, detail))

    def nack(self, delay: float = 0.0) -> None:
        """Deliver it again, ahead of what is waiting, after ``delay`` seconds."""
        if not self.over:
            self._mailbox.give_back(self, delay)

    def withdraw(self) -> None:
        """The publisher waits no longer: a reader that has not got it yet will not get it."""
        self._outcome.cancel()

    def abandon(self) -> None:
        """Its subscription is gone: it was not acknowledged."""
        if not self._outcome.done():
            self._outcome.set_result(_ENDED)

    async def outcome(self) -> Outcome:
        """Wait for the end of the delivery."""
        return await asyncio.shield(self._outcome)

    def _end(self, outcome: Outcome) -> None:
        if not self._outcome.done():
            self._outcome.set_result(outcome)
        self._mailbox.ended(self)


class Mailbox:
    """The buffer of one subscription, or of all the members of one queue group."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: deque[Delivery] = deque()
        self._out: dict[Delivery, object] = {}
        self._timers: dict[Delivery, asyncio.TimerHandle] = {}
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def put(self, message: Message) -> Delivery | None:
        """Buffer a delivery, waiting while the buffer is full; None if the mailbox was closed meanwhile."""
        while len(self._waiting) >= self._size and not self._closed:
            self._room.clear()
            await self._room.wait()
        if self._closed:
            return None
        delivery = Delivery(message, self)
        self._waiting.append(delivery)
        self._filled.set()
        return delivery

    async def take(self, limit: int, reader: object) -> list[Delivery]:
        """Hand up to ``limit`` deliveries to ``reader``, at least one; an empty list says that the mailbox is closed."""
        while not self._closed:
            if taken := self.take_nowait(limit, reader):
                return taken
            self._filled.clear()
            await self._filled.wait()
        return []

    def take_nowait(self, limit: int, reader: object) -> list[Delivery]:
        """Hand over what is there, perhaps nothing."""
        taken: list[Delivery] = []
        while self._waiting and len(taken) < limit:
            delivery = self._waiting.popleft()
            if not delivery.over:
                delivery.attempts += 1
                self._out[delivery] = reader
                taken.append(delivery)
        self._room.set()
        return taken

    async def wait(self, timeout: float) -> None:
        """Return when something is waiting, the mailbox is closed, or ``timeout`` seconds are over."""
        if not self._waiting and not self._closed:
            self._filled.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._filled.wait(), timeout)

    def give_back(self, delivery: Delivery, delay: float) -> None:
        """Put a delivery that is out back to the front, now or after ``delay`` seconds."""
        if self._out.pop(delivery, None) is None or self._closed:
            return
        if delay > 0:
            self._timers[delivery] = asyncio.get_running_loop().call_later(delay, self._return, delivery)
        else:
            self._return(delivery)

    def ended(self, delivery: Delivery) -> None:
        """Forget a delivery that is over."""
        self._out.pop(delivery, None)

    def leave(self, reader: object) -> None:
        """Give back, in order, all that ``reader`` has not ended."""
        for delivery in reversed([delivery for delivery, holder in self._out.items() if holder is reader]):
            self.give_back(delivery, 0.0)

    def close(self) -> None:
        """End every delivery as not acknowledged, and wake all who wait."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        for delivery in [*self._waiting, *self._out, *self._timers]:
            delivery.abandon()
        self._waiting.clear()
        self._out.clear()
        self._timers.clear()
        self._filled.set()
        self._room.set()

    def _return(self, delivery: Delivery) -> None:
        self._timers.pop(delivery, None)
        self._waiting.appendleft(delivery)
        self._filled.set()
