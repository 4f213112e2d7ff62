"""What is behind the buffer of a mailbox: `Feed` and `Spill` are the two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from uuid import UUID

    from bridges.ports import Outcome

NEAR: Final = 4096
"""Entries of a log that are looked through for one message."""


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

    def holds(self, message_id: UUID) -> bool:
        """Say whether a message is among the next `NEAR` there."""

    def answered(self, offset: int) -> bool:
        """Say whether somebody waits for what becomes of an offset, and keeps it if it is rejected."""

    def done(self, offset: int, outcome: Outcome) -> None:
        """A delivery from the log is over; or the dead letter that it became is gone."""

    def close(self) -> None:
        """The mailbox is closed."""
