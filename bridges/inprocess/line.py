"""The deliveries that wait in a mailbox, in their order."""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bridges.inprocess.delivery import Delivery
    from bridges.message import Message


class Line(Protocol):
    """Who is next. `FirstComeLine` and `bridges.inprocess.fairline.FairLine` are the two.

    Attributes:
        fresh: those who came without a priority, and are next in this order as long as ``placed`` is empty.
        placed: those with a place of their own. Both are always the same two objects; always empty where more is to be thought of.
    """

    fresh: deque[Delivery]
    placed: list[tuple[int, int, Delivery]]

    append: Callable[[Delivery], None]
    """Take in what has just arrived and has no priority."""

    def came(self, delivery: Delivery) -> None:
        """One begins to wait that `append` is not called for: it has a priority, it comes back, or it is dropped on its arrival."""

    def insert(self, delivery: Delivery) -> None:
        """Take in what has a place of its own: one with a priority, or one that was handed out before."""

    def pop(self) -> Delivery | None:
        """Take out the next, which may be over already; None if there is none that may go now."""

    def charge(self, delivery: Delivery) -> None:
        """One that was taken out is handed over, and not only parked behind its key: it waits no longer."""

    def evict(self, newcomer: Delivery, *, oldest: bool) -> Delivery:
        """Return whom to drop, the newcomer or one that is taken out for it."""

    def over(self, delivery: Delivery) -> None:
        """One that waits is over, and waits no longer: in the line or beside it, or one that `evict` has returned."""

    def admits(self, newcomer: Message, limit: int) -> bool:
        """Say whether a newcomer may come in although ``limit`` are waiting."""

    def ready(self) -> bool:
        """Say whether somebody may go now."""

    def lags(self) -> dict[str, int]:
        """Return how many wait of each tenant, in the line or beside it, where tenants are told apart."""

    def purge(self) -> None:
        """Take out all that are over."""

    def __iter__(self) -> Iterator[Delivery]: ...


class FirstComeLine:
    """First come, first served; by priority, and what was handed out before at its old place."""

    def __init__(self) -> None:
        self.fresh: deque[Delivery] = deque()
        self.append = self.fresh.append
        self.placed: list[tuple[int, int, Delivery]] = []

    def came(self, delivery: Delivery) -> None:
        """Keep no books."""

    def insert(self, delivery: Delivery) -> None:
        """Take in what has a place of its own."""
        heapq.heappush(self.placed, (-delivery.priority, delivery.number, delivery))

    def pop(self) -> Delivery | None:
        """Take out the next."""
        fresh = self.fresh
        if not self.placed:
            return fresh.popleft() if fresh else None
        if not (fresh and (0, fresh[0].number) < self.placed[0][:2]):
            return heapq.heappop(self.placed)[2]
        return fresh.popleft()

    def charge(self, delivery: Delivery) -> None:
        """Keep no books."""

    def evict(self, newcomer: Delivery, *, oldest: bool) -> Delivery:
        """Return the newcomer, or the oldest of those with the lowest priority; never one that is being retried."""
        if not oldest:
            return newcomer
        while self.fresh and self.fresh[0].over:
            self.fresh.popleft()
        others = [place for place in self.placed if not (place[2].over or place[2].reader)]
        if self.fresh:
            others.append((0, self.fresh[0].number, self.fresh[0]))
        lowest = max((place[0] for place in others), default=None)
        if lowest is None or -lowest > newcomer.priority:
            return newcomer
        victim = min(place for place in others if place[0] == lowest)
        if self.fresh and victim[2] is self.fresh[0]:
            return self.fresh.popleft()
        self.placed.remove(victim)
        heapq.heapify(self.placed)
        return victim[2]

    def pop_newest(self) -> Delivery | None:
        """Take out the newest of those without a priority; None if there is none."""
        while self.fresh:
            if not (delivery := self.fresh.pop()).over:
                return delivery
        return None

    def over(self, delivery: Delivery) -> None:
        """Pass over it when its turn comes."""

    def admits(self, newcomer: Message, limit: int) -> bool:
        """Nobody."""
        return False

    def ready(self) -> bool:
        """Say whether anybody waits."""
        return bool(self.fresh or self.placed)

    def lags(self) -> dict[str, int]:
        """Tell no tenants apart."""
        return {}

    def purge(self) -> None:
        """Take out all that are over."""
        kept = [one for one in self.fresh if not one.over]
        self.fresh.clear()
        self.fresh.extend(kept)
        self.placed[:] = [place for place in self.placed if not place[2].over]
        heapq.heapify(self.placed)

    def __iter__(self) -> Iterator[Delivery]:
        yield from self.fresh
        yield from (place[2] for place in self.placed)
