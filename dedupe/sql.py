"""Every statement on the consumers' tables, each headed by why it has its shape."""

from __future__ import annotations

from typing import Final

from migrations.names import render

bind: Final = render
"""Put the schema's name into a statement."""

# The session of a consumer's connection. An id that another transaction has recorded and not committed is waited for.
CONFIGURE_CONSUMER: Final = """
SELECT set_config('idle_in_transaction_session_timeout', %s, false), set_config('lock_timeout', %s, false)"""

# All ids of a batch at once. In the order of the ids, since two consumers with overlapping batches wait for each other's rows, and
# would wait in a circle if each took them in its own order.
RECORD_PROCESSED: Final = """
INSERT INTO :"schema".processed (message_id, consumer)
SELECT DISTINCT id, %s FROM unnest(%s::uuid[]) AS id ORDER BY id
ON CONFLICT DO NOTHING
RETURNING message_id"""

# The same, with the time in Unix milliseconds at which each was found to be new: read after that, and so under the lock on the table
# and after any row of the same id was gone (dedupe/retention.py says why that matters).
RECORD_PROCESSED_AT: Final = f"{RECORD_PROCESSED}, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

# By which processed ids stay or go: `before` is a time, and `first` the lowest UUIDv7 of that time. An id that is no UUIDv7 may lie in
# some day's range by chance, and is not old for that. Written as the partial index has it; a UUIDv7 is found by the primary key.
PROCESSED_STAYS: Final = "get_byte(uuid_send(message_id), 6) >> 4 <> 7 AND processed_at >= {before}"
PROCESSED_IS_OVER: Final = (
    "get_byte(uuid_send(message_id), 6) >> 4 <> 7 AND processed_at < {before}",
    "get_byte(uuid_send(message_id), 6) >> 4 = 7 AND processed_at < {before} AND message_id < {first}::uuid",
)

# The message may have died before, been requeued, and die again: the last error is the one to see.
RECORD_DEAD: Final = """
INSERT INTO :"schema".consumer_dead (message_id, consumer, created_at, attempts, topic, key, content_type, headers, error, payload)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s, %s)
ON CONFLICT (message_id, consumer) DO UPDATE
SET died_at = clock_timestamp(), attempts = excluded.attempts, error = excluded.error"""
