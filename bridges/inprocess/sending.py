"""One call of a sink: whose turn it is to be handed over, what has become of what was, and for how long it is waited for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from bridges.errors import Closed, InvalidMessage, LogFailed, told
from bridges.ports import BEHIND, PUBLISHED, Published, Reason, Rejected, Released

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.inprocess.posting import Posting
    from bridges.message import Message
    from bridges.ports import Outcome

_LINGER: Final = 0.0001
"""Seconds from the last that was published, for each message that is stuck. To claim its row again takes a tenth to a fifth of that."""
_PATIENCE: Final = 0.001
"""The same, where there is nothing else in the call that a longer wait would keep from being told of."""


class Sending:
    """The messages of one call. The first of each key has its turn at once, any other when the one before it is published.

    So a message that is not answered for keeps nothing waiting but what comes after it in its key. And a call of which something is
    published does not wait long for what is stuck, or one slow handler would make every call as long as can be. Stuck is what an earlier
    call has waited for in vain, and whatever has come behind such a message where no reader has had even that.

    Args:
        messages: what is published.
        began: how many calls had published something by then.
        stuck_at: the names of the subscriptions where earlier ones are stuck.

    Attributes:
        since: the same for those messages that were handed over in an earlier call.
        outcomes: one for each; what is behind at the end had no turn.
        out: the postings of those that were handed over.
    """

    def __init__(self, messages: Sequence[Message], began: int, stuck_at: set[str]) -> None:
        self.messages = messages
        self.began = began
        self.since: dict[int, int] = {}
        self.outcomes: list[Outcome] = [BEHIND] * len(messages)
        self.out: dict[int, Posting] = {}
        self._turns = list(range(len(messages)))
        self._place = 0
        self._following: dict[int, int] = {}
        self._awaited: set[int] = set()
        self._stuck: set[int] = set()
        self._stuck_at = stuck_at
        self._published = self._fresh = self._rested = False
        self._rest: asyncio.TimerHandle | None = None
        self._moved = asyncio.Event()
        self._problem: Exception | None = None

    def in_order(self) -> None:
        """From now on no two messages of a key are out together."""
        self._following = _following(self.messages)
        if self._following:
            behind = set(self._following.values())
            self._turns = [index for index in self._turns if index not in behind]

    async def turn(self) -> int | None:
        """Wait until one more has its turn, and return it; None when there is nothing more to wait for."""
        while True:
            if self._problem is not None:
                raise self._problem
            if self._place < len(self._turns):
                break
            if self._enough():
                return None
            self._moved.clear()
            await self._moved.wait()
        self._place += 1
        return self._turns[self._place - 1]

    def handed_over(self, index: int) -> None:
        """A message is out: what becomes of it, if that is not known yet, is heard."""
        posting = self.out[index]
        if index in self.since or (self._stuck_at and not self._stuck_at.isdisjoint(posting.unread())):
            self._stuck.add(index)
        else:
            self._awaited.add(index)
            self._fresh = True
        posting.tell(self._heard, index)

    def over(self, index: int, outcome: Outcome) -> None:
        """What became of a message is known."""
        self.outcomes[index] = outcome
        if index in self._awaited:
            self._awaited.remove(index)
        else:
            self._stuck.discard(index)
        if isinstance(outcome, Published):
            self._published = True
            self._stay()
            if index in self._following:
                self._turns.append(self._following[index])
                self._moved.set()
        if not self._awaited:
            self._moved.set()

    def late(self) -> list[int]:
        """Nobody waits any more. Return those that had their turn, and are not over."""
        for index, posting in self.out.items():
            if posting.stored and self.outcomes[index] is BEHIND:
                self.over(index, PUBLISHED)  # a log has it, though it is not everywhere yet
        # Where none has had its turn, it is the log that has not answered: that is an outage, and nobody is behind anybody.
        return [index for index in self._turns[: self._place] or self._turns if self.outcomes[index] is BEHIND]

    def end(self) -> None:
        """Hear no more."""
        for posting in self.out.values():
            posting.tell(None)
        self._stay()

    def _enough(self) -> bool:
        """Say whether there is nothing to wait for, or nothing but what is stuck, and that for long enough."""
        if self._awaited or (self._stuck and not self._published):
            return False
        if self._stuck and not self._rested:
            if self._rest is None:
                seconds = len(self._stuck) * (_LINGER if self._fresh else _PATIENCE)
                self._rest = asyncio.get_running_loop().call_later(seconds, self._go)
            return False
        return True

    def _stay(self) -> None:
        """Something has got through: what is stuck may follow it."""
        self._rested = False
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def _go(self) -> None:
        """It was waited for long enough. The clock does not say so: uvloop's is in milliseconds, and its timers come before them."""
        self._rested = True
        self._moved.set()

    def _heard(self, index: int) -> None:
        try:
            outcome = self.out[index].known()
        except (Exception, asyncio.CancelledError) as problem:  # noqa: BLE001 -- whatever it is, who publishes is to have it
            try:
                outcome = outcome_of(problem)
            except Exception as problem:  # noqa: BLE001 -- likewise
                self._problem = problem
                self._moved.set()
                return
        if outcome is not None and self.outcomes[index] is BEHIND:
            self.over(index, outcome)


def outcome_of(problem: BaseException) -> Outcome:
    """Return what it means for a message that its publish has raised. Raises it if it is a mistake of this program."""
    match problem:
        case InvalidMessage():
            return Rejected(Reason.INVALID, str(problem))
        case Closed():
            return Released(Reason.STOPPING, str(problem))
        case asyncio.CancelledError():
            return Released(Reason.STOPPING, "the broker was closed meanwhile")
        case OSError() | LogFailed():
            return Released(Reason.UNAVAILABLE, f"the log: {told(problem)}")
        case _:
            raise problem


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
