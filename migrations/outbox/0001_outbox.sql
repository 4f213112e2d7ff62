-- The outbox: one FIFO table that is inserted into, claimed from and deleted from, and never updated; and beside it the places
-- for what is not now (deferred, held), what is given up (dead) and what is kept (archive).
-- :"schema" and :'schema' are replaced by the runner, as psql would.

-- Ids sort by time, so that the consumers' processed ids can be kept and dropped by day. Postgres 18 has uuidv7() built in.
DO $do$
BEGIN
    IF current_setting('server_version_num')::int >= 180000 THEN
        CREATE FUNCTION :"schema".uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS 'SELECT uuidv7()';
    ELSE
        -- 48 bits of milliseconds, then the random part of a version 4 id; bits 52 and 53 turn its version 4 into 7.
        CREATE FUNCTION :"schema".uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $body$
            SELECT encode(set_bit(set_bit(
                substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                || substring(uuid_send(gen_random_uuid()) FROM 7), 52, 1), 53, 1), 'hex')::uuid
        $body$;
    END IF;
END $do$;

-- The payload limit is a function, so that `outboxd migrate --max-payload` changes it without rewriting or scanning a table.
CREATE FUNCTION :"schema".max_payload() RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT 1048576';

CREATE TABLE :"schema".messages (
    -- The order of the outbox. ALWAYS: a hand-written position could land below a floor and be skipped.
    position     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id           uuid NOT NULL DEFAULT :"schema".uuid7(),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    deliver_at   timestamptz,
    expires_at   timestamptz,
    priority     smallint NOT NULL DEFAULT 0,
    -- One key is in one lane, and one claim owns a lane at a time: that is what keeps a key in order. Keyless rows spread evenly.
    lane         smallint GENERATED ALWAYS AS ((coalesce(hashtextextended(key, 0), position) & 63)::smallint) STORED,
    topic        text NOT NULL,
    key          text,
    content_type text NOT NULL DEFAULT 'application/json',
    headers      jsonb NOT NULL DEFAULT '{}',
    payload      bytea NOT NULL,

    -- Python refuses the same before any SQL (bridges/message.py); these hold plain SQL to it. A test feeds both the same strings.
    -- No white space or control characters (ASCII and Unicode), no wildcards, no empty token, no leading dollar sign.
    CONSTRAINT topic_is_addressable CHECK (
        octet_length(topic) BETWEEN 1 AND 255
        AND topic ~ '^[^\u0001-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff*>.]+(\.[^\u0001-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff*>.]+)*$'
        AND topic !~ '^\$'),
    CONSTRAINT key_at_most_1_kib CHECK (octet_length(key) <= 1024),
    CONSTRAINT content_type_is_a_header_value CHECK (content_type ~ '^[\u0020-\u007e]{1,255}$'),
    CONSTRAINT headers_are_text_with_sound_names CHECK (
        jsonb_typeof(headers) = 'object'
        AND octet_length(headers::text) <= 32768
        AND (headers = '{}' OR NOT jsonb_path_exists(headers, '$.keyvalue() ? (
            @.value.type() != "string"
            || !(@.key like_regex "^[A-Za-z0-9_-]{1,128}$")
            || @.key like_regex "^(nats-|outbox-|content-type$)" flag "i"
            || @.value like_regex "[\r\n]")'))),
    CONSTRAINT payload_within_max_payload CHECK (octet_length(payload) <= :"schema".max_payload()),
    CONSTRAINT priority_not_negative CHECK (priority >= 0),
    CONSTRAINT expires_after_delivery CHECK (expires_at >= deliver_at),
    -- No infinity, and no year that a client cannot hold: one such row would fail every claim that meets it.
    CONSTRAINT times_are_of_this_era CHECK (
        created_at BETWEEN '0002-01-01Z' AND '9998-12-31Z' AND deliver_at BETWEEN '0002-01-01Z' AND '9998-12-31Z'
        AND expires_at BETWEEN '0002-01-01Z' AND '9998-12-31Z')
)
-- Rows live for milliseconds: vacuum by count and not by share, and never stop the writers to give pages back.
WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, vacuum_truncate = off);

-- Normal rows have priority 0 and pay nothing for this index.
CREATE INDEX messages_by_priority ON :"schema".messages (priority DESC, position) WHERE priority > 0;

-- Scheduled, or a keyless retry: due at a time.
CREATE TABLE :"schema".deferred (
    position     bigint PRIMARY KEY,
    id           uuid NOT NULL,
    created_at   timestamptz NOT NULL,
    deliver_at   timestamptz,
    expires_at   timestamptz,
    due_at       timestamptz NOT NULL,
    attempts     integer NOT NULL,
    priority     smallint NOT NULL,
    lane         smallint NOT NULL,
    topic        text NOT NULL,
    key          text,
    content_type text NOT NULL,
    headers      jsonb NOT NULL,
    payload      bytea NOT NULL,
    error        text
);
CREATE INDEX deferred_by_due_at ON :"schema".deferred (due_at);

-- Waiting in a queue of its own: behind a failing head of the same key, or for a destination that is away.
CREATE TABLE :"schema".held (
    position     bigint PRIMARY KEY,
    id           uuid NOT NULL,
    created_at   timestamptz NOT NULL,
    deliver_at   timestamptz,
    expires_at   timestamptz,
    priority     smallint NOT NULL,
    lane         smallint NOT NULL,
    topic        text NOT NULL,
    key          text,
    content_type text NOT NULL,
    headers      jsonb NOT NULL,
    hold         text NOT NULL,
    payload      bytea NOT NULL
);
-- A hold is drained from its head.
CREATE INDEX held_by_hold ON :"schema".held (hold, position);

-- One row for each such queue, so that a claim looks at one row a held key and not at the rows behind it.
CREATE TABLE :"schema".holds (
    hold     text PRIMARY KEY,
    head     bigint NOT NULL, -- the position of the message that has failed: the attempts are its own
    due_at   timestamptz NOT NULL,
    attempts integer NOT NULL,
    lane     smallint NOT NULL,
    error    text
);
CREATE INDEX holds_by_due_at ON :"schema".holds (due_at);

-- Given up, kept, visible, replayable.
CREATE TABLE :"schema".dead (
    position     bigint PRIMARY KEY,
    id           uuid NOT NULL,
    created_at   timestamptz NOT NULL,
    deliver_at   timestamptz,
    expires_at   timestamptz,
    died_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts     integer NOT NULL,
    priority     smallint NOT NULL,
    lane         smallint NOT NULL,
    topic        text NOT NULL,
    key          text,
    content_type text NOT NULL,
    headers      jsonb NOT NULL,
    reason       text NOT NULL,
    error        text,
    payload      bytea NOT NULL
);
CREATE INDEX dead_by_died_at ON :"schema".dead (died_at);

-- What was published, for as long as a route keeps it; partitioned by day and dropped by day.
CREATE TABLE :"schema".archive (
    position     bigint NOT NULL,
    id           uuid NOT NULL,
    created_at   timestamptz NOT NULL,
    deliver_at   timestamptz,
    expires_at   timestamptz,
    published_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    priority     smallint NOT NULL,
    lane         smallint NOT NULL,
    topic        text NOT NULL,
    key          text,
    content_type text NOT NULL,
    headers      jsonb NOT NULL,
    destination  text NOT NULL,
    payload      bytea NOT NULL
) PARTITION BY RANGE (published_at);

-- A claim locks lanes and never updates them: a lock on a row of this table is the ownership of its keys.
CREATE TABLE :"schema".lanes (lane smallint PRIMARY KEY);
INSERT INTO :"schema".lanes SELECT generate_series(0, 63);

-- Runs before any row of the statement draws its position.
CREATE FUNCTION :"schema".begin_write() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    -- The floor's proof needs each transaction's xid to be older than the positions it draws.
    PERFORM pg_current_xact_id();
    -- The doorbell. A pump that sleeps holds this lock exclusively; one that is awake does not, and sees this transaction's
    -- shared lock when it wants to sleep. So pg_notify, which queues every commit of the database, runs only to wake somebody.
    IF NOT pg_try_advisory_xact_lock_shared(hashtextextended('outboxd.doorbell.' || TG_TABLE_SCHEMA, 0)) THEN
        PERFORM pg_notify('outboxd.' || TG_TABLE_SCHEMA, '');
    END IF;
    RETURN NULL;
END $body$;
CREATE TRIGGER begin_write BEFORE INSERT ON :"schema".messages
    FOR EACH STATEMENT EXECUTE FUNCTION :"schema".begin_write();

-- For every other language, and for triggers. No RETURNING: a role with INSERT alone may call them.
CREATE FUNCTION :"schema".put_bytes(
    topic text, payload bytea, key text DEFAULT NULL, headers jsonb DEFAULT '{}', deliver_at timestamptz DEFAULT NULL,
    expires_at timestamptz DEFAULT NULL, priority integer DEFAULT 0, id uuid DEFAULT NULL,
    content_type text DEFAULT 'application/octet-stream')
RETURNS uuid LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
    message_id uuid := coalesce(put_bytes.id, :"schema".uuid7());
BEGIN
    INSERT INTO :"schema".messages (id, topic, key, payload, content_type, headers, deliver_at, expires_at, priority)
    VALUES (message_id, put_bytes.topic, put_bytes.key, put_bytes.payload, put_bytes.content_type, put_bytes.headers,
            put_bytes.deliver_at, put_bytes.expires_at, put_bytes.priority);
    RETURN message_id;
END $body$;

CREATE FUNCTION :"schema".put(
    topic text, payload jsonb, key text DEFAULT NULL, headers jsonb DEFAULT '{}', deliver_at timestamptz DEFAULT NULL,
    expires_at timestamptz DEFAULT NULL, priority integer DEFAULT 0, id uuid DEFAULT NULL)
RETURNS uuid LANGUAGE sql VOLATILE AS $body$
    SELECT :"schema".put_bytes(topic, convert_to(payload::text, 'UTF8'), key, headers, deliver_at, expires_at, priority, id,
                               'application/json')
$body$;
