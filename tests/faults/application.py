"""The application of a run: what it writes, and what its consumer does with it.

The tables stand in for a business: `ledger` counts what each key has been told, under a lock that gives the messages of a key their order;
`effects` has a row for each effect, and nothing in it forbids a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import TYPE_CHECKING, Any, Final, LiteralString

from bridges.backoff import Backoff
from dedupe import Consumer
from tests.faults.history import MARK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import psycopg

    from bridges.message import Message
    from bridges.ports import Outcome, Sink

TABLES: Final[LiteralString] = """
CREATE TABLE ledger (key text PRIMARY KEY, number integer NOT NULL DEFAULT 0);
CREATE TABLE effects (place bigint GENERATED ALWAYS AS IDENTITY, id uuid, key text, number integer, digest text);
CREATE TABLE settled (at double precision, session text, ids uuid[], unowned uuid[]);
-- A lane is owned by the transaction that has locked its row, whose id is the row's xmax.
CREATE FUNCTION note_settled() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO public.settled
    SELECT extract(epoch FROM clock_timestamp()), pid || ' ' || backend_start, ids, coalesce(unowned, '{}')
    FROM (SELECT array_agg(id) AS ids, array_agg(id) FILTER (WHERE lanes.xmax <> pg_current_xact_id()::xid) AS unowned
          FROM gone JOIN outbox.lanes USING (lane)) AS gone, pg_stat_get_activity(pg_backend_pid()) WHERE ids IS NOT NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER note_settled AFTER DELETE ON outbox.messages REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION note_settled();
CREATE TRIGGER note_settled AFTER DELETE ON outbox.deferred REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION note_settled();
CREATE TRIGGER note_settled AFTER DELETE ON outbox.held REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION note_settled();
"""

DELIVERIES: Final = "OUTBOXD_TEST_DELIVERIES"
"""A file to which the consumer adds what it is delivered: the log of a broker that keeps none."""

NOTE: Final = "note"
"""A header of every message that the writer writes. What it says is not ASCII, which each broker has to carry in its own way."""

FLAWED: Final = "flawed"
"""A header of messages that the consumer never takes; they have no `NOTE`."""


def digest(topic: str, payload: bytes, note: str | None) -> str:
    """Return what tells messages apart by what the application has put in them, their keys aside."""
    return hashlib.sha256(json.dumps([topic, note]).encode() + payload).hexdigest()[:16]


def digest_of(message: Message) -> str:
    """Return the digest of a message as a consumer gets it."""
    return digest(message.topic, message.payload, message.headers.get(NOTE))


class Delivered:
    """A Sink that writes down what goes through it, before it does."""

    def __init__(self, sink: Sink, file: Path | str) -> None:
        self._sink = sink
        self._file = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        for message in messages:
            at = time.clock_gettime(time.CLOCK_REALTIME)  # the machine's: a nemesis moves `time.time` of this process
            line = json.dumps([str(message.id), message.key, digest_of(message), at])
            os.write(self._file, f"{line}\n".encode())  # one write a line: the lines of several processes do not mix
        return await self._sink.publish(messages)


def _wrap(sink: Sink) -> Sink:
    file = os.environ.get(DELIVERIES)
    return Delivered(sink, file) if file else sink


consumer = Consumer("ledger", batch=200, wrap=_wrap, retry=Backoff(first=0.05, cap=0.2, max_attempts=3), handler_timeout=20.0)


class FlawedMessageError(ValueError):
    """What this application's handler cannot handle."""


@consumer.handler("orders.>")
async def handle(message: Message, connection: psycopg.AsyncConnection[Any]) -> None:
    """Write the effect down. The payload says which number of its key it is."""
    if FLAWED in message.headers:
        raise FlawedMessageError(message.id)
    number = json.loads(message.payload)["number"]
    await connection.execute(
        "INSERT INTO effects (id, key, number, digest) VALUES (%s, %s, %s, %s)",
        (message.id, message.key, number, digest_of(message)),
    )


def payload_of(number: int, filling: str) -> bytes:
    """Return a payload; it has in it what no log may show."""
    return json.dumps({"number": number, "mark": MARK, "filling": filling}).encode()
