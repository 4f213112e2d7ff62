"""What a source has lent to its claims, and how a batch is settled."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from aiokafka import ConsumerRebalanceListener
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from bridges.envelope import decode
from bridges.errors import SourceUnavailable
from bridges.ports import Published, Rejected, Released, Retry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aiokafka import TopicPartition
    from aiokafka.structs import ConsumerRecord

    from bridges.backoff import Backoff
    from bridges.message import Message
    from bridges.ports import Outcome

log = logging.getLogger("outboxd.kafka")

HANDOVER: Final = 5.0
"""Seconds a rebalance waits for what is in hand; below the session timeout of 10 s, after which the group goes on without us."""
_COMMIT: Final = 10.0
"""Seconds for the coordinator to take a commit; the client alone would try for ever."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Ledger:
    """Which partitions are in an open batch, which wait for a retry, and how often. ``changed`` is set when one may be free again.

    ``generation`` counts the rebalances and the consumers: offsets taken in an older one are neither committed nor sought.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._lent: dict[TopicPartition, KafkaBatch] = {}
        self._due: dict[TopicPartition, float] = {}
        self._attempts: dict[TopicPartition, tuple[int, int]] = {}

    def free(self, assigned: Iterable[TopicPartition], now: float, deadline: float) -> tuple[list[TopicPartition], float]:
        """Return the partitions that may be lent now, and the time until which that list stands, ``deadline`` at the latest."""
        free = []
        for place in assigned:
            due = self._due.get(place, now)
            if due > now:
                deadline = min(deadline, due)
            elif place not in self._lent:
                free.append(place)
        return free, deadline

    def lend(self, places: Iterable[TopicPartition], batch: KafkaBatch) -> None:
        """Note that these partitions are in an open batch."""
        self._lent.update(dict.fromkeys(places, batch))
        if self._lent:
            self._idle.clear()

    def take_back(self, batch: KafkaBatch) -> None:
        """Note that the batch is closed."""
        self._lent = {place: holder for place, holder in self._lent.items() if holder is not batch}
        self.changed.set()
        if not self._lent:
            self._idle.set()

    def attempt(self, place: TopicPartition, offset: int) -> int:
        """Count one failure of the message at the offset, and return how many there are."""
        last, attempts = self._attempts.get(place, (offset, 0))
        attempts = attempts + 1 if last == offset else 1
        self._attempts[place] = offset, attempts
        return attempts

    def hold(self, place: TopicPartition, seconds: float) -> None:
        """Keep a partition back for some time."""
        self._due[place] = asyncio.get_running_loop().time() + seconds

    async def revoke(self) -> None:
        """Give what is in hand a moment to be settled; what is not by then will be delivered again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HANDOVER):
                await self._idle.wait()
        self.generation += 1

    def assign(self, places: Iterable[TopicPartition]) -> None:
        """Forget about partitions that are not ours any more."""
        self._due = {place: due for place, due in self._due.items() if place in places}
        self._attempts = {place: attempts for place, attempts in self._attempts.items() if place in places}
        self.changed.set()


class Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Tells the ledger what the group's coordinator decides."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Before a rebalance, which takes everything and gives it out anew."""
        if revoked:
            await self._ledger.revoke()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """After it."""
        self._ledger.assign(assigned)


class KafkaBatch:
    """The records of one claim, partition after partition, each in order."""

    def __init__(self, consumer: Any, taken: Mapping[TopicPartition, list[ConsumerRecord]], ledger: Ledger, retry: Backoff) -> None:
        self._consumer = consumer
        self._taken = taken
        self._ledger = ledger
        self._retry = retry
        self._generation = ledger.generation
        self._open = True
        self.trouble: KafkaError | OSError | None = None
        self.messages: Sequence[Message] = [_message_of(record) for records in taken.values() for record in records]
        ledger.lend(taken, self)

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Commit each partition up to its first message that has to come again, and go back to that."""
        self._open = False
        remaining = iter(outcomes)
        commit: dict[TopicPartition, int] = {}
        again: dict[TopicPartition, int] = {}
        for place, records in self._taken.items():
            verdicts = [next(remaining) for _ in records]
            for record, outcome in zip(records, verdicts, strict=True):
                if not self._done(place, record.offset, outcome):
                    again[place] = record.offset
                    break
            reached = again.get(place, records[-1].offset + 1)
            if reached > records[0].offset:
                commit[place] = reached
        if self._generation == self._ledger.generation:
            # First, and without waiting: cancelled in the commit, what has to come again would be passed over.
            self._seek(again)
            try:
                await self._commit(commit)
            except (KafkaError, OSError) as problem:
                self.trouble = problem
                raise SourceUnavailable(str(problem) or "no answer to a commit") from problem

    def give_back(self) -> None:
        """Close the batch: what was not settled is delivered again."""
        if self._open:
            self._open = False
            self._seek({place: records[0].offset for place, records in self._taken.items()})
        self._ledger.take_back(self)

    def _done(self, place: TopicPartition, offset: int, outcome: Outcome) -> bool:
        match outcome:
            case Published():
                return True
            case Released():
                return False
            case Retry(after=after):
                attempts = self._ledger.attempt(place, offset)
                if not self._retry.exhausted(attempts):
                    self._ledger.hold(place, after if after is not None else self._retry.delay(attempts))
                    return False
            case Rejected():
                pass
        log.error("given up: %s:%d:%d: %s %s", place.topic, place.partition, offset, outcome.reason, outcome.detail)
        return True

    async def _commit(self, offsets: dict[TopicPartition, int]) -> None:
        if not offsets:
            return
        try:
            async with asyncio.timeout(_COMMIT):
                await self._consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError):
            log.info("partitions were taken from us before their commit: they are delivered again")

    def _seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        if self._generation == self._ledger.generation:
            seek(self._consumer, offsets)


def seek(consumer: Any, offsets: Mapping[TopicPartition, int]) -> None:
    """Go back to these offsets, in the partitions that are still ours."""
    assigned = consumer.assignment()
    for place, offset in offsets.items():
        if place in assigned:
            consumer.seek(place, offset)


def _message_of(record: ConsumerRecord) -> Message:
    message = decode(
        {name: (value or b"").decode(errors="replace") for name, value in record.headers},
        record.value or b"",
        topic=record.topic,
        key=None if record.key is None else record.key.decode(errors="backslashreplace"),
        origin=f"kafka:{record.topic}:{record.partition}:{record.offset}",
    )
    if message.created_at is None and record.timestamp >= 0:
        with suppress(OverflowError):
            return message._replace(created_at=_EPOCH + timedelta(milliseconds=record.timestamp))
    return message
