"""The Source contract on the archive, which is read to its end, and keeps what was read."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest

from bridges.envelope import REPLAYED
from bridges.errors import SourceUnavailable
from bridges.ports import PUBLISHED, Reason, Retry
from outbox.replay import ArchiveSource
from outbox.selection import Selection
from tests.contracts.claims import claimed, drain
from tests.contracts.messages import by_key, ids, message, series
from tests.contracts.outages import Outages
from tests.contracts.source import RETRY, SourceContract, SourceHarness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bridges.message import Message
    from bridges.ports import Batch, Source
    from outbox.embedded import PrivatePostgres


class _Plain:
    """The archive's source, without the header that it adds to each message."""

    def __init__(self, source: ArchiveSource) -> None:
        self._source = source
        self.wait = source.wait

    @asynccontextmanager
    async def claim(self, limit: int) -> AsyncIterator[Batch]:
        async with self._source.claim(limit) as page:
            for place, each in enumerate(page.messages):
                headers = dict(each.headers)
                assert headers.pop(REPLAYED) == str(self._source.replay)
                page.messages[place] = each._replace(headers=headers)
            yield page


class ArchiveSourceHarness:
    topics = ("orders.created", "orders.paid")
    redelivers_within = 1.0

    def __init__(self, engine: PrivatePostgres) -> None:
        self._dsn = engine.dsn
        self._outages = Outages(engine)
        self.go_away, self.come_back = self._outages.go_away, self._outages.come_back
        self._inner = ArchiveSource(self._dsn, Selection(), retry=RETRY)
        self.source: Source = _Plain(self._inner)

    async def made_again(self) -> Source:
        return self.source  # another one is another replay

    async def feed(self, messages: Sequence[Message]) -> None:
        insert = """
            INSERT INTO outbox.archive (position, id, topic, key, payload, content_type, headers, created_at,
                                        published_at, drop_at, priority, lane, destination)
            SELECT coalesce(max(position), 0) + 1, %s, %s, %s, %s, %s, %s::jsonb, coalesce(%s, clock_timestamp()),
                   '2026-01-01Z', '2026-01-02Z', 0, 0, 'events' FROM outbox.archive"""
        async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
            for each in messages:
                row = (each.id, each.topic, each.key, each.payload, each.content_type, json.dumps(dict(each.headers)), each.created_at)
                await connection.execute(insert, row)

    async def dead(self) -> None:
        return None

    async def undo(self) -> None:
        async with self._inner:
            await self._outages.undo()


class TestArchiveSource(SourceContract):
    @pytest.fixture
    async def source_harness(self, private_postgres: PrivatePostgres, private_schemas: str) -> AsyncIterator[ArchiveSourceHarness]:
        harness = ArchiveSourceHarness(private_postgres)
        yield harness
        await harness.undo()

    async def test_retry_is_delivered_again_later(self, source_harness: SourceHarness) -> None:
        """Different: what is behind it in the archive waits as well, since a page follows the one before."""
        slow, quick = message(source_harness.topics[0], key="slow"), message(source_harness.topics[1], key="quick")
        await source_harness.feed([slow, quick])
        loop = asyncio.get_running_loop()
        began = loop.time()
        await drain(source_harness.source, 1, limit=1, outcome=Retry(Reason.REFUSED, "later", after=0.5))
        assert ids(await drain(source_harness.source, 2, limit=1)) == [slow.id, quick.id]
        assert loop.time() - began > 0.4

    async def test_no_message_is_in_two_open_claims(self, source_harness: SourceHarness) -> None:
        """Different: one of them is always empty."""
        fed = series(source_harness.topics, 8)
        await source_harness.feed(fed)
        async with source_harness.source.claim(8) as one, source_harness.source.claim(8) as other:
            assert ids(one.messages) == ids(fed)
            assert list(other.messages) == []
            await other.settle([])
            await one.settle([PUBLISHED] * 8)
        assert await claimed(source_harness.source, lambda batch: None) == []

    async def test_wait_returns_when_something_is_fed(self, source_harness: SourceHarness) -> None:
        """Different: nothing is. It returns when the page that is out is done with."""
        await source_harness.feed(series(source_harness.topics[:1], 1))
        async with source_harness.source.claim(1):
            waiting = asyncio.create_task(source_harness.source.wait(60))
            await asyncio.wait({waiting}, timeout=0.1)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 5)

    async def test_unavailable_while_its_engine_is_away_and_recovers(self, source_harness: SourceHarness) -> None:
        """Different: what was published is so without the engine. Its row in the audit waits, and nothing is sent twice."""
        fed = series(source_harness.topics[:1], 6, keys=2)
        await source_harness.feed(fed)
        with pytest.raises(SourceUnavailable):
            async with source_harness.source.claim(2) as page:
                await source_harness.go_away()
                await page.settle([PUBLISHED] * 2)
        with pytest.raises(SourceUnavailable):
            await claimed(source_harness.source, lambda batch: None)
        await source_harness.come_back()
        assert by_key(await drain(source_harness.source, 4)) == by_key(fed[2:])
