"""`outboxd doctor` finds each thing that can be wrong, where it is really so, and what it advises ends it."""

from __future__ import annotations

import json
import os
import re
import secrets
import struct
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import nats
import psycopg
import pytest
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamSource
from psycopg import sql
from psycopg.conninfo import make_conninfo

from dedupe.retention import keep_processed
from migrations.runner import migrate
from outbox import doctor
from outbox.daemon.config import load
from outbox.daemon.inspection import diagnose
from outbox.embedded import PrivatePostgres
from tests.conftest import Stream, make_topic
from tests.engines.deadline import eventually
from tests.engines.pooler import Pooler
from tests.engines.pumps import is_empty, pumping
from tests.engines.sinks import RecordingSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from outbox.doctor import Finding

ROUTE = '[[routes]]\ntopics = "orders.>"\nsink = "events"\n'
IN_PROCESS = f'[sinks.events]\nkind = "inprocess"\n{ROUTE}'

MESSAGE = """
CREATE TABLE IF NOT EXISTS message AS
    SELECT gen_random_uuid() AS id, clock_timestamp() AS created_at, 0::smallint AS priority,
           (hashtextextended('k', 0) & 63)::smallint AS lane, 'orders.paid' AS topic, 'k' AS key, 'text/plain' AS content_type,
           '{}'::jsonb AS headers, ''::bytea AS payload;
"""
COLUMNS = "id, created_at, priority, lane, topic, key, content_type, headers, payload"
HELD = f"INSERT INTO outbox.held (position, hold, {COLUMNS})"
DEAD = f"INSERT INTO outbox.dead (position, {COLUMNS}, reason, attempts)"


async def found(search: AsyncIterator[Finding]) -> list[Finding]:
    return [finding async for finding in search]


async def the_one(search: AsyncIterator[Finding]) -> Finding:
    (finding,) = await found(search)
    return finding


async def about(what: str, search: AsyncIterator[Finding]) -> list[Finding]:
    """Return what was found of one thing: with a threshold of nothing, a passing worker of the server's own may be found as well."""
    return [finding async for finding in search if finding.what == what]


async def about_sinks(folder: Path, database: str, text: str) -> list[Finding]:
    """Return what a configuration's doctor finds at its brokers."""
    findings = await found(diagnose(load(configured(folder, database, text))))
    return [finding for finding in findings if finding.what.startswith("sink ")]


def as_a_shell_reads(word: str) -> str:
    return subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, text=True, check=True).stdout


async def follow(connection: psycopg.AsyncConnection, finding: Finding) -> None:
    """Run the SQL of the advice."""
    await connection.execute(finding.advice.partition(": ")[2].encode())


def configured(folder: Path, dsn: str, configuration: str) -> Path:
    file = folder / "outboxd.toml"
    file.write_text(f'[postgres]\ndsn = "{dsn}"\n{configuration}')
    return file


# --- rows that no loop would ever pick ------------------------------------------------------------------------------------


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


# --- sessions -------------------------------------------------------------------------------------------------------------


async def test_a_claim_older_than_its_deadline(connection: psycopg.AsyncConnection, database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database, application_name="outboxd") as pump:
        await pump.execute("SELECT lane FROM outbox.lanes WHERE lane < 32 FOR UPDATE")
        assert await found(doctor.find_late_claims(connection, claim_timeout=60)) == []
        finding = await the_one(doctor.find_late_claims(connection, claim_timeout=0))
        assert finding.what == f"claim of process {pump.info.backend_pid}"
        assert "outboxd" in finding.problem
        assert "owns 32 lanes" in finding.problem
        assert "idle in transaction" in finding.problem
        await follow(connection, finding)
        with pytest.raises(psycopg.OperationalError):
            await pump.execute("SELECT")

    async def ended() -> bool:
        return await found(doctor.find_late_claims(connection, claim_timeout=0)) == []

    await eventually(ended)


async def test_a_role_that_cannot_see_how_old_a_claim_is_is_told_so(connection: psycopg.AsyncConnection, database: str) -> None:
    role = sql.Identifier(name := f"reader_{secrets.token_hex(4)}")
    await connection.execute(sql.SQL("CREATE ROLE {} LOGIN; GRANT USAGE ON SCHEMA outbox TO {}").format(role, role))
    await connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO {}").format(role))
    try:
        async with await psycopg.AsyncConnection.connect(make_conninfo(database, user=name), autocommit=True) as reader:
            finding = await the_one(doctor.find_late_claims(reader, claim_timeout=60))
            assert finding.what == "rights"
            assert finding.is_note
            await connection.execute(finding.advice.partition(";")[0].encode())
            assert await found(doctor.find_late_claims(reader, claim_timeout=60)) == []
    finally:
        await connection.execute(sql.SQL("DROP OWNED BY {}; DROP ROLE {}").format(role, role))


@pytest.mark.parametrize("writes", [False, True])
async def test_a_transaction_that_pins_the_horizon(connection: psycopg.AsyncConnection, database: str, writes: bool) -> None:
    """One that has written also holds the floor back."""
    async with await psycopg.AsyncConnection.connect(database, application_name="report") as old:
        await old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await old.execute("SELECT pg_current_xact_id()" if writes else "SELECT count(*) FROM outbox.dead")
        assert await found(doctor.find_pins(connection)) == []
        process = f"process {old.info.backend_pid}"
        (finding,) = await about(process, doctor.find_pins(connection, older_than=0))
        assert finding.problem.startswith("report has a transaction open for ")
        assert ("holds the floor back" in finding.problem) == writes
        assert f"pg_terminate_backend({old.info.backend_pid})" in finding.advice
        await old.commit()
        assert await about(process, doctor.find_pins(connection, older_than=0)) == []


async def test_of_another_database_it_is_the_writers_that_count(connection: psycopg.AsyncConnection, postgres: str) -> None:
    """A snapshot there keeps nothing here; an xid is in everybody's snapshots."""
    async with await psycopg.AsyncConnection.connect(postgres) as elsewhere:
        process = f"process {elsewhere.info.backend_pid}"
        await elsewhere.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await elsewhere.execute("SELECT count(*) FROM pg_class")
        assert await about(process, doctor.find_pins(connection, older_than=0)) == []
        await elsewhere.execute("SELECT pg_current_xact_id()")
        assert len(await about(process, doctor.find_pins(connection, older_than=0))) == 1


async def test_the_claim_of_a_pump_is_not_said_to_pin_the_horizon_as_well(connection: psycopg.AsyncConnection, database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database, application_name="outboxd") as pump:
        await pump.execute("SELECT lane FROM outbox.lanes FOR UPDATE")
        assert await about(f"process {pump.info.backend_pid}", doctor.find_pins(connection, older_than=0)) == []


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A private server, for what is of a whole server."""
    with PrivatePostgres(durable=False, settings={"max_prepared_transactions": "5"}) as server:
        with psycopg.connect(server.dsn) as connection:
            migrate(connection, "outbox", schema="outbox")
        yield server.dsn


@asynccontextmanager
async def connected(dsn: str, **options: Any) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, **options) as connection:
        yield connection


async def test_a_prepared_transaction(server: str) -> None:
    async with connected(server) as connection:
        await connection.execute("BEGIN; SELECT lane FROM outbox.lanes WHERE lane < 3 FOR UPDATE; PREPARE TRANSACTION 'forgotten'")
        claim = await the_one(doctor.find_late_claims(connection, claim_timeout=0))
        assert claim.what == "claim of a prepared transaction"
        assert "forgotten owns 3 lanes" in claim.problem
        assert claim.advice.endswith("ROLLBACK PREPARED 'forgotten';")
        assert await found(doctor.find_pins(connection)) == []
        (finding,) = await about("prepared transaction 'forgotten'", doctor.find_pins(connection, older_than=0))
        assert "holds the floor back" in finding.problem
        await connection.execute(finding.advice.partition(" or ")[2].encode())
        assert await about(finding.what, doctor.find_pins(connection, older_than=0)) == []


async def test_a_replication_slot_that_nobody_reads(server: str) -> None:
    """A standby with hot_standby_feedback says what it still needs, and is not seen again."""
    async with connected(server) as connection:
        await connection.execute("SELECT pg_create_physical_replication_slot('gone')")
        cursor = await connection.execute("SELECT pg_current_wal_lsn()::text, pg_current_xact_id()::text::bigint")
        ((lsn, xid),) = await cursor.fetchall()
        assert await found(doctor.find_pins(connection)) == []
        standby = await psycopg.AsyncConnection.connect(server, autocommit=True, replication="true")
        try:
            standby.pgconn.exec_(f"START_REPLICATION SLOT gone PHYSICAL {lsn}".encode())
            standby.pgconn.put_copy_data(b"h" + struct.pack("!qIIII", 0, xid, 0, 0, 0))
            standby.pgconn.flush()

            async def heard() -> bool:
                asked = await connection.execute("SELECT xmin IS NOT NULL FROM pg_replication_slots")
                return await asked.fetchone() == (True,)

            await eventually(heard)
        finally:
            await standby.close()
        finding = (await eventually(lambda: found(doctor.find_pins(connection))))[0]
        assert finding.what == "replication slot 'gone'"
        await follow(connection, finding)
        assert await found(doctor.find_pins(connection)) == []


# --- autovacuum -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("ALTER TABLE outbox.messages SET (autovacuum_enabled = false)", "autovacuum_enabled is off"),
        ("ALTER TABLE outbox.held SET (toast.autovacuum_enabled = off)", "toast.autovacuum_enabled is off"),
        ("ALTER TABLE outbox.archive_default SET (autovacuum_enabled = 0)", "autovacuum_enabled is off"),
        ("ALTER TABLE outbox.held SET (autovacuum_enabled = fals)", "autovacuum_enabled is off"),
        ("ALTER TABLE outbox.messages RESET (autovacuum_vacuum_threshold)", "autovacuum_vacuum_threshold is not set"),
        ("ALTER TABLE outbox.messages SET (vacuum_truncate = on)", "vacuum_truncate is on"),
        ("ALTER TABLE outbox.messages SET (autovacuum_vacuum_scale_factor = 0.2)", "autovacuum_vacuum_scale_factor is 0.2"),
    ],
)
async def test_a_table_that_is_not_vacuumed_as_it_must_be(connection: psycopg.AsyncConnection, change: str, problem: str) -> None:
    await connection.execute(change.encode())
    finding = await the_one(doctor.find_vacuum_trouble(connection))
    assert problem in finding.problem
    await connection.execute(finding.advice.encode())
    assert await found(doctor.find_vacuum_trouble(connection)) == []


async def test_the_same_storage_in_other_words_is_no_finding(connection: psycopg.AsyncConnection) -> None:
    await connection.execute("ALTER TABLE outbox.messages SET (vacuum_truncate = false, autovacuum_vacuum_scale_factor = 0.0)")
    await connection.execute("ALTER TABLE outbox.held SET (autovacuum_enabled = ye)")
    await connection.execute("ALTER TABLE outbox.dead SET (toast.autovacuum_enabled = tru, fillfactor = 90)")
    assert await found(doctor.find_vacuum_trouble(connection)) == []


@pytest.mark.parametrize(("setting", "problem"), [("autovacuum", "off for the whole server"), ("track_counts", "track_counts is off")])
async def test_a_server_without_autovacuum(server: str, setting: str, problem: str) -> None:
    async with connected(server) as connection:
        await connection.execute(f"ALTER SYSTEM SET {setting} = off")
        await connection.execute("SELECT pg_reload_conf()")
        (finding,) = await eventually(lambda: found(doctor.find_vacuum_trouble(connection)))
        assert problem in finding.problem
        for statement in finding.advice.split("; ")[:2]:
            await connection.execute(statement.encode())

        async def mended() -> bool:
            return await found(doctor.find_vacuum_trouble(connection)) == []

        await eventually(mended)


# --- poolers and clocks ---------------------------------------------------------------------------------------------------


def connecting(dsn: str) -> Any:
    return partial(psycopg.AsyncConnection.connect, dsn, autocommit=True, prepare_threshold=None)


async def test_a_transaction_pooler_in_the_way_of_listen(database: str) -> None:
    async with Pooler(database) as pooler:
        finding = await the_one(doctor.find_pooler(connecting(pooler.dsn), within=0.3))
    for words in ("did not arrive", "changed from one transaction to the next", "the connection says that it is to process 99"):
        assert words in finding.problem
    assert "doorbell = false" in finding.advice


async def test_a_pooler_in_session_mode_is_in_nobodys_way(database: str) -> None:
    """Though it too tells of a process that is not the server's."""
    async with Pooler(database, per_transaction=False) as pooler:
        assert await found(doctor.find_pooler(connecting(pooler.dsn), within=20)) == []


async def test_no_pooler(database: str) -> None:
    assert await found(doctor.find_pooler(connecting(database), within=20)) == []


async def test_with_doorbell_false_a_pooler_is_no_finding_and_the_pump_works(
    connection: psycopg.AsyncConnection, database: str, tmp_path: Path
) -> None:
    sink = RecordingSink()
    async with Pooler(database) as pooler:
        async with pumping(pooler.dsn, sink, doorbell=False, poll_interval=0.05):
            for key in "abc":
                await connection.execute("SELECT outbox.put('orders.paid', '{}', key => %s)", (key,))
            await eventually(partial(is_empty, connection))
        settings = load(configured(tmp_path, pooler.dsn, f"doorbell = false\n{IN_PROCESS}"))
        assert await found(diagnose(settings)) == []
        settings = load(configured(tmp_path, pooler.dsn, IN_PROCESS))
        assert [finding.what for finding in await found(diagnose(settings))] == ["doorbell"]
    assert sorted(message.key for message in sink.published if message.key) == ["a", "b", "c"]


@pytest.mark.parametrize(("seconds", "says"), [(3600.0, "behind"), (-3600.0, "ahead of")])
async def test_clocks_that_differ(connection: psycopg.AsyncConnection, seconds: float, says: str) -> None:
    """The test and its server are on one machine; the clock that is given is another's."""
    finding = await the_one(doctor.find_clock_skew(connection, clock=lambda: time.time() + seconds, more_than=5))
    words = re.fullmatch(r"the database's clock is ([\d.]+) s (.*) this machine's", finding.problem)
    assert words is not None
    assert float(words[1]) == pytest.approx(3600, abs=20)
    assert words[2] == says


async def test_a_slow_round_trip_is_no_difference_of_clocks(connection: psycopg.AsyncConnection) -> None:
    moments = iter([time.time() - 60, time.time() + 60])
    assert await found(doctor.find_clock_skew(connection, clock=lambda: next(moments))) == []


# --- brokers --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def made(url: str, **settings: Any) -> AsyncIterator[Stream]:
    """A stream with file storage, unless the settings say otherwise."""
    name = f"test-{secrets.token_hex(6)}"
    client = await nats.connect(url)
    if "mirror" not in settings:
        settings["subjects"] = [f"{name}.>"]
    await client.jetstream().add_stream(StreamConfig(name=name, **{"storage": StorageType.FILE, **settings}))
    try:
        yield Stream(url, name, name)
    finally:
        await client.jetstream().delete_stream(name)
        await client.close()


async def topic_with(servers: str, name: str, settings: dict[str, Any]) -> str:
    return await make_topic(servers, name, partitions=1, **settings)


def jetstream(stream: Stream, *, consumer: bool = False) -> str:
    sink = (
        f'[sinks.events]\nkind = "jetstream"\nservers = ["{stream.url}"]\nstream = "{stream.name}"\n{ROUTE}subject = "{stream.subject}"\n'
    )
    return sink + ('[[consumers]]\napp = "tests.integration.shop:consumer"\n' if consumer else "")


def kafka(servers: str, topic: str, *, consumer: bool = False) -> str:
    sink = f'[sinks.events]\nkind = "kafka"\nservers = ["{servers}"]\n{ROUTE}topic = "{topic}"\n'
    return sink + ('[[consumers]]\napp = "tests.integration.shop:consumer"\n' if consumer else "")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"storage": StorageType.MEMORY}, "stored in memory"),
        ({"retention": RetentionPolicy.INTEREST}, "interest retention"),
        ({"max_msgs": 10, "discard": DiscardPolicy.OLD}, "discards its oldest"),
        ({"max_msgs_per_subject": 3}, "keeps the last 3 messages of a subject"),
        ({"no_ack": True}, "does not acknowledge"),
    ],
)
async def test_a_stream_that_acknowledges_without_keeping_or_keeps_without_acknowledging(
    database: str, nats_url: str, tmp_path: Path, settings: dict[str, Any], problem: str
) -> None:
    async with made(nats_url, **settings) as stream:
        finding = await the_one(diagnose(load(configured(tmp_path, database, jetstream(stream)))))
    assert finding.what == "sink events (jetstream)"
    assert problem in finding.problem
    assert finding.advice


async def test_a_mirror_takes_nothing(database: str, stream: Stream, tmp_path: Path) -> None:
    async with made(stream.url, mirror=StreamSource(name=stream.name)) as mirror:
        finding = await the_one(diagnose(load(configured(tmp_path, database, jetstream(mirror)))))
    assert "is a mirror" in finding.problem


async def test_a_stream_that_delivers_again_for_longer_than_ids_are_kept(database: str, nats_url: str, tmp_path: Path) -> None:
    """With consumers only: nothing else remembers ids."""
    async with made(nats_url) as for_ever, made(nats_url, max_age=2 * 86400.0) as two_days:

        async def problems(stream: Stream, keep: str, *, consumer: bool = True) -> list[str]:
            text = f'{jetstream(stream, consumer=consumer)}[dedupe]\nkeep = "{keep}"\n'
            return [finding.problem for finding in await about_sinks(tmp_path, database, text)]

        assert await problems(for_ever, "30 days") == [
            f"stream '{for_ever.name}' can deliver a message again for ever, and its id is forgotten after 30 days, 0:00:00"
        ]
        text = f'{jetstream(for_ever, consumer=True)}[dedupe]\nkeep = "30 days"\n'
        ((_, _, advice, *_),) = await about_sinks(tmp_path, database, text)
        assert advice.startswith('set keep = "forever" in [dedupe]; ')
        assert advice.endswith("which deletes what is older from the stream, read or not")
        assert await problems(two_days, "1 day") == [
            f"stream '{two_days.name}' can deliver a message again for 2 days, 0:00:00, and its id is forgotten after 1 day, 0:00:00"
        ]
        assert await problems(two_days, "3 days") == []
        assert await problems(for_ever, "forever") == []
        assert await problems(for_ever, "1 day", consumer=False) == []


async def test_a_topic_with_one_insync_replica(database: str, kafka_servers: str, tmp_path: Path) -> None:
    name = f"test-{secrets.token_hex(6)}"
    await topic_with(kafka_servers, f"{name}-1", {"min.insync.replicas": "1"})
    await topic_with(kafka_servers, f"{name}-2", {"min.insync.replicas": "2"})
    finding = await the_one(diagnose(load(configured(tmp_path, database, kafka(kafka_servers, f"{name}-1")))))
    assert finding.what == "sink events (kafka)"
    assert f"topic '{name}-1' has min.insync.replicas = 1" in finding.problem
    assert await found(diagnose(load(configured(tmp_path, database, kafka(kafka_servers, f"{name}-2"))))) == []


async def test_the_topics_of_a_pattern_are_looked_up(database: str, kafka_servers: str, tmp_path: Path) -> None:
    prefix = f"test-{secrets.token_hex(6)}"
    for name in ("orders.paid", "orders.sent", "stock.low"):
        await topic_with(kafka_servers, f"{prefix}-{name}", {"min.insync.replicas": "1"})
    findings = await found(diagnose(load(configured(tmp_path, database, kafka(kafka_servers, f"{prefix}-{{topic}}")))))
    assert sorted(finding.problem.split("'")[1] for finding in findings) == [f"{prefix}-orders.paid", f"{prefix}-orders.sent"]


@pytest.mark.parametrize(
    ("settings", "keep", "again_for"),
    [
        ({"retention.ms": "-1"}, "30 days", "ever"),
        ({"retention.ms": "172800000"}, "1 day", "2 days, 0:00:00"),
        ({"cleanup.policy": "compact"}, "30 days", "ever"),
        ({"retention.ms": "172800000"}, "3 days", None),
        ({"retention.ms": "-1"}, "forever", None),
    ],
)
async def test_a_topic_that_delivers_again_for_longer_than_ids_are_kept(
    database: str, kafka_servers: str, tmp_path: Path, settings: dict[str, str], keep: str, again_for: str | None
) -> None:
    topic = await topic_with(kafka_servers, f"test-{secrets.token_hex(6)}", {"min.insync.replicas": "2", **settings})
    text = f'{kafka(kafka_servers, topic, consumer=True)}[dedupe]\nkeep = "{keep}"\n'
    findings = await about_sinks(tmp_path, database, text)
    expected = [] if again_for is None else [f"topic '{topic}' can deliver a message again for {again_for}, and its id is forgotten after"]
    assert [finding.problem.partition(" after")[0] + " after" for finding in findings] == expected
    for finding in findings:
        assert finding.advice.startswith(
            "raise keep in [dedupe] above that; " if again_for != "ever" else 'set keep = "forever" in [dedupe]'
        )
        assert ("deletes what is older from the topic" in finding.advice) == ("compact" not in settings.values())


async def test_what_cannot_be_reached_is_a_finding_each(tmp_path: Path) -> None:
    text = (
        '[sinks.events]\nkind = "jetstream"\nservers = ["nats://127.0.0.1:1"]\nstream = "S"\n'
        '[sinks.log]\nkind = "kafka"\nservers = ["127.0.0.1:1"]\n'
        f'{ROUTE}[[routes]]\ntopics = ">"\nsink = "log"\n'
    )
    findings = await found(diagnose(load(configured(tmp_path, "postgresql://u:hunter2@127.0.0.1:1/x", text))))
    assert [finding.what for finding in findings] == ["Postgres", "sink events (jetstream)", "sink log (kafka)"]
    assert "hunter2" not in str(findings)


# --- the command ----------------------------------------------------------------------------------------------------------


def outboxd_doctor(file: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "outbox.daemon", "doctor", "-c", str(file), *options]
    environment = {name: value for name, value in os.environ.items() if name != "OUTBOXD_POSTGRES__DSN"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert not done.stderr
    return done.returncode, done.stdout


async def test_a_healthy_installation(
    connection: psycopg.AsyncConnection, database: str, nats_url: str, kafka_servers: str, tmp_path: Path
) -> None:
    topic = await topic_with(kafka_servers, f"test-{secrets.token_hex(6)}", {"min.insync.replicas": "2"})
    await connection.execute("SELECT outbox.put('orders.paid', '{}', key => 'k'), outbox.put('logs.written', '{}')")
    await keep_processed(connection, keep=None)  # as a daemon does before it consumes
    async with made(nats_url, max_age=7 * 86400.0) as stream:
        text = f"""
{jetstream(stream, consumer=True)}
source = "events"
[sinks.log]
kind = "kafka"
servers = ["{kafka_servers}"]
[[routes]]
topics = "logs.>"
sink = "log"
topic = "{topic}"
[[consumers]]
app = "tests.integration.shop:consumer"
source = "log"
topics = ["{topic}"]
"""
        file = configured(tmp_path, database, text)
        assert outboxd_doctor(file) == (0, "all is well\n")
        assert outboxd_doctor(file, "--json") == (0, '{"findings": []}\n')


async def test_findings_are_lines_and_exit_code_1(connection: psycopg.AsyncConnection, database: str, tmp_path: Path) -> None:
    await connection.execute("DELETE FROM outbox.lanes WHERE lane = 5")
    await connection.execute("SELECT outbox.put('stock.low', '{}')")
    file = configured(tmp_path, database, IN_PROCESS)
    code, said = outboxd_doctor(file)
    assert code == 1
    first, advice, second, _, last = said.splitlines()
    assert first.startswith("PROBLEM  lanes: 1 row of lanes missing")
    assert advice.startswith('  to do  put them back: INSERT INTO "outbox".lanes')
    assert second.startswith("PROBLEM  routes: 1 message without a route")
    assert last == "2 problems"
    code, said = outboxd_doctor(file, "--json")
    assert code == 1
    assert [(finding["what"], bool(finding["advice"])) for finding in json.loads(said)["findings"]] == [("lanes", True), ("routes", True)]


async def test_notes_are_no_problems(connection: psycopg.AsyncConnection, database: str, tmp_path: Path) -> None:
    """What a role may not see may well be in order, and somebody is connected nearly always."""
    role = sql.Identifier(name := f"reader_{secrets.token_hex(4)}")
    await connection.execute(sql.SQL("CREATE ROLE {} LOGIN; GRANT USAGE ON SCHEMA outbox TO {}").format(role, role))
    await connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO {}").format(role))
    try:
        file = configured(tmp_path, make_conninfo(database, user=name), IN_PROCESS)
        code, said = outboxd_doctor(file)
        first, _, last = said.splitlines()
        assert (code, last) == (0, "all is well")
        assert first.startswith(f"note     rights: the role {name} may not see")
        code, said = outboxd_doctor(file, "--json")
        assert code == 0
        assert [(finding["what"], finding["is_note"]) for finding in json.loads(said)["findings"]] == [("rights", True)]
    finally:
        await connection.execute(sql.SQL("DROP OWNED BY {}; DROP ROLE {}").format(role, role))


async def test_a_schema_that_does_not_fit_is_one_finding(empty_database: str, tmp_path: Path) -> None:
    finding = await the_one(diagnose(load(configured(tmp_path, empty_database, IN_PROCESS))))
    assert finding.what == "schema outbox"
    assert "run `outboxd migrate`" in finding.problem
