"""Dead letters, for operators and their programs: list, show, requeue, drop; and `replay`, for what was published.

Every function takes the caller's own asynchronous connection. What changes something runs in `connection.transaction()`: in a
transaction of its own that has committed when the call returns, or, inside a transaction that the caller has open, as a part of it
that takes effect when the caller commits. Until then it owns the lanes of its keys, and no pump does: keep that short. Of a great many
letters, `requeue_in_batches` and `drop_in_batches` take a lane at a time.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import class_row, tuple_row

from bridges.envelope import REPLAYED
from bridges.errors import ConfigurationError, OutboxError
from outbox import sql, sql_operating
from outbox.replay import replay
from outbox.rows import hold_of_key
from outbox.selection import Selection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime
    from typing import LiteralString
    from uuid import UUID

__all__ = [
    "DeadLetter",
    "LanesTaken",
    "Letter",
    "NotDead",
    "Requeued",
    "Selection",
    "drop",
    "drop_in_batches",
    "list_dead",
    "replay",
    "requeue",
    "requeue_in_batches",
    "show_dead",
]

LOCK_TIMEOUT: Final = 30.0
BATCH: Final = 5000


class NotDead(OutboxError):
    """An id that was given is no dead letter that fits the selection: nothing was changed. ``ids`` are those."""

    def __init__(self, ids: Sequence[UUID]) -> None:
        super().__init__("\n".join(f"{one}: is not a dead letter, or does not fit the selection; nothing was changed" for one in ids))
        self.ids = list(ids)


class LanesTaken(OutboxError):
    """A pump's claim did not let go of the keys' lanes in time: these letters were left as they were."""


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


class Letter(NamedTuple):
    """A dead letter that is acted upon: what that takes to know of it. See `DeadLetter`."""

    position: int
    id: UUID
    key: str | None
    lane: int
    topic: str
    expired: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeued:
    """What `requeue` has done, or would do.

    Attributes:
        letters: put back, by position.
        expired: left dead, since their ``expires_at`` has passed: the pump would only give them up again.
        waiting: keys that wait on, each with the position of the other dead letter that it waits for.
    """

    letters: Sequence[Letter]
    expired: Sequence[Letter]
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
    its dead letter goes on with it. Those of a route that keeps no order go out at once.

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
        found = await _own(connection, selection, None, dry_run=dry_run, lock_timeout=lock_timeout, schema=schema)
        return await _requeue(connection, found, token=_token(fresh=fresh), expired=expired, dry_run=dry_run, schema=schema)


async def requeue_in_batches(
    connection: psycopg.AsyncConnection[Any],
    selection: Selection,
    *,
    everything: bool = False,
    fresh: bool = False,
    expired: bool = False,
    dry_run: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
    size: int = BATCH,
    schema: str = "outbox",
) -> AsyncIterator[Requeued]:
    """`requeue` of any number of them: lane by lane, in transactions of their own, so that the pump goes on with all other lanes.

    Yields what each of them has done when it has committed; what is done when an error ends it stays done. A batch is of about ``size``
    letters, and more only if so many are of one key: that is in one batch. Ids are all or nothing here too.

    Raises what `requeue` raises, and `ConfigurationError` if the connection has a transaction open.
    """
    token = _token(fresh=fresh)
    for batch in await _plan(connection, selection, everything=everything, size=size, schema=schema):
        async with connection.transaction():
            found = await _own(connection, selection, batch, dry_run=dry_run, lock_timeout=lock_timeout, schema=schema)
            done = await _requeue(connection, found, token=token, expired=expired, dry_run=dry_run, schema=schema)
        yield done


async def drop(
    connection: psycopg.AsyncConnection[Any],
    selection: Selection,
    *,
    everything: bool = False,
    dry_run: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
    schema: str = "outbox",
) -> list[Letter]:
    """Delete dead letters for good, and return them, by position. A key that waits for one of them goes on.

    Takes the arguments of `requeue`, and raises what it raises.
    """
    selection.require_something(everything=everything)
    async with connection.transaction():
        found = await _own(connection, selection, None, dry_run=dry_run, lock_timeout=lock_timeout, schema=schema)
        if not dry_run:
            await _drop(connection, found, schema)
        return found


async def drop_in_batches(
    connection: psycopg.AsyncConnection[Any],
    selection: Selection,
    *,
    everything: bool = False,
    dry_run: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
    size: int = BATCH,
    schema: str = "outbox",
) -> AsyncIterator[list[Letter]]:
    """`drop` of any number of them, as `requeue_in_batches` does it."""
    for batch in await _plan(connection, selection, everything=everything, size=size, schema=schema):
        async with connection.transaction():
            found = await _own(connection, selection, batch, dry_run=dry_run, lock_timeout=lock_timeout, schema=schema)
            if not dry_run:
                await _drop(connection, found, schema)
        yield found


def _token(*, fresh: bool) -> str | None:
    return secrets.token_hex(4) if fresh else None


async def _plan(
    connection: psycopg.AsyncConnection[Any], selection: Selection, *, everything: bool, size: int, schema: str
) -> list[list[int] | None]:
    """Return the positions of each batch, all in one lane and each ordered key in one batch; None: whatever is selected."""
    selection.require_something(everything=everything)
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        msg = "connection: has a transaction open, which would own one lane after the other and let go of none: end it first"
        raise ConfigurationError(msg)
    if selection.message_ids:
        return [None]
    async with connection.transaction():
        parts = await _execute(connection, sql.bind(sql_operating.PLAN_BATCHES, schema), selection.parameters)
    batches: list[list[int] | None] = []
    batch: list[int] = []
    of = None
    for lane, positions in parts:
        if lane != of or len(batch) + len(positions) > size:
            batch = []
            batches.append(batch)
        batch += positions
        of = lane
    return batches


async def _own(
    connection: psycopg.AsyncConnection[Any],
    selection: Selection,
    positions: Sequence[int] | None,
    *,
    dry_run: bool,
    lock_timeout: float,
    schema: str,
) -> list[Letter]:
    """Return the dead letters that are meant, by position, and own their lanes; of those at ``positions``, if these are given."""
    found = await _find(connection, selection, positions, schema)
    if dry_run:
        return found
    await _take_lanes(connection, {letter.lane for letter in found}, lock_timeout, schema)
    return await _find(connection, selection, [letter.position for letter in found], schema)


async def _find(
    connection: psycopg.AsyncConnection[Any], selection: Selection, positions: Sequence[int] | None, schema: str
) -> list[Letter]:
    parameters = {**selection.parameters, "positions": positions}
    found = [Letter(*row) for row in await _execute(connection, sql.bind(sql_operating.FIND_DEAD, schema), parameters)]
    there = {letter.id for letter in found}
    if missing := [one for one in selection.message_ids if one not in there]:
        raise NotDead(missing)
    return found


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
        msg = f"a pump's claim has held a lane of these keys for {timeout:g} s: they are as they were. Is its destination slow? Try again"
        raise LanesTaken(msg) from None
    await _execute(connection, sql_operating.SET_LOCK_TIMEOUT, (before,))


async def _requeue(
    connection: psycopg.AsyncConnection[Any], found: Sequence[Letter], *, token: str | None, expired: bool, dry_run: bool, schema: str
) -> Requeued:
    """Move the letters, whose lanes are owned, to where the pump finds them."""
    letters = [letter for letter in found if expired or not letter.expired]
    left = [letter for letter in found if letter.expired and not expired]
    if not dry_run:
        positions = [letter.position for letter in letters]
        parameters = {"positions": positions, "headers": json.dumps({REPLAYED: token} if token else {}), "expired": expired}
        await _execute(connection, sql.bind(sql_operating.REQUEUE_KEYED, schema), parameters)
        await _execute(connection, sql.bind(sql_operating.REQUEUE_KEYLESS, schema), parameters)
        await _execute(
            connection, sql.bind(sql_operating.BRING_EARLIER, schema), {"positions": positions, "last": max(positions, default=0)}
        )
        await _execute(connection, sql.bind(sql_operating.MAKE_KEY_HOLDS, schema), (positions,))
        await _execute(connection, sql.bind(sql_operating.HASTEN_HOLDS, schema), (positions,))
        await _let_keys_go(connection, letters, schema)
    return Requeued(letters=letters, expired=left, waiting=await _see_waiting(connection, letters, schema))


async def _drop(connection: psycopg.AsyncConnection[Any], found: Sequence[Letter], schema: str) -> None:
    await _execute(connection, sql.bind(sql_operating.DROP_DEAD, schema), ([letter.position for letter in found],))
    await _let_keys_go(connection, found, schema)


async def _let_keys_go(connection: psycopg.AsyncConnection[Any], letters: Sequence[Letter], schema: str) -> None:
    """Let the keys of the letters that have left go on, and wake the pump."""
    holds = list(_holds_of(letters))
    released = [hold for (hold,) in await _execute(connection, sql.bind(sql_operating.RELEASE_HOLDS, schema), (holds,))]
    await _execute(connection, sql.bind(sql.END_HOLDS, schema), (released,))
    if letters:
        await _execute(connection, sql.bind(sql_operating.RING, schema), ())


async def _see_waiting(connection: psycopg.AsyncConnection[Any], letters: Sequence[Letter], schema: str) -> dict[str, int]:
    """Return the keys of the letters that wait on when these are gone, each with the position of the dead letter that it waits for."""
    holds = _holds_of(letters)
    parameters = (list(holds), [letter.position for letter in letters])
    return {holds[hold]: head for hold, head in await _execute(connection, sql.bind(sql_operating.SEE_WAITING, schema), parameters)}


def _holds_of(letters: Sequence[Letter]) -> dict[str, str]:
    return {hold_of_key(letter.key): letter.key for letter in letters if letter.key is not None}


async def _execute(
    connection: psycopg.AsyncConnection[Any], statement: LiteralString, parameters: Sequence[Any] | Mapping[str, Any]
) -> list[tuple[Any, ...]]:
    # A cursor of our own: the caller's may have another row factory.
    async with psycopg.AsyncCursor(connection, row_factory=tuple_row) as cursor:
        await cursor.execute(statement, parameters)
        return await cursor.fetchall() if cursor.description else []
