"""Dead letters, for operators and their programs: list, show, requeue, drop.

Every function takes the caller's own asynchronous connection. What changes something runs in `connection.transaction()`: in a
transaction of its own that has committed when the call returns, or, inside a transaction that the caller has open, as a part of it
that takes effect when the caller commits. Until then it owns the lanes of its keys, and no pump does: keep that short.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import class_row, tuple_row

from bridges.envelope import REPLAYED
from bridges.errors import ConfigurationError, OutboxError
from outbox import sql, sql_operating
from outbox.rows import hold_of_key
from outbox.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from typing import LiteralString
    from uuid import UUID

__all__ = ["DeadLetter", "LanesTaken", "NotDead", "Requeued", "Selection", "drop", "list_dead", "requeue", "show_dead"]

LOCK_TIMEOUT = 30.0


class NotDead(OutboxError):
    """An id that was given is no dead letter that fits the selection: nothing was changed. ``ids`` are those."""

    def __init__(self, ids: Sequence[UUID]) -> None:
        super().__init__("\n".join(f"{one}: is not a dead letter, or does not fit the selection; nothing was changed" for one in ids))
        self.ids = list(ids)


class LanesTaken(OutboxError):
    """A pump's claim did not let go of the keys' lanes in time: nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that was given up.

    Attributes:
        position: its place in the outbox, which it keeps.
        id: of the message; an application that chooses its ids may have used one twice.
        topic: of the message.
        key: of the message.
        lane: of the key.
        content_type: of the payload.
        headers: of the message.
        reason: a `bridges.ports.Reason`.
        error: what was said.
        attempts: how often it was tried.
        created_at: when it was put.
        died_at: when it was given up.
        deliver_at: not before then.
        expires_at: not after then.
        expired: whether ``expires_at`` has passed.
        size: of the payload, in bytes.
        payload: None unless it was asked for.
    """

    position: int
    id: UUID
    topic: str
    key: str | None
    lane: int
    content_type: str
    headers: Mapping[str, str]
    reason: str
    error: str | None
    attempts: int
    created_at: datetime
    died_at: datetime
    deliver_at: datetime | None
    expires_at: datetime | None
    expired: bool
    size: int
    payload: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeued:
    """What `requeue` has done, or would do.

    Attributes:
        letters: put back, by position.
        expired: left dead, since their ``expires_at`` has passed: the pump would only give them up again.
        waiting: keys that wait on, each with the position of the other dead letter that it waits for.
    """

    letters: Sequence[DeadLetter]
    expired: Sequence[DeadLetter]
    waiting: Mapping[str, int]


async def list_dead(
    connection: psycopg.AsyncConnection[Any], selection: Selection | None = None, *, limit: int | None = None, schema: str = "outbox"
) -> list[DeadLetter]:
    """Return the dead letters that are meant, the latest first, without their payloads.

    Args:
        connection: the caller's own.
        selection: which; all of them if None.
        limit: how many at the most.
        schema: the outbox's.
    """
    parameters = {**(selection or Selection()).parameters, "limit": limit}
    async with psycopg.AsyncCursor(connection, row_factory=class_row(DeadLetter)) as cursor:
        await cursor.execute(sql.bind(sql_operating.LIST_DEAD, schema), parameters)
        return await cursor.fetchall()


async def show_dead(connection: psycopg.AsyncConnection[Any], message_id: UUID, *, schema: str = "outbox") -> list[DeadLetter]:
    """Return the dead letters with this id, whole: nearly always one, or none."""
    async with psycopg.AsyncCursor(connection, row_factory=class_row(DeadLetter)) as cursor:
        await cursor.execute(sql.bind(sql_operating.SHOW_DEAD, schema), (message_id,), binary=True)
        return await cursor.fetchall()


async def requeue(
    connection: psycopg.AsyncConnection[Any],
    selection: Selection,
    *,
    everything: bool = False,
    fresh: bool = False,
    expired: bool = False,
    dry_run: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
    schema: str = "outbox",
) -> Requeued:
    """Put dead letters back, to be published by the pump: with the same id, at their own positions, with no attempts counted.

    Those of one key go out in the order of their positions, ahead of all that came later and has not gone out yet. A key that waits for
    its dead letter goes on with it.

    Args:
        connection: the caller's own.
        selection: which.
        everything: must be True if the selection is empty.
        fresh: give each copy a new Nats-Msg-Id, so that JetStream does not take it for a duplicate of one that it has; the message's id
            stays. By the header ``outbox-replayed``.
        expired: also those whose ``expires_at`` has passed, without it.
        dry_run: change nothing, and say what would be done.
        lock_timeout: seconds to wait for a lane that a pump's claim owns.
        schema: the outbox's.

    Raises:
        NotDead: an id of the selection is not among them; nothing was changed.
        LanesTaken: a claim did not end in time; nothing was changed.
        ConfigurationError: the selection is empty, or the connection's transactions are not READ COMMITTED.
    """
    selection.require_something(everything=everything)
    async with connection.transaction():
        found = await _find(connection, selection, schema)
        if not dry_run:
            await _take_lanes(connection, {letter.lane for letter in found}, lock_timeout, schema)
            found = await _find(connection, selection, schema, among=found)
        letters = [letter for letter in found if expired or not letter.expired]
        left = [letter for letter in found if letter.expired and not expired]
        waiting = {} if dry_run else await _put_back(connection, letters, fresh=fresh, expired=expired, schema=schema)
        return Requeued(letters=letters, expired=left, waiting=waiting)


async def drop(
    connection: psycopg.AsyncConnection[Any],
    selection: Selection,
    *,
    everything: bool = False,
    dry_run: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
    schema: str = "outbox",
) -> list[DeadLetter]:
    """Delete dead letters for good, and return them, by position, without their payloads. A key that waits for one of them goes on.

    Takes the arguments of `requeue`, and raises what it raises.
    """
    selection.require_something(everything=everything)
    async with connection.transaction():
        found = await _find(connection, selection, schema)
        if dry_run:
            return found
        await _take_lanes(connection, {letter.lane for letter in found}, lock_timeout, schema)
        found = await _find(connection, selection, schema, among=found)
        await _execute(connection, sql.bind(sql_operating.DROP_DEAD, schema), ([letter.position for letter in found],))
        await _let_keys_go(connection, found, schema)
        return found


async def _find(
    connection: psycopg.AsyncConnection[Any], selection: Selection, schema: str, *, among: Sequence[DeadLetter] | None = None
) -> list[DeadLetter]:
    """Return the dead letters that are meant, by position; of those found before, whose lanes are ours, if ``among`` is given."""
    found = await list_dead(connection, selection, schema=schema)
    if among is not None:
        ours = {letter.position for letter in among}
        found = [letter for letter in found if letter.position in ours]
    there = {letter.id for letter in found}
    if missing := [one for one in selection.message_ids if one not in there]:
        raise NotDead(missing)
    return sorted(found, key=lambda letter: letter.position)


async def _take_lanes(connection: psycopg.AsyncConnection[Any], lanes: set[int], timeout: float, schema: str) -> None:
    """Own the lanes until the end of the transaction, as a claim would. Raises `LanesTaken`."""
    ((isolation, before),) = await _execute(connection, sql_operating.SEE_SESSION, ())
    if isolation != "read committed":
        msg = f"connection: its transactions are {isolation}, and would not see what a pump has just done: use READ COMMITTED"
        raise ConfigurationError(msg)
    await _execute(connection, sql_operating.SET_LOCK_TIMEOUT, (f"{max(1, int(timeout * 1000))}ms",))
    try:
        await _execute(connection, sql.bind(sql_operating.TAKE_LANES, schema), (sorted(lanes),))
    except psycopg.errors.LockNotAvailable:
        msg = f"a pump's claim has held a lane of these keys for {timeout:g} s; nothing was changed. Is its destination slow? Try again"
        raise LanesTaken(msg) from None
    await _execute(connection, sql_operating.SET_LOCK_TIMEOUT, (before,))


async def _put_back(
    connection: psycopg.AsyncConnection[Any], letters: Sequence[DeadLetter], *, fresh: bool, expired: bool, schema: str
) -> dict[str, int]:
    """Move the letters to where the pump finds them, and return the keys that wait on, with what for."""
    positions = [letter.position for letter in letters]
    headers = json.dumps({REPLAYED: secrets.token_hex(4)} if fresh else {})
    parameters = {"positions": positions, "headers": headers, "expired": expired}
    await _execute(connection, sql.bind(sql_operating.REQUEUE_KEYED, schema), parameters)
    await _execute(connection, sql.bind(sql_operating.REQUEUE_KEYLESS, schema), parameters)
    await _execute(connection, sql.bind(sql_operating.BRING_EARLIER, schema), {"positions": positions, "last": max(positions, default=0)})
    await _execute(connection, sql.bind(sql_operating.MAKE_KEY_HOLDS, schema), (positions,))
    await _execute(connection, sql.bind(sql_operating.HASTEN_HOLDS, schema), (positions,))
    return await _let_keys_go(connection, letters, schema)


async def _let_keys_go(connection: psycopg.AsyncConnection[Any], letters: Sequence[DeadLetter], schema: str) -> dict[str, int]:
    """Let the keys of the letters that have left go on, wake the pump, and return the keys that wait on, with what for."""
    holds = {hold_of_key(letter.key): letter.key for letter in letters if letter.key is not None}
    released = [hold for (hold,) in await _execute(connection, sql.bind(sql_operating.RELEASE_HOLDS, schema), (list(holds),))]
    await _execute(connection, sql.bind(sql.END_HOLDS, schema), (released,))
    if letters:
        await _execute(connection, sql.bind(sql_operating.RING, schema), ())
    return {holds[hold]: head for hold, head in await _execute(connection, sql.bind(sql_operating.SEE_WAITING, schema), (list(holds),))}


async def _execute(
    connection: psycopg.AsyncConnection[Any], statement: LiteralString, parameters: Sequence[Any] | Mapping[str, Any]
) -> list[tuple[Any, ...]]:
    # A cursor of our own: the caller's may have another row factory.
    async with psycopg.AsyncCursor(connection, row_factory=tuple_row) as cursor:
        await cursor.execute(statement, parameters)
        return await cursor.fetchall() if cursor.description else []
