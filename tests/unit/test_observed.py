"""Metrics around a Source and a Sink: their names are a contract, and the wrappers change nothing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry

from bridges.errors import SourceUnavailable
from bridges.message import Message
from bridges.observed import Metrics, ObservedSink, ObservedSource, Progress
from bridges.ports import BEHIND, PUBLISHED, Outcome, Published, Reason, Rejected, Released, Retry
from tests.unit.fakes import FakeSink, FakeSource, batch_of, message

# Section 9 of the design: those of the bridges. The others belong to the backlog (tests/unit/test_health.py) and to dedupe.
NAMES = {
    "outbox_messages_published_total",
    "outbox_outcomes_total",
    "outbox_claim_seconds",
    "outbox_publish_seconds",
    "outbox_settle_seconds",
    "outbox_latency_seconds",
    "outbox_batch_messages",
    "outbox_sink_up",
    "outbox_last_progress_timestamp_seconds",
}
AWAY = Released(Reason.UNAVAILABLE, "refused")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def returning(outcomes: list[Outcome]) -> FakeSink:
    async def publish(_: object) -> list[Outcome]:
        return outcomes

    return FakeSink(publish)


def test_the_names_are_those_of_the_contract(registry: CollectorRegistry, metrics: Metrics) -> None:
    counters = {metric.name for metric in registry.collect() if metric.type == "counter"}
    assert {f"{metric.name}_total" if metric.name in counters else metric.name for metric in registry.collect()} == NAMES


def test_the_labels_are_those_of_the_contract(metrics: Metrics) -> None:
    """Bounded by configuration: no topic, no key, no id."""
    assert {metric._labelnames for metric in vars(metrics).values()} == {("source",), ("sink",), ("sink", "outcome", "reason")}


async def test_a_sink_is_transparent(metrics: Metrics) -> None:
    outcomes: list[Outcome] = [PUBLISHED, AWAY, Retry(Reason.REFUSED), Rejected(Reason.INVALID), BEHIND]
    inner, batch = returning(outcomes), batch_of(*[None] * 5)
    assert await ObservedSink(inner, "events", metrics).publish(batch) is outcomes
    assert inner.calls == [batch]


async def test_a_sinks_error_passes_through(metrics: Metrics) -> None:
    async def publish(_: object) -> list[Outcome]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ObservedSink(FakeSink(publish), "events", metrics).publish(batch_of(None))


async def test_a_source_is_transparent(metrics: Metrics) -> None:
    batch = batch_of("a", None)
    inner = FakeSource(batch, batch)
    source = ObservedSource(inner, "outbox", metrics, Progress())
    async with source.claim(10) as claimed:
        assert claimed.messages == batch
        await claimed.settle([PUBLISHED, AWAY])
    async with source.claim(1) as claimed:
        assert claimed.messages == batch[:1]
    assert inner.settled == [(batch, [PUBLISHED, AWAY])]
    assert inner.given_back == [batch[:1]]


async def test_a_wait_is_the_inner_sources(metrics: Metrics) -> None:
    inner = FakeSource(batch_of(None))  # one that has something to claim returns at once
    await ObservedSource(inner, "outbox", metrics, Progress()).wait(12.5)
    assert inner.waits == [12.5]


async def test_outcomes_are_counted_by_kind_and_reason(registry: CollectorRegistry, metrics: Metrics) -> None:
    outcomes: list[Outcome] = [PUBLISHED, Published(duplicate=True), AWAY, AWAY, Rejected(Reason.TOO_LARGE)]
    await ObservedSink(returning(outcomes), "events", metrics).publish(batch_of(*[None] * 5))

    def count(outcome: str, reason: str = "") -> float | None:
        return registry.get_sample_value("outbox_outcomes_total", {"sink": "events", "outcome": outcome, "reason": reason})

    assert (count("published"), count("duplicate"), count("released", "unavailable"), count("rejected", "too_large")) == (2, 1, 2, 1)
    assert registry.get_sample_value("outbox_messages_published_total", {"sink": "events"}) == 2
    assert registry.get_sample_value("outbox_publish_seconds_count", {"sink": "events"}) == 1


async def test_the_latency_is_that_of_what_was_published(registry: CollectorRegistry, metrics: Metrics) -> None:
    now = datetime.now(UTC)
    batch = [message(number)._replace(created_at=now - timedelta(seconds=seconds)) for number, seconds in enumerate((10, 10, -60))]
    batch.append(Message(message(9).id, "t", b""))
    await ObservedSink(returning([PUBLISHED, AWAY, PUBLISHED, PUBLISHED]), "events", metrics).publish(batch)
    assert registry.get_sample_value("outbox_latency_seconds_count", {"sink": "events"}) == 2
    total = registry.get_sample_value("outbox_latency_seconds_sum", {"sink": "events"})
    assert total is not None
    assert 10 <= total < 20, "a clock that is ahead of ours counts as nothing"


@pytest.mark.parametrize(
    ("outcome", "up"),
    [(PUBLISHED, 1), (AWAY, 0), (Released(Reason.TIMEOUT), 0), (BEHIND, 1), (Released(Reason.STOPPING), 1), (Rejected(Reason.INVALID), 1)],
)
async def test_a_sink_is_up_unless_the_last_publish_met_an_outage(
    registry: CollectorRegistry, metrics: Metrics, outcome: Outcome, up: int
) -> None:
    progress = Progress()
    await ObservedSink(returning([outcome]), "events", metrics, progress).publish(batch_of(None))
    assert registry.get_sample_value("outbox_sink_up", {"sink": "events"}) == up
    assert (progress.sink_trouble is None) == bool(up)


async def test_progress_is_something_published(metrics: Metrics) -> None:
    progress = Progress()
    source = ObservedSource(FakeSource(batch_of(None), batch_of(None)), "outbox", metrics, progress)
    progress.moved_at = 0
    async with source.claim(1) as claimed:
        await claimed.settle([AWAY])
    assert progress.moved_at == 0, "an outage is no progress"
    async with source.claim(1) as claimed:
        await claimed.settle([PUBLISHED])
    assert progress.moved_at > 0
    progress.moved_at = 0
    async with source.claim(1):
        pass
    assert progress.moved_at == 0, "a claim that found nothing may have found every lane taken"


async def test_a_source_that_is_away_is_named_until_it_is_back(metrics: Metrics) -> None:
    progress = Progress()
    progress.turned_at = 0
    source = ObservedSource(FakeSource(SourceUnavailable("no route to host"), batch_of(None)), "outbox", metrics, progress)
    with pytest.raises(SourceUnavailable):
        async with source.claim(1):
            pytest.fail("nothing was claimed")
    assert progress.source_trouble == "no route to host"
    assert progress.turned_at > 0, "the loop came round all the same"
    async with source.claim(1):
        assert progress.source_trouble is None


async def test_a_sink_that_never_answers_is_not_up(registry: CollectorRegistry, metrics: Metrics) -> None:
    """The Bridge gives up on it by cancelling, and neither outbox_sink_up nor the readiness probe ever hears of it."""

    async def publish(_: object) -> list[Outcome]:
        await asyncio.Event().wait()
        raise AssertionError

    progress = Progress()
    sink = ObservedSink(FakeSink(publish), "events", metrics, progress)
    await ObservedSink(returning([PUBLISHED]), "events", metrics).publish(batch_of(None))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await sink.publish(batch_of(None))
    assert progress.sink_trouble is not None
    assert registry.get_sample_value("outbox_sink_up", {"sink": "events"}) == 0
