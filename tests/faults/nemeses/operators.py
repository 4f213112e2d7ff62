"""What people do: limits lowered, streams deleted, messages that nobody can take."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING
from uuid import UUID

from bridges.message import uuid7
from outbox import Draft, Outbox
from tests.engines.deadline import eventually
from tests.faults.application import FLAWED, digest, payload_of
from tests.faults.brokers import JetStream
from tests.faults.history import History, Put
from tests.faults.nemeses import SERVERS, nemesis, unready

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from tests.faults.fleet import Fleet


@nemesis("stream deleted and made again", sinks=("jetstream",))
async def stream_deleted(ours: Fleet, chance: random.Random, history: History) -> None:
    """When everything in it has been consumed, as an operator would; messages go on to be written."""
    broker = ours.broker
    assert isinstance(broker, JetStream)

    async def all_consumed() -> bool:
        flawed = {put.id for put in history.puts if put.flawed}
        return await ours.effects() >= len({copy.id for copy in await broker.copies()} - flawed)

    # The pumps stand still, in the middle of whatever they do, so that nothing is stored that is deleted before it was consumed.
    try:
        for pump in ours.pumps:
            pump.signal(signal.SIGSTOP)
        await eventually(all_consumed, within=30, what="the consumer to be through")
        await broker.delete()
    finally:
        for pump in ours.pumps:
            pump.signal(signal.SIGCONT)
    await unready(ours, history)
    await broker.make()
    await ours.ready()


async def put_flawed(ours: Fleet, history: History, drafts: Sequence[Draft], *, poison: bool) -> None:
    """Put messages that are to become dead letters among the others: the pump's if they are poison, else the consumer's."""
    async with ours.look() as connection, connection.transaction():
        began = time.time()
        await Outbox().aput_many(connection, drafts)
    for draft in drafts:
        assert isinstance(draft.id, UUID)
        assert isinstance(draft.payload, bytes)
        its = digest(draft.topic, draft.payload, None)
        history.puts.append(Put(began, draft.id, draft.topic, draft.key, 0, its, "ok", poison, time.time(), flawed=not poison))


async def all_dead(ours: Fleet, drafts: Sequence[Draft]) -> None:
    """Wait until messages are dead letters of the pump."""

    async def are_dead() -> bool:
        async with ours.look() as connection:
            cursor = await connection.execute("SELECT count(*) FROM outbox.dead WHERE id = ANY(%s)", ([draft.id for draft in drafts],))
            return await cursor.fetchone() == (len(drafts),)

    await eventually(are_dead, within=30, what="the flawed messages to be dead")


@nemesis("poison at the broker", sinks=SERVERS)
async def poison_at_the_broker(ours: Fleet, chance: random.Random, history: History) -> None:
    """Messages that the outbox takes and the broker never will: a mebibyte, and its headers."""
    filling = "x" * (1024 * 1024 - 100)
    drafts = [Draft("orders.created", payload_of(0, filling), str(chance.randrange(40)), id=uuid7()) for _ in range(3)]
    await put_flawed(ours, history, drafts, poison=True)
    await all_dead(ours, drafts)


@nemesis("poison at the handler")
async def poison_at_the_handler(ours: Fleet, chance: random.Random, history: History) -> None:
    """Messages that the application's handler never takes. They were published: their dead letters are the consumer's."""
    drafts = [Draft("orders.created", payload_of(0, ""), str(chance.randrange(40)), {FLAWED: "1"}, id=uuid7()) for _ in range(3)]
    await put_flawed(ours, history, drafts, poison=False)

    async def are_dead() -> bool:
        async with ours.look() as connection:
            query = "SELECT count(*) FROM dedupe.consumer_dead WHERE message_id = ANY(%s)"
            cursor = await connection.execute(query, ([draft.id for draft in drafts],))
            return await cursor.fetchone() == (len(drafts),)

    await eventually(are_dead, within=30, what="the flawed messages to be dead")


@nemesis("limit lowered", sinks=SERVERS)
async def limit_lowered(ours: Fleet, chance: random.Random, history: History) -> None:
    """What the broker would have taken before is a dead letter, and what is behind it goes on."""
    await ours.broker.limit(64 * 1024)
    try:
        filling = "x" * (256 * 1024)
        drafts = [Draft("orders.paid", payload_of(0, filling), str(chance.randrange(40)), id=uuid7()) for _ in range(3)]
        await put_flawed(ours, history, drafts, poison=True)
        await all_dead(ours, drafts)
    finally:
        await ours.broker.limit(None)
