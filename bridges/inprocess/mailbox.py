"""A bounded buffer of deliveries, and what becomes of each delivery."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bridges.deadline import happens
from bridges.intake import Intake, Loan
from bridges.ports import PUBLISHED, Outcome, Reason, Rejected, Released

if TYPE_CHECKING:
    from bridges.message import Message

_ENDED = Released(Reason.UNAVAILABLE, "the subscription ended before it acknowledged")


class Delivery:
    """One message on its way to one subscription. It ends with `ack` or `reject`; `nack` sends it round again.

    Attributes:
        message: what is delivered.
    """

    __slots__ = ("_loan", "_mailbox", "_outcome", "message")

    def __init__(self, message: Message, mailbox: Mailbox) -> None:
        self.message = message
        self._mailbox = mailbox
        self._loan: Loan[Delivery] | None = None
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    @property
    def attempts(self) -> int:
        """How often it was given back as failed."""
        return self._loan.failures if self._loan else 0

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

    def nack(self, delay: float = 0.0, *, failed: bool = False) -> None:
        """Deliver it again after ``delay`` seconds, and what is behind it in its key after it; ``failed`` counts as an attempt."""
        if self._loan is not None:
            self._mailbox.give_back(self._loan, delay, failed=failed)

    def withdraw(self) -> None:
        """The publisher waits no longer: a reader that has not got it yet will not get it."""
        if not self.over:
            self._outcome.cancel()
            if self._loan is not None:
                self._mailbox.forget(self._loan)

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
        if self._loan is not None:
            self._mailbox.end(self._loan)


class Mailbox:
    """The buffer of one subscription, or of all the members of one queue group."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._intake: Intake[Delivery] = Intake()
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._intake)

    async def put(self, message: Message) -> Delivery | None:
        """Buffer a delivery, waiting while the buffer is full; None if the mailbox was closed meanwhile."""
        while len(self._intake) >= self._size and not self._closed:
            self._room.clear()
            await self._room.wait()
        if self._closed:
            return None
        delivery = Delivery(message, self)
        delivery._loan = self._intake.add(delivery, message.key)
        self._filled.set()
        return delivery

    def take_nowait(self, limit: int, reader: object) -> list[Delivery]:
        """Hand over what is there, perhaps nothing."""
        loans = self._intake.lend(reader, limit, asyncio.get_running_loop().time())
        if loans:
            self._room.set()
        else:
            self._filled.clear()
        return [loan.item for loan in loans]

    async def wait(self, timeout: float) -> None:
        """Return when something may have become ready, the mailbox is closed, or ``timeout`` seconds are over."""
        due_in = self._intake.due_in(asyncio.get_running_loop().time())
        await happens(self._filled, timeout if due_in is None else min(timeout, due_in))

    def give_back(self, loan: Loan[Delivery], delay: float, *, failed: bool) -> None:
        """Put a delivery that is out back to its place."""
        due = asyncio.get_running_loop().time() + delay if delay > 0 else 0.0
        self._intake.give_back(loan, due=due, failed=failed)
        self._filled.set()

    def end(self, loan: Loan[Delivery]) -> None:
        """A delivery is over: its key is free for another reader."""
        self._intake.end(loan)
        self._filled.set()

    def forget(self, loan: Loan[Delivery]) -> None:
        """Drop a delivery that nobody waits for."""
        self._intake.forget(loan)
        self._filled.set()
        self._room.set()

    def leave(self, reader: object) -> None:
        """Give back, in order, all that ``reader`` has not ended."""
        self._intake.leave(reader)
        self._filled.set()

    def close(self) -> None:
        """End every delivery as not acknowledged, and wake all who wait."""
        self._closed = True
        for loan in list(self._intake):
            loan.item.abandon()
        self._intake = Intake()
        self._filled.set()
        self._room.set()
