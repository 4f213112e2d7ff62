"""One proxied connection: two sockets, and what is done to the bytes between them.

Everything happens in callbacks of the event loop. A flow takes what its source has sent, waits for the time and the room to pass it on,
and stops reading while it has enough, so that a slow reader slows the writer down as it would without a proxy.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from tests.faults.protocols import Direction

if TYPE_CHECKING:
    from tests.faults.protocols import Protocol
    from tests.faults.switches import Plan, State

_MOST_DELAYED: Final = 4 << 20
"""Bytes of one direction that may wait for their time. Without a delay nothing is read while anything waits."""
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class End(asyncio.Protocol):
    """One of a connection's two sockets: what is read from it goes in one direction, what is written to it comes from the other."""

    def __init__(self, link: Link, reads: Direction) -> None:
        self.reads = reads
        self.transport: asyncio.Transport | None = None
        self.writable = False
        self._link = link
        self._into, self._from = link.flows[reads], next(flow for way, flow in link.flows.items() if way is not reads)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(0)  # what is written is with the kernel, or else we are told to wait
        self.writable = True
        self._link.state.ends.add(self)
        self._link.state.closed.clear()
        self._link.made(self)

    def data_received(self, data: bytes) -> None:
        self._into.take(data)

    def eof_received(self) -> bool:
        self._into.take_end()
        return True  # the other direction goes on

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport, self.writable = None, False
        self._link.state.ends.discard(self)
        if not self._link.state.ends:
            self._link.state.closed.set()
        self._link.lost(self)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._from.pump()

    def reset(self) -> None:
        """Close the socket with RST."""
        if self.transport is not None:
            with suppress(OSError):  # its peer is gone
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self.transport.abort()


class Link:
    """A client's connection, and ours to the server for it."""

    def __init__(self, state: State, target: tuple[str, int], watch: Protocol | None) -> None:
        self.state = state
        self.watch = watch
        self.flows = {direction: Flow(self, direction) for direction in Direction}
        self.client, self.server = (End(self, direction) for direction in Direction)
        self.broken = False
        """It has lost something, or one of its ends: it cannot go on when everything is healed."""
        self.over = False
        self._target = target
        self._connecting: asyncio.Task[None] | None = None

    def made(self, end: End) -> None:
        """One of the ends is connected."""
        if self.over:
            end.reset()
        elif end is self.client:
            self.state.connections += 1
            self.state.links.add(self)
            if self.state.refusing:
                self.state.faults["refuse"] += 1
                self.reset()
            else:
                self._connecting = asyncio.get_running_loop().create_task(self._connect())
                self.state.connecting.add(self._connecting)
                self._connecting.add_done_callback(self.state.connecting.discard)
        else:
            for direction in self.state.half_closed:
                self.flows[direction].half_close()
            if self.state.frozen:
                self.state.faults["freeze"] += 1
        self.pump()

    def pump(self) -> None:
        """Pass on what can be, in both directions."""
        for flow in self.flows.values():
            flow.pump()

    def lost(self, end: End) -> None:
        """An end is gone, and not because we closed it. The other is told, unless it cannot hear of anything."""
        if end.reads in self.state.swallowing | self.state.frozen:
            self.broken = True
        else:
            self.reset()

    def finish(self) -> None:
        """Close both ends, once nothing more comes from either."""
        if all(flow.finished for flow in self.flows.values()):
            self._forget()
            for end in (self.client, self.server):
                if end.transport is not None:
                    end.transport.close()

    def reset(self) -> None:
        """End with RST on both ends, whatever is under way."""
        if not self.over:
            self._forget()
            for end in (self.client, self.server):
                end.reset()

    def _forget(self) -> None:
        self.over = True
        self.state.links.discard(self)
        if self._connecting is not None:
            self._connecting.cancel()
        for flow in self.flows.values():
            flow.stop()

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, *self._target)
        except OSError:
            self.reset()


class Flow:
    """One direction of a connection."""

    def __init__(self, link: Link, direction: Direction) -> None:
        self.finished = False
        """Its FIN is sent."""
        self._link = link
        self._state = link.state
        self._direction = direction
        self._queue: deque[tuple[float, memoryview | None]] = deque()
        """What waits, each with its time by the loop's clock; None is the FIN."""
        self._size = 0
        self._again: asyncio.Handle | None = None
        self._ended = False
        """Its source has sent FIN."""
        self._deaf = False
        """What comes from now on leads nowhere."""

    def take(self, data: bytes) -> None:
        """Take what the source has sent."""
        if self._swallows():
            return
        watch = self._link.watch
        plain: list[bytes] = []
        for part in watch.parts(self._direction, data) if watch else ():
            plan = self._state.plan(part.moment) if part.moment else None
            if plan is None:
                plain.append(part.data)
                continue
            self._put(b"".join(plain))
            plain.clear()
            self.pump()
            self._carry_out(plan, part.data)
            if self._deaf or self._link.over:
                return
        self._put(b"".join(plain) if watch else data)
        self.pump()

    def take_end(self) -> None:
        """The source has sent FIN."""
        self._ended = True
        if not self._swallows():
            self._put(self._link.watch.rest(self._direction) if self._link.watch else b"")
            self._put(None)
            self.pump()

    def half_close(self) -> None:
        """Send FIN to the sink behind what waits, and swallow what comes."""
        if not self._deaf and not self._ended:
            self._state.faults["half_close"] += 1
            self._put(None)
            self._deaf = self._link.broken = True
            self.pump()

    def hurry(self) -> None:
        """Let nothing wait for its time any longer."""
        self._queue = deque((0.0, data) for _, data in self._queue)

    def stop(self) -> None:
        """Forget everything."""
        self._queue.clear()
        if self._again is not None:
            self._again.cancel()

    def pump(self) -> None:
        """Write what may be written, and read on if there is room."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        loop = asyncio.get_running_loop()
        sink = self._link.server if self._direction is Direction.TO_SERVER else self._link.client
        most = 1
        while self._queue and sink.writable and sink.transport and self._direction not in self._state.frozen and self._again is None:
            due, data = self._queue[0]
            if due > loop.time():
                self._again = loop.call_at(due, self.pump)
                most = _MOST_DELAYED
                continue
            self._queue.popleft()
            if data is None:
                self._finish(sink.transport)
                continue
            if self._direction in self._state.sliced:
                data, left = data[:1], data[1:]
                if left:
                    self._queue.appendleft((due, left))
                self._again = loop.call_soon(self.pump)
                self._state.faults["slice"] += 1
            self._size -= len(data)
            self._state.forwarded[self._direction] += len(data)
            sink.transport.write(data)  # asyncio has set TCP_NODELAY
        self._read_on(sink.transport is not None and self._size < most and self._direction not in self._state.frozen)

    def _read_on(self, wanted: bool) -> None:
        source = self._link.client if self._direction is Direction.TO_SERVER else self._link.server
        if source.transport is not None and not source.transport.is_closing() and not self._ended:
            if wanted:
                source.transport.resume_reading()
            else:
                source.transport.pause_reading()

    def _swallows(self) -> bool:
        if self._direction in self._state.swallowing:
            self._state.faults["blackhole"] += 1
            self._deaf = True  # for good: there is a hole
        self._link.broken |= self._deaf
        return self._deaf or self._link.over

    def _carry_out(self, plan: Plan, frame: bytes) -> None:
        if plan.action == "cut":
            self._link.reset()
        elif plan.action == "lose":
            # Where answers are matched by their order, the client must not see the next one in its place.
            in_order = self._link.watch is not None and self._link.watch.in_order
            self._deaf |= in_order
            self._link.broken |= in_order
        elif plan.action == "late":
            self._put(frame, late=plan.seconds)
        else:
            self._put(frame)
            self._put(frame)
        self._state.faults[plan.action] += 1
        plan.done.set()

    def _put(self, data: bytes | None, late: float = 0.0) -> None:
        delay = self._state.delays.get(self._direction, 0.0)
        if delay and data:
            self._state.faults["delay"] += 1
        due = asyncio.get_running_loop().time() + delay + late if delay + late else 0.0
        if data is None or data:
            self._queue.append((due, None if data is None else memoryview(data)))
            self._size += len(data or b"")

    def _finish(self, transport: asyncio.Transport) -> None:
        self.finished = True
        try:
            transport.write_eof()
        except OSError:  # its peer is gone
            self._link.reset()
        else:
            self._link.finish()
