"""`outboxd doctor` finds what is wrong with the server and the way to it: sessions, autovacuum, poolers, clocks."""

from __future__ import annotations

import re
import secrets
import struct
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from migrations.runner import migrate
from outbox import doctor
from outbox.daemon.config import load
from outbox.daemon.inspection import diagnose
from outbox.embedded import PrivatePostgres
from tests.engines.command import configured
from tests.engines.deadline import eventually
from tests.engines.findings import IN_PROCESS, about, follow, found, the_one
from tests.engines.pooler import Pooler
from tests.engines.pumps import is_empty, pumping
from tests.engines.sinks import RecordingSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


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
        settings = load(configured(tmp_path, f"doorbell = false\n{IN_PROCESS}", dsn=pooler.dsn))
        assert await found(diagnose(settings)) == []
        settings = load(configured(tmp_path, IN_PROCESS, dsn=pooler.dsn))
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
