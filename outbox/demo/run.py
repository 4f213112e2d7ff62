"""Start everything, restart what dies, and end with the comparison."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bridges.errors import ConfigurationError
from migrations.runner import TRACKS, migrate
from outbox.demo import bank
from outbox.demo.brokers import make_demo_broker
from outbox.demo.proof import compare, print_proof
from outbox.embedded import PrivatePostgres, find_binaries, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE: Final = 120.0
"""Seconds without any progress after which the demo gives up and says what is missing."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    transactions: int
    clients: int
    via: str
    dsn: str | None
    servers: str | None
    json: bool


def run_demo(options: Options) -> int:
    """Run the demo, print its proof and return the exit code: 0 if nothing was lost, out of order or unequal."""
    console = Console(stderr=options.json)
    began = time.monotonic()
    with ExitStack() as stack:
        dsn, postgres = _postgres(options, stack)
        broker = make_demo_broker(options.via, options.servers, stack)
        engines = [postgres, *([broker.version] if broker.version else [])]
        console.print(f"engines: {', '.join(engines)}")
        _set_up_bank(dsn)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outboxd-demo-")))
        daemons = [stack.enter_context(_Daemon(name, dsn, text, folder, console)) for name, text in broker.configurations().items()]
        bench = [stack.enter_context(_pgbench(dsn, count, clients)) for count, clients in _shares(options)]
        _watch(dsn, options, bench, daemons, console)
        exit_codes = [daemon.stop() for daemon in daemons]
        asyncio.run(broker.read_log(dsn, _committed(dsn)))
        proof = compare(dsn, seconds=time.monotonic() - began, engines=engines, has_log=broker.has_log)
        print_proof(proof, exit_codes, console)
    if options.json:
        print(json.dumps(asdict(proof)))  # noqa: T201 - what --json is for
    return 0 if proof.holds and not any(exit_codes) else 1


def _postgres(options: Options, stack: ExitStack) -> tuple[str, str]:
    dsn = options.dsn or stack.enter_context(PrivatePostgres(settings={"max_connections": "100"})).dsn
    with psycopg.connect(dsn) as connection:
        if connection.execute("SELECT to_regnamespace('demo') IS NOT NULL OR to_regclass('pgbench_history') IS NOT NULL").fetchone() == (
            True,
        ):
            msg = "dsn: the database has a demo or a pgbench in it already: give an empty one"
            raise ConfigurationError(msg)
        return dsn, f"PostgreSQL {connection.info.parameter_status('server_version')}"


def _set_up_bank(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        for track in TRACKS:
            migrate(connection, track, schema=track)
    done = subprocess.run([find_binaries() / "pgbench", "-i", "-q", "-s", "1", dsn], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        msg = f"pgbench -i failed: {done.stderr.strip()}"
        raise ConfigurationError(msg)
    with psycopg.connect(dsn) as connection:
        connection.execute(bank.SET_UP)


def _shares(options: Options) -> Iterator[tuple[int, int]]:
    """Split the transactions over runs of pgbench, which wants the same number for each of its clients."""
    each, rest = divmod(options.transactions, options.clients)
    if each:
        yield each, options.clients
    if rest:
        yield rest, 1


class _pgbench:  # noqa: N801 - it is that program
    """pgbench's TPC-B, running."""

    def __init__(self, dsn: str, transactions: int, clients: int) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed on leaving
        self._process = subprocess.Popen(
            [find_binaries() / "pgbench", "-n", "-c", str(clients), "-t", str(transactions), dsn],
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()

    @property
    def running(self) -> bool:
        """Whether it is still at it. Raises `RuntimeError` if it failed."""
        if self._process.poll():
            self._errors.seek(0)
            msg = f"pgbench failed: {self._errors.read().decode(errors='replace')[-1000:]}"
            raise RuntimeError(msg)
        return self._process.returncode is None


class _Daemon:
    """An ``outboxd run`` that is started again when it dies."""

    def __init__(self, name: str, dsn: str, configuration: str, folder: Path, console: Console) -> None:
        self._name = name
        self._console = console
        self._file = folder / f"{name}.toml"
        self._file.write_text(configuration + f'\n[http]\nlisten = "127.0.0.1:{free_port()}"\n')
        self._log = (folder / f"{name}.log").open("ab")
        self._environment = {**os.environ, "OUTBOXD_POSTGRES__DSN": dsn}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.keep_running()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def keep_running(self) -> None:
        """Start it, or start it again."""
        if self._process is not None and self._process.poll() is None:
            return
        died = "" if self._process is None else f" (the last one ended with {self._process.returncode})"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "outbox.daemon", "run", "-c", str(self._file)],
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self._console.print(f"{self._name}: outboxd run, pid {self._process.pid}{died}")

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        assert self._process is not None
        if self._process.poll() is not None:
            return 0  # somebody killed it after all was done: the proof is in the database
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)


def _watch(dsn: str, options: Options, bench: list[_pgbench], daemons: list[_Daemon], console: Console) -> None:
    """Show the progress until everything that was committed had its effect, or nothing moves any more."""
    last: tuple[Any, ...] = ()
    moved_at = said_at = time.monotonic()
    with (
        psycopg.connect(dsn, autocommit=True) as connection,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        ) as bars,
    ):
        committed_bar = bars.add_task("committed", total=options.transactions)
        effects_bar = bars.add_task("effects  ", total=options.transactions)
        while True:
            for daemon in daemons:
                daemon.keep_running()
            running = [run.running for run in bench]
            row = connection.execute(bank.PROGRESS).fetchone()
            assert row is not None
            committed, effects, _, waiting = row
            bars.update(committed_bar, completed=committed)
            bars.update(effects_bar, completed=effects)
            now = time.monotonic()
            if row != last:
                last, moved_at = row, now
            if not console.is_terminal and now - said_at > 2:
                said_at = now
                console.print(f"committed {committed}, effects {effects}, waiting {waiting}")
            if (not any(running) and waiting == 0 and effects >= committed) or now - moved_at > _PATIENCE:
                return
            time.sleep(0.1)


def _committed(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM pgbench_history").fetchone()
        assert row is not None
        return int(row[0])
