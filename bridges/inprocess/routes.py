"""Which mailboxes a topic reaches: looked up once a topic, and remembered until a subscription begins or ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from bridges.inprocess.request import INBOX
from bridges.inprocess.settings import Policy
from bridges.inprocess.stats import Counts, TopicCounts
from bridges.inprocess.trie import Trie
from bridges.message import check_topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.inprocess.kept import KeptLog, KeptLogs
    from bridges.inprocess.mailbox import Mailbox
    from bridges.message import Message
    from bridges.topics import Pattern

log = logging.getLogger("outboxd.inprocess")

MAX_ROUTES: Final = 10_000
"""Topics that are remembered."""


class Route:
    """Where the messages of one topic go.

    Attributes:
        boxes: into which they are put.
        only: the one of them, where there is one.
        fed: which read them from the log.
        kept: the log, if one keeps the topic.
        counts: the counters of the topic.
    """

    __slots__ = ("boxes", "counts", "fed", "kept", "only")

    def __init__(self, boxes: Sequence[Mailbox], fed: Sequence[Mailbox], kept: KeptLog | None, counts: Counts) -> None:
        self.boxes = boxes
        self.only = boxes[0] if len(boxes) == 1 else None
        self.fed = fed
        self.kept = kept
        self.counts = counts


class Routes:
    """The mailboxes by pattern."""

    def __init__(self, logs: KeptLogs) -> None:
        self.known: dict[str, Route] = {}
        """Routes by topic; what is not here is looked up with `find`."""
        self.counts = TopicCounts()
        self._logs = logs
        self._warned: set[str] = set()
        self._trie: Trie[Mailbox] = Trie()
        logs.listen(self._stored)

    def find(self, topic: str) -> Route:
        """Look a topic up. Raises `InvalidMessage` for one that cannot be."""
        check_topic(topic)
        if topic.startswith(INBOX):  # of which there is one for every request: none is remembered, and no pattern reaches any
            return Route((), (), None, Counts())
        found = self._trie.match(topic)
        fed = tuple(box for box in found if box.feed is not None)
        route = Route(
            tuple(box for box in found if box.feed is None), fed, self._logs.of(topic), self.counts.of(topic) if found else Counts()
        )
        blocking = [box.name for box in route.boxes if box.settings.policy == Policy.BLOCK]
        if len(blocking) > 1 and topic not in self._warned:
            if len(self._warned) >= MAX_ROUTES:
                self._warned.clear()
            self._warned.add(topic)
            log.warning(
                "%r has %d subscriptions that block: each waits for the slowest: %s", topic, len(blocking), ", ".join(sorted(blocking))
            )
        if len(self.known) >= MAX_ROUTES:
            self.known.clear()
        self.known[topic] = route
        return route

    def add(self, patterns: Sequence[Pattern], box: Mailbox) -> None:
        """Let a mailbox have what matches."""
        for pattern in patterns:
            self._trie.add(pattern.text, box)
        self.known.clear()
        if box.settings.policy == Policy.BLOCK:
            for pattern in patterns:
                if not pattern.text.endswith(">") and "*" not in pattern.text:
                    self.find(pattern.text)  # to warn where it is plain already

    def remove(self, patterns: Sequence[Pattern], box: Mailbox) -> None:
        """Let it have no more."""
        for pattern in patterns:
            self._trie.remove(pattern.text, box)
        self.known.clear()

    def forget(self) -> None:
        """Look everything up anew."""
        self.known.clear()

    def _stored(self, messages: Sequence[Message]) -> None:
        """A log has something new: wake those who read it, also those who have come since it was published."""
        for message in messages:
            route = self.known.get(message.topic)
            for box in self._trie.match(message.topic) if route is None else route.fed:
                if box.feed:
                    box.waiting.wake()
