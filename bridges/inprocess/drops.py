"""What is dropped is counted, told to whoever asked for it, and answered to its publisher."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from bridges.inprocess.settings import Drop
from bridges.ports import PUBLISHED, Reason, Released

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridges.inprocess.stats import Counts
    from bridges.message import Message
    from bridges.ports import Outcome

log = logging.getLogger("outboxd.inprocess")

OUTCOMES: Final[dict[Drop, Outcome]] = {
    Drop.FULL: Released(Reason.FULL, "dropped: the buffer of the subscription is full"),
    Drop.SHED: PUBLISHED,
    Drop.EXPIRED: Released(Reason.EXPIRED, "dropped: its time to live is over"),
    Drop.ENDED: Released(Reason.UNAVAILABLE, "the subscription ended before it acknowledged"),
    Drop.WITHDRAWN: Released(Reason.TIMEOUT, "its publisher waits no longer"),
    Drop.EVICTED: Released(Reason.FULL, "dropped: the log of the subscription has evicted it"),
}
"""What the publisher of a dropped message is told."""


class Drops:
    """The drops of one mailbox.

    Attributes:
        counts: where they are counted.
    """

    def __init__(self, name: str, counts: Counts, on_drop: Callable[[Message, Drop], None] | None) -> None:
        self._name = name
        self.counts = counts
        self._on_drop = on_drop

    def count(self, message: Message, topic: Counts, why: Drop) -> None:
        """Count a message that is dropped and was never handed over, and tell."""
        topic.dropped += 1
        self.counts.dropped += 1
        self.tell(message, why)

    def never_came(self, message: Message, topic: Counts, why: Drop) -> None:
        """Count a message that is dropped before there was a delivery of it, and tell."""
        topic.published += 1
        self.counts.published += 1
        self.count(message, topic, why)

    def tell(self, message: Message, why: Drop) -> None:
        """Call ``on_drop``. What it raises is logged, and harms nobody."""
        if self._on_drop is not None:
            try:
                self._on_drop(message, why)
            except Exception:  # it is the application's: whatever it raises must not reach a publisher, or another subscription
                log.exception("%s: on_drop raised for a message of %r", self._name, message.topic)

    def filter_raised(self, message: Message, topic: Counts, problem: Exception) -> None:
        """The filter raised: the message is dropped."""
        log.error("%s: its filter raised for a message of %r", self._name, message.topic, exc_info=problem)
        self.never_came(message, topic, Drop.FILTER)
