"""Fairness: no tenant starves another, none gets more than its limit, and each one's lag is seen."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from bridges.errors import ConfigurationError
from bridges.inprocess import Broker, Tenants
from bridges.message import Message, uuid7


def of(tenant: str, payload: bytes = b"x") -> Message:
    return Message(uuid7(), "orders.created", payload, headers={"tenant": tenant})


async def test_tenants_take_turns_and_their_lag_is_seen() -> None:
    broker = Broker()
    async with broker.subscribe(name="fair", tenants=Tenants()) as subscription:
        for tenant, count in (("loud", 100), ("quiet", 3), ("other", 5)):
            for number in range(count):
                await broker.publish(of(tenant, str(number).encode()))
        assert broker.figures().subscriptions["fair"].tenants == {"loud": 100, "quiet": 3, "other": 5}
        first = await subscription.take(9)
        assert Counter(delivery.headers["tenant"] for delivery in first) == {"loud": 3, "quiet": 3, "other": 3}
        rest = await subscription.take(999)
        loud = [delivery.payload for delivery in [*first, *rest] if delivery.headers["tenant"] == "loud"]
        assert loud == [str(number).encode() for number in range(100)], "the order of one tenant is kept"
        assert broker.figures().subscriptions["fair"].tenants == {}


async def test_what_a_message_costs_is_shared_where_it_differs() -> None:
    broker = Broker()
    fair = Tenants(quantum=100, cost=lambda message: len(message.payload))
    async with broker.subscribe(tenants=fair) as subscription:
        for _ in range(50):
            await broker.publish(of("large", b"x" * 100))
            await broker.publish(of("small", b"x" * 10))
        shares = Counter(delivery.headers["tenant"] for delivery in await subscription.take(33))
        assert shares["large"] == 3
        assert shares["small"] == 30


async def test_a_limit_holds_one_tenant_and_no_other() -> None:
    broker = Broker()
    async with broker.subscribe(tenants=Tenants(rate=50.0, burst=5)) as subscription:
        for _ in range(10):
            await broker.publish(of("busy"))
        await broker.publish(of("idle"))
        at_once = Counter(delivery.headers["tenant"] for delivery in subscription.take_nowait(99))
        assert at_once == {"busy": 5, "idle": 1}
        loop = asyncio.get_running_loop()
        began = loop.time()
        seen = 0
        while seen < 5:
            seen += len(await asyncio.wait_for(subscription.take(9), 10))
        assert loop.time() - began > 0.08


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
async def test_a_flood_of_one_tenant_drops_its_own(policy: str) -> None:
    broker = Broker()
    dropped: Counter[str] = Counter()
    async with broker.subscribe(
        buffer=20,
        policy=policy,  # type: ignore[arg-type]  # both are policies
        tenants=Tenants(),
        on_drop=lambda message, why: dropped.update([message.headers["tenant"]]),
    ) as subscription:
        for _ in range(200):
            await broker.publish(of("loud"))
        for _ in range(9):
            await broker.publish(of("quiet"))
        got = Counter(delivery.headers["tenant"] for delivery in await subscription.take(999))
        assert got == {"loud": 11, "quiet": 9}
        assert dropped == {"loud": 189}


async def test_a_flood_of_one_tenant_blocks_its_own_publishers() -> None:
    broker = Broker()
    async with broker.subscribe(buffer=10, policy="block", tenants=Tenants()) as subscription:
        for _ in range(10):
            await broker.publish(of("loud"))
        blocked = asyncio.create_task(broker.publish(of("loud")))
        await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.wait_for(broker.publish(of("quiet")), 10)
        assert not blocked.done()
        assert len(await subscription.take(5)) == 5
        await asyncio.wait_for(blocked, 10)


def test_mistakes_are_named() -> None:
    for settings, words in (
        ({"rate": 0}, "tenants: rate: 0 is not above 0"),
        ({"burst": 0}, "burst: 0 is below 1"),
        ({"quantum": 0}, "quantum"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            Tenants(**settings)  # type: ignore[arg-type]
