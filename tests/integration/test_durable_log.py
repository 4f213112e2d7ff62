"""A log on disk: what is read is what was appended, over rotation, eviction, compaction and reopening."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from bridges.errors import Closed, ConfigurationError, CorruptLog, Evicted, InvalidMessage
from bridges.inprocess import disk, records
from bridges.inprocess.durable import DurableLog
from bridges.inprocess.keeping import LogSettings
from bridges.inprocess.store import Store
from bridges.message import Message
from tests.integration.log_writer import message_at

if TYPE_CHECKING:
    from bridges.inprocess.log import Entry, Log

SMALL = LogSettings(segment_bytes=2000)


async def fill(log: DurableLog, count: int, *, time: float = 0.0, step: float = 1.0) -> None:
    """Append so many messages, several at a time; each at a time one step later."""
    first = log.next
    await asyncio.gather(*(log.append([message_at(offset)], time + (offset - first) * step) for offset in range(first, first + count)))


def offsets(entries: list[Entry]) -> list[int]:
    return [entry.offset for entry in entries]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def keyed(key: str, payload: bytes = b"x") -> Message:
    return Message(UUID(int=0), "orders", payload, key)


def log_of_the_protocol(log: DurableLog) -> Log:
    return log  # mypy checks it


async def test_what_was_appended_is_read_from_any_offset_in_any_measure(tmp_path: Path) -> None:
    log = await DurableLog.open(tmp_path / "made" / "on the way", SMALL)
    assert (log.first, log.next, log.durable, log.read(0, 10), log.offset_at(0.0)) == (0, 0, True, [], 0)
    await fill(log, 200)
    for again in range(2):
        for start in (0, 1, 99, 199):
            for limit in (1, 7, 1000):
                entries = log.read(start, limit)
                assert offsets(entries) == list(range(start, min(start + limit, 200)))
                assert all(entry.message == message_at(entry.offset) and entry.time == entry.offset for entry in entries)
        assert log.read(200, 5) == log.read(1000, 5) == []
        await log.close()
        log = await DurableLog.open(log.recovery.folder, SMALL)
        assert log.recovery.clean, again
        assert (log.recovery.records, log.recovery.first, log.recovery.next) == (200, 0, 200)
    await log.close()


async def test_messages_of_one_append_stay_together_and_appends_keep_the_order_of_the_calls(tmp_path: Path) -> None:
    log = await DurableLog.open(tmp_path, SMALL)
    firsts = await asyncio.gather(*(log.append([keyed(f"{call}"), keyed(f"{call}")], 0.0) for call in range(50)))
    assert firsts == list(range(0, 100, 2))
    assert [entry.message.key for entry in log.read(0, 100)] == [f"{number // 2}" for number in range(100)]
    assert await log.append([], 0.0) == 100
    await log.close()


async def test_a_time_is_found_though_clocks_go_back(tmp_path: Path) -> None:
    log = await DurableLog.open(tmp_path, SMALL)
    times = [*range(100), *range(50, 150), *range(10)]
    for time in times:
        await log.append([message_at(1)], float(time))
    for time in (-1.0, 0.0, 49.5, 50.0, 99.0, 100.0, 149.0, 150.0):
        assert log.offset_at(time) == next((at for at, each in enumerate(times) if each >= time), len(times))
    await log.close()


async def test_a_segment_is_sealed_at_its_size_and_synced_however_seldom_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = synced_sizes(monkeypatch)
    log = await DurableLog.open(tmp_path, LogSettings(segment_bytes=2000, fsync="never"))
    await fill(log, 100)
    *sealed, newest = files(tmp_path)
    assert len(sealed) > 10
    for file in sealed:
        assert 2000 <= file.stat().st_size < 2000 + 6000
        assert synced[file.name] == file.stat().st_size
    assert synced[newest.name] < newest.stat().st_size
    await log.close()
    assert synced[newest.name] == newest.stat().st_size


async def test_bytes_evict_the_oldest_segments_and_what_is_gone_is_refused(tmp_path: Path) -> None:
    settings = LogSettings(segment_bytes=2000, keep_bytes=20_000)
    log = await DurableLog.open(tmp_path, settings)
    await fill(log, 300)
    assert sum(file.stat().st_size for file in files(tmp_path)) < 20_000 + 2000 + 6000
    assert 200 < log.first < 300
    assert offsets(log.read(log.first, 1000)) == list(range(log.first, 300))
    with pytest.raises(Evicted) as evicted:
        log.read(log.first - 1, 1)
    assert evicted.value.first == log.first
    assert log.offset_at(0.0) == log.first
    first = log.first
    await log.close()
    log = await DurableLog.open(tmp_path, settings)
    assert (log.first, log.next) == (first, 300)
    await log.close()


async def test_age_evicts_segments_in_which_all_is_too_old(tmp_path: Path) -> None:
    log = await DurableLog.open(tmp_path, LogSettings(segment_bytes=2000, keep_seconds=50))
    await fill(log, 300)
    assert 220 < log.first <= 249
    await log.trim(320.0)
    assert 249 < log.first <= 270
    await log.trim(1000.0)
    assert (log.first, log.next, log.read(300, 1)) == (300, 300, [])
    assert await log.append([message_at(300)], 1000.0) == 300
    await log.close()


async def test_a_number_of_records_is_kept_exactly(tmp_path: Path) -> None:
    settings = LogSettings(segment_bytes=2000, keep_records=25)
    log = await DurableLog.open(tmp_path, settings)
    await fill(log, 20)
    assert log.first == 0
    await fill(log, 80)
    for _ in range(2):
        assert (log.first, log.next) == (75, 100)
        assert offsets(log.read(75, 1000)) == list(range(75, 100))
        with pytest.raises(Evicted, match="begins at 75"):
            log.read(74, 1)
        assert int(files(tmp_path)[0].name[:20]) > 50
        await log.close()
        log = await DurableLog.open(tmp_path, settings)
    await log.close()


async def test_compaction_keeps_the_newest_of_each_key_and_all_without_one(tmp_path: Path) -> None:
    log = await DurableLog.open(tmp_path, SMALL)
    expected: dict[str, int] = {}
    for offset in range(300):
        key = f"key-{offset * 7 % 13}" if offset % 10 else None
        await log.append([keyed(key or "", b"%d" % offset)._replace(key=key)], float(offset))
        expected[key or f"none {offset}"] = offset
    sealed = int(files(tmp_path)[-1].name[:20])
    await log.compact()
    kept = log.read(0, 1000)
    assert offsets(kept) == sorted({*(at for at in expected.values() if at < sealed), *range(sealed, 300)})
    assert all(entry.message.payload == b"%d" % entry.offset == b"%d" % int(entry.time) for entry in kept)
    assert log.first == 0
    assert offsets(log.read(100, 3)) == [at for at in offsets(kept) if at >= 100][:3]
    assert log.offset_at(101.5) == next(at for at in offsets(kept) if at >= 102)
    await asyncio.gather(log.compact(), log.compact())
    assert log.read(0, 1000) == kept
    await log.close()
    log = await DurableLog.open(tmp_path, SMALL)
    assert log.recovery.clean
    assert log.read(0, 1000) == kept
    assert len(files(tmp_path)) < 10
    await log.close()


async def test_a_tombstone_takes_its_key_out_and_is_seen_once_before_it_goes(tmp_path: Path) -> None:
    log = await DurableLog.open(tmp_path, SMALL)
    await log.append([keyed("gone"), keyed("stays"), keyed("gone", b"")], 0.0)
    await fill(log, 20)
    await log.compact()
    assert offsets(log.read(0, 2)) == [1, 2]
    await log.compact()
    assert offsets(log.read(0, 2))[0] == 1
    assert 2 not in offsets(log.read(0, 100))
    await log.close()


async def test_readers_and_appends_go_on_while_it_is_compacted(tmp_path: Path) -> None:
    """Whatever a reader sees while segments are replaced under it: in order, true, and with the newest of every key."""
    log = await DurableLog.open(tmp_path, LogSettings(segment_bytes=10_000, compact=True, fsync="never"))
    newest: dict[str, int] = {}
    reads = compactions = 0
    done = asyncio.Event()

    def to_the_end() -> list[Entry]:
        entries: list[Entry] = []
        while more := log.read(entries[-1].offset + 1 if entries else 0, 100):
            entries += more
        return entries

    async def reading(*, threaded: bool) -> None:
        nonlocal reads
        while not done.is_set():
            known = dict(newest)
            entries = await asyncio.to_thread(to_the_end) if threaded else to_the_end()
            seen = {entry.message.key: entry.offset for entry in entries}
            assert offsets(entries) == sorted(set(offsets(entries)))
            assert all(entry.message == message_at(entry.offset) for entry in entries)
            assert all(seen[key] >= offset for key, offset in known.items())
            assert log.offset_at(0.0) >= (entries[0].offset if entries else 0)
            reads += 1
            await asyncio.sleep(0)

    async def compacting() -> None:
        nonlocal compactions
        while not done.is_set():
            await log.compact()
            compactions += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(compacting())
        for threaded in (True, True, False):
            group.create_task(reading(threaded=threaded))
        for first in range(0, 1000, 20):
            await asyncio.gather(*(log.append([message_at(offset)], 0.0) for offset in range(first, first + 20)))
            newest |= {message_at(offset).key or "": offset for offset in range(first, first + 20)}
        done.set()
    assert min(reads, compactions) > 2
    assert len(files(tmp_path)) < 50  # of more than a hundred
    await log.close()


async def test_a_compaction_is_given_up_when_the_log_is_closed(tmp_path: Path) -> None:
    log = await DurableLog.open(tmp_path, SMALL)
    await fill(log, 300)
    compacting = asyncio.create_task(log.compact())
    await asyncio.sleep(0)
    await log.close()
    await compacting
    log = await DurableLog.open(tmp_path, SMALL)
    assert not log.recovery.removed
    assert {entry.message.key for entry in log.read(0, 1000)} == {f"key-{number}" for number in range(7)}
    await log.close()


async def test_a_torn_end_is_cut_off_at_every_byte_of_the_last_record(tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    log = await DurableLog.open(folder, SMALL)
    await fill(log, 8)
    (newest,) = files(folder)[-1:]
    before = newest.stat().st_size
    await log.append([keyed("last", b"the last one")], 8.0)
    await log.close()
    whole = newest.read_bytes()
    for end in range(before, len(whole)):
        newest.write_bytes(whole[:end])
        log = await DurableLog.open(folder, SMALL)
        assert offsets(log.read(0, 100)) == list(range(8))
        if end > before:
            assert log.recovery.cut
            assert (log.recovery.cut.file, log.recovery.cut.position, log.recovery.cut.size) == (newest.name, before, end - before)
            assert "cut a torn end" in str(log.recovery)
        else:
            assert log.recovery.clean
        assert await log.append([keyed("last")], 8.0) == 8
        await log.close()
    newest.write_bytes(whole)


async def test_an_empty_segment_with_a_damaged_head_can_be_gone_without(tmp_path: Path) -> None:
    """What is appended in its place is there after the next opening, and is not taken for what the damaged one held."""
    settings = LogSettings(segment_bytes=2000, keep_seconds=1)
    log = await DurableLog.open(tmp_path, settings)
    await fill(log, 10)
    await log.trim(1000.0)
    await log.close()
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptLog, match="its head is damaged"):
        await DurableLog.open(tmp_path, settings)
    log = await DurableLog.open(tmp_path, settings, skip_corrupt=True)
    assert "skipped" in str(log.recovery)
    for count in range(1, 4):
        await fill(log, 1, time=1000.0)
        assert offsets(log.read(10, 100)) == list(range(10, 10 + count))
        await log.close()
        log = await DurableLog.open(tmp_path, settings)
        assert log.recovery.clean
    await log.close()


async def test_what_the_disk_no_longer_gives_back_is_refused_to_a_reader(tmp_path: Path) -> None:
    log = await DurableLog.open(tmp_path, SMALL)
    await fill(log, 20)
    file = files(tmp_path)[0]
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptLog, match="no whole and sound record") as corrupt:
        log.read(0, 100)
    assert corrupt.value.file == str(file)
    file.unlink()
    with pytest.raises(CorruptLog, match="gone"):
        log.read(0, 100)
    await log.close()


async def test_an_invalid_message_stores_nothing_and_uses_no_offset(tmp_path: Path) -> None:
    log = await DurableLog.open(tmp_path)
    with pytest.raises(InvalidMessage, match="key"):
        await log.append([keyed("sound"), keyed("\ud800")], 0.0)
    assert await log.append([keyed("sound")], 0.0) == 0
    await log.close()


async def test_appends_share_a_sync_and_the_event_loop_does_not_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = await DurableLog.open(tmp_path)
    syncing, go_on, syncs = threading.Event(), threading.Event(), deque[int]()

    def slow(file: int) -> None:
        syncs.append(file)
        syncing.set()
        assert go_on.wait(20)

    monkeypatch.setattr(disk, "sync", slow)
    first = asyncio.create_task(log.append([message_at(0)], 0.0))
    assert await asyncio.to_thread(syncing.wait, 20)
    more = [asyncio.create_task(log.append([message_at(offset)], 0.0)) for offset in range(1, 100)]
    for _ in range(100):
        await asyncio.sleep(0)  # the loop turns, while the disk does not
    assert not any(task.done() for task in [first, *more])
    assert (log.next, log.read(0, 100)) == (0, [])
    go_on.set()
    assert await asyncio.gather(first, *more) == list(range(100))
    assert len(syncs) == 2
    await log.close()


async def test_a_cancelled_append_harms_no_other(tmp_path: Path) -> None:
    log = await DurableLog.open(tmp_path)
    tasks = [asyncio.create_task(log.append([message_at(offset)], 0.0)) for offset in range(30)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[1::2] == list(range(1, 30, 2))
    assert offsets(log.read(0, 100)) == list(range(30))
    await log.close()


async def test_closing_stores_what_waits_and_leaves_nothing_behind_any_number_of_times(tmp_path: Path) -> None:
    tasks, threads = asyncio.all_tasks(), writer_threads()
    log = await DurableLog.open(tmp_path, LogSettings(fsync=60_000, compact=True, segment_bytes=1000))
    assert writer_threads() > threads
    appends = [asyncio.create_task(log.append([message_at(offset)], 0.0)) for offset in range(50)]
    await asyncio.sleep(0)
    await asyncio.gather(log.close(), log.close())
    await log.close()
    assert await asyncio.gather(*appends) == list(range(50))
    assert asyncio.all_tasks() == tasks
    assert writer_threads() == threads
    with pytest.raises(Closed):
        await log.append([message_at(50)], 0.0)
    with pytest.raises(Closed):
        log.read(0, 1)
    assert log.next == 50


async def test_an_opening_that_fails_late_lets_go_of_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await (await DurableLog.open(tmp_path, SMALL)).close()
    files_open = open_files()

    def fail(store: Store, now: float | None = None) -> None:
        raise OSError(5, "the disk is away")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "evict", fail)
        for _ in range(20):
            with pytest.raises(OSError, match="the disk is away"):
                await DurableLog.open(tmp_path, SMALL)
    assert open_files() < files_open + 10
    await (await DurableLog.open(tmp_path, SMALL)).close()


async def test_an_opening_that_is_cancelled_lets_go_of_the_folder(tmp_path: Path) -> None:
    before = writer_threads()
    opening = asyncio.create_task(DurableLog.open(tmp_path))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    for thread in writer_threads() - before:
        await asyncio.to_thread(thread.join)
    await (await DurableLog.open(tmp_path)).close()


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"fsync": "sometimes"}, "fsync: 'sometimes' is not"),
        ({"fsync": 0}, "fsync: 0 milliseconds"),
        ({"fsync": float("nan")}, "fsync: nan milliseconds"),
        ({"segment_bytes": 0}, "segment_bytes: 0 is not above 0"),
        ({"keep_records": -1}, "keep_records: -1 is not above 0"),
    ],
)
def test_a_setting_that_cannot_work_is_named(setting: dict[str, float], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        LogSettings(**setting)  # type: ignore[arg-type]


async def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    records.crc32c.cache_clear()
    with pytest.raises(ConfigurationError, match=r"pip install 'outboxd\[log\]'"):
        await DurableLog.open(tmp_path)
    monkeypatch.undo()
    await (await DurableLog.open(tmp_path)).close()


def test_the_checksum_is_computed_in_c() -> None:
    import google_crc32c

    assert google_crc32c.implementation == "c"
    assert records.crc32c()(0, b"123456789") == 0xE3069283  # RFC 3720, appendix B.4, has this polynomial


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def writer_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("outboxd-log")}


def synced_sizes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The size of each file, by name, when it was last synced."""
    sizes: dict[str, int] = {}
    sync = disk.sync

    def noting(file: int) -> None:
        size = os.fstat(file).st_size
        sync(file)
        sizes[Path(f"/proc/self/fd/{file}").readlink().name.replace(".new", ".log")] = size

    monkeypatch.setattr(disk, "sync", noting)
    return sizes
