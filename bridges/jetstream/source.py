"""Consume a stream through a durable pull consumer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from contextlib import asynccontextmanager, suppress
from datetime import UTC
from typing import TYPE_CHECKING

import nats.errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from bridges.backoff import Backoff
from bridges.envelope import decode, unquoted
from bridges.errors import ConfigurationError, SourceUnavailable
from bridges.ports import Outcome, Published, Rejected, Released, Retry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from bridges.jetstream.client import AckingClient
    from bridges.jetstream.connection import JetStream
    from bridges.message import Message

log = logging.getLogger("outboxd.jetstream")


class JetStreamSource:
    """Consume a stream through a durable pull consumer with explicit acknowledgements.

    Args:
        connection: where; shared.
        stream: the stream's name.
        durable: the consumer's name; it is made if it is not there, and its settings are left alone if it is.
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
        self._claiming = asyncio.Lock()
        self._trouble = False

    @asynccontextmanager
    async def claim(self, limit: int) -> AsyncIterator[_JetStreamBatch]:
        """Take up to ``limit`` messages, waiting a moment for the first. Raises `SourceUnavailable`."""
        try:
            async with self._claiming:
                pull = await self._bound()
                taken = await pull.take(min(limit, self._max_ack_pending), self._linger)
            self._trouble = False
        except (nats.errors.Error, OSError, TimeoutError, APIError) as problem:
            await self._unbind()
            msg = f"stream {self._stream!r}, consumer {self._durable!r}: {str(problem) or type(problem).__name__}"
            raise SourceUnavailable(msg) from problem
        batch = _JetStreamBatch(taken, self._stream, self._retry)
        progress = asyncio.create_task(batch.stay_in_progress(self._ack_wait / 3))
        try:
            yield batch
        except (nats.errors.Error, OSError) as problem:
            await self._unbind()
            raise SourceUnavailable(str(problem) or type(problem).__name__) from problem
        finally:
            progress.cancel()
            await batch.give_back()

    async def wait(self, timeout: float) -> None:
        """A claim waits by itself; so this does not, unless the connection is in trouble."""
        if self._trouble:
            await asyncio.sleep(min(timeout, 1.0))

    async def _bound(self) -> _Pull:
        client = await self._connection.client()
        if self._pull is None or self._pull.client is not client:
            await self._ensure_consumer(client)
            self._pull = _Pull(client, self._stream, self._durable)
            await self._pull.subscribe()
        return self._pull

    async def _unbind(self) -> None:
        self._trouble = True
        pull, self._pull = self._pull, None
        if pull is not None:
            await self._connection.discard(pull.client)

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
        # An existing consumer keeps its settings, and they are what counts.
        self._ack_wait = info.config.ack_wait or self._ack_wait
        self._max_ack_pending = min(self._max_ack_pending, info.config.max_ack_pending or self._max_ack_pending)


class _Pull:
    """Standing pull requests of one consumer. What arrives after a claim has left with its share waits for the next."""

    def __init__(self, client: AckingClient, stream: str, durable: str) -> None:
        self.client = client
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._inbox = client.new_inbox()
        self._arrived: deque[Msg] = deque()
        self._requested = 0
        self._expires = 0.0
        self._news = asyncio.Event()
        self._problem: str | None = None

    async def subscribe(self) -> None:
        self._subscription: Subscription = await self.client.subscribe(self._inbox, cb=self._receive)

    async def take(self, limit: int, linger: float) -> list[Msg]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + linger
        if not self._arrived:
            if loop.time() >= self._expires or self._requested <= 0:
                await self._request(limit, linger)
            while not self._arrived and self.client.is_connected and (remaining := deadline - loop.time()) > 0:
                self._news.clear()
                if self._problem is not None:
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), min(remaining, 0.5))
        if self._problem is not None and not self._arrived:
            raise nats.errors.Error(self._problem)
        if not self.client.is_connected:
            raise nats.errors.ConnectionClosedError
        return [self._arrived.popleft() for _ in range(min(limit, len(self._arrived)))]

    async def _request(self, limit: int, linger: float) -> None:
        self._requested = limit
        self._expires = asyncio.get_running_loop().time() + linger
        request = {"batch": limit, "expires": int(linger * 1e9)}
        await self.client.publish(self._next, json.dumps(request).encode(), reply=self._inbox)
        await self.client.flush()

    async def _receive(self, msg: Msg) -> None:
        status = None if msg.reply else (msg.headers or {}).get("Status")
        if status is None:
            self._arrived.append(msg)
            self._requested -= 1
        elif status in {"404", "408"}:
            self._requested = 0  # the request ended: nothing more, or its time is up
        elif status == "409" and "Exceeded" in (description := str((msg.headers or {}).get("Description", ""))):
            log.debug("pull request: %s", description)
            self._requested = 0
        elif status != "100":
            self._problem = f"pull request refused: {status} {(msg.headers or {}).get('Description', '')}"
        self._news.set()


class _JetStreamBatch:
    def __init__(self, taken: list[Msg], stream: str, retry: Backoff) -> None:
        # Redelivered messages may arrive behind newer ones: within a batch, the stream's order counts.
        self._taken = sorted(taken, key=lambda msg: msg.metadata.sequence.stream)
        self._retry = retry
        self._open = True
        self.messages = [_message_of(msg, stream) for msg in self._taken]

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        self._open = False
        client = None
        for msg, outcome in zip(self._taken, outcomes, strict=True):
            client = msg._client
            match outcome:
                case Published():
                    await msg.ack()
                case Released():
                    await msg.nak()
                case Retry(after=after) if not self._retry.exhausted(attempts := msg.metadata.num_delivered or 1):
                    await msg.nak(after if after is not None else self._retry.delay(attempts))
                case Retry() | Rejected():
                    log.error("given up: stream sequence %d: %s %s", msg.metadata.sequence.stream, outcome.reason, outcome.detail)
                    await msg.term()
        if client is not None:
            await client.flush()

    async def give_back(self) -> None:
        if self._open and self._taken and self._taken[0]._client.is_connected:
            with suppress(nats.errors.Error, OSError, TimeoutError):
                for msg in self._taken:
                    await msg.nak()

    async def stay_in_progress(self, every: float) -> None:
        """Tell the server at intervals that the batch is being worked on, so that it does not deliver it again."""
        while self._taken:
            await asyncio.sleep(every)
            with suppress(nats.errors.Error, OSError):
                for msg in self._taken:
                    await msg.in_progress()


def _message_of(msg: Msg, stream: str) -> Message:
    headers = {name: str(value) for name, value in (msg.headers or {}).items() if not name.startswith("Nats-")}
    if "outbox-id" in headers:
        headers = {name: unquoted(value) for name, value in headers.items()}
    sequence = msg.metadata.sequence.stream
    message = decode(headers, msg.data, topic=msg.subject, key=None, origin=f"nats:{stream}:{sequence}")
    if message.created_at is None:
        return message._replace(created_at=msg.metadata.timestamp.astimezone(UTC))
    return message
