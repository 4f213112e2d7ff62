"""The command ``outboxd``."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import nullcontext
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, LiteralString

import psycopg
import typer

from bridges.errors import ConfigurationError, OutboxError
from migrations import runner
from migrations.names import MigrationError
from outbox.daemon import operate
from outbox.daemon.config import load, schemas_in_environment
from outbox.daemon.printed import many
from outbox.daemon.sections import checked_dsn

app = typer.Typer(
    help="A transactional outbox and bridge daemon for Postgres.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="A TOML file; OUTBOXD_* variables win over it.")]
Dsn = Annotated[str | None, typer.Option(envvar="OUTBOXD_POSTGRES__DSN", help="A libpq connection string or URI.", show_envvar=True)]


@app.command()
def run(
    config: ConfigFile = None,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Daemons side by side; each listens on the port after the last one's.")] = 1,
) -> None:
    """Run the daemon: pump the routes, run the consumers, serve metrics and probes."""
    settings = load(config)
    if processes > 1:
        from outbox.daemon import processes as several

        raise typer.Exit(several.run(settings, config, processes))
    from outbox.daemon import app as daemon

    raise typer.Exit(daemon.run(settings))


@app.command()
def migrate(
    config: ConfigFile = None,
    dsn: Dsn = None,
    track: Annotated[str | None, typer.Option(help=f"{' or '.join(runner.TRACKS)}; both if left out.")] = None,
    schema: Annotated[str | None, typer.Option(help="Where to; each track's own schema if left out.")] = None,
    sql: Annotated[bool, typer.Option("--sql", help="Print what would run, for a migration tool of your own; run nothing.")] = False,
    max_payload: Annotated[int | None, typer.Option(help="Bytes above which the outbox table refuses a payload.")] = None,
) -> None:
    """Bring the schemas up to date."""
    schemas = schemas_in_environment()
    if config is not None:
        postgres = load(config).postgres
        dsn = dsn or postgres.dsn.get_secret_value()
        schemas = {"outbox": postgres.schema_, "dedupe": postgres.dedupe_schema}
    tracks = [track] if track else list(runner.TRACKS)
    for name in tracks:
        runner.migrations_of(name)  # an unknown track is refused before anything is run
    where = {name: schema or schemas[name] for name in tracks}
    if dsn is not None:
        try:
            checked_dsn(dsn)
        except ConfigurationError as problem:
            raise ConfigurationError(f"dsn: {problem}") from None
    limit = None
    if max_payload is not None:
        if "outbox" not in where:
            msg = "max-payload: is of the outbox track"
            raise ConfigurationError(msg)
        limit = runner.max_payload_statement(max_payload, schema=where["outbox"])
    if sql:
        _print_migrations(dsn, where, limit)
    elif dsn is None:
        msg = "dsn: give --dsn, OUTBOXD_POSTGRES__DSN or a configuration file"
        raise ConfigurationError(msg)
    else:
        _run_migrations(dsn, where, limit)


def _print_migrations(dsn: str | None, where: dict[str, str], limit: LiteralString | None) -> None:
    """Print what is missing in the database, or everything without one."""
    with psycopg.connect(dsn) if dsn else nullcontext() as connection:
        for track, schema in where.items():
            applied = runner.applied_to(connection, track, schema=schema) if connection else []
            typer.echo(runner.script(track, schema=schema, applied=applied))
    if limit:
        typer.echo(f"{limit};")


def _run_migrations(dsn: str, where: dict[str, str], limit: LiteralString | None) -> None:
    with psycopg.connect(dsn) as connection:
        for track, schema in where.items():
            done = runner.migrate(connection, track, schema=schema)
            typer.echo(f"{track}: schema {schema}: {', '.join(map(str, done)) or 'up to date'}")
        if limit:
            connection.execute(limit)
            typer.echo(f"outbox: schema {where['outbox']}: the limit of payloads is set")


@app.command()
def check(config: ConfigFile = None) -> None:
    """Look at the configuration, the connections, the schemas and the brokers' settings. Exit code 1 for a problem, not for a warning."""
    from outbox.daemon.check import Level
    from outbox.daemon.check import check as findings

    async def look() -> Counter[Level]:
        found = Counter[Level]()
        async for finding in findings(load(config)):
            found[finding.level] += 1
            typer.echo(f"{finding.level:<7}  {finding.what}{f': {finding.problem}' if finding.problem else ''}")
        return found

    found = asyncio.run(look())
    wrong = [many(found[level], level.lower()) for level in (Level.PROBLEM, Level.WARNING) if found[level]]
    typer.echo(", ".join(wrong) or "all is well")
    raise typer.Exit(1 if found[Level.PROBLEM] else 0)


@app.command()
def status(
    config: ConfigFile = None,
    dsn: Dsn = None,
    schema: Annotated[str | None, typer.Option(help="Where the outbox is, if not as configured.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on a line.")] = False,
) -> None:
    """Say what is in the outbox and who is at work on it. It needs no daemon, and no right but to read."""
    from outbox.daemon.inspection import show_status

    show_status(config, dsn, schema, as_json=json)


@app.command()
def doctor(
    config: ConfigFile = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on a line.")] = False,
) -> None:
    """Look for what is wrong with the outbox, its database and its brokers, and say what to do. Exit code 1 for a problem."""
    from outbox.daemon.inspection import show_findings

    raise typer.Exit(1 if show_findings(config, as_json=json) else 0)


@app.command()
def tidy(
    config: ConfigFile = None,
    dsn: Annotated[str | None, typer.Option(help="The database, instead of the configured ones: as the owner of its schemas, say.")] = None,
) -> None:
    """Make the partitions of the days ahead and drop those that are over, once. A daemon whose role may not needs it every day."""
    from outbox.daemon.tidy import tidy as tidy_once

    raise typer.Exit(tidy_once(config, dsn))


app.add_typer(operate.dead, name="dead")
app.command()(operate.replay)


@app.command()
def demo(
    transactions: Annotated[int, typer.Option(min=1, help="pgbench transactions, all clients together.")] = 20_000,
    clients: Annotated[int, typer.Option(min=1, max=64, help="pgbench clients.")] = 4,
    via: Annotated[str, typer.Option(help="inprocess, nats or kafka.")] = "inprocess",
    dsn: Annotated[str | None, typer.Option(help="An empty Postgres database to use, instead of a private server.")] = None,
    servers: Annotated[str | None, typer.Option(help="A NATS or Kafka to use, instead of a private one.")] = None,
    json: Annotated[bool, typer.Option("--json", help="End with one JSON object on a line.")] = False,
) -> None:
    """Prove it: run pgbench, rebuild every account's balance from messages alone, and compare."""
    from outbox.demo.run import Options, run_demo

    raise typer.Exit(run_demo(Options(transactions=transactions, clients=clients, via=via, dsn=dsn, servers=servers, json=json)))


@app.command()
def bench(
    ids: Annotated[list[str] | None, typer.Argument(help="Benchmarks, such as B1 B4; all of them if left out.")] = None,
    pairs: Annotated[
        int, typer.Option(min=1, help="Pairs of each comparison, after one to warm up; five at least for a figure to quote.")
    ] = 5,
    scale: Annotated[float, typer.Option(min=0.001, max=1, help="Multiplies counts and durations, for a try.")] = 1.0,
    to: Annotated[Path | None, typer.Option(help="A folder for bench.md, bench.json and bench.png.")] = None,
) -> None:
    """Measure what is claimed about speed, each beside what limits it or a peer, on private engines."""
    from outbox.bench.run import Options, run_bench

    run_bench(Options(ids=ids or [], pairs=pairs, scale=scale, to=to), typer.echo)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"outboxd {installed_version('outboxd')}")


def main() -> None:
    """Run the command line. A mistake in the configuration is one line for each, and exit code 2; other trouble exit code 1."""
    try:
        app()
    except* (ConfigurationError, MigrationError) as problems:
        _say(problems)
        sys.exit(2)
    except* (OutboxError, psycopg.Error) as problems:
        _say(problems)
        sys.exit(1)


def _say(problems: BaseExceptionGroup[Exception]) -> None:
    for problem in problems.exceptions:
        if isinstance(problem, BaseExceptionGroup):
            _say(problem)
        else:
            for line in str(problem).strip().splitlines():
                typer.echo(f"outboxd: {line}", err=True)
