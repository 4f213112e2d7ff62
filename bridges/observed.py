"""Metrics and spans around any Source or Sink: wrappers, which are Sources and Sinks themselves. The names are a public contract.

Labels are bounded by configuration: the names of sources and sinks, the kinds of outcome, and `bridges.ports.Reason`.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from bridges.errors import SourceUnavailable
from bridges.ports import Published, Reason, Released
from bridges.tracing import sending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bridges.message import Message
    from bridges.ports import Batch, Outcome, Sink, Source

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LATENCIES: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1800, 7200)
_SIZES: Final = (1, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10000)


class Metrics:
    """Every metric of the bridges, registered once."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.published = Counter("outbox_messages_published", "Messages acknowledged", ["sink"], registry=registry)
        self.outcomes = Counter(
            "outbox_outcomes", "Outcomes of publishing, and their reasons", ["sink", "outcome", "reason"], registry=registry
        )
        self.claim = Histogram("outbox_claim_seconds", "Taking a batch", ["source"], buckets=_SECONDS, registry=registry)
        self.publish = Histogram("outbox_publish_seconds", "Publishing a batch", ["sink"], buckets=_SECONDS, registry=registry)
        self.settle = Histogram("outbox_settle_seconds", "Settling a batch", ["source"], buckets=_SECONDS, registry=registry)
        self.batch = Histogram("outbox_batch_messages", "Messages in a claimed batch", ["source"], buckets=_SIZES, registry=registry)
        self.latency = Histogram("outbox_latency_seconds", "From put to acknowledged", ["sink"], buckets=_LATENCIES, registry=registry)
        self.sink_up = Gauge("outbox_sink_up", "1 if the last publish met no outage", ["sink"], registry=registry)
        self.progress = Gauge(
            "outbox_last_progress_timestamp_seconds",
            "Unix time at which a message was last acknowledged, or nothing was due",
            ["source"],
            registry=registry,
        )


class Progress:
    """What a bridge was last seen doing, in monotonic seconds: what health is judged by."""

    def __init__(self) -> None:
        self.turned_at = time.monotonic()
        """The loop came round: it claimed, failed to claim, or finished waiting."""
        self.moved_at = time.monotonic()
        """A message was acknowledged."""
        self.source_trouble: str | None = None
        self._sink_trouble: str | None = None
        self.sink_troubled_at = 0.0
        """The sink was last in trouble."""

    @property
    def sink_trouble(self) -> str | None:
        """What the last publish met, if it was an outage."""
        return self._sink_trouble

    @sink_trouble.setter
    def sink_trouble(self, trouble: str | None) -> None:
        self._sink_trouble = trouble
        if trouble is not None:
            self.sink_troubled_at = time.monotonic()

    def turned(self) -> None:
        """Note that the loop came round."""
        self.turned_at = time.monotonic()

    def moved(self) -> None:
        """Note that a message was acknowledged."""
        self.moved_at = time.monotonic()


class ObservedSink:
    """A Sink that counts its outcomes, times its publishing and traces each call."""

    def __init__(self, sink: Sink, name: str, metrics: Metrics, progress: Progress | None = None) -> None:
        self._sink = sink
        self._name = name
        self._metrics = metrics
        self._progress = progress or Progress()
        self._published = metrics.published.labels(name)
        self._seconds = metrics.publish.labels(name)
        self._latency = metrics.latency.labels(name)
        self._up = metrics.sink_up.labels(name)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Publish through the inner sink."""
        try:
            with self._seconds.time(), sending(messages, self._name):
                outcomes = await self._sink.publish(messages)
        except BaseException as problem:
            # Cancelled by a deadline, most likely: that is trouble too.
            self._progress.sink_trouble = f"no answer: {type(problem).__name__}"
            self._up.set(0)
            raise
        published = 0
        trouble = None
        now = datetime.now(UTC)
        for message, outcome in zip(messages, outcomes, strict=True):
            if isinstance(outcome, Published):
                published += 1
                if message.created_at is not None:
                    # Two clocks: the database's and ours. For a graph, and for no decision.
                    self._latency.observe(max(0.0, (now - message.created_at).total_seconds()))
                if outcome.duplicate:
                    self._metrics.outcomes.labels(self._name, "duplicate", "").inc()
            else:
                self._metrics.outcomes.labels(self._name, type(outcome).__name__.lower(), outcome.reason).inc()
                if isinstance(outcome, Released) and outcome.reason not in {Reason.BEHIND, Reason.STOPPING}:
                    trouble = f"{outcome.reason}: {outcome.detail}"
        if published:
            self._published.inc(published)
            self._metrics.outcomes.labels(self._name, "published", "").inc(published)
        self._progress.sink_trouble = trouble
        self._up.set(trouble is None)
        return outcomes


class ObservedSource:
    """A Source that times its claims and settlements, and notes that its loop goes round."""

    def __init__(self, source: Source, name: str, metrics: Metrics, progress: Progress | None = None) -> None:
        self._source = source
        self._progress = progress or Progress()
        self._claim_seconds = metrics.claim.labels(name)
        self._settle_seconds = metrics.settle.labels(name)
        self._size = metrics.batch.labels(name)
        self._last = metrics.progress.labels(name)

    @asynccontextmanager
    async def claim(self, limit: int) -> AsyncIterator[Batch]:
        """Claim from the inner source."""
        began = time.perf_counter()
        self._progress.turned()
        try:
            async with self._source.claim(limit) as batch:
                self._progress.source_trouble = None
                if batch.messages:
                    self._claim_seconds.observe(time.perf_counter() - began)
                    self._size.observe(len(batch.messages))
                else:
                    self._last.set_to_current_time()
                yield _ObservedBatch(batch, self)
        except SourceUnavailable as problem:
            self._progress.source_trouble = str(problem)
            raise
        finally:
            self._progress.turned()

    async def wait(self, timeout: float) -> None:
        """Wait on the inner source."""
        await self._source.wait(timeout)
        self._progress.turned()

    def _moved(self) -> None:
        self._progress.moved()
        self._last.set_to_current_time()

    async def _settle(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        with self._settle_seconds.time():
            await batch.settle(outcomes)
        if any(isinstance(outcome, Published) for outcome in outcomes):
            self._moved()


class _ObservedBatch:
    def __init__(self, batch: Batch, source: ObservedSource) -> None:
        self._batch = batch
        self._source = source

    @property
    def messages(self) -> Sequence[Message]:
        return self._batch.messages

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        await self._source._settle(self._batch, outcomes)
