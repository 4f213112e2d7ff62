"""Key order as arithmetic: which messages may be in flight together. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridges.ports import Published

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from bridges.message import Message
    from bridges.ports import Outcome


def waves(messages: Sequence[Message], groups: Sequence[Hashable] | None = None) -> list[list[int]]:
    """Split a batch into waves of indexes, each to be sent when the wave before it is acknowledged.

    Without ``groups``, no two messages of one key are in the same wave. With them, one key may repeat within a wave as long as its
    messages follow each other in one group: for a destination that keeps the order of what it is given in one call. Keyless
    messages are all in the first wave. Order within a wave is the order of the batch.
    """
    split: list[list[int]] = [[]]
    last: dict[str, tuple[int, Hashable]] = {}
    for index, message in enumerate(messages):
        key = message.key
        wave = 0
        if key is not None:
            group = groups[index] if groups is not None else None
            if key in last:
                wave, group_before = last[key]
                if groups is None or group != group_before:
                    wave += 1
            last[key] = wave, group
        if wave == len(split):
            split.append([])
        split[wave].append(index)
    return split


class Blocked:
    """The keys of one publish call that may not go on. Feed it each message's outcome in order; ask it before sending the next."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def __contains__(self, message: Message) -> bool:
        return message.key is not None and message.key in self._keys

    def note(self, message: Message, outcome: Outcome) -> Outcome:
        """Record the outcome and return it."""
        if message.key is not None and not isinstance(outcome, Published):
            self._keys.add(message.key)
        return outcome
