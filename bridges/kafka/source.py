"""Consume topics as a member of a group, and commit what was settled."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from aiokafka.errors import ConsumerStoppedError, IllegalStateError, KafkaConnectionError, KafkaError, UnknownTopicOrPartitionError

from bridges.backoff import Backoff
from bridges.errors import ConfigurationError, SourceUnavailable
from bridges.kafka.batch import HANDOVER, KafkaBatch, Ledger, Rebalances, seek
from bridges.kafka.client import bounded, cut, look_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from aiokafka import ConsumerRecord, TopicPartition

    from bridges.kafka.connection import Kafka

_PATIENCE: Final = 10.0
"""Seconds for a broker's answer."""
_QUIET: Final = 30.0
"""Seconds without a record after which the end of each partition is asked for."""

_TROUBLE = (KafkaError, OSError, ConsumerStoppedError)


class KafkaSource:
    """Consume topics as a member of a group. A partition is in one open batch at a time.

    Args:
        connection: the settings of its consumer.
        group: the group's name; where it got to is stored under it.
        topics: names of topics, which must be there; or else
        pattern: a regular expression for the whole name of a topic.
        retry: how long a `Retry` holds back its partition, and after how many times it is given up.
        linger: seconds a claim waits for a first message.
    """

    def __init__(
        self,
        connection: Kafka,
        *,
        group: str,
        topics: Sequence[str] = (),
        pattern: str | None = None,
        retry: Backoff | None = None,
        linger: float = 1.0,
    ) -> None:
        if not group:
            msg = "group: a name is needed"
            raise ConfigurationError(msg)
        if isinstance(topics, str) or bool(topics) == (pattern is not None):
            msg = "topics, pattern: give a list of names or one pattern, and not both"
            raise ConfigurationError(msg)
        try:
            self._pattern = re.compile(rf"(?:{pattern})\Z") if pattern is not None else None
        except re.error as problem:
            msg = f"pattern: {pattern!r} is no regular expression: {problem}"
            raise ConfigurationError(msg) from problem
        self._connection = connection
        self._group = group
        self._topics = list(topics)
        self._retry = retry or Backoff()
        self._linger = linger
        self._consumer: Any = None
        self._claiming = asyncio.Lock()
        self._ledger = Ledger()
        self._quiet_since = 0.0
        self._trouble = False

    @asynccontextmanager
    async def claim(self, limit: int) -> AsyncIterator[KafkaBatch]:
        """Take up to ``limit`` messages, waiting a moment for the first. Raises `SourceUnavailable`."""
        try:
            async with self._claiming:
                consumer = await self._joined()
                taken = await self._take(consumer, limit)
                if not taken and await self._lags(consumer):
                    taken = await self._take(consumer, limit)
                    if not taken:
                        msg = f"nothing arrives, although there is more: the consumer of {self._group!r} is built again"
                        raise KafkaConnectionError(msg)
                batch = KafkaBatch(consumer, taken, self._ledger, self._retry)
            self._trouble = False
        except _TROUBLE as problem:
            raise await self._unavailable(problem) from problem
        try:
            yield batch
        finally:
            batch.give_back()
            if batch.trouble is not None and consumer is self._consumer:
                await self._unavailable(batch.trouble)

    async def wait(self, timeout: float) -> None:
        """A claim waits by itself; so this does not, unless the broker is in trouble."""
        if self._trouble:
            await asyncio.sleep(min(timeout, 1.0))

    async def close(self) -> None:
        """Leave the group. What is in hand is not committed any more."""
        await self._leave(HANDOVER)

    async def _joined(self) -> Any:
        if self._consumer is None:
            consumer = self._connection.consumer(self._group)
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._start(consumer)
            except BaseException:
                await _end(consumer, 0.5)
                raise
            self._consumer = consumer
            self._quiet_since = asyncio.get_running_loop().time()
        return self._consumer

    async def _start(self, consumer: Any) -> None:
        try:
            await consumer.start()
        except KafkaConnectionError as problem:
            await self._connection.explain(problem)
            raise
        # Subscribed before its start, it would wait for a missing topic, and say nothing.
        await look_up(consumer._client, self._topics)
        if missing := [topic for topic in self._topics if consumer.partitions_for_topic(topic) is None]:
            raise UnknownTopicOrPartitionError(", ".join(missing))
        consumer.subscribe(topics=self._topics, pattern=self._pattern, listener=Rebalances(self._ledger))

    async def _leave(self, grace: float) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            self._ledger.generation += 1
            await _end(consumer, grace)

    async def _unavailable(self, problem: BaseException) -> SourceUnavailable:
        self._trouble = True
        await self._leave(1.0)
        return SourceUnavailable(f"group {self._group!r}: {str(problem) or type(problem).__name__}")

    async def _take(self, consumer: Any, limit: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._linger
        while True:
            free, until = self._ledger.free(consumer.assignment(), loop.time(), deadline)
            taken = await self._take_from(consumer, free, until - loop.time(), limit)
            if taken:
                self._quiet_since = loop.time()
                return taken
            if loop.time() >= deadline:
                return {}

    async def _take_from(
        self, consumer: Any, free: Iterable[TopicPartition], seconds: float, limit: int
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        self._ledger.changed.clear()
        changed = asyncio.ensure_future(self._ledger.changed.wait())
        waiting = {changed}
        # Without partitions, getmany() would take from all: also from those in hand.
        if free:
            records = asyncio.ensure_future(consumer.getmany(*free, timeout_ms=int(self._linger * 1000), max_records=limit))
            waiting.add(records)
        else:
            consumer._coordinator.check_errors()
        try:
            await asyncio.wait(waiting, timeout=max(seconds, 0.0), return_when=asyncio.FIRST_COMPLETED)
            return records.result() if free and records.done() else {}
        except asyncio.CancelledError:
            if free and records.done() and not records.cancelled() and records.exception() is None:
                seek(consumer, {place: taken[0].offset for place, taken in records.result().items()})
            raise
        finally:
            # Cancelled while it waits, getmany() has taken nothing: it takes and returns in one step.
            for task in waiting:
                task.cancel()

    async def _lags(self, consumer: Any) -> bool:
        """Say, at intervals while nothing arrives, whether there is more: a consumer can stall without a word."""
        now = asyncio.get_running_loop().time()
        if now - self._quiet_since < _QUIET:
            return False
        self._quiet_since = now
        async with asyncio.timeout(_PATIENCE):
            if not await consumer._client.force_metadata_update():
                msg = "no broker answers a request for metadata"
                raise KafkaConnectionError(msg)
            free, _ = self._ledger.free(consumer.assignment(), now, now)
            try:
                ends = await consumer.end_offsets(free)
                return any([await consumer.position(place) < end for place, end in ends.items()])
            except IllegalStateError:
                return False  # taken from us meanwhile


async def _end(consumer: Any, grace: float) -> None:
    """Leave the group if that works in time; then cut the connections and end what would build them again."""
    await bounded(consumer.stop(), grace)
    coordinator, fetcher = consumer._coordinator, consumer._fetcher
    tasks = []
    if coordinator is not None:
        tasks += [coordinator._coordination_task, coordinator._heartbeat_task, coordinator._commit_refresh_task]
    if fetcher is not None:
        tasks += [fetcher._fetch_task, *fetcher._pending_tasks]
    for task in tasks:
        if task is not None and not task.done():
            task.cancel()
    cut(consumer._client)
    await bounded(consumer._client.close(), 0.5)
