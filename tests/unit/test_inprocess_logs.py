"""Logs: where a subscription begins, the step from old to new, eviction, compaction, durable names."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from bridges.errors import ConfigurationError, Evicted
from bridges.inprocess import Broker, Drop, Entry, InProcessSink, InProcessSource, MemoryLog
from bridges.inprocess.durable import DurableLog
from bridges.inprocess.stamps import PLAIN
from bridges.message import Message, uuid7
from bridges.ports import PUBLISHED, Reason, Rejected, Released
from tests.engines.deadline import eventually
from tests.unit.logs import SlowLog, logged, taken
from tests.unit.messages import made, turn, whether

if TYPE_CHECKING:
    from pathlib import Path

    from bridges.inprocess import Subscription


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
            await turn()

    async def subscribe() -> None:
        for _ in range(10):
            subscriptions.append(broker.subscribe("orders.*", start="beginning", buffer=7, name="replay").begin())
            for _ in range(11):
                await turn()

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


async def test_a_message_that_is_stored_is_published_though_a_subscription_beside_the_log_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for room as long as it may; sending it again would only store it again."""
    log = await DurableLog.open(tmp_path / "log")
    broker = Broker()
    broker.keep("t", log)
    full, free = broker.subscribe("t", name="full", buffer=1, policy="block").begin(), broker.subscribe("t", name="free").begin()
    sink = InProcessSink(broker, timeout=3600)
    messages = [Message(uuid7(), "t", str(number).encode()) for number in range(3)]
    sending = asyncio.create_task(sink.publish(messages))
    assert await taken(free, 3) == [0, 1, 2]
    assert not sending.done()
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + 3600)  # however long the disk has taken, the sink's time is up now
    assert await sending == [PUBLISHED] * 3
    assert log.next == 3
    assert len(full.take_nowait(9)) == 1
    assert broker.figures().subscriptions["full"].dropped == 2
    one_by_one = InProcessSink(broker, max_payload=1)
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


async def test_who_waits_for_what_was_evicted_is_told() -> None:
    broker = await logged(0, MemoryLog(max_messages=2))
    async with broker.subscribe("orders.*", start="live", buffer=1) as slow:
        await broker.publish(made(0))
        assert len(slow.take_nowait(1)) == 1
        waiting = asyncio.create_task(InProcessSink(broker, timeout=20).publish([made(1)]))
        for number in range(2, 6):
            await broker.publish(made(number))
            await turn()
        with pytest.raises(Evicted):
            slow.take_nowait(9)
        [outcome] = await asyncio.wait_for(waiting, 10)
        assert isinstance(outcome, Released)
        assert outcome.reason is Reason.FULL
        assert await taken(slow, 2) == [4, 5]


async def test_what_a_newer_message_of_its_key_has_taken_out_of_a_log_is_answered() -> None:
    """Its reader will have the newer one in its place. It is published: sent again, it would take the place of that."""
    log = MemoryLog(compact=True)
    broker = await logged(0, log)
    async with broker.subscribe("orders.*", start="live", buffer=1, ack="explicit") as subscription:
        await broker.publish(made(0))
        [busy] = subscription.take_nowait(1)
        await broker.publish(made(1))
        sinking = asyncio.create_task(InProcessSink(broker, timeout=20).publish([made(2, key="k"), made(3)]))
        waiting = asyncio.create_task(broker.publish_and_wait(made(4, key="k"), 20, until="acknowledged"))
        await eventually(lambda: whether(log.next == 5))
        await broker.publish(made(5, key="k"))
        busy.ack()
        assert await taken(subscription, 3) == [1, 3, 5]
        assert await asyncio.wait_for(sinking, 10) == [PUBLISHED] * 2
        await asyncio.wait_for(waiting, 10)


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
