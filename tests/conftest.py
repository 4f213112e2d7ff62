"""Fixtures for everybody: engines, and a place of one's own on each."""

from __future__ import annotations

import secrets
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from migrations.runner import TRACKS, migrate
from tests.engines.choice import Choice, choose_kafka, choose_nats, choose_postgres
from tests.engines.command import running_here

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.engines.command import Run

_CHOICES: dict[str, Choice] = {}


def _choice(engine: str) -> Choice:
    choose = {"postgres": choose_postgres, "nats": choose_nats, "kafka": choose_kafka}[engine]
    if engine not in _CHOICES:
        _CHOICES[engine] = choose()
    return _CHOICES[engine]


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Name the engines that were chosen."""
    if config.option.collectonly:
        return []
    return [f"{engine}: {_choice(engine).description}" for engine in ("postgres", "nats", "kafka")]


@pytest.fixture(scope="session")
def engines() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def postgres(engines: ExitStack) -> str:
    """The connection string of a server's maintenance database."""
    return _choice("postgres").start(engines)


@pytest.fixture(scope="session")
def nats_url(engines: ExitStack) -> str:
    """A nats-server with JetStream."""
    return _choice("nats").start(engines)


@pytest.fixture(scope="session")
def kafka_servers(engines: ExitStack) -> str:
    """A Kafka broker, as host:port."""
    return _choice("kafka").start(engines)


@pytest.fixture(scope="session")
def migrated(postgres: str) -> Iterator[str]:
    """The name of a database with both tracks in it, to make others from."""
    name = f"migrated_{secrets.token_hex(4)}"
    with psycopg.connect(postgres, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE template0").format(sql.Identifier(name)))
        with psycopg.connect(with_database(postgres, name)) as connection:
            for track in TRACKS:
                migrate(connection, track, schema=track)
        yield name
        server.execute(sql.SQL("DROP DATABASE {} (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database(postgres: str, migrated: str) -> Iterator[str]:
    """The connection string of a fresh database with both tracks in it."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(migrated)))
        yield with_database(postgres, name)
        server.execute(sql.SQL("DROP DATABASE {} (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def empty_database(postgres: str) -> Iterator[str]:
    """The connection string of a fresh database with nothing in it."""
    name = f"empty_{secrets.token_hex(6)}"
    with psycopg.connect(postgres, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE template0").format(sql.Identifier(name)))
        yield with_database(postgres, name)
        server.execute(sql.SQL("DROP DATABASE {} (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
async def connection(database: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """An autocommit connection to the fresh database, to look at it with."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def outboxd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, in this process, with no database in the environment."""
    return running_here(monkeypatch, capsys)


@dataclass(frozen=True)
class Stream:
    """A JetStream stream of one's own: it takes the subjects below ``prefix``."""

    url: str
    name: str
    prefix: str

    @property
    def subject(self) -> str:
        """The template that maps a topic into the stream."""
        return f"{self.prefix}.{{topic}}"


@pytest.fixture
async def stream(nats_url: str) -> AsyncIterator[Stream]:
    async with _stream(nats_url) as stream:
        yield stream


@pytest.fixture
async def atomic_stream(nats_url: str) -> AsyncIterator[Stream]:
    """One that takes atomic batches."""
    async with _stream(nats_url, allow_atomic=True) as stream:
        yield stream


@asynccontextmanager
async def _stream(url: str, **configuration: Any) -> AsyncIterator[Stream]:
    import nats
    from nats.js.api import StreamConfig

    name = f"test-{secrets.token_hex(6)}"
    client = await nats.connect(url)
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"], **configuration))
    yield Stream(url, name, name)
    await client.jetstream().delete_stream(name)
    await client.close()


@pytest.fixture
async def kafka_topic(kafka_servers: str) -> str:
    """A Kafka topic of one's own, with four partitions."""
    return await make_topic(kafka_servers, f"test-{secrets.token_hex(6)}")


async def make_topic(servers: str, name: str, *, partitions: int = 4, **configuration: str) -> str:
    """Make a topic on a Kafka broker and return its name."""
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configuration)])
    finally:
        await admin.close()
    return name


def with_database(dsn: str, name: str) -> str:
    """Return the connection string with another database in it."""
    return make_conninfo(dsn, dbname=name)
