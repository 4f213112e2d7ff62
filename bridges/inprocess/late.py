"""What the calls of a sink have left under way: with readers, in buffers, in line for room, or in a log's append."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from uuid import UUID

    from bridges.inprocess.posting import Posting
    from bridges.message import Message

_MAX_MESSAGES: Final = 10_000
_MAX_BYTES: Final = 64 * 2**20
"""Of payloads. What is over either is withdrawn, the oldest first, and sent anew when it comes again."""


class Left(NamedTuple):
    """A message that is under way, and how many calls had published something when it was first sent."""

    posting: Posting
    since: int


class Late:
    """See the module."""

    def __init__(self) -> None:
        self._left: OrderedDict[UUID, Left] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._left)

    def __contains__(self, message: Message) -> bool:
        return message.id in self._left

    def take(self, message: Message) -> Left | None:
        """Take out a message, if it is there as it is now, and may still be acknowledged."""
        left = self._pop(message.id)
        if left is None or (left.posting.message == message and not left.posting.lost):
            return left
        left.posting.withdraw()
        return None

    def leave(self, posting: Posting, since: int) -> None:
        """Remember a message in place of an earlier one of its id."""
        message = posting.message
        if (other := self._pop(message.id)) is not None:
            other.posting.withdraw()
        self._left[message.id] = Left(posting, since)
        self._bytes += len(message.payload)
        while len(self._left) > _MAX_MESSAGES or self._bytes > _MAX_BYTES:
            oldest = self._pop(next(iter(self._left)))
            assert oldest is not None
            oldest.posting.withdraw()

    def _pop(self, message_id: UUID) -> Left | None:
        left = self._left.pop(message_id, None)
        if left is not None:
            self._bytes -= len(left.posting.message.payload)
        return left
