"""What the pump takes of others: B8 of the server for a message, B10 of everybody while it idles, B11 of memory."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg

from outbox.bench.daemons import daemon
from outbox.bench.drains import BATCH, Accepting, drain, stream
from outbox.bench.harness import check_equal
from outbox.bench.stage import fill, until, waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from outbox.bench.stage import Stage

_COMMITS: Final = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
_STATEMENTS: Final = """
SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query NOT LIKE '%%pg_stat%%'"""
_DEAD: Final = "SELECT coalesce(sum(n_tup_del + n_tup_upd), 0)::bigint FROM pg_stat_user_tables WHERE schemaname = 'outbox'"
_WAL: Final = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"


async def per_message(stage: Stage, _: str) -> Mapping[str, float]:
    """B8: what draining costs the server, in what does not depend on how quick the machine is.

    Without the full images that Postgres writes of a page that changes for the first time after a checkpoint: how many these are is
    decided by the time between checkpoints, and not by the pump.
    """
    rows = 50 * BATCH  # at any scale: what is spent once, and at the end, is little beside it
    async with (
        stage.database(counted=True) as dsn,
        _without_page_images(stage),
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as look,
    ):
        await look.execute("ALTER TABLE outbox.messages SET (autovacuum_enabled = off)")
        await fill(dsn, rows)
        before = await _figures(look)
        await drain(dsn, Accepting(), rows)
        # A session's own figures are with the server when it has ended.
        await until(lambda: _alone(look), within=30, what="the pump's sessions to end")
        after = await _figures(look)
        check_equal(rows - await waiting(dsn), rows, "drained")
    spent = {name: after[name] - value for name, value in before.items()}
    return {
        "WAL bytes a message": spent["wal"] / rows,
        "dead rows a message": spent["dead"] / rows,
        f"statements a batch of {BATCH}": spent["statements"] / (rows / BATCH),
        f"transactions a batch of {BATCH}": spent["transactions"] / (rows / BATCH),
    }


@asynccontextmanager
async def _without_page_images(stage: Stage) -> AsyncIterator[None]:
    """Have no images of whole pages in the WAL meanwhile."""
    async with await psycopg.AsyncConnection.connect(stage.postgres.dsn, autocommit=True) as connection:
        await connection.execute("ALTER SYSTEM SET full_page_writes = off")
        await connection.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            await connection.execute("ALTER SYSTEM RESET full_page_writes")
            await connection.execute("SELECT pg_reload_conf()")


async def _figures(look: psycopg.AsyncConnection[Any]) -> dict[str, int]:
    await look.execute("SELECT pg_stat_clear_snapshot(), pg_stat_force_next_flush()")
    figures = {}
    for name, query in {"statements": _STATEMENTS, "transactions": _COMMITS, "dead": _DEAD, "wal": _WAL}.items():
        row = await (await look.execute(query)).fetchone()
        assert row is not None
        figures[name] = int(row[0])
    return figures


async def _alone(look: psycopg.AsyncConnection[Any]) -> bool:
    query = "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
    return await (await look.execute(query)).fetchone() == (True,)


async def idle(stage: Stage, _: str) -> Mapping[str, float]:
    """B10: what a daemon does that has nothing to do, as a whole: pump, janitor, probes and gauges."""
    seconds = stage.seconds(20)
    async with (
        stage.database(counted=True) as dsn,
        stream(stage),
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as look,
        daemon(stage, dsn, "idle") as pid,
    ):
        await asyncio.sleep(5)  # what is done once, at the start, is no part of it
        before, cpu = await _figures(look), _cpu_seconds(pid)
        await asyncio.sleep(seconds)  # what happens in this time is what is measured
        after = await _figures(look)
        return {
            "queries a second": (after["statements"] - before["statements"]) / seconds,
            "share of a core": (_cpu_seconds(pid) - cpu) / seconds,
        }


async def memory(stage: Stage, side: str) -> Mapping[str, float]:
    """B11: the most memory that a daemon has had after it has pumped as many messages, before many and before few that wait."""
    pumped, few = stage.rows(200_000), stage.rows(10_000)
    async with stream(stage) as (_, stored):

        async def as_many(count: int) -> None:
            async def are_stored() -> bool:
                return await stored() >= count

            await until(are_stored, within=300, what=f"{count} messages to be stored")

        if side == "many":
            dsn = await stage.filled_once(stage.rows(10_000_000))
            before = await waiting(dsn)
            async with daemon(stage, dsn, "memory") as pid:
                await as_many(pumped)
                peak = _peak_megabytes(pid)
            check_equal(await stored(), before - await waiting(dsn), "nats")
            return {"peak": peak}
        async with stage.database() as dsn, daemon(stage, dsn, "memory") as pid:
            for turn in range(1, pumped // few + 1):
                await fill(dsn, few)
                await as_many(turn * few)
            check_equal(await stored(), pumped // few * few, "nats")
            return {"peak": _peak_megabytes(pid)}


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_megabytes(pid: int) -> float:
    said = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert said is not None
    return int(said[1]) / 1024
