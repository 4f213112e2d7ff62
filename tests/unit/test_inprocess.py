"""The embedded broker: subscriptions that end with their task or scope, wildcards, queue groups, buffers that block."""

from __future__ import annotations

import asyncio

import pytest

from bridges.errors import Closed, ConfigurationError, InvalidMessage, InvalidPattern
from bridges.inprocess import Broker, Subscription
from bridges.message import Message, uuid7
from tests.unit.messages import turn


def made(topic: str = "orders.created", payload: bytes = b"", key: str | None = None) -> Message:
    return Message(uuid7(), topic, payload, key)


async def test_each_subscription_that_matches_gets_each_message() -> None:
    broker = Broker()
    async with broker.subscribe("orders.*") as one, broker.subscribe("orders.>", "refunds.*") as two, broker.subscribe("x") as other:
        assert len(await broker.publish(made())) == 2
        assert [len(await one.take(9)), len(await two.take(9)), len(other.take_nowait(9, other))] == [1, 1, 0]


async def test_a_message_goes_to_one_member_of_each_group() -> None:
    broker = Broker()
    async with broker.subscribe(group="a") as one, broker.subscribe(group="a") as two, broker.subscribe(group="b") as three:
        for _ in range(10):
            assert len(await broker.publish(made())) == 2
        shared = [*one.take_nowait(5, one), *two.take_nowait(9, two)]
        assert len({delivery.message.id for delivery in shared}) == 10
        assert len(await three.take(99)) == 10


async def test_what_a_member_leaves_unacknowledged_goes_to_the_others() -> None:
    broker = Broker()
    async with broker.subscribe(group="a") as stays:
        async with broker.subscribe(group="a") as leaves:
            await broker.publish(made(payload=b"1"))
            assert len(await leaves.take(1)) == 1
        assert [delivery.message.payload for delivery in await stays.take(1)] == [b"1"]


async def test_a_member_that_waits_is_woken_when_it_leaves() -> None:
    broker = Broker()
    async with broker.subscribe(group="a"):
        leaves = broker.subscribe(group="a").begin()
        waiting = asyncio.create_task(leaves.take(1))
        await turn()
        leaves.unsubscribe()
        assert await asyncio.wait_for(waiting, 10) == []


async def test_a_full_buffer_blocks_the_publisher_until_there_is_room() -> None:
    broker = Broker()
    async with broker.subscribe(buffer=1, policy="block") as subscription:
        await broker.publish(made())
        publishing = asyncio.create_task(broker.publish(made()))
        await turn()
        assert not publishing.done()
        (delivery,) = await subscription.take(1)
        delivery.ack()
        assert len(await asyncio.wait_for(publishing, 10)) == 1


async def test_a_subscription_ends_with_its_scope_and_leaves_nothing_behind() -> None:
    broker = Broker()
    for _ in range(100):
        async with broker.subscribe("a"):
            pass
    assert not broker.figures().subscriptions
    assert not broker.hears("a")
    task = asyncio.current_task()
    assert task is not None
    assert not [
        callback for callback in getattr(task, "_callbacks", None) or [] if isinstance(getattr(callback, "__self__", None), Subscription)
    ]


async def test_a_subscription_ends_with_its_task() -> None:
    broker = Broker()

    async def enter_and_end() -> Subscription:
        return await broker.subscribe("a").__aenter__()

    subscription = await asyncio.create_task(enter_and_end())
    await turn()
    assert await broker.publish(made("a")) == []
    assert await subscription.take(1) == []


async def test_iterating_ends_when_the_broker_closes() -> None:
    broker = Broker()
    seen = []

    async def read() -> None:
        async with broker.subscribe() as subscription:
            async for delivery in subscription:
                seen.append(delivery.message)
                delivery.ack()

    reading = asyncio.create_task(read())
    await turn()
    (delivery,) = await broker.publish(made())
    await delivery.outcome()
    broker.close()
    broker.close()
    await asyncio.wait_for(reading, 10)
    assert len(seen) == 1
    with pytest.raises(Closed):
        await broker.publish(made())


async def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigurationError, match="buffer: 0"):
        Broker(buffer=0)
    with pytest.raises(InvalidPattern, match="token 2"):
        Broker().subscribe("a.>.b")
    with pytest.raises(InvalidMessage, match="topic"):
        await Broker().publish(made("a b"))
