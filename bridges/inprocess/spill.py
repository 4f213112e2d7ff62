"""What a subscription's buffer has no room for goes to a log of its own, and comes from there in order when there is room."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from bridges.errors import Evicted
from bridges.inprocess.backlog import NEAR
from bridges.inprocess.settings import Drop
from bridges.inprocess.stamps import stamped, unstamped

if TYPE_CHECKING:
    from uuid import UUID

    from bridges.inprocess.log import Entry, Log
    from bridges.inprocess.mailbox import Mailbox
    from bridges.inprocess.stamps import Stamps
    from bridges.inprocess.stats import Counts
    from bridges.message import Message
    from bridges.ports import Outcome


class Spill:
    """What is behind the mailbox of a subscription that spills. While anything is there, what comes goes there too: order is kept."""

    def __init__(self, log: Log, mailbox: Mailbox) -> None:
        self._log = log
        self._mailbox = mailbox
        self._spilled: deque[tuple[int, Counts]] = deque()
        self._appending = 0
        self._read_ahead: dict[int, Entry] = {}

    @property
    def lag(self) -> int:
        """How many messages are in the log and not back yet."""
        return len(self._spilled)

    async def take(self, message: Message, topic: Counts, its: Stamps) -> None:
        """Put a message there. If the log fails, the message is dropped, and the error is the publisher's to see."""
        mailbox = self._mailbox
        if not mailbox.wants(message, topic):
            return
        mailbox.size = 0
        self._appending += 1
        try:
            offset = await self._log.append([stamped(message, its)], time.time())
        except BaseException:  # whatever a log raises, or its publisher's cancellation: either way it is not here, and is counted so
            mailbox.drops.never_came(message, topic, Drop.FULL)
            raise
        finally:
            self._appending -= 1
        topic.published += 1
        mailbox.counts.published += 1
        self._spilled.append((offset, topic))
        if mailbox.closed:
            self.close()
        else:
            mailbox.waiting.wake()

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
            offset, topic = self._spilled.popleft()
            entry = self._read(offset, room)
            if entry is None:
                self._lost(topic)
                continue
            message, its = unstamped(entry.message)
            mailbox.counts.published -= 1
            mailbox.line_up(its, message, topic)
            came = True
            room -= 1
        if not (self._spilled or self._appending):
            self._read_ahead = {}
            mailbox.size = mailbox.settings.buffer
        return came

    def holds(self, message_id: UUID) -> bool:
        """Say whether a message is among the next there."""
        spilled = {place[0] for place in self._spilled}
        with suppress(Evicted):
            entries = self._log.read(min(spilled), NEAR) if spilled else []
            return any(entry.message.id == message_id and entry.offset in spilled for entry in entries)
        return False

    def done(self, offset: int, outcome: Outcome) -> None:
        """Nothing depends on it."""

    def close(self) -> None:
        """What is still in the log is dropped."""
        while self._spilled:
            self._lost(self._spilled.popleft()[1])

    def _read(self, offset: int, ahead: int) -> Entry | None:
        if offset not in self._read_ahead:
            try:
                self._read_ahead = {entry.offset: entry for entry in self._log.read(offset, ahead)}
            except Evicted:
                self._read_ahead = {}
        return self._read_ahead.get(offset)

    def _lost(self, topic: Counts) -> None:
        topic.dropped += 1
        self._mailbox.counts.dropped += 1
