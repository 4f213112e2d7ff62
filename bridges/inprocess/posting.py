"""One publish on its way to all who take its topic."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from bridges.inprocess.drops import OUTCOMES
from bridges.inprocess.entry import Pending
from bridges.inprocess.settings import Drop
from bridges.ports import PUBLISHED, Rejected, Released

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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

    def known(self) -> Outcome | None:
        """Return it; None if it is not known yet."""

    def tell(self, told: Callable[[object], None]) -> None:
        """Have something called, with whatever, when it is."""

    def unread(self) -> bool:
        """Say whether no reader has had it yet, and one may."""

    def withdraw(self) -> bool:
        """Take it back if no reader has had it; say whether it was."""


class Posting:
    """One publish, and what has come of it so far: known here even if whoever publishes is cut short.

    Args:
        message: what is published.
        route: where it goes.
        its: how it is to be delivered.
        answered: whether its publisher waits for the outcome, and keeps what is rejected.

    Attributes:
        stored: whether a durable log has it.
        awaited: whether somebody waits for what becomes of it.
        deliveries: those that were made and went to a buffer, or were dropped for want of room there.
    """

    __slots__ = (
        "_answers",
        "_listens",
        "_number",
        "_told",
        "_waits",
        "answered",
        "awaited",
        "deliveries",
        "its",
        "message",
        "route",
        "stored",
    )

    def __init__(self, message: Message, route: Route, its: Stamps, *, answered: bool = False) -> None:
        self.message = message
        self.route = route
        self.its = its
        self.stored = self._listens = False
        self._told: Callable[[int], None] | None = None
        self._number = 0
        self._waits: Sequence[asyncio.Future[Any]] = ()
        self.deliveries: list[Delivery] = []
        self._answers: list[tuple[str, Answer]] = []
        self.answered = self.awaited = answered

    def came(self, delivery: Delivery | None) -> None:
        """A delivery was made; or none, where the filter keeps it out."""
        if delivery is not None:
            if self.answered:
                delivery.own.answered = True
            self.deliveries.append(delivery)
            self._answers.append((delivery.mailbox.name, delivery))

    def goes_behind(self, box: Mailbox, answer: Answer) -> None:
        """It gets in line where there is no room for it."""
        self._answers.append((box.name, answer))

    def missed(self, box: Mailbox) -> None:
        """It was for a subscription that has ended meanwhile: nobody has had it there."""
        gone = Pending(answered=self.answered)
        gone.lost(OUTCOMES[Drop.ENDED])
        self._answers.append((box.name, gone))

    def kept(self, offset: int, *, durable: bool) -> None:
        """The log of its topic has it. One that is durable takes it over: what is rejected then is a dead letter here."""
        self.stored = durable
        if self.answered and durable:
            self.answered = self.awaited = False
        for box in self.route.fed:
            if box.closed:
                self.missed(box)
            elif box.feed is not None and self.awaited:
                self._answers.append((box.name, box.feed.answer(offset, keeps=self.answered)))

    def answers(self) -> list[tuple[str, Answer]]:
        """Return what will become of it at each subscription that it was for, with the name of that."""
        return list(self._answers)

    def waits_for(self, waits: Sequence[asyncio.Future[Any]]) -> None:
        """It has begun, and goes on by itself: there is no room for it yet somewhere, or a log is at it. Done where that is over."""
        self._waits = waits
        for wait in waits:
            wait.add_done_callback(self._came_on)

    def known(self) -> Outcome | None:
        """Return what became of it: published once a durable log has it, or else the worst of what its subscriptions make of it.

        None if that is not known yet. Raises what went wrong on its way.
        """
        if self._waits:
            if self._on_its_way():
                return None
            if not self.stored:
                for wait in self._waits:
                    wait.result()
        if self.stored:
            return PUBLISHED
        if len(self._answers) == 1:
            return self._answers[0][1].known()
        outcomes = []
        for _, answer in self._answers:
            outcome = answer.known()
            if outcome is None:
                return None
            outcomes.append(outcome)
        return _worst(outcomes)

    def tell(self, told: Callable[[int], None] | None, number: int = 0) -> None:
        """Have something called with a number, in place of what was before, whenever `known` may know, perhaps at once; None: nothing."""
        self._told, self._number = told, number
        if told is not None and (self._listens or not self._listen()):
            told(number)

    @property
    def lost(self) -> bool:
        """Whether it is over, and was neither acknowledged nor rejected: it was dropped, or something went wrong on its way."""
        try:
            return isinstance(self.known(), Released)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 -- whatever it is: if it happens again, who publishes is told
            return True

    @property
    def heard(self) -> bool:
        """Whether somebody listens to what becomes of it."""
        return self._told is not None

    def unread(self) -> list[str]:
        """Return the names of the subscriptions where no reader has had it yet, and one may; or of the log that is at it."""
        kept = self.route.kept
        if kept is not None and not (kept.at_once or self.stored) and self._on_its_way():
            return [f"the log of {kept.pattern.text}"]
        return [name for name, answer in self._answers if answer.unread()]

    def withdraw(self) -> bool:
        """Its publisher waits no longer: what has had no reader yet gets none. Say whether all of it goes on: with readers, or in a log."""
        cut = sum(wait.cancel() for wait in self._waits if not wait.done())
        return self.stored or not (cut + sum(answer.withdraw() for _, answer in self._answers))

    def _on_its_way(self) -> bool:
        """Whether there is no room for it yet somewhere, or a log is at it."""
        return any(not wait.done() for wait in self._waits)

    def _listen(self) -> bool:
        """Listen to everybody who has it, once, however many calls await it; say whether there is anybody, now or later."""
        if self._waits and self._on_its_way():
            return True
        self._listens = True
        for _, answer in self._answers:
            answer.tell(self._heard)
        return bool(self._answers) and not self.stored

    def _heard(self, _: object) -> None:
        if self._told is not None:
            self._told(self._number)

    def _came_on(self, _: object) -> None:
        if self._told is not None:
            self.tell(self._told, self._number)


def _worst(outcomes: list[Outcome]) -> Outcome:
    for kind in (Rejected, Released):
        for outcome in outcomes:
            if isinstance(outcome, kind):
                return outcome
    return PUBLISHED
