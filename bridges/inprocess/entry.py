"""A publish that has to wait at a mailbox: in line from the moment that it is made, so that nothing that comes later overtakes it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bridges.inprocess.drops import OUTCOMES
from bridges.inprocess.settings import Drop

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridges.inprocess.delivery import Delivery
    from bridges.inprocess.mailbox import Mailbox
    from bridges.inprocess.posting import Posting
    from bridges.ports import Outcome


class Pending:
    """What becomes of a message that found no room: it comes into the buffer as a delivery, or is lost.

    Args:
        answered: whether its publisher keeps what is rejected.
    """

    __slots__ = ("_delivery", "_outcome", "_over", "answered")

    def __init__(self, *, answered: bool) -> None:
        self.answered = answered
        self._delivery: Delivery | None = None
        self._outcome: Outcome | None = None
        self._over: asyncio.Future[None] | None = None

    def came(self, delivery: Delivery) -> None:
        """It is in the buffer."""
        if self.answered:
            delivery.own.answered = True
        self._delivery = delivery
        self._tell()

    def lost(self, outcome: Outcome) -> None:
        """It will not come."""
        self._outcome = outcome
        self._tell()

    async def outcome(self) -> Outcome:
        """Wait until it has come, and for the end of that delivery."""
        while self._outcome is None:
            if self._delivery is not None:
                return await self._delivery.outcome()
            await asyncio.shield(self._waiter())
        return self._outcome

    def known(self) -> Outcome | None:
        """Return what `outcome` would; None if it would have to wait for it."""
        return self._outcome if self._delivery is None else self._delivery.known()

    def tell(self, told: Callable[[object], None]) -> None:
        """Have something called when `outcome` would return."""
        if self._delivery is not None:
            self._delivery.tell(told)
        elif self._outcome is not None:
            told(self)
        else:
            self._waiter().add_done_callback(lambda _: self.tell(told))

    def unread(self) -> bool:
        """Say whether no reader has had it yet, and one may."""
        return self._outcome is None and (self._delivery is None or self._delivery.unread())

    def withdraw(self) -> bool:
        """Take it back if no reader has had it; say whether it was."""
        return self._delivery is not None and self._delivery.withdraw()

    def _waiter(self) -> asyncio.Future[None]:
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
        return self._over

    def _tell(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)


class Entry(Pending):
    """A publish that waits for room in a mailbox.

    Attributes:
        entered: done once it waits no longer; to be cancelled if its publisher does not.
    """

    __slots__ = ("_mailbox", "_posting", "entered")

    def __init__(self, mailbox: Mailbox, posting: Posting) -> None:
        super().__init__(answered=posting.answered)
        self._mailbox = mailbox
        self._posting = posting
        self.entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self.enter():
            mailbox.waiting.for_room(self)
            self.entered.add_done_callback(self._given_up)

    def enter(self) -> bool:
        """Go in if there is room, or if it is in vain to wait for that; say whether it waits no longer."""
        if self._mailbox.closed:
            self._never_came(Drop.ENDED)
        elif (delivery := self._mailbox.let_in(self._posting)) is not None:
            self._posting.deliveries.append(delivery)
            self.came(delivery)
        else:
            return False
        if not self.entered.done():  # by an ``on_drop`` that has just cancelled its publisher
            self.entered.set_result(None)
        return True

    def _given_up(self, entered: asyncio.Future[None]) -> None:
        if entered.cancelled():
            self._mailbox.waiting.give_up(self)
            self._never_came(Drop.WITHDRAWN)

    def _never_came(self, why: Drop) -> None:
        self._mailbox.drops.never_came(self._posting.message, self._posting.route.counts, why)
        self.lost(OUTCOMES[why])
