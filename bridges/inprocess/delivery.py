"""One message on its way to one subscription."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from time import monotonic
from typing import TYPE_CHECKING, Final

from bridges.inprocess.settings import Drop
from bridges.ports import PUBLISHED, Outcome, Reason, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from bridges.inprocess.mailbox import Mailbox
    from bridges.inprocess.stats import Counts
    from bridges.inprocess.timers import Timer
    from bridges.message import Message


class State(StrEnum):
    """Where a delivery is."""

    QUEUED = "queued"
    """It waits for its turn."""
    DELIVERED = "delivered"
    """A reader has it."""
    RETRYING = "retrying"
    """It failed, and waits to be delivered again."""
    DONE = "done"
    """Acknowledged."""
    DEAD = "dead"
    """Given up: a dead letter."""
    DROPPED = "dropped"
    """It will not be delivered: no room, expired, withdrawn, or its subscription ended."""


_QUEUED: Final[State] = State.QUEUED
_DELIVERED: Final = State.DELIVERED
_FINAL: Final = {State.DONE, State.DEAD, State.DROPPED}


class Reader:
    """Who takes deliveries out of a mailbox: a subscription, or one claim.

    Attributes:
        prefetch: how many it may have unacknowledged.
        out: how many it has.
    """

    __slots__ = ("out", "prefetch")

    def __init__(self, prefetch: float) -> None:
        self.prefetch = prefetch
        self.out = 0


class Details:
    """What most deliveries never need.

    Attributes:
        attempts: how often it failed.
        given_back: whether its first reader gave it back.
        handed: what its last reader has of it; None: the delivery itself.
        priority: the higher, the sooner.
        offset: its place in the log that it was read from, if it was.
        answered: whether its publisher waits for the outcome, and keeps what is rejected.
        alive_at: when its reader last said that it is still at it.
        expires: when it is too late to deliver it.
        timer: what is to happen to it, at its expiry or its retry.
        waiter: who waits for its outcome.
        told: what is to be called when that is known.
        outcome: what became of it.
    """

    __slots__ = (
        "alive_at",
        "answered",
        "attempts",
        "expires",
        "given_back",
        "handed",
        "offset",
        "outcome",
        "priority",
        "timer",
        "told",
        "waiter",
    )

    def __init__(self) -> None:
        self.attempts = self.priority = 0
        self.given_back = False
        self.handed: Delivery | None = None
        self.offset: int | None = None
        self.answered = False
        self.alive_at = 0.0
        self.expires: float | None = None
        self.timer: Timer | None = None
        self.waiter: asyncio.Future[Outcome] | None = None
        self.told: Callable[[object], None] | None = None
        self.outcome: Outcome = PUBLISHED

    def stop_timer(self) -> None:
        """What was to happen to it will not."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Delivery:
    """One message on its way to one subscription. It ends with `ack` or `reject`; `nack` sends it round again.

    Attributes:
        message: what is delivered.
        state: where it is.
        reader: who has it, or had it last; None if nobody has had it yet.
    """

    __slots__ = ("details", "mailbox", "message", "number", "queued_at", "reader", "state", "taken_at", "topic_counts")

    details: Details | None
    mailbox: Mailbox
    message: Message
    number: int
    queued_at: float
    reader: Reader | None
    state: State
    taken_at: float
    topic_counts: Counts

    @property
    def over(self) -> bool:
        """Whether its state is final: done, dead or dropped."""
        return self.state in _FINAL

    @property
    def own(self) -> Details:
        """Its details, made when they are first needed. For the broker, not for readers."""
        if self.details is None:
            self.details = Details()
        return self.details

    @property
    def attempts(self) -> int:
        """How often it failed."""
        return self.details.attempts if self.details is not None else 0

    @property
    def given_back(self) -> bool:
        """Whether who was handed this gave it back, if only when it was no longer theirs."""
        return self.details is not None and self.details.given_back

    @property
    def held(self) -> bool:
        """Whether who was handed this has it still. It is taken away at its deadline, and when the subscription ends."""
        handed = self.details.handed if self.details is not None else None
        return self.state is _DELIVERED and (handed is None or handed is self)

    @property
    def priority(self) -> int:
        """The higher, the sooner it is delivered."""
        return self.details.priority if self.details is not None else 0

    @property
    def offset(self) -> int | None:
        """Its place in the log that it was read from; None if it was not."""
        return self.details.offset if self.details is not None else None

    @property
    def id(self) -> UUID:
        """The message's id."""
        return self.message.id

    @property
    def topic(self) -> str:
        """The message's topic."""
        return self.message.topic

    @property
    def key(self) -> str | None:
        """The message's key."""
        return self.message.key

    @property
    def payload(self) -> bytes:
        """The message's payload."""
        return self.message.payload

    @property
    def headers(self) -> Mapping[str, str]:
        """The message's headers."""
        return self.message.headers

    def ack(self) -> None:
        """It has taken effect, even if that took so long that it is to be delivered again. Any number of times."""
        self.mailbox.acknowledge(self, monotonic())

    def reject(self, reason: Reason, detail: str) -> None:
        """It will never be accepted: a dead letter, unless its publisher waits to hear of it."""
        if not self.over:
            self.mailbox.finish(self, Rejected(reason, detail))

    def nack(self, delay: float | None = None, *, failed: bool = True) -> None:
        """Deliver it again after ``delay`` seconds, and what is behind it in its key after it. Nothing if it is no longer `held`.

        Args:
            delay: None: the backoff of the subscription.
            failed: it counts as an attempt, and the last attempt allowed makes it a dead letter; False: it is only given back.
        """
        if self.reader is not None:
            held = self.held
            self.own.given_back = True
            if held:
                self.mailbox.give_back(self, 0.0 if delay is None and not failed else delay, failed=failed)

    def in_progress(self) -> None:
        """The handler is still at it: its deadline begins anew. Nothing if it is no longer `held`."""
        if self.held:
            self.mailbox.extend(self)

    def unread(self) -> bool:
        """Say whether no reader has had it yet, and one may."""
        return self.reader is None and not self.over

    def withdraw(self) -> bool:
        """The publisher waits no longer: it is dropped, unless a reader has had it; say whether it was."""
        if not self.unread():
            return False
        self.mailbox.drop(self, Drop.WITHDRAWN)
        return True

    async def outcome(self) -> Outcome:
        """Wait for the end of the delivery: `Published` when acknowledged, `Rejected` when given up, `Released` when dropped."""
        if (known := self.known()) is not None:
            return known
        own = self.own
        if own.waiter is None:
            own.waiter = asyncio.get_running_loop().create_future()
        return await asyncio.shield(own.waiter)

    def known(self) -> Outcome | None:
        """Return what `outcome` would; None if it would have to wait for it."""
        if not self.over:
            return None
        return self.details.outcome if self.details is not None else PUBLISHED

    def tell(self, told: Callable[[object], None]) -> None:
        """Have something called when `known` knows: at once if it does, or else as the delivery ends. For who made it, not for readers."""
        if self.over:
            told(self)
        else:
            self.own.told = told  # no future: this is done for every message of a key that has more than one

    async def reply(self, payload: bytes, *, content_type: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        """Answer a request (`Broker.request`) with a payload, in the request's content type unless another is given.

        Raises `bridges.errors.InvalidMessage` if the message is not a request.
        """
        await self.mailbox.house.reply(self.message, payload, content_type, headers or {})

    def expired(self, now: float) -> bool:
        """Say whether it is too late to deliver it."""
        return self.details is not None and self.details.expires is not None and self.details.expires <= now

    def end(self, state: State, outcome: Outcome) -> None:
        """Make the state final, and tell who waits for it. For the broker, not for readers."""
        self.state = state
        own = self.own
        own.outcome = outcome
        own.handed = None
        own.stop_timer()
        if own.waiter is not None and not own.waiter.done():
            own.waiter.set_result(outcome)
        if own.told is not None:
            told, own.told = own.told, None
            told(self)

    def __repr__(self) -> str:
        return f"<Delivery of {self.message.topic} {self.message.id} to {self.mailbox.name}: {self.state}>"


def made(message: Message, mailbox: Mailbox, topic_counts: Counts, number: int, queued_at: float) -> Delivery:
    """Make a delivery. Not with ``__init__``: a function that sets the fields takes a third less time, once for every message."""
    delivery = Delivery()
    delivery.message = message
    delivery.mailbox = mailbox
    delivery.topic_counts = topic_counts
    delivery.number = number
    delivery.queued_at = queued_at
    delivery.state = _QUEUED
    delivery.reader = None
    delivery.details = None
    return delivery
