"""How far each durable subscription has come in its log: known here, and saved in a `CursorStore` soon after each acknowledgement.

What is saved is never ahead of what a loss of power would leave of the log: an offset that is over today may not be there tomorrow, and
be another message's the day after. So the log is synced first.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Final

from bridges.deadline import happens
from bridges.errors import LogFailed, told
from bridges.inprocess.log import Place
from bridges.inprocess.runs import clipped
from bridges.ports import Rejected

if TYPE_CHECKING:
    from bridges.inprocess.feed import Feed
    from bridges.inprocess.log import CursorStore, Log
    from bridges.ports import Outcome

log = logging.getLogger("outboxd.inprocess")

_AGAIN: Final = 1.0
"""Seconds after a failure before it is tried again, unless somebody waits for it."""
_MANY: Final = 1000
_SHORT: Final = 0.0005
"""Seconds that are not worth a pause: a sync that had nothing to do."""


class Progress:
    """The durable subscriptions of one log, by name.

    Attributes:
        store: where their places are saved.
        unsaved: those of which it is not saved yet where they begin.
    """

    def __init__(self, kept: Log, store: CursorStore) -> None:
        self.store = store
        self.unsaved: set[Cursor] = set()
        self._log = kept
        self._end = kept.next
        """Where the log ended when it was opened: nothing saved before can be behind it."""
        self._cursors: dict[str, Cursor] = {}

    def of(self, name: str) -> Cursor:
        """Return the one of this name."""
        if name not in self._cursors:
            self._cursors[name] = Cursor(name, self)
        return self._cursors[name]

    def load(self, name: str) -> tuple[Place, bool] | None:
        """Return what was saved before the log was opened, as far as it is in it, and whether it was; None for a name that is new."""
        saved = self.store.load(name)
        if saved is None:
            return None
        if max(saved.below, *(end for _, end in saved.done), *(offset + 1 for offset in saved.dead), 0) <= self._end:
            return saved, True
        log.warning("%s: its place is behind the end of the log, %d, which has lost something; it goes on from there", name, self._end)
        dead = frozenset(offset for offset in saved.dead if offset < self._end)
        return Place(min(saved.below, self._end), tuple(clipped(saved.done, 0, self._end)), dead), False

    async def save(self, cursor: Cursor, place: Place) -> float:
        """Save a place, with the log synced up to it; return how many seconds that sync took."""
        began = monotonic()
        await self._log.sync()
        took = monotonic() - began
        await self.store.save(cursor.name, place)
        self.unsaved.discard(cursor)
        return took

    async def begun(self) -> None:
        """Return when it is saved where each of them begins. Raises `LogFailed` if that could not be."""
        while self.unsaved:
            await next(iter(self.unsaved)).begun()

    async def settled(self) -> None:
        """Wait until everything that is over is saved."""
        for cursor in self._cursors.values():
            await cursor.settled()


class Cursor:
    """How far one durable subscription has come: what is over is saved many at a time. What is lost of that comes again.

    Attributes:
        name: the durable name.
        feed: what reads the log by this name, or read it last; None if nothing has yet.
    """

    def __init__(self, name: str, progress: Progress) -> None:
        self.name = name
        self._progress = progress
        self.feed: Feed | None = None
        self._dead: set[int] = set()
        self._saving: asyncio.Task[None] | None = None
        self._saved: asyncio.Future[None] | None = None
        self._changed = self._new = self._failing = False
        self._again: asyncio.TimerHandle | None = None
        self._hurry = asyncio.Event()

    def load(self) -> Place | None:
        """Return how far it has come; None for a name that is new, or forgotten.

        Its place in this process counts, if it has one: what is saved may be a moment older. Its letters are here then, too.
        """
        if self.feed is not None and not self._forgotten:
            return self.feed.position
        self._dead.clear()
        saved = self._progress.load(self.name)
        self._new = saved is None or not saved[1]
        if saved is None:
            return None
        self._dead = set(saved[0].dead)
        return saved[0]

    @property
    def _forgotten(self) -> bool:
        """Whether what was saved is there no more: its store was told that the subscription is gone for good."""
        return self not in self._progress.unsaved and self._progress.store.load(self.name) is None

    def follow(self, feed: Feed) -> None:
        """Save where this feed is from now on: at once, if where it begins is not saved."""
        self.feed = feed
        if self._new:
            self._new = False
            self._progress.unsaved.add(self)
            self.changed()

    def over(self, offset: int, outcome: Outcome) -> None:
        """An offset is over. One that became a dead letter is over again when its letter is gone."""
        if isinstance(outcome, Rejected):
            self._dead.add(offset)
        else:
            self._dead.discard(offset)
        self.changed()

    def changed(self) -> None:
        """Something is over."""
        self._changed = True
        if self._again is None:
            self._save_soon()

    def _save_soon(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._changed and self._saving is None:
            self._saving = asyncio.get_running_loop().create_task(self._save())

    async def begun(self) -> None:
        """Return when it was saved. Raises `LogFailed` if it could not be; the next call tries again."""
        if self._saved is None:
            self._saved = asyncio.get_running_loop().create_future()
        if self._saving is None:
            self._changed = True
            self._save_soon()
        await asyncio.shield(self._saved)

    async def settled(self) -> None:
        """Wait until everything that is over is saved, or could not be: from now on nothing is put off, or tried again by itself."""
        self._hurry.set()
        self._save_soon()
        while self._saving is not None:
            await asyncio.shield(self._saving)

    async def _save(self) -> None:
        try:
            while self._changed and self.feed is not None:
                self._changed = False
                if self.feed.closed and self._forgotten:
                    break
                began = monotonic()
                place = self.feed.position._replace(dead=frozenset(self._dead))
                spent = await self._progress.save(self, place)
                self._tell(None)
                if self._failing:
                    log.warning("%s: its place in the log is saved again", self.name)
                    self._failing = False
                if len(place.done) > _MANY:  # one that waits long leaves much behind it to tell of
                    spent = monotonic() - began
                if spent > _SHORT:  # a tenth of the time, or once a second, is enough for telling, and for syncs that nobody else asks for
                    await happens(self._hurry, min(1.0, 10 * spent))
        except Exception as problem:  # whatever a store raises: it is tried again; what is lost comes again
            self._changed = True
            if not self._hurry.is_set():
                self._again = asyncio.get_running_loop().call_later(_AGAIN, self._save_soon)
            if not self._failing:  # once: what acknowledges goes on, and the disk that is full is the same
                log.exception("%s: its place in the log was not saved; what it acknowledged may come again", self.name)
                self._failing = True
            self._tell(problem)
        finally:
            self._saving = None

    def _tell(self, problem: Exception | None) -> None:
        saved, self._saved = self._saved, None
        if saved is None:
            return
        if problem is None:
            saved.set_result(None)
        else:
            error = LogFailed(f"it could not be saved where {self.name!r} begins: {told(problem)}")
            error.__cause__ = problem
            saved.set_exception(error)
