"""Who waits at a mailbox: readers for something to take, publishers for room."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridges.inprocess.delivery import Reader


class Waiting:
    """Both are woken one by one, so that a message wakes one reader, and room wakes one publisher."""

    def __init__(self) -> None:
        self.readers: list[tuple[asyncio.Future[None], Reader]] = []
        self.publishers: deque[asyncio.Future[None]] | None = None

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
        for place, (woken, reader) in enumerate(self.readers):
            if reader.out < reader.prefetch:
                del self.readers[place]
                if not woken.done():
                    woken.set_result(None)
                    return
                break
        else:
            return
        self.wake()

    async def for_room(self) -> None:
        """Wait until there may be room."""
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.publishers is None:
            self.publishers = deque()
        self.publishers.append(room)
        try:
            await room
        except asyncio.CancelledError:
            if not room.cancelled():
                self.make_room()
            elif room in self.publishers:
                self.publishers.remove(room)
            raise

    def make_room(self) -> None:
        """Wake the first publisher."""
        while self.publishers:
            room = self.publishers.popleft()
            if not room.done():
                room.set_result(None)
                return

    def wake_all(self) -> None:
        """Wake everybody: they look for themselves what has changed."""
        readers, self.readers = self.readers, []
        for woken, _ in readers:
            if not woken.done():
                woken.set_result(None)
        while self.publishers:
            self.make_room()
