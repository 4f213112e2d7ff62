"""Which topics keep a log, and how far each durable subscription has come in it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

from bridges.errors import ConfigurationError, Evicted
from bridges.inprocess.memory import MemoryLog
from bridges.inprocess.progress import Cursor, Progress
from bridges.inprocess.stamps import PLAIN
from bridges.topics import Pattern, covers, overlap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridges.inprocess.log import CursorStore, Log
    from bridges.inprocess.stamps import Stamps
    from bridges.message import Message

log = logging.getLogger("outboxd.inprocess")

Start: TypeAlias = "int | datetime | Literal['beginning', 'live']"
"""Where a subscription begins to read a log: an offset, a time, its beginning, or what is published from now on."""


@dataclass(frozen=True, slots=True)
class KeptLog:
    """A log, the topics that it keeps, and how far its durable subscriptions have come."""

    pattern: Pattern
    log: Log
    progress: Progress | None

    @property
    def at_once(self) -> bool:
        """Whether `append` never waits: for a log in memory, and none that is made of it, without names to save."""
        return type(self.log) is MemoryLog and self.progress is None

    async def append(self, messages: Sequence[Message], its: Stamps = PLAIN) -> int:
        """Store messages and return the first one's offset, once it is saved where each durable subscription that is new begins.

        Or what was answered for would be behind nobody's beginning after a kill. Raises as the log does, and `LogFailed`: of a name
        that began meanwhile, when they are stored.
        """
        progress = self.progress
        if progress is not None and progress.unsaved:
            await progress.begun()
        first = await self.log.append(messages, time.time(), its)
        if progress is not None and progress.unsaved:  # one that began while they were under way begins in front of them
            await progress.begun()
        return first

    def cursor(self, name: str) -> Cursor:
        """Return how far the durable subscription of this name has come in this log. Raises `ConfigurationError`."""
        if self.progress is None:
            msg = f"durable: {name!r}: the log of {self.pattern.text!r} has no cursors to remember it by"
            raise ConfigurationError(msg)
        return self.progress.of(name)

    def offset(self, start: Start) -> int:
        """Return the first offset to read. Raises `Evicted` for one that is not there any more, `ConfigurationError`."""
        if isinstance(start, datetime):
            if start.tzinfo is None:
                msg = f"start: {start} has no time zone"
                raise ConfigurationError(msg)
            return max(self.log.first, self.log.offset_at(start.timestamp()))
        if isinstance(start, int):
            if start < self.log.first:
                raise Evicted(start, self.log.first)
            if start > self.log.next:
                msg = f"start: {start} is beyond the end of the log; the next offset is {self.log.next}"
                raise ConfigurationError(msg)
            return start
        if start not in {"beginning", "live"}:
            msg = f"start: {start!r} is not an offset, a time, 'beginning' or 'live'"
            raise ConfigurationError(msg)
        return self.log.first if start == "beginning" else self.log.next


class KeptLogs:
    """The logs of a broker."""

    def __init__(self) -> None:
        self._kept: list[KeptLog] = []
        self._listeners: list[Callable[[Sequence[Message]], None]] = []

    def listen(self, told: Callable[[Sequence[Message]], None]) -> None:
        """Have something called with what can be read in any of the logs from now on: those that are still to be added."""
        self._listeners.append(told)

    def add(self, pattern: Pattern, kept: Log, cursors: CursorStore | None) -> None:
        """Keep the topics of a pattern in a log. Raises `ConfigurationError` if another log keeps some of them, or has the cursors."""
        for other in self._kept:
            if overlap(other.pattern.text, pattern.text):
                msg = f"log of {pattern.text!r}: some of its topics are kept by the log of {other.pattern.text!r} already"
                raise ConfigurationError(msg)
            if cursors is not None and other.progress is not None and other.progress.store is cursors:
                msg = f"cursors: those of the log of {other.pattern.text!r}; a place in one log says nothing of another"
                raise ConfigurationError(msg)
        self._kept.append(KeptLog(pattern, kept, None if cursors is None else Progress(kept, cursors)))
        for told in self._listeners:
            kept.listen(told)

    def check_spill(self, spill_to: Log) -> None:
        """Raise `ConfigurationError` if what a subscription is to spill to keeps topics: its readers would be given what is spilled."""
        for kept in self._kept:
            if kept.log is spill_to:
                msg = f"spill_to: is the log that keeps {kept.pattern.text!r}, and would have what is spilled twice; give another, or None"
                raise ConfigurationError(msg)

    def of(self, topic: str) -> KeptLog | None:
        """Return what keeps a topic."""
        return next((kept for kept in self._kept if kept.pattern.matches(topic)), None)

    def covering(self, patterns: Sequence[Pattern], setting: str) -> KeptLog:
        """Return what keeps all topics of the patterns. Raises `ConfigurationError`, naming the setting that needs it."""
        for kept in self._kept:
            if all(covers(kept.pattern.text, pattern.text) for pattern in patterns):
                return kept
        msg = f"{setting}: no log keeps all topics of {', '.join(repr(pattern.text) for pattern in patterns)}"
        raise ConfigurationError(msg)

    async def settled(self) -> None:
        """Wait until it is saved how far durable subscriptions have come."""
        for kept in self._kept:
            if kept.progress is not None:
                await kept.progress.settled()

    async def close(self) -> None:
        """Close every log and its cursors: all of them, and then raise what went wrong with the first that did not close well."""
        problems: list[Exception] = []
        for kept in self._kept:
            for one in (kept.log,) if kept.progress is None else (kept.progress.store, kept.log):
                try:
                    await one.close()
                except Exception as problem:  # whatever a log raises: the others are not to stay open for it
                    log.exception("the log of %r, or its cursors, did not close well", kept.pattern.text)
                    problems.append(problem)
        if problems:
            raise problems[0]
