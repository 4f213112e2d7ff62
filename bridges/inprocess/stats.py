"""What the broker counts: by topic and by subscription, so cheaply that it is always on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bridges.inprocess.mailbox import Mailbox

MAX_TOPICS: Final = 10_000
"""Topics with figures of their own; those that come after them share one line, so that memory stays bounded."""
OTHERS: Final = "(others)"


class Counts:
    """Counters of one topic, or of one subscription; copies of a message count one by one.

    Those of a subscription have as published only what never came into its mailbox, which counts the others itself.
    """

    __slots__ = (
        "dead",
        "delivered",
        "done",
        "dropped",
        "handler_seconds",
        "published",
        "queue_seconds",
        "redelivered",
    )

    def __init__(self) -> None:
        self.published = self.delivered = self.dropped = self.redelivered = self.dead = self.done = 0
        self.handler_seconds = self.queue_seconds = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicFigures:
    """What became of the messages of one topic, each copy for a subscription counted by itself.

    ``published == delivered + dropped + queued`` at every moment, so ``published == delivered + dropped`` once all was read.

    Attributes:
        published: copies addressed to subscriptions: one for each subscription, or queue group, that a message reached.
        delivered: handed to a reader; once, however often it was handed over again.
        dropped: never handed over: no room, expired, or the subscription ended.
        queued: waiting to be handed over for the first time.
        redelivered: handed over again.
        dead: given up: dead letters.
    """

    published: int
    delivered: int
    dropped: int
    queued: int
    redelivered: int
    dead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionFigures:
    """What became of the messages of one subscription or queue group.

    Attributes:
        published: messages addressed to it.
        delivered: handed to a reader, each message once.
        dropped: never handed over.
        redelivered: handed over again.
        done: acknowledged.
        dead: given up.
        lag: not yet acknowledged: waiting in memory, in a log, for a retry, or with a reader.
        unacknowledged: with a reader.
        queue_seconds: from publish, or the time it was due, to handing over, summed over all that were delivered. For what was read from
            a log that is by the wall clock, and the time until a restart is part of it.
        handler_seconds: from handing over until the reader acknowledged it or gave it back, summed.
        tenants: how many wait of each tenant, for their first turn or for a retry, where the subscription is fair between tenants.
    """

    published: int
    delivered: int
    dropped: int
    redelivered: int
    done: int
    dead: int
    lag: int
    unacknowledged: int
    queue_seconds: float
    handler_seconds: float
    tenants: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A copy of every figure of a broker.

    Attributes:
        topics: by topic.
        subscriptions: by the name of the subscription, or queue group.
        ended: of those that have ended, and had only a name made for them, all together.
        scheduled: messages that wait for their time.
        dead_letters: those that are kept.
        dead_letters_overflowed: those that were let go because there was no room for more.
    """

    topics: dict[str, TopicFigures]
    subscriptions: dict[str, SubscriptionFigures]
    ended: SubscriptionFigures
    scheduled: int
    dead_letters: int
    dead_letters_overflowed: int


def figures_of(box: Mailbox) -> SubscriptionFigures:
    """Return a copy of the figures of a mailbox."""
    return replace(
        ended_figures(box.counts),
        published=box.numbers + box.counts.published,
        lag=box.queued + box.unacknowledged + (box.backlog.lag if box.backlog is not None else 0),
        unacknowledged=box.unacknowledged,
        tenants=box.lags,
    )


def ended_figures(counts: Counts) -> SubscriptionFigures:
    """Return a copy of what was counted where nothing is left that waits."""
    return SubscriptionFigures(
        published=counts.published,
        delivered=counts.delivered,
        dropped=counts.dropped,
        redelivered=counts.redelivered,
        done=counts.done,
        dead=counts.dead,
        lag=0,
        unacknowledged=0,
        queue_seconds=counts.queue_seconds,
        handler_seconds=counts.handler_seconds,
        tenants={},
    )


def add_ended(box: Mailbox, ended: Counts) -> None:
    """Add what a mailbox that is closed has counted to what others have.

    It counts there from now on, too: what was on its way to its spill when it was closed is dropped only when the log has answered.
    """
    for name in Counts.__slots__:
        setattr(ended, name, getattr(ended, name) + getattr(box.counts, name))
    ended.published += box.numbers
    box.counts = box.drops.counts = ended


class TopicCounts:
    """The counters of each topic."""

    def __init__(self) -> None:
        self._counts: dict[str, Counts] = {}

    def of(self, topic: str) -> Counts:
        """Return the counters of a topic."""
        counts = self._counts.get(topic)
        if counts is None:
            name = topic if len(self._counts) < MAX_TOPICS else OTHERS
            counts = self._counts.setdefault(name, Counts())
        return counts

    def figures(self) -> dict[str, TopicFigures]:
        """Return a copy of all that were published to."""
        return {
            topic: TopicFigures(
                published=counts.published,
                delivered=counts.delivered,
                dropped=counts.dropped,
                queued=counts.published - counts.delivered - counts.dropped,
                redelivered=counts.redelivered,
                dead=counts.dead,
            )
            for topic, counts in self._counts.items()
            if counts.published
        }
