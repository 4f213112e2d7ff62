"""What a reader gets of a delivery that another reader had before, so that what the other still says of it is told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridges.inprocess.delivery import Delivery

if TYPE_CHECKING:
    from bridges.inprocess.delivery import Reader, State
    from bridges.ports import Reason


class Redelivery(Delivery):
    """A delivery as it was handed over once more. Only the last of these can give the delivery back; any of them can end it.

    It has the state of the first, which is what the mailbox and the publisher know.
    """

    __slots__ = ("_first", "_given_back")

    def __init__(self, first: Delivery) -> None:
        self._first = first
        self._given_back = False
        self.message = first.message
        self.mailbox = first.mailbox
        self.number = first.number
        self.details = first.own
        self.details.handed = self

    @property
    def state(self) -> State:  # type: ignore[override]  # a field of the first, for speed
        """Where it is."""
        return self._first.state

    @property
    def reader(self) -> Reader | None:  # type: ignore[override]  # likewise
        """Who has it, or had it last."""
        return self._first.reader

    @property
    def given_back(self) -> bool:
        """Whether who was handed this gave it back, if only when it was no longer theirs."""
        return self._given_back

    def ack(self) -> None:
        """It has taken effect, even if another reader has it by now. Any number of times."""
        self._first.ack()

    def reject(self, reason: Reason, detail: str) -> None:
        """It will never be accepted: a dead letter, unless its publisher waits to hear of it."""
        self._first.reject(reason, detail)

    def nack(self, delay: float | None = None, *, failed: bool = True) -> None:
        """Deliver it again; see `Delivery.nack`."""
        held, self._given_back = self.held, True
        if held:
            self.mailbox.give_back(self._first, 0.0 if delay is None and not failed else delay, failed=failed)

    def in_progress(self) -> None:
        """The handler is still at it: its deadline begins anew. Nothing if it is no longer `held`."""
        if self.held:
            self.mailbox.extend(self._first)

    def unread(self) -> bool:
        """A reader has had it."""
        return False

    def withdraw(self) -> bool:
        """The publisher waits no longer."""
        return self._first.withdraw()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Delivery) and (other.mailbox, other.number) == (self.mailbox, self.number)

    def __hash__(self) -> int:
        return hash(self._first)
