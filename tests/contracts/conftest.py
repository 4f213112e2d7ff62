"""Engines to be killed and frozen, one of each for all the contracts; and a place of one's own on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from migrations.runner import TRACKS, migrate
from outbox.demo.engines import PrivateKafka, PrivateNats
from outbox.embedded import PrivatePostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

# The contracts are in modules of their own, whose assertions should say as much as those of a test module.
pytest.register_assert_rewrite("tests.contracts.claims", "tests.contracts.messages", "tests.contracts.sink", "tests.contracts.source")


@pytest.fixture(scope="package")
def private_nats() -> Iterator[PrivateNats]:
    with PrivateNats() as engine:
        yield engine


@pytest.fixture(scope="package")
def private_kafka() -> Iterator[PrivateKafka]:
    engine = PrivateKafka()
    with (engine.folder / "kafka.properties").open("a") as properties:
        # A broker that was killed may come back when the controller has given up the one it was before: after nine seconds, by default.
        properties.write("broker.session.timeout.ms=4000\nbroker.heartbeat.interval.ms=500\n")
    with engine:
        yield engine


@pytest.fixture(scope="package")
def private_postgres() -> Iterator[PrivatePostgres]:
    with PrivatePostgres() as engine:
        yield engine


@pytest.fixture
def private_schemas(private_postgres: PrivatePostgres) -> Iterator[str]:
    """The connection string of the private Postgres, with both tracks in it, empty."""
    with psycopg.connect(private_postgres.dsn) as connection:
        for track in TRACKS:
            migrate(connection, track, schema=track)
    yield private_postgres.dsn
    with psycopg.connect(private_postgres.dsn, autocommit=True) as connection:
        for track in TRACKS:
            connection.execute(f'DROP SCHEMA "{track}" CASCADE'.encode())
