"""What a durable broker keeps beside its logs: it is there after a kill, the newest of it counts, and it does not grow without end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from bridges.errors import Closed, LogInUse
from bridges.inprocess.cursors import DurableCursors, DurableTimers
from bridges.message import Message
from tests.integration.log_writer import message_at

if TYPE_CHECKING:
    from pathlib import Path

    from bridges.inprocess.log import CursorStore


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.log"))


def cursors_of_the_protocol(cursors: DurableCursors) -> CursorStore:
    return cursors  # mypy checks it


async def test_a_cursor_is_there_after_reopening(tmp_path: Path) -> None:
    cursors = await DurableCursors.open(tmp_path)
    assert cursors.load("billing") is None
    await cursors.save("billing", 7, [13, 9, *range(20, 100_000), 12])
    await cursors.save("mail", 0, [])
    await cursors.save("gone", 1, [])
    await cursors.forget("gone")
    for _ in range(2):
        assert cursors.load("billing") == (7, {9, 12, 13, *range(20, 100_000)})
        assert cursors.load("mail") == (0, set())
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
        await cursors.save("billing", 8, [])


async def test_of_saves_under_way_the_later_call_wins_and_the_store_does_not_grow(tmp_path: Path) -> None:
    cursors = await DurableCursors.open(tmp_path, segment_bytes=4000)
    for start in range(0, 4000, 50):
        await asyncio.gather(*(cursors.save(f"name-{below % 5}", below, range(below, below + 3)) for below in range(start, start + 50)))
        assert cursors.load("name-4") == (start + 49, {start + 49, start + 50, start + 51})
    await cursors.close()
    assert size_of(tmp_path) < 40_000
    cursors = await DurableCursors.open(tmp_path)
    assert [cursors.load(f"name-{number}") for number in range(5)] == [
        (below, {below, below + 1, below + 2}) for below in range(3995, 4000)
    ]
    await cursors.close()


async def test_what_is_not_due_yet_is_there_after_reopening_the_first_due_first(tmp_path: Path) -> None:
    timers = await DurableTimers.open(tmp_path)
    later = await timers.add(2000.5, message_at(1))
    await timers.add(1000.25, message_at(2))
    await timers.add(1000.25, message_at(2))
    gone = await timers.add(1.0, Message(UUID(int=0), "empty", b""))
    await timers.remove(gone.number)
    await timers.remove(gone.number)
    for _ in range(2):
        waiting = timers.pending()
        assert [(pending.due, pending.message) for pending in waiting] == [
            (1000.25, message_at(2)),
            (1000.25, message_at(2)),
            (2000.5, message_at(1)),
        ]
        assert waiting[-1] == later
        await timers.close()
        timers = await DurableTimers.open(tmp_path)
    assert (await timers.add(1.0, message_at(3))).number not in {pending.number for pending in waiting}
    await timers.close()


async def test_timers_that_have_gone_off_leave_nothing(tmp_path: Path) -> None:
    timers = await DurableTimers.open(tmp_path, segment_bytes=50_000, fsync="never")
    stays = await timers.add(9e9, message_at(0))
    for start in range(0, 1000, 100):
        added = await asyncio.gather(*(timers.add(float(number), message_at(1)) for number in range(start, start + 100)))
        await asyncio.gather(*(timers.remove(pending.number) for pending in added))
    assert timers.pending() == [stays]
    for _ in range(2):  # in the background it has come as far as it could beside the rest; tombstones go with the second one
        await timers._table._log.compact()
    await timers.close()
    assert size_of(tmp_path) < 60_000
    timers = await DurableTimers.open(tmp_path)
    assert timers.pending() == [stays]
    await timers.close()
