"""``outboxd tidy``: one turn of the partitions by hand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import typer

from bridges.errors import ConfigurationError
from dedupe.retention import keep_processed
from migrations.partitions import Patience
from outbox import session
from outbox.daemon.app import load_consumer
from outbox.daemon.config import Settings, load, schemas_in_environment
from outbox.daemon.days import archived, days_of
from outbox.daemon.sections import checked_dsn
from outbox.janitor import ARCHIVE, keep_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psycopg

    from dedupe.consumer import Consumer
    from migrations.tidied import Tidied
    from outbox.daemon.sections import ConsumerSection

_BY_HAND: Final = Patience(lock=30.0, statement=60.0, scan=600.0, turn=3600.0)
"""Somebody waits for it, and has chosen the hour: consumers may wait for it too."""
_AHEAD: Final = 10
"""Enough for a week, if that is how often it is run."""


def tidy(config: Path | None, dsn: str | None) -> int:
    """Make and drop partitions once, say what was done, and return the exit code: 1 if something was left, or somebody must look at it.

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
    for where, tables in _databases(settings, dsn).items():
        async with await session.connect(where, "outboxd tidy") as connection:
            for track, schema in tables:
                if not await _is_there(connection, track, schema):
                    typer.echo(f"{track}: no schema {schema} in database {connection.info.dbname}")
                    continue
                tidied = await _keep(connection, track, schema, settings)
                for line in _lines(tidied, schema):
                    typer.echo(line)
                trouble = trouble or bool(tidied.wrong or tidied.left) or tidied.forbidden is not None
    return 1 if trouble else 0


def _databases(settings: Settings | None, dsn: str | None) -> dict[str, dict[tuple[str, str], None]]:
    """Return where to go, and the tracks with their schemas to look for there."""
    if settings is None:
        assert dsn is not None
        return {dsn: dict.fromkeys(schemas_in_environment().items())}
    databases: dict[str, dict[tuple[str, str], None]] = {}
    for days in days_of(settings, _loaded):
        track = "outbox" if days.daily is ARCHIVE else "dedupe"
        databases.setdefault(dsn or days.dsn, {})[track, days.schema] = None
    return databases


def _loaded(section: ConsumerSection) -> Consumer:
    try:
        return load_consumer(section)
    except ConfigurationError as problem:
        typer.echo(f"{problem}: its processed ids are taken to be where the configuration says", err=True)
        raise


async def _is_there(connection: psycopg.AsyncConnection[Any], track: str, schema: str) -> bool:
    table = {"outbox": "archive", "dedupe": "processed"}[track]
    cursor = await connection.execute("SELECT to_regclass(%s) IS NOT NULL", (f'"{schema}".{table}',))
    return await cursor.fetchone() == (True,)


async def _keep(connection: psycopg.AsyncConnection[Any], track: str, schema: str, settings: Settings | None) -> Tidied:
    if track == "outbox":
        return await keep_archive(connection, schema=schema, keep=archived(settings) if settings else (), ahead=_AHEAD, patience=_BY_HAND)
    keep = settings.dedupe.keep if settings else None
    return await keep_processed(connection, schema=schema, keep=keep, ahead=_AHEAD, patience=_BY_HAND)


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
