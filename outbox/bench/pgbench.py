"""pgbench, Postgres's own load generator, as the writer: it takes less of the machine than a client in Python would."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from outbox.bench.stage import Stage


class Written(NamedTuple):
    """What pgbench says of a run."""

    transactions: int
    tps: float


async def pgbench(stage: Stage, dsn: str, script: str, *, clients: int, seconds: float, rate: float | None = None) -> Written:
    """Run a script over and over. Raises `RuntimeError` if pgbench fails.

    Args:
        stage: whose binaries and folder are used.
        dsn: the database.
        script: SQL, one statement a line.
        clients: connections.
        seconds: how long.
        rate: transactions a second of all clients together, at random times; as fast as it goes if None.
    """
    file = stage.folder / "script.sql"
    file.write_text(script)
    command = ["-n", "-M", "prepared", "-f", str(file), "-c", str(clients), "-j", str(min(clients, 2)), "-T", f"{seconds:.0f}"]
    process = await asyncio.create_subprocess_exec(
        str(stage.postgres.binary("pgbench")),
        *command,
        *(["-R", f"{rate:g}"] if rate else []),
        dsn,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await process.communicate())[0].decode(errors="replace")
    transactions = re.search(r"transactions actually processed: (\d+)", said)
    tps = re.search(r"^tps = ([0-9.]+)", said, re.MULTILINE)
    if process.returncode or transactions is None or tps is None:
        raise RuntimeError(f"pgbench failed: {said[-1000:]}")
    return Written(int(transactions[1]), float(tps[1]))
