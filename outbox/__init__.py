"""The Postgres side of outboxd: a message written in your transaction is published once that transaction has committed.

    outbox = Outbox()
    with psycopg.connect(dsn) as connection:                    # your own transaction
        connection.execute("UPDATE orders SET state = 'paid' WHERE id = %s", (order,))
        outbox.put(connection, "orders.paid", {"order": order}, key=order)

`Outbox.put` is one INSERT into the FIFO table ``messages``. The pump, a `bridges.bridge.Bridge` from an
`outbox.source.OutboxSource` to a broker's sink, claims rows, publishes them, and deletes them when they are acknowledged. What is
not now waits in ``deferred`` or ``held``; what is given up lies in ``dead``. ``outboxd run`` (`outbox.daemon`) runs it.

Importing this package costs an application nothing beyond the standard library.
"""

from bridges.errors import InvalidMessage, NoTransaction
from bridges.message import Message
from outbox.writer import Draft, Outbox

__all__ = ["Draft", "InvalidMessage", "Message", "NoTransaction", "Outbox"]
