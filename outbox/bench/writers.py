"""What the doorbell costs those who write: B6. Nobody sleeps, as under load: the trigger looks for a sleeper and finds none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psycopg

from outbox.bench.harness import check_equal
from outbox.bench.pgbench import pgbench
from outbox.bench.stage import PAYLOAD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from outbox.bench.stage import Stage

_INSERT: Final = "INSERT INTO {table} (topic, key, payload) VALUES ('bench.writers', 'k', decode(repeat('78', {size}), 'hex'));\n"
# The same columns, constraints, defaults and indexes; only the trigger is missing.
BARE: Final = "CREATE TABLE public.bare (LIKE outbox.messages INCLUDING ALL)"


async def doorbell(stage: Stage, side: str, *, clients: int) -> Mapping[str, float]:
    """B6: transactions of one message a second into the outbox, and into a table without its trigger."""
    table = "outbox.messages" if side == "doorbell" else "public.bare"
    async with stage.database() as dsn, await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(BARE)
        written = await pgbench(stage, dsn, _INSERT.format(table=table, size=PAYLOAD), clients=clients, seconds=stage.seconds(2))
        row = await (await connection.execute(f"SELECT count(*) FROM {table}")).fetchone()
        assert row is not None
        check_equal(row[0], written.transactions, table)
    return {"rate": written.tps}
