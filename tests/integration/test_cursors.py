"""What a durable broker keeps beside its logs: it is there after a kill, the newest of it counts, and it does not grow without end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from bridges.errors import Closed, LogInUse
from bridges.inprocess import disk
from bridges.inprocess.cursors import DurableCursors
from bridges.inprocess.log import Place

if TYPE_CHECKING:
    from pathlib import Path

    from bridges.inprocess.log import CursorStore


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.log"))


def next_three(below: int) -> Place:
    return Place(below, ((below + 1, below + 3),))


def cursors_of_the_protocol(cursors: DurableCursors) -> CursorStore:
    return cursors  # mypy checks it


async def test_a_cursor_is_there_after_reopening(tmp_path: Path) -> None:
    cursors = await DurableCursors.open(tmp_path)
    assert cursors.load("billing") is None
    place = Place(7, ((9, 10), (12, 14), (20, 100_000)), frozenset({3, 1, 9}))
    await cursors.save("billing", place)
    await cursors.save("mail", Place(0))
    await cursors.save("gone", Place(1))
    await cursors.forget("gone")
    for _ in range(2):
        assert cursors.load("billing") == place
        assert cursors.load("mail") == Place(0)
        assert cursors.load("gone") is None
        assert cursors.names() == ["billing", "mail"]
        assert size_of(tmp_path) < 1000
        with pytest.raises(LogInUse):
            await DurableCursors.open(tmp_path)
        await cursors.close()
        cursors = await DurableCursors.open(tmp_path)
    await cursors.close()
    await cursors.close()
    with pytest.raises(Closed):
        await cursors.save("billing", Place(8))


async def test_a_new_name_is_synced_at_once_whatever_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To lose where it began would lose what came since; to lose any later place of it only brings duplicates."""
    cursors = await DurableCursors.open(tmp_path, fsync="never")
    syncs: list[int] = []
    monkeypatch.setattr(disk, "sync", syncs.append)
    await cursors.save("billing", Place(7))
    assert len(syncs) == 1
    await cursors.save("billing", Place(8))
    assert len(syncs) == 1
    await cursors.close()


async def test_of_saves_under_way_the_later_call_wins_and_the_store_does_not_grow(tmp_path: Path) -> None:
    cursors = await DurableCursors.open(tmp_path, segment_bytes=4000)
    for start in range(0, 4000, 50):
        await asyncio.gather(*(cursors.save(f"name-{below % 5}", next_three(below)) for below in range(start, start + 50)))
        assert cursors.load("name-4") == next_three(start + 49)
    await cursors.close()
    assert size_of(tmp_path) < 40_000
    cursors = await DurableCursors.open(tmp_path)
    assert [cursors.load(f"name-{number}") for number in range(5)] == [next_three(below) for below in range(3995, 4000)]
    await cursors.close()


async def test_names_that_were_forgotten_leave_nothing(tmp_path: Path) -> None:
    cursors = await DurableCursors.open(tmp_path, segment_bytes=50_000, fsync="never")
    await cursors.save("stays", Place(1))
    for start in range(0, 1000, 100):
        names = [f"name-{number}" for number in range(start, start + 100)]
        await asyncio.gather(*(cursors.save(name, Place(1, tuple((offset, offset + 1) for offset in range(2, 40, 2)))) for name in names))
        await asyncio.gather(*(cursors.forget(name) for name in names))
    assert cursors.names() == ["stays"]
    for _ in range(2):  # in the background it has come as far as it could beside the rest; tombstones go with the second one
        await cursors._table._log.compact()
    await cursors.close()
    assert size_of(tmp_path) < 60_000
    cursors = await DurableCursors.open(tmp_path)
    assert cursors.names() == ["stays"]
    await cursors.close()
