"""Consume a stream through a durable pull consumer."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager, suppress
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

import nats.errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from bridges import envelope
from bridges.backoff import Backoff
from bridges.deadline import happens
from bridges.envelope import decode, unquoted
from bridges.errors import ConfigurationError, SourceUnavailable
from bridges.intake import Intake, Loan
from bridges.ports import Outcome, Published, Rejected, Released, Retry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from bridges.jetstream.client import AckingClient
    from bridges.jetstream.connection import JetStream
    from bridges.message import Message

log = logging.getLogger("outboxd.jetstream")

_PATIENCE: Final = 2
"""Seconds for the server to answer a ping."""


class JetStreamSource:
    """Consume a stream through a durable pull consumer with explicit acknowledgements.

    Within one source a key keeps its order: what must wait is kept here, said to be in progress, and what is behind it waits too. Several
    processes that share a durable share its messages as the server hands them out, whatever their key.

    Args:
        connection: where; shared.
        stream: the stream's name.
        durable: the consumer's name; it is made if it is not there; if it is, its subjects are brought up to date and
            its other settings left alone.
        subjects: what to take, as NATS patterns; everything by default.
        ack_wait: seconds after which the server delivers again what was neither acknowledged nor said to be in progress.
        max_ack_pending: messages that may be out at once, over all the processes that share the durable.
        retry: how long a `Retry` waits, and after how many deliveries it is given up.
        linger: seconds a claim waits for a first message.
    """

    def __init__(
        self,
        connection: JetStream,
        *,
        stream: str,
        durable: str,
        subjects: Sequence[str] = (),
        ack_wait: float = 30.0,
        max_ack_pending: int = 1000,
        retry: Backoff | None = None,
        linger: float = 1.0,
    ) -> None:
        if not durable or any(character in durable for character in " .*>\t/\\"):
            msg = f"durable: {durable!r} must be a name without white space, dots, wildcards and slashes"
            raise ConfigurationError(msg)
        self._connection = connection
        self._stream = stream
        self._durable = durable
        self._subjects = list(subjects)
        self._ack_wait = ack_wait
        self._max_ack_pending = max_ack_pending
        self._retry = retry or Backoff()
        self._linger = linger
        self._pull: _Pull | None = None
        # Kept over a loss of the connection: what is in hand is not delivered again at once, and newer messages must not overtake it.
        self._intake: Intake[Msg] = Intake()
        self._in_hand: dict[int, Loan[Msg]] = {}
        self._claiming = asyncio.Lock()
        self._trouble = False

    @asynccontextmanager
    async def claim(self, limit: int) -> AsyncIterator[_JetStreamBatch]:
        """Take up to ``limit`` messages, waiting a moment for the first. Raises `SourceUnavailable`."""
        reader = object()
        try:
            async with self._claiming:
                loans = await self._take(reader, limit)
            self._trouble = False
        except (nats.errors.Error, OSError, TimeoutError, APIError) as problem:
            self._intake.leave(reader)
            raise await self._unavailable(problem) from problem
        batch = _JetStreamBatch(self, loans)
        try:
            yield batch
        except (nats.errors.Error, OSError) as problem:
            raise await self._unavailable(problem) from problem
        finally:
            self._intake.leave(reader)
            if self._pull is not None:
                self._pull.news.set()

    async def wait(self, timeout: float) -> None:
        """A claim waits by itself; so this does not, unless the connection is in trouble."""
        if self._trouble:
            await asyncio.sleep(min(timeout, 1.0))

    async def close(self) -> None:
        """Tell the server that what was not settled may go to others, and forget it. The connection is its owner's to close."""
        pull, self._pull = self._pull, None
        loans, self._intake = list(self._intake), Intake()
        self._in_hand.clear()
        if pull is not None:
            pull.keeping.cancel()
            with suppress(nats.errors.Error, OSError, TimeoutError):
                # Nothing more may come to us: what we give back would, while a request of ours is open, and then wait for its ack_wait
                # while newer messages of its key go to others. And in the order in which it came: so it is delivered again.
                await pull.end()
                for loan in sorted(loans, key=lambda loan: loan.number):
                    await pull.client.publish(loan.item.reply, b"-NAK")
                await pull.client.flush(timeout=1)

    async def settled(self, loans: Sequence[Loan[Msg]], outcomes: Sequence[Outcome]) -> None:
        """Tell the server what became of these messages. Raises a nats error if it cannot be told."""
        client = (await self._bound()).client
        now = asyncio.get_running_loop().time()
        for loan, outcome in zip(loans, outcomes, strict=True):
            match outcome:
                case Published():
                    await self._tell(client, loan, b"+ACK")
                case Released():
                    self._intake.give_back(loan)
                case Retry(after=after) if not self._retry.exhausted(attempts := loan.failures + 1):
                    seconds = after if after is not None else self._retry.delay(attempts)
                    self._intake.give_back(loan, due=now + seconds, failed=True)
                case Retry() | Rejected():
                    sequence = loan.item.metadata.sequence.stream
                    log.error("given up: %s, sequence %d: %s %s", self._stream, sequence, outcome.reason, outcome.detail)
                    await self._tell(client, loan, b"+TERM")
        await client.flush(timeout=_PATIENCE)

    def message_of(self, msg: Msg) -> Message:
        """Return what a message of the stream is to us."""
        return _message_of(msg, self._stream)

    async def _tell(self, client: AckingClient, loan: Loan[Msg], what: bytes) -> None:
        # By the reply subject, and not with the client that it came from: that connection may be gone, and the message still in hand.
        await client.publish(loan.item.reply, what)
        self._intake.end(loan)
        self._in_hand.pop(loan.item.metadata.sequence.stream, None)

    async def _take(self, reader: object, limit: int) -> list[Loan[Msg]]:
        pull = await self._bound()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._linger
        while True:
            pull.news.clear()
            if loans := self._intake.lend(reader, limit, loop.time()):
                return loans
            remaining = deadline - loop.time()
            if remaining <= 0:
                return []
            await pull.request(min(limit, self._max_ack_pending), self._linger)
            due_in = self._intake.due_in(loop.time())
            # The client says nothing to who waits when its connection is lost: look twice a second.
            await happens(pull.news, min(remaining, 0.5, *([max(due_in, 0.001)] if due_in is not None else [])))
            pull.check()

    async def _bound(self) -> _Pull:
        client = await self._connection.client()
        if self._pull is None or self._pull.client is not client:
            if self._pull is not None:
                self._pull.keeping.cancel()
            await self._ensure_consumer(client)
            self._pull = _Pull(client, self._stream, self._durable, self._arrived, self._keep_in_progress(client))
            await self._pull.subscribe()
        return self._pull

    def _arrived(self, msg: Msg) -> None:
        """Take in a message, unless we have it already: the server delivers again what we were too slow to say we still have."""
        sequence = msg.metadata.sequence.stream
        if known := self._in_hand.get(sequence):
            known.item.reply = msg.reply
            return
        key = (msg.headers or {}).get(envelope.KEY)
        self._in_hand[sequence] = self._intake.add(msg, None if key is None else unquoted(str(key)))

    async def _keep_in_progress(self, client: AckingClient) -> None:
        """Tell the server at intervals that we still have what we have, in a batch or waiting for its turn."""
        while client.is_connected:
            await asyncio.sleep(self._ack_wait / 3)
            with suppress(nats.errors.Error, OSError):
                for loan in list(self._intake):
                    await client.publish(loan.item.reply, b"+WPI")

    async def _unavailable(self, problem: BaseException) -> SourceUnavailable:
        self._trouble = True
        if self._pull is not None:
            await self._connection.discard(self._pull.client)
        text = str(problem) or type(problem).__name__
        return SourceUnavailable(f"stream {self._stream!r}, consumer {self._durable!r}: {text}")

    async def _ensure_consumer(self, client: AckingClient) -> None:
        manager = client.jsm()
        try:
            info = await manager.consumer_info(self._stream, self._durable)
        except NotFoundError:
            config = ConsumerConfig(
                durable_name=self._durable,
                ack_policy=AckPolicy.EXPLICIT,
                deliver_policy=DeliverPolicy.ALL,
                ack_wait=self._ack_wait,
                max_ack_pending=self._max_ack_pending,
                max_deliver=-1,
                filter_subjects=self._subjects or None,
            )
            info = await manager.add_consumer(self._stream, config)
        if info.config.ack_policy != AckPolicy.EXPLICIT:
            msg = f"consumer {self._durable!r} of stream {self._stream!r} has ack_policy {info.config.ack_policy}; explicit is needed"
            raise ConfigurationError(msg)
        filters = set(info.config.filter_subjects or ([info.config.filter_subject] if info.config.filter_subject else []))
        if filters != set(self._subjects):
            # From now on: the server does not go back for what it has passed over.
            log.warning("consumer %r of stream %r: its subjects change from %s to %s", self._durable, self._stream, filters, self._subjects)
            config = info.config
            config.filter_subject, config.filter_subjects = None, self._subjects or None
            info = await manager.add_consumer(self._stream, config)
        # An existing consumer keeps its other settings, and they are what counts.
        self._ack_wait = info.config.ack_wait or self._ack_wait
        self._max_ack_pending = min(self._max_ack_pending, info.config.max_ack_pending or self._max_ack_pending)


class _Pull:
    """The pull requests of one consumer over one connection."""

    def __init__(
        self, client: AckingClient, stream: str, durable: str, arrived: Callable[[Msg], None], keep: Coroutine[Any, Any, None]
    ) -> None:
        self.client = client
        self.news = asyncio.Event()
        self.keeping = asyncio.create_task(keep, name=f"in progress: {durable}")
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._inbox = client.new_inbox()
        self._arrived = arrived
        self._requested = 0
        self._expires = 0.0
        self._problem: str | None = None
        self._subscription: Subscription | None = None

    async def subscribe(self) -> None:
        self._subscription = await self.client.subscribe(self._inbox, cb=self._receive)

    async def end(self) -> None:
        """Take nothing more: without interest in its inbox, the server drops a request."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            await self.client.flush(timeout=1)

    async def request(self, limit: int, linger: float) -> None:
        """Ask for messages, unless what was asked for is still to come."""
        now = asyncio.get_running_loop().time()
        if self._requested > 0 and now < self._expires:
            return
        self._requested = limit
        self._expires = now + linger
        asked = {"batch": limit, "expires": int(linger * 1e9)}
        await self.client.publish(self._next, json.dumps(asked).encode(), reply=self._inbox)

    def check(self) -> None:
        """Raise a nats error if requests are refused or the connection is lost."""
        if self._problem is not None:
            raise nats.errors.Error(self._problem)
        if not self.client.is_connected:
            raise nats.errors.ConnectionClosedError

    async def _receive(self, msg: Msg) -> None:
        status = None if msg.reply else (msg.headers or {}).get("Status")
        if status is None:
            self._requested -= 1
            self._arrived(msg)
        elif status in {"404", "408"}:
            self._requested = 0  # the request ended: nothing more, or its time is up
        elif status == "409" and "Exceeded" in str((msg.headers or {}).get("Description", "")):
            self._requested = 0  # too many are out: it is asked again when some are settled
        elif status != "100":
            self._problem = f"pull request refused: {status} {(msg.headers or {}).get('Description', '')}"
        self.news.set()


class _JetStreamBatch:
    def __init__(self, source: JetStreamSource, loans: Sequence[Loan[Msg]]) -> None:
        self._source = source
        self._loans = loans
        self.messages = [source.message_of(loan.item) for loan in loans]

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        await self._source.settled(self._loans, outcomes)


def _message_of(msg: Msg, stream: str) -> Message:
    headers = {name: str(value) for name, value in (msg.headers or {}).items() if not name.startswith("Nats-")}
    if envelope.ID in headers:
        headers = {name: unquoted(value) for name, value in headers.items()}
    sequence = msg.metadata.sequence.stream
    message = decode(headers, msg.data, topic=msg.subject, key=None, origin=f"nats:{stream}:{sequence}")
    if message.created_at is None:
        return message._replace(created_at=msg.metadata.timestamp.astimezone(UTC))
    return message
