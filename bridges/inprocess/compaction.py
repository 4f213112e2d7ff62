"""Compaction: of each key, only the newest record stays.

It reads sealed segments and writes others, which `Store.replace` puts in their place; appends and readers go on meanwhile. It can be
given up at any time: what it has not finished does not count.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from bridges.inprocess.codec import key_of
from bridges.inprocess.segments import Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bridges.inprocess.records import Record

_TOGETHER: Final = 1000
"""Records written at a time, and looked at before asking whether to stop."""


class Stopped(Exception):
    """The compaction was told to stop."""


class Rewritten(NamedTuple):
    """Segments, and the one, not finished yet, that is to stand in their place."""

    group: Sequence[Segment]
    segment: Segment


def newest_of_keys(segments: Sequence[Segment], below: int, stopping: Callable[[], bool]) -> dict[bytes, int]:
    """Return the newest offset, under ``below``, of each key. All keys are in memory for as long as the caller keeps it."""
    newest = {}
    for segment in segments:
        if segment.base >= below:
            break
        for record in _heeding(segment.records(below=below), stopping):
            if record.offset >= below:
                break
            key, _ = key_of(record.body)
            if key is not None:
                newest[key] = record.offset
    return newest


def rewrite(segments: Sequence[Segment], newest: dict[bytes, int], target: int, stopping: Callable[[], bool]) -> Rewritten:
    """Write what stays of the first of the segments, and of as many behind it as fit into ``target`` bytes with it."""
    first, length = segments[0], 1
    kept = list(_kept(first, newest, stopping))
    size = sum(len(record.body) for record in kept)
    for segment in segments[1:]:
        more = list(_kept(segment, newest, stopping))
        size += sum(len(record.body) for record in more)
        if size > target:
            break
        kept += more
        length += 1
    group = segments[:length]
    generation = max(segment.generation for segment in group) + 1
    rewritten = Segment.create(first.path.parent, first.base, generation=generation, covers=group[-1].next)
    try:
        for start in range(0, len(kept), _TOGETHER):
            rewritten.append([record[:3] for record in kept[start : start + _TOGETHER]], 0, sys.maxsize)
    except BaseException:  # nothing is handled here: whatever ended it, half a segment does not stay on the disk
        rewritten.close()
        rewritten.path.unlink()
        raise
    return Rewritten(group, rewritten)


def _kept(segment: Segment, newest: dict[bytes, int], stopping: Callable[[], bool]) -> Iterator[Record]:
    for record in _heeding(segment.records(), stopping):
        key, tombstone = key_of(record.body)
        if key is not None and record.offset < newest.get(key, 0):
            continue
        # A tombstone passes its first compaction, so that who reads along sees it. What it buried is gone with that one.
        if not (tombstone and segment.generation):
            yield record


def _heeding(records: Iterator[Record], stopping: Callable[[], bool]) -> Iterator[Record]:
    for number, record in enumerate(records):
        if number % _TOGETHER == 0 and stopping():
            raise Stopped
        yield record
