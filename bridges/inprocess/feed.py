"""A subscription that reads a log: old messages and new ones are the same to it, so no step between them can lose or repeat one."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from bridges.errors import Evicted
from bridges.inprocess.backlog import NEAR
from bridges.inprocess.drops import OUTCOMES
from bridges.inprocess.settings import Drop
from bridges.inprocess.stamps import unstamped
from bridges.ports import PUBLISHED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from bridges.inprocess.log import Entry, Log
    from bridges.inprocess.mailbox import Mailbox
    from bridges.inprocess.stats import TopicCounts
    from bridges.inprocess.timers import Timer
    from bridges.ports import Outcome

_STRIDE: Final = 256
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
        done: offsets from ``start`` on that were acknowledged before.
        on_done: called when an offset is over.
    """

    def __init__(
        self,
        log: Log,
        mailbox: Mailbox,
        wants: Callable[[str], bool],
        counts: TopicCounts,
        *,
        start: int,
        done: Iterable[int] = (),
        on_done: Callable[[], None] | None = None,
    ) -> None:
        self._log = log
        self._mailbox = mailbox
        self._wants = wants
        self._counts = counts
        self._next = start
        self._done = frozenset(done)
        self._on_done = on_done
        self._open: dict[int, Timer | None] = {}
        self._awaited: dict[int, list[asyncio.Future[Outcome]]] = {}
        self._resuming = False

    @property
    def lag(self) -> int:
        """How many entries it has not read yet, whosever they are."""
        return max(0, self._log.next - self._next)

    @property
    def ready(self) -> bool:
        """Whether there is something to read, and room for it."""
        return self._next < self._log.next and self._mailbox.queued < self._mailbox.settings.buffer and not self._resuming

    @property
    def position(self) -> tuple[int, list[int]]:
        """The offset below which everything is over, and what else is over."""
        below = min(self._open, default=self._next)
        return below, [offset for offset in range(below, self._next) if offset not in self._open]

    def refill(self) -> bool:
        """Read on while there is room; say whether the mailbox has got anything. Raises `bridges.errors.Evicted`."""
        mailbox = self._mailbox
        passed = 0
        while (room := mailbox.settings.buffer - mailbox.queued) > 0 and self._next < self._log.next:
            before = mailbox.queued
            entries = self._log.read(self._next, min(room, _STRIDE))
            for entry in entries:
                self._take(entry)
            self._next = entries[-1].offset + 1 if entries else self._log.next
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
        start = min((offset for offset, timer in self._open.items() if timer is not None), default=self._next)
        with suppress(Evicted):
            return any(
                entry.message.id == message_id and entry.offset not in self._done and self._wants(entry.message.topic)
                for entry in self._log.read(start, NEAR)
                if entry.offset >= self._next or entry.offset in self._open
            )
        return False

    def done(self, offset: int, outcome: Outcome) -> None:
        """An offset is over."""
        self._open.pop(offset, None)
        for awaited in self._awaited.pop(offset, ()):
            if not awaited.done():
                awaited.set_result(outcome)
        if self._on_done is not None:
            self._on_done()

    def close(self) -> None:
        """Nothing more is to be delivered."""
        for timer in self._open.values():
            if timer is not None:
                timer.cancel()
        for offset in list(self._awaited):
            for awaited in self._awaited.pop(offset):
                if not awaited.done():
                    awaited.set_result(OUTCOMES[Drop.ENDED])

    async def outcome(self, offset: int) -> Outcome:
        """Wait until an offset is over."""
        if offset < self._next and offset not in self._open:
            return PUBLISHED
        awaited: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(offset, []).append(awaited)
        return await awaited

    def poke(self) -> None:
        """The log has something new."""
        self._mailbox.waiting.wake()

    def _take(self, entry: Entry) -> None:
        if entry.offset in self._done or not self._wants(entry.message.topic):
            return
        its = unstamped(entry.message)[1]
        now = time.time()
        if its.expires is not None and its.expires <= now:
            return
        if its.due is not None and its.due > now:
            self._open[entry.offset] = self._mailbox.house.timers.at(monotonic() + its.due - now, partial(self._put, entry))
        else:
            self._put(entry)

    def _put(self, entry: Entry) -> None:
        message, its = unstamped(entry.message)
        delivery = self._mailbox.put_by(its, message, self._counts.of(message.topic))
        if delivery is None:
            self.done(entry.offset, PUBLISHED)
        else:
            self._open[entry.offset] = None
            delivery.own.offset = entry.offset

    def _resume(self) -> None:
        self._resuming = False
        self._mailbox.waiting.wake()
