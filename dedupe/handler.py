"""A Sink whose destination is the user's handlers: processed ids and effects in one transaction."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from bridges.backoff import Backoff
from bridges.deadline import happens
from bridges.errors import storable, told
from bridges.message import Message
from bridges.ports import PUBLISHED, Outcome, Published, Reason, Released
from bridges.tracing import processing
from dedupe import sql
from dedupe.retention import ReadOnlyDatabase, recording

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime
    from uuid import UUID

    from psycopg_pool import AsyncConnectionPool

log = logging.getLogger("outboxd.consumer")

Handler: TypeAlias = Callable[[Message, psycopg.AsyncConnection[Any]], Awaitable[None]]
"""Handles one message. What it writes through the connection commits with the message's id; it must not commit by itself."""

RETRY: Final = Backoff(first=0.5, cap=10.0, max_attempts=6)
"""The default for a handler that raises: at most 15.5 seconds in all, in place, while its key waits."""

_DUPLICATE = Published(duplicate=True)
_STOPPING = Released(Reason.STOPPING, "the consumer stops")

# Deadlock, serialization failure and a lock that was not to be had: nobody's fault, and gone when it is tried again.
_COLLISIONS = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure, psycopg.errors.LockNotAvailable)
# Classes of SQLSTATE that say the server, not the statement: connection, resources, operator intervention, system.
_UNAVAILABLE = ("08", "53", "57", "58")
# Also of class 57, but about a statement: it ran into the statement_timeout.
_CANCELLED = "57014"


class HandlerSink:
    """Runs the handler for each message that the consumer sees for the first time; `Published` when that has committed.

    Messages are spread by key over ``concurrency`` lanes, one share of a call at a time in each, so the messages of a key are handled one
    after the other, also across calls. A handler that raises rolls its lane's share back, and the share runs again one by one: those that
    can, go on; the guilty one is tried again after a while, then stored in ``consumer_dead``, which counts as `Published`: the consumer has
    it.

    A message of whose id there is no trace, and which is older than processed ids are kept in this database, may have been handled, or not:
    it is not handled but set aside, in ``consumer_dead``, until an operator has it requeued (see `dedupe.retention`).

    Args:
        pool: connections to the database in which the effects happen.
        handler: called with each message and the transaction's connection.
        consumer: the name under which ids are recorded.
        schema: of the dedupe track.
        concurrency: lanes; transactions at once.
        retry: how long a message whose handler raised waits, and after how many attempts it is dead.
        handler_timeout: seconds a handler may take; then it has failed.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool,
        handler: Handler,
        *,
        consumer: str,
        schema: str = "dedupe",
        concurrency: int = 8,
        retry: Backoff = RETRY,
        handler_timeout: float = 60.0,
    ) -> None:
        self._pool = pool
        self._handler = handler
        self._consumer = consumer
        self._schema = schema
        self._lanes = [asyncio.Lock() for _ in range(concurrency)]
        self._transactions = asyncio.Semaphore(concurrency)
        self._retry = retry
        self._handler_timeout = handler_timeout
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Try nothing again: what waits for another attempt is released."""
        self._stopping.set()

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Handle the messages. One outcome each, in order."""
        shares: dict[int, list[int]] = {}
        for index, message in enumerate(messages):
            shares.setdefault(hash(_place_of(message)) % len(self._lanes), []).append(index)
        outcomes: list[Outcome] = [_STOPPING] * len(messages)

        async def handle(lane: int, indexes: list[int]) -> None:
            async with self._lanes[lane]:
                answers = await self._handle_share([messages[index] for index in indexes])
            for index, answer in zip(indexes, answers, strict=True):
                outcomes[index] = answer

        async with asyncio.TaskGroup() as group:
            for lane, indexes in shares.items():
                group.create_task(handle(lane, indexes))
        return outcomes

    async def _handle_share(self, messages: list[Message]) -> list[Outcome]:
        try:
            return await self._handle_together(messages)
        except Exception as problem:  # noqa: BLE001 - a handler may raise anything; it is told apart here
            if trouble := _trouble(problem):
                return [trouble] * len(messages)
        # Key by key, so that only the messages behind the guilty one wait.
        keys: dict[object, list[int]] = {}
        for index, message in enumerate(messages):
            keys.setdefault(_place_of(message), []).append(index)
        outcomes: list[Outcome] = [_STOPPING] * len(messages)

        async def handle(indexes: list[int]) -> None:
            for index in indexes:
                outcomes[index] = await self._handle_alone(messages[index])
                if not isinstance(outcomes[index], Published):
                    return  # what is behind it keeps its place

        async with asyncio.TaskGroup() as group:
            for indexes in keys.values():
                group.create_task(handle(indexes))
        return outcomes

    async def _handle_together(self, messages: Sequence[Message]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        set_aside: list[tuple[Message, str]] = []
        async with self._transactions, self._pool.connection() as connection, self._recording(connection, messages) as new:
            for message in messages:
                if message.id not in new:
                    outcomes.append(_DUPLICATE)
                    continue
                since = new.pop(message.id)  # a copy of it later in the batch is a duplicate
                if since is not None:
                    why = (
                        f"older than {since:%Y-%m-%d %H:%M}Z, since when processed ids are kept: whether it was handled before is not"
                        " known; `outboxd dead requeue --consumer` has it handled"
                    )
                    await self._record_dead(connection, message, 0, why)
                    set_aside.append((message, why))
                else:
                    with processing(message, self._consumer):
                        async with asyncio.timeout(self._handler_timeout):
                            await self._handler(message, connection)
                    if connection.info.transaction_status is TransactionStatus.INERROR:
                        # COMMIT would be answered with ROLLBACK, and no error: the effect would be lost, and the message acknowledged.
                        raise psycopg.errors.InFailedSqlTransaction("the handler has gone on after an error that ended its transaction")
                outcomes.append(PUBLISHED)
        for message, why in set_aside:
            log.error("%s: message %s (%s) is set aside: %s", self._consumer, message.id, storable(message.topic), why)
        return outcomes

    async def _handle_alone(self, message: Message) -> Outcome:
        attempts = 0
        while not self._stopping.is_set():
            try:
                return (await self._handle_together([message]))[0]
            except Exception as problem:  # noqa: BLE001 - a handler may raise anything; what is its fault is told apart here
                if trouble := _trouble(problem):
                    return trouble
                if not isinstance(problem, _COLLISIONS):
                    attempts += 1
                    log.warning(
                        "%s: message %s (%s), attempt %d failed: %s",
                        self._consumer,
                        message.id,
                        storable(message.topic),
                        attempts,
                        told(problem),
                    )
                    if self._retry.exhausted(attempts):
                        return await self._bury(message, attempts, told(problem))
                await happens(self._stopping, self._retry.delay(max(attempts, 1)))
        return _STOPPING

    async def _bury(self, message: Message, attempts: int, error: str) -> Outcome:
        try:
            async with self._transactions, self._pool.connection() as connection, self._recording(connection, [message]):
                await self._record_dead(connection, message, attempts, error)
        except (psycopg.Error, PoolTimeout, PoolClosed, TooManyRequests) as problem:
            return Released(Reason.UNAVAILABLE, told(problem))
        log.error("%s: message %s (%s) is dead after %d attempts: %s", self._consumer, message.id, storable(message.topic), attempts, error)
        return PUBLISHED

    def _recording(
        self, connection: psycopg.AsyncConnection[Any], messages: Sequence[Message]
    ) -> AbstractAsyncContextManager[dict[UUID, datetime | None]]:
        return recording(connection, self._consumer, messages, schema=self._schema)

    async def _record_dead(self, connection: psycopg.AsyncConnection[Any], message: Message, attempts: int, error: str) -> None:
        row = (
            message.id,
            self._consumer,
            message.created_at,
            attempts,
            storable(message.topic),
            None if message.key is None else storable(message.key),
            storable(message.content_type),
            json.dumps({storable(name): storable(value) for name, value in message.headers.items()}),
            storable(error),
            message.payload,
        )
        await connection.execute(sql.bind(sql.RECORD_DEAD, self._schema), row)


def _trouble(problem: Exception) -> Released | None:
    """Return what to answer if the database, and not the handler, is at fault."""
    if isinstance(problem, PoolTimeout | PoolClosed | TooManyRequests | ReadOnlyDatabase):
        return Released(Reason.UNAVAILABLE, told(problem))
    if isinstance(problem, psycopg.OperationalError) and not isinstance(problem, _COLLISIONS):
        state = problem.sqlstate
        # No SQLSTATE: the connection was lost, perhaps in the middle of COMMIT. If that did commit, the next delivery is a duplicate.
        if state is None or (state.startswith(_UNAVAILABLE) and state != _CANCELLED):
            return Released(Reason.UNAVAILABLE, told(problem))
    return None


def _place_of(message: Message) -> object:
    return message.id if message.key is None else message.key
