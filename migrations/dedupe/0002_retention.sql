-- Processed ids are dropped by day (dedupe/retention.py); an id that is no UUIDv7 bears no day, and goes by the time of its effect.

-- Such ids alone: a UUIDv7, whose version is in its seventh byte's upper half, pays for no entry here. They are deleted by this time. And one
-- may lie in some day's range by chance: whether there is such a one is asked for while the table is locked to drop that day.
CREATE INDEX processed_without_time ON :"schema".processed (processed_at) WHERE get_byte(uuid_send(message_id), 6) >> 4 <> 7;

-- Since when the processed ids are all there, in Unix milliseconds: whoever drops or deletes any says so here first, and whoever finds an id
-- to be new looks here next. A sequence, since that is read as it is now and not as it was: in a transaction stricter than READ COMMITTED a
-- row would be seen as it was before the transaction waited for the drop, and the message would have a second effect.
CREATE SEQUENCE :"schema".processed_since AS bigint MINVALUE 0 START 0;

-- What an operator has had requeued: it is handled once, however old it is. Gone with the transaction of the effect.
CREATE TABLE :"schema".consumer_requeued (
    message_id  uuid NOT NULL,
    consumer    text NOT NULL,
    requeued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (message_id, consumer)
);
