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

# --- claiming -------------------------------------------------------------------------------------------------------------

# Whatever the database's default is: in a stricter isolation the statements of a claim would share one snapshot, from before its lanes.
BEGIN_CLAIM: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"

# The session of a claim, set for its transaction alone, so that a pooler in between can do no harm.
# synchronous_commit: a settle that is lost in a crash of the server is only a duplicate. The timeouts end a claim whose pump hangs
# or was cut off. Sequential and bitmap scans are never right for a FIFO that is read by position, whatever stale statistics say.
CONFIGURE_CLAIM: Final = """
SELECT set_config('synchronous_commit', 'off', true), set_config('statement_timeout', %s, true),
       set_config('lock_timeout', %s, true), set_config('idle_in_transaction_session_timeout', %s, true),
       set_config('search_path', 'pg_catalog', true), set_config('jit', 'off', true),
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
# lane, why the row is not to be sent now, which is NULL for nearly all, and the hold of its key. While there is no hold at all, which is
# asked once a statement, nothing is looked up for a row.
_COLUMNS: Final = "id, topic, payload, key, content_type, headers, created_at, position, lane"
_ASIDE: Final = """
    CASE WHEN expires_at <= statement_timestamp() THEN 'expired'
         WHEN deliver_at > statement_timestamp() THEN 'early'
         WHEN octet_length(payload) > :"schema".max_payload() THEN 'oversized' END,
    CASE WHEN (SELECT EXISTS (SELECT FROM :"schema".holds))
         THEN coalesce((SELECT hold FROM :"schema".holds WHERE hold = 'key:' || key),
                       (SELECT hold FROM :"schema".held WHERE held.key = claimed.key LIMIT 1)) END"""

# The due holds of my lanes, with their heads: at most three quarters of a claim, so that no queue, however long, keeps the others from
# moving. A hold that has failed shows its head alone: what is behind it is not looked at until the head has left. A destination that is
# away shows nothing. Lanes keep others away, so nothing here needs a lock of its own. BETWEEN, and the order by both columns, since an
# equality would let the planner walk the whole table by position and pick out the hold's rows. No order around it: the lateral part runs
# hold by hold, and the limit ends it after the first ones.
CLAIM_HELD: Final = f"""
SELECT {_COLUMNS},
       CASE WHEN expires_at <= statement_timestamp() THEN 'expired'
            WHEN octet_length(payload) > :"schema".max_payload() THEN 'oversized' END,
       hold, CASE WHEN position = head THEN attempts ELSE 0 END, attempts = 0
FROM (SELECT hold AS due, head, attempts FROM :"schema".holds
      WHERE due_at <= statement_timestamp() AND lane = ANY(%(lanes)s::smallint[])
        AND (destination IS NULL OR destination <> ALL(%(away)s::text[]))
      ORDER BY due_at LIMIT %(of_holds)s) AS holds
CROSS JOIN LATERAL (SELECT * FROM :"schema".held WHERE hold BETWEEN due AND due ORDER BY hold, position
                    LIMIT CASE WHEN attempts = 0 THEN %(of_holds)s ELSE 1 END) AS held
LIMIT %(of_holds)s"""

# Scheduled messages whose time has come, and keyless retries. Of my lanes only, since a scheduled message may have a key.
CLAIM_DEFERRED: Final = f"""
SELECT {_COLUMNS}, {_ASIDE}, attempts
FROM :"schema".deferred AS claimed
WHERE due_at <= statement_timestamp() AND lane = ANY(%(lanes)s::smallint[])
ORDER BY due_at, position LIMIT %(limit)s"""

# "priority > 0" is written as the partial index has it: as a parameter it would defeat the index.
CLAIM_PRIORITY: Final = f"""
SELECT {_COLUMNS}, {_ASIDE}
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
SELECT {_COLUMNS}, {_ASIDE}
FROM :"schema".messages AS claimed
WHERE priority = 0 AND position > %(floor)s AND lane = ANY(%(lanes)s::smallint[])
ORDER BY position LIMIT %(limit)s
FOR UPDATE OF claimed SKIP LOCKED"""

# --- settling -------------------------------------------------------------------------------------------------------------

_KEPT: Final = "position, id, created_at, deliver_at, expires_at, priority, lane, topic, key, content_type, headers, payload"

DELETE_MESSAGES: Final = 'DELETE FROM :"schema".messages WHERE position = ANY(%s::bigint[])'
DELETE_DEFERRED: Final = 'DELETE FROM :"schema".deferred WHERE position = ANY(%s::bigint[])'
DELETE_HELD: Final = 'DELETE FROM :"schema".held WHERE position = ANY(%s::bigint[])'

# A move is one statement: a row is never in two places, nor in none. A row is in one of the three tables, and deleting from the
# other two finds nothing, at the price of an index look-up; moves are rare.
_GONE: Final = f"""
WITH gone AS (
    DELETE FROM :"schema".messages WHERE position = ANY(%(position)s::bigint[]) RETURNING {_KEPT}
), gone_deferred AS (
    DELETE FROM :"schema".deferred WHERE position = ANY(%(position)s::bigint[]) RETURNING {_KEPT}
), gone_held AS (
    DELETE FROM :"schema".held WHERE position = ANY(%(position)s::bigint[]) RETURNING {_KEPT}
), moved AS (
    SELECT * FROM gone UNION ALL SELECT * FROM gone_deferred UNION ALL SELECT * FROM gone_held
)"""

MOVE_TO_DEAD: Final = f"""{_GONE}
INSERT INTO :"schema".dead ({_KEPT}, reason, attempts, error)
SELECT moved.*, why.reason, why.attempts, why.error
FROM moved JOIN unnest(%(position)s::bigint[], %(reason)s::text[], %(attempts)s::integer[], %(error)s::text[])
     AS why (position, reason, attempts, error) USING (position)"""

# Holds are few and rows are many: each row names its hold by its place in the list.
MOVE_TO_HELD: Final = f"""{_GONE}
INSERT INTO :"schema".held ({_KEPT}, hold)
SELECT moved.*, (%(holds)s::text[])[goes.place]
FROM moved JOIN unnest(%(position)s::bigint[], %(place)s::integer[]) AS goes (position, place) USING (position)"""

# All rows of a key that are held are in one hold: when the key gets another, they follow.
MOVE_KEYS_TO_HOLDS: Final = """
UPDATE :"schema".held SET hold = goes.after
FROM unnest(%(key)s::text[], %(before)s::text[], %(after)s::text[]) AS goes (key, before, after)
WHERE held.key = goes.key AND held.hold = goes.before"""

# What was published stays for as long as its route keeps it.
MOVE_TO_ARCHIVE: Final = f"""{_GONE}
INSERT INTO :"schema".archive ({_KEPT}, destination, drop_at)
SELECT moved.*, goes.destination, clock_timestamp() + goes.keep
FROM moved JOIN unnest(%(position)s::bigint[], %(destination)s::text[], %(keep)s::interval[])
     AS goes (position, destination, keep) USING (position)"""

# Scheduled by the application, or by the backoff policy: seconds from now where they are given, else the message's own time.
MOVE_TO_DEFERRED: Final = f"""{_GONE}
INSERT INTO :"schema".deferred ({_KEPT}, due_at, attempts, error)
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

# Something of a hold has left: those behind it are due at once, after the holds that are due already. If it was not the failing head,
# but one that came in before it, the head keeps its attempts. A hold with nobody left in it is over. Two statements, after those that
# have deleted and moved.
ADVANCE_HOLDS: Final = """
UPDATE :"schema".holds SET due_at = clock_timestamp(), head = still.position,
    attempts = CASE WHEN still.position IS NULL THEN 0 ELSE attempts END, error = CASE WHEN still.position IS NOT NULL THEN error END
FROM (SELECT holds.hold, held.position FROM :"schema".holds LEFT JOIN :"schema".held ON held.position = holds.head
      WHERE holds.hold = ANY(%s)) AS still
WHERE holds.hold = still.hold"""
END_HOLDS: Final = """
DELETE FROM :"schema".holds WHERE hold = ANY(%s) AND NOT EXISTS (SELECT FROM :"schema".held WHERE held.hold = holds.hold)"""

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

# --- watching -------------------------------------------------------------------------------------------------------------

# Exact counts, measured at intervals and never by the pump; the age is that of the oldest message that could have gone by now, which
# one that waits for an operator could not. Sums, since a destination may be called "key".
BACKLOG: Final = """
WITH waiting AS (
    SELECT coalesce(holds.destination, CASE WHEN due_at IS NULL THEN 'operator' ELSE 'key' END) AS behind,
           count(*) AS number, min(created_at) FILTER (WHERE destination IS NOT NULL OR due_at IS NOT NULL) AS oldest
    FROM :"schema".held JOIN :"schema".holds USING (hold) GROUP BY 1
)
SELECT (SELECT count(*) FROM :"schema".messages) AS messages,
       (SELECT count(*) FROM :"schema".held) AS held,
       (SELECT count(*) FROM :"schema".deferred) AS deferred,
       (SELECT count(*) FROM :"schema".dead) AS dead,
       coalesce(extract(epoch FROM clock_timestamp() - least(
           (SELECT created_at FROM :"schema".messages ORDER BY position LIMIT 1),
           (SELECT min(oldest) FROM waiting),
           (SELECT min(due_at) FROM :"schema".deferred WHERE due_at <= clock_timestamp()))), 0)::double precision AS oldest_seconds,
       (SELECT coalesce(jsonb_object_agg(behind, number), '{}') FROM waiting) AS held_by"""

# One daemon at a time measures, for the length of its transaction and not of its session: nothing is left behind by one that dies, and
# a transaction pooler does no harm. One that hangs in it is ended by the server.
CONFIGURE_JANITOR: Final = """
SELECT set_config('statement_timeout', '10s', true), set_config('lock_timeout', '1s', true),
       set_config('idle_in_transaction_session_timeout', '10s', true)"""
TRY_MEASURE: Final = "SELECT pg_try_advisory_xact_lock(hashtextextended('outboxd.janitor.' || :'schema', 0))"

# Asked after the lock is held, in a statement of its own, so that what the last one stored is seen. A measurement from the future was
# made before the clock was set back.
FIGURES_ARE_FRESH: Final = """
SELECT EXISTS (SELECT FROM :"schema".figures
               WHERE measured_at BETWEEN clock_timestamp() - %s * interval '1 second' AND clock_timestamp())"""
STORE_FIGURES: Final = """
INSERT INTO :"schema".figures (measured_at, figures) VALUES (clock_timestamp(), %s::jsonb)
ON CONFLICT (one) DO UPDATE SET measured_at = excluded.measured_at, figures = excluded.figures"""
READ_FIGURES: Final = """
SELECT figures, extract(epoch FROM clock_timestamp() - measured_at)::double precision FROM :"schema".figures"""

# --- watching: status -----------------------------------------------------------------------------------------------------

# One snapshot for a whole status, so that a message which moves meanwhile is counted once; and nothing in it needs more than SELECT.
BEGIN_STATUS: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"

# Exact, and so its cost grows with the backlog. The archive may be far larger than all else: its size is asked for, not its rows.
STATUS: Final = """
SELECT clock_timestamp(), waiting.total, deferred.total, deferred.due, deferred.next_seconds,
       coalesce(extract(epoch FROM clock_timestamp() - least(
           waiting.oldest, deferred.oldest_due, (SELECT min(created_at) FROM :"schema".held))), 0)::double precision,
       archive.bytes, archive.tables
FROM (SELECT count(*) AS total, (SELECT created_at FROM :"schema".messages ORDER BY position LIMIT 1) AS oldest
      FROM :"schema".messages) AS waiting,
     (SELECT count(*) AS total, count(*) FILTER (WHERE due_at <= statement_timestamp()) AS due,
             min(due_at) FILTER (WHERE due_at <= statement_timestamp()) AS oldest_due,
             extract(epoch FROM min(due_at) FILTER (WHERE due_at > statement_timestamp()) - statement_timestamp())::double precision
             AS next_seconds
      FROM :"schema".deferred) AS deferred,
     (SELECT coalesce(sum(pg_total_relation_size(relid)), 0)::bigint AS bytes, count(*) AS tables
      FROM pg_partition_tree(:'schema' || '.archive') WHERE isleaf) AS archive"""

# A destination's queue is as many holds as it has lanes; for people it is one. The error of a key is its own, and there are many keys.
STATUS_OF_HOLDS: Final = """
SELECT CASE WHEN destination IS NOT NULL THEN 'destination' WHEN due_at IS NULL THEN 'operator' ELSE 'key' END AS kind,
       destination, count(*), coalesce(sum(queues.messages), 0)::bigint,
       coalesce(extract(epoch FROM clock_timestamp() - min(queues.oldest)), 0)::double precision,
       CASE WHEN destination IS NOT NULL THEN max(error) END
FROM :"schema".holds
LEFT JOIN (SELECT hold, count(*) AS messages, min(created_at) AS oldest FROM :"schema".held GROUP BY hold) AS queues USING (hold)
GROUP BY kind, destination ORDER BY kind, destination"""

STATUS_OF_DEAD: Final = """
SELECT reason, count(*), extract(epoch FROM clock_timestamp() - max(died_at))::double precision
FROM :"schema".dead GROUP BY reason ORDER BY count(*) DESC, reason"""

# A row's lock is the xid of its locker, in the row itself, where it stays when the locker has gone; each open transaction holds the lock
# of its xid. Together they say who holds which lanes, to any role. The lock on the table is asked for as well: the xmax of a row that
# several have locked at once, which nobody of ours does, is a number of another kind. pg_locks is read once, since it is not
# a snapshot; pid is NULL for a prepared transaction, and what the role may not know of another's session is NULL too.
LANE_OWNERS: Final = """
WITH locks AS MATERIALIZED (
    SELECT virtualtransaction, pid, locktype, relation, transactionid, mode FROM pg_locks WHERE granted
)
SELECT owner.pid, coalesce(activity.application_name, prepared.gid), host(activity.client_addr), activity.state,
       extract(epoch FROM statement_timestamp() - coalesce(activity.xact_start, prepared.prepared))::double precision, count(*)
FROM :"schema".lanes
JOIN locks AS owner ON owner.locktype = 'transactionid' AND owner.transactionid = lanes.xmax AND owner.mode = 'ExclusiveLock'
LEFT JOIN pg_stat_activity AS activity ON activity.pid = owner.pid
LEFT JOIN pg_prepared_xacts AS prepared ON prepared.transaction = lanes.xmax AND owner.pid IS NULL
WHERE EXISTS (SELECT FROM locks WHERE virtualtransaction = owner.virtualtransaction AND locktype = 'relation'
              AND relation = lanes.tableoid AND mode = 'RowShareLock')
GROUP BY 1, 2, 3, 4, 5 ORDER BY 1"""
COUNT_LANES: Final = 'SELECT count(*) FROM :"schema".lanes'

# --- watching: doctor -----------------------------------------------------------------------------------------------------

# The queues of `held` that no row of `holds` leads to.
FIND_LOST_QUEUES: Final = """
SELECT hold, count(*) FROM :"schema".held
WHERE NOT EXISTS (SELECT FROM :"schema".holds WHERE holds.hold = held.hold)
GROUP BY hold ORDER BY count(*) DESC, hold"""

# All lanes, and the rows of those that no claim can own. A hold counts with the rows of its queue.
FIND_LOST_LANES: Final = """
SELECT lane, sum(rows)::bigint
FROM (SELECT lane::smallint, 0 AS rows FROM generate_series(0, 63) AS lane
      UNION ALL SELECT lane, count(*) FROM :"schema".messages GROUP BY lane
      UNION ALL SELECT lane, count(*) FROM :"schema".deferred GROUP BY lane
      UNION ALL SELECT lane, count(*) FROM :"schema".held GROUP BY lane
      UNION ALL SELECT lane, 0 FROM :"schema".holds GROUP BY lane) AS used
WHERE NOT EXISTS (SELECT FROM :"schema".lanes WHERE lanes.lane = used.lane)
GROUP BY lane ORDER BY lane"""

# No floor is below zero, and so no claim looks there.
FIND_BELOW_FLOORS: Final = 'SELECT count(*) FROM :"schema".messages WHERE position <= 0 AND priority = 0'

# Keys after a dead letter on a route with after_dead = "hold", the longest queues first, and how many there are in all.
FIND_KEYS_FOR_OPERATOR: Final = """
SELECT hold, error, (SELECT count(*) FROM :"schema".held WHERE held.hold = holds.hold) AS messages, count(*) OVER ()
FROM :"schema".holds WHERE due_at IS NULL AND destination IS NULL
ORDER BY messages DESC, hold LIMIT %s"""

COUNT_BY_TOPIC: Final = """
SELECT topic, count(*)
FROM (SELECT topic FROM :"schema".messages UNION ALL SELECT topic FROM :"schema".deferred UNION ALL SELECT topic FROM :"schema".held) AS due
GROUP BY topic ORDER BY count(*) DESC, topic"""

# Printed as advice, never run by us. Whoever touches a queue owns its lane first.
MEND_LOST_QUEUES: Final = """
BEGIN; SELECT count(*) FROM (SELECT FROM :"schema".lanes ORDER BY lane FOR UPDATE) AS owned;
INSERT INTO :"schema".holds (hold, lane, due_at, attempts, destination)
SELECT DISTINCT ON (hold) hold, lane, clock_timestamp(), 0, substring(hold FROM '^sink:(.*)/[0-9]+$') FROM :"schema".held
ON CONFLICT DO NOTHING; COMMIT;"""
MEND_LANES: Final = 'INSERT INTO :"schema".lanes SELECT generate_series(0, 63) ON CONFLICT DO NOTHING;'
MEND_LANES_OF_ROWS: Final = """
BEGIN; SELECT count(*) FROM (SELECT FROM :"schema".lanes ORDER BY lane FOR UPDATE) AS owned;
UPDATE :"schema".deferred SET lane = coalesce(hashtextextended(key, 0), position) & 63 WHERE lane NOT BETWEEN 0 AND 63;
UPDATE :"schema".held SET lane = coalesce(hashtextextended(key, 0), position) & 63 WHERE lane NOT BETWEEN 0 AND 63;
UPDATE :"schema".holds SET lane = hashtextextended(substr(hold, 5), 0) & 63
WHERE lane NOT BETWEEN 0 AND 63 AND hold LIKE 'key:%'; COMMIT;"""
MEND_POSITIONS: Final = """
WITH gone AS (DELETE FROM :"schema".messages WHERE position <= 0 RETURNING *)
INSERT INTO :"schema".messages (id, created_at, deliver_at, expires_at, priority, topic, key, content_type, headers, payload)
SELECT id, created_at, deliver_at, expires_at, priority, topic, key, content_type, headers, payload FROM gone ORDER BY position;"""

# Whose snapshot or xid is old: sessions, prepared transactions and slots, by how far they hold the horizon back. A snapshot counts in its
# own database only, an xid in all of them: it is in everybody's snapshots. VACUUM keeps nothing from being vacuumed. A walsender is
# that of a standby with hot_standby_feedback; it has no transaction of its own, and so no age in seconds, and neither has a slot.
FIND_PINS: Final = """
SELECT CASE backend_type WHEN 'walsender' THEN 'standby' ELSE 'session' END, pid, application_name, state,
       extract(epoch FROM clock_timestamp() - xact_start)::double precision,
       greatest(age(backend_xid), age(backend_xmin)) AS transactions, backend_xid IS NOT NULL
FROM pg_stat_activity
WHERE (backend_xid IS NOT NULL OR (backend_xmin IS NOT NULL AND coalesce(datname, current_database()) = current_database()))
  AND pid <> pg_backend_pid() AND leader_pid IS NULL AND pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum)
UNION ALL
SELECT 'prepared', NULL, gid, database, extract(epoch FROM clock_timestamp() - prepared)::double precision, age(transaction), true
FROM pg_prepared_xacts
UNION ALL
SELECT 'slot', active_pid, slot_name, CASE WHEN active THEN 'active' ELSE 'inactive' END, NULL, age(xmin), false
FROM pg_replication_slots WHERE xmin IS NOT NULL
ORDER BY transactions DESC"""

# Of a session of another role, a role without pg_read_all_stats is not told since when it is open.
COUNT_HIDDEN_SESSIONS: Final = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type IS NULL"""

SEE_AUTOVACUUM: Final = "SELECT current_setting('autovacuum')::boolean, current_setting('track_counts')::boolean"

# The storage options of the schema's tables, and of what these keep out of line.
SEE_TABLE_OPTIONS: Final = """
SELECT tables.relname, option.name, option.value
FROM pg_class AS tables
LEFT JOIN pg_class AS toast ON toast.oid = tables.reltoastrelid
CROSS JOIN LATERAL (SELECT * FROM pg_options_to_table(tables.reloptions)
                    UNION ALL SELECT 'toast.' || option_name, option_value
                    FROM pg_options_to_table(toast.reloptions)) AS option (name, value)
WHERE tables.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = :'schema') AND tables.relkind = 'r'
ORDER BY tables.relname, option.name"""

SEE_CLOCK: Final = "SELECT extract(epoch FROM clock_timestamp())::double precision"
SEE_PROCESS: Final = "SELECT pg_backend_pid()"

# Does a LISTEN here hear a NOTIFY sent there? On a channel of our own, and let go of, since a pooler would hand it on to somebody else.
LISTEN_FOR_DOCTOR: Final = 'LISTEN "outboxd.doctor"'
UNLISTEN_FOR_DOCTOR: Final = 'UNLISTEN "outboxd.doctor"'
NOTIFY_DOCTOR: Final = "SELECT pg_notify('outboxd.doctor', %s)"


def listen(schema: str) -> LiteralString:
    """Return the LISTEN for the channel that the table's trigger notifies: ``outboxd.`` and the schema's name."""
    return f'LISTEN "outboxd.{check_schema_name(schema)}"'


# --- operating ------------------------------------------------------------------------------------------------------------

# What an operator selects by; what is not given is NULL, and the planner, which sees the values, folds it away. The topic is matched with
# the router's own regular expression (`outbox.selection`).
_SELECTED: Final = """
    (%(ids)s::uuid[] IS NULL OR id = ANY(%(ids)s::uuid[]))
    AND (%(topics)s::text IS NULL OR topic ~ %(topics)s::text)
    AND (%(key)s::text IS NULL OR key = %(key)s::text)"""
_SELECTED_DEAD: Final = f"""{_SELECTED}
    AND (%(reason)s::text IS NULL OR reason = %(reason)s::text)
    AND (%(since)s::timestamptz IS NULL OR died_at >= %(since)s::timestamptz)
    AND (%(until)s::timestamptz IS NULL OR died_at < %(until)s::timestamptz)"""

# The fields of `outbox.deadletters.DeadLetter`. The payload's size, which is known without reading it.
_LETTER: Final = """
    position, id, topic, key, lane, content_type, headers, reason, error, attempts, created_at, died_at, deliver_at, expires_at,
    coalesce(expires_at <= statement_timestamp(), false) AS expired, octet_length(payload) AS size"""

# The latest first: that is what a list that is cut off should begin with. A limit of NULL is none.
LIST_DEAD: Final = f"""
SELECT {_LETTER}, NULL::bytea AS payload FROM :"schema".dead
WHERE {_SELECTED_DEAD}
ORDER BY died_at DESC, position DESC LIMIT %(limit)s::bigint"""

# An id that the application chose may be there twice.
SHOW_DEAD: Final = f"""
SELECT {_LETTER}, payload FROM :"schema".dead WHERE id = %s ORDER BY position"""

# Whoever waits for a lane must not wait for ever, and the caller's own settings must not notice.
SEE_SESSION: Final = "SELECT current_setting('transaction_isolation'), current_setting('lock_timeout')"
SET_LOCK_TIMEOUT: Final = "SELECT set_config('lock_timeout', %s, true)"

# As a claim does, but of the lanes that are needed, and waiting for them: one after the other in the same order for everybody, so that
# two operators do not wait in a circle. A statement of its own, as OWN_LANES is: what follows sees what the last owner committed.
TAKE_LANES: Final = """
SELECT lane FROM :"schema".lanes WHERE lane = ANY(%s::smallint[]) ORDER BY lane FOR UPDATE"""

# Back into its key's queue, at its own position, and so ahead of all that came later: the queue in which the key's rows are already, or
# the hold of the key. Never back into the FIFO, where a position below a floor would not be seen. One statement, as every move.
REQUEUE_KEYED: Final = f"""
WITH back AS (
    DELETE FROM :"schema".dead WHERE position = ANY(%(positions)s::bigint[]) AND key IS NOT NULL RETURNING {_KEPT}
)
INSERT INTO :"schema".held ({_KEPT}, hold)
SELECT position, id, created_at, deliver_at, CASE WHEN NOT %(expired)s OR expires_at > statement_timestamp() THEN expires_at END,
       priority, lane, topic, key, content_type, headers || %(headers)s::jsonb, payload,
       coalesce((SELECT held.hold FROM :"schema".held WHERE held.key = back.key LIMIT 1), 'key:' || key)
FROM back"""

# What is given up without having been sent, being expired or over a limit, may have left earlier rows of its key in the FIFO. They come
# along, or it would go out before them. The bound keeps this to the part of the FIFO that is older than the letters: nearly always nothing.
# Those of a higher priority go first from where they are, and those of a lower one would have gone later.
BRING_EARLIER: Final = f"""
WITH earlier AS (
    DELETE FROM :"schema".messages
    USING (SELECT held.key, held.priority, held.hold, max(held.position) AS last FROM :"schema".held
           WHERE held.position = ANY(%(positions)s::bigint[]) GROUP BY held.key, held.priority, held.hold) AS back
    WHERE messages.position < %(last)s AND messages.position < back.last
          AND messages.key = back.key AND messages.priority = back.priority
    RETURNING {", ".join(f"messages.{column}" for column in _KEPT.split(", "))}, back.hold
)
INSERT INTO :"schema".held ({_KEPT}, hold) SELECT * FROM earlier"""

# Nothing waits behind a message without a key: it is due now. One time for all, so that they are claimed in the order of their positions.
REQUEUE_KEYLESS: Final = f"""
WITH back AS (
    DELETE FROM :"schema".dead WHERE position = ANY(%(positions)s::bigint[]) AND key IS NULL RETURNING {_KEPT}
)
INSERT INTO :"schema".deferred ({_KEPT}, due_at, attempts)
SELECT position, id, created_at, deliver_at, CASE WHEN NOT %(expired)s OR expires_at > statement_timestamp() THEN expires_at END,
       priority, lane, topic, key, content_type, headers || %(headers)s::jsonb, payload, statement_timestamp(), 0
FROM back"""

# Every row of held has its hold. One that is there already keeps what it says: the next two statements see to that.
MAKE_KEY_HOLDS: Final = """
INSERT INTO :"schema".holds (hold, lane, due_at, attempts)
SELECT DISTINCT hold, lane, statement_timestamp(), 0 FROM :"schema".held
WHERE position = ANY(%s::bigint[]) AND hold = 'key:' || key
ON CONFLICT (hold) DO NOTHING"""

# What was put back ahead of a failing head need not wait for the head's next try.
HASTEN_HOLDS: Final = """
UPDATE :"schema".holds SET due_at = statement_timestamp()
FROM (SELECT hold AS queue, min(position) AS first FROM :"schema".held WHERE position = ANY(%s::bigint[]) GROUP BY hold) AS back
WHERE hold = queue AND destination IS NULL AND due_at > statement_timestamp() AND first < head"""

# A key that waits for an operator goes on when the dead letter that it waits for, the hold's head, is dead no more.
RELEASE_HOLDS: Final = """
UPDATE :"schema".holds SET due_at = statement_timestamp(), head = NULL, attempts = 0, error = NULL
WHERE hold = ANY(%s::text[]) AND due_at IS NULL AND NOT EXISTS (SELECT FROM :"schema".dead WHERE dead.position = holds.head)
RETURNING hold"""
SEE_WAITING: Final = """
SELECT hold, head FROM :"schema".holds WHERE hold = ANY(%s::text[]) AND due_at IS NULL ORDER BY hold"""

DROP_DEAD: Final = 'DELETE FROM :"schema".dead WHERE position = ANY(%s::bigint[])'

# Always rung, and not only while a pump sleeps: an operator's hand is rare, and needs no lock to find out.
RING: Final = "SELECT pg_notify('outboxd.' || :'schema', '')"

# The clock by which ages are counted back.
SEE_NOW: Final = "SELECT clock_timestamp()"

# Of the archive, up to a time: a replay ends, however much is published while it runs.
_SELECTED_ARCHIVED: Final = f"""{_SELECTED}
    AND (%(since)s::timestamptz IS NULL OR published_at >= %(since)s::timestamptz)
    AND published_at < least(%(until)s::timestamptz, %(began)s::timestamptz)"""
COUNT_ARCHIVED: Final = f"""
SELECT topic, count(*) FROM :"schema".archive WHERE {_SELECTED_ARCHIVED} GROUP BY topic ORDER BY count(*) DESC, topic"""

# A page, by the place of the last row before it: no transaction stays open between pages, and none is read twice. A position should be
# there once; if it is not, the time tells its rows apart.
READ_ARCHIVED: Final = f"""
SELECT id, topic, payload, key, content_type, headers, created_at, position, published_at
FROM :"schema".archive
WHERE (position, published_at) > (%(position)s, %(published_at)s) AND {_SELECTED_ARCHIVED}
ORDER BY position, published_at LIMIT %(limit)s"""

# Written before the first message goes out, and brought up to date with every page: whatever ends the replay, the row says how far it came.
BEGIN_REPLAY: Final = """
INSERT INTO :"schema".replays (replay, matched, sink, who, selection)
VALUES (%(replay)s, %(matched)s, %(sink)s, %(who)s || ' as ' || session_user, %(selection)s::jsonb)"""
NOTE_REPLAY: Final = """
UPDATE :"schema".replays
SET published = %(published)s, rejected = %(rejected)s, ended_at = CASE WHEN %(ended)s THEN clock_timestamp() END
WHERE replay = %(replay)s"""

# The consumers' dead letters lie in the tables of the other track, whose schema these are bound to. Its rows have no position.
LIST_CONSUMER_DEAD: Final = f"""
SELECT id, topic, key, error, attempts, created_at, died_at, size
FROM (SELECT *, message_id AS id, octet_length(payload) AS size FROM :"schema".consumer_dead WHERE consumer = %(consumer)s) AS dead
WHERE {_SELECTED}
    AND (%(since)s::timestamptz IS NULL OR died_at >= %(since)s::timestamptz)
    AND (%(until)s::timestamptz IS NULL OR died_at < %(until)s::timestamptz)
ORDER BY died_at DESC, id DESC LIMIT %(limit)s::bigint"""

# Deleted, and so locked, before the message is sent: whoever has the same in mind waits, and finds nothing. And a consumer to whom the copy
# comes before this has committed waits for that at its processed id, and finds it gone.
TAKE_CONSUMER_DEAD: Final = """
DELETE FROM :"schema".consumer_dead WHERE message_id = %s AND consumer = %s
RETURNING message_id, topic, payload, key, content_type, headers, created_at"""
FORGET_PROCESSED: Final = 'DELETE FROM :"schema".processed WHERE message_id = %s AND consumer = %s'
