"""Postgres and the broker: killed, frozen, full, read-only, or with sessions ended."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import psycopg

from tests.contracts.outages import family
from tests.faults.nemeses import SERVERS, backlogged, last, nemesis, unready

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable
    from pathlib import Path

    from tests.faults.fleet import Fleet
    from tests.faults.history import History


@nemesis("kill broker", sinks=SERVERS, hits_consumer=True)
async def kill_broker(ours: Fleet, chance: random.Random, history: History) -> None:
    server = ours.broker.server
    assert server is not None
    await asyncio.to_thread(server.stop, signal.SIGKILL)
    try:
        await unready(ours, history)
        await backlogged(ours, history)
        await last(chance.uniform(0, 2))
    finally:
        await asyncio.to_thread(server.start)
    await ours.ready()


async def freeze_all(pids: Iterable[int], seconds: float) -> None:
    """Have processes stand still."""
    frozen = list(pids)
    try:
        for pid in frozen:
            with suppress(ProcessLookupError):  # a session may end meanwhile
                os.kill(pid, signal.SIGSTOP)
        await last(seconds)
    finally:
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _register_frozen(seconds: int) -> None:
    @nemesis(f"broker frozen for {seconds} s", sinks=SERVERS, longest=seconds + 60, hits_consumer=True)
    async def _(ours: Fleet, chance: random.Random, history: History) -> None:
        assert ours.broker.server is not None
        await freeze_all([ours.broker.server.pid], seconds)
        await ours.ready()

    @nemesis(f"Postgres frozen for {seconds} s", longest=seconds + 60)
    async def _(ours: Fleet, chance: random.Random, history: History) -> None:
        await freeze_all(family(ours.postgres.pid), seconds)
        await ours.ready()


for _seconds in (5, 60):
    _register_frozen(_seconds)


async def crash_postgres(ours: Fleet, chance: random.Random, history: History, how: signal.Signals) -> None:
    """End it as it must not end, leave it away until every pump says so and for a moment more, and start it again on its data."""
    await asyncio.to_thread(ours.postgres.stop, how)
    try:
        await unready(ours, history, *ours.pumps)
        await last(chance.uniform(0, 2))
    finally:
        await asyncio.to_thread(ours.postgres.start)
    await ours.ready()


@nemesis("Postgres stopped in immediate mode")
async def immediate(ours: Fleet, chance: random.Random, history: History) -> None:
    await crash_postgres(ours, chance, history, signal.SIGQUIT)


@nemesis("kill Postgres")
async def kill_postgres(ours: Fleet, chance: random.Random, history: History) -> None:
    await crash_postgres(ours, chance, history, signal.SIGKILL)


@nemesis("sessions terminated", times=10)
async def terminate(ours: Fleet, chance: random.Random, _: History) -> None:
    """Random sessions of the pumps and consumers, a few times."""
    async with ours.look() as connection:
        for _turn in range(10):
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'outboxd%%' AND random() < %s",
                (chance.uniform(0.2, 0.9),),
            )
            await last(chance.uniform(0.05, 0.4))
    await ours.ready()


@nemesis("connections exhausted")
async def exhaust(ours: Fleet, chance: random.Random, _: History) -> None:
    """Every connection there is, down to those kept for superusers, and then sessions are ended, so that new ones are wanted."""
    async with AsyncExitStack() as stack:
        taken = []
        with suppress(psycopg.OperationalError):
            while True:
                taken.append(await stack.enter_async_context(ours.look()))
        await taken[-1].execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'outboxd%'")
        with suppress(psycopg.OperationalError):
            while True:
                await stack.enter_async_context(ours.look())
        await last(chance.uniform(2, 4))
    await ours.ready()


@nemesis("read-only flip")
async def read_only(ours: Fleet, chance: random.Random, _: History) -> None:
    """As when the primary becomes a standby: what is connected finds it read-only, and new connections too."""
    for setting in ("on", "off"):
        async with ours.look() as connection:
            await connection.execute("SET default_transaction_read_only = off")
            await connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {setting}")
            await connection.execute("SELECT pg_reload_conf()")
        await last(chance.uniform(2, 4) if setting == "on" else 0)
    await ours.ready()


async def fill(ours: Fleet, folder: Path, seconds: float) -> None:
    """Leave no room on a disk, and then make room again."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        await last(seconds)
    finally:
        ballast.unlink(missing_ok=True)


@nemesis("Postgres's disk full", small_disks=True, longest=90)
async def postgres_disk_full(ours: Fleet, chance: random.Random, _: History) -> None:
    """It may panic and end: then it is started again when there is room, as its supervisor would."""
    await fill(ours, ours.postgres.data, chance.uniform(3, 6))
    if not ours.postgres.is_running():
        await asyncio.to_thread(ours.postgres.stop, signal.SIGQUIT)
        await asyncio.to_thread(ours.postgres.start)
    await ours.ready()


@nemesis("NATS's disk full", sinks=("jetstream",), small_disks=True, longest=90, hits_consumer=True)
async def nats_disk_full(ours: Fleet, chance: random.Random, _: History) -> None:
    """A nats-server that has found no room does not look again: it is started again when there is."""
    server = ours.broker.server
    assert server is not None
    await fill(ours, server.folder / "data", chance.uniform(3, 6))
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)
    await ours.ready()
