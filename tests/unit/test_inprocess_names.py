"""Durable names in the logs of topics: where they go on, what of that is saved, and what comes again."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from bridges.errors import ConfigurationError, Evicted, LogFailed
from bridges.inprocess import Broker, InProcessSink, InProcessSource, MemoryLog, progress
from bridges.inprocess.log import Place
from bridges.inprocess.stamps import PLAIN, Stamps
from bridges.ports import PUBLISHED, Reason
from tests.engines.deadline import eventually
from tests.unit.logs import SlowLog, logged, taken
from tests.unit.messages import made, turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.message import Message


class Cursors:
    """A store of cursors in memory."""

    def __init__(self) -> None:
        self.saved: dict[str, Place] = {}

    async def save(self, name: str, place: Place) -> None:
        await turn()
        self.saved[name] = place

    def load(self, name: str) -> Place | None:
        return self.saved.get(name)

    async def close(self) -> None: ...


def opened(log: MemoryLog, cursors: Cursors) -> Broker:
    """A broker as the next process would have it, over what the last one left."""
    log._closed = False
    broker = Broker()
    broker.keep("orders.>", log, cursors)
    return broker


async def test_a_durable_name_goes_on_where_it_was_and_what_was_not_acknowledged_comes_again() -> None:
    log, cursors = SlowLog(), Cursors()

    async def opened() -> Broker:
        broker = Broker()
        broker.keep("orders.>", log, cursors)
        return broker

    broker = await opened()
    subscription = broker.subscribe("orders.*", durable="billing").begin()
    for number in range(6):
        await broker.publish(made(number))
    due = datetime.now(UTC) + timedelta(seconds=0.1)
    await broker.publish(made(100), deliver_at=due)
    deliveries = await subscription.take(9)
    for place in (0, 2, 3):
        deliveries[place].ack()
    await broker.aclose()
    assert cursors.saved == {"billing": Place(1, ((2, 4),))}

    log._closed = False
    broker = await opened()
    async with broker.subscribe("orders.*", durable="billing") as subscription, broker.subscribe("orders.*", durable="billing") as other:
        got = [int(delivery.payload) for delivery in [*await subscription.take(2), *await other.take(9)]]
        assert got == [1, 4, 5]
        assert [int(delivery.payload) for delivery in await asyncio.wait_for(other.take(9), 10)] == [100]
        assert datetime.now(UTC) >= due - timedelta(milliseconds=2)


async def test_what_a_durable_subscription_has_done_is_saved_soon() -> None:
    cursors = Cursors()
    broker = Broker()
    broker.keep(">", MemoryLog(), cursors)
    async with broker.subscribe("orders.*", durable="d") as subscription:
        for number in range(50):
            await broker.publish(made(number))
        await taken(subscription, 50)

        async def saved() -> bool:
            return cursors.saved.get("d") == Place(50)

        await eventually(saved)


async def test_durable_needs_cursors() -> None:
    broker = await logged(0)
    with pytest.raises(ConfigurationError, match=r"durable: 'd': the log of 'orders\.>' has no cursors"):
        broker.subscribe("orders.*", durable="d").begin()


async def test_a_source_reads_a_log_by_a_durable_name() -> None:
    log, cursors = MemoryLog(), Cursors()
    broker = Broker()
    broker.keep("orders.>", log, cursors)
    source = InProcessSource(broker, "orders.*", durable="source", start="beginning", buffer=3)
    for number in range(8):
        await broker.publish(made(number))
    got: list[int] = []
    while len(got) < 8:
        await asyncio.wait_for(source.wait(20), 10)
        async with source.claim(5) as batch:
            got += [int(message.payload) for message in batch.messages]
            await batch.settle([PUBLISHED] * len(batch.messages))
    assert got == list(range(8))
    source.close()
    await broker.aclose()
    assert cursors.saved == {"source": Place(8)}


class GatedCursors(Cursors):
    """Saves when it is let, and fails while it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.going = asyncio.Event()
        self.failing = False

    async def save(self, name: str, place: Place) -> None:
        await self.going.wait()
        if self.failing:
            raise OSError(5, "the disk is away")
        await super().save(name, place)


async def test_nothing_is_answered_for_behind_a_durable_name_whose_beginning_is_not_saved() -> None:
    """After a kill it would begin live, behind what was stored since."""
    cursors, log = GatedCursors(), SlowLog()
    broker = Broker()
    broker.keep("orders.>", log, cursors)
    subscription = broker.subscribe("orders.*", durable="billing").begin()
    publishing = [asyncio.create_task(InProcessSink(broker).publish([made(0)])), asyncio.create_task(broker.publish(made(1)))]
    for _ in range(20):
        await turn()
    assert (log.next, cursors.saved) == (0, {})
    cursors.going.set()
    assert (await asyncio.wait_for(asyncio.gather(*publishing), 10))[0] == [PUBLISHED]
    assert cursors.saved == {"billing": Place(0)}
    assert sorted(await taken(subscription, 2)) == [0, 1]

    cursors.failing = True
    other = broker.subscribe("orders.*", durable="mail").begin()
    with pytest.raises(LogFailed, match="it could not be saved where 'mail' begins: OSError"):
        await broker.publish(made(2))
    assert log.next == 2
    cursors.failing = False
    await broker.publish(made(3))
    assert await taken(other, 1) == [3]
    await broker.aclose()
    assert cursors.saved == {"billing": Place(2), "mail": Place(3)}


async def test_a_durable_name_that_leaves_and_joins_again_goes_on_where_it_was() -> None:
    broker = Broker()
    broker.keep("orders.>", MemoryLog(), Cursors())
    for number in range(10):
        await broker.publish(made(number))
    async with broker.subscribe("orders.*", durable="d", start="beginning") as subscription:
        deliveries = await subscription.take(5)
        for place in (0, 1, 3):
            deliveries[place].ack()
    async with broker.subscribe("orders.*", durable="d", start="beginning") as subscription:
        assert await taken(subscription, 7) == [2, 4, 5, 6, 7, 8, 9]
    await broker.aclose()


async def test_a_place_behind_the_end_of_its_log_is_set_back_and_said(caplog: pytest.LogCaptureFixture) -> None:
    """A log that has lost its end gives those offsets to others; what is in them is new to the subscription, whenever it begins."""
    cursors = Cursors()
    cursors.saved = {"billing": Place(10, ((12, 13),)), "mail": Place(1, ((2, 3), (4, 5))), "sound": Place(1, ((2, 3),))}
    log = MemoryLog()
    for number in range(3):
        await log.append([made(number)], 0.0)
    broker = Broker()
    broker.keep("orders.>", log, cursors)
    for number in range(3, 15):
        await broker.publish(made(number))
    for name, first in (("billing", [3, 4, 5]), ("mail", [1, 3, 4]), ("sound", [1, 3, 4])):
        caplog.clear()
        subscription = broker.subscribe("orders.*", durable=name).begin()
        assert [int(delivery.payload) for delivery in await subscription.take(3)] == first
        assert ("behind the end of the log, 3" in caplog.text) == (name != "sound")
    await broker.aclose()
    assert cursors.saved == {"billing": Place(3), "mail": Place(1, ((2, 3),)), "sound": Place(1, ((2, 3),))}


async def test_a_place_is_saved_only_with_the_log_synced_up_to_it() -> None:
    steps: list[str] = []

    class Syncing(MemoryLog):
        async def sync(self) -> None:
            steps.append(f"synced {self.next}")

    class Saving(Cursors):
        async def save(self, name: str, place: Place) -> None:
            steps.append(f"saved {place.below}")
            await super().save(name, place)

    broker = Broker()
    broker.keep("orders.>", Syncing(), Saving())
    async with broker.subscribe("orders.*", durable="d") as subscription:
        await broker.publish(made(0))
        await taken(subscription, 1)
        await broker.aclose()
    assert steps == ["synced 0", "saved 0", "synced 1", "saved 1"]


async def test_a_publish_is_answered_with_the_name_saved_that_began_while_it_was_stored() -> None:
    """It begins in front of the message: not saved, it would be new after a kill, and begin behind what was answered for."""
    steps: list[str] = []
    stored = asyncio.Event()

    class Storing(MemoryLog):
        async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
            await turn()
            offset = await super().append(messages, time, stamps)
            stored.set()
            return offset

    class Late(Cursors):
        async def save(self, name: str, place: Place) -> None:
            await stored.wait()
            for _ in range(10):  # more turns than a publisher needs to be answered
                await turn()
            await super().save(name, place)
            steps.append(f"saved {place.below}")

    cursors, broker = Late(), Broker()
    broker.keep("orders.>", Storing(), cursors)
    publishing = asyncio.create_task(broker.publish(made(0)))
    publishing.add_done_callback(lambda _: steps.append("answered"))
    await turn()
    subscription = broker.subscribe("orders.*", durable="d").begin()
    await asyncio.wait_for(publishing, 10)
    assert (steps, await taken(subscription, 1)) == (["saved 0", "answered"], [0])
    await broker.aclose()


async def test_each_log_has_its_own_places_by_the_same_names() -> None:
    broker = Broker()
    first, second = Cursors(), Cursors()
    broker.keep("orders.>", MemoryLog(), first)
    broker.keep("users.>", MemoryLog(), second)
    with pytest.raises(ConfigurationError, match=r"cursors: those of the log of 'orders\.>'"):
        broker.keep("bills.>", MemoryLog(), first)
    for number in range(5):
        await broker.publish(made(number))
        await broker.publish(made(number, "users.created"))
    for topics in ("orders.*", "users.*"):
        async with broker.subscribe(topics, durable="d", start="beginning") as subscription:
            assert await taken(subscription, 5) == [0, 1, 2, 3, 4]
    await broker.aclose()
    assert first.saved == second.saved == {"d": Place(5)}


async def test_a_log_that_does_not_close_well_leaves_no_other_open() -> None:
    class Failing(MemoryLog):
        async def close(self) -> None:
            raise LogFailed(str(self.next))

    broker = Broker()
    log = MemoryLog()
    broker.keep("orders.>", Failing())
    broker.keep("users.>", log)
    with pytest.raises(LogFailed):
        await broker.aclose()
    assert log._closed


async def test_dead_letters_of_a_durable_name_come_again_when_they_are_gone_with_their_process() -> None:
    """Until then they are over; one that was removed, or requeued and acknowledged, is over for good, and so is an evicted one."""
    log, cursors = MemoryLog(max_messages=7), Cursors()

    broker = opened(log, cursors)
    subscription = broker.subscribe("orders.*", durable="d", name="d").begin()
    for number in range(5):
        await broker.publish(made(number))
    for delivery in await subscription.take(5):
        delivery.reject(Reason.INVALID, "")
    letters = broker.dead_letters
    assert letters.remove(1) == 1
    assert letters.requeue(2) == 1
    assert await taken(subscription, 1) == [1]
    await broker.aclose()
    assert cursors.saved == {"d": Place(5, dead=frozenset({2, 3, 4}))}

    broker = opened(log, cursors)
    async with broker.subscribe("orders.*", durable="d", buffer=1) as subscription:
        await broker.publish(made(5))
        assert broker.figures().subscriptions["d"].lag == 4
        assert await taken(subscription, 1) == [2]
    for number in range(6, 11):
        await broker.publish(made(number))
    async with broker.subscribe("orders.*", durable="d") as subscription:
        again = await subscription.take(9)
        assert [int(delivery.payload) for delivery in again] == [4, 5, 6, 7, 8, 9, 10], "the log has evicted what was dead at 3"
        again[0].reject(Reason.INVALID, "")
        for delivery in again[2:]:
            delivery.ack()
        await broker.aclose()
    assert cursors.saved == {"d": Place(5, ((6, 11),), frozenset({4}))}


async def test_a_requeued_dead_letter_of_a_durable_name_outlives_its_subscription() -> None:
    """It is not over while it waits, or is with a reader, so that it is there when the name is; as is a letter, to be requeued."""
    cursors, broker = Cursors(), Broker()
    broker.keep("orders.>", MemoryLog(), cursors)
    subscription = broker.subscribe("orders.*", durable="d").begin()
    for number in range(3):
        await broker.publish(made(number))
    for delivery in await subscription.take(2):
        delivery.reject(Reason.INVALID, "")
    assert broker.dead_letters.requeue(1) == 1
    subscription.unsubscribe()
    assert broker.dead_letters.requeue(2) == 0
    subscription = broker.subscribe("orders.*", durable="d").begin()
    assert await taken(subscription, 2) == [0, 2]
    assert broker.dead_letters.requeue() == 1
    [delivery] = await subscription.take(9)
    subscription.unsubscribe()
    subscription = broker.subscribe("orders.*", durable="d").begin()
    assert (await taken(subscription, 1), broker.figures().subscriptions["d"].lag, len(broker.dead_letters)) == ([1], 0, 0)
    await broker.aclose()
    assert cursors.saved == {"d": Place(3)}


async def test_a_dead_letter_for_which_there_is_no_room_is_gone_for_good() -> None:
    cursors, broker = Cursors(), Broker(max_dead_letters=0)
    broker.keep("orders.>", MemoryLog(), cursors)
    subscription = broker.subscribe("orders.*", durable="d").begin()
    await broker.publish(made(0))
    [delivery] = await subscription.take(1)
    delivery.reject(Reason.INVALID, "")
    assert broker.dead_letters.overflowed == 1
    await broker.aclose()
    assert cursors.saved == {"d": Place(1)}


async def test_a_durable_name_whose_oldest_was_evicted_hears_of_it_once_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """One message that waited for its time must not keep the name from all that is left."""
    log, cursors = MemoryLog(max_messages=5), Cursors()

    broker = opened(log, cursors)
    subscription = broker.subscribe("orders.*", durable="d").begin()
    await broker.publish(made(0), deliver_at=datetime.now(UTC) + timedelta(days=1))
    for number in range(1, 11):
        await broker.publish(made(number))
        assert await taken(subscription, 1) == [number]
    await broker.publish(made(11))
    await broker.aclose()
    assert cursors.saved == {"d": Place(0, ((1, 11),))}
    for evicted in (True, False):
        broker = opened(log, cursors)
        subscription = broker.subscribe("orders.*", durable="d").begin()
        caplog.clear()
        if evicted:
            with pytest.raises(Evicted, match="offset 0 is evicted"):
                await subscription.take(9)
        assert [int(delivery.payload) for delivery in await subscription.take(9)] == [11]
        assert ("d: the log has evicted up to 1 entries from offset 0 on" in caplog.text) == evicted
        await broker.aclose()
        assert cursors.saved == {"d": Place(11)}


async def test_a_durable_name_that_was_forgotten_is_new_in_the_same_process_too() -> None:
    class Forgetting(Cursors):
        async def forget(self, name: str) -> None:
            del self.saved[name]

    cursors, broker = Forgetting(), Broker()
    broker.keep("orders.>", MemoryLog(), cursors)
    async with broker.subscribe("orders.*", durable="d") as subscription:
        for number in range(3):
            await broker.publish(made(number))
        assert await taken(subscription, 3) == [0, 1, 2]

        async def saved() -> bool:
            return cursors.saved == {"d": Place(3)}

        await eventually(saved)
    await cursors.forget("d")
    async with broker.subscribe("orders.*", durable="d", start="beginning") as subscription:
        assert await taken(subscription, 3) == [0, 1, 2]
    await broker.aclose()


class FullCursors(Cursors):
    """Fails while it is told to, and counts."""

    failing = False
    tries = 0

    async def save(self, name: str, place: Place) -> None:
        self.tries += 1
        if self.failing:
            raise OSError(28, "no space left")
        await super().save(name, place)


async def test_a_place_that_cannot_be_saved_is_tried_again_by_itself_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_AGAIN", 0.05)
    cursors, broker = FullCursors(), Broker()
    broker.keep("orders.>", MemoryLog(), cursors)
    subscription = broker.subscribe("orders.*", durable="d").begin()
    await broker.publish(made(0))
    cursors.failing, before, began = True, cursors.tries, time.monotonic()
    for number in range(1, 100):
        await broker.publish(made(number))
        await taken(subscription, 1)
        for _ in range(5):
            await turn()
    assert cursors.tries - before <= (time.monotonic() - began) / 0.05 + 2

    async def tried_twice() -> bool:
        return cursors.tries > before + 1

    await eventually(tried_twice)
    assert caplog.text.count("d: its place in the log was not saved") == 1
    cursors.failing = False

    async def saved() -> bool:
        return cursors.saved == {"d": Place(99)}

    await eventually(saved)
    assert "d: its place in the log is saved again" in caplog.text
    cursors.failing = True
    await taken(subscription, 1)
    await asyncio.wait_for(broker.aclose(), 10)
    tries, until = cursors.tries, time.monotonic() + 0.1

    async def passed() -> bool:
        return time.monotonic() > until

    await eventually(passed)
    assert cursors.tries == tries, "nothing is left behind that tries on"
