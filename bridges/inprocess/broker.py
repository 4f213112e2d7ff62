"""Topics, subscriptions and queue groups."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Self

from bridges.errors import Closed, ConfigurationError
from bridges.inprocess.mailbox import Delivery, Mailbox
from bridges.message import check_topic
from bridges.topics import Pattern

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bridges.message import Message


_LONG: Final = 3600.0
"""Seconds after which a reader looks again; it is woken for everything that it waits for."""


class Broker:
    """An embedded broker. Everything happens on the event loop that uses it.

    Args:
        buffer: deliveries a subscription, or a queue group, buffers before a publish has to wait; each may choose its own.
    """

    def __init__(self, *, buffer: int = 1000) -> None:
        self._buffer = _checked(buffer)
        self._subscriptions: dict[Subscription, None] = {}
        self._groups: dict[str, _Group] = {}
        self._closed = False

    def subscribe(self, *patterns: str, group: str | None = None, buffer: int | None = None) -> Subscription:
        """Make a subscription to the topics of any of the patterns; it begins when it is entered, or with `Subscription.begin`.

        Members of one ``group`` share a buffer, and each message goes to one of them. Raises `InvalidPattern`, `ConfigurationError`.
        """
        size = _checked(self._buffer if buffer is None else buffer)
        return Subscription(self, [Pattern(text) for text in patterns or (">",)], group, size)

    async def publish(self, message: Message) -> list[Delivery]:
        """Put a delivery into every matching buffer, waiting where one is full, and return them; they end when they are acknowledged.

        Raises `InvalidMessage` for a topic that cannot be one, and `Closed` after the broker was closed.
        """
        check_topic(message.topic)
        self._check_open()
        mailboxes = {subscription.mailbox: None for subscription in self._subscriptions if subscription.matches(message.topic)}
        deliveries = [await mailbox.put(message) for mailbox in mailboxes]
        return [delivery for delivery in deliveries if delivery is not None]

    def close(self) -> None:
        """End every subscription; a publish after it raises. Any number of times."""
        self._closed = True
        for subscription in list(self._subscriptions):
            subscription.unsubscribe()

    def _check_open(self) -> None:
        if self._closed:
            msg = "the broker is closed"
            raise Closed(msg)

    def _join(self, subscription: Subscription, group: str | None, size: int) -> Mailbox:
        self._check_open()
        self._subscriptions[subscription] = None
        if group is None:
            return Mailbox(size)
        joined = self._groups.setdefault(group, _Group(size))
        joined.members.add(subscription)
        return joined.mailbox

    def _leave(self, subscription: Subscription, group: str | None) -> None:
        self._subscriptions.pop(subscription, None)
        subscription.mailbox.leave(subscription)
        if group is None:
            subscription.mailbox.close()
        elif joined := self._groups.get(group):
            joined.members.discard(subscription)
            if not joined.members:
                del self._groups[group]
                joined.mailbox.close()


class Subscription:
    """A place in the broker where messages arrive. It ends with the task or scope that entered it, or with `unsubscribe`."""

    def __init__(self, broker: Broker, patterns: Sequence[Pattern], group: str | None, size: int) -> None:
        self._broker = broker
        self._patterns = patterns
        self._group = group
        self._size = size
        self._mailbox: Mailbox | None = None
        self._task: asyncio.Task[object] | None = None
        self._ended = False

    @property
    def mailbox(self) -> Mailbox:
        """The buffer; shared within a group. Raises `Closed` before the subscription has begun."""
        if self._mailbox is None:
            msg = "the subscription has not begun"
            raise Closed(msg)
        return self._mailbox

    def matches(self, topic: str) -> bool:
        """Say whether one of the patterns stands for the topic."""
        return any(pattern.matches(topic) for pattern in self._patterns)

    def begin(self) -> Self:
        """Take part from now on. Raises `Closed` on a closed broker."""
        if self._mailbox is None:
            self._mailbox = self._broker._join(self, self._group, self._size)
        return self

    def unsubscribe(self) -> None:
        """Take no further part; what was not acknowledged goes to the rest of the group. Any number of times."""
        if self._mailbox is not None and not self._ended:
            self._ended = True
            self._broker._leave(self, self._group)

    async def take(self, limit: int) -> list[Delivery]:
        """Wait for at least one delivery and return up to ``limit``; an empty list says that the subscription has ended."""
        while not self._ended:
            if taken := self.mailbox.take_nowait(limit, self):
                return taken
            await self.mailbox.wait(_LONG)
        return []

    def take_nowait(self, limit: int, reader: object) -> list[Delivery]:
        """Return up to ``limit`` deliveries that are waiting, perhaps none, for one of several readers of this subscription."""
        return [] if self._ended else self.mailbox.take_nowait(limit, reader)

    async def __aenter__(self) -> Self:
        self.begin()
        self._task = asyncio.current_task()
        if self._task is not None:
            self._task.add_done_callback(self._end_with_task)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.remove_done_callback(self._end_with_task)
        self.unsubscribe()

    def _end_with_task(self, _: asyncio.Task[object]) -> None:
        self.unsubscribe()

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        while deliveries := await self.take(1):
            for delivery in deliveries:
                yield delivery


class _Group:
    def __init__(self, size: int) -> None:
        self.mailbox = Mailbox(size)
        self.members: set[Subscription] = set()


def _checked(size: int) -> int:
    if size < 1:
        msg = f"buffer: {size} is below 1"
        raise ConfigurationError(msg)
    return size
