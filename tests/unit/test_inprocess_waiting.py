"""Publishers that wait: for room, in their order, and until others have acknowledged."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from bridges.errors import Evicted, Stalled
from bridges.inprocess import Broker, Drop, InProcessSink, MemoryLog
from bridges.inprocess.stamps import PLAIN, Stamps
from bridges.ports import Reason, Released
from tests.engines.deadline import eventually
from tests.unit.logs import SlowLog, StuckLog
from tests.unit.messages import made, publish, turn, whether

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.inprocess import Subscription
    from bridges.message import Message


async def test_publishers_that_wait_go_on_in_their_order_and_one_that_is_cancelled_is_counted() -> None:
    broker = Broker()
    async with broker.subscribe(buffer=1, policy="block") as subscription:
        await broker.publish(made(0))
        waiting = [asyncio.create_task(broker.publish(made(number))) for number in range(1, 5)]
        await turn()
        waiting[1].cancel()
        seen = [int(delivery.payload) for _ in range(4) for delivery in await asyncio.wait_for(subscription.take(1), 10)]
        assert seen == [0, 1, 3, 4]
        figures = broker.figures().topics["orders.created"]
        assert (figures.published, figures.delivered, figures.dropped) == (5, 4, 1)


async def test_a_publisher_that_waits_is_freed_when_the_subscription_ends() -> None:
    broker = Broker()
    subscription = broker.subscribe(buffer=1, policy="block").begin()
    await broker.publish(made())
    waiting = asyncio.create_task(broker.publish(made()))
    await turn()
    subscription.unsubscribe()
    subscription.unsubscribe()
    assert await asyncio.wait_for(waiting, 10) == []


async def test_publish_and_wait_names_those_that_stall() -> None:
    """Within its time it waits for room whatever the policy; the others have the message."""
    broker = Broker()
    async with (
        broker.subscribe(name="stuck", buffer=1),
        broker.subscribe(name="frozen", buffer=1, policy="block"),
        broker.subscribe(name="well") as well,
    ):
        await broker.publish_and_wait(made(1), 5)
        with pytest.raises(Stalled) as stalled:
            await broker.publish_and_wait(made(2), 0.05)
        assert sorted(stalled.value.names) == ["frozen", "stuck"]
        assert "frozen" in str(stalled.value)
        assert "well" not in stalled.value.names
        assert len(await well.take(9)) == 2
        figures = broker.figures().topics["orders.created"]
        assert figures.published == figures.delivered + figures.dropped + figures.queued


async def test_publish_and_wait_names_each_that_stalls_once() -> None:
    """One that had no room in time has not acknowledged it either."""
    broker = Broker()
    async with broker.subscribe(name="stuck", buffer=1), broker.subscribe(name="idle"):
        await broker.publish(made(1))
        with pytest.raises(Stalled) as stalled:
            await broker.publish_and_wait(made(2), 0.05, until="acknowledged")
        assert sorted(stalled.value.names) == ["idle", "stuck"]


async def test_publish_and_wait_waits_for_room_where_publish_would_drop() -> None:
    broker = Broker()
    async with broker.subscribe(buffer=1) as subscription:
        await broker.publish(made(1))
        waiting = asyncio.create_task(broker.publish_and_wait(made(2), 20))
        await turn()
        assert [int(delivery.payload) for delivery in await subscription.take(1)] == [1]
        assert len(await asyncio.wait_for(waiting, 10)) == 1
        assert [int(delivery.payload) for delivery in await subscription.take(1)] == [2]


async def test_publish_and_wait_until_acknowledged() -> None:
    broker = Broker()
    async with broker.subscribe(name="slow") as slow, broker.subscribe(name="quick") as quick:
        waiting = asyncio.create_task(broker.publish_and_wait(made(), 20, until="acknowledged"))
        (await quick.take(1))[0].ack()
        (held,) = await slow.take(1)
        assert not waiting.done()
        held.ack()
        assert len(await asyncio.wait_for(waiting, 10)) == 2
        with pytest.raises(Stalled) as stalled:
            await broker.publish_and_wait(made(), 0.05, until="acknowledged")
        assert sorted(stalled.value.names) == ["quick", "slow"]


async def test_a_publisher_that_waits_goes_on_when_what_is_before_it_expires() -> None:
    broker = Broker()
    async with broker.subscribe(buffer=1, policy="block") as subscription:
        await broker.publish(made(1), ttl=0.02)
        await asyncio.wait_for(broker.publish(made(2)), 10)
        assert [int(delivery.payload) for delivery in await subscription.take(9)] == [2]


async def test_a_publisher_that_waits_is_not_overtaken() -> None:
    """Room is given to who waits for it: one that comes when there has just been room goes behind them, and none of them to the end."""
    broker = Broker()
    async with broker.subscribe(buffer=1, policy="block") as subscription:
        await broker.publish(made(0))
        waiting = [asyncio.create_task(broker.publish(made(number))) for number in range(1, 4)]
        await turn()
        waiting.append(asyncio.create_task(broker.publish(made(4))))  # its turn is before that of those who are woken below
        seen = [int(delivery.payload) for delivery in subscription.take_nowait(1)]
        while len(seen) < 5:
            seen += [int(delivery.payload) for delivery in await asyncio.wait_for(subscription.take(1), 10)]
        assert seen == [0, 1, 2, 3, 4]
        await asyncio.wait_for(asyncio.gather(*waiting), 10)


async def test_until_acknowledged_waits_for_those_that_have_it_in_a_log() -> None:
    broker = Broker()
    broker.keep("kept", MemoryLog())
    async with (
        broker.subscribe("kept", start="live", name="reader") as reader,
        broker.subscribe("spilled", buffer=1, policy="spill", spill_to=MemoryLog(), name="spiller") as spiller,
    ):
        await broker.publish(made(topic="spilled"))
        for topic, subscription in (("kept", reader), ("spilled", spiller)):
            with pytest.raises(Stalled) as stalled:
                await broker.publish_and_wait(made(topic=topic), 0.05, until="acknowledged")
            assert stalled.value.names == (subscription.name,)
            waiting = asyncio.create_task(broker.publish_and_wait(made(b"last", topic=topic), 20, until="acknowledged"))
            payload = b""
            while payload != b"last":
                for delivery in await asyncio.wait_for(subscription.take(1), 10):
                    payload = delivery.payload
                    assert not waiting.done()
                    delivery.ack()
            await asyncio.wait_for(waiting, 10)


async def test_publish_and_wait_hears_of_what_became_of_a_message_before_the_log_answered() -> None:
    """A reader may have it, and reject it or lose it, before the append that stored it returns: that is no acknowledgement."""
    broker, log = Broker(), SlowLog(max_messages=9)
    broker.keep("orders.>", log)
    ends = ["reject", "ack", "reject"]

    async def read(subscription: Subscription) -> None:
        async for delivery in subscription:
            delivery.reject(Reason.INVALID, "no") if ends[int(delivery.payload)] == "reject" else delivery.ack()

    async with broker.subscribe("orders.*", start="live", name="reader", ack="explicit") as subscription:
        reading = asyncio.create_task(read(subscription))
        waits = [broker.publish_and_wait(made(number), 10, until="acknowledged") for number in range(3)]
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Stalled, list, Stalled]
        assert len(broker.dead_letters) == 2
    await reading


async def test_publish_and_wait_hears_of_what_was_evicted_before_the_log_answered() -> None:
    class Full(SlowLog):
        """It is full of others by the time that it answers."""

        async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
            offset = await super().append(messages, time, stamps)
            await super().append([made(1, "orders.other")], time)
            with pytest.raises(Evicted):
                subscription.take_nowait(1)
            return offset

    broker = Broker()
    broker.keep("orders.>", Full(max_messages=1))
    async with broker.subscribe("orders.created", start="live") as subscription:
        with pytest.raises(Stalled):
            await broker.publish_and_wait(made(0), 10, until="acknowledged")


async def test_publish_and_wait_leaves_nothing_behind_when_it_is_cancelled() -> None:
    broker = Broker()
    async with broker.subscribe(name="one", buffer=1, policy="block") as one, broker.subscribe(name="two", buffer=1) as two:
        await broker.publish(made(0))
        waiting = asyncio.create_task(broker.publish_and_wait(made(1), 60))
        await eventually(lambda: whether(all(subscription.mailbox.waiting.publishers for subscription in (one, two))))
        before = asyncio.all_tasks() - {waiting}
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert {task for task in asyncio.all_tasks() if not task.done()} <= before
        for subscription in (one, two):
            assert [int(delivery.payload) for delivery in subscription.take_nowait(9)] == [0]
        figures = broker.figures().topics["orders.created"]
        assert (figures.published, figures.delivered, figures.dropped, figures.queued) == (4, 2, 2, 0)


async def test_publish_and_wait_waits_no_longer_for_a_log_than_it_says() -> None:
    broker = Broker()
    broker.keep("orders.>", StuckLog())
    async with broker.subscribe():
        with pytest.raises(Stalled, match=r"the log of 'orders\.>'"):
            await asyncio.wait_for(broker.publish_and_wait(made(), 0.05), 10)


async def test_a_message_passes_over_any_number_of_readers_that_are_cancelled() -> None:
    broker = Broker()
    async with broker.subscribe() as subscription:
        cancelled = [asyncio.create_task(subscription.take(1)) for _ in range(3000)]
        waits = asyncio.create_task(subscription.take(1))
        await turn()
        for task in cancelled:
            task.cancel()
        await broker.publish(made(1))
        assert [int(delivery.payload) for delivery in await asyncio.wait_for(waits, 10)] == [1]


@pytest.mark.parametrize("how", ["unsubscribe", "close"])
async def test_a_message_that_waited_for_room_in_vain_is_not_published(how: str) -> None:
    """Its subscription ends before it is let in: nobody has had it, so its publisher keeps it; and it is counted, and told."""
    broker = Broker()
    told: list[Drop] = []
    subscription = broker.subscribe("orders.*", policy="block", buffer=1, on_drop=lambda _, why: told.append(why)).begin()
    await publish(broker, 1)
    sinking = asyncio.create_task(InProcessSink(broker, timeout=9).publish([made(1, key="k"), made(2, key="k")]))
    waiting = asyncio.create_task(broker.publish_and_wait(made(3), 9, until="acknowledged"))
    await eventually(lambda: whether(len(subscription.mailbox.waiting.publishers or ()) == 2))
    subscription.unsubscribe() if how == "unsubscribe" else broker.close()
    assert [type(outcome) for outcome in await sinking] == [Released, Released]
    with pytest.raises(Stalled):
        await waiting
    assert told == [Drop.ENDED] * 3
    figures = broker.figures().topics["orders.created"]
    assert (figures.published, figures.dropped, figures.queued) == (3, 3, 0)


@pytest.mark.parametrize("policy", ["block", "spill"])
async def test_a_publisher_that_waits_at_two_places_is_in_line_at_both_at_once(policy: str) -> None:
    """What is published when there is room again, before anything else has run, comes after it."""
    broker = Broker()
    got: dict[str, list[int]] = {"a": [], "b": []}

    async def read(subscription: Subscription) -> None:
        async for delivery in subscription:
            got[subscription.name].append(int(delivery.payload))

    subscriptions = [
        broker.subscribe(
            name=name,
            policy=policy,  # type: ignore[arg-type]  # both are policies
            buffer=1,
            spill_to=MemoryLog() if policy == "spill" else None,
        ).begin()
        for name in got
    ]
    await publish(broker, 1)
    first = asyncio.create_task(broker.publish(made(1, key="k")))
    began = asyncio.Event()
    asyncio.get_running_loop().call_soon(began.set)
    await began.wait()
    subscriptions[0].take_nowait(1)[0].ack()
    readers = [asyncio.create_task(read(subscription)) for subscription in subscriptions]
    await broker.publish(made(2, key="k"))
    await eventually(lambda: whether(got == {"a": [1, 2], "b": [0, 1, 2]}))
    await first
    broker.close()
    await asyncio.gather(*readers)


async def test_a_publisher_that_is_cancelled_at_once_is_counted_wherever_it_waits() -> None:
    broker = Broker()
    told: list[Drop] = []
    with ExitStack() as ends:
        for name, own in (("a", {"policy": "block"}), ("b", {"policy": "block"}), ("c", {"policy": "spill", "spill_to": MemoryLog()})):
            common = {"name": name, "buffer": 1, "on_drop": lambda _, why: told.append(why)}
            ends.callback(broker.subscribe(**common, **own).begin().unsubscribe)  # type: ignore[arg-type]
        await publish(broker, 1)
        cut = asyncio.create_task(broker.publish(made(1)))
        asyncio.get_running_loop().call_soon(cut.cancel)
        await asyncio.wait({cut})
        assert told == [Drop.WITHDRAWN, Drop.WITHDRAWN], "the spill has it"
        figures = broker.figures().topics["orders.created"]
        assert (figures.published, figures.dropped, figures.queued) == (6, 2, 4)
