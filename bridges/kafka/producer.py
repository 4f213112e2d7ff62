"""One idempotent producer, in which a refusal leaves no gap and a doubt leaves no survivor."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from aiokafka.errors import (
    InvalidTimestampError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    ProducerClosed,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from bridges.kafka.client import InvalidRecordError, bounded, cut, look_up

if TYPE_CHECKING:
    from collections.abc import Collection

    from aiokafka import AIOKafkaProducer, TopicPartition

# One request to a broker takes a batch of every partition that it leads: with batches of 1 MB this stays well under the 100 MB at
# which a broker closes the connection (socket.request.max.bytes).
_IN_FLIGHT: Final = 48
_GRACE: Final = 0.5

# The leader says these before it appends anything (kafka.log.UnifiedLog.append).
_REFUSALS = (
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    InvalidTopicError,
    InvalidTimestampError,
    InvalidRecordError,
    TopicAuthorizationFailedError,
)


class Producer:
    """A started producer of aiokafka. Once ``doubtful``, it may hold something that would be sent late: it must be thrown away."""

    def __init__(self, kafka: AIOKafkaProducer) -> None:
        self._kafka: Any = kafka
        self._places: defaultdict[TopicPartition, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._in_flight = asyncio.Semaphore(_IN_FLIGHT)
        self.doubtful = False

    @property
    def usable(self) -> bool:
        """Whether something may be sent with it."""
        sender = self._kafka._sender.sender_task
        return not self.doubtful and sender is not None and not sender.done()

    @property
    def cluster(self) -> Any:
        """What is known of topics, partitions and leaders."""
        return self._kafka.client.cluster

    async def look_up(self, topics: Collection[str]) -> None:
        """Ask for the topics that are not known, without making them."""
        try:
            await look_up(self._kafka.client, topics)
        except BaseException:
            self.doubtful = True
            raise

    def refresh(self) -> None:
        """Have the metadata asked for again, in the background."""
        self._kafka.client.force_metadata_update()

    def batch(self) -> Any:
        """Return an empty `BatchBuilder`."""
        return self._kafka.create_batch()

    async def send(self, batch: Any, place: TopicPartition) -> bool:
        """Send one batch and return, when all in-sync replicas have it, whether the broker had it already.

        Raises what the broker or the client says; unless that is a plain refusal, the producer is ``doubtful`` afterwards.
        """
        async with self._in_flight, self._places[place]:
            if self.doubtful:
                raise ProducerClosed
            if place.partition not in (self.cluster.partitions_for_topic(place.topic) or ()):
                raise UnknownTopicOrPartitionError(place.topic)
            numbers = self._kafka._txn_manager
            number = numbers.sequence_number(place) if numbers else 0
            try:
                written = await self._kafka.send_batch(batch, place.topic, partition=place.partition)
                queued = self._kafka._message_accumulator._batches[place][-1]
                metadata = await written
            except _REFUSALS:
                # The batch has used up its sequence numbers, and the next would be OUT_OF_ORDER for ever. It is the only one of its
                # partition, and it was sent once, so that nothing with these numbers can be in the log: they may be used again.
                if queued.retry_count != 1:
                    self.doubtful = True
                elif numbers:
                    numbers._sequence_numbers[place] = number
                raise
            except BaseException:
                self.doubtful = True
                raise
            return bool(metadata.offset < 0)

    async def throw_away(self) -> None:
        """End it without sending anything more, within two seconds. Whoever waits for an answer gets `ProducerClosed`."""
        self.doubtful = True
        kafka = self._kafka
        kafka._closed = True
        # stop() would wait until everything is delivered. Cancelled, the sender drains nothing more; cut, no byte leaves any more.
        if kafka._sender.sender_task is not None:
            kafka._sender.sender_task.cancel()
        cut(kafka.client)
        await bounded(kafka._sender.close(), _GRACE)
        accumulator = kafka._message_accumulator
        accumulator._exception = ProducerClosed()
        for batch in [*accumulator._pending_batches, *(batch for queue in accumulator._batches.values() for batch in queue)]:
            batch.failure(ProducerClosed())
            for future in (batch.future, batch._drain_waiter):
                future.exception()  # seen: asyncio would log it otherwise
        await bounded(kafka.client.close(), _GRACE)
