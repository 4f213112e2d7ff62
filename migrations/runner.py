"""Apply the numbered SQL files of a track to a schema."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Final, LiteralString, NamedTuple

from migrations.names import MigrationError, render

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import psycopg

TRACKS: Final = ("outbox", "dedupe")

_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_CREATE_SCHEMA = 'CREATE SCHEMA IF NOT EXISTS :"schema"'
_CREATE_BOOKKEEPING = """
CREATE TABLE IF NOT EXISTS :"schema".migrations (
    version    integer NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    track      text NOT NULL,
    name       text NOT NULL,
    checksum   text NOT NULL,
    PRIMARY KEY (track, version)
)"""
_SELECT_APPLIED = 'SELECT version, name, checksum FROM :"schema".migrations WHERE track = %s ORDER BY version'
_SET_MAX_PAYLOAD = 'CREATE OR REPLACE FUNCTION :"schema".max_payload() RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE AS'


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file of a track, with the text as it is in the package."""

    track: str
    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file's text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.track}/{self.version:04d}_{self.name}"


class Applied(NamedTuple):
    """A row of a schema's ``migrations`` table."""

    version: int
    name: str
    checksum: str


def migrations_of(track: str) -> list[Migration]:
    """Return the track's migrations in the order in which they apply. Raises `MigrationError` for an unknown track."""
    if track not in TRACKS:
        msg = f"track: {track!r} is not one of {', '.join(TRACKS)}"
        raise MigrationError(msg)
    found = [
        Migration(track, int(match[1]), match[2], file.read_text(encoding="utf-8"))
        for file in files("migrations").joinpath(track).iterdir()
        if (match := _FILE.fullmatch(file.name))
    ]
    return sorted(found, key=lambda migration: migration.version)


def pending(track: str, applied: Iterable[Applied]) -> list[Migration]:
    """Return the migrations that are still to run.

    Raises `MigrationError` if the schema is newer than this package, or if a file was changed after it was applied.
    """
    known = {migration.version: migration for migration in migrations_of(track)}
    done = set()
    for row in applied:
        migration = known.get(row.version)
        if migration is None:
            msg = f"the {track} schema is at version {row.version} ({row.name}), which this outboxd does not know: run a newer outboxd"
            raise MigrationError(msg)
        if migration.checksum != row.checksum:
            msg = f"{migration} was changed after it was applied: its checksum is not the recorded one"
            raise MigrationError(msg)
        done.add(row.version)
    return [migration for version, migration in known.items() if version not in done]


def applied_to(connection: psycopg.Connection, track: str, *, schema: str) -> list[Applied]:
    """Return what was applied to the schema, in order; nothing if there is no such schema."""
    if _missing(connection, "to_regclass", f'"{schema}".migrations'):
        return []
    return [Applied(*row) for row in connection.execute(_trusted(_SELECT_APPLIED, schema), (track,))]


def check_up_to_date(connection: psycopg.Connection, track: str, *, schema: str) -> None:
    """Raise `MigrationError` unless everything that this package knows was applied, and nothing else."""
    if missing := pending(track, applied_to(connection, track, schema=schema)):
        msg = f"schema {schema!r} lacks {', '.join(map(str, missing))}: run `outboxd migrate`"
        raise MigrationError(msg)


def migrate(connection: psycopg.Connection, track: str, *, schema: str) -> list[Migration]:
    """Apply what is missing and return it. The connection must have no transaction open.

    Raises `MigrationError` for a schema name outside ``^[a-z_][a-z0-9_]{0,62}$``, a newer schema or a changed file; the files
    before the failing one stay applied.
    """
    lock = ("hashtextextended('outboxd.migrate.' || %s, 0)", (schema,))
    with connection.transaction():
        _create_bookkeeping(connection, schema)
    # A session's lock: it must outlast the transactions of the single files.
    with connection.transaction():
        connection.execute(f"SELECT pg_advisory_lock({lock[0]})", lock[1])
    try:
        with connection.transaction():
            missing = pending(track, applied_to(connection, track, schema=schema))
        for migration in missing:
            with connection.transaction():
                connection.execute(_trusted(migration.text, schema))
                connection.execute(_trusted(_record(migration), schema))
        return missing
    finally:
        if not connection.closed:
            with connection.transaction():
                connection.execute(f"SELECT pg_advisory_unlock({lock[0]})", lock[1])


def script(track: str, *, schema: str, applied: Sequence[Applied] = ()) -> str:
    """Return what `migrate` would run, as a script for another tool, with the rows by which `migrate` knows of it later."""
    first = [f"{_CREATE_SCHEMA};\n{_CREATE_BOOKKEEPING.strip()};"] if not applied else []
    files_ = [f"-- {migration}\n{migration.text}\n{_record(migration)};" for migration in pending(track, applied)]
    return "\n".join(f"BEGIN;\n{render(text, schema)}\nCOMMIT;\n" for text in [*first, *files_])


def max_payload_statement(limit: int, *, schema: str) -> LiteralString:
    """Return the statement that sets the size above which the outbox table refuses a payload, whoever writes it.

    Raises `MigrationError` for a limit that is not 1 byte to 1 GiB less 1.
    """
    if not 1 <= limit < 1 << 30:
        msg = f"max_payload: {limit} is not between 1 and {(1 << 30) - 1} bytes"
        raise MigrationError(msg)
    return _trusted(f"{_SET_MAX_PAYLOAD} 'SELECT {limit}'", schema)


def _create_bookkeeping(connection: psycopg.Connection, schema: str) -> None:
    # Asked first, since CREATE ... IF NOT EXISTS wants the privilege to create even where there is nothing to create; and under
    # a lock, since two of them at once can collide in the catalogue.
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('outboxd.create.' || %s, 0))", (schema,))
    if _missing(connection, "to_regnamespace", f'"{schema}"'):
        connection.execute(_trusted(_CREATE_SCHEMA, schema))
    if _missing(connection, "to_regclass", f'"{schema}".migrations'):
        connection.execute(_trusted(_CREATE_BOOKKEEPING, schema))


def _missing(connection: psycopg.Connection, function: LiteralString, name: str) -> bool:
    return connection.execute(f"SELECT {function}(%s) IS NULL", (name,)).fetchone() == (True,)


def _record(migration: Migration) -> str:
    values = f"({migration.version}, '{migration.track}', '{migration.name}', '{migration.checksum}')"
    return f'INSERT INTO :"schema".migrations (version, track, name, checksum) VALUES {values}'


def _trusted(text: str, schema: str) -> LiteralString:
    """Render one of our own texts with a checked schema name: nothing in it comes from outside."""
    return render(text, schema)
