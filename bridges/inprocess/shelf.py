"""Everything that waits in a mailbox: what is lined up, what its key holds back, and what waits for the time of its retry.

What ends while it waits is only marked as over, and passed over when its turn comes; from time to time all such are cleared away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridges.inprocess.delivery import State
from bridges.inprocess.keys import KeyOrder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bridges.inprocess.delivery import Delivery, Reader
    from bridges.inprocess.line import Line


class Shelf:
    """A line, and what stands beside it. ``wake`` is called when something new may be taken that did not just arrive."""

    def __init__(self, line: Line, wake: Callable[[], None]) -> None:
        self.line = line
        self.append = line.append
        self._keys = KeyOrder()
        self._later: dict[Delivery, None] = {}
        self._wake = wake
        self._stale = 0

    def __iter__(self) -> Iterator[Delivery]:
        for part in (self.line, self._keys, list(self._later)):
            for delivery in part:
                if not delivery.over:
                    yield delivery

    def pop(self, reader: Reader) -> Delivery | None:
        """Take out the next that a reader may have; None if there is none."""
        while (delivery := self.line.pop()) is not None:
            if delivery.over or delivery.message.key is not None:
                delivery = self.sift(delivery, reader)
            if delivery is not None:
                return delivery
        return None

    def sift(self, delivery: Delivery, reader: Reader) -> Delivery | None:
        """Return what a reader may have in the place of one that was next; None if there is nothing in its place."""
        key = delivery.message.key
        if key is None:
            return None if delivery.over else delivery
        if delivery.over:
            self.insert(self._keys.nudge(key))
            return None
        if self._keys.take(key, reader):
            return delivery
        admitted, following = self._keys.admit(delivery, key, reader)
        if following is not None:
            self.insert(following)
        return admitted

    def insert(self, delivery: Delivery | None) -> None:
        """Line up what has a place of its own, if there is anything."""
        if delivery is not None:
            self.line.insert(delivery)
            self._wake()

    def free(self, key: str) -> None:
        """One of this key that was out is over."""
        following = self._keys.free(key)
        if following is not None:
            self.insert(following)

    def put_back(self, delivery: Delivery, *, later: bool) -> None:
        """One that was out comes back to its place; ``later`` holds it, and its key, until `due`."""
        key = delivery.message.key
        if key is not None:
            self.insert(self._keys.put_back(delivery, key, later=later))
        elif later:
            self._later[delivery] = None
        else:
            self.insert(delivery)

    def due(self, delivery: Delivery) -> None:
        """The time of a retry has come."""
        delivery.own.timer = None
        key = delivery.message.key
        if key is not None:
            self.insert(self._keys.unblock(key))
        elif self._later.pop(delivery, delivery) is None:
            self.insert(delivery)

    def pass_over(self, delivery: Delivery, queued: int) -> None:
        """One that waits is over, wherever it stands; ``queued`` are left."""
        key = delivery.message.key
        waits = delivery.state is State.RETRYING and delivery.own.timer is not None
        delivery.state = State.DROPPED
        if waits:
            delivery.own.stop_timer()
            self._later.pop(delivery, None)
            if key is not None:
                self.insert(self._keys.unblock(key))
        elif key is not None:
            self.insert(self._keys.nudge(key))
        self.line.over(delivery)
        self._stale += 1
        if self._stale > 64 + 2 * queued:
            self._stale = 0
            self.line.purge()
            for following in self._keys.purge():
                self.insert(following)
