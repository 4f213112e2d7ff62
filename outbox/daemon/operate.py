"""``outboxd dead`` and ``outboxd replay``: what operators do by hand."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any, Literal

import psycopg
import typer

from bridges import ports
from bridges.envelope import REPLAYED
from bridges.errors import ConfigurationError, OutboxError, told
from bridges.ports import PUBLISHED, Rejected, Released
from bridges.router import Route, Router
from bridges.topics import Pattern
from outbox import deadletters, session, sql
from outbox import replay as archive
from outbox.daemon import consumer_letters, printed
from outbox.daemon.asked import (
    OPERATOR,
    AsJson,
    Asked,
    ConfigFile,
    Consumer,
    DryRun,
    Dsn,
    Everything,
    Ids,
    Key,
    Place,
    Reason,
    Schema,
    Since,
    Topics,
    Until,
)
from outbox.daemon.brokers import make_broker
from outbox.daemon.config import Settings, load
from outbox.daemon.sections import InProcessSection
from outbox.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from uuid import UUID

    from bridges.message import Message
    from bridges.ports import Outcome, Sink
    from outbox.deadletters import DeadLetter, Letter

dead = typer.Typer(help="List, show, requeue and drop dead letters.", no_args_is_help=True)


@dead.command("list")
def list_(
    config: ConfigFile = None,
    dsn: Dsn = None,
    schema: Schema = None,
    ids: Ids = None,
    topics: Topics = None,
    key: Key = None,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    consumer: Consumer = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at the most, the latest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the latest first; never their payloads. Exit code 1 if there is none."""
    place = Place.of(config, dsn, schema).of_consumer(consumer)
    asked = Asked.of(ids, topics, key, reason, since, until)

    async def look(connection: psycopg.AsyncConnection[Any]) -> Sequence[DeadLetter | consumer_letters.ConsumerLetter]:
        selection = await asked.at(connection)
        if consumer is None:
            return await deadletters.list_dead(connection, selection, limit=limit + 1, schema=place.schema)
        return await consumer_letters.list_consumer_dead(connection, consumer, selection, limit=limit + 1, schema=place.dedupe_schema)

    found = place.run(look, track="outbox" if consumer is None else "dedupe")
    if as_json:
        for letter in found[:limit]:
            printed.print_letter_as_json(letter)
    elif found:
        printed.print_letters(found[:limit])
        if len(found) > limit:
            typer.echo(f"and more: these are the latest {limit}; --limit shows others")
    else:
        typer.echo("no dead letter fits" if not asked.is_empty else "there are no dead letters")
    raise typer.Exit(0 if found else 1)


@dead.command()
def show(
    message_id: Annotated[str, typer.Argument(metavar="ID", help="The message's id.")],
    config: ConfigFile = None,
    dsn: Dsn = None,
    schema: Schema = None,
    consumer: Consumer = None,
    as_json: AsJson = False,
) -> None:
    """Show everything about a dead letter, its payload too."""
    place = Place.of(config, dsn, schema).of_consumer(consumer)
    (wanted,) = Selection(ids=[message_id]).message_ids

    async def look(connection: psycopg.AsyncConnection[Any]) -> Sequence[DeadLetter | consumer_letters.WholeLetter]:
        if consumer is None:
            return await deadletters.show_dead(connection, wanted, schema=place.schema)
        return await consumer_letters.show_consumer_dead(connection, consumer, wanted, schema=place.dedupe_schema)

    found = place.run(look, track="outbox" if consumer is None else "dedupe")
    for letter in found:
        if as_json:
            printed.print_letter_as_json(letter)
        else:
            printed.print_whole(letter)
    if not found:
        typer.echo(f"{wanted}: is not a dead letter", err=True)
        raise typer.Exit(1)


@dead.command()
def requeue(
    config: ConfigFile = None,
    dsn: Dsn = None,
    schema: Schema = None,
    ids: Ids = None,
    topics: Topics = None,
    key: Key = None,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    everything: Everything = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="With a new Nats-Msg-Id, so that JetStream takes no copy for a duplicate; the id stays.")
    ] = False,
    expired: Annotated[
        bool, typer.Option("--expired", help="Those too whose expires_at has passed, without it: else they stay dead.")
    ] = False,
    consumer: Consumer = None,
    to: Annotated[str | None, typer.Option(help="With --consumer: the sink that the consumer consumes from.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Put dead letters back to be published: each at its old place, ahead of what came later in its key."""
    place = Place.of(config, dsn, schema)
    asked = Asked.of(ids, topics, key, reason, since, until, everything=everything)
    if consumer is not None:
        if fresh or expired:
            msg = "fresh, expired: are for the outbox's dead letters; a consumer's are always sent afresh, and do not expire"
            raise ConfigurationError(msg)
        raise typer.Exit(_requeue_for_consumer(place, asked, consumer, to, dry_run=dry_run, as_json=as_json))
    if to is not None:
        msg = "to: is for --consumer; the routes say where the outbox's messages go"
        raise ConfigurationError(msg)

    done, left, waiting = _Done(as_json), _Done(as_json), dict[str, int]()

    async def put_back(connection: psycopg.AsyncConnection[Any]) -> None:
        async for batch in deadletters.requeue_in_batches(
            connection,
            await asked.at(connection),
            everything=everything,
            fresh=fresh,
            expired=expired,
            dry_run=dry_run,
            schema=place.schema,
        ):
            done.add(batch.letters)
            left.add(batch.expired)
            waiting.update(batch.waiting)

    def tell() -> None:
        if as_json:
            printed.print_json({"requeued": done.ids(), "expired": left.ids(), "waiting": waiting, "dry_run": dry_run})
            return
        printed.print_done("requeue", done.topics, dry_run=dry_run)
        if left.topics:
            letters = printed.many(left.topics.total(), "dead letter")
            typer.echo(f"{letters} left dead, being expired: --expired requeues them without their expires_at")
        for waits, position in waiting.items():
            on = "would wait" if dry_run else "waits"
            typer.echo(f"key {printed.plain(waits)} {on} on, for the dead letter at position {position}")

    raise typer.Exit(_run_in_batches(place, put_back, done, tell))


@dead.command()
def drop(
    config: ConfigFile = None,
    dsn: Dsn = None,
    schema: Schema = None,
    ids: Ids = None,
    topics: Topics = None,
    key: Key = None,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    everything: Everything = False,
    consumer: Consumer = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters for good. A key that waits for one of them goes on."""
    place = Place.of(config, dsn, schema).of_consumer(consumer)
    asked = Asked.of(ids, topics, key, reason, since, until, everything=everything)

    done = _Done(as_json)

    async def delete(connection: psycopg.AsyncConnection[Any]) -> None:
        selection = await asked.at(connection)
        if consumer is not None:
            letters = await consumer_letters.drop_consumer_dead(
                connection, consumer, selection, everything=everything, dry_run=dry_run, schema=place.dedupe_schema
            )
            done.add(letters)
            return
        async for batch in deadletters.drop_in_batches(connection, selection, everything=everything, dry_run=dry_run, schema=place.schema):
            done.add(batch)

    def tell() -> None:
        if as_json:
            printed.print_json({"dropped": done.ids(), "dry_run": dry_run})
        else:
            printed.print_done("drop", done.topics, dry_run=dry_run)

    raise typer.Exit(_run_in_batches(place, delete, done, tell, track="outbox" if consumer is None else "dedupe"))


def replay(
    to: Annotated[str, typer.Option(help="The sink to publish to, by its name in the configuration.")],
    config: ConfigFile = None,
    dsn: Dsn = None,
    schema: Annotated[str | None, typer.Option(help="Of the outbox's tables.")] = None,
    ids: Ids = None,
    topics: Topics = None,
    key: Key = None,
    since: Annotated[str | None, typer.Option(help="Published since: a time with its zone, or an age, as in '2 hours'.")] = None,
    until: Until = None,
    everything: Everything = False,
    rate: Annotated[float, typer.Option(help="Messages a second, at the most.")] = 1000.0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Publish again, to one sink, what routes with `archive` have kept. Ctrl-C ends it, and `replays` says how far it came."""
    settings = load(config)
    place = Place.of(config, dsn, schema)
    asked = Asked.of(ids, topics, key, None, since, until, everything=everything)

    async def look() -> int:
        counts = await archive.count_archived(place.dsn, await place.selected(asked), schema=place.schema)
        if as_json:
            printed.print_json({"matched": sum(counts.values()), "topics": counts, "dry_run": True})
        elif counts:
            typer.echo(f"would replay {printed.many(sum(counts.values()), 'message')} to {to}, at most {rate:g} a second")
            printed.print_topics(Counter(counts))
        else:
            typer.echo("nothing in the archive fits")
        return 0 if counts else 1

    async def publish() -> int:
        stop = asyncio.Event()
        signals = _note_signals(stop)
        selection = await place.selected(asked)
        async with AsyncExitStack() as stack:
            done = await archive.replay(
                place.dsn,
                selection,
                _sink_of(settings, to, stack),
                to=to,
                everything=everything,
                rate=rate,
                stop=stop,
                publish_timeout=settings.pump.publish_timeout,
                schema=place.schema,
            )
        if as_json:
            printed.print_json({**dataclasses.asdict(done), "replay": done.replay and str(done.replay)})
        else:
            printed.print_replayed(done, to)
        if signals and not done.complete:
            return 128 + signals[0]
        return 0 if done.published and not done.rejected and not done.missed else 1

    _check_sink(settings, to)
    raise typer.Exit(asyncio.run(look() if dry_run else publish()))


class _Done:
    """What was done with letters, batch by batch: of a great many only the numbers are kept, unless each id is to be told."""

    def __init__(self, with_ids: bool) -> None:
        self.topics: Counter[str] = Counter()
        self._ids: list[tuple[int, UUID]] | None = [] if with_ids else None

    def add(self, letters: Sequence[Letter | consumer_letters.ConsumerLetter]) -> None:
        self.topics.update(letter.topic for letter in letters)
        if self._ids is not None:
            self._ids += [(getattr(letter, "position", 0), letter.id) for letter in letters]

    def ids(self) -> list[str]:
        return [str(one) for _, one in sorted(self._ids or [])]


def _run_in_batches(
    place: Place,
    work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[None]],
    done: _Done,
    tell: Callable[[], None],
    *,
    track: Literal["outbox", "dedupe"] = "outbox",
) -> int:
    """Do it, tell what was done, even if that is not all of it, and return the exit code."""
    try:
        place.run(work, track=track)
    except (OutboxError, psycopg.Error):
        if done.topics:
            tell()
        raise
    tell()
    return 0 if done.topics else 1


def _requeue_for_consumer(place: Place, asked: Asked, consumer: str, to: str | None, *, dry_run: bool, as_json: bool) -> int:
    """Requeue the dead letters of a consumer, and return the exit code."""
    if to is None:
        msg = "to: with --consumer, give the sink that the consumer consumes from"
        raise ConfigurationError(msg)
    settings, name = place.settings or _from_environment(), to
    place = place._replace(settings=settings).of_consumer(consumer)
    here = isinstance(settings.sinks.get(name), InProcessSection)
    if not here:
        _check_sink(settings, name)

    async def hand_back(connection: psycopg.AsyncConnection[Any]) -> consumer_letters.HandedBack:
        selection = await asked.at(connection)
        async with AsyncExitStack() as stack:
            sink = _ThroughOutbox(settings, name) if here else _sink_of(settings, name, stack)
            return await consumer_letters.requeue_consumer_dead(
                connection, consumer, selection, sink, everything=asked.everything, dry_run=dry_run, schema=place.dedupe_schema
            )

    done = place.run(hand_back, track="dedupe")
    if as_json:
        kept = {str(one): f"{outcome.reason}: {outcome.detail}" for one, outcome in done.kept.items()}
        printed.print_json({"requeued": [str(one) for one in done.sent], "kept": kept, "dry_run": dry_run})
    else:
        letters = printed.many(len(done.sent), "dead letter")
        typer.echo(f"{'would requeue' if dry_run else 'requeued'} {letters} of consumer {printed.plain(consumer)}")
        for one, outcome in done.kept.items():
            typer.echo(f"{one} stays dead: {outcome.reason}: {printed.plain(outcome.detail)}")
    return 0 if done.sent and not done.kept else 1


def _from_environment() -> Settings:
    try:
        return load(None)
    except ConfigurationError as problem:
        msg = f"config: with --consumer the sinks are needed, and the environment does not tell: give --config ({problem})"
        raise ConfigurationError(msg.replace("\n", "; ")) from None


def _check_sink(settings: Settings, name: str) -> None:
    section = settings.sinks.get(name)
    if section is None:
        msg = f"to: {name!r} is not one of [sinks]: {', '.join(settings.sinks) or 'none'}"
        raise ConfigurationError(msg)
    if isinstance(section, InProcessSection):
        msg = f"to: {name!r} is in-process: it lives in the daemon, and nobody else can publish to it"
        raise ConfigurationError(msg)


def _sink_of(settings: Settings, name: str, stack: AsyncExitStack) -> Sink:
    """Return the sink, in which each topic is called what the first route that leads it there calls it, or else by its own name."""
    broker = make_broker(settings.sinks[name], stack)
    routes = [Route(Pattern(route.topics), broker.sink(route.destination)) for route in settings.routes if route.sink == name]
    return Router([*routes, Route(Pattern(">"), broker.sink("{topic}"))])


class _ThroughOutbox:
    """A Sink for the in-process broker, which lives in the daemon: puts messages into the outbox, and the pump brings them there."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        return [await self._put(message) for message in messages]

    async def _put(self, message: Message) -> Outcome:
        route = next((route for route in self._settings.routes if Pattern(route.topics).matches(message.topic)), None)
        if route is None or route.sink != self._name:
            return Rejected(ports.Reason.NO_ROUTE, f"no route leads topic {message.topic!r} to {self._name!r}")
        postgres = self._settings.postgres
        # The mark of a copy is for brokers that would take it for a duplicate; the outbox's own rows have none.
        headers = json.dumps({name: value for name, value in message.headers.items() if name != REPLAYED})
        fields = (message.id, message.topic, message.key, message.payload, message.content_type, headers)
        try:
            async with await session.connect(postgres.dsn.get_secret_value(), OPERATOR) as connection:
                await connection.execute(sql.bind(sql.INSERT_ONE, postgres.schema_), (*fields, None, None, 0))
        except psycopg.OperationalError as problem:
            return Released(ports.Reason.UNAVAILABLE, told(problem))
        except psycopg.Error as problem:
            return Rejected(ports.Reason.REFUSED, told(problem))
        return PUBLISHED


def _note_signals(stop: asyncio.Event) -> list[int]:
    """Let the first SIGINT or SIGTERM set the event, and note it; the next one ends the process at once."""
    loop = asyncio.get_running_loop()
    noted: list[int] = []

    def note(number: signal.Signals) -> None:
        noted.append(number)
        stop.set()
        for either in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(either)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, note, number)
    return noted
