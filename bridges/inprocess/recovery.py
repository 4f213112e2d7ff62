"""What opening a durable log does: look at everything, refuse what is not sound, and only then cut, tidy and report.

A crash leaves a torn end in the newest segment, unfinished files, or a segment beside those that a compaction made it of: all that is
put right without asking. Anything else was stored once and is no longer what it was: a bad record with a good one behind it, a bad end
of a segment that is not the newest, offsets that are missing. That is refused, with nothing changed on the disk, or, if so told, gone
without: the sound records are written anew, and the damaged file is kept beside them under the suffix ``.corrupt``.

A loss of power may also tear a hole into what was not synced yet: a batch that nobody was answered for, or with `LogSettings.fsync` other
than "always" a window. If something behind the hole has reached the disk, nothing tells that from damage, and it is refused too.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from errno import EIO
from itertools import pairwise
from typing import TYPE_CHECKING

from bridges.errors import CorruptLog
from bridges.inprocess import disk
from bridges.inprocess.records import OVERHEAD
from bridges.inprocess.segments import HEAD_SIZE, SUFFIX, UNFINISHED, Head, Segment, named

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bridges.inprocess.records import Record


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment file that hold no sound record.

    Attributes:
        file: the name of the segment file.
        position: where they begin.
        size: how many they are; 0 where a whole file is missing.
        problem: what is wrong with them.
    """

    file: str
    position: int
    size: int
    problem: str

    def __str__(self) -> str:
        return f"{self.size} bytes at {self.position} of {self.file} ({self.problem})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryReport:
    """What opening a log found and did.

    Attributes:
        folder: where the log is.
        segments: how many segments it has.
        records: how many records are in them.
        first: the offset it begins at.
        next: the offset that the next record gets.
        cut: the torn end that was cut off; None if there was none.
        skipped: what was damaged, and gone without as told.
        removed: the names of files that a crash had left behind.
    """

    folder: str
    segments: int
    records: int
    first: int
    next: int
    cut: Damage | None = None
    skipped: tuple[Damage, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether there was nothing to put right."""
        return not (self.cut or self.skipped or self.removed)

    def __str__(self) -> str:
        parts = [f"{self.folder}: {self.records} records in {self.segments} segments, offsets {self.first} to {self.next}"]
        parts += [f"cut a torn end of {self.cut}"] if self.cut else []
        parts += [f"skipped {damage}" for damage in self.skipped]
        parts += [f"removed {name}" for name in self.removed]
        return "; ".join(parts)


@dataclass(slots=True)
class _Found:
    """A segment file as it was found. ``segment`` knows its sound records; None if the head is not to be read."""

    path: Path
    base: int
    size: int
    segment: Segment | None
    damages: list[Damage]
    torn: Damage | None = None

    @property
    def next(self) -> int:
        """The offset behind it; if nothing in it can be read, behind all that can have been."""
        return self.segment.next if self.segment else self.base + max(self.size - HEAD_SIZE, 0) // OVERHEAD


def recover(folder: Path, *, skip_corrupt: bool) -> tuple[list[Segment], RecoveryReport]:
    """Return the segments of the log, oldest first, and what was done. There may be none, and the newest may be a rewritten one.

    Raises `CorruptLog`, with nothing changed, unless ``skip_corrupt``.
    """
    found, leftovers = _look(folder)
    skipped = [damage for each in found for damage in each.damages]
    if skipped and not skip_corrupt:
        raise CorruptLog(str(folder / skipped[0].file), skipped[0].position, _refusal(skipped))
    next_offset = found[-1].next if found else 0
    ends = [*(following.base for following in found[1:]), next_offset]
    segments = [_mended(each, end) for each, end in zip(found, ends, strict=False)]
    cut = found[-1].torn if found else None
    for path in leftovers:
        path.unlink()
    disk.sync_folder(folder)  # also for a name that was given just before a kill: what is appended from now on must not vanish with it
    return segments, RecoveryReport(
        folder=str(folder),
        segments=len(segments),
        records=sum(segment.count for segment in segments),
        first=segments[0].base if segments else next_offset,
        next=next_offset,
        cut=cut,
        skipped=tuple(skipped),
        removed=tuple(sorted(path.name for path in leftovers)),
    )


def reread(path: Path) -> Segment:
    """Return the newest segment as the disk has it, its torn end cut off. Raises `OSError` where no whole beginning of it is there."""
    found = _read(path, newest=True)
    if found.segment is None or found.damages:
        raise OSError(EIO, f"{path.name} is not to be read: open the log again")
    return _mended(found, found.next)


def _look(folder: Path) -> tuple[list[_Found], list[Path]]:
    """Return the segments that count, oldest first, with what is wrong with each, and the files that do not count."""
    leftovers = list(folder.glob(f"*{UNFINISHED}"))
    paths = [path for path in folder.glob(f"*{SUFFIX}") if named(path) != (-1, -1)]
    found: list[_Found] = []
    newest = max(paths, key=named, default=None)
    for path in sorted(paths, key=lambda path: (named(path)[0], -named(path)[1])):
        base, generation = named(path)
        if found and _stands_for(found[-1], base, generation):
            leftovers.append(path)
        else:
            found.append(_read(path, newest=path == newest))
    for one, following in pairwise(found):
        if one.next != following.base and not one.damages:
            problem = f"offsets {one.next} to {following.base} are missing behind it"
            one.damages.append(Damage(one.path.name, one.size, 0, problem))
    return found, leftovers


def _stands_for(one: _Found, base: int, generation: int) -> bool:
    """Say whether a segment was made, by a compaction, of the one with this name among others."""
    return one.base == base or (one.segment is not None and base < one.segment.covers and generation < one.segment.generation)


def _read(path: Path, *, newest: bool) -> _Found:
    if newest:
        # What a killed process wrote is in the page cache alone. Before anybody is told of it, it must be on the disk, and read from there.
        disk.forget_cached(path)
    data = path.read_bytes()
    base, _ = named(path)
    head = Head.unpacked(data)
    found = _Found(path, base, len(data), None, [])
    if head is None or head.base != base:
        damage = Damage(path.name, 0, len(data), "its head is damaged, or of a version that this program does not know")
        if newest and len(data) < HEAD_SIZE:
            found.torn = Damage(path.name, 0, len(data), "less than a head")
        else:
            found.damages.append(damage)
        return found
    found.segment = segment = Segment(path, head)
    _scan(found, segment, data, sealed=not newest or head.covers > 0)
    return found


def _scan(found: _Found, segment: Segment, data: bytes, *, sealed: bool) -> None:
    """Take note of every sound record, and of what lies between and behind them."""
    position, behind, end = HEAD_SIZE, segment.base, len(data)
    while position < end:
        record = segment.framing.record_at(data, position)
        if record and record.offset >= behind:
            if record.offset != behind and not segment.covers and not found.damages:
                found.damages.append(Damage(found.path.name, position, 0, f"offsets {behind} to {record.offset} are missing before it"))
            segment.end = position
            segment.note(record.offset, record.time, record.end)
            position, behind = record.end, record.offset + 1
            continue
        again = segment.framing.next_position(data, position + 1)
        size = (end if again is None else again) - position
        if again is None and not sealed:
            found.torn = Damage(found.path.name, position, size, "no whole and sound record, and none behind it")
            return
        where = "a sound one is behind it" if again is not None else "the segment is not the newest"
        found.damages.append(Damage(found.path.name, position, size, f"no sound record, but {where}"))
        position += size


def _mended(found: _Found, end: int) -> Segment:
    """Cut a torn end; of a damaged segment, write the sound records anew, to stand for all up to the offset ``end``."""
    folder, generation = found.path.parent, named(found.path)[1]
    if found.damages:
        # One that stands for no offset stays open: another one at the same base would be taken for what this one was made of.
        mended = Segment.create(folder, found.base, generation=generation + 1, covers=end if end > found.base else 0)
        records = [record[:3] for record in _sound(found) if record.offset < end]
        if records:
            mended.append(records, 0, sys.maxsize)
        mended.finish()
        mended.close()
        found.path.rename(found.path.with_suffix(".corrupt"))
        return mended
    if found.segment is None:  # less than a head: put a whole one in its place
        begun = Segment.create(folder, found.base, generation=generation)
        begun.finish()
        begun.close()
        return begun
    if found.torn:
        os.truncate(found.path, found.segment.end)
        disk.forget_cached(found.path)
    return found.segment


def _sound(found: _Found) -> Iterator[Record]:
    behind = found.base
    if found.segment:
        for record in found.segment.framing.scattered(found.path.read_bytes(), HEAD_SIZE):
            if record.offset >= behind:
                yield record
                behind = record.offset + 1


def _refusal(damages: list[Damage]) -> str:
    more = f"; {len(damages) - 1} more places are damaged" if damages[1:] else ""
    return f"{damages[0].problem}{more}. Nothing was changed; open with skip_corrupt=True to go on without what is damaged"
