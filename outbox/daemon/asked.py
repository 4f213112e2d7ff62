"""What an operator asks for on the command line: where, and which messages."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, TypeVar

import typer
from pydantic import TypeAdapter, ValidationError

from bridges.errors import ConfigurationError
from migrations.names import check_schema_name
from migrations.runner import check_up_to_date
from outbox import session, sql_operating
from outbox.daemon.config import Settings, load, schemas_in_environment
from outbox.daemon.sections import Duration, checked_dsn
from outbox.selection import FATAL, Selection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import psycopg

T = TypeVar("T")
Track = Literal["outbox", "dedupe"]

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="A TOML file; OUTBOXD_* variables win over it.")]
Dsn = Annotated[str | None, typer.Option(envvar="OUTBOXD_POSTGRES__DSN", help="A libpq connection string or URI.", show_envvar=True)]
Schema = Annotated[str | None, typer.Option(help="Of the outbox's tables, or with --consumer of the consumers'.")]
Ids = Annotated[list[str] | None, typer.Option("--id", help="A message's id; may be repeated.")]
Topics = Annotated[str | None, typer.Option("--topic", help="A topic pattern, as in a route.")]
Key = Annotated[str | None, typer.Option(help="A key.")]
Reason = Annotated[str | None, typer.Option(help=f"Why they are dead: {', '.join(FATAL[:-1])} or {FATAL[-1]}.")]
Since = Annotated[str | None, typer.Option(help="A time with its zone, as in 2026-07-01T08:00Z, or an age, as in '2 hours'.")]
Until = Annotated[str | None, typer.Option(help="Likewise; before then.")]
Everything = Annotated[bool, typer.Option("--all", help="All of them; needed if nothing is selected.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, one object a line.")]
Consumer = Annotated[str | None, typer.Option(help="The dead letters of this consumer, instead of the outbox's.")]


OPERATOR: Final = "outboxd operate"
"""What the session is called of whoever changes something by hand."""


def check_schema(dsn: str, track: Track, schema: str, name: str, *, writes: bool = True) -> None:
    """Raise `MigrationError` if a track's schema is not as it should be, and psycopg's errors if that cannot be asked."""
    with session.connect_blocking(dsn, name, writes=writes) as connection:
        check_up_to_date(connection, track, schema=schema)


class Place(NamedTuple):
    """Which database, and which schemas in it."""

    dsn: str
    schema: str
    dedupe_schema: str
    settings: Settings | None

    @classmethod
    def of(cls, config: Path | None, dsn: str | None, schema: str | None) -> Place:
        """Find out, from the options and the environment. Raises `ConfigurationError`."""
        settings = load(config) if config is not None else None
        schemas = schemas_in_environment()
        if settings is not None:
            dsn = dsn or settings.postgres.dsn.get_secret_value()
            schemas = {"outbox": settings.postgres.schema_, "dedupe": settings.postgres.dedupe_schema}
        if dsn is None:
            msg = "dsn: give --dsn, OUTBOXD_POSTGRES__DSN or a configuration file"
            raise ConfigurationError(msg)
        try:
            checked_dsn(dsn)
        except ConfigurationError as problem:
            raise ConfigurationError(f"dsn: {problem}") from None
        if schema is not None:
            schemas = dict.fromkeys(schemas, schema)
        for name in schemas.values():
            check_schema_name(name)
        return cls(dsn, schemas["outbox"], schemas["dedupe"], settings)

    def of_consumer(self, name: str | None) -> Place:
        """Return where a consumer's own tables are, as the daemon finds it out: what the consumer was made with comes first.

        A --dsn or --schema that differs from the configuration wins over that. None: where the outbox is.
        """
        if self.settings is None or name is None:
            return self
        from outbox.daemon.app import load_consumer  # it takes long to import, and most commands do without

        postgres = self.settings.postgres
        for section in self.settings.consumers:
            try:
                consumer = load_consumer(section)
            except ConfigurationError:
                continue  # of another program's, maybe
            if consumer.name == name:
                dsn, schema = self.dsn, self.dedupe_schema
                if dsn == postgres.dsn.get_secret_value():
                    dsn = consumer.dsn or (section.dsn or postgres.dsn).get_secret_value()
                if schema == postgres.dedupe_schema:
                    schema = consumer.schema or schema
                return self._replace(dsn=dsn, dedupe_schema=schema)
        return self

    def run(
        self,
        work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]],
        *,
        track: Track = "outbox",
        name: str = OPERATOR,
        writes: bool = True,
    ) -> T:
        """Do something on a connection, as `session.connect` makes it.

        Raises `MigrationError` if the track's schema is not as it should be.
        """

        async def connected() -> T:
            async with await self._connect(track, name, writes=writes) as connection:
                return await work(connection)

        return asyncio.run(connected())

    async def selected(self, asked: Asked) -> Selection:
        """Return the selection, its ages counted back from the database's clock. Raises `MigrationError` as `run` does."""
        async with await self._connect("outbox", OPERATOR) as connection:
            return await asked.at(connection)

    async def _connect(self, track: Track, name: str, *, writes: bool = True) -> psycopg.AsyncConnection[Any]:
        schema = self.schema if track == "outbox" else self.dedupe_schema
        await asyncio.to_thread(check_schema, self.dsn, track, schema, name, writes=writes)
        return await session.connect(self.dsn, name, writes=writes)


class Asked(NamedTuple):
    """A selection as it was asked for: times may be ages, by the database's clock."""

    selection: Selection
    ages: dict[str, timedelta]
    everything: bool

    @classmethod
    def of(
        cls,
        ids: Sequence[str] | None,
        topics: str | None,
        key: str | None,
        reason: str | None,
        since: str | None,
        until: str | None,
        *,
        everything: bool | None = None,
    ) -> Asked:
        """Check what was asked for. ``everything`` None: to look only, so that nothing need be selected."""
        times = {option: _moment(option, text) for option, text in (("since", since), ("until", until)) if text is not None}
        ages = {option: time for option, time in times.items() if isinstance(time, timedelta)}
        selection = Selection(
            ids=ids or (),
            topics=topics,
            key=key,
            reason=reason,
            **{option: time for option, time in times.items() if isinstance(time, datetime)},
        )
        asked = cls(selection, ages, bool(everything))
        if everything is not None and not ages:
            selection.require_something(everything=everything)
        return asked

    @property
    def is_empty(self) -> bool:
        """Whether nothing is given, so that every message is meant."""
        return self.selection.is_empty and not self.ages

    async def at(self, connection: psycopg.AsyncConnection[Any]) -> Selection:
        """Return the selection, its ages counted back from the database's clock."""
        if not self.ages:
            return self.selection
        cursor = await connection.execute(sql_operating.SEE_NOW)
        row = await cursor.fetchone()
        assert row is not None
        try:
            return dataclasses.replace(self.selection, **{option: row[0] - age for option, age in self.ages.items()})
        except OverflowError:
            msg = f"{', '.join(self.ages)}: that long ago there were no years"
            raise ConfigurationError(msg) from None


def _moment(option: str, text: str) -> datetime | timedelta:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        pass
    else:
        if time.utcoffset() is None:
            msg = f"{option}: {text!r} has no time zone: add Z, or +02:00, say"
            raise ConfigurationError(msg)
        return time
    try:
        age = TypeAdapter(Duration).validate_python(text)
    except ValidationError:
        msg = f"{option}: {text!r} is neither a time, such as 2026-07-01T08:00Z, nor an age, such as '2 hours'"
        raise ConfigurationError(msg) from None
    assert age is not None
    return age
