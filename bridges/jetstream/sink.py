"""Publish to a stream, a wave at a time, and count its acknowledgements against a deadline."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

import nats.errors

from bridges.jetstream.frame import Framer
from bridges.ordering import Blocked, waves
from bridges.ports import BEHIND, PUBLISHED, Outcome, Published, Reason, Rejected, Released, Retry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.jetstream.client import AckingClient
    from bridges.jetstream.connection import JetStream
    from bridges.message import Message

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
        timeout: seconds for a call. No wave begins in their second half: what is left then waits behind its key, and is no outage.
    """

    def __init__(self, connection: JetStream, *, stream: str, subject: str = "{topic}", timeout: float = 10.0) -> None:
        self._connection = connection
        self._stream = stream
        self._framer = Framer(stream, subject)
        # Nearly every acknowledgement looks like this, and is understood without being taken apart.
        self._plain = re.compile(rb'\{"stream":"%b", ?"seq":[1-9][0-9]*\}' % re.escape(stream.encode()))
        self._timeout = timeout

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Publish in waves, so that no two messages of a key are in flight together. One outcome each, in order."""
        outcomes: list[Outcome] = [BEHIND] * len(messages)
        blocked = Blocked()
        loop = asyncio.get_running_loop()
        began = loop.time()
        client = None
        try:
            client = await self._connection.client()
            for number, wave in enumerate(waves(messages)):
                if number and loop.time() > began + self._timeout / 2:
                    break
                await self._publish_wave(client, messages, wave, outcomes, blocked, began + self._timeout)
        except (nats.errors.Error, OSError, TimeoutError) as problem:
            await self._connection.discard(client)
            trouble = _released(problem)
            return [trouble if outcome is BEHIND else outcome for outcome in outcomes]
        except asyncio.CancelledError:
            await self._connection.discard(client)
            raise
        return outcomes

    async def _publish_wave(
        self,
        client: AckingClient,
        messages: Sequence[Message],
        wave: Sequence[int],
        outcomes: list[Outcome],
        blocked: Blocked,
        deadline: float,
    ) -> None:
        window = client.window(len(wave))
        sent: list[int] = []
        try:
            make, frames, max_payload = self._framer.frame, window.frames, client.max_payload
            for index in wave:
                message = messages[index]
                if message in blocked:
                    continue
                frame = make(message, window.reply(len(frames)), max_payload)
                if isinstance(frame, Rejected):
                    outcomes[index] = blocked.note(message, frame)
                else:
                    frames.append(frame)
                    sent.append(index)
            async with asyncio.timeout_at(deadline):
                await window.send()
            await window.all_acknowledged(deadline)
        finally:
            client.forget(window, len(wave))
            plain = self._plain.fullmatch
            for place, acknowledgement in window.received.items():
                index = sent[place]
                if plain(acknowledgement):
                    outcomes[index] = PUBLISHED
                else:
                    outcomes[index] = blocked.note(messages[index], self._judge(acknowledgement))

    def _judge(self, acknowledgement: bytes) -> Outcome:
        if not acknowledgement:
            return Released(Reason.MISSING, f"no stream takes this subject, or JetStream is away: {self._stream!r} is expected")
        try:
            answer = json.loads(acknowledgement)
        except ValueError:
            return Retry(Reason.REFUSED, "an acknowledgement that is not JSON")
        if error := answer.get("error"):
            code = error.get("err_code", 0)
            return _ERRORS.get(code, Retry(Reason.REFUSED, f"{error.get('description')} (err_code {code})"))
        if answer.get("stream") != self._stream or answer.get("seq", 0) <= 0:
            return Released(Reason.MISSING, f"acknowledged by {answer.get('stream')!r} without being stored in {self._stream!r}")
        return _DUPLICATE_ACK if answer.get("duplicate") else PUBLISHED


def _released(problem: BaseException) -> Released:
    """Translate a client's error; the most specific first."""
    text = str(problem) or type(problem).__name__
    if isinstance(problem, nats.errors.AuthorizationError) or "authorization violation" in text.lower():
        return Released(Reason.FORBIDDEN, "the server refuses our credentials")
    if "permissions violation" in text.lower():
        return Released(Reason.FORBIDDEN, text)
    if isinstance(problem, nats.errors.ConnectionClosedError | nats.errors.NoServersError | OSError) and not isinstance(
        problem, TimeoutError
    ):
        return Released(Reason.UNAVAILABLE, text)
    if isinstance(problem, TimeoutError):
        return Released(Reason.TIMEOUT, text)
    return Released(Reason.UNAVAILABLE, text)
