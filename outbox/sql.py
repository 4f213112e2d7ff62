"""Every statement on the outbox's tables, each headed by why it has its shape. `bind` puts the name of the schema in.

This module is light to import: the statements are text, and psycopg comes with the connection they run on.
"""

from __future__ import annotations

from typing import Final, LiteralString

from migrations.names import check_schema_name, render

bind: Final = render
"""Put the schema's name into a statement."""

# --- writing --------------------------------------------------------------------------------------------------------------

# No RETURNING: it would need SELECT, and an application may have INSERT alone. The id is made by the client.
INSERT_ONE: Final = """
INSERT INTO :"schema".messages (id, topic, key, payload, content_type, headers, deliver_at, expires_at, priority)
VALUES (%s, %s, %s, %s, %s, %s::jsonb, %s, %s, %s)"""

# One statement and one round trip for any number of rows. The ordinality keeps their order whatever the planner does, since
# positions are drawn in the order in which rows reach the table.
INSERT_MANY: Final = """
INSERT INTO :"schema".messages (id, topic, key, payload, content_type, headers, deliver_at, expires_at, priority)
SELECT id, topic, key, payload, content_type, headers::jsonb, deliver_at, expires_at, priority
FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::bytea[], %s::text[], %s::text[], %s::timestamptz[], %s::timestamptz[], %s::smallint[])
     WITH ORDINALITY AS new (id, topic, key, payload, content_type, headers, deliver_at, expires_at, priority, place)
ORDER BY place"""

# As INSERT_MANY, of messages that others have made: they keep the time at which they were put, where that is known. In binary, which takes
# half as long to write down: here it is the daemon that does, for all of them.
INSERT_BRIDGED: Final = """
INSERT INTO :"schema".messages (id, topic, key, payload, content_type, headers, created_at)
SELECT id, topic, key, payload, content_type, headers::jsonb, coalesce(created_at, clock_timestamp())
FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::bytea[], %b::text[], %b::text[], %b::timestamptz[])
     WITH ORDINALITY AS new (id, topic, key, payload, content_type, headers, created_at, place)
ORDER BY place"""

# The session of a bridge's write, set for its transaction alone. Its source is told that the outbox has the message: that must be so after
# a crash of the server too, whatever the role's default is; a stricter setting stays. With it comes the limit that the table would hold a
# payload to, so that one over it is found before it takes the others down.
CONFIGURE_WRITE: Final = """
SELECT :"schema".max_payload(), set_config('statement_timeout', %(timeout)s, true), set_config('lock_timeout', %(timeout)s, true),
       set_config('idle_in_transaction_session_timeout', %(timeout)s, true),
       set_config('synchronous_commit', CASE WHEN current_setting('synchronous_commit') = 'off' THEN 'on'
                                             ELSE current_setting('synchronous_commit') END, true)"""

# What a bridge gives up. It takes a position as any message does, so that it can be requeued among them; it never was a row of messages,
# which would not take it. One that is there already was given up before a crash that its source heard nothing of.
BURY: Final = """
WITH new AS MATERIALIZED (
    SELECT *, nextval(pg_get_serial_sequence(quote_ident(:'schema') || '.messages', 'position')) AS position
    FROM unnest(%(id)s::uuid[], %(created_at)s::timestamptz[], %(topic)s::text[], %(key)s::text[], %(content_type)s::text[],
                %(headers)s::text[], %(payload)b::bytea[], %(reason)s::text[], %(attempts)s::integer[], %(error)s::text[])
         WITH ORDINALITY AS given (id, created_at, topic, key, content_type, headers, payload, reason, attempts, error, place)
    WHERE NOT EXISTS (SELECT FROM :"schema".dead WHERE dead.id = given.id AND dead.topic = given.topic)
)
INSERT INTO :"schema".dead (position, id, created_at, attempts, priority, lane, topic, key, content_type, headers, reason, error, payload)
SELECT position, id, coalesce(created_at, clock_timestamp()), attempts, 0,
       (coalesce(hashtextextended(key, 0), position) & 63)::smallint, topic, key, content_type, headers::jsonb, reason, error, payload
FROM new ORDER BY place"""

# --- claiming -------------------------------------------------------------------------------------------------------------

# Whatever the database's default is: in a stricter isolation the statements of a claim would share one snapshot, from before its lanes.
BEGIN_CLAIM: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"

# The session of a claim, set for its transaction alone, so that a pooler in between can do no harm.
# synchronous_commit: a settle that is lost in a crash of the server is only a duplicate. The timeouts end a claim whose pump hangs
# or was cut off. In UTC, times are read in a third of the time, and travel alike whatever the server's zone is. Sequential and bitmap
# scans are never right for a FIFO that is read by position, whatever stale statistics say.
CONFIGURE_CLAIM: Final = """
SELECT set_config('synchronous_commit', 'off', true), set_config('statement_timeout', %s, true),
       set_config('lock_timeout', %s, true), set_config('idle_in_transaction_session_timeout', %s, true),
       set_config('search_path', 'pg_catalog', true), set_config('timezone', 'UTC', true), set_config('jit', 'off', true),
       set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true)"""

# Own some lanes for the life of the transaction. A statement of its own: the snapshots of the statements that follow begin after
# the lanes are held, and so see all that their last owner committed. In one statement with the claim, a row that the last owner moved
# behind a failing head, or a hold that it made, would be missed, and the key would be out of order.
OWN_LANES: Final = """
SELECT lane FROM :"schema".lanes
ORDER BY (lane - %s::integer) & 63 LIMIT %s
FOR UPDATE SKIP LOCKED"""

# For the one try that a half-open breaker allows: a single lane of the destination's queue, so that only the keys of that lane wait
# if the destination takes all the time it has to fail.
OWN_LANE_OF_DESTINATION: Final = """
SELECT lane FROM :"schema".lanes
WHERE lane IN (SELECT lane FROM :"schema".holds WHERE destination = %s) LIMIT 1
FOR UPDATE SKIP LOCKED"""

# The holds of destinations in my lanes, whatever their state: what is newer goes behind them.
SEE_DESTINATIONS: Final = """
SELECT hold FROM :"schema".holds WHERE destination IS NOT NULL AND lane = ANY(%(lanes)s::smallint[])"""

# How much waits for a destination: its hold of each lane by itself, since a pattern would not use the index in every collation.
COUNT_HELD: Final = """
SELECT count(*) FROM :"schema".held WHERE hold = ANY(%s::text[])"""

# Every claim selects the columns of a message, in the order of `bridges.message.Message`, and then those of `outbox.rows.Row`: position,
# lane, why the row is not to be sent now, which is NULL for nearly all, the hold of its key, and so on. While there is no hold at all,
# which is asked once a statement, nothing is looked up for a row. Most messages have no headers: taking apart their empty JSON was a tenth
# of what the pump did for a row.
_COLUMNS: Final = "id, topic, payload, key, content_type, nullif(headers, '{}'), created_at, position, lane"
_ASIDE: Final = """
    CASE WHEN expires_at <= statement_timestamp() THEN 'expired'
         WHEN deliver_at > statement_timestamp() THEN 'early'
         WHEN octet_length(payload) > :"schema".max_payload() THEN 'oversized' END,
    CASE WHEN (SELECT EXISTS (SELECT FROM :"schema".holds))
         THEN coalesce((SELECT hold FROM :"schema".holds WHERE hold = 'key:' || key),
                       (SELECT hold FROM :"schema".held WHERE held.key = claimed.key AND ordered LIMIT 1)) END"""

# The due holds of my lanes, with their heads: at most three quarters of a claim, so that no queue, however long, keeps the others from
# moving. A hold that has failed shows its head alone: what is behind it is not looked at until the head has left. A destination that is
# away shows nothing. Lanes keep others away, so nothing here needs a lock of its own. Each hold is read from its floor on. As a row, and
# ordered by both columns, since an equality would let the planner walk the whole table by position and pick out the hold's rows. No order
# around it: the lateral part runs hold by hold, and the limit ends it after the first ones.
CLAIM_HELD: Final = f"""
SELECT {_COLUMNS},
       CASE WHEN expires_at <= statement_timestamp() THEN 'expired'
            WHEN octet_length(payload) > :"schema".max_payload() THEN 'oversized' END,
       hold, CASE WHEN position = head THEN attempts ELSE 0 END, attempts = 0
FROM (SELECT hold AS due, head, attempts, coalesce(low, -9223372036854775808) AS low FROM :"schema".holds
      WHERE due_at <= statement_timestamp() AND lane = ANY(%(lanes)s::smallint[])
        AND (destination IS NULL OR destination <> ALL(%(away)s::text[]))
      ORDER BY due_at LIMIT %(of_holds)s) AS holds
CROSS JOIN LATERAL (SELECT * FROM :"schema".held WHERE (hold, position) >= (due, low) AND hold <= due ORDER BY hold, position
                    LIMIT CASE WHEN attempts = 0 THEN %(of_holds)s ELSE 1 END) AS held
LIMIT %(of_holds)s"""

# Scheduled messages whose time has come, and keyless retries. Of my lanes only, since a scheduled message may have a key.
CLAIM_DEFERRED: Final = f"""
SELECT {_COLUMNS}, {_ASIDE}, attempts, false
FROM :"schema".deferred AS claimed
WHERE due_at <= statement_timestamp() AND lane = ANY(%(lanes)s::smallint[])
ORDER BY due_at, position LIMIT %(limit)s"""

# "priority > 0" is written as the partial index has it: as a parameter it would defeat the index.
CLAIM_PRIORITY: Final = f"""
SELECT {_COLUMNS}, {_ASIDE}, 0, false
FROM :"schema".messages AS claimed
WHERE priority > 0 AND lane = ANY(%(lanes)s::smallint[])
ORDER BY priority DESC, position LIMIT %(limit)s
FOR UPDATE OF claimed SKIP LOCKED"""

# What the floors need to know of a claim. Its snapshot is a little older than that of the FIFO's statement, which runs right after it, and
# so its xmin is on the safe side.
SEE_HORIZON: Final = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_current_xact_id()::text::bigint"

# The FIFO, from the floor on: without it a claim walks every dead index entry that a long transaction keeps alive.
# LIMIT stands outside FOR UPDATE here because this is no subquery: inside an IN (...), some plans lock and take more rows than the limit.
CLAIM_FIFO: Final = f"""
SELECT {_COLUMNS}, {_ASIDE}, 0, false
FROM :"schema".messages AS claimed
WHERE priority = 0 AND position > %(floor)s AND lane = ANY(%(lanes)s::smallint[])
ORDER BY position LIMIT %(limit)s
FOR UPDATE OF claimed SKIP LOCKED"""

# --- settling -------------------------------------------------------------------------------------------------------------

KEPT: Final = "position, id, created_at, deliver_at, expires_at, priority, lane, topic, key, content_type, headers, payload"

DELETE_MESSAGES: Final = 'DELETE FROM :"schema".messages WHERE position = ANY(%s::bigint[])'
DELETE_DEFERRED: Final = 'DELETE FROM :"schema".deferred WHERE position = ANY(%s::bigint[])'
DELETE_HELD: Final = 'DELETE FROM :"schema".held WHERE position = ANY(%s::bigint[])'

# A move is one statement: a row is never in two places, nor in none. A row is in one of the three tables, and deleting from the
# other two finds nothing, at the price of an index look-up; moves are rare.
_GONE: Final = f"""
WITH gone AS (
    DELETE FROM :"schema".messages WHERE position = ANY(%(position)s::bigint[]) RETURNING {KEPT}
), gone_deferred AS (
    DELETE FROM :"schema".deferred WHERE position = ANY(%(position)s::bigint[]) RETURNING {KEPT}
), gone_held AS (
    DELETE FROM :"schema".held WHERE position = ANY(%(position)s::bigint[]) RETURNING {KEPT}
), moved AS (
    SELECT * FROM gone UNION ALL SELECT * FROM gone_deferred UNION ALL SELECT * FROM gone_held
)"""

MOVE_TO_DEAD: Final = f"""{_GONE}
INSERT INTO :"schema".dead ({KEPT}, reason, attempts, error, ordered)
SELECT moved.*, why.reason, why.attempts, why.error, why.ordered
FROM moved JOIN unnest(%(position)s::bigint[], %(reason)s::text[], %(attempts)s::integer[], %(error)s::text[], %(ordered)s::boolean[])
     AS why (position, reason, attempts, error, ordered) USING (position)"""

# Holds are few and rows are many: each row names its hold by its place in the list.
MOVE_TO_HELD: Final = f"""{_GONE}
INSERT INTO :"schema".held ({KEPT}, hold, ordered)
SELECT moved.*, (%(holds)s::text[])[goes.place], goes.ordered
FROM moved JOIN unnest(%(position)s::bigint[], %(place)s::integer[], %(ordered)s::boolean[])
     AS goes (position, place, ordered) USING (position)"""

# All rows of a key that are held are in one hold: when the key gets another, they follow. Those that keep no order need not.
MOVE_KEYS_TO_HOLDS: Final = """
UPDATE :"schema".held SET hold = goes.after
FROM unnest(%(key)s::text[], %(before)s::text[], %(after)s::text[]) AS goes (key, before, after)
WHERE held.key = goes.key AND held.hold = goes.before AND held.ordered"""

# What was published stays for as long as its route keeps it.
MOVE_TO_ARCHIVE: Final = f"""{_GONE}
INSERT INTO :"schema".archive ({KEPT}, destination, drop_at)
SELECT moved.*, goes.destination, clock_timestamp() + goes.keep
FROM moved JOIN unnest(%(position)s::bigint[], %(destination)s::text[], %(keep)s::interval[])
     AS goes (position, destination, keep) USING (position)"""

# Scheduled by the application, or by the backoff policy: seconds from now where they are given, else the message's own time.
MOVE_TO_DEFERRED: Final = f"""{_GONE}
INSERT INTO :"schema".deferred ({KEPT}, due_at, attempts, error)
SELECT moved.*, coalesce(clock_timestamp() + why.seconds * interval '1 second', moved.deliver_at), why.attempts, why.error
FROM moved JOIN unnest(%(position)s::bigint[], %(seconds)s::double precision[], %(attempts)s::integer[], %(error)s::text[])
     AS why (position, seconds, attempts, error) USING (position)"""

# A head failed, or a destination is away: make the hold, or say that it is still so. Where nothing is known about the head, it stays.
HOLD: Final = """
INSERT INTO :"schema".holds (hold, head, lane, due_at, attempts, error, destination)
SELECT hold, head, lane, clock_timestamp() + seconds * interval '1 second', attempts, error, destination
FROM unnest(%(hold)s::text[], %(head)s::bigint[], %(lane)s::smallint[], %(seconds)s::double precision[],
            %(attempts)s::integer[], %(error)s::text[], %(destination)s::text[])
     AS failed (hold, head, lane, seconds, attempts, error, destination)
ON CONFLICT (hold) DO UPDATE SET head = excluded.head, due_at = excluded.due_at, attempts = excluded.attempts,
    error = coalesce(excluded.error, holds.error)"""

# The first row of a hold waits for a destination that is away: only the time moves.
POSTPONE_HOLDS: Final = """
UPDATE :"schema".holds SET due_at = clock_timestamp() + seconds * interval '1 second', error = coalesce(later.error, holds.error)
FROM unnest(%(hold)s::text[], %(seconds)s::double precision[], %(error)s::text[]) AS later (hold, seconds, error)
WHERE holds.hold = later.hold"""

# Something of a hold has left: those behind it are due at once, after the holds that are due already, and its floor rises to the first
# that is left. If it was not the failing head, but one that came in before it, the head keeps its attempts. A hold with nobody left in it
# is over, and one that has a floor has somebody. Two statements, after those that have deleted and moved.
ADVANCE_HOLDS: Final = """
UPDATE :"schema".holds SET due_at = clock_timestamp(), head = still.position, low = still.low,
    attempts = CASE WHEN still.position IS NULL THEN 0 ELSE attempts END, error = CASE WHEN still.position IS NOT NULL THEN error END
FROM (SELECT holds.hold, held.position, first.position AS low
      FROM :"schema".holds LEFT JOIN :"schema".held ON held.position = holds.head
      LEFT JOIN LATERAL (SELECT left_.position FROM :"schema".held AS left_
                         WHERE (left_.hold, left_.position) >= (holds.hold, coalesce(holds.low, -9223372036854775808))
                           AND left_.hold <= holds.hold ORDER BY left_.hold, left_.position LIMIT 1) AS first ON true
      WHERE holds.hold = ANY(%s)) AS still
WHERE holds.hold = still.hold"""
END_HOLDS: Final = """
DELETE FROM :"schema".holds WHERE hold = ANY(%s)
    AND CASE WHEN low IS NULL THEN NOT EXISTS (SELECT FROM :"schema".held WHERE held.hold = holds.hold) END"""

# Holds that seem due and have nothing in them, since somebody has deleted rows by hand. Not those that wait for an operator.
END_EMPTY_HOLDS: Final = """
DELETE FROM :"schema".holds WHERE lane = ANY(%s::smallint[]) AND due_at <= statement_timestamp()
    AND NOT EXISTS (SELECT FROM :"schema".held WHERE held.hold = holds.hold)"""

# --- sleeping and waking --------------------------------------------------------------------------------------------------

# One of several pumps minds the doorbell, for as long as it is connected; it takes the lock that the table's trigger tries.
MIND_DOORBELL: Final = "SELECT pg_try_advisory_lock(hashtextextended('outboxd.sleeper.' || :'schema', 0))"
TAKE_DOORBELL: Final = "SELECT pg_try_advisory_lock(hashtextextended('outboxd.doorbell.' || :'schema', 0))"
RELEASE_DOORBELL: Final = "SELECT pg_advisory_unlock(hashtextextended('outboxd.doorbell.' || :'schema', 0))"

# The one query of an idle second: is anything due, and if not, in how many seconds will something be? Each part reads one index entry,
# and of the holds those that exist: few. What waits for a destination that is away is not due, whatever its time.
PROBE: Final = """
SELECT EXISTS (SELECT FROM :"schema".messages WHERE position > %(floor)s)
       OR EXISTS (SELECT FROM :"schema".messages WHERE priority > 0)
       OR coalesce(due.at <= clock_timestamp(), false),
       extract(epoch FROM due.at - clock_timestamp())::double precision
FROM (SELECT least((SELECT min(due_at) FROM :"schema".holds WHERE destination IS NULL OR destination <> ALL(%(away)s::text[])),
                   (SELECT min(due_at) FROM :"schema".deferred)) AS at) AS due"""


def listen(schema: str) -> LiteralString:
    """Return the LISTEN for the channel that the table's trigger notifies: ``outboxd.`` and the schema's name."""
    return f'LISTEN "outboxd.{check_schema_name(schema)}"'
