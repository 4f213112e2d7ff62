"""A bounded buffer of deliveries. One belongs to a subscription, or to all members of a queue group."""

from __future__ import annotations

import time
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from bridges.inprocess.custody import Custody
from bridges.inprocess.delivery import made
from bridges.inprocess.settings import Drop, Policy

if TYPE_CHECKING:
    from bridges.inprocess.delivery import Delivery
    from bridges.inprocess.feed import Feed
    from bridges.inprocess.house import House
    from bridges.inprocess.posting import Posting
    from bridges.inprocess.settings import Settings
    from bridges.inprocess.spill import Spill
    from bridges.inprocess.stamps import Stamps
    from bridges.inprocess.stats import Counts
    from bridges.message import Message


class Mailbox(Custody):
    """The buffer of one subscription, or of all the members of one queue group.

    Attributes:
        size: how many may wait here; 0 while what comes goes behind the buffer. Tenants that have less than their share of a buffer
            that blocks may have more in it, but never more than twice the size.
        spill: what takes in what there is no room for, if it is to be kept; the `backlog` then.
        feed: what reads a log, if it does, and has nothing put into it; the `backlog` then.
        numbers: how many ever came here.
    """

    def __init__(self, name: str, settings: Settings, house: House) -> None:
        super().__init__(name, settings, house)
        self.size = settings.buffer
        self.spill: Spill | None = None
        self.feed: Feed | None = None
        self.numbers = 0
        self._shares = settings.tenants is not None and settings.policy == Policy.BLOCK
        self._append = self._line.append
        self._filter = settings.filter

    @property
    def unacknowledged(self) -> int:
        """How many are with readers."""
        return len(self._out)

    @property
    def lags(self) -> dict[str, int]:
        """How many wait of each tenant, for their first turn or for another, where the mailbox is fair between tenants."""
        return self._line.lags()

    @property
    def idle(self) -> bool:
        """Whether there is certainly nothing to take."""
        return not (self.closed or self._line.ready() or (self.backlog is not None and self.backlog.ready))

    def put(self, message: Message, topic: Counts, now: float) -> Delivery | None:
        """Take in a message, whether there is room or not; None if the filter keeps it out."""
        if self._filter is not None and not self.wants(message, topic):
            return None
        topic.published += 1
        self.queued += 1
        self.numbers = number = self.numbers + 1
        delivery = made(message, self, topic, number, now)
        self._append(delivery)
        if self.waiting.readers:
            self.waiting.wake()
        return delivery

    def put_by(self, terms: Stamps, message: Message, topic: Counts) -> Delivery | None:
        """Take in a message that has a priority or expires."""
        if not self.wants(message, topic):
            return None
        topic.published += 1
        return self.line_up(terms, message, topic)

    def line_up(self, terms: Stamps, message: Message, topic: Counts) -> Delivery:
        """Take in a message that is counted as published already."""
        delivery = self._made(message, topic)
        self._place(delivery, terms)
        if self.waiting.readers:
            self.waiting.wake()
        return delivery

    def let_in(self, posting: Posting) -> Delivery | None:
        """Take in a message that the filter wants; None if there is no room."""
        if not self.admits(posting.message):
            return None
        posting.route.counts.published += 1
        return self.line_up(posting.its, posting.message, posting.route.counts)

    def displace(self, terms: Stamps, message: Message, topic: Counts) -> Delivery:
        """Take in a message that the filter wants where there is no room, by dropping it or another."""
        topic.published += 1
        delivery = self._made(message, topic)
        delivery.own.priority = terms.priority
        victim = self._line.evict(delivery, oldest=self.settings.policy == Policy.DROP_OLDEST)
        if victim is not delivery:
            self._place(delivery, terms)
        else:
            self._line.came(delivery)
        self.drop(victim, Drop.SHED if self.settings.policy == Policy.SHED else Drop.FULL)
        return delivery

    def admits(self, message: Message) -> bool:
        """Say whether there is room for a message."""
        return self.queued < self.size or (self._shares and self.queued < 2 * self.size and self._line.admits(message, self.size))

    def wants(self, message: Message, topic: Counts) -> bool:
        """Ask the filter, if there is one. If it raises, the message is dropped."""
        try:
            return self._filter is None or self._filter(message)
        except Exception as problem:  # noqa: BLE001 -- the filter is foreign; what it raises is logged there
            self.drops.filter_raised(message, topic, problem)
            return False

    def _made(self, message: Message, topic: Counts) -> Delivery:
        self.queued += 1
        self.numbers += 1
        return made(message, self, topic, self.numbers, monotonic())

    def _place(self, delivery: Delivery, terms: Stamps) -> None:
        if terms.expires is not None:
            own = delivery.own
            own.expires = monotonic() + terms.expires - time.time()
            own.timer = self.house.timers.at(own.expires, partial(self._expire, delivery))
        if terms.priority:
            delivery.own.priority = terms.priority
            self._line.came(delivery)
            self._shelf.insert(delivery)
        else:
            self._append(delivery)

    def _expire(self, delivery: Delivery) -> None:
        delivery.own.timer = None
        self.drop(delivery, Drop.EXPIRED)
