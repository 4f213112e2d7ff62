"""Who waits for what becomes of an offset, at a subscription that reads a log."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bridges.ports import PUBLISHED, Published

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from bridges.inprocess.posting import Answer, Posting
    from bridges.ports import Outcome


class Awaited:
    """See the module.

    An append can be read before it is answered, and with that before anybody can ask for its offset. What is over by then is published,
    unless it is noted here otherwise.
    """

    def __init__(self) -> None:
        self._reads: dict[int, list[_Read]] = {}
        self._appends: dict[Posting, int] = {}
        """The first offset that each append under way may get: the oldest is the lowest, since a log only grows."""
        self._noted: dict[int, Outcome] = {}
        """What became of offsets that these may have got, where that is not published."""

    def __bool__(self) -> bool:
        return bool(self._reads)

    def begin(self, posting: Posting, first: int) -> None:
        """An append begins, after which it will be asked what becomes of it; ``first``: the first offset that it may get."""
        self._appends[posting] = first

    def end(self, posting: Posting) -> None:
        """It was asked, or will not be."""
        del self._appends[posting]
        if self._noted:
            oldest = next(iter(self._appends.values()), None)
            self._noted = {} if oldest is None else {offset: outcome for offset, outcome in self._noted.items() if offset >= oldest}

    def ask(self, offset: int, *, over: bool, keeps: bool) -> Answer:
        """Return what becomes of an offset; ``over``: it is known here by now; ``keeps``: who asks keeps what is rejected."""
        read = _Read(keeps=keeps)
        if over:
            read.over.set_result(self._noted.get(offset, PUBLISHED))
        else:
            self._reads.setdefault(offset, []).append(read)
        return read

    def kept(self, offset: int) -> bool:
        """Say whether somebody waits for an offset, and keeps it if it is rejected."""
        return any(read.keeps for read in self._reads.get(offset, ()))

    def settle(self, offset: int, outcome: Outcome) -> None:
        """Tell what became of an offset."""
        for read in self._reads.pop(offset, ()):
            read.over.set_result(outcome)
        if self._appends and not isinstance(outcome, Published) and offset >= next(iter(self._appends.values())):
            self._noted[offset] = outcome

    def settle_between(self, begin: int, end: int, but: Container[int], outcome: Outcome) -> None:
        """Tell the same of all from ``begin`` on and before ``end``, but of some."""
        for offset in [offset for offset in self._reads if begin <= offset < end and offset not in but]:
            self.settle(offset, outcome)
        if self._appends and not isinstance(outcome, Published):
            for offset in range(max(begin, next(iter(self._appends.values()))), end):
                if offset not in but:
                    self._noted[offset] = outcome

    def close(self, outcome: Outcome) -> None:
        """Tell the same of all."""
        for offset in list(self._reads):
            self.settle(offset, outcome)


class _Read:
    """What becomes of an offset."""

    def __init__(self, *, keeps: bool) -> None:
        self.keeps = keeps
        self.over: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    async def outcome(self) -> Outcome:
        return await asyncio.shield(self.over)

    def known(self) -> Outcome | None:
        return self.over.result() if self.over.done() else None

    def tell(self, told: Callable[[object], None]) -> None:
        self.over.add_done_callback(told)

    def unread(self) -> bool:
        """It may be with a reader by now: the log does not tell."""
        return not self.over.done()

    def withdraw(self) -> bool:
        """It stays in the log."""
        return False
