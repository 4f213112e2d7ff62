"""Taking a private engine away, and bringing it back."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.engines.deadline import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from outbox.demo.engines import Engine
    from outbox.embedded import PrivatePostgres


class Outages:
    """kill -9 and SIGSTOP for one engine, undone at the end whatever the test left."""

    def __init__(self, engine: Engine | PrivatePostgres) -> None:
        self._engine = engine
        self._away = False
        self._frozen: list[int] = []

    async def go_away(self) -> None:
        self._away = True
        await asyncio.to_thread(self._engine.stop, signal.SIGKILL)

    async def come_back(self) -> None:
        await asyncio.to_thread(self._engine.start)
        self._away = False

    async def freeze(self) -> None:
        self._frozen = family(self._engine.pid)
        for pid in self._frozen:
            with suppress(ProcessLookupError):  # a session may end in between
                os.kill(pid, signal.SIGSTOP)
        await stand_still(self._frozen)

    async def thaw(self) -> None:
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen = []

    async def undo(self) -> None:
        await self.thaw()
        if self._away:
            await self.come_back()


def family(pid: int) -> list[int]:
    """A process and its children, each by itself: every child of a Postgres leads a process group of its own."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


async def stand_still(pids: Iterable[int]) -> None:
    """Wait until processes that were sent SIGSTOP have taken it: a thread on another core goes on until its core has looked."""

    async def stopped() -> bool:
        return all(state in "TtZX" for pid in pids for state in _states(pid))

    await eventually(stopped, what="SIGSTOP to be taken")


def _states(pid: int) -> Iterator[str]:
    """Yield the state of each thread, as in proc(5)."""
    for file in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # it has ended
            yield file.read_text().rpartition(")")[2].split()[0]
