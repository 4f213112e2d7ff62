"""A server that sends back what it gets, and its clients, to try a proxy on."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

from tests.engines.deadline import eventually

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import AsyncIterator, Callable

    from tests.faults.proxy import Proxy

MUCH: Final = os.urandom(1 << 20) * 16
WITHIN: Final = 10.0
"""Seconds in which anything here must happen."""


@dataclass
class Echo:
    """A server that sends back what it gets, and the end too."""

    port: int = 0
    got: bytearray = field(default_factory=bytearray)
    ended: list[str] = field(default_factory=list)
    """How connections ended: ``FIN`` or ``RST``."""
    reading: asyncio.Event = field(default_factory=asyncio.Event)
    writers: list[StreamWriter] = field(default_factory=list)

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while await self.reading.wait() and (data := await reader.read(1 << 16)):
                self.got += data
                writer.write(data)
                await writer.drain()
            self.ended.append("FIN")
        except ConnectionError:
            self.ended.append("RST")
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def echoing() -> AsyncIterator[Echo]:
    """Run a server, and wait for the end of its connections."""
    echo = Echo()
    echo.reading.set()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    echo.reading.set()
    server.close()
    for writer in echo.writers:
        writer.transport.abort()
    await until(lambda: len(echo.ended) == len(echo.writers))


class Caller:
    """A client of the server behind the proxy."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def says(self, data: bytes = b"hello") -> None:
        """Send, and get it back."""
        self.writer.write(data)
        assert await self.hears(len(data)) == data

    async def sends(self, data: bytes) -> None:
        """Send, and wait until nearly all of it is with the kernel."""
        self.writer.write(data)
        await self.writer.drain()

    async def hears(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), WITHIN)

    async def is_reset(self) -> None:
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(self.reader.read(), WITHIN)


@asynccontextmanager
async def calling(proxy: Proxy) -> AsyncIterator[Caller]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _true(value: bool) -> bool:
    return value


async def until(condition: Callable[[], object]) -> None:
    await eventually(lambda: _true(bool(condition())), within=WITHIN)


def without_linger(writer: StreamWriter) -> None:
    """Close a connection with RST."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()
