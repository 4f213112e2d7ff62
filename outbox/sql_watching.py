"""Every statement that watches the outbox: figures, status, doctor. Like `outbox.sql`, each headed by why it has its shape."""

from __future__ import annotations

from typing import Final

# Exact counts, measured at intervals and never by the pump; the age is that of the oldest message that could have gone by now, which
# one that waits for an operator could not. It has waited since it was put, or since its time came, or since it was put back. Sums, since a
# destination may be called "key".
BACKLOG: Final = """
WITH waiting AS (
    SELECT coalesce(holds.destination, CASE WHEN due_at IS NULL THEN 'operator' ELSE 'key' END) AS behind,
           count(*) AS number,
           min(greatest(created_at, deliver_at, requeued_at)) FILTER (WHERE destination IS NOT NULL OR due_at IS NOT NULL) AS oldest
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

# The same columns for a backlog that takes too long to count: by the statistics, and by what indexes find at once.
ESTIMATED_BACKLOG: Final = """
SELECT pg_stat_get_live_tuples((:'schema' || '.messages')::regclass) AS messages,
       pg_stat_get_live_tuples((:'schema' || '.held')::regclass) AS held,
       pg_stat_get_live_tuples((:'schema' || '.deferred')::regclass) AS deferred,
       pg_stat_get_live_tuples((:'schema' || '.dead')::regclass) AS dead,
       coalesce(extract(epoch FROM clock_timestamp() - least(
           (SELECT created_at FROM :"schema".messages ORDER BY position LIMIT 1),
           (SELECT min(due_at) FROM :"schema".deferred WHERE due_at <= clock_timestamp()))), 0)::double precision AS oldest_seconds,
       coalesce((SELECT figures -> 'held_by' FROM :"schema".figures), '{}') AS held_by"""

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

# Exact, and so its cost grows with the backlog; the oldest is that of BACKLOG. The archive may be far larger than all else: its size is
# asked for, not its rows.
STATUS: Final = """
SELECT clock_timestamp(), waiting.total, deferred.total, deferred.due, deferred.next_seconds,
       coalesce(extract(epoch FROM clock_timestamp() - least(
           waiting.oldest, deferred.oldest_due,
           (SELECT min(greatest(created_at, deliver_at, requeued_at)) FROM :"schema".held JOIN :"schema".holds USING (hold)
            WHERE destination IS NOT NULL OR due_at IS NOT NULL))), 0)::double precision,
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
LEFT JOIN (SELECT hold, count(*) AS messages, min(greatest(created_at, deliver_at, requeued_at)) AS oldest
           FROM :"schema".held GROUP BY hold) AS queues USING (hold)
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

# Keys after a dead letter on a route with after_dead = "hold", the longest queues first, and how many there are in all. With the id of the
# one that the key waits for: others of the key have nothing to do with that.
FIND_KEYS_FOR_OPERATOR: Final = """
SELECT hold, dead.id, holds.error, (SELECT count(*) FROM :"schema".held WHERE held.hold = holds.hold) AS messages, count(*) OVER ()
FROM :"schema".holds JOIN :"schema".dead ON dead.position = holds.head
WHERE due_at IS NULL AND destination IS NULL
ORDER BY messages DESC, hold LIMIT %s"""

# Those whose dead letter somebody has deleted by hand: no command finds it any more.
FIND_STRANDED_KEYS: Final = """
SELECT hold, (SELECT count(*) FROM :"schema".held WHERE held.hold = holds.hold) AS messages
FROM :"schema".holds
WHERE due_at IS NULL AND destination IS NULL AND NOT EXISTS (SELECT FROM :"schema".dead WHERE dead.position = holds.head)
ORDER BY messages DESC, hold"""

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
MEND_STRANDED_KEYS: Final = """
BEGIN; SELECT count(*) FROM (SELECT FROM :"schema".lanes ORDER BY lane FOR UPDATE) AS owned;
UPDATE :"schema".holds SET due_at = clock_timestamp(), head = NULL, attempts = 0, error = NULL, low = NULL
WHERE due_at IS NULL AND destination IS NULL AND NOT EXISTS (SELECT FROM :"schema".dead WHERE dead.position = holds.head);
DELETE FROM :"schema".holds WHERE destination IS NULL AND due_at IS NOT NULL
    AND NOT EXISTS (SELECT FROM :"schema".held WHERE held.hold = holds.hold); COMMIT;"""
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

# The storage options of the schema's tables, and of what these keep out of line: as they were written, and those that matter as numbers,
# since there are many ways to write one, and Postgres knows them.
SEE_TABLE_OPTIONS: Final = """
SELECT tables.relname, option.name, option.value,
       CASE WHEN option.name ~ '(autovacuum_enabled|vacuum_truncate)$' THEN option.value::boolean::integer::double precision
            WHEN option.name ~ 'autovacuum_vacuum_(scale_factor|threshold)$' THEN option.value::double precision END
FROM pg_class AS tables
LEFT JOIN pg_class AS toast ON toast.oid = tables.reltoastrelid
CROSS JOIN LATERAL (SELECT * FROM pg_options_to_table(tables.reloptions)
                    UNION ALL SELECT 'toast.' || option_name, option_value
                    FROM pg_options_to_table(toast.reloptions)) AS option (name, value)
WHERE tables.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = :'schema') AND tables.relkind = 'r'
ORDER BY tables.relname, option.name"""

# What is older than consumers' processed ids are kept, or will be when it is due.
COUNT_TOO_OLD: Final = """
SELECT 'deferred', topic, count(*) FROM :"schema".deferred
WHERE created_at < greatest(due_at, statement_timestamp()) - %(keep)s::interval GROUP BY topic
UNION ALL
SELECT 'dead', topic, count(*) FROM :"schema".dead WHERE created_at < statement_timestamp() - %(keep)s::interval GROUP BY topic
ORDER BY 1, 3 DESC, 2"""

SEE_CLOCK: Final = "SELECT extract(epoch FROM clock_timestamp())::double precision"
SEE_PROCESS: Final = "SELECT pg_backend_pid()"

# Does a LISTEN here hear a NOTIFY sent there? On a channel of our own, and let go of, since a pooler would hand it on to somebody else.
LISTEN_FOR_DOCTOR: Final = 'LISTEN "outboxd.doctor"'
UNLISTEN_FOR_DOCTOR: Final = 'UNLISTEN "outboxd.doctor"'
NOTIFY_DOCTOR: Final = "SELECT pg_notify('outboxd.doctor', %s)"
