"""Publish to a stream, a wave at a time, and count its acknowledgements against a deadline."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import nats.errors

from bridges.envelope import encode, quoted
from bridges.ordering import Blocked, waves
from bridges.ports import BEHIND, PUBLISHED, Outcome, Published, Reason, Rejected, Released, Retry
from bridges.topics import Destination

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from bridges.jetstream.connection import JetStream
    from bridges.message import Message

# The server refuses a PUB whose control line is over 4 KiB (max_control_line), and closes the connection.
_MAX_SUBJECT = 1024
_NO_RESPONDERS = "503"
_DUPLICATE_ACK = Published(duplicate=True)

# https://github.com/nats-io/nats-server/blob/main/server/errors.json: what a PubAck's err_code says about the message.
_ERRORS: dict[int, Outcome] = {
    10054: Rejected(Reason.TOO_LARGE, "over the stream's max_msg_size"),
    10049: Rejected(Reason.INVALID, "a header that the stream does not allow"),
    10060: Released(Reason.MISSING, "the subject belongs to another stream"),
    10077: Released(Reason.FULL, "the stream is at its limit (discard=new)"),
    10023: Released(Reason.FULL, "insufficient resources"),
    10047: Released(Reason.FULL, "insufficient storage"),
    10028: Released(Reason.FULL, "the account's resource limits are exceeded"),
    10008: Released(Reason.UNAVAILABLE, "the cluster is not available"),
    10009: Released(Reason.UNAVAILABLE, "the stream has no leader"),
    10039: Released(Reason.FORBIDDEN, "JetStream is not enabled for this account"),
    10076: Released(Reason.UNAVAILABLE, "JetStream is not enabled on this server"),
}


class JetStreamSink:
    """Publish to a stream, and answer `Published` for a PubAck of that stream with a sequence above zero.

    Args:
        connection: where; shared.
        stream: the stream that must acknowledge (``Nats-Expected-Stream``).
        subject: what a topic is called there, such as ``shop.{topic}``.
        timeout: seconds for the acknowledgements of one wave.
    """

    def __init__(self, connection: JetStream, *, stream: str, subject: str = "{topic}", timeout: float = 10.0) -> None:
        self._connection = connection
        self._stream = stream
        self._subject = Destination(subject)
        self._timeout = timeout

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Publish in waves, so that no two messages of a key are in flight together. One outcome each, in order."""
        outcomes: list[Outcome] = [BEHIND] * len(messages)
        blocked = Blocked()
        try:
            client = await self._connection.client()
            for wave in waves(messages):
                await self._publish_wave(client, messages, wave, outcomes, blocked)
        except (nats.errors.Error, OSError, TimeoutError) as problem:
            await self._connection.discard()
            trouble = _released(problem)
            return [trouble if outcome is BEHIND else outcome for outcome in outcomes]
        except asyncio.CancelledError:
            await self._connection.discard()
            raise
        return outcomes

    async def _publish_wave(
        self, client: Client, messages: Sequence[Message], wave: Sequence[int], outcomes: list[Outcome], blocked: Blocked
    ) -> None:
        async with _Acks(client) as acks:
            waiting = {}
            for index in wave:
                message = messages[index]
                if message in blocked:
                    continue
                subject = self._subject.of(message.topic)
                headers = self._headers(message)
                if fault := _fault(client, subject, headers, message.payload):
                    outcomes[index] = blocked.note(message, fault)
                    continue
                await client.publish(subject, message.payload, reply=acks.expect(index), headers=headers)
                waiting[index] = message
            try:
                await acks.all(self._timeout)
            finally:
                for index, message in waiting.items():
                    if index in acks.received:
                        outcomes[index] = blocked.note(message, self._judge(acks.received[index]))

    def _headers(self, message: Message) -> dict[str, str]:
        headers = {name: quoted(value) for name, value in encode(message, key=True)}
        headers["Nats-Msg-Id"] = str(message.id)
        headers["Nats-Expected-Stream"] = self._stream
        return headers

    def _judge(self, ack: Msg) -> Outcome:
        if not ack.data:
            status = (ack.headers or {}).get("Status")
            detail = f"no stream takes this subject, or JetStream is away ({status})"
            return Released(Reason.MISSING if status == _NO_RESPONDERS else Reason.UNAVAILABLE, detail)
        try:
            answer = json.loads(ack.data)
        except ValueError:
            return Retry(Reason.REFUSED, "an acknowledgement that is not JSON")
        if error := answer.get("error"):
            code = error.get("err_code", 0)
            return _ERRORS.get(code, Retry(Reason.REFUSED, f"{error.get('description')} (err_code {code})"))
        if answer.get("stream") != self._stream or answer.get("seq", 0) <= 0:
            return Released(Reason.MISSING, f"acknowledged by {answer.get('stream')!r} without being stored in {self._stream!r}")
        return _DUPLICATE_ACK if answer.get("duplicate") else PUBLISHED


class _Acks:
    """The acknowledgements of one wave: one inbox, counted against a deadline."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = client.new_inbox()
        self._expected = 0
        self._complete = asyncio.Event()
        self._sent = False
        self.received: dict[int, Msg] = {}

    async def __aenter__(self) -> Self:
        self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._receive)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client.is_connected:
            await self._subscription.unsubscribe()

    def expect(self, index: int) -> str:
        """Return the reply subject for the message at ``index``, and count it."""
        self._expected += 1
        return f"{self._inbox}.{index}"

    async def all(self, timeout: float) -> None:
        """Return when every expected acknowledgement is here. Raises `TimeoutError`, or a nats error if the connection is lost."""
        self._sent = True
        deadline = asyncio.get_running_loop().time() + timeout
        while len(self.received) < self._expected:
            # The client says nothing to a waiting reader when its connection is lost: look twice a second.
            remaining = deadline - asyncio.get_running_loop().time()
            if remaining <= 0:
                msg = f"{self._expected - len(self.received)} of {self._expected} acknowledgements missing after {timeout:g} s"
                raise TimeoutError(msg)
            if not self._client.is_connected:
                raise nats.errors.ConnectionClosedError
            with suppress(TimeoutError):
                await asyncio.wait_for(self._complete.wait(), min(remaining, 0.5))

    async def _receive(self, ack: Msg) -> None:
        self.received.setdefault(int(ack.subject.rpartition(".")[2]), ack)
        if self._sent and len(self.received) >= self._expected:
            self._complete.set()


def _fault(client: Client, subject: str, headers: dict[str, str], payload: bytes) -> Rejected | None:
    """Find what the server would answer with an error that closes the connection: it checks nothing singly."""
    # "NATS/1.0" and its two line ends, then ": " and a line end for each header.
    size = len(payload) + 12 + sum(len(name) + len(value) + 4 for name, value in headers.items())
    if size > client.max_payload:
        return Rejected(Reason.TOO_LARGE, f"payload and headers are {size} bytes; the server's max_payload is {client.max_payload}")
    if len(subject.encode()) > _MAX_SUBJECT:
        return Rejected(Reason.INVALID, f"the subject is over {_MAX_SUBJECT} bytes")
    return None


def _released(problem: BaseException) -> Released:
    """Translate a client's error; the most specific first."""
    text = str(problem) or type(problem).__name__
    if isinstance(problem, nats.errors.AuthorizationError) or "authorization violation" in text.lower():
        return Released(Reason.FORBIDDEN, "the server refuses our credentials")
    if isinstance(problem, nats.errors.ConnectionClosedError | nats.errors.NoServersError | OSError) and not isinstance(
        problem, TimeoutError
    ):
        return Released(Reason.UNAVAILABLE, text)
    if isinstance(problem, TimeoutError):
        return Released(Reason.TIMEOUT, text)
    return Released(Reason.UNAVAILABLE, text)
