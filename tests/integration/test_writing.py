"""Promise 1: the message shares the fate of the transaction, whatever library the connection came from."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import pytest
import sqlalchemy
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from bridges.errors import InvalidMessage, NoTransaction
from outbox import Draft, Outbox

if TYPE_CHECKING:
    from collections.abc import Iterator

OUTBOX = Outbox()


def topics(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        return [topic for (topic,) in connection.execute("SELECT topic FROM outbox.messages ORDER BY position")]


@pytest.fixture
def engine(database: str) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(url_of(database))
    yield engine
    engine.dispose()


def url_of(dsn: str) -> str:
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    secret = f":{parts['password']}" if parts.get("password") else ""
    return f"postgresql+psycopg://{parts['user']}{secret}@{parts['host']}:{parts.get('port', 5432)}/{parts['dbname']}"


def test_psycopg_connection_commits_and_rolls_back_with_the_application(database: str) -> None:
    with psycopg.connect(database) as connection:
        OUTBOX.put(connection, "committed", {"a": 1})
    with psycopg.connect(database) as connection:
        OUTBOX.put(connection, "rolled.back", {"a": 1})
        connection.rollback()
    assert topics(database) == ["committed"]


def test_psycopg_cursor_of_any_kind(database: str) -> None:
    with psycopg.connect(database) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            OUTBOX.put(cursor, "cursor", b"")
            assert cursor.fetchone() == (1,), "the caller's own result is left alone"
        with psycopg.ClientCursor(connection) as cursor:
            OUTBOX.put(cursor, "client.cursor", b"")
    assert topics(database) == ["cursor", "client.cursor"]


def test_psycopg_connection_with_a_cursor_factory_of_its_own(database: str) -> None:
    """Parameters are written in our style whatever the caller's cursors expect."""
    with psycopg.connect(database, cursor_factory=psycopg.RawCursor, row_factory=psycopg.rows.dict_row) as connection:
        OUTBOX.put(connection, "raw", b"")
    assert topics(database) == ["raw"]


async def test_psycopg_async_connection_cursor_and_pipeline(database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await OUTBOX.aput(connection, "connection", {"a": 1})
        async with connection.cursor() as cursor:
            await OUTBOX.aput(cursor, "cursor", {"a": 1})
        async with connection.pipeline():
            await OUTBOX.aput_many(connection, [Draft("pipeline", {"a": 1})])
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await OUTBOX.aput(connection, "rolled.back", {"a": 1})
        await connection.rollback()
    assert topics(database) == ["connection", "cursor", "pipeline"]


def test_sqlalchemy_connection_and_session(database: str, engine: sqlalchemy.Engine) -> None:
    with engine.begin() as connection:
        OUTBOX.put(connection, "connection", {"a": 1})
    with Session(engine) as session, session.begin():
        OUTBOX.put(session, "session", {"a": 1})
    with Session(engine) as session:
        OUTBOX.put(session, "rolled.back", {"a": 1})
        session.rollback()
    with Session(engine) as session:
        OUTBOX.put_many(session, [Draft("begun.by.the.put", {"a": 1})])
        session.commit()
    assert topics(database) == ["connection", "session", "begun.by.the.put"]


async def test_sqlalchemy_async_connection_and_session(database: str) -> None:
    engine = create_async_engine(url_of(database))
    async with engine.begin() as connection:
        await OUTBOX.aput(connection, "connection", {"a": 1})
    async with AsyncSession(engine) as session, session.begin():
        await OUTBOX.aput(session, "session", {"a": 1})
    async with AsyncSession(engine) as session:
        await OUTBOX.aput(session, "rolled.back", {"a": 1})
        await session.rollback()
    await engine.dispose()
    assert topics(database) == ["connection", "session"]


def test_autocommit_without_a_transaction_is_refused(database: str, engine: sqlalchemy.Engine) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        with pytest.raises(NoTransaction, match="autocommit"):
            OUTBOX.put(connection, "refused", {"a": 1})
        with connection.transaction():
            OUTBOX.put(connection, "in.a.block", {"a": 1})
        with connection.pipeline(), connection.transaction():
            OUTBOX.put(connection, "in.a.pipelined.block", {"a": 1})
        Outbox(allow_autocommit=True).put(connection, "allowed", {"a": 1})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection, pytest.raises(NoTransaction):
        OUTBOX.put(connection, "refused", {"a": 1})
    assert topics(database) == ["in.a.block", "in.a.pipelined.block", "allowed"]


async def test_autocommit_without_a_transaction_is_refused_async(database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        with pytest.raises(NoTransaction, match="autocommit"):
            await OUTBOX.aput(connection, "refused", {"a": 1})
    assert topics(database) == []


def test_anything_else_is_no_connection() -> None:
    with pytest.raises(TypeError, match="psycopg Connection"):
        OUTBOX.put(object(), "topic", {"a": 1})


def test_every_field_is_stored_as_given(database: str) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    given = UUID("0190b5b0-0000-7000-8000-000000000001")
    with psycopg.connect(database) as connection:
        returned = OUTBOX.put(
            connection,
            "orders.created",
            {"price": 1.5, "name": "Å"},
            key="clé",
            headers={"Tenant": "é=1"},
            id=given,
            deliver_at=later,
            expires_at=later,
            priority=7,
        )
        row = connection.execute(
            "SELECT id, topic, key, payload, content_type, headers, deliver_at, expires_at, priority FROM outbox.messages"
        ).fetchone()
    assert row is not None
    row[5].pop("traceparent", None)  # there if a test before this one has set up tracing
    payload = json.dumps({"price": 1.5, "name": "Å"}, ensure_ascii=False, separators=(",", ":")).encode()
    assert returned == given
    assert row == (given, "orders.created", "clé", payload, "application/json", {"Tenant": "é=1"}, later, later, 7)


def test_bytes_go_as_they_are(database: str) -> None:
    with psycopg.connect(database) as connection:
        OUTBOX.put(connection, "bytes", b"\x00\xff")
        OUTBOX.put(connection, "bytes", b"<a/>", content_type="text/xml")
        rows = connection.execute("SELECT payload, content_type FROM outbox.messages ORDER BY position").fetchall()
    assert rows == [(b"\x00\xff", "application/octet-stream"), (b"<a/>", "text/xml")]


def test_put_many_keeps_the_order_in_one_round_trip(database: str) -> None:
    drafts = [Draft("many", {"n": n}, key=str(n % 7)) for n in range(1000)]
    with psycopg.connect(database) as connection, tempfile.TemporaryFile("w+") as trace:
        connection.execute("SELECT 1")  # the transaction is open
        connection.pgconn.trace(trace.fileno())
        ids = OUTBOX.put_many(connection, drafts)
        connection.pgconn.untrace()
        os.lseek(trace.fileno(), 0, os.SEEK_SET)
        said = trace.read()
        stored = [row[0] for row in connection.execute("SELECT id FROM outbox.messages ORDER BY position")]
    assert stored == ids
    assert said.count("\tReadyForQuery") == 1


def test_put_many_writes_nothing_if_one_draft_is_bad(database: str) -> None:
    with psycopg.connect(database) as connection:
        with pytest.raises(InvalidMessage, match="topic"):
            OUTBOX.put_many(connection, [Draft("good", 1), Draft("not good", 1)])
        assert connection.info.transaction_status.name == "IDLE", "no SQL was sent"
    assert topics(database) == []


def test_a_role_with_insert_alone_may_put(database: str) -> None:
    role = sql.Identifier(f"writer_{os.getpid()}")
    with psycopg.connect(database) as connection:
        connection.execute(sql.SQL("CREATE ROLE {}").format(role))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA outbox TO {}").format(role))
        connection.execute(sql.SQL("GRANT INSERT ON outbox.messages TO {}").format(role))
        connection.execute(sql.SQL("SET ROLE {}").format(role))
        OUTBOX.put(connection, "by.put", {"a": 1})
        OUTBOX.put_many(connection, [Draft("by.put.many", {"a": 1})])
        connection.execute("SELECT outbox.put('by.sql', '{\"a\": 1}')")
        connection.execute("SELECT outbox.put_bytes('by.sql.bytes', '\\x00')")
        connection.execute("RESET ROLE")
        connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        connection.execute(sql.SQL("DROP ROLE {}").format(role))
    assert topics(database) == ["by.put", "by.put.many", "by.sql", "by.sql.bytes"]


def test_a_plain_insert_works_too(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO outbox.messages (topic, key, payload) VALUES ('plain', 'k', 'x')")
        row = connection.execute("SELECT id, content_type, headers, lane BETWEEN 0 AND 63 FROM outbox.messages").fetchone()
    assert row is not None
    assert row[0].version == 7
    assert row[1:] == ("application/json", {}, True)


@pytest.mark.parametrize(
    ("column", "value", "constraint"),
    [
        ("topic", "", "topic_is_addressable"),
        ("topic", "a b", "topic_is_addressable"),
        ("topic", "a.*", "topic_is_addressable"),
        ("topic", "$JS.API", "topic_is_addressable"),
        ("topic", "x" * 256, "topic_is_addressable"),
        ("key", "k" * 1025, "key_at_most_1_kib"),
        ("headers", '{"Nats-Rollup": "all"}', "headers_are_text_with_sound_names"),
        ("headers", '{"a b": "c"}', "headers_are_text_with_sound_names"),
        ("headers", '{"a": 1}', "headers_are_text_with_sound_names"),
        ("headers", '{"a": "b\\r\\nc"}', "headers_are_text_with_sound_names"),
        ("payload", b"x" * (1048576 + 1), "payload_within_max_payload"),
        ("priority", -1, "priority_not_negative"),
    ],
)
def test_plain_sql_is_held_to_the_limits(database: str, column: str, value: Any, constraint: str) -> None:
    row: dict[str, Any] = {"topic": "t", "key": None, "headers": "{}", "payload": b"", "priority": 0, column: value}
    with psycopg.connect(database) as connection, pytest.raises(psycopg.errors.CheckViolation, match=constraint):
        connection.execute(
            "INSERT INTO outbox.messages (topic, key, headers, payload, priority) "
            "VALUES (%(topic)s, %(key)s, %(headers)s, %(payload)s, %(priority)s)",
            row,
        )


def test_another_schema(empty_database: str) -> None:
    from migrations.runner import migrate

    with psycopg.connect(empty_database) as connection:
        migrate(connection, "outbox", schema="my_outbox")
        Outbox(schema="my_outbox").put(connection, "topic", {"a": 1})
        assert connection.execute("SELECT count(*) FROM my_outbox.messages").fetchone() == (1,)
