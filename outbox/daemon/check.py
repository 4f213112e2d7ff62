"""``outboxd check``: is everything as it must be, said in plain words."""

from __future__ import annotations

from contextlib import AsyncExitStack
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import psycopg

from bridges.errors import ConfigurationError
from migrations.names import MigrationError
from outbox import session
from outbox.daemon.app import check_schemas, load_consumer
from outbox.daemon.bridging import written_by_bridges
from outbox.daemon.brokers import make_broker
from outbox.daemon.crossings import loops
from outbox.daemon.days import days_of
from outbox.doctor import find_late_days

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from outbox.daemon.config import Settings

_NAME: Final = "outboxd check"

# FOR UPDATE needs UPDATE, and ON CONFLICT needs SELECT.
_PUMP_RIGHTS: Final = {
    "lanes": "SELECT UPDATE",
    "messages": "SELECT UPDATE DELETE",
    "deferred": "SELECT INSERT DELETE",
    "held": "SELECT INSERT UPDATE DELETE",
    "holds": "SELECT INSERT UPDATE DELETE",
    "dead": "SELECT INSERT",
    "figures": "SELECT INSERT UPDATE",
}
_BRIDGE_RIGHTS: Final = {"messages": "INSERT", "dead": "SELECT INSERT"}
_ARCHIVE_RIGHTS: Final = {"archive": "INSERT"}
_CONSUMER_RIGHTS: Final = {
    "processed": "SELECT INSERT",
    "processed_since": "SELECT",
    "consumer_requeued": "SELECT DELETE",
    "consumer_dead": "SELECT INSERT UPDATE",
}

# As `migrations.partitions` does it: in the role of the table's owner, who makes tables in the schema.
_MAY_KEEP_DAYS: Final = """
SELECT pg_has_role(relowner, 'MEMBER') AND has_schema_privilege(relowner, relnamespace, 'CREATE')
FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(%s)) AND relname = %s"""


class Level(StrEnum):
    """How much a finding matters, and how it is printed."""

    OK = "ok"
    WARNING = "WARNING"
    PROBLEM = "PROBLEM"


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        what: it is.
        problem: what is wrong with it, or None.
        is_warning: it works as it is, and may even be meant: somebody should know, and the check does not fail for it.
    """

    what: str
    problem: str | None
    is_warning: bool = False

    @property
    def level(self) -> Level:
        """How much it matters."""
        if self.problem is None:
            return Level.OK
        return Level.WARNING if self.is_warning else Level.PROBLEM


async def check(settings: Settings) -> AsyncIterator[Finding]:
    """Look at the database, the schemas, the consumers and every broker, and yield what was found."""
    for finding in check_postgres(settings):
        yield finding
    async for finding in check_days(settings):
        yield finding
    for finding in check_consumers(settings):
        yield finding
    for way in loops(settings):
        yield Finding(
            f"bridges {' -> '.join(way)}",
            "they may feed each other: what comes back is dropped, and counted in outbox_bridge_loops_total; mappings or topics that do not"
            " overlap would not send it",
            is_warning=True,
        )
    async with AsyncExitStack() as stack:
        for name, broker_section in settings.sinks.items():
            routes = [route for route in settings.routes if route.sink == name] + written_by_bridges(settings, name)
            try:
                problems = await make_broker(broker_section, stack).problems(routes)
            except ConfigurationError as problem:
                problems = [str(problem)]
            what = f"sink {name} ({broker_section.kind})"
            for found in problems:
                yield Finding(what, found)
            if not problems:
                yield Finding(what, None)


def check_consumers(settings: Settings) -> Iterator[Finding]:
    """Load the consumers, and see whether they handle anything."""
    for section in settings.consumers:
        try:
            consumer = load_consumer(section)
        except ConfigurationError as problem:
            yield Finding(f"consumer {section.app}", str(problem))
        else:
            handled = ", ".join(consumer.patterns)
            yield Finding(f"consumer {consumer.name} handles {handled or 'nothing'}", None if handled else "it has no handler")


def check_postgres(settings: Settings) -> Iterator[Finding]:
    """Look at the connection, the encoding, the schemas and the rights of the role."""
    schema = settings.postgres.schema_
    try:
        with session.connect_blocking(settings.postgres.dsn.get_secret_value(), _NAME, writes=False) as connection:
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
                archives = any(route.archive for route in settings.routes)
                yield _check_rights(connection, "the pump", schema, _PUMP_RIGHTS | (_ARCHIVE_RIGHTS if archives else {}))
            if settings.bridges:
                yield _check_rights(connection, "the bridges", schema, _BRIDGE_RIGHTS)
                yield _check_sequence(connection, schema)
            if any(consumer.dsn is None for consumer in settings.consumers):
                yield _check_rights(connection, "the consumers", settings.postgres.dedupe_schema, _CONSUMER_RIGHTS)
    except psycopg.Error as problem:
        yield Finding("Postgres", str(problem).strip().splitlines()[-1])
    except MigrationError as problem:
        yield Finding("schemas", str(problem))


async def check_days(settings: Settings) -> AsyncIterator[Finding]:
    """See who keeps the partitions: this role, or, if it may not, somebody who does."""
    for days in days_of(settings, load_consumer):
        table = f"{days.schema}.{days.daily.table}"
        try:
            async with await session.connect(days.dsn, _NAME) as connection:
                cursor = await connection.execute(_MAY_KEEP_DAYS, (days.schema, days.daily.table))
                row = await cursor.fetchone()
                if row is None:
                    continue  # of a schema that is not there is told elsewhere
                if row[0]:
                    yield Finding(f"partitions of {table}: this role may make and drop them", None)
                    continue
                late = [finding async for finding in find_late_days(connection, days.daily, days.schedule, schema=days.schema)]
                what = f"partitions of {table}: made and dropped by `outboxd tidy`"
                why = "this role may neither make nor drop them: run `outboxd tidy` every day as the owner of the schema"
                yield Finding(what, f"{late[0].what}: {late[0].problem}; {why}" if late else None)
        except psycopg.Error as problem:
            if days.dsn != settings.postgres.dsn.get_secret_value():  # of which is told already
                yield Finding(f"partitions of {table}", str(problem).strip().splitlines()[-1])


def _check_rights(connection: psycopg.Connection, who: str, schema: str, rights: dict[str, str]) -> Finding:
    missing = [
        f"{right} on {table}"
        for table, wanted in rights.items()
        for right in wanted.split()
        if connection.execute("SELECT has_table_privilege(%s, %s)", (f'"{schema}".{table}', right)).fetchone() != (True,)
    ]
    role = connection.info.user
    return Finding(f"rights of {who} in schema {schema}", f"the role {role} lacks {', '.join(missing)}" if missing else None)


def _check_sequence(connection: psycopg.Connection, schema: str) -> Finding:
    """Look at what a table's owner alone may do, if nobody else is allowed to: draw a position that is not of a new row of messages."""
    sequence = connection.execute("SELECT pg_get_serial_sequence(%s, 'position')", (f'"{schema}".messages',)).fetchone()
    assert sequence is not None
    allowed = connection.execute("SELECT has_sequence_privilege(%s, 'USAGE')", sequence).fetchone() == (True,)
    problem = None if allowed else f"the role {connection.info.user} lacks USAGE on the sequence {sequence[0]}"
    return Finding("positions for the dead letters of bridges", problem)
