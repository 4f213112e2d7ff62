"""`outboxd doctor` finds the rows that no loop would ever pick, and those that wait for somebody; what it advises lets them go."""

from __future__ import annotations

import subprocess
from functools import partial
from typing import TYPE_CHECKING

from outbox import doctor
from tests.engines.deadline import eventually
from tests.engines.findings import about, follow, found, the_one
from tests.engines.pumps import is_empty, pumping
from tests.engines.sinks import RecordingSink

if TYPE_CHECKING:
    import psycopg

MESSAGE = """
CREATE TABLE IF NOT EXISTS message AS
    SELECT gen_random_uuid() AS id, clock_timestamp() AS created_at, 0::smallint AS priority,
           (hashtextextended('k', 0) & 63)::smallint AS lane, 'orders.paid' AS topic, 'k' AS key, 'text/plain' AS content_type,
           '{}'::jsonb AS headers, ''::bytea AS payload;
"""
COLUMNS = "id, created_at, priority, lane, topic, key, content_type, headers, payload"
HELD = f"INSERT INTO outbox.held (position, hold, {COLUMNS})"
DEAD = f"INSERT INTO outbox.dead (position, {COLUMNS}, reason, attempts)"


def as_a_shell_reads(word: str) -> str:
    return subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, text=True, check=True).stdout


async def test_held_messages_that_no_hold_leads_to(connection: psycopg.AsyncConnection) -> None:
    await connection.execute(MESSAGE)
    await connection.execute(
        f"{HELD} SELECT 1, 'key:k', message.* FROM message UNION ALL SELECT 2, 'sink:events/7', message.* FROM message"
    )
    finding = await the_one(doctor.find_lost_rows(connection))
    assert finding.problem == "2 messages in queues that no row of holds leads to: key:k, sink:events/7"
    await follow(connection, finding)
    assert await found(doctor.find_lost_rows(connection)) == []
    cursor = await connection.execute("SELECT hold, destination, due_at IS NOT NULL FROM outbox.holds ORDER BY hold")
    assert await cursor.fetchall() == [("key:k", None, True), ("sink:events/7", "events", True)]


async def test_what_it_advises_for_lost_messages_brings_them_out(connection: psycopg.AsyncConnection, database: str) -> None:
    await connection.execute(MESSAGE)
    await connection.execute(f"{HELD} SELECT 1, 'key:k', message.* FROM message")
    await follow(connection, await the_one(doctor.find_lost_rows(connection)))
    sink = RecordingSink()
    async with pumping(database, sink):
        await eventually(partial(is_empty, connection))
    assert len(sink.published) == 1


async def test_lanes_that_are_missing(connection: psycopg.AsyncConnection) -> None:
    await connection.execute("SELECT outbox.put('orders.paid', '{}', key => 'k')")
    await connection.execute("DELETE FROM outbox.lanes WHERE lane = (SELECT lane FROM outbox.messages)")
    finding = await the_one(doctor.find_lost_rows(connection))
    assert finding.problem.startswith("1 row of lanes missing, which no claim can own, with 1 message: ")
    await follow(connection, finding)
    assert await found(doctor.find_lost_rows(connection)) == []


async def test_rows_of_lanes_that_do_not_exist(connection: psycopg.AsyncConnection) -> None:
    await connection.execute(MESSAGE)
    await connection.execute("UPDATE message SET lane = 77")
    await connection.execute(f"{HELD} SELECT 1, 'key:k', message.* FROM message")
    await connection.execute("INSERT INTO outbox.holds (hold, head, lane, due_at, attempts) VALUES ('key:k', 1, 78, clock_timestamp(), 1)")
    await connection.execute(
        f"INSERT INTO outbox.deferred (position, due_at, attempts, {COLUMNS}) SELECT 2, clock_timestamp(), 0, message.* FROM message"
    )
    finding = await the_one(doctor.find_lost_rows(connection))
    assert finding.problem.startswith("2 messages in lanes that do not exist: 77, 78;")
    await follow(connection, finding)
    assert await found(doctor.find_lost_rows(connection)) == []


async def test_positions_below_every_floor(connection: psycopg.AsyncConnection) -> None:
    await connection.execute(
        "INSERT INTO outbox.messages (position, topic, payload) OVERRIDING SYSTEM VALUE"
        " VALUES (0, 'orders.paid', ''), (-1, 'orders.paid', '')"
    )
    finding = await the_one(doctor.find_lost_rows(connection))
    assert finding.problem.startswith("2 messages at a position below 1")
    await follow(connection, finding)
    assert await found(doctor.find_lost_rows(connection)) == []
    cursor = await connection.execute("SELECT min(position), count(*) FROM outbox.messages")
    assert await cursor.fetchone() == (1, 2)


async def test_a_key_that_waits_for_an_operator(connection: psycopg.AsyncConnection) -> None:
    await connection.execute(MESSAGE)
    await connection.execute(f"{DEAD} SELECT 1, message.*, 'too_large', 1 FROM message")
    await connection.execute(f"{DEAD} SELECT 3, message.*, 'too_large', 1 FROM message")
    await connection.execute(
        "INSERT INTO outbox.holds (hold, head, lane, attempts, error) VALUES ('key:the key', 3, 5, 0, 'too_large: 2 MiB')"
    )
    await connection.execute(f"{HELD} SELECT 4, 'key:the key', message.* FROM message")
    await connection.execute("UPDATE outbox.dead SET id = gen_random_uuid()")
    finding = await the_one(doctor.find_keys_for_operator(connection))
    assert finding.what == "key 'the key'"
    assert "too_large: 2 MiB" in finding.problem
    assert finding.problem.endswith("with 1 message")
    cursor = await connection.execute("SELECT id FROM outbox.dead WHERE position = 3")
    ((message_id,),) = await cursor.fetchall()
    assert f"`outboxd dead requeue --id {message_id}`" in finding.advice
    assert f"`outboxd dead drop --id {message_id}`" in finding.advice, "and no other dead letter of the key"


async def test_a_key_that_waits_for_a_dead_letter_that_is_gone(connection: psycopg.AsyncConnection, database: str) -> None:
    """Somebody has deleted it by hand: there is nothing left to requeue or to drop."""
    await connection.execute(MESSAGE)
    await connection.execute("INSERT INTO outbox.holds (hold, head, lane, attempts) SELECT 'key:k', 3, lane, 0 FROM message")
    await connection.execute("INSERT INTO outbox.holds (hold, head, lane, attempts) VALUES ('key:l', 4, 5, 0), ('key:m', 5, 5, 0)")
    await connection.execute(f"{HELD} SELECT 8, 'key:k', message.* FROM message")
    await connection.execute(f"{DEAD} SELECT 5, message.*, 'too_large', 1 FROM message")
    assert [finding.what for finding in await found(doctor.find_keys_for_operator(connection))] == ["key m"]
    (finding,) = await about("keys", doctor.find_lost_rows(connection))
    assert finding.problem == "2 keys wait for a dead letter that is gone, with 1 message: k, l"
    await follow(connection, finding)
    assert await found(doctor.find_lost_rows(connection)) == []
    assert [finding.what for finding in await found(doctor.find_keys_for_operator(connection))] == ["key m"]
    sink = RecordingSink()

    async def sent() -> bool:
        return len(sink.published) == 1

    async with pumping(database, sink):
        await eventually(sent)


async def test_how_a_key_with_anything_in_it_is_named(connection: psycopg.AsyncConnection) -> None:
    """In one line, that a shell reads as the key, and that moves no terminal's cursor."""
    key = "it's\n \x1b[31m $HOME \\n"
    await connection.execute(MESSAGE)
    await connection.execute(f"{DEAD} SELECT 1, message.*, 'too_large', 1 FROM message")
    await connection.execute("INSERT INTO outbox.holds (hold, head, lane, attempts) VALUES ('key:' || %s::text, 1, 5, 0)", (key,))
    finding = await the_one(doctor.find_keys_for_operator(connection))
    assert finding.what.isprintable()
    typed = finding.what.removeprefix("key ")
    assert as_a_shell_reads(typed) == key


async def test_of_many_such_keys_the_longest_queues_are_named(connection: psycopg.AsyncConnection) -> None:
    await connection.execute(MESSAGE)
    await connection.execute(f"{DEAD} SELECT k, message.*, 'too_large', 1 FROM message, generate_series(1, 25) AS k")
    await connection.execute(
        "INSERT INTO outbox.holds (hold, head, lane, attempts) SELECT 'key:' || k, k, 5, 0 FROM generate_series(1, 25) AS k"
    )
    await connection.execute(f"{HELD} SELECT 26, 'key:25', message.* FROM message")
    keys = await found(doctor.find_keys_for_operator(connection))
    assert len(keys) == 11
    assert keys[0].what == "key 25"
    assert keys[-1].problem.endswith("15 more keys")


async def test_the_queue_of_a_sink_that_is_not_configured_any_more(connection: psycopg.AsyncConnection) -> None:
    await connection.execute(MESSAGE)
    await connection.execute(
        "INSERT INTO outbox.holds (hold, lane, due_at, attempts, error, destination)"
        " SELECT format('sink:%s/5', name), 5, clock_timestamp(), 0, 'unavailable: refused', name"
        " FROM (VALUES ('old'), ('new')) AS sinks (name)"
    )
    await connection.execute(f"{HELD} SELECT 1, 'sink:old/5', message.* FROM message")
    finding = await the_one(doctor.find_unconfigured(connection, sinks=["new"], routes=[">"]))
    assert finding.what == "sink old"
    assert finding.problem == "it is not one of [sinks], and its queue holds 1 message (unavailable: refused)"


async def test_topics_without_a_route(connection: psycopg.AsyncConnection) -> None:
    await connection.execute("SELECT outbox.put('orders.paid', '{}'), outbox.put('stock.low', '{}'), outbox.put('stock.low', '{}')")
    finding = await the_one(doctor.find_unconfigured(connection, sinks=[], routes=["orders.>"]))
    assert finding.problem == "2 messages without a route, to be dead letters: stock.low"
