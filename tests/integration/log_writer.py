"""A process that forks writers of durable logs, for tests to kill. It imports once, so that a writer costs milliseconds.

A line on its input begins a writer: ``mode folder``. Its output has a line for each thing that happened: ``begun PID``; ``acked OFFSET``
for every record that was answered for; ``ended`` once the writer is dead, behind everything that it said.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from contextlib import contextmanager
from select import select
from subprocess import PIPE, Popen
from typing import IO, TYPE_CHECKING
from uuid import UUID

from bridges.inprocess import disk
from bridges.inprocess.durable import DurableLog
from bridges.inprocess.keeping import LogSettings
from bridges.message import Message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SETTINGS = {
    "plain": LogSettings(segment_bytes=20_000),
    "compacted": LogSettings(segment_bytes=5_000, compact=True),
    "window": LogSettings(segment_bytes=20_000, fsync=5),
}
KEYS = 7
SIZES = (0, 300, 1, 300, 50, 5000, 300)


def message_at(offset: int) -> Message:
    """The message that stands at an offset, in every test: from no byte to more than a page."""
    payload = b"%d " % offset + b"x" * SIZES[offset * 5 % 11 % 7]
    return Message(UUID(int=offset), "orders.created", payload, key=f"key-{offset % KEYS}", headers={"n": str(offset)})


def write_slowly(file: int, data: bytes, position: int) -> int:
    """Write a part only, as `os.pwrite` may, and take some time, so that a kill can fall between any two bytes of a record."""
    written = os.pwrite(file, data[: random.choice([random.randrange(1, 60), 400, len(data)])], position)
    select([], [], [], random.choice([0, 0.001]))
    return written


async def write(mode: str, folder: str) -> None:
    """Append for ever, from several tasks at a time, and say what is answered for."""
    log = await DurableLog.open(folder, SETTINGS[mode])
    unused = log.next
    sizes = random.Random(unused)

    async def appending() -> None:
        nonlocal unused
        while True:
            first, unused = unused, unused + sizes.choice([1, 1, 1, 4])
            offsets = range(first, unused)
            assert await log.append([message_at(offset) for offset in offsets], 1000.0 + first) == first
            os.write(1, b"".join(b"acked %d\n" % offset for offset in offsets))

    await asyncio.gather(*(appending() for _ in range(4)))


def main() -> None:
    for line in iter(sys.stdin.readline, ""):
        mode, folder = line.split()
        child = os.fork()
        if not child:
            os.write(1, b"begun %d\n" % os.getpid())
            random.seed()
            disk.write = write_slowly
            asyncio.run(write(mode, folder))
        os.waitpid(child, 0)
        os.write(1, b"ended\n")


class Writers:
    """Starts writers and kills them."""

    def __init__(self, commands: IO[str], output: IO[str]) -> None:
        self._commands = commands
        self._output = output

    def begin(self, mode: str, folder: Path) -> int:
        """Start a writer, which is the only one, and return its process."""
        self._commands.write(f"{mode} {folder}\n")
        self._commands.flush()
        return int(self._output.readline().removeprefix("begun "))

    def kill(self, process: int, *, after: int, moment: float) -> list[int]:
        """Kill it some moment after it has had so many records acknowledged, and return the offsets of all that were."""
        acked = [self._acked() for _ in range(after)]
        for _ in range(int(moment * 1e4)):
            os.getppid()  # about a tenth of a microsecond: finer than any timer
        os.kill(process, signal.SIGKILL)
        while (line := self._output.readline()) != "ended\n":
            acked.append(int(line.removeprefix("acked ")))
        return acked

    def _acked(self) -> int:
        return int(self._output.readline().removeprefix("acked "))


@contextmanager
def writers() -> Iterator[Writers]:
    with Popen([sys.executable, "-m", "tests.integration.log_writer"], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        yield Writers(process.stdin, process.stdout)
        process.stdin.close()


if __name__ == "__main__":
    main()
