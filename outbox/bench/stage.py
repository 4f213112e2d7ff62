"""The engines of a benchmark: private ones, started when the first comparison needs them, and a fresh database for each measurement."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.conninfo import make_conninfo

from migrations.runner import TRACKS, migrate
from outbox.demo.engines import PrivateKafka, PrivateNats
from outbox.embedded import PrivatePostgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

# As large as a server for which anybody would measure; everything else is as it comes, and fsync is on.
# Statements are counted where a benchmark asks for it, and nowhere else.
_SETTINGS: Final = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "none",
}
_STEAL: Final = 7
_TEMPLATE: Final = "bench_template"

PAYLOAD: Final = 300
"""Bytes of a message."""

FILL: Final = f"""
INSERT INTO outbox.messages (topic, key, payload)
SELECT 'bench.rows', {{key}}, convert_to(rpad(i::text, {PAYLOAD}), 'UTF8') FROM generate_series(1, %s) AS i"""


class Stage:
    """The engines. Each is a property, started at its first use; `close` stops them all.

    Args:
        scale: what all counts and durations are multiplied by; 1 for a measurement that counts.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self._scale = scale
        self._stack = ExitStack()
        self._databases = count(1)
        self._began = self.ticks()
        self._shared: dict[str, str] = {}

    def close(self) -> None:
        """Stop what was started."""
        self._stack.close()

    def rows(self, full: int, *, least: int = 100) -> int:
        """Return a count of messages, scaled."""
        return max(least, int(full * self._scale))

    def seconds(self, full: float, *, least: float = 2.0) -> float:
        """Return a duration, scaled."""
        return max(least, full * self._scale)

    @cached_property
    def folder(self) -> Path:
        """A folder for what has to be a file."""
        return Path(self._stack.enter_context(TemporaryDirectory(prefix="outboxd-bench-")))

    @cached_property
    def postgres(self) -> PrivatePostgres:
        """A durable Postgres, with a template database in which the schemas are."""
        server = self._stack.enter_context(PrivatePostgres(settings=_SETTINGS))
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {_TEMPLATE}")
        with psycopg.connect(make_conninfo(server.dsn, dbname=_TEMPLATE)) as connection:
            for track in TRACKS:
                migrate(connection, track, schema=track)
            connection.execute("CREATE EXTENSION pg_stat_statements")
        return server

    @cached_property
    def nats(self) -> PrivateNats:
        """A nats-server with JetStream on files."""
        return self._stack.enter_context(PrivateNats())

    @cached_property
    def kafka(self) -> PrivateKafka:
        """One node of Kafka."""
        return self._stack.enter_context(PrivateKafka())

    def engine(self, name: str) -> PrivatePostgres | PrivateNats | PrivateKafka:
        """Return an engine by its name. Raises `ConfigurationError` if it is not to be had."""
        match name:
            case "postgres":
                return self.postgres
            case "nats":
                return self.nats
            case _:
                return self.kafka

    @asynccontextmanager
    async def database(self, *, counted: bool = False) -> AsyncIterator[str]:
        """Make a database with both schemas and nothing in it, its statements ``counted`` or not; yield its dsn, and drop it."""
        name = f"bench_{next(self._databases)}"
        async with await psycopg.AsyncConnection.connect(self.postgres.dsn, autocommit=True) as connection:
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
            try:
                if counted:
                    await connection.execute(f"ALTER DATABASE {name} SET pg_stat_statements.track = 'all'")
                yield make_conninfo(self.postgres.dsn, dbname=name)
            finally:
                await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def filled_once(self, rows: int) -> str:
        """Return the dsn of a database that was filled with so many rows, and that is used again: it takes minutes to fill."""
        if (name := f"bench_with_{rows}") not in self._shared:
            async with await psycopg.AsyncConnection.connect(self.postgres.dsn, autocommit=True) as connection:
                await connection.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
            self._shared[name] = make_conninfo(self.postgres.dsn, dbname=name)
            await fill(self._shared[name], rows)
        return self._shared[name]

    def about(self) -> dict[str, str]:
        """Return what stands beside every number: the machine, its disk, and the engines that were started."""
        engines = [engine.version for name in ("nats", "kafka") if (engine := self.__dict__.get(name))]
        with psycopg.connect(self.postgres.dsn) as connection:
            postgres = connection.info.parameter_status("server_version")
        return {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "engines": ", ".join([f"PostgreSQL {postgres}", *engines]),
            "clients": ", ".join(_clients()),
            "durability": "Postgres with fsync, Kafka with acks=all on one node, JetStream on files without a sync for each message",
            "fsync": f"{1000 * fsync_seconds(self.folder):.2f} ms, the median of writes of 8 KiB",
            "payload": f"{PAYLOAD} bytes",
            "taken by the machine's neighbours": f"{self.taken_since(self._began):.0%} of the time",
        }

    def ticks(self) -> list[int]:
        """Return the kernel's account of the processors' time: user, nice, system, idle, iowait, irq, softirq, steal (proc_stat(5))."""
        return [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]

    def taken_since(self, began: list[int]) -> float:
        """Return which part of the processors' time the host has given to others since these `ticks`: speed was lower by that, at least."""
        spent = [now - then for now, then in zip(self.ticks(), began, strict=True)]
        return spent[_STEAL] / max(1, sum(spent))


async def fill(dsn: str, rows: int, *, key: str = "NULL") -> None:
    """Put rows into the outbox, with an SQL expression of ``i`` and ``random()`` for their keys, and have the server do its chores."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(FILL.format(key=key), (rows,))
        await connection.execute("VACUUM ANALYZE outbox.messages")
        await connection.execute("CHECKPOINT")


async def waiting(dsn: str) -> int:
    """Return how many rows are in the outbox."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        row = await (await connection.execute("SELECT count(*) FROM outbox.messages")).fetchone()
        assert row is not None
        return int(row[0])


def fsync_seconds(folder: Path, turns: int = 50) -> float:
    """Return how long the disk below a folder takes to make 8 KiB durable, the median."""
    took = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(turns):
            file.write(bytes(8192))
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    (folder / "fsync").unlink()
    return sorted(took)[turns // 2]


def _clients() -> Iterator[str]:
    for name in ("psycopg", "nats-py", "aiokafka", "faststream-outbox"):
        with suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"


async def until(condition: Callable[[], Awaitable[bool]], *, within: float, what: str) -> None:
    """Look every 20 ms until an awaited condition holds. Raises `TimeoutError`, which says what was waited for."""
    deadline = time.monotonic() + within
    while not await condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within:g} s")
        await asyncio.sleep(0.02)  # servers and other processes tell nobody here when they are so far
