"""``outboxd`` with a bug: ``python -m tests.faults.sabotage BUG run -c outboxd.toml``. Each breaks a promise, which the checker must name.

The bugs of `tests.faults.bugs` are built into histories; these are in real daemons, beside a real broker, in an ordinary run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import dedupe.handler
from bridges.bridge import Bridge
from bridges.message import uuid7
from bridges.ports import PUBLISHED, Outcome, Reason, Rejected, Retry, Sink
from outbox.batch import OutboxBatch
from outbox.daemon.health import Health
from tests.faults.application import DELIVERIES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from uuid import UUID

    from psycopg import AsyncConnection

    from bridges.message import Message

Publish: TypeAlias = "Callable[[Sink, Sequence[Message]], Awaitable[Sequence[Outcome]]]"

PUMP: Final = "pump"
CONSUMER: Final = "consumer ledger"
"""The names of the bridges of a run."""


@dataclass(frozen=True)
class Sabotage:
    """A bug, the promise that it breaks, and the run that shows it.

    Attributes:
        begin: builds the bug into this process.
        invariant: what is not kept then; others may not be kept either.
        sink: of the run.
        nemeses: what is done in the run.
        calm: seconds after each of them.
    """

    begin: Callable[[], None]
    invariant: str
    sink: str = "inprocess"
    nemeses: tuple[str, ...] = ()
    calm: float = 1.0


SABOTAGES: dict[str, Sabotage] = {}


def breaks(invariant: str, **run: Any) -> Callable[[Callable[[], None]], None]:
    """Enter a bug by its name, with what its run is to be like: see `Sabotage`."""

    def enter(begin: Callable[[], None]) -> None:
        SABOTAGES[begin.__name__.replace("_", " ")] = Sabotage(begin, invariant, **run)

    return enter


class _Bent:
    def __init__(self, sink: Sink, publish: Publish) -> None:
        self.publish = partial(publish, sink)


def build_in(owner: object, name: str, bug: object) -> None:
    """Put a bug in the place of what the product has there: for the life of this process, which has no other purpose."""
    setattr(owner, name, bug)


def bend(bridge: str, publish: Publish) -> None:
    """Have all that a bridge publishes go through a function instead."""
    made: Any = Bridge.__init__

    def make(self: Bridge, source: Any, sink: Sink, *, name: str, **options: Any) -> None:
        made(self, source, _Bent(sink, publish) if name == bridge else sink, name=name, **options)

    build_in(Bridge, "__init__", make)


def some(message: Message) -> bool:
    """Pick a tenth of them, the same each time."""
    return message.id.int % 10 == 0


async def but_some(sink: Sink, messages: Sequence[Message], outcome: Outcome) -> Sequence[Outcome]:
    """Publish all but some, for which there is an outcome already."""
    sent = [message for message in messages if not some(message)]
    outcomes = iter(await sink.publish(sent) if sent else ())
    return [outcome if some(message) else next(outcomes) for message in messages]


async def backwards(sink: Sink, messages: Sequence[Message]) -> Sequence[Outcome]:
    """Publish one by one, the last first, and slowly: alone, a message has no order."""
    await asyncio.sleep(0.5)  # part of the bug: twenty transactions are written meanwhile, and the next batch has more than one message
    return [(await sink.publish([message]))[0] for message in reversed(messages)][::-1]


@breaks("loss", sink="jetstream")
def some_messages_are_settled_and_never_sent() -> None:
    bend(PUMP, partial(but_some, outcome=PUBLISHED))


@breaks("phantom")
def something_is_sent_that_nobody_put() -> None:
    async def publish(sink: Sink, messages: Sequence[Message]) -> Sequence[Outcome]:
        return (await sink.publish([*messages, messages[0]._replace(id=uuid7(), key=None)]))[:-1]

    bend(PUMP, publish)


@breaks("one_effect")
def what_comes_twice_is_handled_twice() -> None:
    async def publish(sink: Sink, messages: Sequence[Message]) -> Sequence[Outcome]:
        await sink.publish(messages)
        return await sink.publish(messages)

    @asynccontextmanager
    async def all_new(
        connection: AsyncConnection[Any], _: str, messages: Sequence[Message], *, schema: str
    ) -> AsyncIterator[Mapping[UUID, None]]:
        async with connection.transaction():
            yield dict.fromkeys(message.id for message in messages)

    bend(PUMP, publish)
    build_in(dedupe.handler, "recording", all_new)


@breaks("key_order", sink="jetstream")
def batches_are_sent_backwards() -> None:
    bend(PUMP, backwards)


@breaks("effect_order", sink="jetstream")
def batches_are_handled_backwards() -> None:
    bend(CONSUMER, backwards)


@breaks("bytes_intact")
def a_blank_is_added_to_some_payloads() -> None:
    async def publish(sink: Sink, messages: Sequence[Message]) -> Sequence[Outcome]:
        return await sink.publish([message._replace(payload=message.payload + b" " * some(message)) for message in messages])

    bend(PUMP, publish)


@breaks("poison", sink="jetstream", nemeses=("poison at the broker",))
def what_is_rejected_is_sent_without_its_payload() -> None:
    async def publish(sink: Sink, messages: Sequence[Message]) -> Sequence[Outcome]:
        outcomes = await sink.publish(messages)
        for message, outcome in zip(messages, outcomes, strict=True):
            if isinstance(outcome, Rejected):
                await sink.publish([message._replace(payload=b'{"number": 0}')])
        return outcomes

    bend(PUMP, publish)


@breaks("wrongly_dead")
def some_good_messages_are_rejected() -> None:
    bend(PUMP, partial(but_some, outcome=Rejected(Reason.INVALID, "a bug")))


@breaks("nothing_gone_early", sink="jetstream")
def messages_are_settled_long_before_they_are_sent() -> None:
    later: list[asyncio.Task[object]] = []

    async def publish(sink: Sink, messages: Sequence[Message]) -> Sequence[Outcome]:
        async def send() -> None:
            await asyncio.sleep(8)  # past two looks at the outbox, which are three seconds apart
            await sink.publish(messages)

        later.append(asyncio.create_task(send()))
        return [PUBLISHED] * len(messages)

    bend(PUMP, publish)


@breaks("no_change_after_lost_claim")
def what_a_lost_claim_had_is_settled_all_the_same() -> None:
    settle = OutboxBatch.settle

    async def settle_anew(self: OutboxBatch, outcomes: Sequence[Outcome]) -> None:
        for statement in ("ROLLBACK", "BEGIN"):  # as after a session that was lost, over another
            await self._connection.execute(statement)
        await settle(self, outcomes)

    build_in(OutboxBatch, "settle", settle_anew)


@breaks("drained")
def some_messages_are_put_off_for_ever() -> None:
    bend(PUMP, partial(but_some, outcome=Retry(Reason.REFUSED, "a bug", after=3600)))


@breaks("no_restart", nemeses=("kill writer",))
def the_daemon_ends_once() -> None:
    gone = Path(os.environ[DELIVERIES]).with_name("gone")

    async def publish(sink: Sink, messages: Sequence[Message]) -> Sequence[Outcome]:
        if not gone.exists():
            gone.touch()
            os._exit(3)
        return await sink.publish(messages)

    bend(PUMP, publish)


@breaks("bounded", nemeses=("50 ms more on the way to Postgres",), calm=50.0)
def files_are_left_open() -> None:
    left, calls = [], count()

    async def publish(sink: Sink, messages: Sequence[Message]) -> Sequence[Outcome]:
        if next(calls) % 5 == 0:
            left.append(os.open(os.devnull, os.O_RDONLY))
        return await sink.publish(messages)

    bend(PUMP, publish)


@breaks("no_hang")
def nobody_hears_that_it_is_to_stop() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


@breaks("duplicates_bounded")
def everything_is_sent_five_times() -> None:
    async def publish(sink: Sink, messages: Sequence[Message]) -> Sequence[Outcome]:
        for _ in range(4):
            await sink.publish(messages)
        return await sink.publish(messages)

    bend(PUMP, publish)


@breaks("truth")
def dead_letters_are_told_that_are_not_there() -> None:
    note = Health.note_backlog

    def note_more(self: Health, backlog: Any, age: float = 0.0) -> None:
        note(self, backlog, age)
        self._dead.inc(7)

    build_in(Health, "note_backlog", note_more)


@breaks("no_secret")
def payloads_are_logged() -> None:
    async def publish(sink: Sink, messages: Sequence[Message]) -> Sequence[Outcome]:
        logging.getLogger("outboxd").warning("sending %s", messages[0].payload.decode())
        return await sink.publish(messages)

    bend(PUMP, publish)


if __name__ == "__main__":
    from outbox.daemon.cli import main

    SABOTAGES[sys.argv.pop(1)].begin()
    main()
