"""What the calls of a sink have left under way: with readers, in buffers, in line for room, or in a log's append."""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from uuid import UUID

    from bridges.inprocess.posting import Posting
    from bridges.message import Message

_MAX_MESSAGES: Final = 10_000
_MAX_BYTES: Final = 64 * 2**20
"""Of payloads. What is over either is withdrawn, the oldest first, and sent anew when it comes again."""
_MAX_AGE: Final = 600.0
"""Seconds for which an answer is kept for the next call with the message. What comes later is no retry: a replay, or a requeued letter."""


class Left(NamedTuple):
    """A message that is under way.

    Attributes:
        posting: what it goes by.
        since: how many calls had published something when it was first sent.
        at: when a call last left it, in monotonic seconds.
    """

    posting: Posting
    since: int
    at: float


class Late:
    """See the module."""

    def __init__(self) -> None:
        self._left: OrderedDict[UUID, Left] = OrderedDict()
        self._bytes = 0
        self._newest: dict[str, Posting] = {}
        """The last that was left in each subscription where no reader had had it."""

    def __len__(self) -> int:
        return len(self._left)

    def __contains__(self, message: Message) -> bool:
        return message.id in self._left

    def stuck_at(self) -> set[str]:
        """Return the names of the subscriptions where the last that was left has not even had a reader."""
        self._newest = {name: posting for name, posting in self._newest.items() if name in posting.unread()}
        return set(self._newest)

    def take(self, message: Message) -> Left | None:
        """Take out a message, if it is there as it is now, and may still be acknowledged."""
        left = self._pop(message.id)
        if left is None or (left.posting.message == message and not left.posting.lost and not _is_old(left)):
            return left
        left.posting.withdraw()
        return None

    def leave(self, posting: Posting, since: int) -> None:
        """Remember a message; not instead of an equal one that is ahead of it."""
        message = posting.message
        if (other := self._pop(message.id)) is not None:
            if other.posting.message == message and not other.posting.lost:
                posting, other = other.posting, other._replace(posting=posting)
            other.posting.withdraw()
        self._left[message.id] = Left(posting, since, monotonic())
        self._bytes += len(message.payload)
        self._newest.update(dict.fromkeys(posting.unread(), posting))
        while len(self._left) > _MAX_MESSAGES or (self._bytes > _MAX_BYTES and len(self._left) > 1):
            oldest = self._pop(next(iter(self._left)))
            assert oldest is not None
            oldest.posting.withdraw()

    def _pop(self, message_id: UUID) -> Left | None:
        left = self._left.pop(message_id, None)
        if left is not None:
            self._bytes -= len(left.posting.message.payload)
        return left


def _is_old(left: Left) -> bool:
    return monotonic() - left.at > _MAX_AGE and left.posting.known() is not None
