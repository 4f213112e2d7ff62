"""A place in the broker where messages arrive, and the loop over them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self
from weakref import WeakKeyDictionary

from bridges.errors import Closed
from bridges.inprocess.delivery import Reader

if TYPE_CHECKING:
    from bridges.inprocess.delivery import Delivery
    from bridges.inprocess.mailbox import Mailbox
    from bridges.inprocess.members import Members, Terms


class Subscription(Reader):
    """A place in the broker where messages arrive. It ends with the task or scope that entered it, or with `unsubscribe`.

    ``async for`` over it gives each `Delivery`, and acknowledges it when it comes for the next one or leaves the scope without an error,
    unless the subscription was made with ``ack="explicit"``. Several tasks may iterate over it at once; they share its messages, and two of
    one key may be with two of them, out of order. Members of a queue group, one task each, keep the order of each key.
    """

    def __init__(self, members: Members, terms: Terms, prefetch: int, *, loop_acks: bool) -> None:
        super().__init__(prefetch)
        self.ended = False
        self._members = members
        self._terms = terms
        self._loop_acks = loop_acks
        self._loops: WeakKeyDictionary[asyncio.Task[object], Loop] = WeakKeyDictionary()
        self._mailbox: Mailbox | None = None
        self._task: asyncio.Task[object] | None = None
        self._problem: Exception | None = None

    @property
    def mailbox(self) -> Mailbox:
        """The buffer; shared within a group. Raises `Closed` before the subscription has begun."""
        if self._mailbox is None:
            msg = "the subscription has not begun"
            raise Closed(msg)
        return self._mailbox

    @property
    def name(self) -> str:
        """What figures, dead letters and errors call it."""
        return self.mailbox.name

    def begin(self) -> Self:
        """Take part from now on.

        Raises `Closed` on a closed broker, `ConfigurationError` where it does not fit its group or there is no log for it, and
        `bridges.errors.Evicted` where the log has no longer what it is to start with.
        """
        if self._mailbox is None:
            self._mailbox = self._members.join(self, self._terms)
        return self

    def unsubscribe(self) -> None:
        """Take no further part; what was not acknowledged goes to the rest of the group. Any number of times."""
        if self._mailbox is not None and not self.ended:
            self.ended = True
            self._members.leave(self, self._mailbox)

    async def take(self, limit: int, reader: Reader | None = None) -> list[Delivery]:
        """Wait for at least one delivery and return up to ``limit``; an empty list says that the subscription has ended.

        Each is to be ended by `Delivery.ack` and the like. Raises `bridges.errors.Evicted`, once, where the log has lost what was next; the
        next call goes on with what it has left.
        """
        while not self.ended:
            if taken := self.take_nowait(limit, reader):
                return taken
            await self.mailbox.waiting.for_reader(reader or self)
        return []

    def take_nowait(self, limit: int, reader: Reader | None = None) -> list[Delivery]:
        """Return up to ``limit`` deliveries that are waiting, perhaps none; for one of several readers, if it is given.

        Raises as `take`, once it has returned what came before that.
        """
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise problem
        taken: list[Delivery] = []
        take = self.mailbox.take
        try:
            while not self.ended and len(taken) < limit and (delivery := take(reader or self)) is not None:
                taken.append(delivery)
        except Exception as problem:  # of the log, whatever it is: the next call raises it, and these must not be out with nobody
            if not taken:
                raise
            self._problem = problem
        return taken

    def __aiter__(self) -> Loop:
        return Loop(self, self.mailbox, acks=self._loop_acks)

    async def __aenter__(self) -> Self:
        self.begin()
        self._task = asyncio.current_task()
        if self._task is not None:
            self._task.add_done_callback(self._end_with_task)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._task is not None:
            self._task.remove_done_callback(self._end_with_task)
        if kind is None and self._task is not None and (loop := self._loops.get(self._task)) is not None:
            loop.finish()
        self._loops.clear()
        self.unsubscribe()

    def _end_with_task(self, _: asyncio.Task[object]) -> None:
        self.unsubscribe()


class Loop:
    """One ``async for`` over a subscription."""

    __slots__ = ("_acks", "_current", "_mailbox", "_subscription", "_take")

    def __init__(self, subscription: Subscription, mailbox: Mailbox, *, acks: bool) -> None:
        self._subscription = subscription
        self._mailbox = mailbox
        self._take = mailbox.take
        self._acks = acks
        self._current: Delivery | None = None
        if acks and (task := asyncio.current_task()) is not None:
            subscription._loops[task] = self

    def finish(self) -> None:
        """The body of the loop is through with what it had; unless it has given it back, that is acknowledged."""
        finished, self._current = self._current, None
        if finished is not None and not finished.given_back:
            finished.ack()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        subscription = self._subscription
        finished = self._current
        if finished is not None and finished.details is not None:  # it may have been given back, or be another's by now
            self.finish()
            finished = None
        while not subscription.ended:
            delivery = self._take(subscription, finished)
            if delivery is not None:
                if self._acks:
                    self._current = delivery
                return delivery
            finished = self._current = None
            await self._mailbox.waiting.for_reader(subscription)
        self.finish()
        raise StopAsyncIteration
