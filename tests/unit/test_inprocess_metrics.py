"""What is measured: by subscription, without a label that could grow without end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest

from bridges.inprocess import Broker, MemoryLog
from bridges.inprocess.metrics import BrokerMetrics
from bridges.inprocess.stamps import PLAIN, Stamps
from bridges.inprocess.stats import MAX_TOPICS, OTHERS
from bridges.message import Message, uuid7
from bridges.ports import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence


def made(topic: str = "orders.created") -> Message:
    return Message(uuid7(), topic, b"")


async def test_every_figure_is_a_metric() -> None:
    broker = Broker()
    registry = CollectorRegistry()
    BrokerMetrics({"local": broker}, registry)
    async with broker.subscribe(group="billing", buffer=3) as named, broker.subscribe("*.*"), broker.subscribe("*.*"):
        for _ in range(5):
            await broker.publish(made())
        one, two, three = await named.take(9)
        one.ack()
        two.reject(Reason.INVALID, "")
        three.nack(failed=False)
        await named.take(1)

        def value(name: str, subscription: str = "billing") -> float | None:
            return registry.get_sample_value(f"outbox_inprocess_{name}", {"broker": "local", "subscription": subscription})

        expected = {"published": 5, "delivered": 3, "dropped": 2, "redelivered": 1, "done": 1, "dead": 1}
        assert {name: value(f"{name}_total") for name in expected} == expected
        assert (value("lag_messages"), value("lag_messages", "")) == (1, 10)
        assert (value("queue_seconds_count"), value("handler_seconds_count")) == (3, 3)
        assert registry.get_sample_value("outbox_inprocess_dead_letters", {"broker": "local"}) == 1
        assert registry.get_sample_value("outbox_inprocess_scheduled_messages", {"broker": "local"}) == 0
        assert b"*.*" not in generate_latest(registry)
        seconds = broker.figures().subscriptions["billing"]
        assert 0 < seconds.queue_seconds < 10
        assert 0 < seconds.handler_seconds < 10


async def test_dead_letters_that_were_let_go_are_counted() -> None:
    broker = Broker(max_dead_letters=2)
    registry = CollectorRegistry()
    BrokerMetrics({"local": broker}, registry)
    async with broker.subscribe() as subscription:
        for _ in range(5):
            await broker.publish(made())
        for delivery in subscription.take_nowait(9):
            delivery.reject(Reason.INVALID, "")
        assert registry.get_sample_value("outbox_inprocess_dead_letters", {"broker": "local"}) == 2
        assert registry.get_sample_value("outbox_inprocess_dead_letters_overflowed_total", {"broker": "local"}) == 3
        assert broker.figures().dead_letters_overflowed == 3


async def test_brokers_of_one_registry_are_told_apart() -> None:
    here, there = Broker(), Broker()
    registry = CollectorRegistry()
    BrokerMetrics({"here": here, "there": there}, registry)
    async with here.subscribe(group="billing"), there.subscribe(group="billing"):
        await here.publish(made())
        await there.publish(made())
        await there.publish(made())
        name = "outbox_inprocess_published_total"
        published = [registry.get_sample_value(name, {"broker": broker, "subscription": "billing"}) for broker in ("here", "there")]
        assert published == [1, 2]


async def test_topics_have_figures_of_their_own_up_to_a_bound() -> None:
    broker = Broker(buffer=100_000)
    async with broker.subscribe() as subscription:
        for number in range(MAX_TOPICS + 50):
            await broker.publish(made(f"topic.{number}"))
        topics = broker.figures().topics
        assert len(topics) == MAX_TOPICS + 1
        assert (topics[OTHERS].published, topics["topic.7"].published) == (50, 1)
        assert len(await subscription.take(256)) == 256


async def test_a_counter_does_not_go_down_when_one_of_those_without_a_name_ends() -> None:
    """Prometheus would take that for a restart, and count again what the rest have counted."""
    broker = Broker()
    registry = CollectorRegistry()
    BrokerMetrics({"local": broker}, registry)
    storing, go_on = asyncio.Event(), asyncio.Event()

    class Storing(MemoryLog):
        async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
            storing.set()
            await go_on.wait()
            return await super().append(messages, time, stamps)

    def values(*names: str) -> list[float | None]:
        labels = {"broker": "local", "subscription": ""}
        return [registry.get_sample_value(f"outbox_inprocess_{name}", labels) for name in names]

    counters = ("published_total", "delivered_total", "dropped_total", "done_total", "handler_seconds_count")
    assert values("published_total") == [None]
    async with broker.subscribe("a.*", name="named"), broker.subscribe("a.*"):
        ends = broker.subscribe("*.*", buffer=2, policy="spill", spill_to=Storing()).begin()
        second = broker.subscribe("b.*", name="named").begin()
        await broker.publish(made("a.x"))
        await broker.publish(made("b.x"))
        for delivery in ends.take_nowait(1):
            delivery.ack()
        await broker.publish(made("a.x"))
        publishing = asyncio.create_task(broker.publish(made("a.x")))
        await asyncio.wait_for(storing.wait(), 10)
        assert values(*counters) == [7, 1, 0, 1, 1]
        ends.unsubscribe()
        second.unsubscribe()
        assert values(*counters) == [7, 1, 3, 1, 1]
        go_on.set()  # what was on its way to the spill when its subscription ended
        await publishing
        assert values(*counters, "lag_messages") == [8, 1, 4, 1, 1, 3]
    assert values(*counters, "lag_messages") == [8, 1, 7, 1, 1, 0]
    assert registry.get_sample_value("outbox_inprocess_published_total", {"broker": "local", "subscription": "named"}) is None
    ended = broker.figures().ended
    assert (ended.published, ended.delivered, ended.dropped, ended.lag) == (8, 1, 7, 0)
