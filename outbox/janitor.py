"""What is done apart from the pump: the backlog is measured, and the archive's partitions are made and dropped.

Any number of daemons have a `Janitor` each. Whoever comes first when the figures are no longer fresh measures, and stores them in the
``figures`` table; all read them there, so that all export the same numbers, and one that dies or hangs is missed by nobody.
"""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
from psycopg import sql as compose

from bridges.backoff import Backoff
from bridges.deadline import happens
from bridges.errors import told
from migrations.partitions import BESIDE_OTHERS, Patience, Upkeep, database_now
from migrations.schedule import Daily, Schedule, begin_of_timestamps
from migrations.tidied import Announcer, Tidied
from outbox import session, sql, sql_watching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

log = logging.getLogger("outboxd.janitor")

ARCHIVE: Final = Daily(table="archive", key="drop_at", begin=begin_of_timestamps)
"""Partitioned by the day on which a message may go."""

_TURN: Final = 60.0
_AGAIN: Final = 60.0
_SOON: Final = 1.0
_COUNT_AGAIN: Final = 300.0
"""Seconds until a count is tried again that took longer than it may."""


class Backlog(NamedTuple):
    """What is in the outbox.

    Attributes:
        messages: in the queue.
        held: that wait aside.
        deferred: that wait for a time.
        dead: given up.
        oldest_seconds: the age of the oldest message that could have gone by now.
        held_by: how many are held by what: ``key``, behind a failing head; the name of a destination that is away; ``operator``, behind a
            dead letter about which somebody must decide.
    """

    messages: int
    held: int
    deferred: int
    dead: int
    oldest_seconds: float
    held_by: Mapping[str, int] = MappingProxyType({})


async def measure_backlog(connection: psycopg.AsyncConnection[Any], *, schema: str = "outbox", exact: bool = True) -> Backlog:
    """Count what is in the outbox. Exact, and so its cost grows with the backlog: for every few seconds, not for every batch.

    An estimate costs nothing. It goes by the server's statistics, and has the last count's ``held_by``.
    """
    cursor = await connection.execute(sql.bind(sql_watching.BACKLOG if exact else sql_watching.ESTIMATED_BACKLOG, schema))
    row = await cursor.fetchone()
    assert row is not None
    return Backlog(*row)


async def keep_archive(
    connection: psycopg.AsyncConnection[Any],
    *,
    schema: str = "outbox",
    keep: Iterable[timedelta] = (),
    ahead: int = 3,
    patience: Patience = BESIDE_OTHERS,
) -> Tidied:
    """Make the archive's partitions of the days ahead, and drop those that are over. Raises psycopg's errors.

    Args:
        connection: in autocommit mode.
        schema: of the outbox track.
        keep: for how long the routes keep what they published; what is published now goes into the partition of the day in so long.
        ahead: days for which there are to be partitions, beyond the first.
        patience: how long things may take.
    """
    now = await database_now(connection)
    return await Upkeep(connection, ARCHIVE, schema=schema, patience=patience).keep(archive_schedule(now, keep, ahead))


def archive_schedule(now: datetime, keep: Iterable[timedelta], ahead: int = 3) -> Schedule:
    """Return what is to be at a time; see `keep_archive`."""
    first = [now + each for each in keep]
    return Schedule(
        wanted={(moment + timedelta(days=n)).date() for moment in first for n in range(ahead + 1)},
        needed={(moment + timedelta(days=n)).date() for moment in first for n in (0, 1)},
        over=now.date(),
        swept=[compose.SQL("drop_at < {}").format(compose.Literal(now))],
    )


class Janitor:
    """Measures, shares the figures, and keeps the archive's partitions, until it is stopped.

    Nothing here is in the way of the pump, and nothing of the pump waits for it.

    Args:
        dsn: a libpq connection string.
        on_figures: called with the figures that are shared, and the seconds since they were measured, each time they were read.
        schema: of the outbox track.
        measure_every: seconds between turns.
        keep_every: seconds between looks at the partitions; sooner if something could not be done.
        archive: for how long the routes keep what they published.
        outage: how long to wait between tries while Postgres is away.
    """

    def __init__(
        self,
        dsn: str,
        on_figures: Callable[[Backlog, float], None],
        *,
        schema: str = "outbox",
        measure_every: float = 15.0,
        keep_every: float = 300.0,
        archive: Iterable[timedelta] = (),
        outage: Backoff = Backoff(first=0.5, cap=30.0),  # noqa: B008 - frozen
    ) -> None:
        self._dsn = dsn
        self._on_figures = on_figures
        self._schema = schema
        self._measure_every = measure_every
        self._keep_every = keep_every
        self._archive = tuple(archive)
        self._outage = outage
        self._announcer = Announcer(log)
        self._stopping = asyncio.Event()
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._failures = 0
        self._failed_at = 0.0
        self._keep_at = 0.0
        self._count_at = 0.0

    def stop(self) -> None:
        """Begin nothing more, and break off what is being done: it is all done again. Any number of times, from any state."""
        self._stopping.set()

    async def run(self) -> None:
        """Take turns until `stop`."""
        turns = asyncio.create_task(self._take_turns(), name="janitor")
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({turns, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            turns.cancel()
            await asyncio.wait({turns, stopped})
            await self._disconnect()
        if not turns.cancelled():
            turns.result()  # an error in it is ours

    async def _take_turns(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            began = loop.time()
            pause = self._measure_every
            try:
                async with asyncio.timeout(_TURN):
                    if not await self._turn():
                        pause = min(_SOON, pause)
            except (psycopg.Error, TimeoutError) as problem:
                await self._disconnect()
                pause = self._failed(problem)
            else:
                self._works()
            await happens(self._stopping, max(0.0, began + pause - loop.time()))

    async def _turn(self) -> bool:
        """Measure and read, and keep: each whatever has become of the other. False if what there is to read is old or nothing."""
        connection = await self._connected()
        is_fresh, problem = False, None
        try:
            await self._measure(connection)
            is_fresh = await self._share(connection)
        except psycopg.Error as failed:
            if connection.closed:
                raise
            problem = failed
        loop = asyncio.get_running_loop()
        if loop.time() >= self._keep_at:
            # No more patient from turn to turn: what waits behind it for a lock is the pump. It writes here for moments only.
            tidied = await keep_archive(connection, schema=self._schema, keep=self._archive)
            self._announcer.tell(tidied)
            self._keep_at = loop.time() + (min(_AGAIN, self._keep_every) if tidied.left else self._keep_every)
        if problem is not None:
            raise problem
        return is_fresh

    async def _share(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        """Hand out the figures, whoever has measured them; False if another daemon is measuring, and they are old or not there."""
        cursor = await connection.execute(sql.bind(sql_watching.READ_FIGURES, self._schema))
        row = await cursor.fetchone()
        if row is None:
            return False
        figures, age = row
        # What a newer version has measured as well is not for this one.
        known = {field: figures[field] for field in Backlog._fields if field in figures}
        self._on_figures(Backlog(**known), max(0.0, age))
        return bool(age <= self._measure_every)

    async def _measure(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Measure, unless another daemon is at it or has just done it; what takes too long to count is estimated."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._count_at:
            try:
                if await self._measure_once(connection, exact=True) and self._count_at:
                    log.warning("the backlog is counted again")
                    self._count_at = 0.0
            except psycopg.errors.QueryCanceled as problem:
                if not self._count_at:
                    log.warning("the backlog cannot be counted (%s): its figures are estimates until it can", told(problem))
                self._count_at = loop.time() + _COUNT_AGAIN
            else:
                return
        await self._measure_once(connection, exact=False)

    async def _measure_once(self, connection: psycopg.AsyncConnection[Any], *, exact: bool) -> bool:
        """Return whether it was measured by us."""
        async with connection.transaction():
            await connection.execute(sql_watching.CONFIGURE_JANITOR)
            if not await self._says_yes(connection, sql_watching.TRY_MEASURE):
                return False
            # Not the whole interval: one that comes round a little early would wait for another.
            if await self._says_yes(connection, sql_watching.FIGURES_ARE_FRESH, 0.75 * self._measure_every):
                return False
            backlog = await measure_backlog(connection, schema=self._schema, exact=exact)
            await connection.execute(sql.bind(sql_watching.STORE_FIGURES, self._schema), (json.dumps(backlog._asdict()),))
            return True

    async def _says_yes(self, connection: psycopg.AsyncConnection[Any], statement: str, *parameters: object) -> bool:
        cursor = await connection.execute(sql.bind(statement, self._schema), parameters or None)
        return await cursor.fetchone() == (True,)

    async def _connected(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None:
            self._connection = await session.connect(self._dsn, "outboxd janitor")
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _failed(self, problem: Exception) -> float:
        """Say so once, and return the seconds until the next try."""
        self._failures += 1
        if self._failures == 1:
            self._failed_at = asyncio.get_running_loop().time()
            log.warning("the janitor cannot work: %s", told(problem))
        return self._outage.delay(self._failures)

    def _works(self) -> None:
        if self._failures:
            seconds = asyncio.get_running_loop().time() - self._failed_at
            log.warning("the janitor works again, after %.1f s and %d tries", seconds, self._failures)
            self._failures = 0
