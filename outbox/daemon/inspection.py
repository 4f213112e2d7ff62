"""``outboxd status`` and ``outboxd doctor``: what the outbox holds, and what is wrong with it, for people and for programs.

Neither needs a daemon, and neither changes anything.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Final

import psycopg
import typer

from bridges.errors import ConfigurationError, told
from bridges.topics import Pattern
from migrations.names import MigrationError
from outbox import doctor, session
from outbox.daemon.app import load_consumer
from outbox.daemon.asked import Place, check_schema
from outbox.daemon.bridging import written_by_bridges
from outbox.daemon.brokers import destinations, make_broker
from outbox.daemon.config import load
from outbox.daemon.days import days_of
from outbox.daemon.printed import many, plain, print_json
from outbox.doctor import Finding
from outbox.status import read_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator
    from pathlib import Path

    from outbox.daemon.config import Settings
    from outbox.daemon.sections import ConsumerSection
    from outbox.status import Holds, Status

_DOCTOR: Final = "outboxd doctor"
_EXPLAINED: Final = {"key": "behind a failing message", "operator": "until an operator requeues or drops a dead letter"}


def show_status(config: Path | None, dsn: str | None, schema: str | None, *, as_json: bool) -> None:
    """Print the status of the configured outbox, or of that in ``dsn``. Raises `ConfigurationError` and `MigrationError`."""
    place = Place.of(config, dsn, schema)
    status = place.run(partial(read_status, schema=place.schema), name="outboxd status", writes=False)
    sinks: dict[str, str] = {name: section.kind for name, section in place.settings.sinks.items()} if place.settings else {}
    if as_json:
        queues = _queues(status)
        listed = [{"sink": name, "kind": kind, "queue": asdict(queues[name]) if name in queues else None} for name, kind in sinks.items()]
        print_json({"schema": place.schema, **asdict(status), "measured_at": status.measured_at.isoformat(), "sinks": listed})
    else:
        for line in _told(status, place.schema, sinks):
            typer.echo(plain(line.rstrip()))


def _told(status: Status, schema: str, sinks: dict[str, str]) -> Iterator[str]:
    """Say it in lines of a name, a figure and the rest."""

    def line(name: str, figure: object, rest: str = "") -> str:
        return f"{name:<22} {figure if isinstance(figure, str) else f'{figure:,}':>12}   {rest}"

    yield f"schema {schema} at {status.measured_at:%Y-%m-%d %H:%M:%S%z}"
    yield line("messages", status.messages, f"the oldest that could have gone is {_ago(status.oldest_seconds)} old")
    soon = "" if status.deferred.next_seconds is None else f", the next in {_ago(status.deferred.next_seconds)}"
    yield line("deferred", status.deferred.messages, f"{status.deferred.due:,} due{soon}")
    yield line("held", sum(of.messages for of in status.holds), f"in {many(sum(of.holds for of in status.holds), 'queue')}")
    for of in status.holds:
        why = of.error or "it was away" if of.destination is not None else _EXPLAINED[of.kind]
        age = f", the oldest {_ago(of.oldest_seconds)} old" if of.messages else ""
        yield line(
            f"  {'sink ' if of.destination else ''}{of.destination or of.kind}", of.messages, f"in {many(of.holds, 'queue')}{age}: {why}"
        )
    yield line("dead", sum(of.messages for of in status.dead))
    for dead in status.dead:
        yield line(f"  {dead.reason}", dead.messages, f"the last {_ago(dead.last_seconds)} ago")
    yield line("lanes", status.lanes, f"{sum(owner.lanes for owner in status.owners):,} of them owned")
    for owner in status.owners:
        who = f"process {owner.pid}" if owner.pid else "a prepared transaction"
        from_ = f" from {owner.client}" if owner.client else ""
        since = f", {owner.state or 'open'} for {_ago(owner.seconds)}" if owner.seconds is not None else ""
        yield line(f"  {owner.application or 'without a name'}", owner.lanes, f"{who}{from_}{since}")
    yield line("archive", f"{status.archive.bytes / 1024:,.0f} KiB", f"in {many(status.archive.tables, 'table')}")
    queues = _queues(status)
    if sinks:
        yield line("sinks", len(sinks))
    for name, kind in sinks.items():
        waiting = queues.get(name)
        yield line(f"  {name}", waiting.messages if waiting else 0, f"{kind}, {'has a queue' if waiting else 'no queue of its own'}")


def _queues(status: Status) -> dict[str, Holds]:
    return {of.destination: of for of in status.holds if of.destination is not None}


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def show_findings(config: Path | None, *, as_json: bool) -> int:
    """Print what the doctor finds, and return how many problems that is: notes are none. Raises `ConfigurationError`."""
    settings = load(config)

    async def look() -> list[Finding]:
        found = []
        async for finding in diagnose(settings):
            found.append(finding)
            if not as_json:
                typer.echo(plain(f"{'note    ' if finding.is_note else 'PROBLEM '} {finding.what}: {finding.problem}"))
                typer.echo(plain(f"  to do  {finding.advice}"))
        return found

    found = asyncio.run(look())
    problems = sum(not finding.is_note for finding in found)
    if as_json:
        print_json({"findings": [finding._asdict() for finding in found]})
    else:
        typer.echo(many(problems, "problem") if problems else "all is well")
    return problems


async def diagnose(settings: Settings) -> AsyncIterator[Finding]:
    """Look for everything that is wrong, in the database and at the brokers. What cannot be reached is a finding too."""
    dsn, schema = settings.postgres.dsn.get_secret_value(), settings.postgres.schema_
    unknown = []
    try:
        if settings.uses_outbox:
            await asyncio.to_thread(check_schema, dsn, "outbox", schema, _DOCTOR, writes=False)
        async for finding in _diagnose_postgres(settings, dsn):
            yield finding
    except psycopg.Error as problem:
        unknown.append(dsn)
        yield Finding("Postgres", told(problem), "`outboxd check` looks at the connection and at the role's rights")
    except MigrationError as problem:
        unknown.append(dsn)
        yield Finding(f"schema {schema}", str(problem), "bring it up to date, and ask again: it was not looked into")
    async for finding in _diagnose_days(settings, without=unknown):
        yield finding
    async with AsyncExitStack() as stack:
        for name, section in settings.sinks.items():
            routes = [route for route in settings.routes if route.sink == name] + written_by_bridges(settings, name)
            consumed = [
                topic
                for consumer in settings.consumers
                if settings.source_of(consumer) == name
                for topic in consumer.topics or destinations(_patterns(consumer), routes)
            ]
            try:
                risks = await make_broker(section, stack).risks(routes, consumed, settings.dedupe.keep)
            except ConfigurationError as problem:
                risks = [(str(problem), "mend the configuration")]
            for problem_, advice in risks:
                yield Finding(f"sink {name} ({section.kind})", problem_, advice)


async def _diagnose_postgres(settings: Settings, dsn: str) -> AsyncIterator[Finding]:
    schema = settings.postgres.schema_
    connect = partial(session.connect, dsn, _DOCTOR, writes=False)
    async with await connect() as connection:
        searches = [doctor.find_clock_skew(connection)]
        if settings.routes:
            searches += [
                doctor.find_lost_rows(connection, schema=schema),
                doctor.find_keys_for_operator(connection, schema=schema),
                doctor.find_unconfigured(
                    connection, sinks=settings.sinks, routes=[route.topics for route in settings.routes], schema=schema
                ),
                doctor.find_late_claims(connection, claim_timeout=2 * settings.pump.publish_timeout, schema=schema),
                doctor.find_pins(connection, schema=schema),
                doctor.find_vacuum_trouble(connection, schema=schema),
            ]
        if settings.routes and settings.consumers and settings.dedupe.keep:
            searches.append(doctor.find_too_old(connection, settings.dedupe.keep, partial(_is_consumed, settings), schema=schema))
        if settings.routes and settings.postgres.doorbell:
            searches.append(doctor.find_pooler(connect))
        for search in searches:
            async for finding in search:
                yield finding


def _patterns(consumer: ConsumerSection) -> tuple[str, ...]:
    """Return what a consumer handles; everything, for one that cannot be imported here."""
    try:
        return tuple(load_consumer(consumer).patterns)
    except ConfigurationError:
        return (">",)


async def _diagnose_days(settings: Settings, *, without: Collection[str]) -> AsyncIterator[Finding]:
    """Look at what is kept by day, in each database but those that could not be looked into, and at how long."""
    for days in days_of(settings, load_consumer):
        if days.dsn in without:
            continue
        try:
            async with await session.connect(days.dsn, _DOCTOR, writes=False) as connection:
                async for finding in doctor.find_late_days(connection, days.daily, days.schedule, schema=days.schema):
                    yield finding
        except psycopg.Error as problem:
            yield Finding(
                f"table {days.schema}.{days.daily.table}", told(problem), "`outboxd check` looks at the connection and at the schemas"
            )
    keep = settings.dedupe.keep
    for route in settings.routes:
        if settings.consumers and keep and route.archive and route.archive > keep:
            yield Finding(
                f"route {route.topics}",
                f"it is archived for {route.archive}, and processed ids are kept for {keep}: what is older when it is replayed, consumers"
                " set aside",
                "give [dedupe] keep more than archive, or archive less",
            )


def _is_consumed(settings: Settings, topic: str) -> bool:
    """Whether a topic's route leads to where one of the consumers consumes from."""
    sink = next((route.sink for route in settings.routes if Pattern(route.topics).matches(topic)), None)
    return sink in {settings.source_of(consumer) for consumer in settings.consumers}
