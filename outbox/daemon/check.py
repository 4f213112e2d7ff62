"""``outboxd check``: is everything as it must be, said in plain words."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from bridges.errors import ConfigurationError
from migrations.names import MigrationError
from outbox.daemon.app import check_schemas, load_consumer
from outbox.daemon.brokers import make_broker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from outbox.daemon.config import Settings


class Finding(NamedTuple):
    """One thing that was looked at: what, and what is wrong with it, or None."""

    what: str
    problem: str | None


async def check(settings: Settings) -> AsyncIterator[Finding]:
    """Look at the database, the schemas, the consumers and every broker, and yield what was found."""
    for finding in check_postgres(settings):
        yield finding
    for section in settings.consumers:
        try:
            consumer = load_consumer(section)
        except ConfigurationError as problem:
            yield Finding(f"consumer {section.app}", str(problem))
        else:
            handled = ", ".join(consumer.patterns)
            yield Finding(f"consumer {consumer.name} handles {handled or 'nothing'}", None if handled else "it has no handler")
    async with AsyncExitStack() as stack:
        for name, broker_section in settings.sinks.items():
            routes = [route for route in settings.routes if route.sink == name]
            try:
                problems = await make_broker(broker_section, stack).problems(routes)
            except ConfigurationError as problem:
                problems = [str(problem)]
            what = f"sink {name} ({broker_section.kind})"
            for found in problems:
                yield Finding(what, found)
            if not problems:
                yield Finding(what, None)


def check_postgres(settings: Settings) -> Iterator[Finding]:
    """Look at the connection, the encoding, the schemas and the rights of the role."""
    schema = settings.postgres.schema_
    try:
        with psycopg.connect(settings.postgres.dsn.get_secret_value(), connect_timeout=5, autocommit=True) as connection:
            info = connection.info
            yield Finding(f"Postgres {info.server_version // 10000} at {info.host}, database {info.dbname}, as {info.user}", None)
            encoding = info.parameter_status("server_encoding")
            if encoding != "UTF8":
                yield Finding("encoding", f"the database is {encoding}; outboxd needs UTF8")
            if connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
                yield Finding("primary", "this server is a standby: give the dsn of the primary")
            check_schemas(settings)
            yield Finding("schemas are up to date", None)
            if settings.routes:
                missing = [
                    f"{right} on {table}"
                    for table in ("messages", "deferred", "held", "holds", "dead")
                    for right in ("SELECT", "INSERT", "DELETE")
                    if connection.execute("SELECT has_table_privilege(%s, %s)", (f'"{schema}".{table}', right)).fetchone() != (True,)
                ]
                problem = f"the role {info.user} lacks {', '.join(missing)}" if missing else None
                yield Finding(f"rights of the pump in schema {schema}", problem)
    except psycopg.Error as problem:
        yield Finding("Postgres", str(problem).strip().splitlines()[-1])
    except MigrationError as problem:
        yield Finding("schemas", str(problem))
