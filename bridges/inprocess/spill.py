"""What a subscription's buffer has no room for goes to a log of its own, and comes from there in order when there is room."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from bridges.errors import Evicted
from bridges.inprocess.backlog import NEAR
from bridges.inprocess.drops import OUTCOMES
from bridges.inprocess.entry import Pending
from bridges.inprocess.settings import Drop

if TYPE_CHECKING:
    from uuid import UUID

    from bridges.inprocess.delivery import Delivery
    from bridges.inprocess.log import Entry, Log
    from bridges.inprocess.mailbox import Mailbox
    from bridges.inprocess.posting import Posting
    from bridges.inprocess.stats import Counts
    from bridges.message import Message
    from bridges.ports import Outcome

log = logging.getLogger("outboxd.inprocess")


class Spill:
    """What is behind the mailbox of a subscription that spills. While anything is there, what comes goes there too: order is kept."""

    def __init__(self, log: Log, mailbox: Mailbox) -> None:
        self._log = log
        self._mailbox = mailbox
        self._spilled: OrderedDict[int, Spilled] = OrderedDict()
        self._appending = 0
        self._read_ahead: dict[int, Entry] = {}
        self._unreadable = False

    @property
    def lag(self) -> int:
        """How many messages are in the log and not back yet."""
        return len(self._spilled)

    def take(self, posting: Posting) -> asyncio.Future[int]:
        """Begin to put a message there, behind what came before. If the log fails, it is dropped, and its publisher sees the error."""
        self._mailbox.size = 0
        self._appending += 1
        spilled = Spilled(self, posting.route.counts, answered=posting.answered)
        posting.goes_behind(self._mailbox, spilled)
        # A task always: those that are made in order begin in order, and what is cancelled before it has begun is told of as well.
        storing = asyncio.ensure_future(self._log.append([posting.message], time.time(), posting.its))
        storing.add_done_callback(partial(self._stored, spilled, posting.message))
        return storing

    def withdraw(self, spilled: Spilled) -> bool:
        """One is not to be delivered; say whether it was there."""
        if self._spilled.pop(spilled.offset, None) is None:
            return False
        self._lost(spilled, Drop.WITHDRAWN)
        self._open_if_empty()
        return True

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
            offset, spilled = next(iter(self._spilled.items()))
            entry = self._read(offset, room)  # what cannot be read stays, for the next call to try
            del self._spilled[offset]
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

    def answered(self, offset: int) -> bool:
        """Nobody: see `Pending.answered`."""
        return False

    def done(self, offset: int, outcome: Outcome) -> None:
        """Nothing depends on it."""

    def close(self) -> None:
        """What is still in the log is dropped."""
        while self._spilled:
            self._lost(self._spilled.popitem(last=False)[1], Drop.ENDED)

    def _stored(self, spilled: Spilled, message: Message, storing: asyncio.Future[int]) -> None:
        """The log has answered, or the publisher was cancelled: what is not there is counted so, whatever the log raised."""
        mailbox = self._mailbox
        self._appending -= 1
        if storing.cancelled() or storing.exception() is not None:
            mailbox.drops.never_came(message, spilled.topic, Drop.FULL)
            spilled.lost(OUTCOMES[Drop.FULL])
            self._open_if_empty()
            return
        spilled.topic.published += 1
        mailbox.counts.published += 1
        spilled.offset = storing.result()
        self._spilled[spilled.offset] = spilled
        if mailbox.closed:
            self.close()
        else:
            mailbox.waiting.wake()

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
        spilled.lost(OUTCOMES[why])
        # What the log has evicted, or cannot read, is counted alone: nobody has it any more, to be told of it.
        if self._mailbox.settings.on_drop is not None and (entry := self._left(spilled.offset)) is not None:
            self._mailbox.drops.tell(entry.message, why)

    def _left(self, offset: int) -> Entry | None:
        """Read what is dropped, if that can be: a subscription that ends must not stop half way, nor a publisher that takes back."""
        try:
            entry = self._read(offset, 1)
        except Exception:  # whatever a log raises
            if not self._unreadable:  # once: it is the same for all that is there
                log.exception("%s: what is dropped cannot be read from its spill; on_drop is not told", self._mailbox.name)
            self._unreadable = True
            return None
        self._unreadable = False
        return entry

    def _open_if_empty(self) -> None:
        """Once nothing is there, what comes goes into the buffer again."""
        if not (self._spilled or self._appending):
            self._read_ahead = {}
            self._mailbox.size = self._mailbox.settings.buffer


class Spilled(Pending):
    """What becomes of a message that is there. It does not have the message: that is in the log, and out of memory.

    Args:
        spill: where it is.
        topic: the counters of its topic.
        answered: whether its publisher keeps what is rejected.

    Attributes:
        offset: its place in the log; -1 while it has none.
    """

    __slots__ = ("_spill", "_went_at", "offset", "topic")

    def __init__(self, spill: Spill, topic: Counts, *, answered: bool) -> None:
        super().__init__(answered=answered)
        self._spill = spill
        self.topic = topic
        self.offset = -1
        self._went_at = monotonic()

    def came(self, delivery: Delivery) -> None:
        """It is in the buffer; its time in queue began when it came here."""
        delivery.queued_at = self._went_at
        super().came(delivery)

    def withdraw(self) -> bool:
        """Take it back if no reader has had it; say whether it was."""
        return super().withdraw() or self._spill.withdraw(self)
