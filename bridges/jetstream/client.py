"""nats-py's client with three things changed: whom it trusts, how it takes acknowledgements, and how it writes a window of messages.

The client makes an object of every message, with a queue, a callback and a header parser between. An acknowledgement is one line of JSON
on an inbox of ours: here it goes from the socket's bytes to who waits for it. Measured on 2 cores, with 300 bytes and six headers a
message, 58 us of CPU a message became 15.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final

import nats.errors
from nats.aio.client import Client
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

from bridges.deadline import happens

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK: Final = 1 << 16
"""Bytes that are handed to the transport at once: the server takes them in while we make the next, and one that is slow slows us down."""


class Window:
    """Some messages on their way, and their acknowledgements as they arrive: the bytes of each, by its place in the window."""

    def __init__(self, client: AckingClient, first: int, size: int) -> None:
        self._client = client
        self._first = first
        self._end = first + size
        self.frames: list[bytes] = []
        """Whole PUBs or HPUBs to be sent next, each with `reply` of its place as its reply subject."""
        self.received: dict[int, bytes] = {}
        """An empty acknowledgement stands for a status without a body: nobody was there to answer."""
        self._complete = asyncio.Event()
        self._sent = 0
        self._wanted = -1

    def reply(self, place: int) -> bytes:
        """Return the reply subject for the message at a place."""
        return b"%b%d" % (self._client.inbox, self._first + place)

    async def send(self) -> None:
        """Write the frames, and forget them. Raises a nats error, or `OSError`, if the connection is lost."""
        await self._client.write(self.frames)
        self._sent += len(self.frames)
        self.frames.clear()

    async def all_acknowledged(self, deadline: float) -> None:
        """Return when everything is acknowledged. Raises `TimeoutError` at the deadline (of the loop's clock), or a nats error."""
        self._wanted = self._sent
        loop = asyncio.get_running_loop()
        while len(self.received) < self._wanted:
            if self._client.denied is not None:
                raise nats.errors.Error(self._client.denied)
            if not self._client.is_connected:
                raise nats.errors.ConnectionClosedError
            remaining = deadline - loop.time()
            if remaining <= 0:
                msg = f"{self._wanted - len(self.received)} of {self._wanted} acknowledgements missing"
                raise TimeoutError(msg)
            await happens(self._complete, remaining)
            self._complete.clear()  # whoever was woken looks once, and waits again if there was nothing to see

    def take(self, acknowledgements: Sequence[tuple[int, bytes]]) -> int:
        """Note those that are for a place here, and return how many these are. Of several for one place the first counts."""
        first, end, received = self._first, self._end, self.received
        taken = [(number - first, what) for number, what in acknowledgements if first <= number < end]
        for place, what in taken:
            received.setdefault(place, what)
        if 0 <= self._wanted <= len(received):
            self._complete.set()
        return len(taken)

    def nobody_there(self) -> None:
        """Note that the first message has nobody to answer it."""
        self.take([(self._first, b"")])

    def wake(self) -> None:
        """The connection is lost: look."""
        self._complete.set()


class AckingClient(Client):
    """A client with an inbox for acknowledgements."""

    def __init__(self, *, must_encrypt: bool) -> None:
        super().__init__()
        self._must_encrypt = must_encrypt
        self._ack_sid = -1
        self._numbers = 0
        self._windows: list[Window] = []
        self._questions: dict[str, Window] = {}
        """By subject, also when they are over: a denial may be late."""
        self.inbox = b""
        self.denied: str | None = None
        """What the server said we may not do; it goes on, and answers nothing to what it denied."""
        self.acknowledgement: re.Pattern[bytes] | None = None
        self.run: re.Pattern[bytes] | None = None
        """Any number of acknowledgements, one after the other."""
        self._ps = _AckParser(self)

    async def listen_for_acknowledgements(self) -> None:
        """Subscribe to the inbox; once, after connecting."""
        prefix = self.new_inbox()
        subscription = await self.subscribe(f"{prefix}.*")
        await self.flush()
        self.take_acknowledgements(prefix, subscription._id)

    def take_acknowledgements(self, prefix: str, sid: int) -> None:
        """From now on what comes for a subscription to an inbox is an acknowledgement."""
        self._ack_sid = sid
        self.inbox = prefix.encode() + b"."
        one = rb"MSG %b(\d+) %d \d+\r\n(\{[^\r\n]*\})\r\n" % (re.escape(self.inbox), self._ack_sid)
        self.acknowledgement = re.compile(one)
        self.run = re.compile(rb"(?:%b)+" % one)

    async def ask(self, subject: str, within: float) -> bytes:
        """Return the answer to an empty request; empty if nobody is there to answer, or we may not ask.

        Raises `TimeoutError` after ``within`` seconds, or a nats error if the connection is lost. One question a subject at a time.
        """
        window = self.window(1)
        self._questions[subject.lower()] = window
        deadline = asyncio.get_running_loop().time() + within
        try:
            window.frames.append(b"PUB %b %b 0\r\n\r\n" % (subject.encode(), window.reply(0)))
            async with asyncio.timeout_at(deadline):
                await window.send()
            await window.all_acknowledged(deadline)
        finally:
            self.forget(window)
        return window.received[0]

    def deny(self, what: str) -> None:
        """Note what the server said that we may not do. If it was to ask, that is the answer, and no trouble for anybody else."""
        for subject, window in self._questions.items():
            if f'"{subject}"' in what.lower():
                window.nobody_there()
                return
        self.denied = what
        self.wake_windows()

    def window(self, size: int) -> Window:
        """Return a window for up to ``size`` messages."""
        window = Window(self, self._numbers, size)
        self._windows.append(window)
        self._numbers += size
        return window

    def forget(self, window: Window) -> None:
        """Take no more acknowledgements for a window."""
        self._windows.remove(window)

    def acknowledged(self, acknowledgements: Sequence[tuple[int, bytes]]) -> None:
        """Hand acknowledgements, each with its number, to their windows. One that nobody waits for any more is dropped."""
        left = len(acknowledgements)
        for window in self._windows:  # of the calls that are under way, the oldest first, as the server does: it is nearly always that one
            left -= window.take(acknowledgements)
            if not left:
                break

    async def write(self, frames: Sequence[bytes]) -> None:
        """Write whole frames past the client's own buffer, which it would send late after a reconnection, and wait for the transport."""
        if not self.is_connected or self._transport is None:
            raise nats.errors.ConnectionClosedError
        self._transport.write(b"".join(frames))
        await self._transport.drain()  # type: ignore[no-untyped-call]  # nats-py's transports have no types
        await asyncio.sleep(0)  # uvloop's transport writes when its loop comes round

    def wake_windows(self) -> None:
        """Tell everybody who waits that the connection is lost."""
        for window in self._windows:
            window.wake()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if sid == self._ack_sid:  # with headers, or in pieces: what the fast way below has left
            number = bytes(subject[len(self.inbox) :])
            if number.isdigit():  # an error here would end the client's read loop
                self.acknowledged([(int(number), bytes(data))])
        else:
            await super()._process_msg(sid, subject, reply, data, headers)

    def _connect_command(self) -> bytes:
        # With a TLS context given, nats-py still talks in clear to a server whose greeting does not ask for TLS. Say nothing to it.
        writer = getattr(self._transport, "_io_writer", None)
        if self._must_encrypt and (writer is None or writer.get_extra_info("ssl_object") is None):
            msg = "the server does not speak TLS: nothing was sent"
            raise nats.errors.Error(msg)
        return super()._connect_command()


class _AckParser(Parser):
    """Takes acknowledgements from the bytes as they come, and leaves the rest to the client's parser."""

    nc: AckingClient
    buf: bytearray

    async def parse(self, data: bytes = b"") -> None:
        client = self.nc
        if client.run is None or client.acknowledgement is None or self.state != AWAITING_CONTROL_LINE:
            await super().parse(data)
            return
        if self.buf:
            data = bytes(self.buf) + data
            self.buf.clear()
        between, numbers, acknowledgements, rest = _apart(client.acknowledgement, data)
        if any(between):  # something else is among them, or behind them and looks like them: only those before it are taken here
            run = client.run.match(data)
            end = run.end() if run else 0
            _, numbers, acknowledgements, _ = _apart(client.acknowledgement, data[:end])
            rest = data[end:]
        if numbers:
            client.acknowledged(list(zip(map(int, numbers), acknowledgements, strict=True)))
        if rest.startswith(b"MSG " + self.nc.inbox) and not rest.endswith(b"\r\n"):
            self.buf.extend(rest)  # one that is still incomplete: for the next time
        elif rest:
            await super().parse(rest)


def _apart(acknowledgement: re.Pattern[bytes], data: bytes) -> tuple[list[bytes], list[bytes], list[bytes], bytes]:
    """Return what is before each acknowledgement, which should be nothing, their numbers, they themselves, and what is left behind them."""
    parts = acknowledgement.split(data)
    return parts[:-1:3], parts[1::3], parts[2::3], parts[-1]


def cut(client: Any) -> None:
    """Cut the connection: drop what is buffered, and let nothing more out."""
    client._pending.clear()
    client._pending_data_size = 0
    writer = getattr(client._transport, "_bare_io_writer", None)
    if writer is not None:
        writer.transport.abort()
