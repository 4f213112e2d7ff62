"""Fairness: no tenant starves another, none gets more than its limit, and each one's lag is seen."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from bridges.errors import ConfigurationError
from bridges.inprocess import Broker, Subscription, Tenants
from bridges.inprocess.fairline import FairLine
from bridges.message import Message, uuid7
from tests.unit.messages import turn


def of(tenant: str, payload: bytes = b"x", key: str | None = None) -> Message:
    return Message(uuid7(), "orders.created", payload, key, headers={"tenant": tenant})


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


async def test_what_is_only_parked_behind_its_key_costs_nothing() -> None:
    broker = Broker()
    one, two = (
        broker.subscribe(group="g", prefetch=2, ack="explicit", tenants=Tenants(rate=0.001, burst=4, quantum=2)).begin() for _ in range(2)
    )
    for number, key in enumerate("aaab"):
        await broker.publish(of("t", str(number).encode(), key))
    (first,) = one.take_nowait(1)
    assert [delivery.payload for delivery in two.take_nowait(9)] == [b"3"], "what is of the first key is parked"
    first.ack()
    got = one.take_nowait(9)
    assert [delivery.payload for delivery in got] == [b"1", b"2"]
    for delivery in got:
        delivery.ack()
    await broker.publish(of("t", b"over the limit"))
    assert one.take_nowait(9) == []
    broker.close()


async def test_what_is_parked_keeps_nobody_from_its_turn() -> None:
    broker = Broker()
    fair = Tenants(quantum=2)
    one, two = (broker.subscribe(group="g", prefetch=99, ack="explicit", tenants=fair).begin() for _ in range(2))
    await broker.publish(of("loud", b"0", "k"))
    assert len(one.take_nowait(1)) == 1
    for number in range(8):
        await broker.publish(of("loud", b"", "k" if number < 4 else None))
        await broker.publish(of("quiet"))
    taken = [delivery.headers["tenant"] for delivery in two.take_nowait(8)]
    assert taken == ["loud", "loud", "quiet", "quiet"] * 2
    broker.close()


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
        await turn()
        for _ in range(3):
            await asyncio.wait_for(broker.publish(of("quiet")), 10)
        assert not blocked.done()
        assert len(await subscription.take(5)) == 5
        await asyncio.wait_for(blocked, 10)


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest", "block"])
async def test_what_is_over_is_in_nobodys_line(policy: str) -> None:
    """Messages that have expired make no tenant the one with the longest line, and leave nobody a smaller share."""
    broker = Broker()
    dropped: Counter[str] = Counter()
    async with broker.subscribe(
        buffer=10,
        policy=policy,  # type: ignore[arg-type]  # all are policies
        tenants=Tenants(),
        on_drop=lambda message, why: dropped.update([message.headers["tenant"]]),
    ) as subscription:
        deliveries = [delivery for _ in range(10) for delivery in await broker.publish(of("late"), ttl=0.001)]
        for delivery in deliveries:
            await asyncio.wait_for(delivery.outcome(), 10)
        for _ in range(10):
            await asyncio.wait_for(broker.publish(of("loud")), 10)
        for _ in range(3):
            await asyncio.wait_for(broker.publish(of("quiet")), 10)
        lost = 0 if policy == "block" else 3
        assert +dropped == +Counter(late=10, loud=lost)
        assert Counter(delivery.headers["tenant"] for delivery in await subscription.take(999)) == {"loud": 10 - lost, "quiet": 3}


async def with_nothing_in_line(broker: Broker, how: str, count: int, **settings: Any) -> Subscription:
    """Have so many of tenant "loud" wait beside the line: behind a key that another has, or for a retry. Return who may take."""
    settings |= {"group": "g", "ack": "explicit", "ack_deadline": None, "tenants": Tenants()}
    one, two = (broker.subscribe(name="fair", **settings).begin() for _ in range(2))
    if how == "parked":
        await broker.publish(of("loud", b"first", "k"))
        assert len(one.take_nowait(1)) == 1
    for number in range(count):
        await broker.publish(of("loud", str(number).encode(), "k" if how == "parked" else None))
    taken = two.take_nowait(count)
    assert len(taken) == (0 if how == "parked" else count)
    for delivery in taken:
        delivery.nack(60)
    return two


@pytest.mark.parametrize("how", ["parked", "retrying"])
async def test_what_waits_beside_the_line_is_of_its_tenants_share(how: str) -> None:
    broker = Broker()
    subscription = await with_nothing_in_line(broker, how, 10, buffer=10, policy="block")
    assert broker.figures().subscriptions["fair"].tenants == {"loud": 10}
    blocked = asyncio.create_task(broker.publish(of("loud")))
    await turn()
    assert not blocked.done()
    for _ in range(5):
        await asyncio.wait_for(broker.publish(of("quiet")), 10)
    assert broker.figures().subscriptions["fair"].tenants == {"loud": 10, "quiet": 5}
    assert len(subscription.take_nowait(99)) == 5
    assert not blocked.done(), "quiet has taken its own away, and nothing of loud's"
    broker.close()
    await blocked


async def test_however_many_tenants_there_are_they_have_twice_the_buffer_at_the_most() -> None:
    """And where there is room, one that has nothing there gets in before one that has its share."""
    broker = Broker()
    async with broker.subscribe(buffer=10, policy="block", tenants=Tenants()) as subscription:
        publishers: list[asyncio.Task[object]] = []
        for number in range(40):
            publishers += [asyncio.create_task(broker.publish(of(f"t{number}"))) for _ in range(10)]
            await turn()
        assert subscription.mailbox.queued == 20
        seen = Counter(delivery.headers["tenant"] for delivery in subscription.take_nowait(5))
        assert set(subscription.mailbox.lags) >= {f"t{number}" for number in range(8)}
        while seen.total() < 400:
            for delivery in await asyncio.wait_for(subscription.take(1), 10):
                seen[delivery.headers["tenant"]] += 1
                delivery.ack()
                assert subscription.mailbox.queued <= 20
        assert set(seen.values()) == {10}
        await asyncio.gather(*publishers)


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
async def test_with_a_policy_that_drops_the_buffer_is_the_limit_however_it_is_published(policy: Any) -> None:
    broker = Broker()
    async with broker.subscribe(buffer=10, policy=policy, tenants=Tenants()) as subscription:
        for _ in range(10):
            await broker.publish(of("loud"))
        await broker.publish(of("quiet"), priority=1)
        await broker.publish(of("quiet"), ttl=60)
        await broker.publish(of("quiet"))
        assert subscription.mailbox.queued == 10
        assert subscription.mailbox.lags == {"loud": 7, "quiet": 3}


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
@pytest.mark.parametrize("how", ["parked", "retrying"])
async def test_who_has_the_most_beside_the_line_loses_its_own(how: str, policy: Any) -> None:
    broker = Broker()
    dropped: list[str] = []
    subscription = await with_nothing_in_line(
        broker, how, 7, buffer=10, policy=policy, on_drop=lambda message, why: dropped.append(message.headers["tenant"])
    )
    for tenant in ("quiet", "other", "other"):
        await broker.publish(of(tenant))
    await broker.publish(of("loud"))
    await broker.publish(of("loud", key="k"), priority=1)
    assert dropped == ["loud", "loud"]
    await broker.publish(of("new"))
    assert dropped == ["loud", "loud", "other"], "of loud none may go; of the others that have more than new, one may"
    assert subscription.mailbox.lags == {"loud": 7, "quiet": 1, "other": 1, "new": 1}
    broker.close()
    figures = broker.figures().topics["orders.created"]
    assert figures.published == figures.delivered + figures.dropped
    assert subscription.mailbox.lags == {}


async def test_a_cost_that_raises_is_logged_and_counts_as_one(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker()
    asked: Counter[bytes] = Counter()

    def cost(message: Message) -> int:
        asked[message.payload] += 1
        return 3 // len(message.payload)

    async with broker.subscribe("orders.>", buffer=2, policy="block", tenants=Tenants(cost=cost)) as subscription:
        await broker.publish(of("a", b""))
        await broker.publish(of("b", b"x"))
        assert {delivery.payload for delivery in await asyncio.wait_for(subscription.take(9), 10)} == {b"", b"x"}
        assert asked == {b"": 1, b"x": 1}
        assert subscription.mailbox.queued == 0
    assert "orders.>: the cost of tenants raised for a message of 'orders.created'; it counts as 1" in caplog.text


async def test_turns_in_which_nobody_could_go_are_not_gone_through_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cost of a million with a quantum of 1 must not hold up the event loop; the shares are the same."""
    turns = 0
    end_turn = FairLine._end_turn

    def counted(*arguments: Any) -> None:
        nonlocal turns
        turns += 1
        end_turn(*arguments)

    monkeypatch.setattr(FairLine, "_end_turn", counted)
    broker = Broker()
    async with broker.subscribe(tenants=Tenants(cost=lambda message: len(message.payload))) as subscription:
        for _ in range(50):
            await broker.publish(of("large", b"x" * 10_000))
            await broker.publish(of("small", b"x" * 1_000))
        shares = Counter(delivery.headers["tenant"] for delivery in subscription.take_nowait(33))
        assert shares == {"large": 3, "small": 30}
        assert turns < 150


def test_mistakes_are_named() -> None:
    for settings, words in (
        ({"rate": 0}, "tenants: rate: 0 is not above 0"),
        ({"burst": 0}, "burst: 0 is below 1"),
        ({"quantum": 0}, "quantum"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            Tenants(**settings)  # type: ignore[arg-type]
