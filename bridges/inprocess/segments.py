"""One segment file of a durable log: a head, then records in the order of their offsets.

The head holds the salt of its records, the offset it begins at and, if the segment was rewritten by a compaction, the offset it covers
up to. The name says the offset it begins at and how often it was rewritten. What a name stands for never changes, but that records
are added at the end of the newest: so a reader opens the file that it needs, and nobody has to tell it when to close it.
"""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_left, bisect_right
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from bridges.errors import CorruptLog
from bridges.inprocess import disk
from bridges.inprocess.records import Framing, Record, crc32c, size_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SUFFIX: Final = ".log"
UNFINISHED: Final = ".new"
"""What a file is called until its head, or what a compaction puts into it, is on the disk."""

_HEAD: Final = Struct(">8s16sQQ")
_CRC: Final = Struct(">I")
_MAGIC: Final = b"outboxd\x01"
HEAD_SIZE: Final = _HEAD.size + _CRC.size

_NAME: Final = re.compile(r"(\d{20})-(\d{6,})\.log")
_STRIDE: Final = 8 * 1024
"""Bytes from one point of the index to the next: a read looks through half of them to find its place."""
_CHUNK: Final = 64 * 1024
_PAGE: Final = 4 * 1024
_FEW: Final = 8


class Head(NamedTuple):
    """What a segment says of itself. ``covers`` is the offset behind the last one it stands for; 0 if it was never rewritten."""

    salt: bytes
    base: int
    covers: int

    def packed(self) -> bytes:
        """Return the head as it lies in the file."""
        packed = _HEAD.pack(_MAGIC, self.salt, self.base, self.covers)
        return packed + _CRC.pack(crc32c()(0, packed))

    @classmethod
    def unpacked(cls, data: bytes) -> Head | None:
        """Return the head of a file; None if it is damaged, or of a version that this program does not know."""
        if len(data) < HEAD_SIZE or _CRC.unpack_from(data, _HEAD.size)[0] != crc32c()(0, data[: _HEAD.size]):
            return None
        magic, salt, base, covers = _HEAD.unpack_from(data)
        return cls(salt, base, covers) if magic == _MAGIC else None


class Segment:
    """A segment. One thread writes it; any thread may read what was written before it asked.

    Attributes:
        path: the file.
        base: the offset it begins at.
        generation: how often it was rewritten.
        covers: the offset behind the last one it stands for, if it was rewritten; else 0.
        next: the offset behind its last one.
        end: bytes that hold whole records, and the head.
        count: its records.
        latest: the greatest time in it.
    """

    def __init__(self, path: Path, head: Head) -> None:
        self.path = path
        self.base, self.covers = head.base, head.covers
        self.generation = named(path)[1]
        self.next = head.covers or head.base
        self.end = HEAD_SIZE
        self.count = 0
        self.latest = float("-inf")
        self.framing = Framing(head.salt)
        self._offsets, self._positions, self._latest_before = array("Q"), array("Q"), array("d")
        self._read_up_to = (head.base, HEAD_SIZE)  # one object, so that threads see the two belong together
        self._file = -1
        self._distrusted: OSError | None = None

    @classmethod
    def create(cls, folder: Path, base: int, *, generation: int = 0, covers: int = 0) -> Segment:
        """Make a segment to write to. It is unfinished until `finish`."""
        head = Head(os.urandom(16), base, covers)
        path = folder / f"{base:020}-{generation:06}{SUFFIX}"
        segment = cls(path, head)
        segment.path = path.with_suffix(UNFINISHED)
        segment._file = os.open(segment.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        _, problem = segment._write(head.packed(), 0)
        if problem:
            segment.close()
            raise problem
        return segment

    def finish(self) -> None:
        """Sync it, and give it its name: from now on a recovery takes it."""
        disk.sync(self._file)
        path = self.path.with_suffix(SUFFIX)
        disk.rename(self.path, path)
        self.path = path

    def open(self) -> None:
        """Make a segment that was read ready to be written to."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    def append(self, records: Sequence[tuple[int, float, bytes]], start: int, limit: int) -> int:
        """Write records from the index ``start`` on until the file has ``limit`` bytes, and return how many (one at least).

        If the disk refuses, those that are whole in the file are part of the segment, and an `OSError` says what happened.
        """
        frames: list[bytes] = []
        end = self.end
        for index in range(start, len(records)):
            offset, time, body = records[index]
            frames.append(framed := self.framing.frame(offset, time, body))
            end += len(framed)
            if end >= limit:
                break
        written, problem = self._write(b"".join(frames), self.end)
        whole = self.end + written
        for index, framed in enumerate(frames, start):
            if self.end + len(framed) > whole:
                break
            offset, time, _ = records[index]
            self.note(offset, time, self.end + len(framed))
        if problem:
            raise problem
        return len(frames)

    def note(self, offset: int, time: float, end: int) -> None:
        """Take note of a record that lies behind the last one, up to the byte ``end``."""
        if not self._positions or self.end >= self._positions[-1] + _STRIDE:
            # A reader in another thread searches the times or the offsets: what it finds there must have its position already.
            self._positions.append(self.end)
            self._latest_before.append(self.latest)
            self._offsets.append(offset)
        self.latest = max(self.latest, time)
        self.count += 1
        self.next = max(self.covers, offset + 1)
        self.end = end

    def read(self, offset: int, limit: int, below: int) -> list[Record]:
        """Return up to ``limit`` records with offsets from ``offset`` to ``below``. Raises `CorruptLog`, and `FileNotFoundError`."""
        found: list[Record] = []
        for record in self.records(self._place_of(offset), _CHUNK if limit > _FEW else _PAGE, below):
            if offset <= record.offset < below:
                found.append(record)
                if len(found) >= limit:
                    break
        return found

    def offset_at(self, time: float, below: int) -> int | None:
        """Return the first offset of the given time or later. Raises as `read`."""
        if self.latest < time:
            return None
        point = max(bisect_left(self._latest_before, time) - 1, 0)
        if self._offsets[point] >= below:
            return None
        for record in self.records(self._positions[point], below=below):
            if record.time >= time and record.offset < below:
                return record.offset
        return None

    def records(self, position: int = HEAD_SIZE, chunk: int = _CHUNK, below: int | None = None) -> Iterator[Record]:
        """Yield the records from a position on, reading a piece of the file at a time. Raises as `read`.

        Behind the offset ``below - 1`` it looks at nothing: what is there may be cut off meanwhile, or was never whole.
        """
        end = self.end
        file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data, start = b"", position
            while position < end:
                size = size_at(data, position - start)
                if size is None or position - start + size > len(data):  # it ends behind what was read
                    start, data = position, os.pread(file, min(max(chunk, size or 0), end - position), position)
                    size = size_at(data, 0)
                    if size is not None and len(data) < size <= end - position:
                        data = os.pread(file, size, position)
                record = self.framing.record_at(data, position - start)
                if record is None:
                    raise CorruptLog(str(self.path), position, "no whole and sound record, where one was written")
                position = start + record.end
                self._read_up_to = record.offset + 1, position
                yield record
                if below is not None and record.offset + 1 >= below:
                    break
        finally:
            os.close(file)

    def _place_of(self, offset: int) -> int:
        """Return a position from which on the offset is to be found: where the last read ended, if it goes on there."""
        behind, position = self._read_up_to
        if behind == offset:
            return position
        point = bisect_right(self._offsets, offset) - 1
        return self._positions[point] if point >= 0 else HEAD_SIZE

    def sync(self) -> None:
        """Return when all that was written would survive a loss of power.

        After one failure it fails for ever. A failed fsync leaves the kernel's pages marked as clean though they never reached the disk:
        the next fsync would have nothing to do, succeed, and be believed. What the disk really has, only reading it again can
        tell, past the page cache: that is what a recovery does (`disk.forget_cached`).
        """
        if self._distrusted:
            raise OSError(*self._distrusted.args)
        try:
            disk.sync(self._file)
        except OSError as problem:
            self._distrusted = problem
            raise

    @property
    def trusted(self) -> bool:
        """Whether no sync has failed."""
        return self._distrusted is None

    def cut(self) -> None:
        """Take away what a write that failed has left behind the last whole record."""
        os.ftruncate(self._file, self.end)

    def close(self) -> None:
        """Write to it no more."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _write(self, data: bytes, position: int) -> tuple[int, OSError | None]:
        """Write it all, or as much as the disk takes; return how much that was, and why it was not more."""
        written = 0
        while written < len(data):
            try:
                written += disk.write(self._file, data[written:] if written else data, position + written)
            except OSError as problem:
                return written, problem
        return written, None


def named(path: Path) -> tuple[int, int]:
    """Return the offset and the generation that the name of a segment file says; -1 and -1 if it is no such name."""
    match = _NAME.fullmatch(path.with_suffix(SUFFIX).name)
    return (int(match[1]), int(match[2])) if match else (-1, -1)
