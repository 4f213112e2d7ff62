"""The segments of a durable log as its one writer sees them: appending, rotating, evicting, putting rewritten segments in place.

Everything but `Store.read`, `Store.offset_at` and `Store.first` belongs to the writer's thread.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import deque
from contextlib import suppress
from errno import EIO
from typing import TYPE_CHECKING

from bridges.errors import CorruptLog, Evicted
from bridges.inprocess import disk
from bridges.inprocess.recovery import recover, reread
from bridges.inprocess.segments import SUFFIX, Segment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bridges.inprocess.keeping import LogSettings
    from bridges.inprocess.records import Record


class Store:
    """See the module. The constructor recovers what is in the folder, and locks it until `close`.

    Attributes:
        settings: how the log is kept.
        recovery: what opening it did.
        segments: oldest first; the last one is written to. Replaced, never changed: who has read it has one consistent view.
    """

    def __init__(self, folder: Path, settings: LogSettings, *, skip_corrupt: bool = False) -> None:
        disk.make_folder(folder)
        self.settings = settings
        self._folder = folder
        self._lock = disk.lock(folder)
        self.segments: tuple[Segment, ...] = ()
        self._condemned: deque[Segment] = deque()
        try:
            segments, self.recovery = recover(folder, skip_corrupt=skip_corrupt)
            if not segments or segments[-1].covers:
                segments.append(self._begun(segments[-1].next if segments else self.recovery.next))
            else:
                segments[-1].open()
            self.segments = tuple(segments)
            self._rotated = False
            self.evict()
        except BaseException:  # whatever ended it, nobody has a store that could let go of the folder
            self.close()
            raise

    @property
    def next(self) -> int:
        """The offset behind the last record that was written."""
        return self.segments[-1].next

    def first(self, next_offset: int) -> int:
        """Return the oldest offset that may be read, with ``next_offset`` the one that comes next."""
        first = self.segments[0].base
        return first if self.settings.keep_records is None else max(first, next_offset - self.settings.keep_records)

    def append(self, records: Sequence[tuple[int, float, bytes]]) -> None:
        """Write records. If an `OSError` comes out of it, `next` says how far it got."""
        start = 0
        while start < len(records):
            newest = self.segments[-1]
            if newest.count and newest.end >= self.settings.segment_bytes:
                self.rotate()
            start += self.segments[-1].append(records, start, self.settings.segment_bytes)

    def rotate(self) -> None:
        """Seal the newest segment, which is not empty, and begin another.

        It is synced first, however seldom the rest is: a torn end in a segment that is not the newest is damage, not a crash.
        """
        newest = self.segments[-1]
        newest.cut()
        newest.sync()
        self.segments = (*self.segments, self._begun(newest.next))
        self._rotated = True
        newest.close()

    def sync(self) -> None:
        """Return when all that was written would survive a loss of power."""
        self.segments[-1].sync()

    @property
    def trusted(self) -> bool:
        """Whether no sync of the newest segment has failed."""
        return self.segments[-1].trusted

    def resume(self, needed: int) -> None:
        """After an `OSError`, be ready to go on behind the last record that is whole; `next` says where that is.

        Where a sync failed, that is what the disk really has. Raises `OSError` if it ends before the offset ``needed``.
        """
        newest = self.segments[-1]
        if newest.trusted:
            newest.cut()
            return
        again = reread(newest.path)
        if again.next < needed:
            raise OSError(EIO, f"{newest.path.name} ends before offset {needed}, which was answered for: open the log again")
        again.open()
        self.segments = (*self.segments[:-1], again)
        newest.close()

    @property
    def evictable(self) -> bool:
        """Whether `evict` is worth its while, told without looking at every segment."""
        keep = self.settings.keep_seconds
        return self._rotated or (keep is not None and self.segments[0].latest < self.segments[-1].latest - keep)

    def evict(self, now: float | None = None) -> None:
        """Take out the oldest segments that need not be kept. With ``now``, the newest one too, if all in it is too old."""
        keep, newest = self.settings, self.segments[-1]
        if now is not None and keep.keep_seconds is not None and newest.count and newest.latest < now - keep.keep_seconds:
            self.rotate()
        self._rotated = False
        if now is None:
            now = max(segment.latest for segment in self.segments)
        size = sum(segment.end for segment in self.segments)
        gone = 0
        for segment, following in zip(self.segments, self.segments[1:], strict=False):
            too_large = keep.keep_bytes is not None and size > keep.keep_bytes
            too_old = keep.keep_seconds is not None and segment.latest < now - keep.keep_seconds
            too_many = keep.keep_records is not None and following.base <= self.next - keep.keep_records
            if not (too_large or too_old or too_many):
                break
            gone += 1
            size -= segment.end
        evicted, self.segments = self.segments[:gone], self.segments[gone:]
        self._remove(evicted)

    def replace(self, group: Sequence[Segment], rewritten: Segment) -> None:
        """Put a segment in the place of those that it was made of; drop it if one of them was evicted meanwhile."""
        if group[0] not in self.segments:
            rewritten.close()
            rewritten.path.unlink()
            return
        # Between the new name and the removal of the old ones a crash leaves both: recovery takes the one that covers more.
        try:
            rewritten.finish()
        except OSError:
            with suppress(OSError):
                rewritten.path.unlink()
            raise
        finally:
            rewritten.close()
        at = self.segments.index(group[0])
        self.segments = (*self.segments[:at], rewritten, *self.segments[at + len(group) :])
        self._remove(group)

    def read(self, offset: int, limit: int, below: int) -> list[Record]:
        """Return up to ``limit`` records with offsets from ``offset`` to ``below``; fewer only if there are no more. From any thread.

        Raises `Evicted` if ``offset`` was evicted, be it while reading, and `CorruptLog`.
        """
        found: list[Record] = []
        position = offset
        while len(found) < limit and position < below:
            segments = self.segments
            if offset < (first := self.first(below)):
                raise Evicted(offset, first)
            at = bisect_right(segments, position, key=_base) - 1
            try:
                found += segments[at].read(position, limit - len(found), below)
            except FileNotFoundError:
                self._gone(segments, segments[at])
                continue
            if at + 1 == len(segments):
                break
            position = segments[at + 1].base
        return found

    def offset_at(self, time: float, below: int) -> int:
        """Return the first offset of the given time or later; ``below`` if there is none below it. From any thread."""
        while True:
            segments = self.segments
            segment = segments[0]
            try:
                for segment in segments:
                    offset = segment.offset_at(time, below)
                    if offset is not None:
                        return max(offset, self.first(below))
            except FileNotFoundError:
                self._gone(segments, segment)
            else:
                return below

    def close(self) -> None:
        """Let go of the files and of the folder. It syncs nothing."""
        for segment in self.segments:
            segment.close()
        os.close(self._lock)

    def _gone(self, seen: tuple[Segment, ...], segment: Segment) -> None:
        """A reader came too late for a file: let it look again, unless nobody of ours has taken it away."""
        if seen is self.segments:
            raise CorruptLog(str(segment.path), 0, "the file is gone")

    def _begun(self, base: int) -> Segment:
        segment = Segment.create(self._folder, base)
        try:
            segment.finish()
        except OSError:
            segment.close()
            with suppress(OSError):
                segment.path.with_suffix(SUFFIX).unlink()  # the old one may yet be written to, behind where this one would begin
            raise
        return segment

    def _remove(self, segments: Sequence[Segment]) -> None:
        """Remove the files: oldest first, and none before those that could not be removed before: whatever a crash leaves has no hole."""
        self._condemned += segments
        if self._condemned:
            while self._condemned:
                self._condemned[0].path.unlink(missing_ok=True)
                self._condemned.popleft()
            disk.sync_folder(self._folder)


def _base(segment: Segment) -> int:
    return segment.base
