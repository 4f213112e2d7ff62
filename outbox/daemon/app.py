"""The composition root: everything is made, joined and run here."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import uvloop
from prometheus_client import Counter, Gauge, Histogram

from bridges.backoff import Backoff
from bridges.bridge import Bridge
from bridges.deadline import happens
from bridges.errors import ConfigurationError
from bridges.failpoints import Failpoints
from bridges.observed import Metrics, ObservedSource, Progress
from bridges.ports import Published, Released
from bridges.router import Router
from dedupe.consumer import Consumer
from dedupe.retention import PROCESSED
from migrations.names import MigrationError
from migrations.runner import check_up_to_date
from outbox.daemon.bridging import make_bridges
from outbox.daemon.brokers import Broker, expose_embedded, make_broker
from outbox.daemon.days import ConsumersDays, archived, days_of
from outbox.daemon.health import Health
from outbox.daemon.http import make_server
from outbox.daemon.routing import make_routing
from outbox.daemon.telemetry import set_up_logging, set_up_tracing
from outbox.janitor import Janitor
from outbox.source import OutboxSource

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from bridges.message import Message
    from bridges.ports import Outcome, Sink
    from dedupe.handler import Handler
    from outbox.daemon.config import ConsumerSection, Settings

log = logging.getLogger("outboxd")

_FIRST_DAYS = 5.0
"""Seconds that the daemon's start may be held up by the partitions' first turn."""


def run(settings: Settings) -> int:
    """Run the daemon until a signal ends it, and return the exit code."""
    set_up_logging(settings.telemetry)
    flush = set_up_tracing(settings.telemetry)
    try:
        uvloop.run(_Daemon(settings).run())
    except Exception as problem:
        leaves = _leaves(problem)
        if all(isinstance(leaf, ConfigurationError | MigrationError) for leaf in leaves):
            raise  # a mistake of configuration: one line, from the command line
        for leaf in leaves:
            log.critical("outboxd ends: %s", leaf, exc_info=leaf)
        return 1
    finally:
        flush()
    return 0


def check_schemas(settings: Settings) -> None:
    """Raise `MigrationError` unless the schemas fit this version, and `psycopg.Error` if that cannot be asked."""
    postgres = settings.postgres
    wanted = {(postgres.dsn.get_secret_value(), "outbox", postgres.schema_): None} if settings.uses_outbox else {}
    for consumer in settings.consumers:
        wanted[(consumer.dsn or postgres.dsn).get_secret_value(), "dedupe", postgres.dedupe_schema] = None
    for dsn, track, schema in wanted:
        with psycopg.connect(dsn, connect_timeout=5) as connection:
            check_up_to_date(connection, track, schema=schema)


def load_consumer(section: ConsumerSection) -> Consumer:
    """Import the consumer that ``module:name`` stands for, from where `outboxd` was started too. Raises `ConfigurationError`."""
    module, _, name = section.app.partition(":")
    # As `python -m` does; a script's own folder, which the interpreter puts there instead, is that of the installed programs.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as problem:
        msg = f"consumers.app: {section.app!r} cannot be imported: {problem}"
        raise ConfigurationError(msg) from problem
    if not isinstance(found, Consumer):
        msg = f"consumers.app: {section.app!r} is a {type(found).__name__}, not a dedupe.Consumer"
        raise ConfigurationError(msg)
    return found


class _Daemon:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._metrics = Metrics()
        self._consumer_metrics = _ConsumerMetrics()
        # A loop may rightly take as long as its batch may.
        self._health = Health(stall_after=max(settings.http.stall_after, 2 * settings.pump.publish_timeout), sinks=settings.sinks)
        self._failpoints = Failpoints.from_environment()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        settings = self._settings
        loop = asyncio.get_running_loop()
        Gauge("outbox_tasks", "Tasks of the event loop: a leak is seen here").set_function(lambda: len(asyncio.all_tasks(loop)))
        self._take_signals()
        if not await self._schemas_fit():
            return
        days = await self._make_days()
        async with AsyncExitStack() as stack:
            brokers = {name: make_broker(section, stack) for name, section in settings.sinks.items()}
            expose_embedded(brokers)
            # Consumers first: an in-process subscription must be there before the first message is.
            consumers = [self._make_consumer(section, brokers) for section in settings.consumers]
            bridges = await make_bridges(settings, brokers, self._metrics, self._health, self._failpoints, stack)
            pump = await self._make_pump(brokers, stack) if settings.routes else None
            async with asyncio.TaskGroup() as group:
                consuming = [group.create_task(running, name=f"consumer {consumer.name}") for consumer, running in consumers]
                bridging = [group.create_task(bridge.run(), name="bridge") for bridge in bridges]
                pumping = group.create_task(pump.run(), name="pump") if pump else None
                background = [group.create_task(chore) for chore in self._chores(days)]
                if settings.http.listen:
                    server = make_server(settings.http.listen, self._health)
                    background.append(group.create_task(server.serve()))
                log.info("outboxd runs: %d routes, %d consumers, %d bridges", len(settings.routes), len(consumers), len(bridges))
                await self._stopping.wait()
                self._health.drain()
                # The pump first: in process, the others are what its last batches wait for.
                if pump and pumping:
                    pump.stop()
                    await asyncio.wait({pumping})
                for bridge in bridges:
                    bridge.stop()
                if bridging:
                    await asyncio.wait(bridging)
                for consumer, _ in consumers:
                    consumer.stop()
                if consuming:
                    await asyncio.wait(consuming)
                for task in background:
                    task.cancel()
        log.info("outboxd has stopped")

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def stop(name: str) -> None:
            if self._stopping.is_set():
                log.warning("second signal: leaving at once; Postgres rolls back what is in flight")
                os._exit(128 + signal.Signals[name].value)
            log.info("%s: draining, for %g s at the most", name, self._settings.pump.drain_timeout)
            self._stopping.set()
            # Neither a frozen broker nor a blocked loop holds up the end: what is in flight is given back by the server.
            last = threading.Timer(self._settings.pump.drain_timeout - 0.2, _leave)
            last.daemon = True
            last.start()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number.name)

    async def _schemas_fit(self) -> bool:
        """Wait for Postgres, if need be; False if a signal came first. Raises `MigrationError` for schemas that do not fit."""
        waits = Backoff(first=0.2, cap=5.0)
        attempt = 0
        while not self._stopping.is_set():
            try:
                await asyncio.to_thread(check_schemas, self._settings)
            except psycopg.OperationalError as problem:
                attempt += 1
                if attempt == 1:
                    log.warning("Postgres cannot be reached, waiting for it: %s", str(problem).strip().splitlines()[-1])
                await happens(self._stopping, waits.delay(attempt))
            else:
                return True
        return False

    async def _make_pump(self, brokers: dict[str, Broker], stack: AsyncExitStack) -> Bridge:
        settings, pump = self._settings, self._settings.pump
        progress = Progress()
        self._health.watch("pump", progress, live=True)
        sinks = {route.sink: Progress() for route in settings.routes}
        for name, sink_progress in sinks.items():
            self._health.watch(f"sink {name}", sink_progress, sink=name)
        routing = make_routing(settings, brokers, self._metrics, sinks)
        source = OutboxSource(
            settings.postgres.dsn.get_secret_value(),
            schema=settings.postgres.schema_,
            claims=pump.claims,
            poll_interval=pump.poll_interval,
            doorbell=settings.postgres.doorbell,
            retry=pump.retry.backoff(),
            claim_timeout=2 * pump.publish_timeout,
            policy=routing.policy,
            breakers=routing.breakers,
            max_held=pump.max_held,
        )
        await stack.enter_async_context(source)
        return Bridge(
            self._failpoints.source("pump", ObservedSource(source, "outbox", self._metrics, progress)),
            self._failpoints.sink("pump", Router(routing.routes)),
            name="pump",
            batch=pump.batch,
            claims=pump.claims,
            idle=min(30.0, settings.http.stall_after / 2),
            publish_timeout=pump.publish_timeout,
            drain_timeout=pump.drain_timeout * 0.5,
        )

    def _make_consumer(self, section: ConsumerSection, brokers: dict[str, Broker]) -> tuple[Consumer, Coroutine[Any, Any, None]]:
        settings = self._settings
        consumer = load_consumer(section)
        name = settings.source_of(section)
        routes = [route for route in settings.routes if route.sink == name]
        progress = Progress()
        self._health.watch(f"consumer {consumer.name}", progress)
        source = ObservedSource(
            brokers[name].source(consumer.name, consumer.patterns, routes, section.topics),
            f"consumer {consumer.name}",
            self._metrics,
            progress,
        )
        metrics = self._consumer_metrics

        def wrap(sink: Sink) -> Sink:
            return self._failpoints.sink("consumer", _CountedConsumer(sink, consumer.name, metrics, progress))

        def time_handler(handler: Handler) -> Handler:
            seconds = metrics.seconds.labels(consumer.name)
            handler = self._failpoints.handler(handler)

            async def timed(message: Message, connection: psycopg.AsyncConnection[Any]) -> None:
                with seconds.time():
                    await handler(message, connection)

            return timed

        dsn = (section.dsn or settings.postgres.dsn).get_secret_value()
        running = consumer.run(
            self._failpoints.source("consumer", source),
            dsn=dsn,
            schema=settings.postgres.dedupe_schema,
            wrap=wrap,
            wrap_handler=time_handler,
        )
        return consumer, running

    async def _make_days(self) -> list[ConsumersDays]:
        """Make the consumers' days, before they are at work on them: a table that is in use all the time has no room for a new one."""
        keep = self._settings.dedupe.keep
        places = [days for days in days_of(self._settings, load_consumer) if days.daily is PROCESSED]
        made = [ConsumersDays(days.dsn, schema=days.schema, keep=keep) for days in places]
        await asyncio.gather(*(days.turn(within=_FIRST_DAYS) for days in made))
        return made

    def _chores(self, days: Sequence[ConsumersDays]) -> Iterator[Coroutine[Any, Any, None]]:
        """Yield what runs beside the pump and the consumers, in nobody's way: the janitor, and one for each database of consumers."""
        settings = self._settings
        if settings.uses_outbox:
            yield Janitor(
                settings.postgres.dsn.get_secret_value(),
                self._health.note_backlog,
                schema=settings.postgres.schema_,
                measure_every=settings.http.measure_every,
                archive=archived(settings),
            ).run()
        for each in days:
            yield each.run()


class _ConsumerMetrics:
    def __init__(self) -> None:
        self.processed = Counter("dedupe_processed", "Messages whose effect was committed", ["consumer"])
        self.duplicates = Counter("dedupe_duplicates", "Messages whose effect had been committed before", ["consumer"])
        self.seconds = Histogram("dedupe_handler_seconds", "Handling a message", ["consumer"])


class _CountedConsumer:
    """A Sink that counts a consumer's effects and duplicates."""

    def __init__(self, sink: Sink, name: str, metrics: _ConsumerMetrics, progress: Progress) -> None:
        self._sink = sink
        self._progress = progress
        self._processed = metrics.processed.labels(name)
        self._duplicates = metrics.duplicates.labels(name)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        outcomes = await self._sink.publish(messages)
        duplicates = sum(isinstance(outcome, Published) and outcome.duplicate for outcome in outcomes)
        self._duplicates.inc(duplicates)
        self._processed.inc(sum(isinstance(outcome, Published) for outcome in outcomes) - duplicates)
        released = next((outcome for outcome in outcomes if isinstance(outcome, Released)), None)
        self._progress.sink_trouble = f"{released.reason}: {released.detail}" if released else None
        return outcomes


def _leave() -> None:
    log.warning("the drain timeout is over: leaving; Postgres rolls back what is in flight")
    os._exit(0)


def _leaves(problem: BaseException) -> list[BaseException]:
    if isinstance(problem, BaseExceptionGroup):
        return [leaf for inner in problem.exceptions for leaf in _leaves(inner)]
    return [problem]
