"""Logs: where a subscription begins, the step from old to new, eviction, compaction, durable names."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from bridges.errors import ConfigurationError, Evicted, LogFailed
from bridges.inprocess import Broker, Drop, Entry, InProcessSink, InProcessSource, MemoryLog, progress
from bridges.inprocess.durable import DurableLog
from bridges.inprocess.log import Place
from bridges.inprocess.stamps import PLAIN, Stamps
from bridges.message import Message, uuid7
from bridges.ports import PUBLISHED, Reason, Rejected, Released
from tests.engines.deadline import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bridges.inprocess import Subscription


def made(payload: int | bytes = b"", topic: str = "orders.created", key: str | None = None) -> Message:
    return Message(uuid7(), topic, str(payload).encode() if isinstance(payload, int) else payload, key)


class SlowLog(MemoryLog):
    """A log whose appends take a while, and which says that it is durable."""

    durable = True

    async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
        offset = await super().append(messages, time, stamps)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return offset


class Cursors:
    """A store of cursors in memory."""

    def __init__(self) -> None:
        self.saved: dict[str, Place] = {}

    async def save(self, name: str, place: Place) -> None:
        await asyncio.sleep(0)
        self.saved[name] = place

    def load(self, name: str) -> Place | None:
        return self.saved.get(name)

    async def close(self) -> None: ...


async def taken(subscription: Subscription, count: int) -> list[int]:
    got: list[int] = []
    while len(got) < count:
        for delivery in await asyncio.wait_for(subscription.take(count - len(got)), 10):
            got.append(int(delivery.payload))
            delivery.ack()
    return got


async def logged(count: int, log: MemoryLog | None = None) -> Broker:
    broker = Broker()
    broker.keep("orders.>", log or MemoryLog())
    for number in range(count):
        await broker.publish(made(number))
    return broker


async def test_a_subscription_begins_where_it_says() -> None:
    broker = await logged(5)
    middle = datetime.now(UTC)
    for number in range(5, 10):
        await broker.publish(made(number))
    for start, first in (("beginning", 0), (3, 3), (middle, 5), (middle - timedelta(hours=1), 0), (10, 10), ("live", 10)):
        async with broker.subscribe("orders.*", start=start) as subscription:  # type: ignore[arg-type]  # each is one
            assert await taken(subscription, 10 - first) == list(range(first, 10))
            assert subscription.take_nowait(9) == []
    with pytest.raises(ConfigurationError, match="start: 11 is beyond the end of the log; the next offset is 10"):
        broker.subscribe("orders.*", start=11).begin()
    with pytest.raises(ConfigurationError, match="start: 'yesterday' is not an offset"):
        broker.subscribe("orders.*", start="yesterday").begin()  # type: ignore[arg-type]


@pytest.mark.parametrize("log", [MemoryLog, SlowLog])
async def test_the_step_from_replay_to_live_neither_loses_nor_repeats(log: type[MemoryLog]) -> None:
    """Subscriptions that begin at any moment of a stream of four publishers see it from its beginning, in the order of the log."""
    broker = await logged(200, log())
    subscriptions: list[Subscription] = []

    async def publish(publisher: int) -> None:
        for number in range(200):
            await broker.publish(made(1000 * publisher + number))
            await asyncio.sleep(0)

    async def subscribe() -> None:
        for _ in range(10):
            subscriptions.append(broker.subscribe("orders.*", start="beginning", buffer=7, name="replay").begin())
            for _ in range(11):
                await asyncio.sleep(0)

    publishing = asyncio.gather(*(publish(publisher) for publisher in range(1, 5)))
    await asyncio.gather(publishing, subscribe())
    first = await taken(subscriptions[0], 1000)
    assert sorted(first) == sorted([*range(200), *(1000 * publisher + number for publisher in range(1, 5) for number in range(200))])
    for subscription in subscriptions[1:]:
        assert await taken(subscription, 1000) == first
        assert subscription.take_nowait(9) == []
    broker.close()


async def test_an_evicted_offset_raises_and_nothing_of_it_is_delivered() -> None:
    broker = await logged(10, MemoryLog(max_messages=4))
    with pytest.raises(Evicted, match="offset 5 is evicted; the log begins at 6") as evicted:
        broker.subscribe("orders.*", start=5).begin()
    assert (evicted.value.offset, evicted.value.first) == (5, 6)
    async with broker.subscribe("orders.*", start=6, buffer=2) as slow:
        assert await taken(slow, 1) == [6]
        for number in range(10, 20):
            await broker.publish(made(number))
        assert await taken(slow, 1) == [7], "what was read already is there"
        with pytest.raises(Evicted) as evicted:
            await slow.take(9)
        assert evicted.value.first == 16
    async with broker.subscribe("orders.*", start="beginning") as again:
        assert await taken(again, 4) == [16, 17, 18, 19]


async def test_retention_by_time_and_by_size() -> None:
    log = MemoryLog(max_age=10.0)
    for number, when in enumerate((100.0, 105.0, 109.0, 116.0)):
        assert await log.append([made(number)], when) == number
    assert [entry.offset for entry in log.read(log.first, 9)] == [2, 3]
    assert (log.first, log.next, log.offset_at(110.0), log.offset_at(117.0)) == (2, 4, 3, 4)
    back = MemoryLog()
    for when in (100.0, 200.0, 50.0, 60.0, 300.0):  # as in a log on disk: the first at that time or later, though clocks go back
        await back.append([made()], when)
    assert [back.offset_at(when) for when in (40.0, 55.0, 150.0, 201.0, 301.0)] == [0, 0, 1, 4, 5]
    small = MemoryLog(max_bytes=10)
    for number in range(5):
        await small.append([made(b"1234")], float(number))
    assert (small.first, small.kept) == (3, 2)
    with pytest.raises(ConfigurationError, match="max_messages: 0 is not above 0"):
        MemoryLog(max_messages=0)


async def test_compaction_keeps_the_newest_of_each_key_and_never_moves_an_offset() -> None:
    log = MemoryLog(compact=True)
    broker = await logged(0, log)
    for number in range(1000):
        await broker.publish(made(number, key=f"k{number % 10}"))
    await broker.publish(made(1000))
    assert log.first == 0
    entries = log.read(0, 10**6)
    assert [entry.offset for entry in entries] == list(range(990, 1001))
    async with broker.subscribe("orders.*", start=0) as subscription:
        assert await taken(subscription, 11) == list(range(990, 1001))
    await broker.publish(made(b"", key="k3"))
    for number in range(1002, 1400):
        await broker.publish(made(number, key="other"))
    keys = [entry.message.key for entry in log.read(0, 10**6)]
    assert "k3" not in keys
    assert keys.count("other") == 1
    assert len(log._entries) < 200


async def test_a_log_keeps_what_its_pattern_says_and_subscriptions_read_a_part() -> None:
    broker = Broker()
    log = MemoryLog()
    broker.keep("orders.>", log)
    with pytest.raises(ConfigurationError, match=r"log of '\*\.created': some of its topics are kept by the log of 'orders\.>'"):
        broker.keep("*.created", MemoryLog())
    for topic in ("orders.created", "orders.paid", "users.created"):
        await broker.publish(made(1, topic))
    assert [entry.message.topic for entry in log.read(0, 9)] == ["orders.created", "orders.paid"]
    async with broker.subscribe("orders.paid", start=0) as subscription:
        assert [delivery.topic for delivery in await subscription.take(9)] == ["orders.paid"]
        assert subscription.take_nowait(9) == []


async def test_priority_expiry_and_time_of_delivery_survive_in_the_log() -> None:
    broker = await logged(0)
    await broker.publish(made(1), deliver_at=datetime.now(UTC) + timedelta(seconds=0.05))
    await broker.publish(made(2), ttl=0.01)
    await broker.publish(made(3)._replace(headers={"mine": "kept"}), priority=3, ttl=60)
    await broker.publish(made(4))
    until = time.monotonic() + 0.02

    async def expired() -> bool:
        return time.monotonic() > until

    await eventually(expired)
    async with broker.subscribe("orders.*", start="beginning") as subscription:
        three, four = await subscription.take(9)
        assert (int(three.payload), dict(three.headers), three.priority, int(four.payload)) == (3, {"mine": "kept"}, 3, 4)
        assert await taken(subscription, 1) == [1]


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


async def test_a_sink_answers_as_soon_as_a_durable_log_has_a_message() -> None:
    broker = await logged(0, SlowLog())
    message = made(1)
    assert await InProcessSink(broker, timeout=5).publish([message]) == [PUBLISHED]
    async with broker.subscribe("orders.*", start=0) as subscription:
        assert (await subscription.take(1))[0].message == message


async def test_a_log_in_memory_is_no_acknowledgement() -> None:
    """The sink waits until whoever reads the log has acknowledged; with nobody there, nothing is stored."""
    log = MemoryLog()
    broker = await logged(0, log)
    sink = InProcessSink(broker, timeout=0.05)
    [outcome] = await sink.publish([made(1)])
    assert isinstance(outcome, Released)
    assert (outcome.reason, log.next) == (Reason.MISSING, 0)
    async with broker.subscribe("orders.*", start="live") as subscription:
        [outcome] = await sink.publish([made(2)])
        assert isinstance(outcome, Released)
        assert outcome.reason is Reason.TIMEOUT
        publishing = asyncio.create_task(InProcessSink(broker, timeout=20).publish([made(3)]))
        assert await taken(subscription, 2) == [2, 3]
        assert await asyncio.wait_for(publishing, 10) == [PUBLISHED]


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


def test_an_entry_says_where_and_when_it_is() -> None:
    message = made()
    assert Entry(3, 1.5, message) == (3, 1.5, message, PLAIN)


async def test_headers_with_names_like_ours_are_the_users_and_pass_unchanged() -> None:
    """Whatever a foreign broker's message has there: it is no time of delivery, no expiry, no priority, and it ends no reader."""
    broker = await logged(0)
    headers = {"outbox-priority": "high", "outbox-expires-at": "1", "outbox-deliver-at": "4000000000"}
    async with broker.subscribe("orders.*", start="live") as subscription:
        await broker.publish(made(0)._replace(headers=headers))
        await broker.publish(made(1)._replace(headers=headers), priority=2)
        first, second = await asyncio.wait_for(subscription.take(9), 10)
    assert [(one.payload, dict(one.headers), one.priority) for one in (first, second)] == [(b"1", headers, 2), (b"0", headers, 0)]


async def test_what_expires_in_a_log_is_counted_and_told() -> None:
    dropped: list[tuple[bytes, Drop]] = []
    broker = await logged(0)
    await broker.publish(made(0), ttl=0.001)
    until = time.time() + 0.002

    async def expired() -> bool:
        return time.time() > until

    await eventually(expired)
    await broker.publish(made(1))
    wanted = {"filter": lambda message: True, "on_drop": lambda message, why: dropped.append((message.payload, why))}
    async with broker.subscribe("orders.*", start="beginning", name="all", **wanted) as subscription:  # type: ignore[arg-type]
        assert await taken(subscription, 1) == [1]
        assert dropped == [(b"0", Drop.EXPIRED)]
        figures = broker.figures()
        assert (figures.subscriptions["all"].published, figures.subscriptions["all"].dropped) == (2, 1)
        assert (figures.topics["orders.created"].published, figures.topics["orders.created"].dropped) == (2, 1)


async def test_what_was_taken_before_an_eviction_is_met_is_returned() -> None:
    """The eviction is told by the next call: what was taken must not be out with nobody."""
    broker = await logged(4, MemoryLog(max_messages=4))
    source = InProcessSource(broker, "orders.*", start="beginning", buffer=2)
    async with source.claim(1) as batch:
        await batch.settle([PUBLISHED])
    for number in range(4, 20):
        await broker.publish(made(number))
    async with source.claim(9) as batch:
        assert [message.payload for message in batch.messages] == [b"1"]
        await batch.settle([PUBLISHED])
    with pytest.raises(Evicted):
        async with source.claim(9):
            pass
    assert broker.figures().subscriptions["orders.*"].unacknowledged == 0


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
        await asyncio.sleep(0)
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

    def opened() -> Broker:
        log._closed = False
        broker = Broker()
        broker.keep("orders.>", log, cursors)
        return broker

    broker = opened()
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

    broker = opened()
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


async def test_what_was_taken_before_the_log_raises_is_given_to_the_reader() -> None:
    broker = Broker()
    broker.keep("t", MemoryLog(max_messages=4))
    async with broker.subscribe("t", start="beginning", buffer=2) as subscription:
        for number in range(4):
            await broker.publish(Message(uuid7(), "t", str(number).encode()))
        assert len(subscription.take_nowait(1)) == 1
        for number in range(4, 13):
            await broker.publish(Message(uuid7(), "t", str(number).encode()))
        assert [int(delivery.payload) for delivery in await subscription.take(9)] == [1]
        with pytest.raises(Evicted):
            await subscription.take(9)


async def test_a_message_that_is_stored_is_published_though_a_subscription_beside_the_log_has_no_room(tmp_path: Path) -> None:
    """It waits for room as long as it may; sending it again would only store it again."""
    log = await DurableLog.open(tmp_path / "log")
    broker = Broker()
    broker.keep("t", log)
    full, free = broker.subscribe("t", name="full", buffer=1, policy="block").begin(), broker.subscribe("t", name="free").begin()
    sink = InProcessSink(broker, timeout=0.05)
    messages = [Message(uuid7(), "t", str(number).encode()) for number in range(3)]
    assert await sink.publish(messages) == [PUBLISHED] * 3
    assert log.next == 3
    assert [len(subscription.take_nowait(9)) for subscription in (full, free)] == [1, 3]
    assert broker.figures().subscriptions["full"].dropped == 2
    one_by_one = InProcessSink(broker, timeout=0.05, max_payload=1)
    large = Message(uuid7(), "t", b"22")
    outcomes = await one_by_one.publish([messages[0], large])
    assert outcomes[0] == PUBLISHED
    await broker.aclose()


async def test_what_a_reader_of_a_log_in_memory_never_had_is_not_published() -> None:
    """Also where its outcome is asked for only after that of another, and the reader has ended meanwhile."""
    broker = Broker()
    broker.keep("orders.*", MemoryLog())
    subscription = broker.subscribe("orders.*", start="live").begin()
    sinking = asyncio.create_task(InProcessSink(broker, timeout=9).publish([made(1), made(2)]))
    await subscription.take(1)
    [second] = await subscription.take(1)
    second.reject(Reason.INVALID, "")
    subscription.unsubscribe()
    assert [type(outcome) for outcome in await sinking] == [Released, Rejected]
    assert not len(broker.dead_letters), "its publisher keeps it"


async def test_a_sink_that_tries_again_stores_no_second_copy_in_a_log_in_memory() -> None:
    log = MemoryLog()
    broker = await logged(0, log)
    sink, message = InProcessSink(broker, timeout=0.01), made(1)
    async with broker.subscribe("orders.*", start="live") as subscription:
        for _ in range(3):
            assert isinstance((await sink.publish([message]))[0], Released)
        assert await taken(subscription, 1) == [1]
        assert await sink.publish([message]) == [PUBLISHED]
        assert log.next == 1


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

    def opened() -> Broker:
        log._closed = False
        broker = Broker()
        broker.keep("orders.>", log, cursors)
        return broker

    broker = opened()
    subscription = broker.subscribe("orders.*", durable="d").begin()
    await broker.publish(made(0), deliver_at=datetime.now(UTC) + timedelta(days=1))
    for number in range(1, 11):
        await broker.publish(made(number))
        assert await taken(subscription, 1) == [number]
    await broker.publish(made(11))
    await broker.aclose()
    assert cursors.saved == {"d": Place(0, ((1, 11),))}
    for evicted in (True, False):
        broker = opened()
        subscription = broker.subscribe("orders.*", durable="d").begin()
        caplog.clear()
        if evicted:
            with pytest.raises(Evicted, match="offset 0 is evicted"):
                await subscription.take(9)
        assert [int(delivery.payload) for delivery in await subscription.take(9)] == [11]
        assert ("d: the log has evicted up to 1 entries from offset 0 on" in caplog.text) == evicted
        await broker.aclose()
        assert cursors.saved == {"d": Place(11)}


async def test_who_waits_for_what_was_evicted_is_told() -> None:
    broker = await logged(0, MemoryLog(max_messages=2))
    async with broker.subscribe("orders.*", start="live", buffer=1) as slow:
        await broker.publish(made(0))
        assert len(slow.take_nowait(1)) == 1
        waiting = asyncio.create_task(InProcessSink(broker, timeout=20).publish([made(1)]))
        for number in range(2, 6):
            await broker.publish(made(number))
            await asyncio.sleep(0)
        with pytest.raises(Evicted):
            slow.take_nowait(9)
        [outcome] = await asyncio.wait_for(waiting, 10)
        assert isinstance(outcome, Released)
        assert outcome.reason is Reason.FULL
        assert await taken(slow, 2) == [4, 5]


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
            await asyncio.sleep(0)
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


async def test_the_time_in_queue_is_from_the_publish_whatever_the_message_waited_in() -> None:
    broker = await logged(0)
    plain = broker.subscribe("orders.*", name="plain").begin()
    read = broker.subscribe("orders.*", start="live", name="read", buffer=3).begin()
    spilled = broker.subscribe("orders.*", name="spilled", policy="spill", spill_to=MemoryLog(), buffer=1).begin()
    for number in range(10):
        await broker.publish(made(number))
    until = time.monotonic() + 0.05

    async def waited() -> bool:
        return time.monotonic() > until

    await eventually(waited)
    for subscription in (plain, read, spilled):
        assert await taken(subscription, 10) == list(range(10))
    for figures in broker.figures().subscriptions.values():
        assert 10 * 0.045 < figures.queue_seconds < 10
    before = broker.figures().subscriptions["read"].queue_seconds
    for number in range(10):
        await broker.publish(made(number))
        assert await taken(read, 1) == [number]
        now = broker.figures().subscriptions["read"].queue_seconds
        assert now >= before
        before = now
    broker.close()
