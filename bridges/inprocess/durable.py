"""A log on disk.

    log = await DurableLog.open(folder, LogSettings(fsync=10))
    offset = await log.append([message], time.time())
    entries = log.read(offset, 100)
    await log.close()

Appends that come while the disk is busy are written and synced together, once: group commit. One thread of the log does all writing,
so that the event loop never waits for the disk; compaction reads in another. `DurableLog.read` is a plain call, since it finds in the
page cache what was written lately; where it may be cold, call it in a thread (`asyncio.to_thread`): any thread may.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from bridges.errors import Closed, OutboxError
from bridges.inprocess.codec import decode, encode
from bridges.inprocess.commit import GroupCommit
from bridges.inprocess.compaction import Stopped, newest_of_keys, rewrite
from bridges.inprocess.keeping import LogSettings
from bridges.inprocess.log import Entry
from bridges.inprocess.stamps import PLAIN, Stamps
from bridges.inprocess.store import Store

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from bridges.inprocess.recovery import RecoveryReport
    from bridges.message import Message

log: Final = logging.getLogger("outboxd.log")


class DurableLog:
    """A log on disk, got from `open`. It belongs to one event loop, and its folder to it alone.

    Attributes:
        settings: how it is kept.
        recovery: what opening it did.
    """

    def __init__(self, store: Store, writer: ThreadPoolExecutor) -> None:
        self.settings = store.settings
        self.recovery: RecoveryReport = store.recovery
        self._store = store
        self._commit = GroupCommit(store, writer)
        self._compacting: asyncio.Task[None] | None = None
        self._compacted_below = -1
        self._ending: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, folder: str | os.PathLike[str], settings: LogSettings | None = None, *, skip_corrupt: bool = False) -> Self:
        """Open the log in a folder, which is made if need be. All of it is read and checked.

        Raises `LogInUse` if it is open already; `CorruptLog` if what was stored is damaged, unless ``skip_corrupt``;
        `ConfigurationError` where the extra ``log`` is not installed; `OSError`.
        """
        writer = ThreadPoolExecutor(1, thread_name_prefix="outboxd-log")
        opening = writer.submit(Store, Path(folder), settings or LogSettings(), skip_corrupt=skip_corrupt)
        try:
            store = await asyncio.wrap_future(opening)
        except BaseException:
            opening.add_done_callback(_close_unwanted)  # it may be done only after its caller was cancelled
            writer.shutdown(wait=False)
            raise
        if not store.recovery.clean:
            log.warning("%s", store.recovery)
        return cls(store, writer)

    @property
    def durable(self) -> bool:
        """True: what `append` has answered for outlives the process."""
        return True

    @property
    def first(self) -> int:
        """The oldest offset that was not evicted; `next` if there is none. Compaction does not move it."""
        return self._store.first(self.next)

    @property
    def next(self) -> int:
        """The offset behind the last entry that is stored as durably as configured. What is not is not read either."""
        return self._commit.next

    def listen(self, told: Callable[[Sequence[Message]], None]) -> None:
        """Have something called, by the event loop, with the messages of each append once they can be read."""
        self._commit.listeners.append(told)

    async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
        """Store the messages, in order and together, and return the first one's offset when they are stored as durably as configured.

        Appends get their offsets in the order of the calls. One that is cancelled may be stored all the same. Raises `InvalidMessage`
        with nothing stored; `Closed`; `LogFailed` if it could not be stored, and then for every append of about a second: after that,
        the next one tries again. Where what was answered for is not on the disk any more, none succeeds until the log is opened again.
        """
        self._check_open()
        if not messages:
            return self.next
        first = await self._commit.store(messages, [encode(message, stamps) for message in messages], time)
        self._compact_if_due()
        return first

    async def sync(self) -> None:
        """Return when all that can be read would survive a loss of power, whatever the settings say. Raises `LogFailed`, `Closed`."""
        self._check_open()
        await self._commit.sync()

    def read(self, offset: int, limit: int) -> list[Entry]:
        """Return up to ``limit`` entries from ``offset`` on; fewer only at the end. Offsets have gaps where the log was compacted.

        Raises `Evicted` if ``offset`` is below `first`; `CorruptLog` if the disk does not give back what was written; `Closed`.
        """
        self._check_open()
        return [Entry(offset, time, *decode(body)) for offset, time, body, _ in self._store.read(offset, limit, self.next)]

    def offset_at(self, time: float) -> int:
        """Return the first offset whose entry was appended at ``time`` (Unix seconds) or later; `next` if there is none."""
        self._check_open()
        return self._store.offset_at(time, self.next)

    async def trim(self, now: float) -> None:
        """Evict what is older than `LogSettings.keep_seconds` at ``now`` (Unix seconds), though nothing newer is appended."""
        self._check_open()
        self._commit.check()
        await self._commit.in_writer(self._store.evict, now)

    async def compact(self) -> None:
        """Compact all but the newest segment, whatever the settings say. Calls at the same time share one."""
        self._check_open()
        if self._compacting is None or self._compacting.done():
            self._compacting = asyncio.get_running_loop().create_task(self._compact())
        await asyncio.shield(self._compacting)

    async def close(self) -> None:
        """Store what is waiting, sync, and let go of everything. Any number of times.

        Raises `LogFailed`, having let go of everything, if the last sync failed, so that what was answered for may be lost.
        """
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        if self._compacting:
            await asyncio.wait([self._compacting])  # it sees that the log is ending, and stops
        await self._commit.close()

    def _check_open(self) -> None:
        if self._ending:
            msg = "the log is closed"
            raise Closed(msg)

    def _is_ending(self) -> bool:
        return self._ending is not None

    def _compact_if_due(self) -> None:
        """Compact when as much is new as a compaction has left: each record is then rewritten a logarithmic number of times."""
        segments = self._store.segments
        if not self.settings.compact or segments[-1].base == self._compacted_below or self._is_ending():
            return
        if self._compacting is None or self._compacting.done():
            self._compacted_below = segments[-1].base
            new = sum(segment.end for segment in segments[:-1] if not segment.generation)
            if new >= sum(segment.end for segment in segments[:-1] if segment.generation):
                self._compacting = asyncio.get_running_loop().create_task(self._compact_unasked())

    async def _compact_unasked(self) -> None:
        try:
            await self._compact()
        except (OSError, OutboxError):  # the log is whole as it is; the next segment that is sealed brings the next attempt
            log.exception("could not compact a log")

    async def _compact(self) -> None:
        segments = self._store.segments
        sealed = segments[:-1]
        try:
            newest = await asyncio.to_thread(newest_of_keys, segments, self.next, self._is_ending)
            while sealed:
                done = await asyncio.to_thread(rewrite, sealed, newest, self.settings.segment_bytes, self._is_ending)
                await self._commit.in_writer(self._store.replace, done.group, done.segment)
                sealed = sealed[len(done.group) :]
        except Stopped:
            pass
        except FileNotFoundError:
            log.debug("a compaction was overtaken by an eviction")


def _close_unwanted(opening: Future[Store]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
