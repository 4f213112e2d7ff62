"""What all the mailboxes of one broker share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from bridges.inprocess.deadletters import DeadLetters
    from bridges.inprocess.timers import Timers
    from bridges.message import Message


@dataclass(frozen=True, slots=True)
class House:
    """What all the mailboxes of one broker share.

    Attributes:
        timers: what is to happen at a time.
        dead_letters: what was given up.
        reply: answers a request, with a payload, a content type and headers.
    """

    timers: Timers
    dead_letters: DeadLetters
    reply: Callable[[Message, bytes, str | None, Mapping[str, str]], Awaitable[None]]
