"""An effect of a message as small as one can be, for consumers under test: a row with its id and payload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridges.message import Message, uuid7

if TYPE_CHECKING:
    from uuid import UUID

    import psycopg

EFFECTS = "CREATE TABLE effects (place bigint GENERATED ALWAYS AS IDENTITY, id uuid, payload text)"


async def apply(message: Message, connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("INSERT INTO effects (id, payload) VALUES (%s, %s)", (message.id, message.payload.decode()))


async def effects(connection: psycopg.AsyncConnection) -> list[str]:
    cursor = await connection.execute("SELECT payload FROM effects ORDER BY place")
    return [row[0] for row in await cursor.fetchall()]


def made(payload: str, key: str | None = None, message_id: UUID | None = None) -> Message:
    return Message(message_id or uuid7(), "orders.created", payload.encode(), key)
