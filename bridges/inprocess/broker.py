"""The broker: subscribing, publishing, closing."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Literal, Self

from bridges.errors import Closed, ConfigurationError, NoReply, Stalled
from bridges.inprocess.deadletters import MAX_LETTERS, DeadLetters
from bridges.inprocess.dispatch import Dispatch
from bridges.inprocess.house import House
from bridges.inprocess.kept import KeptLogs, Start
from bridges.inprocess.members import Members, Terms
from bridges.inprocess.posting import Posting
from bridges.inprocess.request import Replies, answer_to
from bridges.inprocess.routes import Routes
from bridges.inprocess.settings import RETRY, Drop, Policy, PolicyName, Settings
from bridges.inprocess.stamps import PLAIN, stamps
from bridges.inprocess.stats import Figures, ended_figures, figures_of
from bridges.inprocess.subscription import Subscription
from bridges.inprocess.timers import Timers
from bridges.topics import Pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from bridges.backoff import Backoff
    from bridges.inprocess.delivery import Delivery, State
    from bridges.inprocess.log import CursorStore, Log
    from bridges.inprocess.routes import Route
    from bridges.inprocess.tenants import Tenants
    from bridges.message import Message


class Broker:
    """An embedded broker. Everything happens on the event loop that uses it.

    Args:
        buffer: deliveries that a subscription, or a queue group, buffers unless it says otherwise.
        max_dead_letters: dead letters to keep; the oldest go first.
    """

    def __init__(self, *, buffer: int = 1000, max_dead_letters: int = MAX_LETTERS) -> None:
        self._buffer = Settings(buffer=buffer).buffer
        self._timers = Timers()
        self.dead_letters = DeadLetters(max_dead_letters)
        """What subscriptions have given up."""
        self._logs = KeptLogs()
        self._routes = Routes(self._logs)
        self._known = self._routes.known
        self._members = Members(House(self._timers, self.dead_letters, self._reply), self._routes, self._logs)
        self._dispatch = Dispatch(self._routes, self._timers)
        self._replies = Replies()
        self._closed = False

    def subscribe(
        self,
        *patterns: str,
        name: str | None = None,
        group: str | None = None,
        durable: str | None = None,
        buffer: int | None = None,
        policy: Policy | PolicyName = Policy.DROP_NEWEST,
        spill_to: Log | None = None,
        on_drop: Callable[[Message, Drop], None] | None = None,
        filter: Callable[[Message], bool] | None = None,  # noqa: A002 -- what it is called everywhere
        prefetch: int = 256,
        ack: Literal["loop", "explicit"] = "loop",
        ack_deadline: float | None = 30.0,
        retry: Backoff = RETRY,
        tenants: Tenants | None = None,
        start: Start | None = None,
    ) -> Subscription:
        """Make a subscription to the topics of any of the patterns; it begins when it is entered, or with `Subscription.begin`.

        Raises `InvalidPattern` and `ConfigurationError` for what cannot work, here or, where it depends on others, when it begins.

        Args:
            patterns: topics, with ``*`` for one token and ``>`` for one or more at the end; all topics if there is none.
            name: what figures, dead letters and errors call it; the group or the patterns unless given.
            group: the queue group to be a member of: each message goes to one member, a key to one at a time; the buffer is the group's.
            durable: the name under which a log remembers what was acknowledged, over restarts; those who share it are a queue group.
            buffer: deliveries that may wait; the broker's default if None.
            policy: what happens to a message for which there is no room.
            spill_to: the log for policy ``spill``, none that keeps topics; if None, the log that keeps all the topics.
            on_drop: called with each message that is dropped, and why; not with what a spill's log has lost, which is counted alone.
            filter: called with each message; False keeps it out of the subscription. If it raises, the message is dropped here, and not
                asked for again: whoever publishes it is told that it is published.
            prefetch: how many deliveries this member may have unacknowledged.
            ack: ``loop``: ``async for`` acknowledges a delivery when it comes for the next, or leaves its scope without an error;
                ``explicit``: only `Delivery.ack` does.
            ack_deadline: seconds after which what a reader has not ended is delivered again, as failed; None for never.
            retry: how long what failed waits, and after how many attempts it is a dead letter.
            tenants: be fair between the tenants that the messages name; not for what is read from a log, so without ``start``, ``durable``
                and policy ``spill``. A key that two tenants share is not kept in order.
            start: read the log of the topics from here on; None: no log, or where the durable name has come to.
        """
        settings = Settings(
            buffer=self._buffer if buffer is None else buffer,
            policy=policy,
            ack_deadline=ack_deadline,
            retry=retry,
            filter=filter,
            on_drop=on_drop,
            tenants=tenants,
            spill_to=spill_to,
        )
        if prefetch < 1:
            msg = f"prefetch: {prefetch} is below 1"
            raise ConfigurationError(msg)
        if ack not in {"loop", "explicit"}:
            msg = f"ack: {ack!r} is not 'loop' or 'explicit'"
            raise ConfigurationError(msg)
        terms = Terms(tuple(Pattern(text) for text in patterns or (">",)), name, group, durable, settings, start)
        return Subscription(self._members, terms, prefetch, loop_acks=ack == "loop")

    async def publish(
        self, message: Message, *, priority: int = 0, ttl: float | None = None, deliver_at: datetime | None = None
    ) -> list[Delivery]:
        """Deliver a message to every subscription that matches, one member of each group. Where a subscription blocks, wait for room.

        Return the deliveries, dropped ones among them; none of those that come later, or from a log. Raises `InvalidMessage` for what
        cannot be published, and `Closed` after the broker was closed.

        Args:
            message: what to publish.
            priority: the higher, the sooner it is delivered; among equals, first come, first served.
            ttl: seconds (from ``deliver_at``, if given) after which what has not begun to be delivered is dropped.
            deliver_at: not before this time.
        """
        try:
            route = self._known[message.topic]
        except KeyError:
            self._check_open()
            if self._replies.settle(message):
                return []
            route = self._routes.find(message.topic)
        if priority or ttl is not None or deliver_at is not None or route.kept is not None:
            return await self._dispatch.special(message, route, stamps(priority, ttl, deliver_at))
        counts = route.counts
        only = route.only
        if only is not None and only.queued < only.size:
            delivery = only.put(message, counts, monotonic())
            return [] if delivery is None else [delivery]
        deliveries = []
        full = None
        now = monotonic()
        for box in route.boxes:
            if box.queued < box.size:
                delivery = box.put(message, counts, now)
                if delivery is not None:
                    deliveries.append(delivery)
            elif full is None:
                full = [box]
            else:
                full.append(box)
        if full is not None:
            deliveries += await self._dispatch.squeeze(message, route, full)
        return deliveries

    async def publish_and_wait(
        self, message: Message, timeout: float, *, until: Literal["accepted", "acknowledged"] = "accepted"
    ) -> list[Delivery]:
        """Publish a message, and return when every subscription has accepted it into its buffer, waiting for room whatever its policy.

        Raises `Stalled`, with their names, if some have not within ``timeout`` seconds; the others have it. A log that has not stored it
        in time is named in their place: nobody has it then, unless the log gets to it yet.

        Args:
            message: what to publish.
            timeout: seconds.
            until: ``acknowledged``: wait until every subscription has acknowledged it, those that read it from a log among them.
        """
        posting = self.posting(message)
        if not self._replies.settle(message):
            stalled = await self._dispatch.patiently(posting, timeout, acknowledged=until == "acknowledged")
            if stalled:
                raise Stalled(message.topic, stalled, timeout)
        return posting.deliveries

    async def request(self, message: Message, timeout: float) -> Message:
        """Publish a message and return the first answer to it (`Delivery.reply`).

        Raises `NoReply` if no subscription takes it, or if there is no answer within ``timeout`` seconds.
        """
        with self._replies.awaited(message) as (request, answer):
            try:
                async with asyncio.timeout(timeout):
                    await self.publish(request)
                    if not answer.done() and not self.hears(message.topic):  # who has answered may have left since
                        msg = f"no subscription takes {message.topic!r}"
                        raise NoReply(msg)
                    return await answer
            except TimeoutError as late:
                if isinstance(late, NoReply):
                    raise
                msg = f"no reply to {message.topic!r} within {timeout:g} s"
                raise NoReply(msg) from None

    def keep(self, pattern: str, log: Log, cursors: CursorStore | None = None) -> None:
        """Keep the topics of a pattern in a log from now on. The broker closes both in `aclose`.

        Raises `InvalidPattern`, and `ConfigurationError` if another log keeps some of the topics, or a subscription spills to this one.

        Args:
            pattern: the topics; subscriptions that read the log may take a part of them.
            log: what keeps them.
            cursors: where durable subscriptions have come to.
        """
        self._members.check_kept(log)
        self._logs.add(Pattern(pattern), log, cursors)
        self._routes.forget()

    def hears(self, topic: str) -> bool:
        """Say whether some subscription takes a topic, or a request awaits its answer there. Raises `InvalidMessage`, `Closed`."""
        self._check_open()
        route = self._route(topic)
        return bool(route.boxes or route.fed) or self._replies.awaits(topic)

    def posting(self, message: Message, *, answered: bool = False) -> Posting:
        """Begin to publish for somebody who looks after the message. Raises `InvalidMessage`, `Closed`.

        Args:
            message: what to publish.
            answered: whether what is rejected is kept there, and is no dead letter here.
        """
        self._check_open()
        return Posting(message, self._route(message.topic), PLAIN, answered=answered)

    async def post(self, posting: Posting) -> None:
        """Begin to publish; what comes of it, and when, the posting knows. Raises what a log in memory does."""
        if not self._replies.settle(posting.message):
            posting.waits_for(await self._dispatch.begin(posting))

    async def store(self, postings: Sequence[Posting]) -> None:
        """Publish messages that one durable log keeps, stored all together; nothing is done if they are others: see `Posting.stored`."""
        await self._dispatch.store(postings)

    def stores(self, topic: str) -> bool:
        """Say whether a durable log keeps a topic. Raises `InvalidMessage`, `Closed`."""
        self._check_open()
        kept = self._route(topic).kept
        return kept is not None and kept.log.durable

    def states(self, message_id: UUID) -> dict[str, State]:
        """Return where a message is, by the name of each subscription that has it, or soon comes to it in a log; scheduled, it has none."""
        return {box.name: state for box in self._members.boxes() if (state := box.state_of(message_id)) is not None}

    def figures(self) -> Figures:
        """Return a copy of all figures."""
        return Figures(
            topics=self._routes.counts.figures(),
            subscriptions={box.name: figures_of(box) for box in self._members.boxes()},
            ended=ended_figures(self._members.ended),
            scheduled=self._dispatch.scheduled,
            dead_letters=len(self.dead_letters),
            dead_letters_overflowed=self.dead_letters.overflowed,
        )

    def named(self, subscription: str) -> bool:
        """Say whether a subscription got its name from its maker, or its group; otherwise it is made of its patterns."""
        return self._members.named(subscription)

    def close(self) -> None:
        """End every subscription; a publish after it raises. Any number of times."""
        self._closed = True
        self._members.close()
        self._dispatch.close()
        self._timers.clear()
        self._routes.forget()

    async def aclose(self) -> None:
        """Close the broker, save how far durable subscriptions have come, and close the logs. Any number of times."""
        self.close()
        await self._dispatch.ended()
        await self._members.settled()
        await self._logs.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _reply(self, request: Message, payload: bytes, content_type: str | None, headers: Mapping[str, str]) -> None:
        await self.publish(answer_to(request, payload, content_type, headers))

    def _route(self, topic: str) -> Route:
        return self._known.get(topic) or self._routes.find(topic)

    def _check_open(self) -> None:
        if self._closed:
            msg = "the broker is closed"
            raise Closed(msg)
