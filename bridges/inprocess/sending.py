"""One call of a sink: whose turn it is to be handed over, and what has become of what was."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from bridges.ports import BEHIND, PUBLISHED, Published

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.inprocess.posting import Posting
    from bridges.message import Message
    from bridges.ports import Outcome


class Sending:
    """The messages of one call. The first of each key has its turn at once, any other when the one before it is published.

    So a message that is not answered for keeps nothing waiting but what comes after it in its key; and a call of which something is
    published does not wait again for what an earlier one has handed over, or one slow handler would make every call as long as can be.

    Args:
        messages: what is published.
        began: how many calls had published something by then.

    Attributes:
        since: the same for those messages that were handed over in an earlier call.
        outcomes: one for each; what is behind at the end had no turn.
        out: the postings of those that were handed over.
        turns: the messages that have had their turn, or are to have it now, in this order.
        place: how many of them have had it.
    """

    def __init__(self, messages: Sequence[Message], began: int) -> None:
        self.messages = messages
        self.began = began
        self.since: dict[int, int] = {}
        self.outcomes: list[Outcome] = [BEHIND] * len(messages)
        self.out: dict[int, Posting] = {}
        self.turns = list(range(len(messages)))
        self.place = 0
        self._following: dict[int, int] = {}
        self._held: set[int] = set()
        self._patient = False
        self._moved = asyncio.Event()

    def in_order(self) -> None:
        """From now on no two messages of a key are out together."""
        self._following = _following(self.messages)
        if self._following:
            behind = set(self._following.values())
            self.turns = [index for index in self.turns if index not in behind]

    async def another(self) -> bool:
        """Wait until one more has its turn; say whether there is one, or none will have."""
        while self.place == len(self.turns) and self._awaits_turns():
            self._moved.clear()
            await self._moved.wait()
        return self.place < len(self.turns)

    def handed_over(self, index: int) -> None:
        """What becomes of a message is not known yet. Only what others wait for is looked after here: the rest has time until `rest`."""
        if index not in self._following:
            return
        self._held.add(index)
        self.out[index].tell(partial(self._heard, index))

    def over(self, index: int, outcome: Outcome) -> None:
        """What became of a message is known."""
        self.outcomes[index] = outcome
        if index in self.out:
            self.out[index].open = False
        if index in self._following:
            self._held.discard(index)
            if isinstance(outcome, Published):
                self.turns.append(self._following[index])
            self._moved.set()

    async def rest(self) -> None:
        """Wait for what becomes of those that nobody is behind. Meanwhile others may get their turn."""
        outcomes, out = self.outcomes, self.out
        for index in self.turns[: self.place]:
            if outcomes[index] is BEHIND and (self._patient or index not in self.since):
                outcomes[index] = await out[index].outcome()
                out[index].open = False

    def enough(self) -> bool:
        """Say whether there is nothing more to wait for. If nothing was published, what an earlier call has handed over is, from now on."""
        if self.place < len(self.turns):
            return False
        if self._patient or not self.since or PUBLISHED in self.outcomes:
            return True
        self._patient = True
        return False

    def late(self) -> list[int]:
        """Nobody waits any more. Take the outcome of whatever is over, and return those that were to be, and are not."""
        late = []
        for index, sent in self.out.items():
            if sent.stored and self.outcomes[index] is BEHIND:
                self.over(index, PUBLISHED)  # a log has it, with or without a turn
        # Where none has had its turn, it is the log that has not answered: that is an outage, and nobody is behind anybody.
        had = self.turns[: self.place] or self.turns
        for index in [index for index in had if self.outcomes[index] is BEHIND]:
            posting = self.out.get(index)
            known = posting.known() if posting is not None and posting.open else None
            if known is None:
                late.append(index)
            else:
                self.over(index, known)
        return late

    def end(self) -> None:
        """Nobody waits any more."""
        for index in self._held:
            self.out[index].tell(None)
        self._held.clear()

    def _awaits_turns(self) -> bool:
        """Say whether others are behind one that is waited for."""
        return bool(self._held) if self._patient or not self.since else any(index not in self.since for index in self._held)

    def _heard(self, index: int) -> None:
        if index in self._held and (outcome := self.out[index].known()) is not None:
            self.over(index, outcome)


def _following(messages: Sequence[Message]) -> dict[int, int]:
    """Return which message comes next in the key of each, where one does."""
    last: dict[str, int] = {}
    following: dict[int, int] = {}
    for index, message in enumerate(messages):
        key = message.key
        if key is not None:
            if key in last:
                following[last[key]] = index
            last[key] = index
    return following
