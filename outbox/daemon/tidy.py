"""``outboxd tidy``, one turn of the partitions by hand; and the daemon's turns in the consumers' databases."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import psycopg
import typer

from bridges.backoff import Backoff
from bridges.errors import ConfigurationError, told
from dedupe.retention import keep_processed
from migrations.partitions import Announcer, Patience, Tidied
from outbox.daemon.config import Settings, checked_dsn, load, schemas_in_environment
from outbox.janitor import keep_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta
    from pathlib import Path

log = logging.getLogger("outboxd.janitor")

_BY_HAND: Final = Patience(statement=60.0, scan=600.0, turn=3600.0)
"""Somebody waits for it, and has chosen the hour. Locks are still waited for as shortly as by a daemon."""
_AHEAD: Final = 10
"""Enough for a week, if that is how often it is run."""
_EVERY: Final = 300.0
_AGAIN: Final = 60.0
_TURN: Final = 60.0


def tidy(config: Path | None, dsn: str | None) -> int:
    """Make and drop partitions once, say what was done, and return the exit code: 1 if somebody must look at something.

    With a configuration: its outbox and its consumers' databases. With ``dsn``: that database instead, as its schemas' owner, say. Without
    a configuration nobody knows how long anything is kept: the days ahead are made for the processed ids, and of these none is dropped.
    """
    settings = load(config) if config is not None or dsn is None else None
    if dsn is not None:
        try:
            checked_dsn(dsn)
        except ConfigurationError as problem:
            raise ConfigurationError(f"dsn: {problem}") from None
    return asyncio.run(_tidy(settings, dsn))


async def _tidy(settings: Settings | None, dsn: str | None) -> int:
    trouble = False
    for where, tracks in _databases(settings, dsn):
        async with await psycopg.AsyncConnection.connect(
            where, autocommit=True, application_name="outboxd tidy", connect_timeout=5, target_session_attrs="read-write"
        ) as connection:
            for track, schema in tracks.items():
                if not await _is_there(connection, track, schema):
                    typer.echo(f"{track}: no schema {schema} in database {connection.info.dbname}")
                    continue
                tidied = await _keep(connection, track, schema, settings)
                for line in _lines(tidied, schema):
                    typer.echo(line)
                trouble = trouble or bool(tidied.wrong) or tidied.forbidden is not None
    return 1 if trouble else 0


def _databases(settings: Settings | None, dsn: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where to go, and the tracks with their schemas to look for there."""
    if settings is None:
        schemas = schemas_in_environment()
    else:
        schemas = {"outbox": settings.postgres.schema_, "dedupe": settings.postgres.dedupe_schema}
    if dsn is not None:
        yield dsn, schemas
    elif settings is not None:
        consumers = {(consumer.dsn or settings.postgres.dsn).get_secret_value(): None for consumer in settings.consumers}
        own = settings.postgres.dsn.get_secret_value()
        for where in {own: None, **consumers}:
            tracks = [*(["outbox"] if where == own and settings.routes else []), *(["dedupe"] if where in consumers else [])]
            if tracks:
                yield where, {track: schemas[track] for track in tracks}


async def _is_there(connection: psycopg.AsyncConnection[Any], track: str, schema: str) -> bool:
    table = {"outbox": "archive", "dedupe": "processed"}[track]
    cursor = await connection.execute("SELECT to_regclass(%s) IS NOT NULL", (f'"{schema}".{table}',))
    return await cursor.fetchone() == (True,)


async def _keep(connection: psycopg.AsyncConnection[Any], track: str, schema: str, settings: Settings | None) -> Tidied:
    if track == "outbox":
        return await keep_archive(connection, schema=schema, keep=archived(settings) if settings else (), ahead=_AHEAD, patience=_BY_HAND)
    keep = settings.dedupe.keep if settings else None
    return await keep_processed(connection, schema=schema, keep=keep, ahead=_AHEAD, patience=_BY_HAND)


def archived(settings: Settings) -> set[timedelta]:
    """Return for how long the routes keep what they published."""
    return {route.archive for route in settings.routes if route.archive is not None}


def _lines(tidied: Tidied, schema: str) -> Iterator[str]:
    done = [f"{what} {', '.join(names)}" for what, names in (("made", tidied.made), ("dropped", tidied.dropped)) if names]
    rows = [f"{number} rows {what}" for what, number in (("moved", tidied.moved), ("swept", tidied.swept)) if number]
    yield f"{schema}.{tidied.table}: {'; '.join([*done, *rows]) or 'nothing to do'}"
    for name, why in tidied.left.items():
        yield f"{schema}.{tidied.table}: left for the next time: {name}: {why}"
    for name, why in tidied.wrong.items():
        yield f"{schema}.{tidied.table}: PROBLEM: {name}: {why}"
    if tidied.forbidden:
        yield f"{schema}.{tidied.table}: PROBLEM: {tidied.forbidden}: run this as the owner of the schema"


async def keep_consumers_days(dsn: str, *, schema: str, keep: timedelta | None, every: float = _EVERY) -> None:
    """Keep the partitions of a consumers' database, until cancelled. On a connection for each turn, since turns are minutes apart."""
    announcer = Announcer(log)
    outage = Backoff(first=5.0, cap=every)
    failures = 0
    while True:
        try:
            async with (
                asyncio.timeout(_TURN),
                await psycopg.AsyncConnection.connect(
                    dsn,
                    autocommit=True,
                    application_name="outboxd janitor",
                    connect_timeout=5,
                    target_session_attrs="read-write",
                    keepalives_idle=15,
                    keepalives_interval=5,
                    keepalives_count=3,
                    tcp_user_timeout=30_000,
                    prepare_threshold=None,
                ) as connection,
            ):
                tidied = await keep_processed(connection, schema=schema, keep=keep)
        except (psycopg.Error, TimeoutError) as problem:
            failures += 1
            if failures == 1:
                log.warning("the processed ids' days cannot be kept: %s", told(problem))
            pause = outage.delay(failures)
        else:
            if failures:
                log.warning("the processed ids' days are kept again, after %d tries", failures)
            failures = 0
            announcer.tell(tidied)
            pause = min(_AGAIN, every) if tidied.left else every
        await asyncio.sleep(pause)
