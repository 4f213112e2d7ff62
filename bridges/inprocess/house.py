"""What all the mailboxes of one broker share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridges.inprocess.deadletters import DeadLetters
    from bridges.inprocess.timers import Timers
    from bridges.message import Message


class House(Protocol):
    """The broker, as its mailboxes see it."""

    @property
    def timers(self) -> Timers:
        """What is to happen at a time."""

    @property
    def dead_letters(self) -> DeadLetters:
        """What was given up."""

    async def reply(self, request: Message, payload: bytes, content_type: str | None, headers: Mapping[str, str]) -> None:
        """Answer a request."""
