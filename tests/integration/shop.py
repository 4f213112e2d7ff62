"""The application that the daemon's tests run: a consumer that writes down what it handled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dedupe import Consumer

if TYPE_CHECKING:
    import psycopg

    from bridges.message import Message

TABLE = "CREATE TABLE effects (place bigint GENERATED ALWAYS AS IDENTITY, id uuid, key text, payload text)"

consumer = Consumer("shop", batch=20)


@consumer.handler("orders.>")
async def handle(message: Message, connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute(
        "INSERT INTO effects (id, key, payload) VALUES (%s, %s, %s)", (message.id, message.key, message.payload.decode())
    )
