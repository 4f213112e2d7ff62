"""The plans of a claim on a large outbox: by index and in order, whether the table was analysed or not, prepared or not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, LiteralString, TypeAlias

import psycopg
import pytest

from outbox import sql

if TYPE_CHECKING:
    from collections.abc import Iterator

Plan: TypeAlias = dict[str, Any]

ROWS: Final = 100_000
TABLES: Final = {"messages", "held", "deferred"}

# A thousand keys, one row in a thousand with a priority; ten thousand rows each behind one hold and waiting for a time.
FILL: Final = """
ALTER TABLE outbox.messages SET (autovacuum_enabled = off);
ALTER TABLE outbox.held SET (autovacuum_enabled = off);
ALTER TABLE outbox.deferred SET (autovacuum_enabled = off);
INSERT INTO outbox.messages (topic, key, payload, priority)
    SELECT 'orders.created', 'k' || n % 1000, '{}', CASE WHEN n % 1000 = 0 THEN 5 ELSE 0 END FROM generate_series(1, 100000) AS n;
INSERT INTO outbox.held (position, id, created_at, priority, lane, topic, key, content_type, headers, hold, payload)
    SELECT n, gen_random_uuid(), now(), 0, n % 64, 't', 'h', 'a', '{}', 'key:h' || n % 10, '' FROM generate_series(200001, 210000) AS n;
INSERT INTO outbox.holds (hold, head, due_at, attempts, lane) SELECT 'key:h' || n, 0, now(), n % 2, n % 64 FROM generate_series(0, 9) AS n;
INSERT INTO outbox.deferred (position, id, created_at, due_at, attempts, priority, lane, topic, content_type, headers, payload)
    SELECT n, gen_random_uuid(), now(), now() + n % 100 * interval '1 hour', 1, 0, n % 64, 't', 'a', '{}', ''
    FROM generate_series(300001, 310000) AS n"""

LANES: Final = "{" + ",".join(map(str, range(32))) + "}"
PARAMETERS: Final = {
    "lanes": ("smallint[]", f"'{LANES}'"),
    "limit": ("bigint", "1000"),
    "of_holds": ("bigint", "750"),
    "floor": ("bigint", "50000"),
    "away": ("text[]", "'{events}'"),
}

CLAIMS: Final[dict[str, LiteralString]] = {
    "fifo": sql.CLAIM_FIFO,
    "priority": sql.CLAIM_PRIORITY,
    "held": sql.CLAIM_HELD,
    "deferred": sql.CLAIM_DEFERRED,
    "own lanes": sql.OWN_LANES,
    "probe": sql.PROBE,
}
ARGUMENTS: Final[dict[str, list[Any]]] = {"own lanes": [0, 32]}


@pytest.fixture(scope="module", params=["analysed", "never analysed"])
def large(request: pytest.FixtureRequest, postgres: str, migrated: str) -> Iterator[psycopg.Connection]:
    """A connection to a large outbox, in a transaction with the settings of a claim."""
    from tests.conftest import with_database

    name = f"plans_{request.param.replace(' ', '_')}"
    with psycopg.connect(postgres, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name} TEMPLATE {migrated}")
        with psycopg.connect(with_database(postgres, name)) as connection:
            connection.execute(FILL)
            connection.commit()
            if request.param == "analysed":
                connection.execute("ANALYZE")
                connection.commit()
            connection.execute(sql.bind(sql.CONFIGURE_CLAIM, "outbox"), ("60s", "60s", "60s"))
            yield connection
        server.execute(f"DROP DATABASE {name} (FORCE)")


def plan_of(connection: psycopg.Connection, name: str, mode: str) -> Plan:
    """Return the plan of a statement that was prepared as the pump's is."""
    statement = sql.bind(CLAIMS[name], "outbox")
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    if names:
        for place, parameter in enumerate(names, start=1):
            statement = statement.replace(f"%({parameter})s", f"${place}")
        types, values = map(list, zip(*(PARAMETERS[parameter] for parameter in names), strict=True))
    else:
        values, types = list(map(str, ARGUMENTS[name])), ["bigint"] * len(ARGUMENTS[name])
        for place in range(1, len(values) + 1):
            statement = statement.replace("%s", f"${place}", 1)
    with connection.transaction(force_rollback=True):
        connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
        connection.execute(f"PREPARE claim ({', '.join(types)}) AS {statement}")
        try:
            row = connection.execute(f"EXPLAIN (FORMAT JSON) EXECUTE claim ({', '.join(values)})").fetchone()
        finally:
            connection.execute("DEALLOCATE claim")
    assert row is not None
    plan: Plan = row[0][0]["Plan"]
    return plan


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def scans(plan: Plan, table: str) -> list[Plan]:
    return [node for node in nodes(plan) if node.get("Relation Name") == table]


every_mode = pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])


@every_mode
@pytest.mark.parametrize("name", CLAIMS)
def test_no_claim_reads_a_whole_table(large: psycopg.Connection, name: str, mode: str) -> None:
    plan = plan_of(large, name, mode)
    read = [node for table in TABLES for node in scans(plan, table)]
    assert read or name == "own lanes"
    assert {node["Node Type"] for node in read} <= {"Index Scan", "Index Only Scan"}


@every_mode
def test_the_fifo_walks_the_primary_key_from_the_floor(large: psycopg.Connection, mode: str) -> None:
    """In the order of the index: nothing is sorted, so that the limit ends the walk."""
    plan = plan_of(large, "fifo", mode)
    (walk,) = scans(plan, "messages")
    assert walk["Index Name"] == "messages_pkey"
    assert '"position" >' in walk["Index Cond"]
    assert not [node for node in nodes(plan) if "Sort" in node["Node Type"]]
    assert plan["Node Type"] == "Limit"
    assert "LockRows" in [node["Node Type"] for node in nodes(plan)]


@every_mode
def test_priorities_are_found_by_their_own_index(large: psycopg.Connection, mode: str) -> None:
    plan = plan_of(large, "priority", mode)
    (walk,) = scans(plan, "messages")
    assert walk["Index Name"] == "messages_by_priority"
    assert not [node for node in nodes(plan) if "Sort" in node["Node Type"]]


@every_mode
def test_held_rows_are_found_by_their_hold(large: psycopg.Connection, mode: str) -> None:
    """Once analysed, the planner walks all that is held in the order of positions, and throws away what is of other holds."""
    (walk,) = scans(plan_of(large, "held", mode), "held")
    assert walk["Index Name"] == "held_by_hold"
    assert "hold" in walk["Index Cond"]


@every_mode
@pytest.mark.parametrize("name", ["fifo", "priority", "deferred"])
def test_the_hold_of_a_rows_key_is_looked_up_and_only_where_there_are_holds(large: psycopg.Connection, name: str, mode: str) -> None:
    """Whether there are any is asked once; then each row costs two looks into an index, and not a walk over what is held."""
    plan = plan_of(large, name, mode)
    (look,) = scans(plan, "held")
    assert look["Index Name"] == "held_by_key"
    assert "InitPlan" in {node.get("Parent Relationship") for node in nodes(plan)}


@every_mode
def test_deferred_rows_are_found_by_their_time(large: psycopg.Connection, mode: str) -> None:
    (walk,) = scans(plan_of(large, "deferred", mode), "deferred")
    assert walk["Index Name"] == "deferred_by_due_at"
    assert "due_at" in walk["Index Cond"]


@every_mode
def test_the_probe_reads_by_index_alone(large: psycopg.Connection, mode: str) -> None:
    plan = plan_of(large, "probe", mode)
    assert {node["Index Name"] for node in scans(plan, "messages")} == {"messages_pkey", "messages_by_priority"}
    assert {node["Index Name"] for node in scans(plan, "deferred")} == {"deferred_by_due_at"}
    (after_floor,) = (node for node in scans(plan, "messages") if node["Index Name"] == "messages_pkey")
    assert '"position" >' in after_floor["Index Cond"]
    assert not scans(plan, "held")


def test_the_large_outbox_is_large(large: psycopg.Connection) -> None:
    assert large.execute("SELECT count(*) FROM outbox.messages").fetchone() == (ROWS,)


def test_a_whole_table_that_is_read_is_noticed(large: psycopg.Connection) -> None:
    """These tests can fail."""
    large.execute("SET LOCAL enable_seqscan = on")
    row = large.execute("EXPLAIN (FORMAT JSON) SELECT count(*) FROM outbox.messages WHERE payload <> ''").fetchone()
    assert row is not None
    (walk,) = scans(row[0][0]["Plan"], "messages")
    assert walk["Node Type"] == "Seq Scan"
