"""The consumer of the demo, as an application would write it, and what counts its deliveries."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg

from bridges.ports import Reason, Released
from dedupe import Consumer
from outbox.demo import bank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.message import Message
    from bridges.ports import Outcome, Sink


class Audit:
    """A Sink that writes down every message it is given, copies included, before it passes them on, if there is anybody to pass them to."""

    def __init__(self, dsn: str, statement: LiteralString, sink: Sink | None = None) -> None:
        self._dsn = dsn
        self._statement = statement
        self._sink = sink
        self._connection: psycopg.AsyncConnection[Any] | None = None

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Write the messages down, and pass them on."""
        transfers = [json.loads(message.payload) for message in messages]
        columns = (
            [message.id for message in messages],
            [transfer["account"] for transfer in transfers],
            [transfer["n"] for transfer in transfers],
        )
        try:
            if self._connection is None or self._connection.closed:
                self._connection = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
            await self._connection.execute(self._statement, columns)
        except psycopg.OperationalError as problem:
            return [Released(Reason.UNAVAILABLE, str(problem))] * len(messages)
        if self._sink is None:
            return []
        return await self._sink.publish(messages)


consumer = Consumer("ledger", wrap=lambda sink: Audit(os.environ["OUTBOXD_POSTGRES__DSN"], bank.NOTE_DELIVERIES, sink))


@consumer.handler("bank.transfers")
async def apply(message: Message, connection: psycopg.AsyncConnection[Any]) -> None:
    """Move the money: the one effect that each message must have once."""
    transfer = json.loads(message.payload)
    await connection.execute(bank.APPLY, {"id": message.id, "created_at": message.created_at, **transfer})
