"""A disk that is full, that errs, or that loses what was not synced: whatever was acknowledged is there."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Literal, TypeAlias

import pytest

from bridges.errors import LogFailed
from bridges.inprocess import commit, disk
from bridges.inprocess.codec import encode
from bridges.inprocess.durable import DurableLog
from bridges.inprocess.keeping import LogSettings
from bridges.inprocess.records import OVERHEAD
from tests.engines.deadline import eventually
from tests.integration.log_writer import message_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Fsync: TypeAlias = Literal["always", "never"] | float
EVERY_MODE = pytest.mark.parametrize("fsync", ["always", 5, "never"])


async def append_each(log: DurableLog, count: int) -> list[int]:
    """Append so many messages at once, each by itself, and return the offsets that were acknowledged."""
    first = log.next
    appends = (log.append([message_at(offset)], 0.0) for offset in range(first, first + count))
    results = await asyncio.gather(*appends, return_exceptions=True)
    for result in results:
        assert isinstance(result, int | LogFailed)
    return [result for result in results if isinstance(result, int)]


async def stored(folder: Path) -> list[int]:
    """Open it again, and return the offsets that are there, having looked at what stands there."""
    log = await DurableLog.open(folder)
    entries = log.read(0, 1 << 30)
    assert all(entry.message == message_at(entry.offset) for entry in entries)
    await log.close()
    return [entry.offset for entry in entries]


@dataclass(frozen=True)
class SmallDisk:
    """A folder that takes 256 KiB; ``limits`` says whether that is the whole of it, or each file."""

    path: Path
    limits: str


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A small file system where one may be mounted, else files that may not grow further."""
    with ExitStack() as stack:
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "outboxd-test", str(tmp_path)]
        if os.geteuid() == 0 and shutil.which("mount") and subprocess.run(mount, check=False).returncode == 0:
            stack.callback(subprocess.run, ["umount", str(tmp_path)], check=True)
            yield SmallDisk(tmp_path, "all")
        else:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
            yield SmallDisk(tmp_path, "files")


@EVERY_MODE
@pytest.mark.parametrize("segment_bytes", [1 << 30, 20_000])
async def test_a_full_disk_fails_the_appends_that_do_not_fit_and_those_behind_them(
    fsync: Fsync, segment_bytes: int, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up in the middle of a segment, or when the next one is to be begun. It goes on by itself when there is room again."""
    monkeypatch.setattr(commit, "_AGAIN", 3.0)  # longer than the appends that are refused may take on a busy machine
    if small_disk.limits == "files":
        segment_bytes = 1 << 30
    ballast, folder = small_disk.path / "ballast", small_disk.path / "log"
    ballast.write_bytes(b"x" * (100 << 10))
    settings = LogSettings(fsync=fsync, segment_bytes=segment_bytes)
    log = await DurableLog.open(folder, settings)
    acked: list[int] = []
    while len(more := await append_each(log, 7)) == 7:
        acked += more
    acked += more
    assert acked == list(range(log.next))
    assert [entry.offset for entry in log.read(0, 1 << 30)] == acked
    with pytest.raises(LogFailed, match="takes nothing for a moment"):
        await log.append([message_at(log.next)], 0.0)
    ballast.unlink()
    if small_disk.limits == "all":

        async def goes_on() -> bool:
            acked.extend(more := await append_each(log, 1))  # of several, those after the moment at which it goes on would be taken alone
            return len(more) == 1

        await eventually(goes_on)
        acked += (more := await append_each(log, 9))
        assert len(more) == 9
    assert acked == list(range(log.next)) == [entry.offset for entry in log.read(0, 1 << 30)]
    await log.close()
    log = await DurableLog.open(folder, settings)
    assert log.recovery.clean or small_disk.limits == "files"
    await log.close()
    assert await stored(folder) == acked


@EVERY_MODE
async def test_a_disk_that_takes_a_part_has_exactly_the_whole_ones_acknowledged(
    fsync: Fsync, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it stops: what is whole in front of it is acknowledged, the rest is not, and nothing behind a gap ever is."""
    sizes = [OVERHEAD + len(encode(message_at(offset))) for offset in range(12)]
    for number, room in enumerate([*range(0, sum(sizes), 171), *accumulate(sizes)]):
        folder = tmp_path / str(number)
        log = await DurableLog.open(folder, LogSettings(fsync=fsync))
        with monkeypatch.context() as patch:
            patch.setattr(disk, "write", Room(room))
            acked = await append_each(log, 12)
        assert acked == [at for at in range(12) if sum(sizes[: at + 1]) <= room]
        assert log.next == len(acked)
        await log.close()
        assert await stored(folder) == acked


@EVERY_MODE
async def test_behind_an_append_that_was_stored_in_part_the_next_goes_on(
    fsync: Fsync, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part of it that is: no offset is used twice, nothing torn stays in between, and what was acknowledged is there in order."""
    monkeypatch.setattr(commit, "_AGAIN", 0.0)
    sizes = [OVERHEAD + len(encode(message_at(offset))) for offset in range(12)]
    for number, room in enumerate(range(0, sum(sizes), 307)):
        for segment_bytes in (1000, 1 << 30):
            folder = tmp_path / f"{number} {segment_bytes}"
            log = await DurableLog.open(folder, LogSettings(fsync=fsync, segment_bytes=segment_bytes))
            with monkeypatch.context() as patch:
                patch.setattr(disk, "write", Room(room))
                with pytest.raises(LogFailed):
                    await log.append([message_at(offset) for offset in range(12)], 0.0)
                with pytest.raises(LogFailed):
                    await log.append([message_at(12)], 0.0)
            assert log.next == 0
            first = await log.append([message_at(13)], 0.0)
            assert await append_each(log, 3) == [first + 1, first + 2, first + 3]
            entries = log.read(0, 100)
            assert [entry.offset for entry in entries] == list(range(first + 4))
            assert [entry.message for entry in entries[: first + 1]] == [*(message_at(offset) for offset in range(first)), message_at(13)]
            await log.close()
            log = await DurableLog.open(folder)
            assert log.recovery.clean
            assert log.read(0, 100) == entries
            await log.close()


class Room:
    """A disk with so many bytes of room."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, file: int, data: bytes, position: int) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os.pwrite(file, data[: min(self.room, 100)], position)
        self.room -= written
        return written


class FailingSyncs:
    """Fails those syncs, counted from 0, that it is told to; all others succeed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *failing: int) -> None:
        self.failing = set(failing)
        self.count = 0
        self._sync = disk.sync
        monkeypatch.setattr(disk, "sync", self)

    def __call__(self, file: int) -> None:
        self.count += 1
        if self.count - 1 in self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._sync(file)


async def test_a_sync_that_fails_once_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one would succeed and mean nothing. All appends that it was to cover fail, and all later ones."""
    log = await DurableLog.open(tmp_path)
    assert await append_each(log, 5) == [0, 1, 2, 3, 4]
    syncs = FailingSyncs(monkeypatch, 0)
    with pytest.raises(LogFailed, match="Input/output error"):
        await log.append([message_at(5)], 0.0)
    assert await append_each(log, 3) == []
    assert (log.next, len(log.read(0, 100))) == (5, 5)
    await log.close()
    assert syncs.count == 1
    assert await stored(tmp_path) in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("part", [0, 1, 2, 3])
@pytest.mark.parametrize("segment_bytes", [1000, 1 << 30])
async def test_after_a_sync_that_failed_a_log_goes_on_behind_what_the_disk_has(
    part: int, segment_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has lost some of what was not synced, as the kernel may after an error; nothing of that was answered for."""
    monkeypatch.setattr(commit, "_AGAIN", 0.0)
    log = await DurableLog.open(tmp_path, LogSettings(segment_bytes=segment_bytes))
    assert await append_each(log, 5) == [0, 1, 2, 3, 4]
    newest = newest_of(tmp_path)
    synced = newest.stat().st_size
    FailingSyncs(monkeypatch, 0)
    assert await append_each(log, 3) == []
    os.truncate(newest, synced + (newest.stat().st_size - synced) * part // 3)
    acked = [0, 1, 2, 3, 4]

    async def goes_on() -> bool:
        acked.extend(await append_each_behind(log))
        return len(acked) > 8

    await eventually(goes_on)
    entries = log.read(0, 100)
    assert [entry.offset for entry in entries] == list(range(log.next))
    assert {entry.offset for entry in entries} >= set(acked)
    await log.close()
    log = await DurableLog.open(tmp_path)
    assert (log.recovery.clean, log.read(0, 100)) == (True, entries)
    await log.close()


def newest_of(folder: Path) -> Path:
    return max(folder.glob("*.log"))


async def append_each_behind(log: DurableLog) -> list[int]:
    """Append a message, wherever it gets to; return its offset, if it was acknowledged."""
    try:
        return [await log.append([message_at(0)], 0.0)]
    except LogFailed:
        return []


async def test_where_the_disk_has_lost_what_was_answered_for_a_log_takes_nothing_until_it_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers have seen it; another record must not get its offset while they are there."""
    monkeypatch.setattr(commit, "_AGAIN", 0.0)
    log = await DurableLog.open(tmp_path, LogSettings(fsync=3_600_000))
    assert await append_each(log, 5) == [0, 1, 2, 3, 4]
    file = newest_of(tmp_path)
    FailingSyncs(monkeypatch, 0)
    with pytest.raises(LogFailed):
        await log.sync()
    os.truncate(file, file.stat().st_size - 1)
    for _ in range(3):
        assert await append_each(log, 2) == []
    with pytest.raises(LogFailed):
        await log.close()
    assert await stored(tmp_path) == [0, 1, 2, 3]


async def test_a_sync_that_fails_while_a_segment_is_sealed_is_not_mended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch over several segments: what a failed sync was to cover is not answered for, though its segment is synced once more."""
    log = await DurableLog.open(tmp_path, LogSettings(segment_bytes=1000))
    FailingSyncs(monkeypatch, 0)
    assert await append_each(log, 20) == []
    assert log.next == 0
    await log.close()


async def test_a_window_that_fails_to_sync_is_known_to_the_next_append_and_to_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await DurableLog.open(tmp_path / "one", LogSettings(fsync=1))
    syncs = FailingSyncs(monkeypatch, 0)
    assert await log.append([message_at(0)], 0.0) == 0

    async def failed() -> bool:
        return bool(syncs.count)

    await eventually(failed)
    with pytest.raises(LogFailed):
        while True:  # the writer's thread has failed; the event loop hears of it in a moment
            await log.append([message_at(log.next)], 0.0)
    with pytest.raises(LogFailed):
        await log.close()
    monkeypatch.undo()

    log = await DurableLog.open(tmp_path / "two", LogSettings(fsync=3_600_000))
    FailingSyncs(monkeypatch, 0)
    assert await log.append([message_at(0)], 0.0) == 0
    with pytest.raises(LogFailed):
        await log.close()
    monkeypatch.undo()
    await (await DurableLog.open(tmp_path / "two")).close()


async def test_a_window_that_fails_to_sync_is_said_though_nothing_is_appended_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = await DurableLog.open(tmp_path, LogSettings(fsync=1))
    FailingSyncs(monkeypatch, 0)
    assert await log.append([message_at(0)], 0.0) == 0

    async def said() -> bool:
        return "could not store or sync something: OSError" in caplog.text

    await eventually(said)
    with pytest.raises(LogFailed):
        await log.close()


async def test_what_was_answered_for_is_read_while_the_disk_has_lost_what_is_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read looks at nothing behind what was answered for: that may be torn, or be cut off meanwhile."""
    log = await DurableLog.open(tmp_path)
    assert await append_each(log, 3) == [0, 1, 2]
    newest = newest_of(tmp_path)
    synced = newest.stat().st_size
    FailingSyncs(monkeypatch, 0)
    assert await append_each(log, 3) == []
    os.truncate(newest, synced + 1)
    assert [entry.offset for entry in log.read(0, 100)] == [0, 1, 2]
    assert [entry.offset for entry in log.read(2, 100)] == [2]
    assert (log.read(3, 100), log.offset_at(0.0), log.offset_at(1.0)) == ([], 0, 3)
    await log.close()


async def test_readers_hear_of_what_was_refused_and_can_be_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record whose sync failed lies in front of the next one, which makes it readable: whoever waits for its topic is told then."""
    monkeypatch.setattr(commit, "_AGAIN", 0.0)
    log = await DurableLog.open(tmp_path)
    told: list[str] = []
    log.listen(lambda messages: told.extend(message.topic for message in messages))
    FailingSyncs(monkeypatch, 0)
    with pytest.raises(LogFailed):
        await log.append([message_at(0)._replace(topic="refused")] * 3, 0.0)
    assert told == []
    for expected in (["refused", "next"], ["refused", "next", "next"]):
        await log.append([message_at(0)._replace(topic="next")], 0.0)
        await asyncio.sleep(0)
        assert told == expected
    assert [entry.message.topic for entry in log.read(0, 100)] == ["refused"] * 3 + ["next"] * 2
    await log.close()


async def test_what_cannot_be_removed_fails_no_append_and_leaves_no_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = await DurableLog.open(tmp_path, LogSettings(segment_bytes=500, keep_bytes=1500))
    unlink, stuck = Path.unlink, newest_of(tmp_path)

    def refuse(path: Path, *, missing_ok: bool = False) -> None:
        if path == stuck:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        for offset in range(30):
            assert await log.append([message_at(offset)], 0.0) == offset
    assert "could not remove what it has evicted" in caplog.text
    assert log.first > 0
    await log.close()
    log = await DurableLog.open(tmp_path, LogSettings(segment_bytes=500, keep_bytes=1500))
    assert log.recovery.first == 0
    assert log.first > 0
    assert not stuck.exists()
    await log.close()


def files_of(folder: Path) -> tuple[int, set[Path]]:
    """Return how many files are open, and which are in the folder."""
    return len(list(Path("/proc/self/fd").iterdir())), set(folder.iterdir())


async def test_a_compaction_that_cannot_be_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = await DurableLog.open(tmp_path, LogSettings(segment_bytes=1000))
    await append_each(log, 20)

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = files_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "rename", refuse)
        for _ in range(5):
            with pytest.raises(OSError, match="No space left"):
                await log.compact()
    assert files_of(tmp_path) == before
    assert len(log.read(0, 100)) == 20
    await log.close()


class Power:
    """Knows what a loss of power would leave: of each file what was synced, and any part of the rest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: dict[Path, int] = {}
        self.before_sync: Callable[[], object] | None = None
        self._sync = disk.sync
        monkeypatch.setattr(disk, "sync", self._noting)

    def _noting(self, file: int) -> None:
        if self.before_sync:
            self.before_sync()
        size = os.fstat(file).st_size
        self._sync(file)
        self.synced[Path(f"/proc/self/fd/{file}").readlink().with_suffix(".log")] = size

    def lose(self, folder: Path, into: Path, part: float) -> Path:
        """Copy the folder as it would be found after the loss. Nobody may be writing to it meanwhile."""
        shutil.copytree(folder, into)
        for file in into.glob("*.log"):
            synced, size = self.synced[folder / file.name], file.stat().st_size
            os.truncate(file, synced + round((size - synced) * part))
        return into


async def test_when_the_power_goes_all_that_was_acknowledged_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes just before a sync, when most is at stake: with a batch written, or a segment about to be sealed."""
    power = Power(monkeypatch)
    folder = tmp_path / "log"
    log = await DurableLog.open(folder, LogSettings(segment_bytes=3000))
    losses: list[tuple[int, Path]] = []
    syncs = 0

    def lose() -> None:
        nonlocal syncs
        syncs += 1
        if syncs % 5 == 0:
            losses.append((log.next, power.lose(folder, tmp_path / f"lost-{syncs}", syncs // 5 % 4 / 3)))

    power.before_sync = lose
    for _ in range(150):
        assert len(await append_each(log, 4)) == 4
    power.before_sync = None
    await log.close()
    more = 0
    for acknowledged, lost in losses:
        left = await stored(lost)
        assert left == list(range(len(left)))
        assert len(left) >= acknowledged
        more += len(left) > acknowledged
    assert len(losses) > 30
    assert more


async def test_within_its_window_everything_is_synced_and_only_never_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The append is answered before the sync; the sync comes by itself within the window; with "never" none does before the close."""
    power = Power(monkeypatch)
    window = 0.1
    log = await DurableLog.open(tmp_path / "window", LogSettings(fsync=window * 1000))
    never = await DurableLog.open(tmp_path / "never", LogSettings(fsync="never"))
    (file,), (unsynced,) = (tmp_path / "window").glob("*.log"), (tmp_path / "never").glob("*.log")
    for rounds in range(3):
        began = monotonic()
        await append_each(log, 50)
        await append_each(never, 50)
        before = power.synced[file]
        if monotonic() - began < window:
            assert before < file.stat().st_size
            assert await stored(power.lose(tmp_path / "window", tmp_path / f"early-{rounds}", 0.0)) == list(range(rounds * 50))

        async def synced() -> bool:
            return power.synced[file] == file.stat().st_size

        await eventually(synced, within=window + 5)
        assert await stored(power.lose(tmp_path / "window", tmp_path / f"late-{rounds}", 0.0)) == list(range(rounds * 50 + 50))
        assert power.synced[unsynced] < unsynced.stat().st_size
    await never.close()
    assert power.synced[unsynced] == unsynced.stat().st_size
    await log.close()
