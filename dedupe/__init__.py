"""Consumers whose effects happen once: a message's id is recorded in the transaction of its effect.

    consumer = Consumer("billing")

    @consumer.handler("orders.*")
    async def bill(message, connection):
        await connection.execute("INSERT INTO invoices ...")

    await consumer.run(source, dsn=dsn)

A batch is one transaction: `first_time` inserts all its ids, the handlers of those that were new run with the same connection, COMMIT,
and only then is the broker told. A duplicate, after a crash, a lost acknowledgement or a replay, finds its id and is acknowledged without
an effect. What a handler does elsewhere than through its connection may repeat.

Ids are kept by day and dropped by day (`dedupe.retention`); a message that is older than they are kept is set aside, not guessed at.

`Consumer` is a Bridge from any Source to a `HandlerSink`. Programs with a loop of their own use `first_time` alone.
"""

from dedupe.consumer import Consumer
from dedupe.handler import Handler, HandlerSink
from dedupe.processed import first_time

__all__ = ["Consumer", "Handler", "HandlerSink", "first_time"]
