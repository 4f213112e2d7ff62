"""The outbox as a Sink: what a bridge puts into it survives a crash, and the pump carries it on by the routes."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg

from bridges.envelope import RENAMED, REPLAYED, VIA
from bridges.errors import InvalidMessage, told
from bridges.message import check_content_type, check_headers, check_key, check_payload, check_topic, encoded_headers
from bridges.ordering import Blocked
from bridges.ports import BEHIND, PUBLISHED, Outcome, Reason, Rejected, Released, Retry
from outbox import sql

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from psycopg_pool import AsyncConnectionPool

    from bridges.message import Message
    from bridges.ports import Sink

T = TypeVar("T")

_TO_TABLE: Final = {VIA: "bridged-via", RENAMED: "bridged-renamed", REPLAYED: "bridged-replayed"}
"""The table keeps the names outbox-* from everybody who writes into it, so that no application can pass for a bridge: these three of ours
go in by another name, and `RestoredSink` gives their own back."""
_FROM_TABLE: Final = {stored: name for name, stored in _TO_TABLE.items()}

_UNWIND: Final = 1.0

# What an SQLSTATE, or its class, says about a message; the most specific first.
_BY_STATE: Final[tuple[tuple[str, type[Rejected | Released], Reason], ...]] = (
    ("57014", Released, Reason.TIMEOUT),  # the statement's time is up
    ("55P03", Released, Reason.TIMEOUT),  # a lock's
    ("25P03", Released, Reason.TIMEOUT),  # the transaction's
    ("42501", Released, Reason.FORBIDDEN),
    ("28", Released, Reason.FORBIDDEN),
    ("53100", Released, Reason.FULL),
    ("42", Released, Reason.MISSING),
    ("3D", Released, Reason.MISSING),
    ("3F", Released, Reason.MISSING),
    ("54", Rejected, Reason.TOO_LARGE),
    ("22", Rejected, Reason.INVALID),
    ("23", Rejected, Reason.INVALID),
    *((state, Released, Reason.UNAVAILABLE) for state in ("08", "25", "40", "53", "55", "57", "58", "XX")),
)


class OutboxSink:
    """Write into the outbox, and answer `Published` when that has committed: one INSERT for a call, in a transaction of its own.

    A message that the table would never take is `Rejected` by itself. What Postgres may not have committed is `Released`: if its answer to
    a COMMIT was lost, the message may be there, and come a second time.

    Args:
        pool: connections to the primary; shared.
        schema: where the outbox's tables are.
        timeout: seconds for a whole call.
    """

    def __init__(self, pool: AsyncConnectionPool, *, schema: str = "outbox", timeout: float = 10.0) -> None:
        self._pool = pool
        self._timeout = timeout
        self._insert = sql.bind(sql.INSERT_BRIDGED, schema)
        self._configure = sql.bind(sql.CONFIGURE_WRITE, schema)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Write the messages. One outcome each, in order."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        for write in (self._write_together, self._write_singly):
            try:
                return await written(self._pool, partial(write, messages), deadline=deadline)
            except (psycopg.Error, TimeoutError) as problem:
                verdict = verdict_on(problem)
            if isinstance(verdict, Released):
                break
            # Nothing is written. Whose fault it is shows when each is written by itself, in the order of their keys.
        return _all(messages, verdict)

    async def _write_together(self, messages: Sequence[Message], connection: psycopg.AsyncConnection[Any]) -> Sequence[Outcome]:
        outcomes, rows = await self._sound(messages, connection)
        if rows:
            await self._insert_rows(connection, rows.values())
        return outcomes

    async def _write_singly(self, messages: Sequence[Message], connection: psycopg.AsyncConnection[Any]) -> Sequence[Outcome]:
        outcomes, rows = await self._sound(messages, connection)
        blocked = Blocked()
        for index, message in enumerate(messages):
            if message in blocked:
                outcomes[index] = BEHIND
            elif index in rows:
                try:
                    async with connection.transaction():  # a savepoint
                        await self._insert_rows(connection, [rows[index]])
                except psycopg.Error as problem:
                    verdict = verdict_on(problem)
                    if isinstance(verdict, Released):
                        raise
                    outcomes[index] = verdict
            blocked.note(message, outcomes[index])
        return outcomes

    async def _sound(
        self, messages: Sequence[Message], connection: psycopg.AsyncConnection[Any]
    ) -> tuple[list[Outcome], dict[int, tuple[Any, ...]]]:
        """Return outcomes as if all that may be written were, and the rows of these, by their places."""
        cursor = await connection.execute(self._configure, {"timeout": f"{max(1, int(self._timeout * 1000))}ms"})
        row = await cursor.fetchone()
        assert row is not None
        max_payload: int = row[0]
        outcomes: list[Outcome] = [BEHIND] * len(messages)
        rows: dict[int, tuple[Any, ...]] = {}
        blocked = Blocked()
        for index, message in enumerate(messages):
            if message not in blocked:
                try:
                    rows[index] = _row(message, max_payload)
                except InvalidMessage as problem:
                    reason = Reason.TOO_LARGE if problem.field == "payload" else Reason.INVALID
                    outcomes[index] = blocked.note(message, Rejected(reason, str(problem)))
                else:
                    outcomes[index] = PUBLISHED
        return outcomes, rows

    async def _insert_rows(self, connection: psycopg.AsyncConnection[Any], rows: Iterable[tuple[Any, ...]]) -> None:
        await connection.execute(self._insert, [list(column) for column in zip(*rows, strict=True)])


class RestoredSink:
    """A Sink before which what the outbox calls by other names is called by its own again; around every sink that the outbox goes to."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Publish through the inner sink."""
        if any(not _FROM_TABLE.keys().isdisjoint(message.headers) for message in messages):
            messages = [_restored(message) for message in messages]
        return await self._sink.publish(messages)


async def written(pool: AsyncConnectionPool, work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]], *, deadline: float) -> T:
    """Do something in a transaction of its own, and return what it returned when that has committed.

    Raises psycopg's errors, among them the pool's, and `TimeoutError` at the deadline (of the loop's clock). Then, and when it is
    cancelled, the connection is cut: psycopg would wait ten seconds for a frozen server to cancel. The server rolls back what it was not
    told to commit.
    """
    lent: list[psycopg.AsyncConnection[Any]] = []
    remaining = deadline - asyncio.get_running_loop().time()

    async def write() -> T:
        # A little less than there is: then it says that there is no connection, and not only that time is up.
        async with pool.connection(timeout=max(0.9 * remaining, 0.001)) as connection:
            lent.append(connection)
            async with connection.transaction():
                return await work(connection)

    writing = asyncio.ensure_future(write())
    try:
        await asyncio.wait({writing}, timeout=remaining)
    finally:
        if not writing.done():
            await _end(writing, lent)
    if writing.cancelled():
        msg = "no answer from Postgres in time"
        raise TimeoutError(msg)
    return writing.result()


def verdict_on(problem: psycopg.Error | TimeoutError) -> Rejected | Released | Retry:
    """Return what an error of Postgres says about the one message that was written, by its SQLSTATE."""
    detail = told(problem)
    if isinstance(problem, TimeoutError):
        return Released(Reason.TIMEOUT, detail)
    if problem.sqlstate is None:
        # psycopg's own: of a value that it cannot write, or of a connection that is not there, or was lost, perhaps in COMMIT.
        return Rejected(Reason.INVALID, detail) if isinstance(problem, psycopg.DataError) else Released(Reason.UNAVAILABLE, detail)
    for state, kind, reason in _BY_STATE:
        if problem.sqlstate.startswith(state):
            return kind(reason, detail)
    return Retry(Reason.REFUSED, detail)


async def _end(writing: asyncio.Future[Any], lent: Sequence[psycopg.AsyncConnection[Any]]) -> None:
    """End a transaction that may be waiting for a frozen server: with its socket gone, it fails by itself."""
    for connection in lent:
        with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as copy:
            copy.shutdown(socket.SHUT_RDWR)
    if not lent:
        writing.cancel()
    await asyncio.wait({writing}, timeout=_UNWIND)
    if not writing.done():
        writing.cancel()
        await asyncio.wait({writing})
    if not writing.cancelled():
        writing.exception()  # seen: whoever is cut off asks for no more


def _all(messages: Sequence[Message], outcome: Outcome) -> list[Outcome]:
    """Return this outcome for the first message of each key, and for all without one."""
    blocked = Blocked()
    return [BEHIND if message in blocked else blocked.note(message, outcome) for message in messages]


def _row(message: Message, max_payload: int) -> tuple[Any, ...]:
    """Return the parameters of a row. Raises `InvalidMessage` for what the table does not take."""
    headers = {_TO_TABLE.get(name, name): value for name, value in message.headers.items()}
    check_topic(message.topic)
    check_key(message.key)
    check_content_type(message.content_type)
    check_headers(headers)
    check_payload(message.payload, max_payload)
    return message.id, message.topic, message.key, message.payload, message.content_type, encoded_headers(headers), message.created_at


def _restored(message: Message) -> Message:
    return message._replace(headers={_FROM_TABLE.get(name, name): value for name, value in message.headers.items()})
