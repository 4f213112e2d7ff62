"""The SQL of the demo: what pgbench's bank gets beside its own tables, and what is read from it at the end."""

from __future__ import annotations

from typing import Final

# pgbench updates an account before it writes its history, so the account's row is locked when its transfer draws its number: by account,
# the numbers are in the order of the commits.
SET_UP: Final = """
CREATE SCHEMA demo;
CREATE SEQUENCE demo.transfer;
CREATE FUNCTION demo.announce() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM outbox.put('bank.transfers', jsonb_build_object('account', NEW.aid, 'delta', NEW.delta, 'n', nextval('demo.transfer')),
                       key => NEW.aid::text);
    RETURN NULL;
END $$;
CREATE TRIGGER announce AFTER INSERT ON pgbench_history FOR EACH ROW EXECUTE FUNCTION demo.announce();

-- The consumer's: every balance, rebuilt from messages alone, and each effect with the time it took. No key on the id, so that an
-- effect that happened twice would be here twice.
CREATE TABLE demo.balances (account integer PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE demo.effects (message_id uuid NOT NULL, account integer NOT NULL, seconds double precision NOT NULL);

-- What reached the consumer, copies included, in order; and what the broker's own log holds, in its order, where there is one.
CREATE TABLE demo.deliveries (place bigint GENERATED ALWAYS AS IDENTITY, message_id uuid, account integer, n bigint);
CREATE TABLE demo.log (place bigint GENERATED ALWAYS AS IDENTITY, message_id uuid, account integer, n bigint);
"""

APPLY: Final = """
WITH effect AS (
    INSERT INTO demo.effects (message_id, account, seconds)
    VALUES (%(id)s, %(account)s, extract(epoch FROM clock_timestamp() - %(created_at)s::timestamptz))
)
INSERT INTO demo.balances (account, balance) VALUES (%(account)s, %(delta)s)
ON CONFLICT (account) DO UPDATE SET balance = balances.balance + excluded.balance"""

NOTE_DELIVERIES: Final = """
INSERT INTO demo.deliveries (message_id, account, n)
SELECT id, account, n FROM unnest(%s::uuid[], %s::integer[], %s::bigint[]) WITH ORDINALITY AS new (id, account, n, place) ORDER BY place"""

NOTE_LOG: Final = """
INSERT INTO demo.log (message_id, account, n)
SELECT id, account, n FROM unnest(%s::uuid[], %s::integer[], %s::bigint[]) WITH ORDINALITY AS new (id, account, n, place) ORDER BY place"""

PROGRESS: Final = """
SELECT (SELECT count(*) FROM pgbench_history),
       (SELECT count(*) FROM demo.effects),
       (SELECT count(*) FROM demo.deliveries),
       (SELECT count(*) FROM outbox.messages) + (SELECT count(*) FROM outbox.held) + (SELECT count(*) FROM outbox.deferred)
           + (SELECT count(*) FROM outbox.dead)"""

# An account's messages out of order: one that came for the first time after one with a higher number had.
_OUT_OF_ORDER: Final = """
SELECT count(*) FROM (SELECT n < max(n) OVER (PARTITION BY account ORDER BY place) AS late FROM first) AS ordered WHERE late"""
OUT_OF_ORDER_IN_LOG: Final = f"""
WITH first AS (SELECT message_id, account, n, min(place) AS place FROM demo.log GROUP BY message_id, account, n) {_OUT_OF_ORDER}"""
OUT_OF_ORDER_AT_CONSUMER: Final = f"""
WITH first AS (SELECT message_id, account, n, min(place) AS place FROM demo.deliveries GROUP BY message_id, account, n) {_OUT_OF_ORDER}"""

PROOF: Final = """
SELECT (SELECT count(*) FROM pgbench_history),
       (SELECT count(*) FROM demo.deliveries),
       (SELECT count(DISTINCT message_id) FROM demo.deliveries),
       (SELECT count(*) FROM demo.effects),
       (SELECT count(DISTINCT message_id) FROM demo.effects),
       (SELECT count(*) FROM pgbench_accounts FULL JOIN demo.balances ON account = aid
        WHERE coalesce(abalance, 0) <> coalesce(balance, 0)),
       (SELECT 1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) FROM demo.effects),
       (SELECT 1000 * percentile_cont(0.99) WITHIN GROUP (ORDER BY seconds) FROM demo.effects)"""
