"""Key order in a mailbox: a key is with one reader at a time, and what must wait holds back what is behind it in its key. Pure."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridges.inprocess.delivery import Delivery, Reader


class _Place:
    """A key of which something is handed out, or has to wait."""

    __slots__ = ("blocked", "out", "parked", "reader")

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.out = 1
        self.blocked = 0
        self.parked: list[tuple[int, Delivery]] = []


class KeyOrder:
    """The keys that are not free. What it parks it gives to the caller again, in order, when its key is free for it."""

    def __init__(self) -> None:
        self._places: dict[str, _Place | Reader] = {}
        """A key of which one is out, and nothing else is to be known, has just its reader here."""

    def take(self, key: str, reader: Reader) -> bool:
        """Take a key that is entirely free; say whether it was."""
        if key in self._places:
            return False
        self._places[key] = reader
        return True

    def admit(self, delivery: Delivery, key: str, reader: Reader) -> tuple[Delivery | None, Delivery | None]:
        """Say what is handed out in the place of a delivery of this key, which is not free, and what is to be lined up next.

        That is the first of its key, or nothing while another reader has the key; the delivery is parked then.
        """
        place = self._place(key)
        if place.blocked or (place.out and place.reader is not reader):
            heapq.heappush(place.parked, (delivery.number, delivery))
            return None, None
        if place.parked:
            delivery = heapq.heappushpop(place.parked, (delivery.number, delivery))[1]
        if delivery.over:  # it was dropped while it was parked
            return None, self._next(place, key)
        place.reader = reader
        place.out += 1
        return delivery, heapq.heappop(place.parked)[1] if place.parked else None

    def free(self, key: str) -> Delivery | None:
        """One of this key is over; return what is to be lined up for it."""
        place = self._places[key]
        if not isinstance(place, _Place):
            del self._places[key]
            return None
        place.out -= 1
        return self._next(place, key)

    def put_back(self, delivery: Delivery, key: str, *, later: bool) -> Delivery | None:
        """One of this key comes back; ``later`` blocks the key until `unblock`. Return what is to be lined up."""
        place = self._place(key)
        place.out -= 1
        place.blocked += later
        heapq.heappush(place.parked, (delivery.number, delivery))
        return None if place.blocked else heapq.heappop(place.parked)[1]

    def unblock(self, key: str) -> Delivery | None:
        """What blocked the key may go now, or is gone; return what is to be lined up."""
        place = self._place(key)
        place.blocked -= 1
        return self._next(place, key)

    def nudge(self, key: str) -> Delivery | None:
        """One that was lined up for this key is gone, and was not handed out; return what is to be lined up in its place."""
        place = self._places.get(key)
        return self._next(place, key) if isinstance(place, _Place) else None

    def purge(self) -> list[Delivery]:
        """Let go of all that is parked and over; return what is to be lined up, in case that what was is gone."""
        for place in filter(_has_more, self._places.values()):
            place.parked = [parked for parked in place.parked if not parked[1].over]
            heapq.heapify(place.parked)
        return [delivery for key in list(self._places) if (delivery := self.nudge(key))]

    def __iter__(self) -> Iterator[Delivery]:
        """Go over all that is parked."""
        for place in filter(_has_more, self._places.values()):
            yield from (parked[1] for parked in place.parked)

    def _place(self, key: str) -> _Place:
        place = self._places[key]
        if not isinstance(place, _Place):
            place = self._places[key] = _Place(place)
        return place

    def _next(self, place: _Place, key: str) -> Delivery | None:
        if place.out or place.blocked:
            return None
        while place.parked:
            delivery = heapq.heappop(place.parked)[1]
            if not delivery.over:
                return delivery
        del self._places[key]
        return None


def _has_more(place: _Place | Reader) -> TypeGuard[_Place]:
    return isinstance(place, _Place)
