"""What waits for readers, what they have, and what becomes of it: taking, acknowledging, giving back, giving up, dropping."""

from __future__ import annotations

import math
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from bridges.inprocess.delivery import State
from bridges.inprocess.drops import OUTCOMES, Drops
from bridges.inprocess.line import FirstComeLine
from bridges.inprocess.redelivery import Redelivery
from bridges.inprocess.settings import Drop, Policy
from bridges.inprocess.shelf import Shelf
from bridges.inprocess.stats import Counts
from bridges.inprocess.timers import Timer
from bridges.inprocess.waiting import Waiting
from bridges.ports import PUBLISHED, Outcome, Reason, Rejected

if TYPE_CHECKING:
    from uuid import UUID

    from bridges.inprocess.backlog import Backlog
    from bridges.inprocess.delivery import Delivery, Reader
    from bridges.inprocess.house import House
    from bridges.inprocess.settings import Settings

_DELIVERED: Final = State.DELIVERED
_DONE: Final = State.DONE


class Custody:
    """The lower half of a mailbox: from its line to the end of each delivery.

    Attributes:
        queued: how many wait here, for their first turn or for another.
        closed: whether nothing is delivered any more.
        counts: what became of them.
        backlog: what is behind the buffer, if anything is.
        waiting: who waits here.
    """

    def __init__(self, name: str, settings: Settings, house: House) -> None:
        self.name = name
        self.settings = settings
        self.house = house
        self.queued = 0
        self.closed = False
        self.counts = Counts()
        self.drops = Drops(name, self.counts, settings.on_drop)
        self.waiting = Waiting(in_order=settings.tenants is None or settings.policy != Policy.BLOCK)
        self.backlog: Backlog | None = None
        self._line = settings.tenants.line(name, house.timers, self.waiting.wake) if settings.tenants else FirstComeLine()
        self._fresh, self._placed = self._line.fresh, self._line.placed
        self._shelf = Shelf(self._line, self.waiting.wake)
        self._free_key = self._shelf.free
        self._out: dict[Delivery, None] = {}
        self._deadline = settings.ack_deadline
        self._watch: Timer | float | None = None if self._deadline else math.inf

    def take(self, reader: Reader, finished: Delivery | None = None) -> Delivery | None:
        """Hand the next delivery to a reader; None if there is none, or the reader has as many as it may have.

        What it has finished is acknowledged in the same step: this is where the time of a busy broker goes.
        """
        now = monotonic()
        if finished is not None:
            self.acknowledge(finished, now)
        if reader.out >= reader.prefetch:
            return None
        delivery = None
        if self._fresh and not self._placed:  # the plain way, without a call
            delivery = self._fresh.popleft()
            if delivery.details is not None or delivery.message.key is not None:
                delivery = self._in_time(self._shelf.sift(delivery, reader), now)
        if delivery is None and (delivery := self._pop(reader, now)) is None:
            return None
        self.queued -= 1
        reader.out += 1
        counts = self.counts
        if delivery.reader is None:
            counts.delivered += 1
            delivery.topic_counts.delivered += 1
            counts.queue_seconds += now - delivery.queued_at
            handed = delivery
        else:
            handed = Redelivery(delivery)
            counts.redelivered += 1
            delivery.topic_counts.redelivered += 1
        delivery.reader = reader
        delivery.taken_at = now
        delivery.state = _DELIVERED
        self._out[delivery] = None
        if delivery.details is not None:
            delivery.details.stop_timer()
        if self._watch is None:
            self._watch_from(now)
        if self.waiting.publishers or self.waiting.readers:
            self._pass_on()
        return handed

    def _pop(self, reader: Reader, now: float) -> Delivery | None:
        while True:
            delivery = self._shelf.pop(reader)
            if delivery is None:
                if self.backlog is None or not self.backlog.refill():
                    return None
            elif self._in_time(delivery, now):
                self._line.charge(delivery)
                return delivery

    def _in_time(self, delivery: Delivery | None, now: float) -> Delivery | None:
        """Return what was taken out to be handed over; None if it has expired and its timer had no chance to say so: it is dropped."""
        if delivery is None or not delivery.expired(now):
            return delivery
        self._free(delivery)
        self.drop(delivery, Drop.EXPIRED)
        return None

    def _pass_on(self) -> None:
        """One was taken: there is room for another, and perhaps something for another reader, in line or behind the buffer."""
        if self.waiting.publishers:
            self.waiting.make_room()
        if self._line.ready() or (self.backlog is not None and self.backlog.ready):
            self.waiting.wake()

    def acknowledge(self, delivery: Delivery, now: float) -> None:
        """A reader is done with a delivery."""
        if delivery.state is not _DELIVERED:
            if not delivery.over:
                self.finish(delivery, PUBLISHED)
            return
        del self._out[delivery]
        delivery.state = _DONE
        delivery.reader.out -= 1  # type: ignore[union-attr]  # one that is out has a reader
        counts = self.counts
        counts.done += 1
        counts.handler_seconds += now - delivery.taken_at
        if delivery.message.key is not None:
            self._free_key(delivery.message.key)
        if delivery.details is not None:
            delivery.end(_DONE, PUBLISHED)
            if self.backlog is not None and delivery.details.offset is not None:
                self.backlog.done(delivery.details.offset, PUBLISHED)
        if self.waiting.readers:
            self.waiting.wake()

    def finish(self, delivery: Delivery, outcome: Outcome) -> None:
        """A reader is done with a delivery, perhaps so late that it was to be delivered again. Nothing if none has had it."""
        if delivery.state is _DELIVERED:
            self._take_in(delivery)
            self._free(delivery)
        elif delivery.reader is not None:
            self._pass_over(delivery)
        else:
            return
        if outcome is PUBLISHED:
            self.counts.done += 1
            delivery.end(_DONE, outcome)
        else:
            self.counts.dead += 1
            delivery.topic_counts.dead += 1
            delivery.end(State.DEAD, outcome)
        answered = self._answered(delivery)  # which whoever reads a log knows until the end is told
        self._end(delivery, outcome)
        if isinstance(outcome, Rejected) and not answered:
            self.house.dead_letters.bury(delivery, outcome)  # which may let go of it at once: its end is known by then

    def give_back(self, delivery: Delivery, delay: float | None, *, failed: bool, why: str = "") -> None:
        """Put a delivery that is out back to its place; end it if it has expired, or after its last attempt."""
        if failed:
            delivery.own.attempts += 1
            retry = self.settings.retry
            if retry.exhausted(delivery.attempts):
                self.finish(delivery, Rejected(Reason.ATTEMPTS, f"attempt {delivery.attempts} of {retry.max_attempts} failed{why}"))
                return
            delay = retry.delay(delivery.attempts) if delay is None else delay
        if delivery.expired(monotonic()):
            self.drop(delivery, Drop.EXPIRED)
            return
        self._take_in(delivery)
        self.queued += 1
        self._line.came(delivery)
        delivery.state = State.RETRYING if failed or delay else State.QUEUED
        if delay:
            delivery.own.timer = self.house.timers.at(monotonic() + delay, partial(self._retry, delivery))
        self._shelf.put_back(delivery, later=bool(delay))

    def extend(self, delivery: Delivery) -> None:
        """The deadline of a delivery that is out begins anew."""
        delivery.own.alive_at = monotonic()
        del self._out[delivery]
        self._out[delivery] = None

    def drop(self, delivery: Delivery, why: Drop) -> None:
        """A delivery that waits is not to be delivered (again); one that is out ends as not acknowledged."""
        if delivery.state is _DELIVERED:
            self._take_in(delivery)
            self._free(delivery)
        else:
            self._pass_over(delivery)
        delivery.end(State.DROPPED, OUTCOMES[why])
        if delivery.reader is None:
            self.drops.count(delivery.message, delivery.topic_counts, why)
        if why is not Drop.ENDED:
            self._end(delivery, OUTCOMES[why])

    def everything(self) -> list[Delivery]:
        """Return all that is here and not over."""
        return [*self._shelf, *self._out]

    def state_of(self, message_id: UUID) -> State | None:
        """Return where a message is that is here, or behind the buffer and near, and not over; None if there is none."""
        here = next((one.state for one in self.everything() if one.message.id == message_id), None)
        return State.QUEUED if here is None and self.backlog is not None and self.backlog.holds(message_id) else here

    def leave(self, reader: Reader) -> None:
        """Give back, in order, all that a reader has not ended."""
        for delivery in [one for one in self._out if one.reader is reader]:
            self.give_back(delivery, 0.0, failed=False)
        self.waiting.wake_all()

    def close(self) -> None:
        """End every delivery as not acknowledged, and wake all who wait."""
        self.closed = True
        for delivery in self.everything():
            self.drop(delivery, Drop.ENDED)
        if isinstance(self._watch, Timer):
            self._watch.cancel()
        if self.backlog is not None:
            self.backlog.close()
        self.waiting.wake_all()

    def _take_in(self, delivery: Delivery) -> None:
        del self._out[delivery]
        self.counts.handler_seconds += monotonic() - delivery.taken_at
        delivery.reader.out -= 1  # type: ignore[union-attr]  # one that is out has a reader

    def _free(self, delivery: Delivery) -> None:
        if delivery.message.key is not None:
            self._free_key(delivery.message.key)

    def _answered(self, delivery: Delivery) -> bool:
        """Say whether its publisher keeps it if it is rejected."""
        return delivery.own.answered or (
            self.backlog is not None and delivery.offset is not None and self.backlog.answered(delivery.offset)
        )

    def _end(self, delivery: Delivery, outcome: Outcome) -> None:
        if self.backlog is not None and delivery.offset is not None:
            self.backlog.done(delivery.offset, outcome)
        if self.waiting.readers:
            self.waiting.wake()

    def _pass_over(self, delivery: Delivery) -> None:
        self.queued -= 1
        self._shelf.pass_over(delivery, self.queued)
        if self.waiting.publishers:
            self.waiting.make_room()

    def _retry(self, delivery: Delivery) -> None:
        if delivery.expired(monotonic()):
            self.drop(delivery, Drop.EXPIRED)
        else:
            self._shelf.due(delivery)

    def _watch_from(self, begin: float) -> None:
        assert self._deadline is not None
        self._watch = self.house.timers.at(begin + self._deadline, self._check_deadlines)

    def _check_deadlines(self) -> None:
        self._watch = None
        deadline = self._deadline or 0.0
        now = monotonic()
        for delivery in list(self._out):
            began = max(delivery.taken_at, delivery.details.alive_at if delivery.details is not None else 0.0)
            if began + deadline > now:
                self._watch_from(began)
                break
            self.give_back(delivery, 0.0, failed=True, why=f": not acknowledged within {deadline:g} s")
