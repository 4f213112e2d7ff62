"""The ways of a message that are not the plain one: to a log, at its time, and where there is no room."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from bridges.inprocess.feed import Feed
from bridges.inprocess.settings import Drop, Policy
from bridges.inprocess.spill import Spill
from bridges.inprocess.stamps import PLAIN, Stamps

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from bridges.inprocess.delivery import Delivery
    from bridges.inprocess.mailbox import Mailbox
    from bridges.inprocess.routes import Route, Routes
    from bridges.inprocess.stats import Counts
    from bridges.inprocess.timers import Timers
    from bridges.message import Message
    from bridges.ports import Outcome

log = logging.getLogger("outboxd.inprocess")


class Answer(Protocol):
    """What will become of a message at one subscription."""

    async def outcome(self) -> Outcome:
        """Wait for it."""

    def withdraw(self) -> None:
        """Nobody waits for it any more."""


class _FromLog:
    """What becomes of an offset at a subscription that reads the log."""

    def __init__(self, feed: Feed, offset: int) -> None:
        self._feed = feed
        self._offset = offset

    async def outcome(self) -> Outcome:
        return await self._feed.outcome(self._offset)

    def withdraw(self) -> None:
        """It stays in the log."""


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
        await self._store(message, route, its)
        return await self._deliver(message, route, its)

    async def store(self, messages: Sequence[Message], routes: Sequence[Route]) -> bool:
        """Store messages that one durable log keeps, all together, and deliver them; False, and nothing is done, if they are others."""
        logs = {id(route.kept): route.kept for route in routes}
        kept = routes[0].kept if len(logs) == 1 else None
        if kept is None or not kept.log.durable:
            return False
        await kept.append(messages)
        for message, route in zip(messages, routes, strict=True):
            await self._deliver(message, route, PLAIN)
        return True

    async def answerable(self, message: Message, route: Route) -> tuple[bool, Sequence[Answer]]:
        """Deliver a message now; return whether a durable log has stored it, and what will become of it at each subscription."""
        offset = await self._store(message, route, PLAIN)
        deliveries = await self._deliver(message, route, PLAIN)
        for delivery in deliveries:
            delivery.own.answered = True
        feeds = [_FromLog(box.backlog, offset) for box in route.fed if isinstance(box.backlog, Feed)]
        return route.kept is not None and route.kept.log.durable, [*deliveries, *feeds]

    async def patiently(self, message: Message, route: Route, timeout: float) -> tuple[list[Delivery], list[str]]:
        """Deliver a message, waiting for room; return the deliveries, and the names of those that had none in time."""
        await self._store(message, route, PLAIN)
        waits = {asyncio.ensure_future(self._wait_for_room(box, message, route.counts, PLAIN)): box.name for box in route.boxes}
        if not waits:
            return [], []
        _, late = await asyncio.wait(waits, timeout=timeout)
        for wait in late:
            wait.cancel()
        if late:
            await asyncio.wait(late)
        came = [wait.result() for wait in waits if not wait.cancelled()]
        return [delivery for delivery in came if delivery is not None], [name for wait, name in waits.items() if wait.cancelled()]

    async def squeeze(self, message: Message, counts: Counts, boxes: Sequence[Mailbox], its: Stamps = PLAIN) -> list[Delivery]:
        """Deliver a message where there is no room, by the policy of each: first wherever that needs no waiting."""
        deliveries: list[Delivery | None] = []
        waits: list[Coroutine[object, object, Delivery | None]] = []
        for box in boxes:
            policy = box.settings.policy
            if policy == Policy.BLOCK or isinstance(box.backlog, Spill):
                waits.append(self._wait_for_room(box, message, counts, its))
            else:
                deliveries.append(box.displace(its, message, counts))
        if len(waits) == 1:
            deliveries.append(await waits[0])
        elif waits:
            deliveries += await asyncio.gather(*waits)
        return [delivery for delivery in deliveries if delivery is not None]

    def close(self) -> None:
        """Deliver nothing more at its time."""
        self.scheduled = 0
        for task in self._tasks:
            task.cancel()

    async def ended(self) -> None:
        """Wait until nothing runs any more."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _store(self, message: Message, route: Route, its: Stamps) -> int:
        return 0 if route.kept is None else await route.kept.append([message], its)

    async def _deliver(self, message: Message, route: Route, its: Stamps) -> list[Delivery]:
        now = time.time()
        if its.due is not None and its.due > now:
            self.scheduled += 1
            self._timers.at(monotonic() + its.due - now, partial(self._come_due, message, its))
            return []
        if not route.boxes:
            return []
        deliveries: list[Delivery] = []
        full: list[Mailbox] = []
        for box in route.boxes:
            if box.closed:
                continue
            if not box.admits(message):
                full.append(box)
            elif delivery := box.put_by(its, message, route.counts):
                deliveries.append(delivery)
        return deliveries + await self.squeeze(message, route.counts, full, its) if full else deliveries

    async def _wait_for_room(self, box: Mailbox, message: Message, counts: Counts, its: Stamps) -> Delivery | None:
        try:
            while not (box.closed or box.admits(message)):
                if isinstance(box.backlog, Spill):
                    await box.backlog.take(message, counts, its)
                    return None
                await box.waiting.for_room()
        except asyncio.CancelledError:
            if not isinstance(box.backlog, Spill):  # which counts for itself
                box.drops.never_came(message, counts, Drop.WITHDRAWN)
            raise
        return None if box.closed else box.put_by(its, message, counts)

    def _come_due(self, message: Message, its: Stamps) -> None:
        """The time of a message has come: to those who are subscribed by now."""
        self.scheduled -= 1
        route = self._routes.known.get(message.topic) or self._routes.find(message.topic)
        if not route.boxes or (its.expires is not None and its.expires <= time.time()):
            return
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(self._deliver(message, route, its._replace(due=None)))
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()):
            log.error("a message that came due was not delivered: %s", problem, exc_info=problem)
