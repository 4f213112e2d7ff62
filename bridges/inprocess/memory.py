"""A log in memory: the last N messages, those of some time, some bytes, or the newest of each key."""

from __future__ import annotations

from bisect import bisect_left
from itertools import islice
from typing import TYPE_CHECKING

from bridges.errors import Closed, ConfigurationError, Evicted
from bridges.inprocess.log import Entry
from bridges.inprocess.stamps import PLAIN, Stamps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridges.message import Message


class MemoryLog:
    """A log that ends with the process. What it keeps is decided when something is appended. Raises `ConfigurationError`.

    Args:
        max_messages: keep the last so many; None for no limit.
        max_age: keep what was appended at most so many seconds before the newest.
        max_bytes: keep the last of so many bytes of payload together.
        compact: keep of each key only the newest; a message with a key and an empty payload is a tombstone, and takes the key out
            once its tombstone is followed by as many messages as the log has.
    """

    durable = False

    def __init__(
        self, *, max_messages: int | None = None, max_age: float | None = None, max_bytes: int | None = None, compact: bool = False
    ) -> None:
        for name, value in (("max_messages", max_messages), ("max_age", max_age), ("max_bytes", max_bytes)):
            if value is not None and not value > 0:
                msg = f"{name}: {value} is not above 0"
                raise ConfigurationError(msg)
        self._max_messages, self._max_age, self._max_bytes = max_messages, max_age, max_bytes
        self._entries: list[Entry] = []
        self._head = 0
        """Place of the oldest entry that is kept; what is before it is evicted, and cleared away now and then."""
        self._bytes = 0
        self._first = self._next = 0
        self._newest: dict[str, int] | None = {} if compact else None
        self._superseded = 0
        self._closed = False
        self._listeners: list[Callable[[Sequence[Message]], None]] = []

    @property
    def kept(self) -> int:
        """How many entries it has."""
        return len(self._entries) - self._head - self._superseded

    @property
    def first(self) -> int:
        """The oldest offset that is not evicted."""
        return self._first

    @property
    def next(self) -> int:
        """The offset that the next entry will get."""
        return self._next

    def listen(self, told: Callable[[Sequence[Message]], None]) -> None:
        """Have something called with the messages of each append once they can be read."""
        self._listeners.append(told)

    async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
        """Store the messages and return the offset of the first. Raises `Closed` after `close`."""
        if self._closed:
            msg = "the log is closed"
            raise Closed(msg)
        begin = self._next
        for message in messages:
            self._entries.append(Entry(self._next, time, message, stamps))
            self._bytes += len(message.payload)
            if self._newest is not None and message.key is not None:
                self._superseded += message.key in self._newest
                self._newest[message.key] = self._next
            self._next += 1
        self._evict(time)
        if self._newest is not None and self._superseded > self.kept + 64:
            self._compact()
        for told in self._listeners:
            told(messages)
        return begin

    async def sync(self) -> None:
        """Return at once: there is no more to be had."""

    def read(self, offset: int, limit: int) -> list[Entry]:
        """Return up to ``limit`` entries from ``offset`` on. Raises `Evicted`."""
        if offset < self._first:
            raise Evicted(offset, self._first)
        place = bisect_left(self._entries, offset, lo=self._head, key=_offset_of)
        if self._newest is None:
            return self._entries[place : place + limit]
        found: list[Entry] = []
        while place < len(self._entries) and len(found) < limit:
            if self._is_newest(self._entries[place]):
                found.append(self._entries[place])
            place += 1
        return found

    def offset_at(self, time: float) -> int:
        """Return the first offset that was appended at ``time`` or later. It goes over them all: clocks go back."""
        return next((entry.offset for entry in islice(self._entries, self._head, None) if entry.time >= time), self._next)

    async def close(self) -> None:
        """Take in nothing more."""
        self._closed = True

    def _is_newest(self, entry: Entry) -> bool:
        key = entry.message.key
        return self._newest is None or key is None or self._newest.get(key, entry.offset) == entry.offset

    def _evict(self, now: float) -> None:
        while self._head < len(self._entries) and self._too_much(now):
            entry = self._entries[self._head]
            self._head += 1
            self._bytes -= len(entry.message.payload)
            self._first = entry.offset + 1
            if not self._is_newest(entry):
                self._superseded -= 1
            elif self._newest is not None and entry.message.key is not None:
                del self._newest[entry.message.key]
        if self._head > 64 and self._head > len(self._entries) // 2:
            del self._entries[: self._head]
            self._head = 0

    def _too_much(self, now: float) -> bool:
        return (
            (self._max_messages is not None and self.kept > self._max_messages)
            or (self._max_age is not None and now - self._entries[self._head].time > self._max_age)
            or (self._max_bytes is not None and self._bytes > self._max_bytes)
        )

    def _compact(self) -> None:
        """Clear away what is superseded, and the tombstones that whoever reads along has had time to see."""
        assert self._newest is not None
        kept = []
        seen_by = self._next - 2 * self.kept
        for entry in self._entries[self._head :]:
            key = entry.message.key
            if not self._is_newest(entry):
                continue
            if key is not None and not entry.message.payload and entry.offset < seen_by:
                del self._newest[key]
                continue
            kept.append(entry)
        self._entries, self._head, self._superseded = kept, 0, 0
        self._bytes = sum(len(entry.message.payload) for entry in kept)


def _offset_of(entry: Entry) -> int:
    return entry.offset
