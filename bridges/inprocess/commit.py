"""Group commit: what is appended while the disk is busy is written, and synced, together.

One thread does everything that changes the log. One task feeds it, for as long as something waits, and answers those who wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from bridges.errors import LogFailed, told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from bridges.inprocess.store import Store
    from bridges.message import Message

T = TypeVar("T")

log: Final = logging.getLogger("outboxd.log")

_AGAIN: Final = 1.0
"""Seconds after a failure before it is tried again."""


class _Append(NamedTuple):
    messages: Sequence[Message]
    bodies: list[bytes]
    time: float
    stored: asyncio.Future[int]


class _Written(NamedTuple):
    """What became of a batch that begins at the offset ``first``.

    All below ``next`` is stored as durably as configured; ``problem`` is why no more is. The store has all below ``reached``.
    """

    first: int
    next: int
    reached: int
    problem: Exception | None


class GroupCommit:
    """The way of appends into a store. Offsets are given where records are written, so that what is refused uses none.

    After a failure everything that waits is refused, and what comes within a second. What comes then is the next attempt: the store is
    made ready again (`Store.resume`), so that a log on a disk that has room again goes on by itself.

    Args:
        store: where. Its methods run in the writer's thread from now on.
        writer: a pool of one thread; it is shut down with `close`.

    Attributes:
        next: the offset behind the last record that is stored as durably as configured.
        failure: why the last batch could not be stored; None if it could.
        listeners: what is called with the messages of each append that can be read. Of what was refused, and can be read all the same
            since it had reached the store, it is called with one message of each topic.
    """

    def __init__(self, store: Store, writer: ThreadPoolExecutor) -> None:
        self.next = store.next
        self.failure: Exception | None = None
        self.listeners: list[Callable[[Sequence[Message]], None]] = []
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
        self._synced = store.next
        self._refused: dict[str, Message] = {}
        """One message of each topic that was refused, and has reached the store."""
        self._again_at = 0.0

    def check(self) -> None:
        """Raise `LogFailed` if the last batch could not be stored."""
        if self.failure:
            raise _failed(self.failure)

    async def store(self, messages: Sequence[Message], bodies: list[bytes], at: float) -> int:
        """Return the first one's offset when the bodies are stored as durably as configured. Calls are stored in their order.

        Raises `LogFailed`.
        """
        if time.monotonic() < self._again_at:
            self.check()
        append = _Append(messages, bodies, at, asyncio.get_running_loop().create_future())
        self._waiting.append(append)
        self._commit_soon()
        return await append.stored

    async def sync(self) -> None:
        """Return when all below `next` would survive a loss of power. Raises `LogFailed`."""
        if self._unsynced_since is None:
            return
        try:
            await self.in_writer(self._sync)
        except OSError as problem:
            raise _failed(problem) from problem

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
                due, self._sync_due = self._sync_due, False
                written = await self.in_writer(self._write, batch, due)
            except BaseException as problem:
                # Cancelled, or an error of ours, and raised again as such: but those who wait for this task must not wait for ever.
                self._fail(RuntimeError(f"the writer was given up: {told(problem)}"), batch)
                self._again_at = inf
                raise
            refused = self._answer(batch, written)
            if written.problem:
                self._fail(written.problem, refused)
            else:
                self.failure = None
            if self._window is not None and self._unsynced_since is not None and self._timer is None and self._store.trusted:
                at = max(self._unsynced_since + self._window, self._again_at)
                self._timer = asyncio.get_running_loop().call_later(max(at - time.monotonic(), 0), self._sync_soon)

    def _answer(self, batch: Sequence[_Append], written: _Written) -> Sequence[_Append]:
        """Answer those that are stored, tell who listens, and return the rest."""
        behind = written.first
        for place, append in enumerate(batch):
            first, behind = behind, behind + len(append.bodies)
            if behind > written.next:
                if first < written.reached:
                    self._refused |= {message.topic: message for one in batch[place:] for message in one.messages}
                return batch[place:]
            self.next = behind
            if not append.stored.done():  # whoever waited may have been cancelled
                append.stored.set_result(first)
            if self._refused:  # it lies in front of this one, and can be read now
                self._tell(list(self._refused.values()))
                self._refused = {}
            self._tell(append.messages)
        return ()

    def _tell(self, messages: Sequence[Message]) -> None:
        for listener in self.listeners:
            asyncio.get_running_loop().call_soon(listener, messages)

    def _sync_soon(self) -> None:
        self._timer = None
        self._sync_due = True
        self._commit_soon()

    def _fail(self, problem: Exception, batch: Sequence[_Append]) -> None:
        """Refuse these and all that wait: a record behind one that is not there must not be answered for."""
        if self.failure is None:  # there may be nobody who waits, to hear of it
            log.error("the log could not store or sync something: %s", told(problem))
        self.failure = problem
        self._again_at = time.monotonic() + _AGAIN
        refused, self._waiting = [*batch, *self._waiting], []
        self._sync_due = False
        for append in refused:
            if not append.stored.done():
                error = _failed(problem)
                error.__cause__ = problem
                append.stored.set_exception(error)

    def _write(self, batch: Sequence[_Append], due: bool) -> _Written:
        """In the writer's thread: write a batch, sync if it is time, evict if there is something to."""
        sound, problem = self.next, None
        began = time.monotonic()
        if self.failure or not self._store.trusted:
            try:
                self._store.resume(sound)
            except OSError as trouble:
                return _Written(sound, sound, sound, trouble)
        if self._unsynced_since is None and batch:
            self._unsynced_since = began
        first = self._store.next
        try:
            self._store.append(_numbered(batch, first))
        except OSError as trouble:
            problem = trouble  # what is whole in front of it can still be synced and answered
        try:
            if self._unsynced_since is not None and (self._always or due or self._is_over(began)):
                self._sync()
            sound = self._store.next
        except OSError as trouble:
            problem = trouble
        else:
            self._evict()
        return _Written(first, sound, self._store.next, problem)

    def _evict(self) -> None:
        """In the writer's thread: evict. What cannot be removed takes up room, and harms no append."""
        try:
            if self._store.evictable:
                self._store.evict()
        except OSError as trouble:
            log.warning("the log could not remove what it has evicted; it tries again with the next segment: %s", told(trouble))

    def _sync(self) -> None:
        """In the writer's thread: sync, if there is anything to."""
        if self._unsynced_since is not None:
            self._store.sync()
            self._unsynced_since, self._synced = None, self._store.next

    def _is_over(self, now: float) -> bool:
        if self._window is None or self._unsynced_since is None:
            return False
        return now - self._unsynced_since >= self._window

    def _finish(self) -> OSError | None:
        try:
            if self._store.trusted or self.next > self._synced:  # a sync that has failed fails again: what was answered may be lost
                self._sync()
        except OSError as problem:
            return problem
        finally:
            self._store.close()
        return None


def _failed(problem: Exception) -> LogFailed:
    return LogFailed(f"the log could not store it, and takes nothing for a moment: {told(problem)}")


def _numbered(batch: Sequence[_Append], first: int) -> list[tuple[int, float, bytes]]:
    numbers = count(first)
    return [(next(numbers), append.time, body) for append in batch for body in append.bodies]
