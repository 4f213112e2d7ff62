"""Daily partitions: made ahead, dropped when they are over, and never in anybody's way for long.

A table is partitioned by ranges of a column, a day each, with a default partition for all else: a day without a table loses nothing and
stops nobody. So nothing here is urgent. Each step is a transaction of its own with a short ``lock_timeout``; what cannot have its lock
is left for the next turn. Every step can be repeated, and an advisory lock keeps it to one worker at a time: in the transaction and not
in the session, so that a transaction pooler in between does no harm. Of two workers at least one goes on, and finds what the other did.

    await Upkeep(connection, ARCHIVE, schema="outbox").keep(Schedule(wanted=days_ahead, over=today))
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg
from psycopg import sql

from migrations.names import check_schema_name
from migrations.tidied import Tidied

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from migrations.schedule import Daily, Schedule

_SWEPT_AT_ONCE: Final = 10_000
_BATCHES: Final = 50

# A lock or a time that was not to be had, or rows that came into the default partition in between: gone when it is tried again.
_LATER = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.CheckViolation,
)


async def database_now(connection: psycopg.AsyncConnection[Any]) -> datetime:
    """Return the database's time: the only clock by which anything is made or dropped."""
    cursor = await connection.execute("SELECT extract(epoch FROM clock_timestamp())::double precision")
    row = await cursor.fetchone()
    assert row is not None
    return datetime.fromtimestamp(row[0], UTC)


async def read_days(connection: psycopg.AsyncConnection[Any], daily: Daily, *, schema: str) -> tuple[str, set[date]]:
    """Return a table's owner, and the days that have their partition.

    They are judged by their bounds, not by their names alone, since they may be dropped for them.
    """
    async with connection.transaction():
        # Bounds are shown in the session's time zone and style.
        await connection.execute("SELECT set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO', true)")
        cursor = await connection.execute(
            "SELECT pg_get_userbyid(parent.relowner), part.relname, pg_get_expr(part.relpartbound, part.oid)"
            " FROM pg_class parent LEFT JOIN pg_inherits ON inhparent = parent.oid LEFT JOIN pg_class part ON part.oid = inhrelid"
            " WHERE parent.oid = %s::regclass",
            (f'"{schema}"."{daily.table}"',),
        )
        rows = await cursor.fetchall()
    found = set()
    for _, name, bound in rows:
        if (match := re.fullmatch(rf"{daily.table}_(\d{{4}})(\d\d)(\d\d)", name or "")) is None:
            continue
        try:
            day = date(*map(int, match.groups()))
        except ValueError:
            continue
        begin, end = daily.bounds(day)
        if bound == f"FOR VALUES FROM ('{begin}') TO ('{end}')":
            found.add(day)
    return rows[0][0], found


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long things may take, in seconds.

    Attributes:
        lock: for a lock, during which those who come later wait behind us.
        statement: for a statement that holds a lock in others' way.
        scan: for a statement that is in nobody's way.
        turn: for everything; what was not begun by then is left for the next turn.
    """

    lock: float = 0.2
    statement: float = 1.0
    scan: float = 10.0
    turn: float = 10.0

    def grown(self, turns: int) -> Patience:
        """Return the patience after so many turns that left something: those who keep a table busy do not make room of themselves."""
        factor = 5 ** min(turns, 3)
        return replace(self, lock=min(factor * self.lock, _LONGEST_LOCK), statement=min(factor * self.statement, _LONGEST_STATEMENT))


BESIDE_OTHERS: Final = Patience()
"""For a daemon: nobody is to notice."""

_LONGEST_LOCK: Final = 10.0
_LONGEST_STATEMENT: Final = 30.0


class _Done(Exception):
    """Somebody else has taken this step meanwhile."""


class Upkeep:
    """One turn of a table's partitions.

    Args:
        connection: in autocommit mode, in no transaction.
        daily: the table.
        schema: it is in.
        patience: how long things may take.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any], daily: Daily, *, schema: str, patience: Patience = BESIDE_OTHERS) -> None:
        self._connection = connection
        self._daily = daily
        self._schema = check_schema_name(schema)
        self._patience = patience
        self._parent = self._named(daily.table)
        self._default = self._named(f"{daily.table}_default")
        self._owner = ""
        self._deadline = 0.0
        self._done = Tidied(daily.table)

    def forbid(self, problem: psycopg.Error) -> None:
        """Note what the role may not do."""
        self._done.forbidden = _first_line(problem)

    async def keep(self, schedule: Schedule) -> Tidied:
        """Make the partitions that are wanted, drop those that are over, sweep the default one, and return what was done.

        Raises psycopg's errors for a connection that is lost and a table that is not there.
        """
        self._deadline = asyncio.get_running_loop().time() + self._patience.turn
        self._owner, days = await read_days(self._connection, self._daily, schema=self._schema)
        # What is needed first: there may be no time for the others.
        missing = sorted(set(schedule.wanted) - days, key=lambda day: (day not in schedule.needed, day))
        default = f"{self._daily.table}_default"
        # Looked through first without a lock, since attaching looks through it with one: what takes too long is not begun.
        if missing and await self._step(default, self._look_through_default) is not None:
            self._done.moved = await self._each(missing, self._make, self._done.made)
        if schedule.over is not None:
            over = sorted(day for day in days if day < schedule.over)
            await self._each(over, lambda day: self._drop(day, schedule.stays), self._done.dropped)
        for condition in schedule.swept:
            await self._sweep(condition)
        if self._done.left or self._done.forbidden:
            _, days = await read_days(self._connection, self._daily, schema=self._schema)
            for name, why in schedule.late(self._daily, days).items():
                reason = self._done.left.get(name) or self._done.left.get(default)
                self._done.late[name] = f"{why} ({reason}); `outboxd tidy` is more patient" if reason else why
        return self._done

    async def _each(self, days: Sequence[date], work: Callable[[date], Awaitable[int]], done: list[str]) -> int:
        """Take the step for each day, unless the role may not, and return how many rows they were about."""
        total = 0
        for day in days:
            name = self._daily.name(day)
            rows = await self._step(name, partial(work, day))
            if rows is not None:
                done.append(name)
                total += rows
            elif self._done.forbidden:
                break
        return total

    async def _step(self, name: str, work: Callable[[], Awaitable[int]]) -> int | None:
        """Do some work in a transaction of its own, and return how many rows it was about; None if it was not done."""
        if asyncio.get_running_loop().time() > self._deadline:
            self._done.left[name] = f"no time is left in this turn of {self._patience.turn:g} s"
            return None
        try:
            async with self._connection.transaction():
                # Whatever the database's default is: what another worker did is to be seen once the lock is held.
                await self._connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                await self._limit(self._patience.statement)
                # Waited for, as long as for any lock: a step of another worker is short, unless that one is going to do it all.
                await self._connection.execute(
                    "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"outboxd.partitions.{self._schema}.{self._daily.table}",)
                )
                rows = await work()
        except _Done:
            return None
        except psycopg.errors.InsufficientPrivilege as problem:
            self.forbid(problem)
        except _LATER as problem:
            self._done.left.setdefault(name, _first_line(problem))
        except psycopg.Error as problem:
            if self._connection.closed:
                raise
            self._done.wrong[name] = _first_line(problem)
        else:
            return rows
        return None

    async def _limit(self, statement: float) -> None:
        """Set the transaction's patience; and a search_path, since it may be a superuser's."""
        await self._connection.execute(
            "SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true),"
            " set_config('idle_in_transaction_session_timeout', %s, true), set_config('search_path', 'pg_catalog', true)",
            (_in_ms(self._patience.lock), _in_ms(statement), _in_ms(self._patience.scan)),
        )

    async def _become_owner(self) -> None:
        """A partition belongs to whom the table belongs to, whoever makes it, so that it can be dropped by whoever may drop."""
        await self._run("SET LOCAL ROLE {}", sql.Identifier(self._owner))

    async def _look_through_default(self) -> int:
        await self._become_owner()
        await self._limit(self._patience.statement / 2)
        try:
            # The ctid is in no index: this reads the table, as attaching will.
            await self._run("SELECT count(ctid) FROM ONLY {}", self._default)
        except psycopg.errors.QueryCanceled:
            self._done.left[f"{self._daily.table}_default"] = (
                f"{self._daily.table}_default is too large to be looked through within {self._patience.statement / 2:g} s"
            )
            raise
        return 0

    async def _make(self, day: date) -> int:
        """Make the day's partition, and move into it what is in the default one.

        Attached and not made in place: that locks the parent table for nobody else but those who change its partitions. The default
        partition is locked against everybody in any case; at once, so that nothing comes into it between the move and the attachment.
        """
        new = self._named(self._daily.name(day))
        begin, end = map(sql.Literal, self._daily.bounds(day))
        key = sql.Identifier(self._daily.key)
        if await self._is_partition(day):
            raise _Done
        await self._become_owner()
        await self._run("CREATE TABLE {} (LIKE {} INCLUDING ALL)", new, self._parent)
        await self._run("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE", self._default)
        cursor = await self._run(
            "WITH moved AS (DELETE FROM ONLY {} WHERE {} >= {} AND {} < {} RETURNING *) INSERT INTO {} SELECT * FROM moved",
            *(self._default, key, begin, key, end, new),
        )
        await self._run("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})", self._parent, new, begin, end)
        return cursor.rowcount

    async def _drop(self, day: date, stays: sql.Composable | None) -> int:
        """Drop the day's partition. What stays of it is inserted again, and goes to the default one."""
        old = self._named(self._daily.name(day))
        rows: list[Sequence[Any]] = []
        if not await self._is_partition(day):
            raise _Done
        await self._become_owner()
        if stays is not None:
            # The lock that the drop takes, before the look, so that nothing is written behind its back.
            await self._run("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE", self._parent)
            await self._run("SET LOCAL enable_seqscan = off")
            rows = await (await self._run("SELECT * FROM ONLY {} WHERE {}", old, stays)).fetchall()
        await self._run("DROP TABLE {}", old)
        for row in rows:
            await self._run("INSERT INTO {} VALUES ({}) ON CONFLICT DO NOTHING", self._parent, sql.SQL(", ").join(map(sql.Literal, row)))
        return len(rows)

    async def _is_partition(self, day: date) -> bool:
        cursor = await self._connection.execute(
            "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhparent = %s::regclass AND inhrelid = to_regclass(%s))",
            (f'"{self._schema}"."{self._daily.table}"', f'"{self._schema}"."{self._daily.name(day)}"'),
        )
        return await cursor.fetchone() == (True,)

    async def _sweep(self, condition: sql.Composable) -> None:
        async def batch() -> int:
            await self._limit(self._patience.scan)
            cursor = await self._run(
                "DELETE FROM ONLY {} WHERE ctid = ANY (ARRAY(SELECT ctid FROM ONLY {} WHERE {} LIMIT {}))",
                *(self._default, self._default, condition, sql.Literal(_SWEPT_AT_ONCE)),
            )
            return cursor.rowcount

        name, forbidden = f"rows of {self._daily.table}_default that are over", self._done.forbidden
        for _ in range(_BATCHES):
            swept = await self._step(name, batch)
            if swept is None:
                # Not told of alone: as long as `outboxd tidy` keeps the partitions, it sweeps as well.
                self._done.forbidden = forbidden
                return
            self._done.swept += swept
            if swept < _SWEPT_AT_ONCE:
                return
        self._done.left[name] = f"more than {_BATCHES * _SWEPT_AT_ONCE}"

    def _named(self, table: str) -> sql.Identifier:
        return sql.Identifier(self._schema, table)

    async def _run(self, statement: LiteralString, *parts: sql.Composable) -> psycopg.AsyncCursor[Any]:
        return await self._connection.execute(sql.SQL(statement).format(*parts))


def _in_ms(seconds: float) -> str:
    return f"{max(1, int(seconds * 1000))}ms"


def _first_line(problem: psycopg.Error) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
