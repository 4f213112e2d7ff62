"""The Sink contract on the three brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contracts.harness_inprocess import InProcessSinkHarness, inprocess_sink
from tests.contracts.harness_jetstream import JetStreamSinkHarness, jetstream_sink
from tests.contracts.harness_kafka import KafkaSinkHarness, kafka_sink
from tests.contracts.sink import BrokerContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from outbox.demo.engines import PrivateKafka, PrivateNats


class TestInProcessSink(BrokerContract):
    @pytest.fixture
    async def sink_harness(self) -> AsyncIterator[InProcessSinkHarness]:
        async with inprocess_sink() as harness:
            yield harness


class TestJetStreamSink(BrokerContract):
    @pytest.fixture
    async def sink_harness(self, private_nats: PrivateNats) -> AsyncIterator[JetStreamSinkHarness]:
        async with jetstream_sink(private_nats) as harness:
            yield harness


class TestJetStreamSinkWithAtomicBatches(BrokerContract):
    @pytest.fixture
    async def sink_harness(self, private_nats: PrivateNats) -> AsyncIterator[JetStreamSinkHarness]:
        async with jetstream_sink(private_nats, allow_atomic=True) as harness:
            yield harness


class TestKafkaSink(BrokerContract):
    @pytest.fixture
    async def sink_harness(self, private_kafka: PrivateKafka) -> AsyncIterator[KafkaSinkHarness]:
        async with kafka_sink(private_kafka) as harness:
            yield harness
