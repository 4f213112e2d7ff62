"""Group commit: what is appended while the disk is busy is written, and synced, together.

One thread does everything that changes the log. One task feeds it, for as long as something waits, and answers those who wait.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from bridges.errors import LogFailed, told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from bridges.inprocess.store import Store

T = TypeVar("T")

Records = list[tuple[int, float, bytes]]
"""Offset, time and body of each."""


class _Append(NamedTuple):
    records: Records
    stored: asyncio.Future[None]


class _Written(NamedTuple):
    """What became of a batch: all below the offset ``next`` is stored as durably as configured; ``problem`` is why no more is."""

    next: int
    problem: Exception | None


class GroupCommit:
    """The way of appends into a store.

    Args:
        store: where. Its methods run in the writer's thread from now on.
        writer: a pool of one thread; it is shut down with `close`.

    Attributes:
        next: the offset behind the last record that is stored as durably as configured.
        failure: why the log takes no more; None as long as it does.
    """

    def __init__(self, store: Store, writer: ThreadPoolExecutor) -> None:
        self.next = store.next
        self.failure: Exception | None = None
        self._store = store
        self._writer = writer
        fsync = store.settings.fsync
        self._always = fsync == "always"
        self._window = None if isinstance(fsync, str) else fsync / 1000
        self._waiting: list[_Append] = []
        self._committing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sync_due = False
        self._unsynced_since: float | None = None

    def check(self) -> None:
        """Raise `LogFailed` if the log takes no more."""
        if self.failure:
            raise _failed(self.failure)

    async def store(self, records: Records) -> None:
        """Return when the records are stored as durably as configured. Raises `LogFailed`. Calls are stored in their order."""
        append = _Append(records, asyncio.get_running_loop().create_future())
        self._waiting.append(append)
        self._commit_soon()
        await append.stored

    async def in_writer(self, change: Callable[..., T], *arguments: object) -> T:
        """Run a method of the store in the writer's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, change, *arguments)

    async def close(self) -> None:
        """Store what waits, sync, let go of the store and end the thread. Raises `LogFailed`, after all that, if the last sync failed."""
        if self._committing:
            await asyncio.wait([self._committing])
        if self._timer:
            self._timer.cancel()
        problem = await self.in_writer(self._finish)
        self._writer.shutdown()
        if problem:
            raise _failed(problem) from problem

    def _commit_soon(self) -> None:
        if self._committing is None or self._committing.done():
            self._committing = asyncio.get_running_loop().create_task(self._commit())

    async def _commit(self) -> None:
        while self._waiting or self._sync_due:
            batch, self._waiting = self._waiting, []
            try:
                written = await self.in_writer(self._write, [append.records for append in batch])
            except BaseException as problem:
                # Cancelled, or an error of ours, and raised again as such: but those who wait for this task must not wait for ever.
                self._fail(RuntimeError(f"the writer was given up: {told(problem)}"), batch)
                raise
            self._sync_due = False
            whole = [append for append in batch if append.records[-1][0] < written.next]
            if whole:
                self.next = whole[-1].records[-1][0] + 1
            for append in whole:
                if not append.stored.done():  # whoever waited may have been cancelled
                    append.stored.set_result(None)
            if written.problem:
                self._fail(written.problem, batch[len(whole) :])
            elif self._window is not None and self._unsynced_since is not None and self._timer is None:
                wait = self._unsynced_since + self._window - time.monotonic()
                self._timer = asyncio.get_running_loop().call_later(max(wait, 0), self._sync_soon)

    def _sync_soon(self) -> None:
        self._timer = None
        if self.failure is None:
            self._sync_due = True
            self._commit_soon()

    def _fail(self, problem: Exception, batch: Sequence[_Append]) -> None:
        """Refuse these and all that wait: a record behind one that is not there must not be answered for."""
        self.failure = problem
        refused, self._waiting = [*batch, *self._waiting], []
        self._sync_due = False
        for append in refused:
            if not append.stored.done():
                error = _failed(problem)
                error.__cause__ = problem
                append.stored.set_exception(error)

    def _write(self, batch: Sequence[Records]) -> _Written:
        """In the writer's thread: write a batch, sync if it is time, evict if there is something to."""
        sound, problem = self.next, None
        began = time.monotonic()
        if self._unsynced_since is None and batch:
            self._unsynced_since = began
        try:
            self._store.append([record for records in batch for record in records])
        except OSError as trouble:
            problem = trouble  # what is whole in front of it can still be synced and answered
        try:
            if self._unsynced_since is not None and (self._always or self._is_over(began)):
                self._store.sync()
                self._unsynced_since = None
            sound = self._store.next
            if self._store.evictable:
                self._store.evict()
        except OSError as trouble:
            problem = trouble
        return _Written(sound, problem)

    def _is_over(self, now: float) -> bool:
        if self._window is None or self._unsynced_since is None:
            return False
        return self._sync_due or now - self._unsynced_since >= self._window

    def _finish(self) -> OSError | None:
        try:
            if self._unsynced_since is not None and self.failure is None:
                self._store.sync()
        except OSError as problem:
            return problem
        finally:
            self._store.close()
        return None


def _failed(problem: Exception) -> LogFailed:
    return LogFailed(f"the log takes no more until it is opened again: {told(problem)}")
