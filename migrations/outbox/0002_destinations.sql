-- A destination that is away has queues of its own; a key may wait for an operator; what was published can be kept and replayed.

-- The queue of a destination is one hold for each lane, 'sink:<name>/<lane>', so that whoever owns the lane owns its part of the queue.
-- When it is tried again is not for the row to say: each pump's breaker knows.
ALTER TABLE :"schema".holds ADD COLUMN destination text; -- the sink that was away; NULL for the hold of a key
-- NULL: an operator decides (a route with after_dead = "hold").
ALTER TABLE :"schema".holds ALTER COLUMN due_at DROP NOT NULL;
-- The part of a hold that has no failing head of its own has none.
ALTER TABLE :"schema".holds ALTER COLUMN head DROP NOT NULL;
CREATE INDEX holds_by_destination ON :"schema".holds (destination, lane) WHERE destination IS NOT NULL;

-- All rows of a key that are held are in one hold, but for those of a route that keeps no order, which hold back nobody. A claim asks
-- here which hold that is, while there is any hold at all.
ALTER TABLE :"schema".held ADD COLUMN ordered boolean NOT NULL DEFAULT true;
CREATE INDEX held_by_key ON :"schema".held (key) WHERE key IS NOT NULL AND ordered;
-- A dead letter that was put back has waited since then, however old it is.
ALTER TABLE :"schema".held ADD COLUMN requeued_at timestamptz;

-- Put back, it keeps its key's order, or it does not, as before.
ALTER TABLE :"schema".dead ADD COLUMN ordered boolean NOT NULL DEFAULT true;
-- The floor of a hold: it has no row below. Without it a claim walks every dead index entry of a long queue that drains while an old
-- snapshot keeps them alive. NULL: not known. Whatever joins below it lowers it, whoever writes.
ALTER TABLE :"schema".holds ADD COLUMN low bigint;
CREATE FUNCTION :"schema".lower_holds() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    UPDATE :"schema".holds SET low = joined.first
    FROM (SELECT hold, min(position) AS first FROM joining GROUP BY hold) AS joined
    WHERE holds.hold = joined.hold AND holds.low > joined.first;
    RETURN NULL;
END $body$;
CREATE TRIGGER lower_holds_for_new AFTER INSERT ON :"schema".held REFERENCING NEW TABLE AS joining
    FOR EACH STATEMENT EXECUTE FUNCTION :"schema".lower_holds();
CREATE TRIGGER lower_holds_for_moved AFTER UPDATE ON :"schema".held REFERENCING NEW TABLE AS joining
    FOR EACH STATEMENT EXECUTE FUNCTION :"schema".lower_holds();

-- Operators look for one message, or for a topic's.
CREATE INDEX dead_by_id ON :"schema".dead (id);

-- What was published, for as long as its route keeps it. By the day on which it may go, and not by the day on which it went out: routes
-- keep for different times, and a day is then dropped as one table, whoever wrote into it. Nothing has ever been written to the one before.
DROP TABLE :"schema".archive;
CREATE TABLE :"schema".archive (
    position     bigint NOT NULL,
    id           uuid NOT NULL,
    created_at   timestamptz NOT NULL,
    deliver_at   timestamptz,
    expires_at   timestamptz,
    published_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    drop_at      timestamptz NOT NULL,
    priority     smallint NOT NULL,
    lane         smallint NOT NULL,
    topic        text NOT NULL,
    key          text,
    content_type text NOT NULL,
    headers      jsonb NOT NULL,
    destination  text NOT NULL,
    payload      bytea NOT NULL
) PARTITION BY RANGE (drop_at);
CREATE INDEX archive_by_position ON :"schema".archive (position);
CREATE INDEX archive_by_id ON :"schema".archive (id);
-- A day that nobody made a table for loses nothing and stops nobody.
CREATE TABLE :"schema".archive_default PARTITION OF :"schema".archive DEFAULT;
-- Only what is here goes row by row, and so only this pays for it.
CREATE INDEX archive_default_by_drop_at ON :"schema".archive_default (drop_at);

-- Who replayed what, and how it went.
CREATE TABLE :"schema".replays (
    replay     uuid PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at   timestamptz, -- NULL: running, or broken off
    matched    bigint NOT NULL,
    published  bigint NOT NULL DEFAULT 0,
    rejected   bigint NOT NULL DEFAULT 0,
    sink       text NOT NULL,
    who        text NOT NULL,
    selection  jsonb NOT NULL
);

-- The figures that all daemons export, measured by one of them: one row, updated in place.
CREATE TABLE :"schema".figures (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    measured_at timestamptz NOT NULL,
    figures     jsonb NOT NULL
) WITH (fillfactor = 50);
