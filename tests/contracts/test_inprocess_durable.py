"""The contracts of Sink and Source on the in-process broker with a log on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridges.errors import SourceUnavailable
from tests.contracts.claims import claimed, drain
from tests.contracts.harness_inprocess import DurableSinkHarness, durable_sink
from tests.contracts.harness_sources import DurableSourceHarness, durable_source
from tests.contracts.messages import by_key, series
from tests.contracts.sink import BrokerContract
from tests.contracts.source import SourceContract, SourceHarness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class TestDurableInProcessSink(BrokerContract):
    @pytest.fixture
    async def sink_harness(self, tmp_path: Path) -> AsyncIterator[DurableSinkHarness]:
        async with durable_sink(tmp_path) as harness:
            yield harness


class TestDurableInProcessSource(SourceContract):
    @pytest.fixture
    async def source_harness(self, tmp_path: Path) -> AsyncIterator[DurableSourceHarness]:
        async with durable_source(tmp_path) as harness:
            yield harness

    async def test_unavailable_while_its_engine_is_away_and_recovers(self, source_harness: SourceHarness) -> None:
        """Different: it ends with its broker, and says so. Made again at the same place, it has all that was not settled."""
        assert isinstance(source_harness, DurableSourceHarness)
        fed = series(source_harness.topics[:1], 6, keys=2)
        await source_harness.feed(fed)
        async with source_harness.source.claim(4) as batch:
            assert batch.messages
            await source_harness.go_away()
        with pytest.raises(SourceUnavailable):
            await claimed(source_harness.source, lambda batch: None)
        assert by_key(await drain(await source_harness.made_again(), len(fed))) == by_key(fed)
