"""The dead letters of consumers: listed, and handled again. Here, since it takes both the consumers' tables and a sink."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
from psycopg.rows import class_row, tuple_row

from bridges.envelope import REPLAYED
from bridges.errors import ConfigurationError
from bridges.message import Message
from bridges.ports import BEHIND, Published, Rejected, Released, Retry
from dedupe.processed import first_time
from dedupe.sql import HANDLE_ONCE
from outbox import sql, sql_operating
from outbox.deadletters import NotDead

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from bridges.ports import Outcome, Sink
    from outbox.selection import Selection


Unsent: TypeAlias = Released | Retry | Rejected
"""Why the sink has not taken a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerLetter:
    """A message that a consumer gave up; see `outbox.deadletters.DeadLetter`."""

    id: UUID
    topic: str
    key: str | None
    error: str
    attempts: int
    created_at: datetime | None
    died_at: datetime
    size: int


@dataclass(frozen=True, slots=True)
class HandedBack:
    """What became of the consumer's dead letters: those that are on their way to it again, and those that the sink did not take."""

    sent: list[UUID] = field(default_factory=list)
    kept: Mapping[UUID, Unsent] = field(default_factory=dict)


async def list_consumer_dead(
    connection: psycopg.AsyncConnection[Any], consumer: str, selection: Selection, *, limit: int | None = None, schema: str = "dedupe"
) -> list[ConsumerLetter]:
    """Return a consumer's dead letters that are meant, the latest first. Raises `ConfigurationError` for a selection by reason."""
    if selection.reason is not None:
        msg = "reason: a consumer's dead letters have an error, and no reason"
        raise ConfigurationError(msg)
    async with psycopg.AsyncCursor(connection, row_factory=class_row(ConsumerLetter)) as cursor:
        await cursor.execute(
            sql.bind(sql_operating.LIST_CONSUMER_DEAD, schema), {**selection.parameters, "consumer": consumer, "limit": limit}
        )
        return await cursor.fetchall()


async def requeue_consumer_dead(
    connection: psycopg.AsyncConnection[Any],
    consumer: str,
    selection: Selection,
    sink: Sink,
    *,
    everything: bool = False,
    dry_run: bool = False,
    schema: str = "dedupe",
) -> HandedBack:
    """Have the consumer handle its dead letters again: forget that it has seen them, and publish them once more.

    Each is then handled once, however old it is: a row of ``consumer_requeued`` says so, which goes with the transaction of the effect.

    Each in a transaction that commits when the sink has acknowledged it: what the sink does not take stays dead. They carry the header
    ``outbox-replayed``; other consumers recognise their ids as duplicates. Their order is that in which they were put, and one that is not
    taken holds back its key; if the sink is away, the rest is not tried.

    Raises `NotDead` for an id of the selection that is none of them, and `ConfigurationError` for an empty selection.
    """
    selection.require_something(everything=everything)
    letters = await list_consumer_dead(connection, consumer, selection, schema=schema)
    there = {letter.id for letter in letters}
    if missing := [one for one in selection.message_ids if one not in there]:
        raise NotDead(missing)
    token = secrets.token_hex(4)
    sent: list[UUID] = []
    kept: dict[UUID, Unsent] = {}
    held_back: set[str] = set()
    away = False
    for letter in sorted(letters, key=lambda letter: ((letter.created_at or letter.died_at), letter.id)):
        if dry_run:
            sent.append(letter.id)
            continue
        if away or letter.key in held_back:
            kept[letter.id] = BEHIND
            continue
        async with connection.transaction() as transaction:
            outcome = await _hand_back(connection, consumer, letter.id, sink, token, schema)
            if isinstance(outcome, Published):
                sent.append(letter.id)
            elif outcome is not None:
                kept[letter.id] = outcome
                away = isinstance(outcome, Released)
                if letter.key is not None:
                    held_back.add(letter.key)
                raise psycopg.Rollback(transaction)
    return HandedBack(sent, kept)


async def _hand_back(
    connection: psycopg.AsyncConnection[Any], consumer: str, message_id: UUID, sink: Sink, token: str, schema: str
) -> Outcome | None:
    """Publish a letter, and delete it from the consumer's tables; None if somebody else has just done so."""
    async with psycopg.AsyncCursor(connection, row_factory=tuple_row) as cursor:
        await cursor.execute(sql.bind(sql_operating.TAKE_CONSUMER_DEAD, schema), (message_id, consumer), binary=True)
        row = await cursor.fetchone()
        if row is None:
            return None
        # Recorded before it is forgotten: the day of an old id may be gone, and the consumer, to whom the copy may come before this has
        # committed, is to wait for it, and to see then that it was asked for.
        await first_time(connection, consumer, [message_id], schema=schema)
        await cursor.execute(sql.bind(sql_operating.FORGET_PROCESSED, schema), (message_id, consumer))
        await cursor.execute(sql.bind(HANDLE_ONCE, schema), (message_id, consumer))
    message = Message._make(row)
    (outcome,) = await sink.publish([message._replace(headers={**message.headers, REPLAYED: token})])
    return outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeLetter(ConsumerLetter):
    """All of a message that a consumer gave up."""

    content_type: str
    headers: Mapping[str, str]
    payload: bytes


async def show_consumer_dead(
    connection: psycopg.AsyncConnection[Any], consumer: str, message_id: UUID, *, schema: str = "dedupe"
) -> list[WholeLetter]:
    """Return the consumer's dead letter with this id, if there is one."""
    async with psycopg.AsyncCursor(connection, row_factory=class_row(WholeLetter)) as cursor:
        await cursor.execute(sql.bind(sql_operating.SHOW_CONSUMER_DEAD, schema), (message_id, consumer), binary=True)
        return await cursor.fetchall()


async def drop_consumer_dead(
    connection: psycopg.AsyncConnection[Any],
    consumer: str,
    selection: Selection,
    *,
    everything: bool = False,
    dry_run: bool = False,
    schema: str = "dedupe",
) -> list[ConsumerLetter]:
    """Delete dead letters of a consumer for good, and return them. To the consumer they stay processed. Raises as a requeue does."""
    selection.require_something(everything=everything)
    async with connection.transaction():
        letters = await list_consumer_dead(connection, consumer, selection, schema=schema)
        there = {letter.id for letter in letters}
        if missing := [one for one in selection.message_ids if one not in there]:
            raise NotDead(missing)
        if dry_run:
            return letters
        async with psycopg.AsyncCursor(connection, row_factory=tuple_row) as cursor:
            await cursor.execute(sql.bind(sql_operating.DROP_CONSUMER_DEAD, schema), (list(there), consumer))
            gone = {message_id for (message_id,) in await cursor.fetchall()}
        return [letter for letter in letters if letter.id in gone]
