"""The processed ids: which messages a consumer sees for the first time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dedupe import sql

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    import psycopg


async def first_time(connection: psycopg.AsyncConnection[Any], consumer: str, ids: Iterable[UUID], *, schema: str = "dedupe") -> set[UUID]:
    """Record the ids as processed by the consumer, in the connection's transaction, and return those that were not before.

    This tells nothing of ids that are not kept any more: `dedupe.retention.recording` does, as handlers of `dedupe.Consumer` need it.
    Where another transaction has recorded an id and is still open, this waits for its end: if it rolls back, the id is new here.

    Args:
        connection: of the transaction in which the effects happen; they and the ids commit together, or not at all.
        consumer: who asks; each consumer sees each message for itself.
        ids: any number, in any order; repetitions count once.
        schema: of the dedupe track.
    """
    from psycopg.rows import scalar_row

    async with connection.cursor(row_factory=scalar_row, binary=True) as cursor:
        await cursor.execute(sql.bind(sql.RECORD_PROCESSED, schema), (consumer, list(ids)))
        return set(await cursor.fetchall())
