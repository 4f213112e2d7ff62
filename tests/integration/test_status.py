"""`outboxd status`: what it says is what is there, with no daemon running and with no right but to read."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from outbox.deadletters import Selection, requeue
from outbox.janitor import measure_backlog
from outbox.status import Archive, DeadLetters, Deferred, LaneOwner, Status, read_status
from tests.engines.command import configured, run_outboxd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

# A row as it was an hour ago, for the tables that are not written to by applications.
FILLED = """
SELECT outbox.put('orders.paid', '{}', key => 'a'), outbox.put('orders.paid', '{}', key => 'b');
CREATE TABLE message AS
    SELECT gen_random_uuid() AS id, clock_timestamp() - interval '1 hour' AS created_at, 0::smallint AS priority, 1::smallint AS lane,
           'orders.paid' AS topic, 'k' AS key, 'text/plain' AS content_type, '{}'::jsonb AS headers, ''::bytea AS payload;
INSERT INTO outbox.deferred (position, due_at, attempts, id, created_at, priority, lane, topic, key, content_type, headers, payload)
    SELECT place, clock_timestamp() + minutes * interval '1 minute', 0, message.*
    FROM message, (VALUES (101, -5), (102, 10), (103, 60)) AS new (place, minutes);
INSERT INTO outbox.holds (hold, head, lane, due_at, attempts, error, destination) VALUES
    ('key:k', 201, 1, clock_timestamp(), 3, 'timeout', NULL), ('key:l', 203, 2, clock_timestamp(), 1, 'timeout', NULL),
    ('key:m', NULL, 3, NULL, 0, 'too_large: 2 MiB', NULL),
    ('sink:events/4', NULL, 4, clock_timestamp(), 0, 'unavailable: refused', 'events'),
    ('sink:events/5', NULL, 5, clock_timestamp(), 0, NULL, 'events');
INSERT INTO outbox.held (position, hold, id, created_at, priority, lane, topic, key, content_type, headers, payload)
    SELECT place, hold, message.*
    FROM message, (VALUES (201, 'key:k'), (202, 'key:k'), (203, 'key:l'), (204, 'sink:events/4'), (205, 'sink:events/5'),
                          (206, 'sink:events/5')) AS new (place, hold);
INSERT INTO outbox.dead (position, reason, attempts, id, created_at, priority, lane, topic, key, content_type, headers, payload)
    SELECT place, reason, 1, message.*
    FROM message, (VALUES (301, 'too_large'), (302, 'no_route'), (303, 'no_route')) AS new (place, reason);
"""


@pytest.fixture
async def owner(database: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A session that calls itself a pump's, in a transaction."""
    async with await psycopg.AsyncConnection.connect(database, application_name="outboxd") as owner:
        yield owner


@pytest.fixture
def reader(database: str) -> Iterator[str]:
    """The connection string of a role that may read the outbox, and nothing else."""
    role = f"reader_{secrets.token_hex(4)}"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA outbox TO {}").format(sql.Identifier(role)))
        connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO {}").format(sql.Identifier(role)))
        yield make_conninfo(database, user=role)
        connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


async def test_an_outbox_with_nothing_in_it(connection: psycopg.AsyncConnection) -> None:
    status = await read_status(connection)
    assert status == Status(
        measured_at=status.measured_at,
        messages=0,
        oldest_seconds=0,
        deferred=Deferred(0, 0, None),
        holds=(),
        dead=(),
        lanes=64,
        owners=(),
        archive=Archive(status.archive.bytes, 1),
    )


async def test_everything_is_counted_where_it_is(connection: psycopg.AsyncConnection) -> None:
    await connection.execute(FILLED)
    status = await read_status(connection)
    assert (status.messages, status.deferred.messages, status.deferred.due) == (2, 3, 1)
    assert status.deferred.next_seconds == pytest.approx(600, abs=30)
    assert status.oldest_seconds == pytest.approx(3600, abs=30)
    assert [(of.kind, of.destination, of.holds, of.messages, of.error) for of in status.holds] == [
        ("destination", "events", 2, 3, "unavailable: refused"),
        ("key", None, 2, 3, None),
        ("operator", None, 1, 0, None),
    ]
    assert [(of.reason, of.messages) for of in status.dead] == [("no_route", 2), ("too_large", 1)]
    assert isinstance(status.dead[0], DeadLetters)


@pytest.mark.parametrize(
    ("change", "seconds"),
    [
        ("UPDATE outbox.holds SET due_at = NULL WHERE destination IS NULL", 1800),
        ("UPDATE outbox.held SET deliver_at = clock_timestamp() - interval '40 minutes' WHERE hold LIKE 'key:%'", 2400),
        ("UPDATE outbox.held SET requeued_at = clock_timestamp() - interval '50 minutes' WHERE hold LIKE 'key:%'", 3000),
    ],
    ids=["until an operator decides nothing can go", "scheduled ones wait since their time", "requeued ones wait since then"],
)
async def test_the_oldest_that_could_have_gone_is_the_same_for_status_and_metrics(
    connection: psycopg.AsyncConnection, change: str, seconds: float
) -> None:
    await connection.execute(FILLED)
    await connection.execute("UPDATE outbox.held SET created_at = clock_timestamp() - interval '30 minutes' WHERE hold NOT LIKE 'key:%'")
    await connection.execute("UPDATE outbox.held SET created_at = clock_timestamp() - interval '10 days' WHERE hold LIKE 'key:%'")
    await connection.execute(change.encode())
    status, backlog = await read_status(connection), await measure_backlog(connection)
    assert status.oldest_seconds == pytest.approx(seconds, abs=30)
    assert backlog.oldest_seconds == pytest.approx(seconds, abs=30)
    by_kind = {of.kind: of.oldest_seconds for of in status.holds if of.messages}
    assert by_kind["operator" if "NULL" in change else "key"] == pytest.approx(864000 if "NULL" in change else seconds, abs=30)


async def test_a_letter_that_was_put_back_is_as_old_as_that(connection: psycopg.AsyncConnection) -> None:
    await connection.execute(FILLED)
    await connection.execute("DELETE FROM outbox.held; DELETE FROM outbox.deferred; DELETE FROM outbox.holds")
    await requeue(connection, Selection(), everything=True)
    assert (await read_status(connection)).oldest_seconds < 60
    assert (await measure_backlog(connection)).oldest_seconds < 60


async def test_lanes_and_who_holds_them(connection: psycopg.AsyncConnection, owner: psycopg.AsyncConnection) -> None:
    """From the first lock to the end of the transaction, and not a moment longer, though the row still names its last locker."""
    await owner.execute("SELECT lane FROM outbox.lanes ORDER BY lane LIMIT 3 FOR UPDATE SKIP LOCKED")
    (found,) = (await read_status(connection)).owners
    assert found.seconds is not None
    assert found.seconds >= 0
    expected = LaneOwner(owner.info.backend_pid, "outboxd", found.client, "idle in transaction", found.seconds, 3)
    assert found == expected
    await owner.commit()
    assert (await read_status(connection)).owners == ()
    cursor = await connection.execute("SELECT count(*) FROM outbox.lanes WHERE xmax <> '0'")
    assert await cursor.fetchone() == (3,)


async def test_lanes_of_several_owners_and_of_a_savepoint(
    connection: psycopg.AsyncConnection, owner: psycopg.AsyncConnection, database: str
) -> None:
    """A lock that was taken within a savepoint is of another xid than its session's."""
    await owner.execute("SELECT lane FROM outbox.lanes WHERE lane < 10 FOR UPDATE")
    async with await psycopg.AsyncConnection.connect(database, application_name="operator") as other:
        await other.execute("SELECT")
        async with other.transaction():
            await other.execute("SELECT lane FROM outbox.lanes WHERE lane >= 32 FOR UPDATE")
            owners = {found.application: found.lanes for found in (await read_status(connection)).owners}
    assert owners == {"outboxd": 10, "operator": 32}


async def test_a_role_that_may_only_read_sees_who_holds_lanes(reader: str, owner: psycopg.AsyncConnection) -> None:
    """But not since when, or from where: that is for pg_read_all_stats."""
    await owner.execute("SELECT lane FROM outbox.lanes ORDER BY lane LIMIT 3 FOR UPDATE SKIP LOCKED")
    async with await psycopg.AsyncConnection.connect(reader, autocommit=True) as connection:
        assert (await read_status(connection)).owners == (LaneOwner(owner.info.backend_pid, "outboxd", None, None, None, 3),)


async def test_it_says_so_in_lines(reader: str, owner: psycopg.AsyncConnection, database: str, tmp_path: Path) -> None:
    await owner.execute(FILLED)
    await owner.commit()
    await owner.execute("SELECT lane FROM outbox.lanes ORDER BY lane LIMIT 3 FOR UPDATE SKIP LOCKED")
    configured(
        tmp_path,
        '[sinks.events]\nkind = "jetstream"\nservers = ["nats://127.0.0.1:1"]\nstream = "EVENTS"\n'
        '[sinks.local]\nkind = "inprocess"\n[[routes]]\ntopics = ">"\nsink = "events"\n',
        dsn=database,
    )
    code, out, err = run_outboxd("status", "-c", "outboxd.toml", folder=tmp_path)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for expected in (
        "messages 2 the oldest that could have gone is 60 min old",
        "deferred 3 1 due, the next in 10 min",
        "held 6 in 5 queues",
        "sink events 3 in 2 queues, the oldest 60 min old: unavailable: refused",
        "operator 0 in 1 queue: until an operator requeues or drops a dead letter",
        "dead 3",
        "lanes 64 3 of them owned",
        "events 3 jetstream, has a queue",
        "local 0 inprocess, no queue of its own",
    ):
        assert expected in lines, out
    assert any(line.startswith(f"outboxd 3 process {owner.info.backend_pid}") for line in lines), out


async def test_it_says_so_in_json(reader: str, owner: psycopg.AsyncConnection, tmp_path: Path) -> None:
    await owner.execute(FILLED)
    await owner.commit()
    code, out, err = run_outboxd("status", "--dsn", reader, "--json", folder=tmp_path)
    assert (code, err) == (0, "")
    (line,) = out.splitlines()
    said = json.loads(line)
    assert said["schema"] == "outbox"
    assert (said["messages"], said["deferred"]["messages"], said["lanes"], said["owners"], said["sinks"]) == (2, 3, 64, [], [])
    assert {(of["kind"], of["destination"]): of["messages"] for of in said["holds"]} == {
        ("destination", "events"): 3,
        ("key", None): 3,
        ("operator", None): 0,
    }


def test_a_schema_that_is_not_there_or_is_outdated_is_one_line(empty_database: str, database: str, tmp_path: Path) -> None:
    code, out, err = run_outboxd("status", "--dsn", empty_database, folder=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("outboxd: schema 'outbox' lacks outbox/0001_outbox")
    assert len(err.splitlines()) == 1
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DELETE FROM outbox.migrations WHERE version = 2")
    code, out, err = run_outboxd("status", "--dsn", database, folder=tmp_path)
    assert (code, out) == (2, "")
    assert err == "outboxd: schema 'outbox' lacks outbox/0002_destinations: run `outboxd migrate`\n"


def test_without_a_database_to_look_at(tmp_path: Path) -> None:
    code, out, err = run_outboxd("status", folder=tmp_path)
    assert (code, out, err) == (2, "", "outboxd: dsn: give --dsn, OUTBOXD_POSTGRES__DSN or a configuration file\n")
    code, out, err = run_outboxd("status", "--dsn", "postgresql://u:hunter2@127.0.0.1:1/x", folder=tmp_path)
    assert code == 1
    assert "hunter2" not in err
