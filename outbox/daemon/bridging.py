"""The bridges of the configuration: made, watched and counted here, and run beside the pump."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, Counter
from psycopg_pool import AsyncConnectionPool

from bridges.breaker import trouble_in
from bridges.bridge import Bridge
from bridges.observed import ObservedSink, ObservedSource, Progress
from bridges.router import PATIENCE
from bridges.topics import Mapping
from outbox.bridged import BuryingSink, Crossing, CrossingSink
from outbox.daemon.sections import RouteSection
from outbox.sink import OutboxSink

if TYPE_CHECKING:
    from collections.abc import Mapping as ByName
    from collections.abc import Sequence
    from contextlib import AsyncExitStack

    from bridges.failpoints import Failpoints
    from bridges.message import Message
    from bridges.observed import Metrics
    from bridges.ports import Outcome, Sink
    from outbox.daemon.brokers import Broker
    from outbox.daemon.config import Settings
    from outbox.daemon.crossings import BridgeSection
    from outbox.daemon.health import Health

_DRAIN = 0.3
"""The share of the daemon's drain that a bridge may take: the pump, which is first, takes half."""


class BridgeMetrics:
    """What only bridges count."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.loops = Counter(
            "outbox_bridge_loops", "Messages that came back to the bridge, and were dropped", ["bridge"], registry=registry
        )
        self.dropped = Counter("outbox_bridge_dropped", "Messages dropped for want of room in the buffer", ["bridge"], registry=registry)


async def make_bridges(
    settings: Settings, brokers: ByName[str, Broker], metrics: Metrics, health: Health, failpoints: Failpoints, stack: AsyncExitStack
) -> list[Bridge]:
    """Return the configured bridges, ready to run; what they hold open is closed by ``stack``."""
    if not settings.bridges:
        return []
    counts = BridgeMetrics()
    pool = make_pool(settings)
    stack.push_async_callback(pool.close)
    await pool.open()
    return [_make(bridge, settings, brokers, metrics, counts, health, failpoints, pool) for bridge in settings.bridges]


def make_pool(settings: Settings) -> AsyncConnectionPool:
    """Return the bridges' connections to the outbox, to be opened: as many as there may be claims in flight."""
    return AsyncConnectionPool(
        settings.postgres.dsn.get_secret_value(),
        min_size=1,
        max_size=settings.pump.claims * len(settings.bridges),
        open=False,
        timeout=5.0,
        kwargs={
            "application_name": "outboxd bridges",
            "autocommit": True,
            "connect_timeout": 5,
            "target_session_attrs": "read-write",
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": int(settings.pump.publish_timeout * 1000),
            "prepare_threshold": None,  # behind a transaction pooler a prepared statement may be on another server session
        },
    )


def _make(
    section: BridgeSection,
    settings: Settings,
    brokers: ByName[str, Broker],
    metrics: Metrics,
    counts: BridgeMetrics,
    health: Health,
    failpoints: Failpoints,
    pool: AsyncConnectionPool,
) -> Bridge:
    pump, schema = settings.pump, settings.postgres.schema_
    label = f"bridge {section.name}"
    progress = Progress()
    health.watch(label, progress, live=True)
    routes = [route for route in settings.routes if route.sink == section.source]
    source = brokers[section.source].source_of_bridge(section, routes, counts.dropped.labels(section.name).inc)
    crossing = Crossing(section.name, Mapping(section.mapping) if section.mapping is not None else None)
    if section.via == "outbox":
        inner: Sink = OutboxSink(pool, schema=schema, timeout=min(10.0, pump.publish_timeout - PATIENCE))
    else:
        inner = brokers[section.sink].sink("{topic}")
    crossed = CrossingSink(ObservedSink(inner, label, metrics, progress), crossing, counts.loops.labels(section.name).inc)
    # Every sink leaves that much of the time for a publish: it is for burying here.
    buried = BuryingSink(crossed, crossing, pool, schema=schema, retry=pump.retry.backoff(), timeout=PATIENCE)
    return Bridge(
        failpoints.source("bridge", ObservedSource(source, label, metrics, progress)),
        failpoints.sink("bridge", _WatchedSink(buried, progress)),
        name=label,
        batch=pump.batch,
        claims=pump.claims,
        idle=min(30.0, settings.http.stall_after / 2),
        publish_timeout=pump.publish_timeout,
        drain_timeout=pump.drain_timeout * _DRAIN,
    )


class _WatchedSink:
    """A Sink that says what else is wrong than with its bridge's destination: what keeps a dead letter from being kept."""

    def __init__(self, sink: Sink, progress: Progress) -> None:
        self._sink = sink
        self._progress = progress

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        outcomes = await self._sink.publish(messages)
        if trouble := trouble_in(outcomes):
            self._progress.sink_trouble = f"{trouble.reason}: {trouble.detail}"
        return outcomes


def written_by_bridges(settings: Settings, sink: str) -> list[RouteSection]:
    """Return what bridges publish to a sink, as if routes carried it there: what is not known beforehand is left out."""
    return [
        RouteSection(topics=made, sink=sink)
        for bridge in settings.bridges
        if bridge.sink == sink and bridge.via is None
        for made in bridge.makes(settings)
        if made != ">"
    ]
