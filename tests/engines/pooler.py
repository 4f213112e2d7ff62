"""A transaction pooler between a client and Postgres, as PgBouncer is one: each transaction may be in another session of the server.

It speaks as much of the protocol as that takes: each client has two sessions, and changes between them whenever it is in no transaction.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

_CANCEL, _TLS, _GSS = 80877102, 80877103, 80877104
_REPORTED = ("server_version", "server_encoding", "client_encoding", "integer_datetimes", "standard_conforming_strings", "TimeZone")


class Pooler:
    """A pooler on a loopback port; an async context manager.

    Args:
        dsn: the server that it stands before.
        per_transaction: False: a client keeps its session, as in PgBouncer's session mode.
    """

    def __init__(self, dsn: str, *, per_transaction: bool = True) -> None:
        self._target = dsn
        self._per_transaction = per_transaction
        self._clients: set[asyncio.Task[None]] = set()

    @property
    def dsn(self) -> str:
        """The same database, through the pooler."""
        port = self._server.sockets[0].getsockname()[1]
        parts = {**conninfo_to_dict(self._target), "host": "127.0.0.1", "port": port, "sslmode": "disable", "gssencmode": "disable"}
        return make_conninfo(**parts)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for client in self._clients:
            client.cancel()
        if self._clients:
            await asyncio.wait(self._clients)

    def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        sessions: list[psycopg.AsyncConnection[Any]] = []
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            if (name := await _read_startup(reader, writer)) is not None:
                for _ in range(2 if self._per_transaction else 1):
                    session = await psycopg.AsyncConnection.connect(self._target, application_name=name)
                    sessions.append(session)  # one by one, so that what is open is closed whatever happens to the next
                await _Client(reader, writer, sessions).relay()
        for session in sessions:
            await session.close()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


class _Client:
    def __init__(self, reader: StreamReader, writer: StreamWriter, sessions: list[psycopg.AsyncConnection[Any]]) -> None:
        self._reader = reader
        self._writer = writer
        self._sessions = sessions
        self._place = 0
        self._unanswered = 0
        self._in_transaction = False

    async def relay(self) -> None:
        """Carry messages both ways until the client leaves."""
        reported = [(name, self._sessions[0].pgconn.parameter_status(name.encode()) or b"") for name in _REPORTED]
        greeting = [_message(b"R", bytes(4)), *(_message(b"S", name.encode() + b"\0" + value + b"\0") for name, value in reported)]
        # A process that does not exist, as poolers tell of.
        self._writer.write(b"".join([*greeting, _message(b"K", struct.pack("!II", 99, 99)), _message(b"Z", b"I")]))
        # psycopg has logged in, however that is done here; its socket is ours from now on.
        sockets = [socket.socket(fileno=os.dup(session.pgconn.socket)) for session in self._sessions]
        servers = [await asyncio.open_connection(sock=server) for server in sockets]
        answering = [asyncio.ensure_future(self._answer(place, reader)) for place, (reader, _) in enumerate(servers)]
        try:
            while (message := await _read(self._reader))[0] != b"X":
                self._unanswered += message[0] in {b"Q", b"S"}  # each is answered by one ReadyForQuery
                servers[self._place][1].write(_message(*message))
        finally:
            for task in answering:
                task.cancel()
            await asyncio.wait(answering)
            for _, writer in servers:
                writer.close()

    async def _answer(self, place: int, server: StreamReader) -> None:
        while True:
            kind, body = await _read(server)
            if place != self._place or not (self._unanswered or self._in_transaction or len(self._sessions) == 1):
                continue  # a notification for whoever had the session before: there is nobody to give it to
            if kind == b"Z":
                self._unanswered -= 1
                self._in_transaction = body != b"I"
                if not self._in_transaction and not self._unanswered:
                    self._place = (self._place + 1) % len(self._sessions)
            self._writer.write(_message(kind, body))


async def _read_startup(reader: StreamReader, writer: StreamWriter) -> str | None:
    """Return the client's application_name; None if it only wants something cancelled."""
    while True:
        (length,) = struct.unpack("!I", await reader.readexactly(4))
        body = await reader.readexactly(length - 4)
        (code,) = struct.unpack_from("!I", body)
        if code == _CANCEL:
            return None
        if code not in {_TLS, _GSS}:
            words = body[4:].rstrip(b"\0").decode().split("\0")
            return dict(zip(words[::2], words[1::2], strict=True)).get("application_name", "")
        writer.write(b"N")


async def _read(reader: StreamReader) -> tuple[bytes, bytes]:
    kind, length = struct.unpack("!cI", await reader.readexactly(5))
    return kind, await reader.readexactly(length - 4)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body
