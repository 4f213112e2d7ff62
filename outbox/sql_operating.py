"""Every statement of an operator on the outbox: dead letters, replay. Like `outbox.sql`, each headed by why it has its shape."""

from __future__ import annotations

from typing import Final

from outbox.sql import KEPT

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

# What is acted upon, and no more of it than that takes: there may be very many. Among those found before, whose lanes are owned by now.
FIND_DEAD: Final = f"""
SELECT position, id, key, lane, topic, coalesce(expires_at <= statement_timestamp(), false) AS expired FROM :"schema".dead
WHERE (%(positions)s::bigint[] IS NULL OR position = ANY(%(positions)s::bigint[])) AND {_SELECTED_DEAD}
ORDER BY position"""

# Where they are: those of a key together, the others in parts, lane by lane.
PLAN_BATCHES: Final = f"""
SELECT lane, array_agg(position ORDER BY position) FROM :"schema".dead WHERE {_SELECTED_DEAD}
GROUP BY lane, CASE WHEN ordered THEN key END, CASE WHEN key IS NULL OR NOT ordered THEN position / 1000 END ORDER BY lane, min(position)"""

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

# Back into its key's queue, at its own position, and so ahead of all that came later: the hold of the key, if it has one, or the queue in
# which its rows are already, or a hold to be made. Never back into the FIFO, where a position below a floor would not be seen. One
# statement, as every move.
REQUEUE_KEYED: Final = f"""
WITH back AS (
    DELETE FROM :"schema".dead WHERE position = ANY(%(positions)s::bigint[]) AND key IS NOT NULL AND ordered RETURNING {KEPT}
)
INSERT INTO :"schema".held ({KEPT}, requeued_at, hold)
SELECT position, id, created_at, deliver_at, CASE WHEN NOT %(expired)s OR expires_at > statement_timestamp() THEN expires_at END,
       priority, lane, topic, key, content_type, headers || %(headers)s::jsonb, payload, statement_timestamp(),
       coalesce((SELECT holds.hold FROM :"schema".holds WHERE holds.hold = 'key:' || back.key),
                (SELECT held.hold FROM :"schema".held WHERE held.key = back.key AND held.ordered LIMIT 1), 'key:' || key)
FROM back"""

# What is given up without having been sent, being expired or over a limit, may have left earlier rows of its key in the FIFO. They come
# along, or it would go out before them. The bound keeps this to the part of the FIFO that is older than the letters: nearly always nothing.
# Those of a higher priority go first from where they are, and those of a lower one would have gone later; one that is scheduled waits for
# its time and not for its key.
BRING_EARLIER: Final = f"""
WITH earlier AS (
    DELETE FROM :"schema".messages
    USING (SELECT held.key, held.priority, held.hold, max(held.position) AS last FROM :"schema".held
           WHERE held.position = ANY(%(positions)s::bigint[]) GROUP BY held.key, held.priority, held.hold) AS back
    WHERE messages.position < %(last)s AND messages.position < back.last
          AND messages.key = back.key AND messages.priority = back.priority
          AND (messages.deliver_at IS NULL OR messages.deliver_at <= statement_timestamp())
    RETURNING {", ".join(f"messages.{column}" for column in KEPT.split(", "))}, back.hold
)
INSERT INTO :"schema".held ({KEPT}, hold) SELECT * FROM earlier"""

# Nothing waits behind a message without a key, or of a route that keeps no order: it is due now. One time for all, so that they are
# claimed in the order of their positions.
REQUEUE_KEYLESS: Final = f"""
WITH back AS (
    DELETE FROM :"schema".dead WHERE position = ANY(%(positions)s::bigint[]) AND (key IS NULL OR NOT ordered) RETURNING {KEPT}
)
INSERT INTO :"schema".deferred ({KEPT}, due_at, attempts)
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

# A key that waits for an operator goes on when the dead letter that it waits for, the hold's head, is dead no more. What is left in its
# hold, and from where on, is looked up again.
RELEASE_HOLDS: Final = """
UPDATE :"schema".holds SET due_at = statement_timestamp(), head = NULL, attempts = 0, error = NULL, low = NULL
WHERE hold = ANY(%s::text[]) AND due_at IS NULL AND NOT EXISTS (SELECT FROM :"schema".dead WHERE dead.position = holds.head)
RETURNING hold"""
SEE_WAITING: Final = """
SELECT hold, head FROM :"schema".holds
WHERE hold = ANY(%s::text[]) AND due_at IS NULL AND head <> ALL(%s::bigint[])
      AND EXISTS (SELECT FROM :"schema".dead WHERE dead.position = holds.head) ORDER BY hold"""

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

SHOW_CONSUMER_DEAD: Final = """
SELECT message_id AS id, topic, key, content_type, headers, error, attempts, created_at, died_at, octet_length(payload) AS size, payload
FROM :"schema".consumer_dead WHERE message_id = %s AND consumer = %s"""

# The processed ids stay: a late copy of what was dropped is not handled.
DROP_CONSUMER_DEAD: Final = """
DELETE FROM :"schema".consumer_dead WHERE message_id = ANY(%s::uuid[]) AND consumer = %s RETURNING message_id"""
