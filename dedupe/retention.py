"""How long a processed id is kept, and why a message that is older than that has no second effect.

A day of processed ids is dropped as a table. What arrives with an id of such a day cannot be looked up any more, and is set aside, not
guessed at: `ages_of_new` says how old a message is, and `dedupe.handler.HandlerSink` does not handle one that is older than is kept.

No race between the two leads to a second effect. Both compare with the clock of the one database that has the ids, and:

- An id is judged after it was inserted as new. If a day was dropped before that insertion had its lock on the table, the day had ended
  ``keep`` and more before the drop began, which was before the lock, which was before the clock was read: the message is found too old.
  If not, the drop waits for that lock until the transaction of the effect has ended, and the insertion saw the day's rows.
- A row that is deleted from the default partition, likewise: an insertion that is new for the lack of it came after the deletion, whose
  clock was read before that.

Both proofs want a clock that does not go back. It may by `SLACK`, as it may when a standby takes over: nothing is dropped before it is
that much older than the age at which it is refused. Only this also covers ids that are no UUIDv7. They bear no time: their rows are
deleted by ``processed_at``, and their messages judged by ``created_at``, which is another clock's if the outbox is in another database.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from psycopg import sql as compose

from dedupe import sql
from migrations.partitions import BESIDE_OTHERS, Daily, Patience, Tidied, Upkeep, begin_of_uuid7, database_now, milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from bridges.message import Message

PROCESSED: Final = Daily(table="processed", key="message_id", begin=begin_of_uuid7)
"""Partitioned by the day in which a UUIDv7 was made."""

SLACK: Final = timedelta(hours=1)
"""How much longer than for ``keep`` an id is kept."""


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
        keep: for how long ids are kept; at least what the consumers are run with. None: for ever.
        ahead: days after today for which there are to be partitions.
        patience: how long things may take.
    """
    now = await database_now(connection)
    days = [(now + timedelta(days=n)).date() for n in range(-1, ahead + 1)]
    upkeep = Upkeep(connection, PROCESSED, schema=schema, patience=patience)
    if keep is None:
        return await upkeep.keep(wanted=days, over=None)
    before = now - keep - SLACK
    bounds = {"before": compose.Literal(before), "first": compose.Literal(str(UUID(int=milliseconds(before) << 80)))}
    stays = compose.SQL(sql.PROCESSED_STAYS).format(**bounds)
    swept = [compose.SQL(condition).format(**bounds) for condition in sql.PROCESSED_IS_OVER]
    # A retention of hours must not take away the day that was just made.
    return await upkeep.keep(wanted=[day for day in days if day >= before.date()], over=before.date(), stays=stays, swept=swept)


async def ages_of_new(
    connection: psycopg.AsyncConnection[Any], consumer: str, messages: Sequence[Message], *, schema: str = "dedupe"
) -> dict[UUID, timedelta | None]:
    """Do as `dedupe.first_time` does, and return those that are new with their age by the database's clock.

    The age is that of the id if it is a UUIDv7, and else that of ``created_at``; None for a message that has neither. Such a message
    cannot be judged: a duplicate of it that arrives after its row was deleted has a second effect.
    """
    births = {message.id: birth_of(message) for message in messages}
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(sql.bind(sql.RECORD_PROCESSED_AT, schema), (consumer, list(births)))
        rows = await cursor.fetchall()
    ages: dict[UUID, timedelta | None] = {}
    for message_id, now in rows:
        birth = births[message_id]
        ages[message_id] = None if birth is None else timedelta(milliseconds=now - birth)
    return ages


def birth_of(message: Message) -> int | None:
    """Return the Unix milliseconds at which the message was made: by its id if that is a UUIDv7, else by ``created_at``, if known."""
    if message.id.int >> 76 & 0xF == 7:  # as the statements of `dedupe.sql` tell it
        return message.id.int >> 80
    return None if message.created_at is None else milliseconds(message.created_at)
