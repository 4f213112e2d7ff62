"""Atomic batches: many messages of a key at once, in order, all of them stored or none.

nats-server 2.12 or newer, and a stream with ``allow_atomic``
(https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-50.md). The server keeps what comes with one ``Nats-Batch-Id``,
and stores it when the message with ``Nats-Batch-Commit`` is there. Only that one has a reply subject: whatever was wrong with any of them,
an id that the stream has already among it, is answered there, and says that nothing of the batch is stored.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4

from bridges.jetstream.client import CHUNK
from bridges.ports import Rejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.jetstream.client import AckingClient, Window
    from bridges.jetstream.frame import Framer
    from bridges.message import Message

log = logging.getLogger("outboxd.jetstream")

_MOST: Final = 1000
"""Messages in a batch: the server's limit, unless its configuration says otherwise."""
_ENOUGH: Final = 4 << 20
"""Bytes in a batch. One that is too large for its deadline would be sent again as it was, for ever."""
_COMMIT: Final = "Nats-Batch-Commit: 1\r\n"
_ASK_AGAIN: Final = 60.0
_TOO_MANY: Final = 10199
_DISABLED: Final = 10174


class AtomicBatches:
    """What one stream says to atomic batches, over one connection after the other.

    Args:
        stream: the stream.
        framer: makes its frames.
    """

    def __init__(self, stream: str, framer: Framer) -> None:
        self._stream = stream
        self._framer = framer
        self._client: AckingClient | None = None
        self._allowed = False
        self._ask_at = 0.0
        self._most = _MOST
        self._asking = asyncio.Lock()

    async def allowed(self, client: AckingClient, within: float) -> bool:
        """Say whether the stream takes them; no, if it does not answer in time. Raises a nats error if the connection is lost.

        A yes holds for the connection, and so does it if we may not ask. After any other no it is asked again when a minute is over.
        """
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if client is not self._client or (not self._allowed and now >= self._ask_at):
                self._client, self._most = client, _MOST
                self._allowed, self._ask_at = False, now + _ASK_AGAIN
                try:
                    answer = await client.ask(f"$JS.API.STREAM.INFO.{self._stream}", within)
                except TimeoutError:
                    log.info("stream %r says nothing to whether it takes atomic batches; a hot key waits for each message", self._stream)
                else:
                    self._allowed = _parsed(answer).get("config", {}).get("allow_atomic") is True
                    if not answer:
                        log.info(
                            "stream %r cannot be asked whether it takes atomic batches; a hot key waits for each message", self._stream
                        )
                        self._ask_at = float("inf")
            return self._allowed

    async def publish(self, client: AckingClient, messages: Sequence[Message], deadline: float) -> tuple[int, bool]:
        """Publish as many of the messages, from the first on, as one batch takes. Return how many these are, and whether they are stored.

        All of them are, or none. One that the server would refuse, if only for the headers that a batch needs, is not taken.
        Raises `TimeoutError` without an answer at the deadline (of the loop's clock), or a nats error: then it is not known.
        """
        name = uuid4().hex
        window = client.window(1)
        try:
            async with asyncio.timeout_at(deadline):
                count = await self._send(client, window, name, messages)
            await window.all_acknowledged(deadline)
        finally:
            client.forget(window)
        return count, count > 0 and self._is_stored(window.received[0], name, count)

    async def _send(self, client: AckingClient, window: Window, name: str, messages: Sequence[Message]) -> int:
        make, room = self._framer.frame, client.max_payload - len(_COMMIT)  # any may be the last, which is longer
        frames: list[bytes] = []
        count = size = written = 0
        for message in messages[: self._most]:
            headers = f"Nats-Batch-Id: {name}\r\nNats-Batch-Sequence: {count + 1}\r\n"
            frame = make(message, b"", room, headers)
            if isinstance(frame, Rejected) or written + size >= _ENOUGH:
                break
            if size >= CHUNK:
                await client.write(frames)
                frames.clear()
                written, size = written + size, 0
            frames.append(frame)
            size += len(frame)
            count += 1
        if count:
            headers = f"Nats-Batch-Id: {name}\r\nNats-Batch-Sequence: {count}\r\n{_COMMIT}"
            frames[-1] = cast("bytes", make(messages[count - 1], window.reply(0), client.max_payload, headers))
            window.frames.append(b"".join(frames))
            await window.send()
        return count

    def _is_stored(self, acknowledgement: bytes, name: str, count: int) -> bool:
        answer = _parsed(acknowledgement)
        error = answer.get("error", {})
        if not error:
            whole = answer.get("batch") == name and answer.get("count") == count
            return whole and answer.get("stream") == self._stream and answer.get("seq", 0) > 0
        log.debug("stream %r refuses a batch of %d: %s", self._stream, count, error.get("description"))
        code = error.get("err_code")
        if code == _TOO_MANY:  # the server is configured to take fewer
            self._most = max(1, min(self._most, count // 2))
        elif code == _DISABLED:
            self._allowed, self._ask_at = False, asyncio.get_running_loop().time() + _ASK_AGAIN
        return False


def _parsed(answer: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(answer))
    except (TypeError, ValueError):
        return {}
