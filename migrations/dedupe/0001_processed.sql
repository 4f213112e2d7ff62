-- What consumers have done: the processed ids, recorded in the transaction of the effect, and the messages they gave up.

-- A UUIDv7 begins with its time, so ranges of the id are ranges of days, and old days are dropped, not deleted. Ids of any other
-- kind, and days that have no partition, go to the default one. The id comes first in the key: it is what spreads and what sorts.
CREATE TABLE :"schema".processed (
    message_id   uuid NOT NULL,
    processed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    consumer     text NOT NULL,
    PRIMARY KEY (message_id, consumer)
) PARTITION BY RANGE (message_id);
CREATE TABLE :"schema".processed_default PARTITION OF :"schema".processed DEFAULT;

-- A consumer's dead letters. The message is whole, so that it can be handled again. Not called dead: both tracks may share a schema.
CREATE TABLE :"schema".consumer_dead (
    message_id   uuid NOT NULL,
    consumer     text NOT NULL,
    created_at   timestamptz,
    died_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts     integer NOT NULL,
    topic        text NOT NULL,
    key          text,
    content_type text NOT NULL,
    headers      jsonb NOT NULL,
    error        text NOT NULL,
    payload      bytea NOT NULL,
    PRIMARY KEY (message_id, consumer)
);
CREATE INDEX consumer_dead_by_died_at ON :"schema".consumer_dead (died_at);
