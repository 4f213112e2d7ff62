"""Publish one record batch per partition, and answer when all in-sync replicas have it."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

from aiokafka import TopicPartition
from aiokafka.errors import (
    BrokerResponseError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    InvalidProducerEpoch,
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    LeaderNotAvailableError,
    MessageSizeTooLargeError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    NotLeaderForPartitionError,
    OutOfOrderSequenceNumber,
    QuotaViolationError,
    RecordListTooLargeError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownProducerId,
    UnknownTopicOrPartitionError,
)

from bridges.envelope import encode
from bridges.kafka.client import LOGIN_ERRORS, InvalidRecordError
from bridges.kafka.partitions import any_of, is_name, place_for, places_of
from bridges.ordering import Blocked, waves
from bridges.ports import BEHIND, PUBLISHED, Outcome, Published, Reason, Rejected, Released, Retry
from bridges.topics import Destination

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from bridges.kafka.connection import Kafka
    from bridges.kafka.partitions import Place
    from bridges.kafka.producer import Producer
    from bridges.message import Message

_DUPLICATE = Published(duplicate=True)

# What an error says about a message, the most specific first. `retriable` is no help: it speaks of the client's own retries.
_ERRORS: tuple[tuple[tuple[type[BaseException], ...], type[Rejected | Released | Retry], Reason], ...] = (
    ((MessageSizeTooLargeError, RecordListTooLargeError), Rejected, Reason.TOO_LARGE),
    ((InvalidTopicError, InvalidRecordError), Rejected, Reason.INVALID),
    ((TopicAuthorizationFailedError, ClusterAuthorizationFailedError), Released, Reason.FORBIDDEN),
    ((GroupAuthorizationFailedError, TransactionalIdAuthorizationFailed, *LOGIN_ERRORS), Released, Reason.FORBIDDEN),
    ((UnknownTopicOrPartitionError,), Released, Reason.MISSING),
    ((QuotaViolationError,), Released, Reason.FULL),
    ((TimeoutError, KafkaTimeoutError, RequestTimedOutError), Released, Reason.TIMEOUT),
    ((NotLeaderForPartitionError, LeaderNotAvailableError), Released, Reason.UNAVAILABLE),
    ((NotEnoughReplicasError, NotEnoughReplicasAfterAppendError), Released, Reason.UNAVAILABLE),
    ((OutOfOrderSequenceNumber, UnknownProducerId, InvalidProducerEpoch), Released, Reason.UNAVAILABLE),
    ((BrokerResponseError,), Retry, Reason.REFUSED),
    ((KafkaError, OSError), Released, Reason.UNAVAILABLE),
)


class KafkaSink:
    """Publish to topics that exist, and answer `Published` when all in-sync replicas have the message (acks=all).

    Args:
        connection: where; shared.
        topic: what a topic is called there, such as ``shop.{topic}``.
        timeout: seconds for a whole call.
        ordered: False: the order of keys does not matter; nothing waits for an earlier message of its key.
    """

    def __init__(self, connection: Kafka, *, topic: str = "{topic}", timeout: float = 10.0, ordered: bool = True) -> None:
        self._connection = connection
        self._topic = Destination(topic)
        self._timeout = timeout
        self._ordered = ordered

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Publish the partitions side by side, each in order. One outcome each, in order."""
        outcomes: list[Outcome] = [BEHIND] * len(messages)
        blocked = Blocked(ordered=self._ordered)
        try:
            async with asyncio.timeout(self._timeout):
                places = await self._places(await self._connection.producer(), messages)
                # A key may occur under several topics: it may not be in flight in two partitions.
                for wave in waves(messages, places, ordered=self._ordered):
                    await self._publish_wave(messages, places, wave, outcomes, blocked)
        except (KafkaError, OSError) as problem:
            await self._connection.discard_doubtful()
            trouble = _released(problem)
            return [trouble if outcome is BEHIND else outcome for outcome in outcomes]
        except asyncio.CancelledError:
            await self._connection.discard_doubtful()
            raise
        return outcomes

    async def _places(self, producer: Producer, messages: Sequence[Message]) -> list[Place]:
        names = {topic: self._topic.of(topic) for topic in {message.topic for message in messages}}
        await producer.look_up([name for name in names.values() if is_name(name)])
        choices = {topic: places_of(name, producer.cluster) for topic, name in names.items()}
        # Those without a key share a partition for the length of a call, which makes one large batch of them.
        spread = {topic: any_of(places) for topic, places in choices.items()}
        if any(isinstance(place, Released) for places in choices.values() for place in places):
            producer.refresh()
        return [spread[message.topic] if message.key is None else place_for(message.key, choices[message.topic]) for message in messages]

    async def _publish_wave(
        self,
        messages: Sequence[Message],
        places: Sequence[Place],
        wave: Sequence[int],
        outcomes: list[Outcome],
        blocked: Blocked,
    ) -> None:
        queues: defaultdict[TopicPartition, deque[int]] = defaultdict(deque)
        for index in wave:
            message, place = messages[index], places[index]
            if message in blocked:
                continue
            if isinstance(place, TopicPartition):
                queues[place].append(index)
            else:
                outcomes[index] = blocked.note(message, place)
        async with asyncio.TaskGroup() as group:
            for place, queue in queues.items():
                group.create_task(self._publish_partition(messages, place, queue, outcomes, blocked))

    async def _publish_partition(
        self, messages: Sequence[Message], place: TopicPartition, queue: deque[int], outcomes: list[Outcome], blocked: Blocked
    ) -> None:
        most = len(queue)
        while queue:
            taken: list[int] = []
            try:
                producer = await self._connection.producer()
                batch = producer.batch()
                taken = _fill(batch, messages, queue, most, outcomes, blocked)
                if taken:
                    verdict: Outcome = _DUPLICATE if await producer.send(batch, place) else PUBLISHED
            except (KafkaError, OSError) as problem:
                await self._connection.discard_doubtful()
                verdict = _judge(problem) if taken else _released(problem)
                if isinstance(verdict, Released):
                    taken.extend(queue)
                    queue.clear()
                elif len(taken) > 1:
                    # The batch fell as one. Find out whose fault it is, by halves, before anybody is blamed.
                    queue.extendleft(reversed(taken))
                    most = len(taken) // 2
                    continue
                else:
                    most = len(queue)
            for index in taken:
                outcomes[index] = blocked.note(messages[index], verdict)


def _fill(batch: Any, messages: Sequence[Message], queue: deque[int], most: int, outcomes: list[Outcome], blocked: Blocked) -> list[int]:
    """Move up to ``most`` messages from the queue into the batch, until it is full; return them."""
    taken: list[int] = []
    append = batch.append
    while queue and len(taken) < most:
        index = queue[0]
        message = messages[index]
        if message not in blocked:
            try:
                headers = [(name, value.encode()) for name, value in encode(message, key=False)]
                key = None if message.key is None else message.key.encode()
            except UnicodeEncodeError:
                outcomes[index] = blocked.note(message, Rejected(Reason.INVALID, "a lone surrogate in the key or a header"))
                queue.popleft()
                continue
            if append(timestamp=_milliseconds(message.created_at), key=key, value=message.payload, headers=headers) is not None:
                taken.append(index)
            elif taken:
                break
            else:
                outcomes[index] = blocked.note(message, Rejected(Reason.TOO_LARGE, "does not fit into an empty batch"))
                queue.popleft()
                break  # a batch that refused something is closed
        queue.popleft()
    return taken


def _milliseconds(time: datetime | None) -> int | None:
    if time is None:
        return None
    try:
        milliseconds = int(time.timestamp() * 1000)
    except (OverflowError, ValueError, OSError):
        return None
    return milliseconds if milliseconds >= 0 else None


def _judge(problem: BaseException) -> Rejected | Released | Retry:
    text = str(problem) or ("no answer in time" if isinstance(problem, TimeoutError) else type(problem).__name__)
    for types, outcome, reason in _ERRORS:
        if isinstance(problem, types):
            return outcome(reason, text)
    raise problem


def _released(problem: BaseException) -> Released:
    """Judge an error that came before anything was sent: it is nobody's fault."""
    verdict = _judge(problem)
    return verdict if isinstance(verdict, Released) else Released(Reason.UNAVAILABLE, verdict.detail)
