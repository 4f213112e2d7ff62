"""Publish to a stream, a wave or an atomic batch at a time, and count its acknowledgements against a deadline."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import nats.errors

from bridges.jetstream.atomic import AtomicBatches
from bridges.jetstream.client import CHUNK
from bridges.jetstream.frame import Framer
from bridges.ordering import Blocked, parted, waves
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
    10002: Released(Reason.FULL, "the account's resources are exceeded"),
    10109: Released(Reason.FORBIDDEN, "the stream is sealed"),
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
        timeout: seconds for a call. No wave or batch begins in their second half: what is left then waits behind its key, and is no
            outage.
        ordered: False: the order of keys does not matter; nothing waits for an earlier message of its key.
    """

    def __init__(
        self, connection: JetStream, *, stream: str, subject: str = "{topic}", timeout: float = 10.0, ordered: bool = True
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._framer = Framer(stream, subject)
        # Nearly all acknowledgements look like this, and are understood without being taken apart; a line each.
        plain = rb'\{"stream":"%b", ?"seq":[1-9][0-9]*\}' % re.escape(stream.encode())
        self._all_plain = re.compile(rb"%b(?:\n%b)*" % (plain, plain))
        self._timeout = timeout
        self._ordered = ordered
        self._atomic = AtomicBatches(stream, self._framer)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Publish so that no two messages of a key are in flight together but in one atomic batch. One outcome each, in order."""
        began = asyncio.get_running_loop().time()
        call = _Call(messages, [BEHIND] * len(messages), Blocked(ordered=self._ordered), began + self._timeout / 2, began + self._timeout)
        client = None
        try:
            alone, repeating = parted(messages, ordered=self._ordered)
            client = await self._connection.client()
            if not repeating:
                await self._publish_wave(client, call, alone)
            elif await self._atomic.allowed(client, self._timeout / 4):
                if alone:
                    await self._publish_wave(client, call, alone)
                await self._publish_batches(client, call, repeating)
            else:
                await self._publish_waves(client, call, waves(messages))
        except (nats.errors.Error, OSError, TimeoutError) as problem:
            await self._connection.discard(client)
            trouble = _released(problem)
            return [trouble if outcome is BEHIND else outcome for outcome in call.outcomes]
        except asyncio.CancelledError:
            await self._connection.discard(client)
            raise
        return call.outcomes

    async def _publish_batches(self, client: AckingClient, call: _Call, indexes: Sequence[int]) -> None:
        """Publish these messages in order, in atomic batches."""
        messages = call.messages
        while call.time_for_more() and (indexes := [index for index in indexes if messages[index] not in call.blocked]):
            count, stored = await self._atomic.publish(client, [messages[index] for index in indexes], call.deadline)
            # What fits into no batch goes by itself, and is judged as it would be without one.
            taken, indexes = indexes[: count or 1], indexes[count or 1 :]
            if stored:
                for index in taken:
                    call.outcomes[index] = PUBLISHED
            else:
                # Nothing of it is there. Find out by waves whose fault it is, before anybody is blamed.
                split = waves([messages[index] for index in taken])
                await self._publish_waves(client, call, [[taken[place] for place in wave] for wave in split])

    async def _publish_waves(self, client: AckingClient, call: _Call, split: Sequence[Sequence[int]]) -> None:
        for number, wave in enumerate(split):
            if number and not call.time_for_more():
                break
            await self._publish_wave(client, call, wave)

    async def _publish_wave(self, client: AckingClient, call: _Call, wave: Sequence[int]) -> None:
        messages, outcomes, blocked = call.messages, call.outcomes, call.blocked
        if blocked:  # no key is in a wave twice: what is blocked is so from an earlier one
            wave = [index for index in wave if messages[index] not in blocked]
        window = client.window(len(wave))
        sent: list[int] = []
        try:
            make, max_payload, size = self._framer.frame, client.max_payload, 0
            async with asyncio.timeout_at(call.deadline):
                for index in wave:
                    frame = make(messages[index], window.reply(len(sent)), max_payload)
                    if isinstance(frame, Rejected):
                        outcomes[index] = blocked.note(messages[index], frame)
                        continue
                    sent.append(index)
                    window.frames.append(frame)
                    size += len(frame)
                    if size >= CHUNK:
                        await window.send()
                        size = 0
                await window.send()
            await window.all_acknowledged(call.deadline)
        finally:
            client.forget(window)
            received = window.received
            answered = [place for place in range(len(sent)) if place in received]
            if self._all_plain.fullmatch(b"\n".join([received[place] for place in answered])):
                for place in answered:
                    outcomes[sent[place]] = PUBLISHED
            else:
                for place in answered:
                    index = sent[place]
                    outcomes[index] = blocked.note(messages[index], self._judge(received[place]))

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


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of `publish`, and how far it has come."""

    messages: Sequence[Message]
    outcomes: list[Outcome]
    """What is still behind at the end had no turn."""
    blocked: Blocked
    half: float
    deadline: float

    def time_for_more(self) -> bool:
        """Say whether another wave or batch may begin."""
        return asyncio.get_running_loop().time() <= self.half


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
