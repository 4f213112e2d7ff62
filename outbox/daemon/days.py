"""The days of the tables that are kept by day: what a configuration says of them, and the daemon's turns in the consumers' databases."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, NamedTuple

import psycopg

from bridges.backoff import Backoff
from bridges.errors import ConfigurationError, told
from dedupe.retention import PROCESSED, keep_processed, processed_schedule
from migrations.partitions import BESIDE_OTHERS
from migrations.tidied import Announcer
from outbox import session
from outbox.janitor import ARCHIVE, archive_schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime, timedelta

    from dedupe.consumer import Consumer
    from migrations.schedule import Daily, Schedule
    from migrations.tidied import Tidied
    from outbox.daemon.config import Settings
    from outbox.daemon.sections import ConsumerSection

log = logging.getLogger("outboxd.janitor")

_EVERY: Final = 300.0
_AGAIN: Final = 60.0
_TURN: Final = 120.0


class Days(NamedTuple):
    """A table that is kept by day.

    Attributes:
        dsn: its database.
        schema: it is in.
        daily: the table.
        schedule: returns what is to be at a time.
    """

    dsn: str
    schema: str
    daily: Daily
    schedule: Callable[[datetime], Schedule]


def days_of(settings: Settings, load: Callable[[ConsumerSection], Consumer]) -> Iterator[Days]:
    """Yield the tables that the configuration has something to do with, each once.

    Args:
        settings: the configuration.
        load: imports a consumer, since what it was made with comes first, as `Consumer.run` chooses. Where that raises
            `ConfigurationError`, the configuration alone is asked.
    """
    own = settings.postgres.dsn.get_secret_value()
    if settings.routes:
        kept = archived(settings)
        yield Days(own, settings.postgres.schema_, ARCHIVE, lambda now: archive_schedule(now, kept))
    places: dict[tuple[str, str], None] = {}
    for section in settings.consumers:
        try:
            consumer = load(section)
        except ConfigurationError:
            dsn = schema = None
        else:
            dsn, schema = consumer.dsn, consumer.schema
        places[dsn or (section.dsn.get_secret_value() if section.dsn else own), schema or settings.postgres.dedupe_schema] = None
    for where, there in places:
        yield Days(where, there, PROCESSED, lambda now: processed_schedule(now, settings.dedupe.keep))


def archived(settings: Settings) -> set[timedelta]:
    """Return for how long the routes keep what they published."""
    return {route.archive for route in settings.routes if route.archive is not None}


class ConsumersDays:
    """Keeps the partitions of a consumers' database. On a connection for each turn, since turns are minutes apart.

    The longer something is left, the longer is waited for a lock: consumers hold theirs for as long as their handlers take.
    """

    def __init__(self, dsn: str, *, schema: str, keep: timedelta | None, every: float = _EVERY) -> None:
        self._dsn = dsn
        self._schema = schema
        self._keep = keep
        self._every = every
        self._outage = Backoff(first=5.0, cap=_EVERY)
        self._announcer = Announcer(log)
        self._failures = 0
        self._leaving = 0
        self._pause = 0.0

    async def run(self) -> None:
        """Take turns until cancelled."""
        while True:
            await asyncio.sleep(self._pause)  # days come by the clock alone: there is nothing else to wait for
            await self.turn()

    async def turn(self, *, within: float = _TURN) -> None:
        """Take one, and say what there is to say."""
        try:
            async with asyncio.timeout(within):
                tidied = await self._turn()
        except (psycopg.Error, TimeoutError) as problem:
            self._failures += 1
            if self._failures == 1:
                log.warning("the processed ids' days cannot be kept: %s", told(problem))
            self._pause = self._outage.delay(self._failures)
            return
        if self._failures:
            log.warning("the processed ids' days are kept again, after %d tries", self._failures)
        self._failures = 0
        self._leaving = self._leaving + 1 if tidied.left else 0
        self._announcer.tell(tidied)
        self._pause = min(_AGAIN, self._every) if tidied.left else self._every

    async def _turn(self) -> Tidied:
        async with await session.connect(self._dsn, "outboxd janitor") as connection:
            patience = BESIDE_OTHERS.grown(self._leaving)
            return await keep_processed(connection, schema=self._schema, keep=self._keep, patience=patience)
