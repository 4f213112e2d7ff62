"""The broker as a Sink and as a Source."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, Literal

from bridges.backoff import Backoff
from bridges.errors import Closed, InvalidMessage, LogFailed, SourceUnavailable
from bridges.inprocess.delivery import Reader
from bridges.inprocess.late import Late
from bridges.inprocess.request import INBOX
from bridges.inprocess.sending import Sending, outcome_of
from bridges.ports import PUBLISHED, Outcome, Published, Reason, Rejected, Released, Retry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence

    from bridges.inprocess.broker import Broker
    from bridges.inprocess.delivery import Delivery
    from bridges.inprocess.kept import Start
    from bridges.inprocess.posting import Posting
    from bridges.inprocess.settings import Drop
    from bridges.message import Message

_FOR_EVER: Final = Backoff()
_UNHEARD: Final = Released(Reason.MISSING, "no subscription takes this topic")


class InProcessSink:
    """Publish to the broker, and answer `Published` when every subscription (one member of each queue group) has acknowledged.

    Where a durable log keeps the topic, `Published` means that it has stored the message; whoever reads the log has it from there.

    A topic that nobody subscribes to is `Released`: a consumer that restarts must not miss what was sent meanwhile.

    Args:
        broker: where.
        timeout: seconds for the acknowledgements of one call; what has none by then is released, and stays where it is: with a reader, in
            a buffer, or in line for one. The next call with that message awaits the same again, or only looks for it if it has others to
            publish. Where other messages were acknowledged meanwhile, that is a slow handler and no outage: it is released as if behind
            another. What a call that is cancelled has handed over is withdrawn, unless readers (or a log in memory) have all of it. So is
            the oldest of more than 10,000 messages, or 64 MiB of payloads, that are under way like that. A durable log that is to store
            a call as a whole is asked for that again by the next.
        drop_unheard: answer `Published` for a topic that nobody subscribes to, as a plain broker would.
        ordered: False: the order of keys does not matter; nothing waits for an earlier message of its key.
        max_payload: bytes of a payload above which a message is rejected; None for no limit.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        timeout: float = 20.0,
        drop_unheard: bool = False,
        ordered: bool = True,
        max_payload: int | None = None,
    ) -> None:
        self._broker = broker
        self._timeout = timeout
        self._ordered = ordered
        self._limit = max_payload
        self._unheard: Outcome = PUBLISHED if drop_unheard else _UNHEARD
        self._late = Late()
        self._through = 0
        """Calls of which something was published: what is late though there was one since is not the fault of the sink."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Publish so that no two messages of a key are out together. One outcome each, in order."""
        call = Sending(messages, self._through, self._late.stuck_at())
        outcomes = call.outcomes
        late: Collection[int] | None = None
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    if await self._stored_together(call):
                        outcomes[:] = [PUBLISHED] * len(messages)
                        return outcomes
                    if self._ordered:
                        call.in_order()
                    while (index := await call.turn()) is not None:
                        await self._take_turn(call, index)
            late = set(call.late())
            through = self._through + (PUBLISHED in outcomes)
            for index in late:
                reason = Reason.BEHIND if through > call.since.get(index, call.began) else Reason.TIMEOUT
                outcomes[index] = Released(reason, f"not acknowledged within {self._timeout:g} s")
        finally:
            call.end()
            self._through += PUBLISHED in outcomes
            self._end(call, late)
        return outcomes

    async def _stored_together(self, call: Sending) -> bool:
        """Have one durable log store the whole call, which keeps every order. False if that cannot be: then one by one."""
        messages = call.messages
        if not messages or (self._limit is not None and any(len(message.payload) > self._limit for message in messages)):
            return False
        if self._late and any(message in self._late for message in messages):
            return False  # the log may be at some of them
        postings: list[Posting] = []
        try:
            # What goes wrong is no outcome yet: one by one, each has its own, and what the log refuses as a whole may go in by parts.
            # Nor is it one where the log has them all, and only a subscription beside it failed.
            with suppress(InvalidMessage, Closed, OSError, LogFailed):
                if not self._broker.stores(messages[0].topic):
                    return False
                postings += [self._broker.posting(message, answered=True) for message in messages]
                await self._broker.store(postings)
        finally:
            call.out.update((index, posting) for index, posting in enumerate(postings) if posting.stored)
        return len(call.out) == len(messages)

    async def _take_turn(self, call: Sending, index: int) -> None:
        try:
            outcome = await self._hand_over(call, index)
        except (InvalidMessage, Closed) as problem:
            outcome = outcome_of(problem)
        if outcome is None:
            call.handed_over(index)
        else:
            call.over(index, outcome)

    async def _hand_over(self, call: Sending, index: int) -> Outcome | None:
        """Publish one message; return its outcome where that is known without."""
        message = call.messages[index]
        if self._late and (left := self._late.take(message)) is not None:
            call.out[index], call.since[index] = left.posting, left.since
            return None
        topic = message.topic
        if self._limit is not None and len(message.payload) > self._limit:
            return Rejected(Reason.TOO_LARGE, f"the payload is {len(message.payload)} bytes; the limit is {self._limit}")
        if self._unheard is not PUBLISHED and not (self._broker.hears(topic) or self._broker.stores(topic) or topic.startswith(INBOX)):
            return self._unheard  # an answer to a request that comes again, or too late, is let go: nobody will ever await it again
        posting = self._broker.posting(message, answered=True)
        await self._broker.post(posting)
        call.out[index] = posting
        return None

    def _end(self, call: Sending, late: Collection[int] | None) -> None:
        """Remember what is ``late``; where the call was cut short (None), whatever goes on without it. Take back what is given up.

        What a log has stored is answered for: when it comes again, it is to be stored again. Nor does it wait any longer for room beside.
        """
        for index, posting in call.out.items():
            if late is None:
                goes_on = posting.withdraw() and not (posting.stored or posting.lost)
            else:
                goes_on = index in late
                if not goes_on and (posting.stored or call.outcomes[index] is not PUBLISHED):
                    posting.withdraw()
            if goes_on:
                self._late.leave(posting, call.since.get(index, call.began))


class InProcessSource:
    """A subscription as a Source. It takes part from the moment it is made until it is closed, whoever runs it meanwhile.

    Args:
        broker: where.
        patterns: the topics to take; all by default.
        group: the queue group to be a member of, if any.
        durable: the name under which a durable log remembers what was settled, over restarts.
        start: where to begin to read the log of the topics; with ``durable``, the first time only.
        name: what figures and errors call it.
        buffer: deliveries to buffer; the broker's default if None. What claims hold is beside it, and comes back however full it is.
        policy: what happens when it is full: ``block``: a publish waits; ``shed``: the message is dropped, and whoever publishes it is
            told that it is published, so that nobody waits, or sends it again.
        on_drop: called with each message that is dropped, and why; `Drop.SHED` for want of room.
        retry: how long a `Retry` waits, and after how many attempts it is rejected.
    """

    def __init__(
        self,
        broker: Broker,
        *patterns: str,
        group: str | None = None,
        durable: str | None = None,
        start: Start | None = None,
        name: str | None = None,
        buffer: int | None = None,
        policy: Literal["block", "shed"] = "block",
        on_drop: Callable[[Message, Drop], None] | None = None,
        retry: Backoff | None = None,
    ) -> None:
        # It is the Bridge that has deadlines and decides when to give up.
        self._subscription = broker.subscribe(
            *patterns,
            group=group,
            durable=durable,
            start=start,
            name=name,
            buffer=buffer,
            policy=policy,
            on_drop=on_drop,
            ack_deadline=None,
            retry=_FOR_EVER,
        ).begin()
        self._retry = retry or Backoff()

    @asynccontextmanager
    async def claim(self, limit: int) -> AsyncIterator[_InProcessBatch]:
        """Take up to ``limit`` deliveries that are waiting. Raises `SourceUnavailable` once it, or its broker, is closed."""
        if self._subscription.ended:
            msg = "the in-process source is closed"
            raise SourceUnavailable(msg)
        batch = _InProcessBatch(self._subscription.take_nowait(limit, Reader(math.inf)), self._retry)
        try:
            yield batch
        finally:
            batch.give_back()

    async def wait(self, timeout: float) -> None:
        """Return when something is waiting, or after ``timeout`` seconds."""
        mailbox = self._subscription.mailbox
        woken = False
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while mailbox.idle and not self._subscription.ended:  # what it was woken for may be another's by now
                    await mailbox.waiting.for_reader(Reader(math.inf))
                    woken = True
        if woken and not mailbox.idle:
            mailbox.waiting.wake()  # nobody says that a claim follows: without one, the rest of the group must not sleep on

    def close(self) -> None:
        """End the subscription; what was not acknowledged goes to the rest of the group. Any number of times."""
        self._subscription.unsubscribe()


class _InProcessBatch:
    def __init__(self, deliveries: list[Delivery], retry: Backoff) -> None:
        self._deliveries = deliveries
        self._retry = retry
        self.messages = [delivery.message for delivery in deliveries]

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        deliveries, self._deliveries = self._deliveries, []
        for delivery, outcome in zip(deliveries, outcomes, strict=True):
            match outcome:
                case Published():
                    delivery.ack()
                case Released():
                    delivery.nack(failed=False)
                case Retry(after=after) if not self._retry.exhausted(attempts := delivery.attempts + 1):
                    delivery.nack(after if after is not None else self._retry.delay(attempts))
                case Retry(reason=reason, detail=detail):
                    delivery.reject(Reason.ATTEMPTS, f"{reason}: {detail}")
                case Rejected(reason=reason, detail=detail):
                    delivery.reject(reason, detail)

    def give_back(self) -> None:
        for delivery in self._deliveries:
            delivery.nack(failed=False)
