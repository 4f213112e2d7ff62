"""What subscriptions have given up: kept, visible, and to be delivered again on demand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Final

from bridges.inprocess.stamps import PLAIN
from bridges.ports import PUBLISHED

if TYPE_CHECKING:
    from bridges.inprocess.delivery import Delivery
    from bridges.message import Message
    from bridges.ports import Reason, Rejected

MAX_LETTERS: Final = 10_000
"""Dead letters that a broker keeps unless told otherwise; the oldest go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A copy of what is known of one dead letter.

    Attributes:
        number: names the letter; rising, never used again.
        message: what was given up.
        subscription: the name of the subscription, or queue group, that gave it up.
        reason: why.
        detail: more of why.
        attempts: how often it failed.
        died_at: when it was given up.
    """

    number: int
    message: Message
    subscription: str
    reason: Reason
    detail: str
    attempts: int
    died_at: datetime


class DeadLetters:
    """The dead letters of one broker.

    Attributes:
        overflowed: how many were let go because there was no room for more.
    """

    def __init__(self, limit: int = MAX_LETTERS) -> None:
        self._limit = limit
        self._letters: dict[int, tuple[DeadLetter, Delivery]] = {}
        self._numbers = count(1)
        self.overflowed = 0

    def __len__(self) -> int:
        return len(self._letters)

    def bury(self, delivery: Delivery, why: Rejected) -> None:
        """Keep a delivery that was given up."""
        letter = DeadLetter(
            number=next(self._numbers),
            message=_copied(delivery.message),
            subscription=delivery.mailbox.name,
            reason=why.reason,
            detail=why.detail,
            attempts=delivery.attempts,
            died_at=datetime.now(UTC),
        )
        self._letters[letter.number] = letter, delivery
        if len(self._letters) > self._limit:
            self._let_go(next(iter(self._letters)))
            self.overflowed += 1

    def list(self, *, subscription: str | None = None, topic: str | None = None) -> list[DeadLetter]:
        """Return copies of all dead letters, or of those of one subscription or topic, the oldest first."""
        return [
            replace(letter, message=_copied(letter.message))
            for letter, _ in self._letters.values()
            if subscription in {None, letter.subscription} and topic in {None, letter.message.topic}
        ]

    def requeue(self, *numbers: int) -> int:
        """Deliver the letters of these numbers, or all, again to the subscription that gave each up; return how many went.

        They begin with no attempts. One whose subscription has ended stays where it is, until its durable name, if it has one, is
        there again.
        """
        gone = 0
        for number in numbers or list(self._letters):
            if number not in self._letters:
                continue
            letter, dead = self._letters[number]
            mailbox, counts = dead.mailbox if dead.mailbox.feed is None else dead.mailbox.feed.heir, dead.topic_counts
            if not mailbox.closed:
                del self._letters[number]
                # It is due to this subscription, whether there is room or not; counted like a message that was published to it.
                counts.published += 1
                again = mailbox.line_up(PLAIN, letter.message, counts)
                if dead.offset is not None and mailbox.feed is not None:
                    mailbox.feed.requeued(again, dead.offset)
                gone += 1
        return gone

    def remove(self, *numbers: int) -> int:
        """Let go of the letters of these numbers; return how many there were."""
        return sum(self._let_go(number) for number in numbers)

    def clear(self) -> int:
        """Let go of all; return how many there were."""
        return self.remove(*self._letters)

    def _let_go(self, number: int) -> bool:
        """Forget a letter, and let what it was read from forget it too; say whether there was one."""
        letter, dead = self._letters.pop(number, (None, None))
        if dead is not None and dead.offset is not None and dead.mailbox.backlog is not None:
            dead.mailbox.backlog.done(dead.offset, PUBLISHED)
        return letter is not None


def _copied(message: Message) -> Message:
    """Return a message whose headers are its own: all the rest of it cannot be changed anyway."""
    return message._replace(headers=dict(message.headers))
