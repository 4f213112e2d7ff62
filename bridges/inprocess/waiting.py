"""Who waits at a mailbox: readers for something to take, publishers for room."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridges.inprocess.delivery import Reader
    from bridges.inprocess.entry import Entry


class Waiting:
    """Readers are woken one by one, so that a message wakes one of them; publishers are let in, so that none can go before them.

    Args:
        in_order: whether no publisher is let in before one that came earlier; False where there can be room for one and not for another.
    """

    def __init__(self, *, in_order: bool = True) -> None:
        self.readers: list[tuple[asyncio.Future[None], Reader]] = []
        self.publishers: OrderedDict[Entry, None] | None = None
        self._in_order = in_order

    async def for_reader(self, reader: Reader) -> None:
        """Wait until there may be something that ``reader`` may take."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (woken, reader)
        self.readers.append(place)
        try:
            await woken
        except asyncio.CancelledError:
            if place in self.readers:
                self.readers.remove(place)
            if not woken.cancelled():  # woken and cancelled at once: the next one must not sleep on
                self.wake()
            raise

    def wake(self) -> None:
        """Wake the first reader that may take something."""
        place = 0
        while place < len(self.readers):
            woken, reader = self.readers[place]
            if reader.out >= reader.prefetch:
                place += 1
                continue
            del self.readers[place]
            if not woken.done():  # or it is cancelled, and does not know yet
                woken.set_result(None)
                return

    def for_room(self, entry: Entry) -> None:
        """Put a publish in line, from now on: it is let in when there is room for it and for those that came before."""
        if self.publishers is None:
            self.publishers = OrderedDict()
        self.publishers[entry] = None

    def give_up(self, entry: Entry) -> None:
        """A publish waits no longer."""
        if self.publishers:
            self.publishers.pop(entry, None)

    def make_room(self) -> None:
        """Let publishers in, as far as there is room."""
        publishers = self.publishers
        while publishers and self._in_order:
            if not _is_in(next(iter(publishers))):
                return
            publishers.popitem(last=False)
        for entry in list(publishers or ()):
            if _is_in(entry):
                self.give_up(entry)

    def wake_all(self) -> None:
        """Wake everybody: they look for themselves what has changed."""
        readers, self.readers = self.readers, []
        for woken, _ in readers:
            if not woken.done():
                woken.set_result(None)
        self.make_room()


def _is_in(entry: Entry) -> bool:
    """Let a publish in if that can be; say whether it waits no longer: it may be cancelled, and not know yet."""
    return entry.entered.done() or entry.enter()
