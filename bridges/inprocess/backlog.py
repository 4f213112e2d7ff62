"""What is behind the buffer of a mailbox: `Feed` and `Spill` are the two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from bridges.ports import Outcome


class Backlog(Protocol):
    """What is behind the buffer of a mailbox, in a log."""

    @property
    def lag(self) -> int:
        """How many messages are there, at the most."""

    @property
    def ready(self) -> bool:
        """Whether `refill` may bring something."""

    def refill(self) -> bool:
        """Put what there is room for into the mailbox; say whether that was anything. Raises `bridges.errors.Evicted`."""

    def done(self, offset: int, outcome: Outcome) -> None:
        """A delivery from the log is over; or the dead letter that it became is gone."""

    def close(self) -> None:
        """The mailbox is closed."""
