"""What a call of the broker's Sink did not get done in its time: it stays where it is, once, and keeps nothing else waiting."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest
import uvloop

from bridges.inprocess import Broker, InProcessSink, MemoryLog
from bridges.inprocess.posting import Posting
from bridges.inprocess.stamps import PLAIN, Stamps
from bridges.ports import PUBLISHED, Reason
from tests.engines.deadline import eventually
from tests.unit.logs import SlowLog
from tests.unit.messages import made, turn, whether
from tests.unit.sinks import SHORT, acknowledge, patient, reasons, take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.message import Message


async def test_what_is_stuck_is_waited_for_once_wherever_it_waits() -> None:
    """With a reader, behind that in its buffer, or in line for room: others get through at once, and nobody is sent anything twice."""
    broker = Broker()
    sink = InProcessSink(broker, timeout=SHORT)
    stuck = [made(number, "orders.stuck") for number in range(5)]
    handled: list[bytes] = []
    async with (
        broker.subscribe("orders.stuck", policy="block", buffer=2, prefetch=1, ack="explicit") as slow,
        broker.subscribe("orders.quick") as quick,
    ):
        reader = asyncio.create_task(acknowledge(quick, handled))
        sinking = asyncio.create_task(sink.publish([*stuck, made(b"first", "orders.quick")]))
        (held,) = await take(slow, 1)
        await eventually(lambda: whether(handled == [b"first"]))
        assert reasons(await sinking) == [Reason.BEHIND] * 5 + [None]
        sink = patient(sink)
        for number in range(20):
            late, new = made(99, "orders.stuck"), made(number, "orders.quick")
            outcomes = await asyncio.wait_for(sink.publish([*stuck, late, new]), 10)
            assert reasons(outcomes) == [Reason.BEHIND] * (len(stuck) + 1) + [None]
            stuck.append(late)
        alone = asyncio.create_task(sink.publish(stuck))
        await turn()
        held.ack()
        for number in range(1, 25):
            [delivery] = await take(slow, 1)
            assert int(delivery.payload) == (number if number < 5 else 99)
            delivery.ack()
        assert await asyncio.wait_for(alone, 10) == [PUBLISHED] * 25
        assert slow.take_nowait(1) == []
    await reader


async def test_what_waits_for_room_keeps_nothing_waiting_but_its_key() -> None:
    broker = Broker()
    sink = InProcessSink(broker, timeout=60)
    messages = [
        made(0, "orders.full", "k"),
        made(1, "orders.full", "l"),
        made(2, "orders.full", "k"),
        made(3, "orders.quick", "m"),
        made(4, "orders.quick", "m"),
    ]
    async with (
        broker.subscribe("orders.full", policy="block", buffer=1, ack="explicit") as full,
        broker.subscribe("orders.quick", ack="explicit") as quick,
    ):
        sinking = asyncio.create_task(sink.publish(messages))
        for number in (3, 4):
            [delivery] = await take(quick, 1)
            assert int(delivery.payload) == number
            delivery.ack()
        for number in range(3):
            [delivery] = await take(full, 1)
            assert int(delivery.payload) == number
            delivery.ack()
        assert await asyncio.wait_for(sinking, 10) == [PUBLISHED] * 5


async def test_a_turn_comes_while_another_handler_is_waited_for() -> None:
    """Also where an earlier call has handed over the one that it was behind."""
    broker = Broker()
    sink = InProcessSink(broker, timeout=60)
    first, second, slow = made(b"first", key="k"), made(b"second", key="k"), made(b"slow", key="l")
    async with broker.subscribe(ack="explicit") as subscription:
        cut_short = asyncio.create_task(sink.publish([first]))
        [held] = await take(subscription, 1)
        cut_short.cancel()
        await asyncio.wait({cut_short})
        sinking = asyncio.create_task(sink.publish([first, second, slow]))
        [awaited] = await take(subscription, 1)
        held.ack()
        [delivery] = await take(subscription, 1)
        assert (awaited.payload, delivery.payload) == (b"slow", b"second")
        delivery.ack()
        awaited.ack()
        assert await asyncio.wait_for(sinking, 10) == [PUBLISHED] * 3


async def test_what_is_acknowledged_between_two_calls_is_known_to_the_second_at_once() -> None:
    broker = Broker()
    sink, messages = InProcessSink(broker, timeout=0.02), [made(0), made(1)]
    async with broker.subscribe(ack="explicit") as subscription:
        sinking = asyncio.create_task(sink.publish(messages))
        stuck, other = await take(subscription, 2)
        assert reasons(await sinking) == [Reason.TIMEOUT] * 2
        other.ack()
        sink = patient(sink)
        assert reasons(await asyncio.wait_for(sink.publish(messages), 10)) == [Reason.BEHIND, None]
        stuck.ack()
        assert await sink.publish(messages[:1]) == [PUBLISHED]


@pytest.mark.parametrize("durable", [False, True])
async def test_a_log_that_is_at_it_when_the_time_is_over_stores_a_message_once(*, durable: bool) -> None:
    """And keeps nothing else waiting meanwhile."""
    released = asyncio.Event()

    class Waiting(MemoryLog):
        async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
            offset = await super().append(messages, time, stamps)
            await released.wait()
            return offset

    Waiting.durable = durable
    broker, log, handled = Broker(), Waiting(), list[bytes]()
    broker.keep("orders.kept", log)
    sink, message = InProcessSink(broker, timeout=SHORT), made(topic="orders.kept")
    async with broker.subscribe() as subscription:
        reader = asyncio.create_task(acknowledge(subscription, handled))
        for number in range(3):
            assert reasons(await sink.publish([message, made(number, topic="orders.quick")])) == [Reason.BEHIND, None]
        assert (log.next, handled) == (1, [b"0", b"1", b"2"])
        released.set()
        assert await asyncio.wait_for(patient(sink).publish([message]), 10) == [PUBLISHED]
        assert log.next == 1
    await reader


async def test_what_a_log_has_while_a_subscription_is_full_is_stored_once() -> None:
    """Neither the log nor anybody else gets another copy with each try."""
    broker, log = Broker(), MemoryLog()
    broker.keep("orders.>", log)
    sink, message = InProcessSink(broker, timeout=0.02), made(1)
    async with (
        broker.subscribe(policy="block", buffer=1, ack="explicit") as full,
        broker.subscribe("orders.*", start="live", ack="explicit") as reading,
    ):
        await broker.publish(made(0))
        for _ in range(3):
            assert reasons(await sink.publish([message])) == [Reason.TIMEOUT]
        assert log.next == 2
        for subscription in (full, reading):
            for delivery in [*await take(subscription, 1), *await take(subscription, 1)]:
                delivery.ack()
        assert await sink.publish([message]) == [PUBLISHED]


async def test_what_goes_on_with_other_content_is_withdrawn() -> None:
    """A row that was changed since is another message, though it has the same id."""
    broker = Broker()
    sink, message = InProcessSink(broker, timeout=0.02), made(b"old")
    async with broker.subscribe(ack="explicit") as subscription:
        assert reasons(await sink.publish([message])) == [Reason.TIMEOUT]
        sinking = asyncio.create_task(patient(sink).publish([message._replace(payload=b"new")]))
        [delivery] = await take(subscription, 1)
        assert delivery.payload == b"new"
        delivery.ack()
        assert await sinking == [PUBLISHED]
        assert subscription.take_nowait(1) == []


async def test_a_mistake_in_a_log_is_raised_to_who_publishes_and_that_is_over_then() -> None:
    class Mistaken(MemoryLog):
        mistakes = 1

        async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
            await turn()
            if self.mistakes:
                self.mistakes -= 1
                raise LookupError
            return await super().append(messages, time, stamps)

    broker, message = Broker(), made()
    broker.keep("orders.>", Mistaken())
    sink = InProcessSink(broker, timeout=60)
    async with broker.subscribe() as subscription:
        with pytest.raises(LookupError):
            await asyncio.wait_for(sink.publish([message]), 10)
        sinking = asyncio.create_task(sink.publish([message]))
        (await take(subscription, 1))[0].ack()
        assert await asyncio.wait_for(sinking, 10) == [PUBLISHED]


def test_what_is_stuck_is_not_waited_for_by_the_loop_of_the_daemon_either() -> None:
    """uvloop counts in milliseconds, and its timers come before their time."""

    async def publish_beside_what_is_stuck() -> None:
        broker = Broker()
        sink, stuck = InProcessSink(broker, timeout=0.02), [made(number) for number in range(14)]
        async with broker.subscribe("orders.created", ack="explicit") as slow, broker.subscribe("orders.quick") as quick:
            reader = asyncio.create_task(acknowledge(quick, []))
            assert reasons(await sink.publish(stuck)) == [Reason.TIMEOUT] * 14
            patient(sink)
            for some in (1, 14) * 20:
                outcomes = await asyncio.wait_for(sink.publish([*stuck[:some], made(topic="orders.quick")]), 10)
                assert reasons(outcomes) == [Reason.BEHIND] * some + [None]
            assert len(await take(slow, 14)) == 14
        await reader

    uvloop.run(publish_beside_what_is_stuck())


async def test_what_failed_beside_leaves_no_copies_where_it_came() -> None:
    class Full(MemoryLog):
        async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
            raise OSError(28, "No space left on device")

    broker, message = Broker(), made()
    sink = InProcessSink(broker, timeout=60)
    async with broker.subscribe(ack="explicit") as slow, broker.subscribe(policy="spill", spill_to=Full(), buffer=1, name="spills"):
        await broker.publish(made())
        for _ in range(3):
            assert reasons(await sink.publish([message])) == [Reason.UNAVAILABLE]
        assert len(await take(slow, 1)) == 1
        assert slow.take_nowait(9) == []


async def test_two_of_one_id_leave_nothing_that_is_forgotten() -> None:
    broker, message = Broker(), made()
    sink = InProcessSink(broker, timeout=0.01)
    async with broker.subscribe(policy="block", buffer=1) as subscription:
        await broker.publish(made())
        for _ in range(5):
            await sink.publish([message, message])
        await turn()
        assert len(subscription.mailbox.waiting.publishers or ()) <= 2
        assert len(sink._late) == 1


async def test_what_goes_wrong_when_nobody_listens_any_more_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    failing = asyncio.Event()

    class Failing(MemoryLog):
        durable = True

        async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
            await failing.wait()
            raise OSError(28, "No space left on device")

    broker, message = Broker(), made()
    broker.keep("orders.>", Failing())
    sink = InProcessSink(broker, timeout=0.02)
    async with broker.subscribe():
        assert reasons(await sink.publish([message, made(topic="payments.made")])) == [Reason.TIMEOUT] * 2, "one log has not all of them"
        failing.set()
        await eventually(lambda: whether("did not come everywhere: OSError: [Errno 28] No space left on device" in caplog.text))
        assert reasons(await sink.publish([message])) == [Reason.UNAVAILABLE], "it was asked again"


async def test_what_comes_behind_a_slow_reader_of_a_log_is_stuck_as_well() -> None:
    broker = Broker()
    broker.keep("orders.slow", MemoryLog())
    sink, stuck = InProcessSink(broker, timeout=SHORT), [made(topic="orders.slow")]
    async with broker.subscribe("orders.slow", start="live", ack="explicit") as slow, broker.subscribe("orders.quick") as quick:
        reader = asyncio.create_task(acknowledge(quick, []))
        await sink.publish([*stuck, made(topic="orders.quick")])
        await take(slow, 1)
        patient(sink)
        for _ in range(5):
            stuck.append(made(topic="orders.slow"))
            outcomes = await asyncio.wait_for(sink.publish([*stuck, made(topic="orders.quick")]), 10)
            assert reasons(outcomes) == [Reason.BEHIND] * len(stuck) + [None]
    await reader


async def test_what_is_stuck_need_not_be_in_the_call_or_ahead_in_it() -> None:
    broker = Broker()
    sink, late = InProcessSink(broker, timeout=0.02), made(topic="orders.slow")
    async with broker.subscribe("orders.slow", ack="explicit"), broker.subscribe("orders.quick") as quick:
        reader = asyncio.create_task(acknowledge(quick, []))
        assert reasons(await sink.publish([late])) == [Reason.TIMEOUT]
        patient(sink)
        for ahead, behind in ([made(topic="orders.slow")], [late]), ([made(topic="orders.slow")], []):
            outcomes = await asyncio.wait_for(sink.publish([*ahead, made(topic="orders.quick"), *behind]), 10)
            assert reasons(outcomes) == [Reason.BEHIND, None, *[Reason.BEHIND] * len(behind)]
    await reader


async def test_a_log_that_is_well_is_waited_for_though_a_subscription_beside_it_is_stuck() -> None:
    broker, log = Broker(), SlowLog()
    broker.keep("orders.kept", log)
    sink, stuck = InProcessSink(broker, timeout=0.02), made(topic="orders.slow")
    async with broker.subscribe("orders.slow", "orders.kept", ack="explicit"), broker.subscribe("orders.quick") as quick:
        reader = asyncio.create_task(acknowledge(quick, []))
        assert reasons(await sink.publish([stuck])) == [Reason.TIMEOUT]
        patient(sink)
        outcomes = await sink.publish([made(topic="orders.kept"), made(topic="orders.quick"), stuck])
        assert reasons(outcomes) == [None, None, Reason.BEHIND]
    await reader


async def test_two_calls_with_one_message_leave_the_one_that_is_ahead() -> None:
    broker, message = Broker(), made()
    sink = InProcessSink(broker, timeout=0.02)
    async with broker.subscribe(ack="explicit") as subscription:
        calls = [asyncio.create_task(sink.publish([message])) for _ in range(2)]
        first, _ = await take(subscription, 2)
        await asyncio.gather(*calls)
        first.ack()
        assert await sink.publish([message]) == [PUBLISHED]


async def test_an_answer_is_not_kept_for_another_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row may have been another daemon's by then; what comes with that id later is a letter that was requeued."""
    broker, message = Broker(), made()
    sink = InProcessSink(broker, timeout=0.02)
    async with broker.subscribe(ack="explicit") as subscription:
        assert reasons(await sink.publish([message])) == [Reason.TIMEOUT]
        (await take(subscription, 1))[0].reject(Reason.INVALID, "then")
        monkeypatch.setattr("bridges.inprocess.late._MAX_AGE", -1.0)
        sinking = asyncio.create_task(patient(sink).publish([message]))
        (await take(subscription, 1))[0].ack()
        assert await sinking == [PUBLISHED]


async def test_what_a_sink_remembers_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over it is withdrawn, the oldest first."""
    monkeypatch.setattr("bridges.inprocess.late._MAX_MESSAGES", 3)
    monkeypatch.setattr("bridges.inprocess.late._MAX_BYTES", 10)
    broker = Broker()
    sink = InProcessSink(broker, timeout=0.01)
    async with broker.subscribe(ack="explicit") as subscription:
        await sink.publish([made(number) for number in range(5)])
        assert subscription.mailbox.queued == 3
        await sink.publish([made(b"12345678")])
        assert [bytes(delivery.payload) for delivery in await take(subscription, 3)] == [b"3", b"4", b"12345678"]
        large = made(b"more than ten")
        assert reasons(await sink.publish([large])) == [Reason.TIMEOUT]
        (await take(subscription, 1))[0].ack()
        assert await sink.publish([large]) == [PUBLISHED], "alone it is remembered, however large it is"


async def test_calls_leave_nothing_for_the_garbage_collector() -> None:
    """Or the payloads of many batches would wait for its turn."""
    broker = Broker()
    async with broker.subscribe("orders.*") as subscription:
        reader = asyncio.create_task(acknowledge(subscription, []))
        sink = InProcessSink(broker)
        gc.collect()
        gc.disable()
        try:
            assert await sink.publish([made(number, key=str(number % 3)) for number in range(9)]) == [PUBLISHED] * 9
            assert not any(isinstance(each, Posting) for each in gc.get_objects())
        finally:
            gc.enable()
    await reader
