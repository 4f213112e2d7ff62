"""Rows that an operator finds: dead letters and an archive, as a pump would have left them."""

from __future__ import annotations

from typing import Any, TypeAlias

import psycopg

from outbox import Draft, Outbox

Connection: TypeAlias = psycopg.AsyncConnection[Any]

TABLES = ("messages", "deferred", "held", "holds", "dead", "archive", "replays")
KEPT = "position, id, created_at, deliver_at, expires_at, priority, lane, topic, key, content_type, headers, payload"


async def put(connection: Connection, *payloads: str, key: str | None = "k", topic: str = "t") -> list[Any]:
    """Put messages with these payloads, and return their ids."""
    async with connection.transaction():
        return list(await Outbox().aput_many(connection, [Draft(topic, payload.encode(), key=key) for payload in payloads]))


async def bury(connection: Connection, *payloads: str, reason: str = "too_large") -> None:
    """Make dead letters of the messages with these payloads."""
    await connection.execute(
        f"""WITH gone AS (DELETE FROM outbox.messages WHERE payload = ANY(%s) RETURNING {KEPT})
            INSERT INTO outbox.dead ({KEPT}, reason, attempts, error) SELECT gone.*, %s, 1, 'over the limit' FROM gone""",
        ([payload.encode() for payload in payloads], reason),
    )


async def hold(
    connection: Connection,
    name: str,
    *payloads: str,
    head: str | None = None,
    due: str | None = "1 hour",
    attempts: int = 0,
    destination: str | None = None,
) -> None:
    """Hold the messages with these payloads. The head is given by its payload, wherever it is; it is due after ``due``, or None."""
    await connection.execute(
        """INSERT INTO outbox.holds (hold, lane, head, due_at, attempts, destination)
           SELECT %(name)s, (SELECT lane FROM outbox.dead UNION SELECT lane FROM outbox.messages LIMIT 1),
                  (SELECT position FROM outbox.dead WHERE payload = %(head)s
                   UNION SELECT position FROM outbox.messages WHERE payload = %(head)s),
                  clock_timestamp() + %(due)s::interval, %(attempts)s, %(destination)s""",
        {"name": name, "head": head and head.encode(), "due": due, "attempts": attempts, "destination": destination},
    )
    await connection.execute(
        f"""WITH gone AS (DELETE FROM outbox.messages WHERE payload = ANY(%s) RETURNING {KEPT})
            INSERT INTO outbox.held ({KEPT}, hold) SELECT gone.*, %s FROM gone""",
        ([payload.encode() for payload in payloads], name),
    )


async def archive(connection: Connection, *, age: str = "1 minute") -> None:
    """Make of everything that waits to be published something that was."""
    await connection.execute(
        f"""WITH gone AS (DELETE FROM outbox.messages RETURNING {KEPT})
            INSERT INTO outbox.archive ({KEPT}, published_at, drop_at, destination)
            SELECT gone.*, clock_timestamp() - %s::interval, clock_timestamp() + interval '1 day', 'events' FROM gone""",
        (age,),
    )


async def everything(connection: Connection) -> dict[str, list[Any]]:
    """Return all rows of all tables, to see whether anything changed."""
    return {table: await rows(connection, f"SELECT to_jsonb(one)::text FROM outbox.{table} AS one ORDER BY 1") for table in TABLES}


async def rows(connection: Connection, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Return what a statement finds."""
    return await (await connection.execute(statement.encode(), parameters)).fetchall()
