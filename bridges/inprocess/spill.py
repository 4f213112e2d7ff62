"""What a subscription's buffer has no room for goes to a log of its own, and comes from there in order when there is room."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from bridges.errors import Evicted
from bridges.inprocess.backlog import NEAR
from bridges.inprocess.drops import OUTCOMES
from bridges.inprocess.settings import Drop

if TYPE_CHECKING:
    from uuid import UUID

    from bridges.inprocess.delivery import Delivery
    from bridges.inprocess.log import Entry, Log
    from bridges.inprocess.mailbox import Mailbox
    from bridges.inprocess.posting import Posting
    from bridges.inprocess.stats import Counts
    from bridges.ports import Outcome


class Spill:
    """What is behind the mailbox of a subscription that spills. While anything is there, what comes goes there too: order is kept."""

    def __init__(self, log: Log, mailbox: Mailbox) -> None:
        self._log = log
        self._mailbox = mailbox
        self._spilled: OrderedDict[int, Spilled] = OrderedDict()
        self._appending = 0
        self._read_ahead: dict[int, Entry] = {}

    @property
    def lag(self) -> int:
        """How many messages are in the log and not back yet."""
        return len(self._spilled)

    async def take(self, posting: Posting) -> Spilled:
        """Put a message there. If the log fails, the message is dropped, and the error is the publisher's to see."""
        mailbox = self._mailbox
        message, topic = posting.message, posting.route.counts
        mailbox.size = 0
        self._appending += 1
        try:
            offset = await self._log.append([message], time.time(), posting.its)
        except BaseException:  # whatever a log raises, or its publisher's cancellation: either way it is not here, and is counted so
            mailbox.drops.never_came(message, topic, Drop.FULL)
            raise
        finally:
            self._appending -= 1
        topic.published += 1
        mailbox.counts.published += 1
        spilled = self._spilled[offset] = Spilled(self, offset, topic, answered=posting.answered)
        if mailbox.closed:
            self.close()
        else:
            mailbox.waiting.wake()
        return spilled

    def withdraw(self, spilled: Spilled) -> None:
        """One that is there is not to be delivered."""
        if self._spilled.pop(spilled.offset, None) is not None:
            self._lost(spilled, Drop.WITHDRAWN)
            self._open_if_empty()

    @property
    def ready(self) -> bool:
        """Whether there is something to take back, and room for it."""
        return bool(self._spilled) and self._mailbox.queued < self._mailbox.settings.buffer

    def refill(self) -> bool:
        """Take back what there is room for; what the log has evicted meanwhile is dropped."""
        mailbox = self._mailbox
        room = mailbox.settings.buffer - mailbox.queued
        came = False
        while self._spilled and room > 0:
            spilled = self._spilled.popitem(last=False)[1]
            entry = self._read(spilled.offset, room)
            if entry is None:
                self._lost(spilled, Drop.EVICTED)
                continue
            mailbox.counts.published -= 1
            spilled.came(mailbox.line_up(entry.stamps, entry.message, spilled.topic))
            came = True
            room -= 1
        self._open_if_empty()
        return came

    def holds(self, message_id: UUID) -> bool:
        """Say whether a message is among the next there."""
        with suppress(Evicted):
            entries = self._log.read(next(iter(self._spilled)), NEAR) if self._spilled else []
            return any(entry.message.id == message_id and entry.offset in self._spilled for entry in entries)
        return False

    def done(self, offset: int, outcome: Outcome) -> None:
        """Nothing depends on it."""

    def close(self) -> None:
        """What is still in the log is dropped."""
        while self._spilled:
            self._lost(self._spilled.popitem(last=False)[1], Drop.ENDED)

    def _read(self, offset: int, ahead: int) -> Entry | None:
        if offset not in self._read_ahead:
            try:
                self._read_ahead = {entry.offset: entry for entry in self._log.read(offset, ahead)}
            except Evicted:
                self._read_ahead = {}
        return self._read_ahead.get(offset)

    def _lost(self, spilled: Spilled, why: Drop) -> None:
        spilled.topic.dropped += 1
        self._mailbox.counts.dropped += 1
        # What the log has evicted is counted alone: nobody has it any more, to be told of it.
        if self._mailbox.settings.on_drop is not None and (entry := self._read(spilled.offset, 1)) is not None:
            self._mailbox.drops.tell(entry.message, why)
        spilled.lost(OUTCOMES[why])

    def _open_if_empty(self) -> None:
        """Once nothing is there, what comes goes into the buffer again."""
        if not (self._spilled or self._appending):
            self._read_ahead = {}
            self._mailbox.size = self._mailbox.settings.buffer


class Spilled:
    """What becomes of a message that is there: it comes back as a delivery, or is lost.

    Args:
        spill: where it is.
        offset: its place in the log.
        topic: the counters of its topic.
        answered: whether its publisher keeps what is rejected.
    """

    __slots__ = ("_delivery", "_outcome", "_over", "_spill", "_went_at", "answered", "offset", "topic")

    def __init__(self, spill: Spill, offset: int, topic: Counts, *, answered: bool) -> None:
        self._spill = spill
        self.offset = offset
        self.topic = topic
        self.answered = answered
        self._went_at = monotonic()
        self._delivery: Delivery | None = None
        self._outcome: Outcome | None = None
        self._over: asyncio.Future[None] | None = None

    def came(self, delivery: Delivery) -> None:
        """It is in the buffer."""
        if self.answered:
            delivery.own.answered = True
        delivery.queued_at = self._went_at
        self._delivery = delivery
        self._tell()

    def lost(self, outcome: Outcome) -> None:
        """It will not come."""
        self._outcome = outcome
        self._tell()

    async def outcome(self) -> Outcome:
        """Wait until it has come back, and for the end of that delivery."""
        while self._outcome is None:
            if self._delivery is not None:
                return await self._delivery.outcome()
            if self._over is None:
                self._over = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._over)
        return self._outcome

    def withdraw(self) -> None:
        """Nobody waits for it any more: it is not to come back."""
        if self._delivery is not None:
            self._delivery.withdraw()
        else:
            self._spill.withdraw(self)

    def _tell(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
