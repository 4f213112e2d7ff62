-- Processed ids are dropped by day (dedupe/retention.py); an id that is no UUIDv7 bears no day, and goes by the time of its effect.

-- Such ids alone: a UUIDv7, whose version is in its seventh byte's upper half, pays for no entry here. They are deleted by this time. And one
-- may lie in some day's range by chance: whether there is such a one is asked for while the table is locked to drop that day.
CREATE INDEX processed_without_time ON :"schema".processed (processed_at) WHERE get_byte(uuid_send(message_id), 6) >> 4 <> 7;
