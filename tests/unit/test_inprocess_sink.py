"""The broker as a Sink: a handler that is slow holds back what is behind it in its key, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridges.breaker import trouble_in
from bridges.inprocess import Broker, InProcessSink, MemoryLog
from bridges.ports import BEHIND, PUBLISHED, Reason, Rejected, Released
from tests.engines.deadline import eventually
from tests.unit.logs import SlowLog, StuckLog
from tests.unit.messages import made, turn, whether
from tests.unit.sinks import SHORT, acknowledge, reasons, take


async def test_what_is_acknowledged_in_time_is_published_though_one_handler_is_slow() -> None:
    """And it is no outage of the sink: neither in that call nor in those that await the slow one again, which is handled once."""
    broker = Broker()
    sink, messages = InProcessSink(broker, timeout=SHORT), [made(number) for number in range(6)]
    async with broker.subscribe(ack="explicit") as subscription:
        sinking = asyncio.create_task(sink.publish(messages))
        slow, *others = await take(subscription, 6)
        for delivery in others:
            delivery.ack()
        outcomes = await sinking
        assert outcomes[1:] == [PUBLISHED] * 5
        assert reasons(outcomes[:1]) == [Reason.BEHIND]
        assert trouble_in(outcomes) is None
        late = await sink.publish(messages[:1])
        assert reasons(late) == [Reason.BEHIND]
        assert trouble_in(late) is None
        slow.ack()
        assert await sink.publish(messages[:1]) == [PUBLISHED]
        assert subscription.take_nowait(9) == []


async def test_a_call_does_not_wait_again_for_a_slow_handler_if_something_else_gets_through() -> None:
    """Or every call would last its whole time, and what it has published would be told that late."""
    broker = Broker()
    sink = InProcessSink(broker, timeout=60)
    slow, behind, other, last = made(b"slow", key="k"), made(b"behind", key="k"), made(b"other"), made(b"last", key="l")
    async with broker.subscribe(ack="explicit") as subscription:
        first = asyncio.create_task(sink.publish([slow]))
        (held,) = await take(subscription, 1)
        first.cancel()
        await asyncio.wait({first})
        second = asyncio.create_task(sink.publish([slow, behind, other, last]))
        for delivery in await take(subscription, 2):
            delivery.ack()
        outcomes = await asyncio.wait_for(second, 10)
        assert reasons(outcomes) == [Reason.BEHIND, Reason.BEHIND, None, None]
        alone = asyncio.create_task(sink.publish([slow, behind]))
        assert await asyncio.wait({alone}, timeout=SHORT) == (set(), {alone}), "there is nothing else: it is waited for"
        held.ack()
        (delivery,) = await take(subscription, 1)
        delivery.ack()
        assert await asyncio.wait_for(alone, 10) == [PUBLISHED, PUBLISHED]


async def test_what_has_its_turn_while_others_are_awaited_is_handed_over() -> None:
    broker = Broker()
    sink = InProcessSink(broker, timeout=60)
    slow, behind, other = made(b"slow", key="k"), made(b"behind", key="k"), made(b"other")
    async with broker.subscribe(ack="explicit") as subscription:
        first = asyncio.create_task(sink.publish([slow]))
        (held,) = await take(subscription, 1)
        first.cancel()
        await asyncio.wait({first})
        second = asyncio.create_task(sink.publish([slow, behind, other]))
        (awaited,) = await take(subscription, 1)
        held.ack()
        await turn()
        awaited.ack()
        (delivery,) = await take(subscription, 1)
        assert (awaited.payload, delivery.payload) == (b"other", b"behind")
        assert not second.done()
        delivery.ack()
        assert await asyncio.wait_for(second, 10) == [PUBLISHED] * 3


async def test_a_sink_of_which_nothing_is_acknowledged_is_away() -> None:
    """Also if one message is late for the second time, and others got through before it was sent."""
    broker = Broker()
    sink, message = InProcessSink(broker, timeout=0.02), made(1)
    async with broker.subscribe(filter=lambda each: each == message):
        assert await sink.publish([made(0)]) == [PUBLISHED]
        for _ in range(2):
            assert reasons(await sink.publish([message])) == [Reason.TIMEOUT]


async def test_a_log_that_does_not_answer_is_an_outage() -> None:
    broker = Broker()
    broker.keep("orders.>", StuckLog())
    sink = InProcessSink(broker, timeout=0.02)
    for messages in ([made(1)], [made(1), made(2, key="k"), made(3, key="k")]):
        outcomes = await sink.publish(messages)
        assert reasons(outcomes) == [Reason.TIMEOUT] * len(messages)
        assert trouble_in(outcomes) is not None


async def test_a_key_goes_on_while_another_waits_for_its_handler() -> None:
    broker = Broker()
    async with broker.subscribe(ack="explicit") as subscription:
        messages = [made(b"long", key="k"), made(0, key="l"), made(1, key="l"), made(b"after", key="k"), made(2, key="l")]
        sinking = asyncio.create_task(InProcessSink(broker, timeout=20).publish(messages))
        long, first = await take(subscription, 2)
        for number in range(3):
            assert (long.payload, int(first.payload)) == (b"long", number)
            first.ack()
            if number < 2:
                [first] = await take(subscription, 1)
        long.ack()
        [after] = await take(subscription, 1)
        assert (after.payload, sinking.done()) == (b"after", False)
        after.ack()
        assert await sinking == [PUBLISHED] * 5


async def test_what_is_behind_a_late_message_of_its_key_is_not_sent() -> None:
    """And goes on with the call in which the late one is acknowledged."""
    broker = Broker()
    sink = InProcessSink(broker, timeout=SHORT)
    messages = [made(b"long", key="k"), made(b"other", key="l"), made(b"after", key="k")]
    async with broker.subscribe(ack="explicit") as subscription:
        sinking = asyncio.create_task(sink.publish(messages))
        long, other = await take(subscription, 2)
        other.ack()
        outcomes = await sinking
        assert outcomes[1:] == [PUBLISHED, BEHIND]
        assert reasons(outcomes[:1]) == [Reason.BEHIND]
        sinking = asyncio.create_task(sink.publish([messages[0], messages[2]]))
        long.ack()
        [after] = await take(subscription, 1)
        assert after.payload == b"after"
        after.ack()
        assert await sinking == [PUBLISHED] * 2


async def test_what_is_behind_a_rejected_message_of_its_key_is_not_sent() -> None:
    broker = Broker()
    messages = [made(b"bad", key="k"), made(0, key="l"), made(b"after", key="k"), made(1, key="l")]
    async with broker.subscribe(ack="explicit") as subscription:
        sinking = asyncio.create_task(InProcessSink(broker, timeout=20).publish(messages))
        bad, zero = await take(subscription, 2)
        bad.reject(Reason.INVALID, "bad")
        zero.ack()
        [one] = await take(subscription, 1)
        one.ack()
        assert await sinking == [Rejected(Reason.INVALID, "bad"), PUBLISHED, BEHIND, PUBLISHED]


@pytest.mark.parametrize(
    "how",
    [
        {"policy": "block", "buffer": 1},
        {"policy": "spill", "buffer": 1, "spill_to": MemoryLog()},
        {"start": "live", "buffer": 1},
        {"group": "g"},
    ],
    ids=lambda how: str(how.get("policy", next(iter(how)))),
)
async def test_a_key_goes_on_wherever_its_messages_wait(how: dict[str, Any]) -> None:
    """For room, in a spill, in a log, or with a member of a group: beside a subscription that has them at once."""
    broker = Broker()
    handled: list[bytes] = []
    if "start" in how:
        broker.keep("orders.>", MemoryLog())
    async with broker.subscribe("orders.*", **how) as subscription, broker.subscribe(name="beside") as beside:
        readers = [asyncio.create_task(acknowledge(one, handled if one is subscription else [])) for one in (subscription, beside)]
        messages = [made(number, key=str(number % 3)) for number in range(12)]
        assert await asyncio.wait_for(InProcessSink(broker, timeout=20).publish(messages), 20) == [PUBLISHED] * 12
        for key in range(3):
            assert [int(payload) for payload in handled if int(payload) % 3 == key] == list(range(key, 12, 3))
    await asyncio.gather(*readers)


async def test_what_ends_before_it_has_come_holds_its_key_back() -> None:
    """It waits for room at a subscription that ends: what is behind it is not sent, and another key is not kept waiting."""
    broker = Broker()
    subscription = broker.subscribe("orders.a", policy="spill", spill_to=MemoryLog(), buffer=1).begin()
    beside = broker.subscribe("orders.b", ack="explicit").begin()
    await broker.publish(made(topic="orders.a"))
    messages = [made(0, "orders.a", "k"), made(1, "orders.b", "l"), made(2, "orders.a", "k"), made(3, "orders.b", "l")]
    sinking = asyncio.create_task(InProcessSink(broker, timeout=20).publish(messages))
    (await take(beside, 1))[0].ack()
    subscription.unsubscribe()
    (await take(beside, 1))[0].ack()
    outcomes = await asyncio.wait_for(sinking, 10)
    assert reasons(outcomes) == [Reason.UNAVAILABLE, None, Reason.BEHIND, None]


async def test_a_message_that_many_calls_await_is_not_told_to_those_that_are_over() -> None:
    """No call is changed after its end."""
    broker = Broker()
    sink, messages = InProcessSink(broker, timeout=0.01), [made(0, key="k"), made(1, key="k")]
    async with broker.subscribe(ack="explicit") as subscription:
        sinking = asyncio.create_task(sink.publish(messages))
        [delivery] = await take(subscription, 1)
        ended = [await sinking]
        ended += [await sink.publish(messages) for _ in range(5)]
        delivery.ack()
        assert all(isinstance(outcome, Released) for outcomes in ended for outcome in outcomes)
        assert subscription.take_nowait(9) == []


async def test_what_a_log_has_stored_is_stored_again_when_it_comes_again() -> None:
    """A replay, or a letter that was requeued: it was answered for, and is no late message that the next call may pass over."""
    broker, log = Broker(), SlowLog()
    broker.keep("orders.>", log)
    sink, messages = InProcessSink(broker, drop_unheard=True), [made(0), made(1, topic="plain")]
    for stored in range(1, 4):
        assert await sink.publish(messages) == [PUBLISHED] * 2
        assert log.next == stored


async def test_a_call_that_is_cancelled_leaves_what_was_acknowledged_to_the_next() -> None:
    broker = Broker()
    sink, messages = InProcessSink(broker, timeout=20), [made(0, key="k"), made(1, key="l"), made(2, key="k")]
    async with broker.subscribe(ack="explicit") as subscription:
        sinking = asyncio.create_task(sink.publish(messages))
        one, other = await take(subscription, 2)
        other.ack()
        sinking.cancel()
        await asyncio.wait({sinking})
        one.ack()
        sinking = asyncio.create_task(sink.publish(messages))
        await eventually(lambda: whether(not subscription.mailbox.idle))
        [last] = await take(subscription, 1)
        assert int(last.payload) == 2
        last.ack()
        assert await sinking == [PUBLISHED] * 3
