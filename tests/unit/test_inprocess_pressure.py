"""Full buffers: who drops, who waits, who is told, and that every copy is accounted for."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from errno import EMFILE
from typing import TYPE_CHECKING

import pytest

from bridges.errors import Closed, ConfigurationError, InvalidPattern, Stalled
from bridges.inprocess import Broker, Drop, InProcessSink, MemoryLog, State
from bridges.inprocess.stamps import PLAIN, Stamps
from bridges.message import Message, uuid7
from bridges.ports import PUBLISHED, Reason, Released
from tests.engines.deadline import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.inprocess import Entry, Subscription


def made(payload: bytes | int = b"", topic: str = "orders.created", key: str | None = None) -> Message:
    return Message(uuid7(), topic, str(payload).encode() if isinstance(payload, int) else payload, key)


async def publish(broker: Broker, count: int, topic: str = "orders.created") -> None:
    for number in range(count):
        await broker.publish(made(number, topic))


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


async def test_publishers_that_wait_go_on_in_their_order_and_one_that_is_cancelled_is_counted() -> None:
    broker = Broker()
    async with broker.subscribe(buffer=1, policy="block") as subscription:
        await broker.publish(made(0))
        waiting = [asyncio.create_task(broker.publish(made(number))) for number in range(1, 5)]
        await asyncio.sleep(0)
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
    await asyncio.sleep(0)
    subscription.unsubscribe()
    subscription.unsubscribe()
    assert await asyncio.wait_for(waiting, 10) == []


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


async def test_publish_and_wait_waits_for_room_where_publish_would_drop() -> None:
    broker = Broker()
    async with broker.subscribe(buffer=1) as subscription:
        await broker.publish(made(1))
        waiting = asyncio.create_task(broker.publish_and_wait(made(2), 20))
        await asyncio.sleep(0)
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
        await asyncio.sleep(0)
        waiting.append(asyncio.create_task(broker.publish(made(4))))  # its turn is before that of those who are woken below
        seen = [int(delivery.payload) for delivery in subscription.take_nowait(1)]
        while len(seen) < 5:
            seen += [int(delivery.payload) for delivery in await asyncio.wait_for(subscription.take(1), 10)]
        assert seen == [0, 1, 2, 3, 4]
        await asyncio.wait_for(asyncio.gather(*waiting), 10)


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
    """A spill is no acknowledgement: what nobody acknowledged in time is released, and taken out of the spill again."""
    broker = Broker()
    async with broker.subscribe(buffer=1, policy="spill", spill_to=MemoryLog()) as subscription:
        await broker.publish(made(0))
        sink = InProcessSink(broker, timeout=0.05)
        for _ in range(3):
            outcomes = await sink.publish([made(number) for number in range(1, 4)])
            assert [outcome.reason for outcome in outcomes if isinstance(outcome, Released)] == [Reason.TIMEOUT] * 3
            assert broker.figures().subscriptions[">"].lag == 1
        publishing = asyncio.create_task(InProcessSink(broker, timeout=20).publish([made(number) for number in range(1, 4)]))
        seen: list[int] = []
        while len(seen) < 4:
            for delivery in await asyncio.wait_for(subscription.take(1), 10):
                seen.append(int(delivery.payload))
                assert not publishing.done()
                delivery.ack()
        assert seen == [0, 1, 2, 3]
        assert await asyncio.wait_for(publishing, 10) == [PUBLISHED] * 3
        figures = broker.figures().topics["orders.created"]
        assert (figures.published, figures.delivered, figures.dropped) == (13, 4, 9)


async def test_what_ends_in_a_spill_is_told_to_its_publisher() -> None:
    broker = Broker()
    subscription = broker.subscribe(buffer=1, policy="spill", spill_to=MemoryLog(max_messages=1)).begin()
    await broker.publish(made(0))
    publishing = asyncio.create_task(InProcessSink(broker, timeout=20).publish([made(1), made(2)]))
    await eventually(lambda: _is(broker.figures().subscriptions[">"].lag == 3))
    assert len(subscription.take_nowait(1)) == 1
    assert [int(delivery.payload) for delivery in subscription.take_nowait(1)] == [2], "1 was evicted"
    subscription.unsubscribe()
    evicted, ended = await asyncio.wait_for(publishing, 10)
    assert (evicted, ended) == (
        Released(Reason.FULL, "dropped: the log of the subscription has evicted it"),
        Released(Reason.UNAVAILABLE, "the subscription ended before it acknowledged"),
    )


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


async def test_publish_and_wait_leaves_nothing_behind_when_it_is_cancelled() -> None:
    broker = Broker()
    async with broker.subscribe(name="one", buffer=1, policy="block") as one, broker.subscribe(name="two", buffer=1) as two:
        await broker.publish(made(0))
        waiting = asyncio.create_task(broker.publish_and_wait(made(1), 60))
        await eventually(lambda: _is(all(subscription.mailbox.waiting.publishers for subscription in (one, two))))
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
    class Slow(MemoryLog):
        async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
            await asyncio.Event().wait()
            raise AssertionError

    broker = Broker()
    broker.keep("orders.>", Slow())
    async with broker.subscribe():
        with pytest.raises(Stalled, match=r"the log of 'orders\.>'"):
            await asyncio.wait_for(broker.publish_and_wait(made(), 0.05), 10)


async def test_a_message_passes_over_any_number_of_readers_that_are_cancelled() -> None:
    broker = Broker()
    async with broker.subscribe() as subscription:
        cancelled = [asyncio.create_task(subscription.take(1)) for _ in range(3000)]
        waits = asyncio.create_task(subscription.take(1))
        await asyncio.sleep(0)
        for task in cancelled:
            task.cancel()
        await broker.publish(made(1))
        assert [int(delivery.payload) for delivery in await asyncio.wait_for(waits, 10)] == [1]


async def test_drop_oldest_drops_the_lowest_priority_first() -> None:
    broker = Broker()
    async with broker.subscribe(buffer=2, policy="drop_oldest") as subscription:
        await broker.publish(made(b"low"), priority=-5)
        await publish(broker, 2)
        await broker.publish(made(b"lower"), priority=-9)
        assert [delivery.payload for delivery in subscription.take_nowait(9)] == [b"0", b"1"]


async def _is(condition: bool) -> bool:
    return condition


@pytest.mark.parametrize("how", ["unsubscribe", "close"])
async def test_a_message_that_waited_for_room_in_vain_is_not_published(how: str) -> None:
    """Its subscription ends before it is let in: nobody has had it, so its publisher keeps it; and it is counted, and told."""
    broker = Broker()
    told: list[Drop] = []
    subscription = broker.subscribe("orders.*", policy="block", buffer=1, on_drop=lambda _, why: told.append(why)).begin()
    await publish(broker, 1)
    sinking = asyncio.create_task(InProcessSink(broker, timeout=9).publish([made(1, key="k"), made(2, key="k")]))
    waiting = asyncio.create_task(broker.publish_and_wait(made(3), 9, until="acknowledged"))
    await eventually(lambda: _is(len(subscription.mailbox.waiting.publishers or ()) == 2))
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
    await eventually(lambda: _is(got == {"a": [1, 2], "b": [0, 1, 2]}))
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


async def test_a_spill_that_cannot_be_read_once_loses_nothing() -> None:
    """The message stays where it is, and comes with the next call; its publisher hears of it."""

    class Tired(MemoryLog):
        tired = False

        def read(self, offset: int, limit: int) -> list[Entry]:
            if self.tired:
                raise OSError(EMFILE, "too many open files")
            return super().read(offset, limit)

    broker, spill = Broker(), Tired()
    async with broker.subscribe(policy="spill", spill_to=spill, buffer=1, ack="explicit") as subscription:
        await publish(broker, 1)
        sinking = asyncio.create_task(InProcessSink(broker, timeout=9).publish([made(1)]))
        await eventually(lambda: _is(spill.next == 1))
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
