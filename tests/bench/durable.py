"""How many records a durable log stores, beside a bare write and fsync of as many bytes on the same disk, in the same run.

python -m tests.bench.durable [--records 20000] [--size 300] [--folder /var/tmp]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from uuid import UUID

from bridges.inprocess.codec import encode
from bridges.inprocess.durable import DurableLog
from bridges.inprocess.keeping import LogSettings
from bridges.inprocess.records import OVERHEAD
from bridges.message import Message

MODES: tuple[tuple[str, LogSettings], ...] = (
    ("always", LogSettings(fsync="always")),
    ("10 ms", LogSettings(fsync=10)),
    ("never", LogSettings(fsync="never")),
)
PUBLISHERS = (1, 100)
BATCH = 500


def raw(folder: Path, count: int, together: int, size: int, *, sync: bool) -> float:
    """Records a second of a loop that writes some at a time, and syncs after each write or never."""
    file = os.open(folder / "raw", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    data = b"x" * size * together
    began = time.perf_counter()
    for _ in range(count // together):
        os.write(file, data)
        if sync:
            os.fdatasync(file)
    took = time.perf_counter() - began
    os.close(file)
    return count / took


async def stored(folder: Path, settings: LogSettings, message: Message, count: int, publishers: int, together: int) -> float:
    """Records a second of publishers that each wait for one append before the next."""
    log = await DurableLog.open(folder, settings)
    messages = [message] * together

    async def publish() -> None:
        for _ in range(count // publishers // together):
            await log.append(messages, 0.0)

    began = time.perf_counter()
    await asyncio.gather(*(publish() for _ in range(publishers)))
    took = time.perf_counter() - began
    written = log.next
    await log.close()
    return written / took


async def reading(folder: Path) -> tuple[float, float]:
    """Records a second of opening a log, which checks them all, and of reading it from its beginning."""
    began = time.perf_counter()
    log = await DurableLog.open(folder)
    opened = time.perf_counter()
    position = 0
    while entries := log.read(position, 500):
        position = entries[-1].offset + 1
    read = time.perf_counter()
    await log.close()
    return position / (opened - began), position / (read - opened)


async def measure(options: argparse.Namespace, folder: Path) -> None:
    message = Message(UUID(int=1), "orders.created", b"x" * options.size, key="key")
    size = len(encode(message)) + OVERHEAD
    print(f"{size} bytes a record; the bare loop writes as many at a time, and syncs where the log syncs every append")
    for publishers, together in ((1, 1), (100, 1), (1, BATCH)):
        for number, (mode, settings) in enumerate(MODES):
            at_once = publishers * together
            count = options.records if at_once > 1 else options.records // 10
            bare = raw(folder, count, at_once, size, sync=mode == "always")
            rate = await stored(folder / f"{publishers}-{together}-{number}", settings, message, count, publishers, together)
            how = f"fsync {mode:7} {publishers:3} publishers, {together:3} an append"
            print(f"{how}: {rate:8,.0f}/s; bare {bare:9,.0f}/s; ratio {rate / bare:.3f}")
    opened, read = await reading(folder / f"1-{BATCH}-0")
    print(f"opening, which checks everything: {opened:,.0f}/s; reading: {read:,.0f}/s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        asyncio.run(measure(options, Path(folder)))


if __name__ == "__main__":
    main()
