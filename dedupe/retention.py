"""How long a processed id is kept, and why a message that is older than that has no second effect.

A day of processed ids is dropped as a table. What arrives with an id of such a day cannot be looked up any more, and is set aside, not
guessed at: `recording` finds it, and `dedupe.handler.HandlerSink` does not handle it unless an operator has asked for that.

Nobody who consumes need know how long ids are kept. Whoever takes any away raises ``processed_since`` in their database first, to at
least the time of the last of them; it never goes back. Whoever handles messages records their ids, and reads it after that. So no race
leads to a second effect, whatever each is configured with:

- If an id's day was dropped before the insertion had its lock on the table, ``processed_since`` was raised before that drop, and is read
  after the insertion: the message is found too old. If not, the drop waits for that lock until the transaction of the effect has
  ended, and the insertion saw the day's rows.
- A row that is deleted from the default partition, likewise: an insertion that is new for the lack of it came after the deletion
  had committed, which came after ``processed_since`` was raised.
- A drop that is rolled back has raised it for nothing: some messages are set aside that could have been looked up. None is handled twice.

No clock is in this: a UUIDv7 is dropped and judged by its own time. Other ids bear none. Their rows are deleted by ``processed_at``, and
their messages judged by ``created_at``, which is another clock's if the outbox is in another database, and so by `SLACK` apart.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import psycopg
from psycopg import sql as compose
from psycopg.rows import scalar_row, tuple_row

from dedupe import sql
from migrations.partitions import BESIDE_OTHERS, Patience, Upkeep, database_now
from migrations.schedule import Daily, Schedule, begin_of_uuid7, milliseconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bridges.message import Message
    from migrations.tidied import Tidied

PROCESSED: Final = Daily(table="processed", key="message_id", begin=begin_of_uuid7)
"""Partitioned by the day in which a UUIDv7 was made."""

SLACK: Final = timedelta(hours=1)
"""How much longer than for ``keep`` an id is kept: as far as the clocks of two databases may be apart."""


async def keep_processed(
    connection: psycopg.AsyncConnection[Any],
    *,
    schema: str = "dedupe",
    keep: timedelta | None,
    ahead: int = 3,
    patience: Patience = BESIDE_OTHERS,
) -> Tidied:
    """Make the partitions of yesterday and of the days ahead, and drop the processed ids that are over. Raises psycopg's errors.

    Args:
        connection: to the consumers' database, in autocommit mode.
        schema: of the dedupe track.
        keep: for how long ids are kept, at the least. None: for ever.
        ahead: days after today for which there are to be partitions.
        patience: how long things may take.
    """
    now = await database_now(connection)
    upkeep = Upkeep(connection, PROCESSED, schema=schema, patience=patience)
    schedule = processed_schedule(now, keep, ahead)
    if keep is not None:
        try:
            async with connection.transaction():
                await connection.execute(sql.bind(sql.LOCK_SINCE, schema))
                await connection.execute(sql.bind(sql.RAISE_SINCE, schema), (max(0, milliseconds(now - keep)),))
        except psycopg.errors.InsufficientPrivilege as problem:
            upkeep.forbid(problem)
            schedule = processed_schedule(now, None, ahead)
    return await upkeep.keep(schedule)


def processed_schedule(now: datetime, keep: timedelta | None, ahead: int = 3) -> Schedule:
    """Return what is to be at a time; see `keep_processed`."""
    days = [(now + timedelta(days=n)).date() for n in range(-1, ahead + 1)]
    if keep is None:
        return Schedule(wanted=days, needed=days[1:3])
    before = now - keep - SLACK
    bounds = {"before": compose.Literal(before), "first": compose.Literal(str(UUID(int=max(0, milliseconds(before)) << 80)))}
    return Schedule(
        # A retention of hours must not take away the day that was just made.
        wanted=[day for day in days if day >= before.date()],
        needed=days[1:3],
        over=before.date(),
        stays=compose.SQL(sql.PROCESSED_STAYS).format(**bounds),
        swept=[compose.SQL(condition).format(**bounds) for condition in sql.PROCESSED_IS_OVER],
    )


class ReadOnlyDatabase(psycopg.OperationalError):
    """The database takes no writes: a standby, or a server that is to change nothing for a while. That is no handler's doing."""


@asynccontextmanager
async def recording(
    connection: psycopg.AsyncConnection[Any], consumer: str, messages: Sequence[Message], *, schema: str = "dedupe"
) -> AsyncIterator[dict[UUID, datetime | None]]:
    """Begin a transaction in which the messages' ids are recorded, for the effects of those that are new; it ends with the context.

    Yield the ids that are new, as `dedupe.first_time` returns them, and for each whether it may have been handled nevertheless. None: it
    was not, or an operator has asked for it to be handled once, which this uses up. Else the time since when processed ids are all there,
    and before which the message was made: by its id if that is a UUIDv7, else by ``created_at``. A message that has neither cannot be
    judged: a duplicate of it that arrives after its row was deleted has a second effect.

    Raises psycopg's errors, and `ReadOnlyDatabase`, which closes the connection.
    """
    births = {message.id: birth_of(message) for message in messages}
    about = (consumer, list(births))
    recorded = psycopg.AsyncCursor(connection, row_factory=scalar_row)
    judged = psycopg.AsyncCursor(connection, row_factory=tuple_row)
    async with connection.transaction():
        # One round trip for both. BEGIN is another: a transaction that begins in a pipeline stays in one, and its handlers would not know
        # what becomes of a statement when they have sent it.
        try:
            async with connection.pipeline():
                await recorded.execute(sql.bind(sql.RECORD_PROCESSED, schema), about, binary=True)
                await judged.execute(sql.bind(sql.JUDGE_NEW, schema), about, binary=True)
        except psycopg.errors.ReadOnlySqlTransaction as problem:
            await connection.close()  # another may find a server that takes writes; this one would stay with its own
            raise ReadOnlyDatabase(str(problem)) from problem
        new = set(await recorded.fetchall())
        row = await judged.fetchone()
        assert row is not None
        since, asked = row
        if asked_for := new.intersection(asked):
            await connection.execute(sql.bind(sql.USE_UP, schema), (consumer, list(asked_for)))
        old = {one for one in new - asked_for if (birth := births[one]) is not None and birth < since}
        yield {one: _moment(since) if one in old else None for one in new}


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds)


def birth_of(message: Message) -> int | None:
    """Return the Unix milliseconds at which the message was made: by its id if that is a UUIDv7, else by ``created_at``, if known."""
    if message.id.int >> 76 & 0xF == 7:  # as the statements of `dedupe.sql` tell it
        return message.id.int >> 80
    return None if message.created_at is None else milliseconds(message.created_at)
