"""Which topics keep a log, and how far each durable subscription has come in it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from bridges.errors import ConfigurationError, Evicted
from bridges.topics import Pattern, covers, overlap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.inprocess.feed import Feed
    from bridges.inprocess.log import CursorStore, Log

log = logging.getLogger("outboxd.inprocess")

_MANY: Final = 1000

Start: TypeAlias = "int | datetime | Literal['beginning', 'live']"
"""Where a subscription begins to read a log: an offset, a time, its beginning, or what is published from now on."""


@dataclass(frozen=True, slots=True)
class KeptLog:
    """A log, and the topics that it keeps."""

    pattern: Pattern
    log: Log
    cursors: CursorStore | None

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

    def add(self, pattern: Pattern, kept: Log, cursors: CursorStore | None) -> None:
        """Keep the topics of a pattern in a log. Raises `ConfigurationError` if another log keeps some of them."""
        for other in self._kept:
            if overlap(other.pattern.text, pattern.text):
                msg = f"log of {pattern.text!r}: some of its topics are kept by the log of {other.pattern.text!r} already"
                raise ConfigurationError(msg)
        self._kept.append(KeptLog(pattern, kept, cursors))

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

    async def close(self) -> None:
        """Close every log and its cursors."""
        for kept in self._kept:
            if kept.cursors is not None:
                await kept.cursors.close()
            await kept.log.close()


class Cursor:
    """How far one durable subscription has come: saved soon after each acknowledgement, many at a time. What is lost comes again."""

    def __init__(self, name: str, store: CursorStore) -> None:
        self.name = name
        self._store = store
        self._feed: Feed | None = None
        self._saving: asyncio.Task[None] | None = None
        self._changed = False

    def load(self) -> tuple[int, set[int]] | None:
        """Return the offset below which everything is over, and what else is; None for a name that is new."""
        return self._store.load(self.name)

    def follow(self, feed: Feed) -> None:
        """Save where this feed is from now on."""
        self._feed = feed

    def changed(self) -> None:
        """Something is over."""
        self._changed = True
        if self._saving is None:
            self._saving = asyncio.get_running_loop().create_task(self._save())

    async def settled(self) -> None:
        """Wait until everything that is over is saved."""
        while self._saving is not None:
            await asyncio.shield(self._saving)

    async def _save(self) -> None:
        try:
            while self._changed and self._feed is not None:
                self._changed = False
                began = monotonic()
                below, done = self._feed.position
                await self._store.save(self.name, below, done)
                if len(done) > _MANY:  # one that waits long leaves much behind it to tell of: not all the time, then
                    await asyncio.sleep(min(1.0, 10 * (monotonic() - began)))
        except Exception:  # whatever a store raises: the next acknowledgement tries again, and what is lost until then only comes again
            log.exception("%s: its place in the log was not saved; what it acknowledged may come again", self.name)
        finally:
            self._saving = None
