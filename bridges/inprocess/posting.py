"""One publish on its way to all who take its topic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from bridges.ports import PUBLISHED, Rejected, Released

if TYPE_CHECKING:
    from bridges.inprocess.delivery import Delivery
    from bridges.inprocess.mailbox import Mailbox
    from bridges.inprocess.routes import Route
    from bridges.inprocess.stamps import Stamps
    from bridges.message import Message
    from bridges.ports import Outcome


class Answer(Protocol):
    """What will become of a message at one subscription: a `Delivery`, or where it waits in a log to become one."""

    async def outcome(self) -> Outcome:
        """Wait for it."""

    def withdraw(self) -> None:
        """Nobody waits for it any more."""


class Posting:
    """One publish, and what has come of it so far: known here even if whoever publishes is cut short.

    Args:
        message: what is published.
        route: where it goes.
        its: how it is to be delivered.
        answered: whether its publisher waits for the outcome, and keeps what is rejected.

    Attributes:
        stored: whether a durable log has it.
        offset: where it is in the log of its topic, if that keeps one.
        deliveries: those that were made; dropped ones among them.
    """

    __slots__ = ("_behind", "answered", "deliveries", "its", "message", "offset", "route", "stored")

    def __init__(self, message: Message, route: Route, its: Stamps, *, answered: bool = False) -> None:
        self.message = message
        self.route = route
        self.its = its
        self.stored = False
        self.offset: int | None = None
        self.deliveries: list[Delivery] = []
        self._behind: list[tuple[Mailbox, Answer]] = []
        self.answered = answered

    def came(self, delivery: Delivery | None) -> None:
        """A delivery was made; or none, where the filter keeps it out."""
        if delivery is not None:
            if self.answered and not self.stored:
                delivery.own.answered = True
            self.deliveries.append(delivery)

    def goes_behind(self, box: Mailbox, answer: Answer) -> None:
        """It has gone behind a buffer that has no room."""
        self._behind.append((box, answer))

    def answers(self) -> list[tuple[str, Answer]]:
        """Return what will become of it at each subscription that it has reached, with the name of that."""
        answers: list[tuple[str, Answer]] = [(delivery.mailbox.name, delivery) for delivery in self.deliveries]
        answers += [(box.name, answer) for box, answer in self._behind]
        if self.offset is not None:
            answers += [(box.name, box.feed.answer(self.offset)) for box in self.route.fed if box.feed is not None and not box.closed]
        return answers

    async def outcome(self) -> Outcome:
        """Wait for what becomes of it: published once a durable log has it, or else the worst of what its subscriptions make of it."""
        if self.stored:
            return PUBLISHED
        outcomes = [await answer.outcome() for _, answer in self.answers()]
        for kind in (Rejected, Released):
            for outcome in outcomes:
                if isinstance(outcome, kind):
                    return outcome
        return PUBLISHED

    def withdraw(self) -> None:
        """Its publisher waits no longer, and will send it again: what has no reader yet gets none. Nothing if it is stored."""
        if not self.stored:
            for _, answer in self.answers():
                answer.withdraw()
