"""A subscription that reads a log: old messages and new ones are the same to it, so no step between them can lose or repeat one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from bridges.errors import Evicted
from bridges.inprocess.awaited import Awaited
from bridges.inprocess.backlog import NEAR
from bridges.inprocess.drops import OUTCOMES
from bridges.inprocess.log import Place
from bridges.inprocess.runs import clipped, joined, runs_but, within
from bridges.inprocess.settings import Drop
from bridges.ports import PUBLISHED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from bridges.inprocess.delivery import Delivery
    from bridges.inprocess.log import Entry, Log
    from bridges.inprocess.mailbox import Mailbox
    from bridges.inprocess.posting import Answer, Posting
    from bridges.inprocess.progress import Cursor
    from bridges.inprocess.runs import Run, Runs
    from bridges.inprocess.stats import TopicCounts
    from bridges.inprocess.timers import Timer
    from bridges.ports import Outcome

log = logging.getLogger("outboxd.inprocess")

_STRIDE: Final = 256
"""Entries read at a time."""
_FAR: Final = 4096
"""Entries of no interest that are passed over before the event loop gets its turn."""


class Feed:
    """What is behind the mailbox of a subscription that reads a log.

    Args:
        log: what to read.
        mailbox: where to put it.
        wants: whether the subscription is for a topic.
        counts: the counters of each topic.
        start: the first offset to read.
        done: offsets from ``start`` on that were acknowledged before, and dead letters among them.
        again: offsets to read before all that: dead letters of an earlier process.
        cursor: what is told of each offset that is over; None if the subscription has no durable name.
    """

    def __init__(
        self,
        log: Log,
        mailbox: Mailbox,
        wants: Callable[[str], bool],
        counts: TopicCounts,
        *,
        start: int,
        done: Runs = (),
        again: Iterable[int] = (),
        cursor: Cursor | None = None,
    ) -> None:
        self._log = log
        self._mailbox = mailbox
        self._wants = wants
        self._counts = counts
        self._next = start
        self._again = deque(sorted(again))
        self._revived = set(self._again)
        self._done: deque[Run] = deque(done)
        self._cursor = cursor
        self._open: dict[int, Timer | None] = {}
        self._awaited = Awaited()
        self._resuming = False

    @property
    def lag(self) -> int:
        """How many entries it has not read yet, whosever they are."""
        return max(0, self._log.next - self._next) + len(self._again)

    @property
    def ready(self) -> bool:
        """Whether there is something to read, and room for it."""
        more = self._next < self._log.next or self._again
        return bool(more) and self._mailbox.queued < self._mailbox.settings.buffer and not self._resuming

    @property
    def position(self) -> Place:
        """How far it has come. As dead there is what it was to read again, and is not over either."""
        still = sorted(self._open.keys() - self._revived)
        below = still[0] if still else self._next
        over = joined([*runs_but(still, below, self._next), *clipped(self._done, self._next)])
        if over and over[0][0] == below:
            below = over.pop(0)[1]
        return Place(below, tuple(over), frozenset(self._again) | (self._revived & self._open.keys()))

    @property
    def closed(self) -> bool:
        """Whether nothing more is delivered."""
        return self._mailbox.closed

    def refill(self) -> bool:
        """Read on while there is room; say whether the mailbox has got anything.

        Raises `bridges.errors.Evicted` where the log has lost what was next; the call after that goes on with what is left.
        """
        mailbox = self._mailbox
        passed = 0
        if self._again and self._revive():
            return True
        while (room := mailbox.settings.buffer - mailbox.queued) > 0 and self._next < self._log.next:
            before = mailbox.queued
            begin = self._next
            if self._is_done(begin):
                self._next = self._done.popleft()[1]
                continue
            try:
                entries = self._log.read(begin, min(room, _STRIDE))
            except Evicted as evicted:
                self._go_on_at(evicted.first)
                raise
            for entry in entries:
                self._take(entry)
            self._next = entries[-1].offset + 1 if entries else self._log.next
            if self._next - begin > len(entries) and self._awaited:
                # The log was compacted: those between gave way to newer ones of their keys, and whoever waits for them waits in vain.
                # Not even they should be sent again, and take the place of the newer ones.
                self._awaited.settle_between(begin, self._next, self._open, PUBLISHED)
            if mailbox.queued > before:
                return True
            passed += len(entries)
            if passed > _FAR and not self._resuming:
                self._resuming = True
                asyncio.get_running_loop().call_soon(self._resume)
                return False
        return False

    def holds(self, message_id: UUID) -> bool:
        """Say whether a message is among the next there, or not due yet."""
        done = tuple(self._done)
        start = min((offset for offset, timer in self._open.items() if timer is not None), default=self._next)
        with suppress(Evicted):
            return any(
                entry.message.id == message_id and not within(done, entry.offset) and self._wants(entry.message.topic)
                for entry in self._log.read(start, NEAR)
                if entry.offset >= self._next or entry.offset in self._open
            )
        return False

    def done(self, offset: int, outcome: Outcome) -> None:
        """An offset is over."""
        self._open.pop(offset, None)
        self._awaited.settle(offset, outcome)
        if self._cursor is not None:
            self._cursor.over(offset, outcome)

    @property
    def heir(self) -> Mailbox:
        """The mailbox that reads on by the same durable name, where this one has ended and another has begun; else its own."""
        feed = self._cursor.feed if self._cursor is not None else None
        return self._mailbox if feed is None else feed._mailbox

    def requeued(self, delivery: Delivery, offset: int) -> None:
        """What had become a dead letter is delivered again: until that is over, the offset is not over either."""
        delivery.own.offset = offset
        self._revived.add(offset)
        self._open[offset] = None

    def close(self) -> None:
        """Nothing more is to be delivered."""
        for timer in self._open.values():
            if timer is not None:
                timer.cancel()
        self._awaited.close(OUTCOMES[Drop.ENDED])

    def appending(self, posting: Posting) -> None:
        """Something is about to be appended to the log of which an `answer` will be wanted. To be followed by `appended`."""
        self._awaited.begin(posting, self._log.next)

    def appended(self, posting: Posting) -> None:
        """It was, or could not be; the answer is asked for by now."""
        self._awaited.end(posting)

    def answer(self, offset: int, *, keeps: bool) -> Answer:
        """Return what becomes of an offset that is appended; ``keeps``: who waits for that keeps what is rejected."""
        return self._awaited.ask(offset, over=offset < self._next and offset not in self._open, keeps=keeps)

    def answered(self, offset: int) -> bool:
        """Say whether somebody waits for what becomes of an offset, and keeps it if it is rejected."""
        return self._awaited.kept(offset)

    def _take(self, entry: Entry) -> None:
        if not self._is_done(entry.offset) and self._wants(entry.message.topic):
            self._offer(entry)

    def _is_done(self, offset: int) -> bool:
        """Say whether the next offset to read was acknowledged before."""
        while self._done and self._done[0][1] <= offset:
            self._done.popleft()
        return bool(self._done) and self._done[0][0] <= offset

    def _go_on_at(self, first: int) -> None:
        """The log has lost what was next: that is over, and said; what is left comes with the next call."""
        lost = first - self._next - sum(end - begin for begin, end in clipped(self._done, self._next, first))
        log.error(
            "%s: the log has evicted up to %d entries from offset %d on, which it had not acknowledged; it goes on at %d",
            self._mailbox.name,
            lost,
            self._next,
            first,
        )
        self._awaited.settle_between(self._next, first, self._open, OUTCOMES[Drop.EVICTED])
        self._next = first
        if self._cursor is not None:
            self._cursor.changed()

    def _offer(self, entry: Entry) -> None:
        due = entry.stamps.due
        if due is not None and due > (now := time.time()):
            self._open[entry.offset] = self._mailbox.house.timers.at(monotonic() + due - now, partial(self._put, entry))
        else:
            self._put(entry)

    def _put(self, entry: Entry) -> None:
        message, expires = entry.message, entry.stamps.expires
        topic = self._counts.of(message.topic)
        if expires is not None and expires <= time.time():
            if self._mailbox.wants(message, topic):
                self._mailbox.drops.never_came(message, topic, Drop.EXPIRED)
            self.done(entry.offset, OUTCOMES[Drop.EXPIRED])
            return
        delivery = self._mailbox.put_by(entry.stamps, message, topic)
        if delivery is None:
            self.done(entry.offset, PUBLISHED)
        else:
            self._open[entry.offset] = None
            delivery.own.offset = entry.offset
            delivery.queued_at -= max(0.0, time.time() - max(entry.time, entry.stamps.due or 0.0))

    def _revive(self) -> bool:
        """Read dead letters of an earlier process while there is room; say whether the mailbox has got anything."""
        mailbox = self._mailbox
        before = mailbox.queued
        while self._again and mailbox.queued < mailbox.settings.buffer:
            offset = self._again[0]
            try:
                entries = self._log.read(offset, 1)
            except Evicted:
                entries = []
            self._again.popleft()  # only now: what another error keeps from being read is still to be read
            if entries and entries[0].offset == offset:
                self._offer(entries[0])
            else:
                log.warning("%s: the log has no longer what was a dead letter at offset %d", mailbox.name, offset)
                self.done(offset, OUTCOMES[Drop.EVICTED])
        return mailbox.queued > before

    def _resume(self) -> None:
        self._resuming = False
        self._mailbox.waiting.wake()
