"""The Source contract on Postgres and the three brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from bridges.errors import SourceUnavailable
from bridges.observed import Metrics, ObservedSource
from tests.contracts.claims import claimed, drain
from tests.contracts.harness_sources import (
    InProcessSourceHarness,
    JetStreamSourceHarness,
    KafkaSourceHarness,
    OutboxSourceHarness,
    jetstream_source,
    kafka_source,
    outbox_source,
)
from tests.contracts.messages import series
from tests.contracts.source import SourceContract, SourceHarness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bridges.ports import Source
    from outbox.demo.engines import PrivateKafka, PrivateNats
    from outbox.embedded import PrivatePostgres
    from outbox.source import OutboxSource


class TestInProcessSource(SourceContract):
    @pytest.fixture
    async def source_harness(self) -> InProcessSourceHarness:
        return InProcessSourceHarness()

    async def test_unavailable_while_its_engine_is_away_and_recovers(self, source_harness: SourceHarness) -> None:
        """Different: its broker lives and ends in this process. Closed, the source says so, and there is nothing to come back."""
        await source_harness.feed(series(source_harness.topics, 3))
        await drain(source_harness.source, 3)
        assert isinstance(source_harness, InProcessSourceHarness)
        assert hasattr(source_harness.source, "close")
        source_harness.source.close()
        source_harness.source.close()
        with pytest.raises(SourceUnavailable):
            await claimed(source_harness.source, lambda batch: None)


class TestJetStreamSource(SourceContract):
    @pytest.fixture
    async def source_harness(self, private_nats: PrivateNats) -> AsyncIterator[JetStreamSourceHarness]:
        async with jetstream_source(private_nats) as harness:
            yield harness


class TestKafkaSource(SourceContract):
    @pytest.fixture
    async def source_harness(self, private_kafka: PrivateKafka, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KafkaSourceHarness]:
        # A silent broker is noticed after half a minute, and a commit is given up after ten seconds: too long for a test to wait.
        monkeypatch.setattr("bridges.kafka.source._QUIET", 1.0)
        monkeypatch.setattr("bridges.kafka.source._PATIENCE", 5.0)
        monkeypatch.setattr("bridges.kafka.batch._COMMIT", 1.0)
        async with kafka_source(private_kafka) as harness:
            yield harness


class TestOutboxSource(SourceContract):
    @pytest.fixture
    async def source_harness(self, private_postgres: PrivatePostgres, private_schemas: str) -> AsyncIterator[OutboxSourceHarness]:
        async with outbox_source(private_postgres) as harness:
            yield harness


class ObservedSourceHarness(OutboxSourceHarness):
    def _wrap(self, source: OutboxSource) -> Source:
        return ObservedSource(source, "outbox", Metrics(CollectorRegistry()))


class TestObservedSource(SourceContract):
    @pytest.fixture
    async def source_harness(self, private_postgres: PrivatePostgres, private_schemas: str) -> AsyncIterator[ObservedSourceHarness]:
        harness = ObservedSourceHarness(private_postgres)
        try:
            yield harness
        finally:
            await harness.undo()
