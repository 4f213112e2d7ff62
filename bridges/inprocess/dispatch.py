"""The ways of a message that are not the plain one: to a log, at its time, and where there is no room."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from bridges.errors import told
from bridges.inprocess.entry import Entry
from bridges.inprocess.posting import Posting
from bridges.inprocess.settings import Policy
from bridges.inprocess.stamps import PLAIN, Stamps
from bridges.ports import PUBLISHED

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from bridges.inprocess.delivery import Delivery
    from bridges.inprocess.mailbox import Mailbox
    from bridges.inprocess.routes import Route, Routes
    from bridges.inprocess.timers import Timers
    from bridges.message import Message

log = logging.getLogger("outboxd.inprocess")


class Dispatch:
    """See the module.

    Attributes:
        scheduled: messages that wait for their time.
    """

    def __init__(self, routes: Routes, timers: Timers) -> None:
        self._routes = routes
        self._timers = timers
        self._tasks: set[asyncio.Task[object]] = set()
        self.scheduled = 0

    async def special(self, message: Message, route: Route, its: Stamps) -> list[Delivery]:
        """Store a message if its topic keeps a log, and deliver it now or at its time."""
        posting = Posting(message, route, its)
        await self._post(posting)
        return posting.deliveries

    async def begin(self, posting: Posting) -> Sequence[asyncio.Future[Any]]:
        """Do the same, for somebody who has the posting: return what is to be waited for, and cancelled if nobody does.

        A log that need not wait has the message at once, before what others publish next. Any other takes its time, beside all else.
        """
        kept = posting.route.kept
        if kept is None or kept.at_once:
            await self._store(posting)
            return self._deliver(posting)
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(self._post(posting))
        self._tasks.add(task)
        task.add_done_callback(partial(self._posted, posting))
        return [task]

    async def store(self, postings: Sequence[Posting]) -> None:
        """Store messages that one durable log keeps, all together, and deliver them; nothing is done if they are others."""
        logs = {id(posting.route.kept): posting.route.kept for posting in postings}
        kept = postings[0].route.kept if len(logs) == 1 else None
        if kept is None or not kept.log.durable:
            return
        first = await kept.append([posting.message for posting in postings])
        for offset, posting in enumerate(postings, first):
            posting.kept(offset, durable=True)
        # All at once: if there is no time for those that wait for room, the others have theirs.
        await _each([_enter(box, posting) for posting in postings for box in self._offer(posting)])

    async def patiently(self, posting: Posting, timeout: float, *, acknowledged: bool) -> list[str]:
        """Deliver a message, waiting for room whatever the policy; return the names of those that were not in time.

        If the log of its topic is not, its name is the only one, and nobody has been given the message.
        """
        deadline = monotonic() + timeout
        posting.awaited = acknowledged
        message, route = posting.message, posting.route
        if route.kept is not None:
            storing = asyncio.ensure_future(self._store(posting))
            if late := await _late({storing: f"the log of {route.kept.pattern.text!r}"}, deadline):
                return late
        waits = {}
        for box in route.boxes:
            if box.closed:
                posting.missed(box)
            elif box.wants(message, route.counts):
                waits[_enter(box, posting)] = box.name
        late = await _late(waits, deadline)
        if acknowledged:
            outcomes: dict[asyncio.Future[Any], str] = {asyncio.ensure_future(answer.outcome()): name for name, answer in posting.answers()}
            late += await _late(outcomes, deadline)
            late += [name for outcome, name in outcomes.items() if not outcome.cancelled() and outcome.result() != PUBLISHED]
        return list(dict.fromkeys(late))  # who had no room in time has not acknowledged it either

    async def squeeze(self, message: Message, route: Route, boxes: Sequence[Mailbox]) -> list[Delivery]:
        """Deliver a message where there is no room, by the policy of each."""
        posting = Posting(message, route, PLAIN)
        await _each([_enter(box, posting) for box in self._displace(posting, boxes)])
        return posting.deliveries

    def close(self) -> None:
        """Deliver nothing more at its time."""
        self.scheduled = 0
        for task in self._tasks:
            task.cancel()

    async def ended(self) -> None:
        """Wait until nothing runs any more."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _post(self, posting: Posting) -> None:
        await self._store(posting)
        await _each(self._deliver(posting))

    async def _store(self, posting: Posting) -> None:
        kept = posting.route.kept
        if kept is None:
            return
        durable = kept.log.durable
        asks = posting.awaited and not (posting.answered and durable)
        feeds = [box.feed for box in posting.route.fed if box.feed is not None] if asks else ()
        for feed in feeds:
            feed.appending(posting)
        try:
            posting.kept(await kept.append([posting.message], posting.its), durable=durable)
        finally:
            for feed in feeds:
                feed.appended(posting)

    def _deliver(self, posting: Posting) -> Sequence[asyncio.Future[Any]]:
        """Deliver a message, now or at its time; return what is to be waited for where there is no room."""
        its, now = posting.its, time.time()
        if its.due is not None and its.due > now:
            self.scheduled += 1
            self._timers.at(monotonic() + its.due - now, partial(self._come_due, posting.message, its))
            return ()
        return [_enter(box, posting) for box in self._offer(posting)]

    def _offer(self, posting: Posting) -> list[Mailbox]:
        """Deliver a message wherever that needs no waiting; return where it does."""
        full: list[Mailbox] = []
        for box in posting.route.boxes:
            if box.closed:
                posting.missed(box)
            elif box.admits(posting.message):
                posting.came(box.put_by(posting.its, posting.message, posting.route.counts))
            else:
                full.append(box)
        return self._displace(posting, full)

    def _displace(self, posting: Posting, boxes: Sequence[Mailbox]) -> list[Mailbox]:
        """Drop where there is no room and the policy says so; return where the message has to wait. Not where nobody wants it."""
        waits: list[Mailbox] = []
        for box in boxes:
            if not box.wants(posting.message, posting.route.counts):
                continue
            if box.settings.policy in {Policy.BLOCK, Policy.SPILL}:
                waits.append(box)
            else:
                posting.came(box.displace(posting.its, posting.message, posting.route.counts))
        return waits

    def _come_due(self, message: Message, its: Stamps) -> None:
        """The time of a message has come: to those who are subscribed by now."""
        self.scheduled -= 1
        route = self._routes.known.get(message.topic) or self._routes.find(message.topic)
        if not route.boxes or (its.expires is not None and its.expires <= time.time()):
            return
        waits = self._deliver(Posting(message, route, its._replace(due=None)))
        if not waits:
            return
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(_each(waits))
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _posted(self, posting: Posting, task: asyncio.Task[object]) -> None:
        """What went wrong is told here where nobody else will be: where the log has it, or where who publishes listens no more."""
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) and (posting.stored or not posting.heard):
            log.error("a message of %r did not come everywhere: %s", posting.message.topic, told(problem))

    def _over(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()):
            log.error("a message that came due was not delivered: %s", problem, exc_info=problem)


def _enter(box: Mailbox, posting: Posting) -> asyncio.Future[Any]:
    """Get in line at a mailbox, at once; return what is done when that is over, and to be cancelled if nobody waits for it."""
    if box.spill is not None and not box.admits(posting.message):
        return box.spill.take(posting)
    entry = Entry(box, posting)
    posting.goes_behind(box, entry)
    return entry.entered


async def _each(waits: Sequence[asyncio.Future[Any]]) -> None:
    """Wait for all of them, also when one fails, and raise what one raised. None goes on when whoever waits is cancelled."""
    if len(waits) == 1:
        await waits[0]
    elif waits:
        try:
            await asyncio.wait(waits)
        finally:
            await _ended(waits)
        for wait in waits:
            wait.result()


async def _late(waits: Mapping[asyncio.Future[Any], str], deadline: float) -> list[str]:
    """Wait for all of them until a deadline; return the names of those that were not in time, and do not go on. Raise what one raised."""
    if not waits:
        return []
    try:
        await asyncio.wait(waits, timeout=max(0.0, deadline - monotonic()))
    finally:
        await _ended(waits)
    for wait in waits:
        if not wait.cancelled():
            wait.result()
    return [name for wait, name in waits.items() if wait.cancelled()]


async def _ended(waits: Collection[asyncio.Future[Any]]) -> None:
    """End those that still run."""
    running = [wait for wait in waits if wait.cancel()]
    if running:
        await asyncio.wait(running)
