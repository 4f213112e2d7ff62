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

# Since when the ids are all there, and for which of them an operator has asked. A statement of its own: the first must be read after the
# ids were recorded (dedupe/retention.py says why), and the second is there only once the operator's transaction, which the recording waits
# for, has committed. Of all the ids, and not of the new ones alone, so that it need not wait for the recording to be answered.
JUDGE_NEW: Final = """
SELECT last_value, ARRAY(SELECT message_id FROM :"schema".consumer_requeued WHERE consumer = %s AND message_id = ANY(%s::uuid[]))
FROM :"schema".processed_since"""

# What was asked for is done, of ids that this transaction has recorded: nobody else's message can have been meant.
USE_UP: Final = """
DELETE FROM :"schema".consumer_requeued WHERE consumer = %s AND message_id = ANY(%s::uuid[])"""

# Never backwards, by whomever and with whatever retention: hence the lock, for the two statements.
LOCK_SINCE: Final = "SELECT pg_advisory_xact_lock(hashtextextended('outboxd.processed_since.' || :'schema', 0))"
RAISE_SINCE: Final = """
SELECT setval(:'schema' || '.processed_since', greatest(last_value, %s)) FROM :"schema".processed_since"""

# An operator asks for the message to be handled, once and however old it is.
HANDLE_ONCE: Final = """
INSERT INTO :"schema".consumer_requeued (message_id, consumer) VALUES (%s, %s) ON CONFLICT DO NOTHING"""

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
