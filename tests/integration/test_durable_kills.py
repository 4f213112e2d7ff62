"""What a durable log keeps when its process is killed, and when the power goes."""

from __future__ import annotations

import logging
import os
import random
from typing import TYPE_CHECKING

import pytest

from bridges.errors import LogInUse
from bridges.inprocess.durable import DurableLog
from tests.integration.log_writer import KEYS, SETTINGS, message_at, writers

if TYPE_CHECKING:
    from pathlib import Path

    from bridges.inprocess.keeping import LogSettings
    from bridges.inprocess.log import Entry

log = logging.getLogger("tests")

SEED = int(os.environ.get("OUTBOXD_TEST_SEED", random.SystemRandom().randrange(1 << 32)))


@pytest.fixture
def chance() -> random.Random:
    log.info("OUTBOXD_TEST_SEED=%d", SEED)  # shown with a failure
    return random.Random(SEED)


async def everything(folder: Path, settings: LogSettings) -> tuple[list[Entry], DurableLog]:
    opened = await DurableLog.open(folder, settings)
    entries = opened.read(opened.first, 1 << 30)
    await opened.close()
    return entries, opened


@pytest.mark.parametrize(("mode", "kills"), [("plain", 200), ("window", 30)])
async def test_killed_at_any_point_a_log_is_a_prefix_with_all_that_was_acknowledged(
    mode: str, kills: int, tmp_path: Path, chance: random.Random
) -> None:
    """Each log is killed many times over, so that what was recovered is recovered again. The window is only for losses of power."""
    cuts = acknowledged = 0
    with writers() as begun:
        for kill in range(kills):
            folder = tmp_path / str(kill // 5)
            process = begun.begin(mode, folder)
            acked = begun.kill(process, after=chance.choice([0, 1, 3, 10, 30]), moment=chance.expovariate(0.2))
            entries, opened = await everything(folder, SETTINGS[mode])
            assert [entry.offset for entry in entries] == list(range(len(entries)))
            assert not acked or acked[-1] < len(entries)
            assert opened.next == opened.recovery.next == len(entries)
            assert not opened.recovery.skipped
            for entry in entries:
                assert entry.message == message_at(entry.offset)
            cuts += opened.recovery.cut is not None
            acknowledged += len(acked)
    assert acknowledged > kills
    assert cuts, "no kill fell into a record"


async def test_killed_while_it_compacts_a_log_has_the_newest_of_every_key(tmp_path: Path, chance: random.Random) -> None:
    tidied = compactions = 0
    with writers() as begun:
        for kill in range(40):
            folder = tmp_path / str(kill // 5)
            process = begun.begin("compacted", folder)
            acked = begun.kill(process, after=chance.choice([5, 20, 50, 100]), moment=chance.expovariate(0.2))
            entries, opened = await everything(folder, SETTINGS["compacted"])
            assert opened.next > max(acked, default=-1)
            newest = {entry.message.key: entry.offset for entry in entries}
            for offset in range(max(opened.next - KEYS, 0), opened.next):
                assert newest[f"key-{offset % KEYS}"] == offset
            offsets = [entry.offset for entry in entries]
            assert offsets == sorted(set(offsets))
            for entry in entries:
                assert entry.message == message_at(entry.offset)
            tidied += bool(opened.recovery.removed)
            compactions += any(not path.name.endswith("-000000.log") for path in folder.glob("*.log"))
    assert compactions
    assert tidied, "no kill fell into a compaction"


async def test_a_folder_has_one_owner_until_it_is_killed(tmp_path: Path) -> None:
    with writers() as begun:
        process = begun.begin("plain", tmp_path)
        acked = begun._acked()
        with pytest.raises(LogInUse, match=rf"process {process}: a log has one owner"):
            await DurableLog.open(tmp_path)
        acked = begun.kill(process, after=1, moment=0)[-1]
        opened = await DurableLog.open(tmp_path)
        assert opened.next > acked
        with pytest.raises(LogInUse, match=f"process {os.getpid()}"):
            await DurableLog.open(tmp_path)
        await opened.close()
        await (await DurableLog.open(tmp_path)).close()
