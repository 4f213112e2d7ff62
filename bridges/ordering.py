"""Key order as arithmetic: which messages may be in flight together. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from bridges.ports import Published

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from bridges.message import Message
    from bridges.ports import Outcome


def waves(messages: Sequence[Message], groups: Sequence[Hashable] | None = None, *, ordered: bool = True) -> list[list[int]]:
    """Split a batch into waves of indexes, each to be sent when the wave before it is acknowledged.

    Without ``groups``, no two messages of one key are in the same wave. With them, one key may repeat within a wave as long as its
    messages follow each other in one group: for a destination that keeps the order of what it is given in one call. Keyless
    messages are all in the first wave, and without ``ordered`` every message is. Order within a wave is the order of the batch.
    """
    if not ordered:
        return [list(range(len(messages)))]
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


def parted(messages: Sequence[Message], *, ordered: bool = True) -> tuple[list[int], list[int]]:
    """Split a batch into the indexes of the messages that may all be in flight together, and of those whose key repeats.

    Without ``ordered``, all may.
    """
    if not ordered:
        return list(range(len(messages))), []
    counts = Counter([message.key for message in messages])
    counts[None] = 0
    if max(counts.values()) <= 1:  # nearly always, and this is done for every message
        return list(range(len(messages))), []
    alone: list[int] = []
    repeating: list[int] = []
    for index, message in enumerate(messages):
        (repeating if counts[message.key] > 1 else alone).append(index)
    return alone, repeating


class Blocked:
    """The keys of one publish call that may not go on. Feed it each message's outcome in order; ask it before sending the next.

    Without ``ordered``, every key may always go on.
    """

    def __init__(self, *, ordered: bool = True) -> None:
        self._ordered = ordered
        self._keys: set[str] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, message: Message) -> bool:
        return message.key is not None and message.key in self._keys

    def note(self, message: Message, outcome: Outcome) -> Outcome:
        """Record the outcome and return it."""
        if self._ordered and message.key is not None and not isinstance(outcome, Published):
            self._keys.add(message.key)
        return outcome
