"""What an operator asks for may not read whole tables where there is an index: archives and backlogs are large."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest

from bridges.message import uuid7
from outbox import sql, sql_operating
from outbox.selection import Selection
from tests.plans.test_plans import nodes, scans

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import LiteralString

NOW: Final = datetime.now(UTC)
FILL: Final = """
    INSERT INTO outbox.archive (position, id, created_at, published_at, drop_at, priority, lane, topic, key, content_type, headers,
                                destination, payload)
    SELECT n, gen_random_uuid(), now(), now() - interval '1 hour', now() + interval '1 day', 0, 0, 'orders.' || n % 10, 'k' || n % 100, 'a',
           '{}', 'events', decode(repeat('00', 200), 'hex') FROM generate_series(1, 50000) AS n;
    INSERT INTO outbox.messages (topic, key, payload) SELECT 't', 'k' || n % 100, decode(repeat('00', 200), 'hex')
    FROM generate_series(1, 50000) AS n;
    ANALYZE"""


@pytest.fixture(scope="module")
def large(postgres: str, migrated: str) -> Iterator[psycopg.Connection]:
    from tests.conftest import with_database

    with psycopg.connect(postgres, autocommit=True) as server:
        server.execute(f"CREATE DATABASE operating_plans TEMPLATE {migrated}")
        # Values are put in by the client, as the server sees them in a statement that it plans for once.
        with psycopg.connect(with_database(postgres, "operating_plans"), cursor_factory=psycopg.ClientCursor) as connection:
            connection.execute(FILL)
            connection.commit()
            yield connection
        server.execute("DROP DATABASE operating_plans (FORCE)")


def plan_of(connection: psycopg.Connection, statement: LiteralString, parameters: Mapping[str, Any]) -> dict[str, Any]:
    row = connection.execute("EXPLAIN (FORMAT JSON) " + sql.bind(statement, "outbox"), parameters).fetchone()
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


@pytest.mark.parametrize("given", [{}, {"topics": "orders.*"}, {"key": "k7", "topics": "orders.>"}], ids=["all", "topics", "key"])
def test_a_page_of_the_archive_begins_where_the_last_one_ended(large: psycopg.Connection, given: dict[str, Any]) -> None:
    """It does not walk again over what it has passed, and sorts no more than rows of one position."""
    parameters = {**Selection(**given).parameters, "began": NOW, "position": 40_000, "published_at": NOW, "limit": 100}
    plan = plan_of(large, sql_operating.READ_ARCHIVED, parameters)
    (walk,) = scans(plan, "archive_default")
    assert walk["Node Type"] == "Index Scan"
    assert '"position" >=' in walk["Index Cond"] or 'ROW("position"' in walk["Index Cond"]
    assert "Sort" not in {node["Node Type"] for node in nodes(plan)}


def test_ids_are_looked_up_in_the_archive(large: psycopg.Connection) -> None:
    parameters = {**Selection(ids=[uuid7()]).parameters, "began": NOW, "position": -1, "published_at": NOW, "limit": 100}
    (walk,) = scans(plan_of(large, sql_operating.READ_ARCHIVED, parameters), "archive_default")
    assert "id =" in str(walk.get("Index Cond")) or "id = ANY" in str(walk.get("Recheck Cond"))


def test_a_requeue_looks_only_at_what_is_older_in_the_fifo(large: psycopg.Connection) -> None:
    plan = plan_of(large, sql_operating.BRING_EARLIER, {"positions": [5, 7], "last": 7})
    walks = [node for node in scans(plan, "messages") if "Scan" in node["Node Type"]]
    assert [walk["Index Name"] for walk in walks] == ["messages_pkey"]
    assert '"position" < ' in walks[0]["Index Cond"]
