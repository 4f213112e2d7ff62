"""Looking at partitions, and making those of days that a janitor would not make any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from migrations.partitions import Upkeep, database_now
from migrations.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date

    import psycopg

    from migrations.schedule import Daily


async def today(connection: psycopg.AsyncConnection[Any]) -> date:
    return (await database_now(connection)).date()


async def make(connection: psycopg.AsyncConnection[Any], daily: Daily, days: Iterable[date], *, schema: str) -> None:
    wanted = set(days)
    tidied = await Upkeep(connection, daily, schema=schema).keep(Schedule(wanted=wanted))
    assert tidied.made == [daily.name(day) for day in sorted(wanted)], tidied


async def partitions(connection: psycopg.AsyncConnection[Any], table: str) -> set[str]:
    """Return the names of a table's partitions, without the default one."""
    cursor = await connection.execute(
        "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = %s::regclass", (table,)
    )
    return {row[0] for row in await cursor.fetchall() if not row[0].endswith("_default")}


async def rows(connection: psycopg.AsyncConnection[Any], table: str) -> dict[str, int]:
    """Return how many rows each partition has that has any."""
    cursor = await connection.execute(
        f"SELECT relname, count(*) FROM {table} JOIN pg_class ON pg_class.oid = {table}.tableoid GROUP BY 1".encode()
    )
    return dict(await cursor.fetchall())
