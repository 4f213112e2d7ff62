"""Full buffers: who drops, who waits, who is told, and that every copy is accounted for."""

from __future__ import annotations

import asyncio
import logging
from errno import EMFILE
from typing import TYPE_CHECKING

import pytest

from bridges.errors import Closed, ConfigurationError, InvalidPattern
from bridges.inprocess import Broker, Drop, InProcessSink, MemoryLog, State, Tenants
from bridges.ports import PUBLISHED, Reason, Released
from tests.engines.deadline import eventually
from tests.unit.messages import made, publish, whether

if TYPE_CHECKING:
    from bridges.inprocess import Entry
    from bridges.message import Message


@pytest.mark.parametrize(("policy", "kept"), [("drop_newest", [0, 1, 2]), ("drop_oldest", [7, 8, 9])])
async def test_a_full_buffer_drops_and_tells(policy: str, kept: list[int]) -> None:
    broker = Broker()
    told: list[tuple[int, Drop]] = []
    async with broker.subscribe(
        "orders.*",
        buffer=3,
        policy=policy,  # type: ignore[arg-type]  # both are policies
        on_drop=lambda message, why: told.append((int(message.payload), why)),
    ) as subscription:
        await publish(broker, 10)
        assert [int(delivery.payload) for delivery in await subscription.take(99)] == kept
        assert told == [(number, Drop.FULL) for number in range(10) if number not in kept]
        figures = broker.figures().topics["orders.created"]
        assert (figures.published, figures.delivered, figures.dropped, figures.queued) == (10, 3, 7, 0)


async def test_on_drop_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker()

    def wrong(message: Message, why: Drop) -> None:
        raise ZeroDivisionError

    async with broker.subscribe(buffer=1, on_drop=wrong) as subscription:
        await publish(broker, 2)
        assert len(await subscription.take(9)) == 1
    assert "on_drop raised" in caplog.text


async def test_a_dropped_delivery_says_so() -> None:
    broker = Broker()
    async with broker.subscribe(buffer=1):
        [kept] = await broker.publish(made())
        [dropped] = await broker.publish(made())
        assert (kept.state, dropped.state) == (State.QUEUED, State.DROPPED)
        assert dropped.over


async def test_a_subscriber_that_never_reads_harms_itself_alone() -> None:
    broker = Broker()
    async with (
        broker.subscribe("orders.*", buffer=5),
        broker.subscribe("orders.*", buffer=5, policy="drop_oldest"),
        broker.subscribe("orders.*", buffer=100) as reads,
    ):
        await asyncio.wait_for(publish(broker, 100), 10)
        assert [int(delivery.payload) for delivery in await reads.take(999)] == list(range(100))


async def test_one_that_blocks_holds_nothing_back_from_the_others() -> None:
    broker = Broker()
    async with broker.subscribe(buffer=1, policy="block"), broker.subscribe() as other:
        await broker.publish(made(1))
        publishing = asyncio.create_task(broker.publish(made(2)))
        assert len(await asyncio.wait_for(other.take(1), 10)) == 1
        assert len(await asyncio.wait_for(other.take(1), 10)) == 1
        assert not publishing.done()
        publishing.cancel()


async def test_a_second_subscription_that_blocks_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker()
    with caplog.at_level(logging.WARNING, "outboxd.inprocess"):
        async with broker.subscribe("orders.*", name="one", policy="block"):
            await broker.publish(made())
            assert not caplog.records
            async with broker.subscribe("orders.created", name="two", policy="block"):
                await publish(broker, 3)
            async with broker.subscribe("orders.>", name="three", policy="block"):
                await publish(broker, 3)
    assert len(caplog.records) == 1
    assert "one, two" in caplog.text


async def test_spilling_keeps_all_in_order_beyond_the_buffer() -> None:
    broker = Broker()
    log = MemoryLog()
    async with broker.subscribe(buffer=3, policy="spill", spill_to=log) as subscription:
        await publish(broker, 10)
        assert (broker.figures().subscriptions[">"].lag, log.next) == (10, 7)
        got = [int(delivery.payload) for delivery in await subscription.take(4)]
        await broker.publish(made(10))  # behind those that are in the log
        got += [int(delivery.payload) for delivery in await subscription.take(99)]
        assert got == list(range(11))
        await broker.publish(made(11))
        assert log.next == 8, "it did not spill with an empty buffer"
        assert len(await subscription.take(9)) == 1
        figures = broker.figures()
        assert figures.topics["orders.created"].delivered == figures.subscriptions[">"].published == 12


async def test_what_the_log_of_a_spilling_subscription_evicts_is_dropped_and_counted() -> None:
    broker = Broker()
    async with broker.subscribe(buffer=2, policy="spill", spill_to=MemoryLog(max_messages=3)) as subscription:
        await publish(broker, 10)
        got: list[int] = []
        while len(got) < 5:
            got += [int(delivery.payload) for delivery in await asyncio.wait_for(subscription.take(99), 10)]
        assert got == [0, 1, 7, 8, 9]
        figures = broker.figures().topics["orders.created"]
        assert (figures.published, figures.delivered, figures.dropped) == (10, 5, 5)


async def test_spilling_without_a_log_of_its_own_reads_that_of_the_topic() -> None:
    broker = Broker()
    broker.keep("orders.>", MemoryLog())
    async with broker.subscribe("orders.*", buffer=2, policy="spill") as subscription:
        await publish(broker, 9)
        got: list[int] = []
        while len(got) < 9:
            got += [int(delivery.payload) for delivery in await asyncio.wait_for(subscription.take(99), 10)]
        assert got == list(range(9))


async def test_a_publish_with_no_subscription_does_nothing() -> None:
    broker = Broker()
    await publish(broker, 3)
    assert broker.figures().topics == {}
    assert await broker.publish_and_wait(made(), 1) == []


async def test_closing_ends_everything_and_refuses_what_comes_after() -> None:
    broker = Broker()
    subscription = broker.subscribe("a").begin()
    await broker.publish(made(topic="a"))
    await broker.aclose()
    await broker.aclose()
    assert await subscription.take(1) == []
    for late in (broker.publish(made(topic="a")), broker.publish_and_wait(made(), 1), broker.request(made(), 1)):
        with pytest.raises(Closed):
            await late
    with pytest.raises(Closed):
        broker.subscribe("a").begin()
    figures = broker.figures().topics["a"]
    assert (figures.published, figures.dropped) == (1, 1)


def test_bad_settings_are_refused_with_the_text_and_the_position() -> None:
    broker = Broker()
    for patterns, words in {
        ("a.>.b",): "'a.>.b': token 2 is '>'",
        ("good", "a..b"): "'a..b': token 2 is empty",
        ("",): "'': token 1 is empty",
        (".a",): "'.a': token 1 is empty",
        ("a.b c",): "token 2, 'b c'",
        ("a.x*",): "token 2, 'x*'",
    }.items():
        with pytest.raises(InvalidPattern, match=words.replace("*", r"\*")):
            broker.subscribe(*patterns)
    for settings, words in (
        ({"buffer": 0}, "buffer: 0 is below 1"),
        ({"buffer": -5}, "buffer: -5 is below 1"),
        ({"policy": "drop_random"}, "policy: 'drop_random' is not one of drop_newest, drop_oldest, block, spill, shed"),
        ({"prefetch": 0}, "prefetch: 0 is below 1"),
        ({"ack_deadline": 0.0}, "ack_deadline: 0.0 is not above 0"),
        ({"group": "a", "durable": "b"}, "group: 'a' beside durable 'b'"),
        ({"spill_to": MemoryLog()}, "spill_to: is for policy 'spill'; it is 'drop_newest'"),
        (
            {"tenants": Tenants(), "start": "live"},
            "tenants: beside start: 'live': a subscription that reads a log takes messages in its order",
        ),
        ({"tenants": Tenants(), "durable": "d"}, "tenants: beside durable: 'd'"),
        ({"tenants": Tenants(), "policy": "spill"}, "tenants: a subscription that spills takes messages back in the order of its log"),
        ({"ack": "sometimes"}, "ack: 'sometimes' is not 'loop' or 'explicit'"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            broker.subscribe("a", **settings)
    for settings, words in (
        ({"policy": "spill"}, "policy: 'spill': no log keeps all topics of 'a'"),
        ({"start": 0}, "start: no log keeps all topics of 'a'"),
        ({"durable": "d"}, "durable: no log keeps all topics of 'a'"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            broker.subscribe("a", **settings).begin()


def test_a_log_that_keeps_topics_is_not_spilled_to() -> None:
    """What is spilled would be in it twice, and its readers would be given it twice. Whichever of the two comes first."""
    broker, kept, spill = Broker(), MemoryLog(), MemoryLog()
    broker.keep("orders.>", kept)
    for topics in ("orders.*", "users.*"):
        with pytest.raises(ConfigurationError, match=r"spill_to: is the log that keeps 'orders\.>'"):
            broker.subscribe(topics, policy="spill", spill_to=kept).begin()
    assert broker.figures().subscriptions == {}
    broker.subscribe("orders.*", policy="spill", spill_to=spill, name="spilling").begin()
    with pytest.raises(ConfigurationError, match=r"log: is what 'spilling' spills to \(spill_to\)"):
        broker.keep("users.>", spill)


async def test_a_message_that_the_filter_keeps_out_does_not_wait_for_room() -> None:
    broker = Broker()
    dropped: list[Message] = []
    async with broker.subscribe(
        buffer=1, policy="block", filter=lambda message: message.payload == b"1", on_drop=lambda message, _: dropped.append(message)
    ) as subscription:
        await broker.publish(made(1))
        assert await asyncio.wait_for(broker.publish(made(2)), 10) == []
        assert await broker.publish_and_wait(made(2), 0) == []
        assert await InProcessSink(broker, timeout=10).publish([made(2)]) == [PUBLISHED]
        assert (broker.figures().subscriptions[">"].published, dropped) == (1, [])
        assert len(subscription.take_nowait(9)) == 1


async def test_what_is_shed_is_counted_and_told_and_no_trouble_of_its_publisher() -> None:
    broker = Broker()
    told: list[tuple[int, Drop]] = []
    async with (
        broker.subscribe(buffer=2, policy="shed", on_drop=lambda message, why: told.append((int(message.payload), why))) as subscription,
        broker.subscribe(policy="block", name="beside") as beside,
    ):
        await publish(broker, 3)
        assert told == [(2, Drop.SHED)]
        publishing = asyncio.create_task(InProcessSink(broker, timeout=10).publish([made(3)]))
        for delivery in await asyncio.wait_for(beside.take(3), 10):
            delivery.ack()
        for delivery in await asyncio.wait_for(beside.take(1), 10):
            delivery.ack()
        assert await asyncio.wait_for(publishing, 10) == [PUBLISHED]
        assert told == [(2, Drop.SHED), (3, Drop.SHED)]
        assert [int(delivery.payload) for delivery in subscription.take_nowait(9)] == [0, 1]
        assert broker.figures().subscriptions[">"].dropped == 2


async def test_what_only_went_to_a_spill_is_not_published() -> None:
    """A spill is no acknowledgement: what nobody acknowledged in time is released, and awaited there by the next call."""
    broker = Broker()
    async with broker.subscribe(buffer=1, policy="spill", spill_to=MemoryLog()) as subscription:
        await broker.publish(made(0))
        sink, messages = InProcessSink(broker, timeout=0.05), [made(number) for number in range(1, 4)]
        for _ in range(3):
            outcomes = await sink.publish(messages)
            assert [outcome.reason for outcome in outcomes if isinstance(outcome, Released)] == [Reason.TIMEOUT] * 3
            assert broker.figures().subscriptions[">"].lag == 4
        sinking = asyncio.create_task(InProcessSink(broker, timeout=20).publish([made(9)]))
        await eventually(lambda: whether(broker.figures().subscriptions[">"].lag == 5))
        sinking.cancel()
        await asyncio.wait({sinking})
        assert broker.figures().subscriptions[">"].lag == 4, "a call that is cut short takes its own out of there again"
        publishing = asyncio.create_task(sink.publish(messages))
        seen: list[int] = []
        while len(seen) < 4:
            for delivery in await asyncio.wait_for(subscription.take(1), 10):
                seen.append(int(delivery.payload))
                assert not publishing.done()
                delivery.ack()
        assert seen == [0, 1, 2, 3]
        assert await asyncio.wait_for(publishing, 10) == [PUBLISHED] * 3
        figures = broker.figures().topics["orders.created"]
        assert (figures.published, figures.delivered, figures.dropped) == (5, 4, 1)


async def test_what_ends_in_a_spill_is_told_to_its_publisher() -> None:
    broker = Broker()
    subscription = broker.subscribe(buffer=1, policy="spill", spill_to=MemoryLog(max_messages=1)).begin()
    await broker.publish(made(0))
    publishing = asyncio.create_task(InProcessSink(broker, timeout=20).publish([made(1), made(2)]))
    await eventually(lambda: whether(broker.figures().subscriptions[">"].lag == 3))
    assert len(subscription.take_nowait(1)) == 1
    assert [int(delivery.payload) for delivery in subscription.take_nowait(1)] == [2], "1 was evicted"
    subscription.unsubscribe()
    evicted, ended = await asyncio.wait_for(publishing, 10)
    assert (evicted, ended) == (
        Released(Reason.FULL, "dropped: the log of the subscription has evicted it"),
        Released(Reason.UNAVAILABLE, "the subscription ended before it acknowledged"),
    )


async def test_drop_oldest_drops_the_lowest_priority_first() -> None:
    broker = Broker()
    async with broker.subscribe(buffer=2, policy="drop_oldest") as subscription:
        await broker.publish(made(b"low"), priority=-5)
        await publish(broker, 2)
        await broker.publish(made(b"lower"), priority=-9)
        assert [delivery.payload for delivery in subscription.take_nowait(9)] == [b"0", b"1"]


class Tired(MemoryLog):
    """A log that cannot be read while it is told so."""

    tired = False

    def read(self, offset: int, limit: int) -> list[Entry]:
        if self.tired:
            raise OSError(EMFILE, "too many open files")
        return super().read(offset, limit)


async def test_a_spill_that_cannot_be_read_once_loses_nothing() -> None:
    """The message stays where it is, and comes with the next call; its publisher hears of it."""

    broker, spill = Broker(), Tired()
    async with broker.subscribe(policy="spill", spill_to=spill, buffer=1, ack="explicit") as subscription:
        await publish(broker, 1)
        sinking = asyncio.create_task(InProcessSink(broker, timeout=9).publish([made(1)]))
        await eventually(lambda: whether(spill.next == 1))
        await publish(broker, 1)
        subscription.take_nowait(1)[0].ack()
        spill.tired = True
        with pytest.raises(OSError, match="too many"):
            subscription.take_nowait(9)
        spill.tired = False
        taken = subscription.take_nowait(1) + subscription.take_nowait(1)
        assert [int(delivery.payload) for delivery in taken] == [1, 0]
        for delivery in taken:
            delivery.ack()
        assert await sinking == [PUBLISHED]
        figures = broker.figures().topics["orders.created"]
        assert (figures.published, figures.delivered, figures.queued) == (3, 3, 0)


async def test_a_spill_that_cannot_be_read_stops_no_end(caplog: pytest.LogCaptureFixture) -> None:
    """What was in it is dropped and counted, and those that are ended after it are ended."""
    broker, spill, kept = Broker(), Tired(), MemoryLog()
    broker.keep("kept.>", kept)
    told: list[int] = []
    broker.subscribe(
        name="spills", policy="spill", spill_to=spill, buffer=1, on_drop=lambda message, _: told.append(int(message.payload))
    ).begin()
    after = broker.subscribe("other.*").begin()
    waiting = asyncio.create_task(after.take(1))
    await publish(broker, 4)
    spill.tired = True
    await broker.aclose()
    assert await asyncio.wait_for(waiting, 10) == []
    assert kept._closed
    figures = broker.figures().topics["orders.created"]
    assert (figures.published, figures.dropped, told) == (4, 4, [0])
    assert caplog.text.count("spills: what is dropped cannot be read from its spill") == 1


async def test_a_sink_ends_though_what_it_takes_back_cannot_be_read() -> None:
    broker, spill = Broker(), Tired()
    spill.tired = True
    told: list[Drop] = []
    async with broker.subscribe(policy="spill", spill_to=spill, buffer=1, on_drop=lambda _, why: told.append(why)):
        sinking = asyncio.create_task(InProcessSink(broker, timeout=20).publish([made(number) for number in range(3)]))
        await eventually(lambda: whether(broker.figures().subscriptions[">"].lag == 3))
        sinking.cancel()
        await asyncio.wait({sinking})
        figures = broker.figures().topics["orders.created"]
        assert (figures.published, figures.dropped, told) == (3, 3, [Drop.WITHDRAWN])
