"""The processes of a run: a writer, pumps, a consumer, and the servers, each behind its proxy."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg

from migrations.runner import TRACKS, migrate
from outbox.demo.engines import PrivateKafka, PrivateNats
from outbox.embedded import PrivatePostgres, free_port
from tests.engines.command import COMMAND, DSN
from tests.engines.daemons import ask
from tests.engines.deadline import eventually
from tests.faults import application
from tests.faults.brokers import Bridged, InProcess, JetStream, Kafka
from tests.faults.history import MARK, Exit, Sample
from tests.faults.protocols import KafkaProtocol, NatsProtocol, PostgresProtocol
from tests.faults.proxy import Proxy
from tests.faults.writer import KEYS, read_puts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from tests.faults.brokers import Broker
    from tests.faults.history import Put

SINKS: Final = ("inprocess", "jetstream", "kafka")
BRIDGED: Final = "bridged"
"""JetStream, with a bridge between it and the consumer: for what is done to bridges."""

BATCH: Final = 200
CLAIMS: Final = 2
CLAIM_TIMEOUT: Final = 14.0
"""Seconds after which Postgres ends the claim of a pump that says nothing: twice the publish timeout, and that is as short as it may be."""

_COMMON: Final = f"""
[pump]
batch = {BATCH}
claims = {CLAIMS}
publish_timeout = {CLAIM_TIMEOUT / 2}
drain_timeout = 10
[http]
listen = "127.0.0.1:{{port}}"
stall_after = 5
measure_every = 0.2
[telemetry]
log_format = "json"
"""


class Member:
    """A process of ours, which may be killed and started again: what it says goes on in one file."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str], port: int = 0) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.port = port
        self.starts = 0
        self.command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 if it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else 0

    def is_stopped(self) -> bool:
        """Say whether a signal has it stand still."""
        with suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def start(self, command: Sequence[str] | None = None, **environment: str) -> None:
        """Start it, once with another command, or with more in its environment."""
        self.starts += 1
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command or self.command, env={**self._environment, **environment}, stdout=log, stderr=log, start_new_session=True
            )

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        with suppress(ProcessLookupError):
            if self.pid:
                os.kill(self.pid, number)

    async def ended(self, within: float) -> int | None:
        """Wait for its end, and return its exit code; None if it does not end in time."""
        assert self._process is not None
        try:
            return await asyncio.to_thread(self._process.wait, within)
        except subprocess.TimeoutExpired:
            return None

    async def kill(self) -> None:
        """Kill it, frozen or not, and wait for its end."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)

    async def stop(self, within: float) -> Exit:
        """Ask it to stop, and tell how it did."""
        began = time.monotonic()
        self.signal(signal.SIGTERM)
        code = await self.ended(within)
        if code is None:
            await self.kill()
        return Exit(self.name, code, time.monotonic() - began)

    async def ask(self, path: str) -> tuple[int, str]:
        """Ask its HTTP server: the status, 0 if there is no answer, and the text."""
        return await asyncio.to_thread(ask, self.port, path)

    def sample(self) -> tuple[int, int]:
        """Return the bytes of memory and the number of files that it uses; zeros if it does not run."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path(f"/proc/{self.pid}/fd").iterdir()))
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError, IndexError):  # a process that is about to be gone has nothing
            return 0, 0


class Fleet:
    """Everything that a run has. Made by `fleet`."""

    def __init__(
        self,
        folder: Path,
        postgres: PrivatePostgres,
        ways: tuple[Proxy, Proxy],
        broker: Broker,
        *,
        pumps: int,
        rate: float,
        seed: int,
        command: Sequence[str],
    ):
        self.folder = folder
        self._command = command
        self.postgres = postgres
        self.postgres_way, self.writers_way = ways
        self.broker = broker
        self.diary = folder / "diary"
        dsn = f"postgresql://postgres:{MARK}@127.0.0.1:{{}}/postgres"
        ours = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOXD_")}
        environment = {**ours, DSN: dsn.format(self.postgres_way.port), application.DELIVERIES: str(folder / "deliveries")}
        self.pumps = [self._daemon(f"pump-{number}", broker.pump(), environment) for number in range(1, pumps + 1)]
        self.others = {name: self._daemon(name, configuration, environment) for name, configuration in broker.others().items()}
        writer = (sys.executable, "-m", "tests.faults.writer", dsn.format(self.writers_way.port), str(self.diary), str(seed), str(rate))
        self.writer = Member("writer", writer, folder, environment)
        self.waited_since: float | None = None
        """When it was last begun to wait for daemons to be ready."""

    @property
    def ways(self) -> list[Proxy]:
        """All that anything goes through."""
        return [way for way in (self.postgres_way, self.writers_way, self.broker.way) if way is not None]

    @property
    def server_logs(self) -> dict[str, Path]:
        """The logs of Postgres and of the broker's server."""
        server = self.broker.server
        return {"Postgres": self.postgres.log} | ({server.name: server.folder / "log"} if server is not None else {})

    @property
    def daemons(self) -> list[Member]:
        """The pumps, and the consumer and the bridge if there are any apart."""
        return [*self.pumps, *self.others.values()]

    @property
    def consumers(self) -> list[Member]:
        """The daemons in which the application's handler runs."""
        return list(self.others.values()) or self.pumps

    @property
    def in_flight(self) -> int:
        """Messages that may be under way at once."""
        return BATCH * CLAIMS * len(self.pumps)

    def puts(self) -> list[Put]:
        """What the writer did."""
        return list(read_puts(self.diary)) if self.diary.exists() else []

    @asynccontextmanager
    async def look(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A connection straight to Postgres. Raises `psycopg.OperationalError` while it is away."""
        async with await psycopg.AsyncConnection.connect(
            self.postgres.dsn, autocommit=True, connect_timeout=2, application_name="look"
        ) as it:
            yield it

    async def effects(self) -> int:
        """How many effects there are."""
        async with self.look() as connection:
            cursor = await connection.execute("SELECT count(*) FROM effects")
            ((number,),) = await cursor.fetchall()
            return int(number)

    async def waiting(self) -> int:
        """How many messages are in the outbox and not dead."""
        async with self.look() as connection:
            tables = ("messages", "held", "deferred")
            query = " + ".join(f"(SELECT count(*) FROM outbox.{table})" for table in tables)
            cursor = await connection.execute(f"SELECT {query}".encode())  # of our own names
            ((number,),) = await cursor.fetchall()
            return int(number)

    async def samples(self, connection: psycopg.AsyncConnection[Any]) -> list[Sample]:
        """What each daemon uses now."""
        cursor = await connection.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'outboxd%'")
        ((connections,),) = await cursor.fetchall()
        found = []
        for daemon in self.daemons:
            memory, files = daemon.sample()
            status, text = await daemon.ask("/metrics")
            if status != 200 or not memory:
                continue
            found.append(Sample(time.time(), daemon.name, memory, files, int(metric(text, "outbox_tasks") or 0), 0))
        return [*found, Sample(time.time(), "all", 0, 0, 0, connections)]

    async def ready(self, *members: Member, within: float = 40.0) -> None:
        """Wait until daemons say that they are ready: those given, or all."""
        self.waited_since = time.time()
        for daemon in members or self.daemons:

            async def is_ready(daemon: Member = daemon) -> bool:
                return (await daemon.ask("/readyz"))[0] == 200

            await eventually(is_ready, within=within, what=f"{daemon.name} to be ready: {daemon.log.read_text()[-1500:]}")

    def _daemon(self, name: str, configuration: str, environment: Mapping[str, str]) -> Member:
        port = free_port()
        file = self.folder / f"{name}.toml"
        file.write_text(_COMMON.format(port=port) + configuration)
        return Member(name, [*self._command, "run", "-c", str(file)], self.folder, environment, port)


@asynccontextmanager
async def fleet(
    sink: str,
    folder: Path,
    *,
    pumps: int = 1,
    rate: float = 40.0,
    seed: int = 0,
    small_disks: bool = False,
    command: Sequence[str] = COMMAND,
) -> AsyncIterator[Fleet]:
    """Start the servers and their proxies, and yield a fleet whose processes are yet to be started; end whatever runs.

    Args:
        sink: one of `SINKS`, or `BRIDGED`.
        folder: for configurations, logs and diaries.
        pumps: daemons with a pump.
        rate: transactions a second of the writer, each with one to eight messages.
        seed: of what the writer writes.
        small_disks: put the data of Postgres and of NATS on disks that can be filled, which takes root.
        command: ``outboxd``.
    """
    async with AsyncExitStack() as stack:
        servers = stack.enter_context(ExitStack())
        settings = {"max_wal_size": "64MB", "min_wal_size": "32MB"} if small_disks else {}
        server = PrivatePostgres(settings={"max_connections": "60", **settings})
        if small_disks:
            servers.enter_context(small_disk(server.data, 400))
        await asyncio.to_thread(servers.enter_context, server)
        with psycopg.connect(server.dsn) as connection:
            for track in TRACKS:
                migrate(connection, track, schema=track)
            connection.execute(application.TABLES)
            connection.execute("INSERT INTO ledger (key) SELECT key::text FROM generate_series(0, %s) AS key", (KEYS - 1,))
        ways = [await stack.enter_async_context(Proxy(("127.0.0.1", _port(server.dsn)), PostgresProtocol())) for _ in range(2)]
        broker = await _make_broker(sink, folder, servers, stack, small_disks=small_disks)
        one = Fleet(folder, server, (ways[0], ways[1]), broker, pumps=pumps, rate=rate, seed=seed, command=command)
        try:
            yield one
        finally:
            for member in (one.writer, *one.daemons):
                await member.kill()


async def _make_broker(sink: str, folder: Path, servers: ExitStack, stack: AsyncExitStack, *, small_disks: bool) -> Broker:
    match sink:
        case "inprocess":
            return InProcess(folder / "deliveries")
        case "jetstream" | "bridged":
            nats = PrivateNats()
            if small_disks:
                servers.enter_context(small_disk(nats.folder / "data", 300))
            await asyncio.to_thread(servers.enter_context, nats)
            kind = Bridged if sink == BRIDGED else JetStream
            stream = kind(nats, await stack.enter_async_context(Proxy(("127.0.0.1", nats.port), NatsProtocol())))
            await stream.make()
            return stream
        case "kafka":
            # The way first, since the server is told where its clients find it.
            port = free_port()
            way = await stack.enter_async_context(Proxy(("127.0.0.1", port), KafkaProtocol()))
            kafka = await asyncio.to_thread(lambda: servers.enter_context(PrivateKafka(port=port, advertised=way.port)))
            topic = Kafka(kafka, way)
            await topic.make()
            return topic
    msg = f"sink: {sink!r} is not one of {', '.join(SINKS)}"
    raise ValueError(msg)


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """Put a folder, and what is in it, on a disk of its own, in memory. Raises `CalledProcessError` without the right to mount."""
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = folder.stat()
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        subprocess.run(["cp", "-a", f"{folder}/.", aside], check=True)
        options = f"size={mebibytes}m,mode=0700,uid={owner.st_uid},gid={owner.st_gid}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)
        subprocess.run(["cp", "-a", f"{aside}/.", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def metric(text: str, name: str) -> float | None:
    """Return the sum of a metric over its labels; None if it is not there."""
    values = [float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)]
    return sum(values) if values else None


def _port(dsn: str) -> int:
    return int(psycopg.conninfo.conninfo_to_dict(dsn)["port"] or 0)
