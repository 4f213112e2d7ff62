"""Acknowledgement: what is not acknowledged comes again, with backoff, until it is a dead letter; and dead letters."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from bridges.backoff import Backoff
from bridges.inprocess import Broker, InProcessSink, MemoryLog, State
from bridges.message import Message, uuid7
from bridges.ports import PUBLISHED, Reason, Rejected, Released
from tests.engines.deadline import eventually
from tests.unit.messages import turn

QUICK = Backoff(first=0.001, cap=0.002, max_attempts=3)


def made(payload: bytes = b"", key: str | None = None, topic: str = "orders.created") -> Message:
    return Message(uuid7(), topic, payload, key)


async def test_a_loop_acknowledges_what_its_body_is_through_with() -> None:
    broker = Broker()
    published = []
    async with broker.subscribe() as subscription:
        for number in range(3):
            published += await broker.publish(made(str(number).encode()))
        async for delivery in subscription:
            assert delivery.state is State.DELIVERED
            if delivery.payload == b"2":
                break
    assert [await delivery.outcome() for delivery in published] == [PUBLISHED] * 3


async def test_a_loop_that_ends_with_an_error_does_not_acknowledge() -> None:
    broker = Broker()
    async with broker.subscribe(group="g") as other:
        with pytest.raises(ZeroDivisionError):
            async with broker.subscribe(group="g") as subscription:
                [published] = await broker.publish(made())
                async for _ in subscription:
                    raise ZeroDivisionError
        assert published.state is State.QUEUED
        assert await other.take(1) == [published]


async def test_explicit_acks_are_left_to_the_reader() -> None:
    broker = Broker()
    async with broker.subscribe(group="g") as other, broker.subscribe(group="g", ack="explicit") as subscription:
        await broker.publish(made(b"1"))
        await broker.publish(made(b"2"))
        seen = []
        async for delivery in subscription:
            seen.append(delivery)
            if len(seen) == 2:
                break
        seen[1].ack()
        subscription.unsubscribe()
        assert [delivery.payload for delivery in await other.take(9)] == [b"1"]


async def test_states_are_visible_while_a_message_lives() -> None:
    broker = Broker()
    message = made()
    async with broker.subscribe(name="one") as one, broker.subscribe(name="two", retry=Backoff(first=60, cap=60)) as two:
        await broker.publish(message)
        assert broker.states(message.id) == {"one": State.QUEUED, "two": State.QUEUED}
        (first,), (second,) = await one.take(1), await two.take(1)
        assert broker.states(message.id) == {"one": State.DELIVERED, "two": State.DELIVERED}
        first.ack()
        second.nack(60)
        assert broker.states(message.id) == {"two": State.RETRYING}
        assert (first.state, second.attempts) == (State.DONE, 1)


async def test_states_are_visible_of_what_waits_in_a_log() -> None:
    """Of what was spilled, what is to be read, and what is not due yet; not of what others have there, or what is over."""
    broker = Broker()
    broker.keep("l", MemoryLog())
    spill = MemoryLog()
    await spill.append([elsewhere := made(topic="t")], 0.0)
    async with (
        broker.subscribe("t", name="spills", policy="spill", spill_to=spill, buffer=1) as spills,
        broker.subscribe("l", name="reads", start="live") as reads,
    ):
        kept, spilled, stored, later = (made(topic=topic) for topic in "ttll")
        for message in (kept, spilled, stored):
            await broker.publish(message)
        await broker.publish(later, deliver_at=datetime.now(UTC) + timedelta(hours=1))
        assert [broker.states(each.id) for each in (kept, spilled)] == [{"spills": State.QUEUED}] * 2
        assert [broker.states(each.id) for each in (stored, later)] == [{"reads": State.QUEUED}] * 2
        assert broker.states(elsewhere.id) == {}
        for delivery in [*await reads.take(9), *await spills.take(9), *await spills.take(9)]:
            delivery.ack()
        assert [broker.states(each.id) for each in (kept, spilled, stored)] == [{}] * 3
        assert broker.states(later.id) == {"reads": State.QUEUED}


async def test_nack_waits_and_counts_until_the_last_attempt_makes_a_dead_letter() -> None:
    broker = Broker()
    message = made(b"poison")
    async with broker.subscribe("orders.*", name="billing", retry=QUICK) as subscription:
        await broker.publish(message)
        for attempt in range(3):
            (delivery,) = await asyncio.wait_for(subscription.take(1), 10)
            assert delivery.attempts == attempt
            delivery.nack()
        assert delivery.state is State.DEAD
        [letter] = broker.dead_letters.list()
        assert (letter.message, letter.subscription, letter.reason, letter.attempts) == (message, "billing", Reason.ATTEMPTS, 3)
        figures = broker.figures()
        assert (figures.topics["orders.created"].dead, figures.subscriptions["billing"].dead, figures.dead_letters) == (1, 1, 1)
        assert figures.topics["orders.created"].redelivered == 2


async def test_a_delay_holds_one_message_and_no_other() -> None:
    broker = Broker()
    async with broker.subscribe() as subscription:
        await broker.publish(made(b"1"))
        await broker.publish(made(b"2"))
        (first,) = await subscription.take(1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        first.nack(0.05)
        assert [delivery.payload for delivery in await subscription.take(9)] == [b"2"]
        assert await asyncio.wait_for(subscription.take(1), 10) == [first]
        assert loop.time() - began >= 0.045


async def test_a_delay_holds_what_is_behind_in_its_key() -> None:
    broker = Broker()
    async with broker.subscribe() as subscription:
        for payload, key in ((b"1", "k"), (b"2", "k"), (b"3", "other"), (b"4", "k")):
            await broker.publish(made(payload, key))
        (first,) = await subscription.take(1)
        first.nack(0.03)
        assert [delivery.payload for delivery in await subscription.take(9)] == [b"3"]
        got: list[bytes] = []
        while len(got) < 3:
            got += [delivery.payload for delivery in await asyncio.wait_for(subscription.take(9), 10)]
        assert got == [b"1", b"2", b"4"]


async def test_what_is_not_acknowledged_by_its_deadline_is_delivered_again_and_dies_at_last() -> None:
    broker = Broker()
    async with broker.subscribe(ack_deadline=0.02, retry=QUICK) as subscription:
        await broker.publish(made())
        for attempt in range(3):
            (delivery,) = await asyncio.wait_for(subscription.take(1), 10)
            assert delivery.attempts == attempt

        async def dead() -> bool:
            return len(broker.dead_letters) == 1

        await eventually(dead)
        assert "not acknowledged within 0.02 s" in broker.dead_letters.list()[0].detail
        delivery.ack()
        assert delivery.state is State.DEAD


async def test_in_progress_begins_the_deadline_anew() -> None:
    broker = Broker()
    async with broker.subscribe(ack_deadline=0.2) as subscription:
        await broker.publish(made(b"1"))
        await broker.publish(made(b"2"))
        kept, lost = await subscription.take(2)
        loop = asyncio.get_running_loop()
        until = loop.time() + 0.6

        async def long_after() -> bool:
            kept.in_progress()
            return loop.time() > until

        await eventually(long_after)
        assert (kept.state, kept.attempts) == (State.DELIVERED, 0)
        assert lost.attempts >= 1
        kept.ack()
        assert kept.state is State.DONE


async def test_an_acknowledgement_that_comes_late_still_counts() -> None:
    """Given back by its deadline, and not handed out again yet: it has taken effect, so it need not."""
    broker = Broker()
    async with broker.subscribe(ack_deadline=0.01) as subscription:
        for key in (None, "k"):
            await broker.publish(made(key=key))
            (delivery,) = await subscription.take(1)

            async def overdue() -> bool:
                return delivery.state is State.RETRYING  # noqa: B023 -- awaited in this turn

            await eventually(overdue)
            delivery.ack()
            assert subscription.take_nowait(9) == []
        await broker.publish(made(b"next", "k"))
        assert [delivery.payload for delivery in await subscription.take(9)] == [b"next"]


async def test_prefetch_bounds_what_a_member_has() -> None:
    broker = Broker()
    async with broker.subscribe(group="g", prefetch=2) as one, broker.subscribe(group="g", prefetch=3) as two:
        for _ in range(10):
            await broker.publish(made())
        mine, others = await one.take(99), await two.take(99)
        assert (len(mine), len(others)) == (2, 3)
        waiting = asyncio.create_task(one.take(99))
        await turn()
        others[0].ack()  # frees the other, and not this one
        await turn()
        assert not waiting.done()
        mine[0].ack()
        assert len(await asyncio.wait_for(waiting, 10)) == 1


async def test_only_who_holds_a_delivery_can_give_it_back() -> None:
    """Who lost it, at the deadline or by giving it back, neither takes it from the next one nor has an attempt counted; an ack holds."""
    broker = Broker()
    one, two, three = (
        broker.subscribe(group="g", ack="explicit", ack_deadline=0.02, retry=Backoff(first=0.01, cap=0.01, max_attempts=9)).begin()
        for _ in range(3)
    )
    [published] = await broker.publish(made(key="k"))
    (first,) = await one.take(1)
    assert first.held
    async with asyncio.timeout(10):
        (second,) = await two.take(1)  # when the deadline of the first is over
    assert (first.held, second.held, second.attempts) == (False, True, 1)
    first.in_progress()
    first.nack(0.0)
    assert three.take_nowait(1) == []
    assert (second.held, second.attempts, published.state) == (True, 1, State.DELIVERED)
    second.nack(0.0)
    (third,) = three.take_nowait(1)
    assert (second.held, third.held, third.attempts) == (False, True, 2)
    second.nack(0.0)
    assert (third.held, third.state, third.attempts) == (True, State.DELIVERED, 2)
    third.in_progress()
    first.ack()
    assert len({first, second, third, published}) == 1
    assert {each.state for each in (first, second, third, published)} == {State.DONE}
    assert broker.figures().subscriptions["g"].unacknowledged == 0
    broker.close()


async def test_a_loop_does_not_acknowledge_what_its_body_gave_back_too_late() -> None:
    """The body has failed, whoever has the message by then."""
    broker = Broker()
    settings = {"group": "g", "ack_deadline": 0.02}
    async with broker.subscribe(**settings) as subscription, broker.subscribe(**settings) as other:  # type: ignore[arg-type]
        [published] = await broker.publish(made(b"1"))
        async for delivery in subscription:
            if delivery.payload == b"2":
                break
            async with asyncio.timeout(10):
                (theirs,) = await other.take(1)
            assert theirs == delivery
            delivery.nack()
            theirs.in_progress()
            await broker.publish(made(b"2"))
        assert published.state is State.DELIVERED
        assert theirs.held


async def test_dead_letters_are_copies_that_can_be_requeued_removed_and_cleared() -> None:
    broker = Broker()
    async with broker.subscribe("a", name="a") as one, broker.subscribe("b", name="b") as two:
        for topic in ("a", "b", "b"):
            await broker.publish(made(topic=topic))
        for delivery in [*await one.take(9), *await two.take(9)]:
            delivery.reject(Reason.INVALID, "cannot be read")
            delivery.reject(Reason.INVALID, "twice")
        letters = broker.dead_letters.list()
        assert [(letter.number, letter.subscription, letter.detail) for letter in letters] == [
            (1, "a", "cannot be read"),
            (2, "b", "cannot be read"),
            (3, "b", "cannot be read"),
        ]
        letters.clear()
        assert len(broker.dead_letters) == len(broker.dead_letters.list()) == 3
        assert [letter.number for letter in broker.dead_letters.list(subscription="b")] == [2, 3]
        assert broker.dead_letters.requeue(1, 99) == 1
        (again,) = await one.take(1)
        assert again.attempts == 0
        again.ack()
        assert broker.dead_letters.remove(2, 2) == 1
        two.unsubscribe()
        assert broker.dead_letters.requeue() == 0, "its subscription has ended"
        assert broker.dead_letters.clear() == 1
        assert broker.dead_letters.list() == []


async def test_what_is_done_to_a_copy_of_a_dead_letter_is_done_to_nothing_else() -> None:
    broker = Broker()
    headers = {"a": "1"}
    async with broker.subscribe(name="one") as one, broker.subscribe(name="other") as other:
        await broker.publish(made()._replace(headers=headers))
        (delivery,) = await one.take(1)
        delivery.reject(Reason.INVALID, "no")
        listed = broker.dead_letters.list()[0].message.headers
        assert isinstance(listed, dict)
        listed["evil"] = "1"
        assert other.take_nowait(1)[0].headers == {"a": "1"}
        headers["late"] = "1"
        assert broker.dead_letters.list()[0].message.headers == {"a": "1"}
        broker.dead_letters.requeue()
        assert one.take_nowait(1)[0].headers == {"a": "1"}


async def test_dead_letters_are_bounded() -> None:
    broker = Broker(max_dead_letters=2)
    async with broker.subscribe() as subscription:
        for _ in range(5):
            await broker.publish(made())
        for delivery in await subscription.take(9):
            delivery.reject(Reason.INVALID, "")
    assert [letter.number for letter in broker.dead_letters.list()] == [4, 5]
    assert broker.dead_letters.overflowed == 3


async def test_what_a_sink_publishes_is_its_own_dead_letter_and_none_of_the_broker() -> None:
    broker = Broker()

    async def reject() -> None:
        async with broker.subscribe() as subscription:
            async for delivery in subscription:
                delivery.reject(Reason.TOO_LARGE, "no")

    rejecting = asyncio.create_task(reject())
    await turn()
    assert await InProcessSink(broker).publish([made()]) == [Rejected(Reason.TOO_LARGE, "no")]
    assert len(broker.dead_letters) == 0
    rejecting.cancel()


async def test_a_sink_does_not_take_a_dropped_message_for_published() -> None:
    broker = Broker()
    async with broker.subscribe(buffer=1):
        await broker.publish(made())
        [outcome] = await InProcessSink(broker, timeout=5).publish([made()])
        assert isinstance(outcome, Released)
        assert outcome.reason is Reason.FULL


async def test_a_sink_takes_a_message_that_every_filter_keeps_out_for_published() -> None:
    broker = Broker()
    async with broker.subscribe(filter=lambda message: False):
        assert await InProcessSink(broker, timeout=5).publish([made()]) == [PUBLISHED]


async def test_a_loop_does_not_acknowledge_what_its_body_gave_back() -> None:
    """Not even if it is with another reader by the time that the loop comes for the next."""
    broker = Broker()
    async with broker.subscribe(group="g") as subscription, broker.subscribe(group="g") as other:
        [published] = await broker.publish(made(b"1"))
        await broker.publish(made(b"2"))
        seen = []
        async for delivery in subscription:
            seen.append(delivery.payload)
            if len(seen) == 1:
                delivery.nack(0.0)
                assert await other.take(1) == [published]
            else:
                break
        assert seen == [b"1", b"2"]
        assert published.state is State.DELIVERED


async def test_what_a_reader_has_stays_with_it_when_its_sink_waits_no_longer() -> None:
    """It is handled once, by nobody else meanwhile; the late acknowledgement is the answer to the next call with that message."""
    broker = Broker()
    sink, patient = InProcessSink(broker, timeout=0.01), InProcessSink(broker, timeout=20)
    message = Message(uuid7(), "orders.created", b"", "k")
    async with broker.subscribe(group="g", ack="explicit") as one, broker.subscribe(group="g", ack="explicit") as other:
        sinking = asyncio.create_task(sink.publish([message]))
        [delivery] = await one.take(1)
        for _ in range(3):
            [outcome] = await sinking
            assert isinstance(outcome, Released)
            assert outcome.reason is Reason.TIMEOUT
            sinking = asyncio.create_task(sink.publish([message]))
        await sinking
        behind = asyncio.create_task(patient.publish([message._replace(id=uuid7())]))
        await turn()
        assert delivery.held
        assert other.take_nowait(1) == [], "its key is taken"
        delivery.in_progress()
        delivery.ack()
        assert await sink.publish([message]) == [PUBLISHED]
        [following] = await other.take(1)
        assert following.id != message.id
        following.ack()
        assert await behind == [PUBLISHED]
        sinking = asyncio.create_task(patient.publish([message]))
        [again] = await one.take(1)
        again.ack()
        assert await sinking == [PUBLISHED], "what was answered for is not remembered"


async def test_what_no_reader_has_had_is_withdrawn_when_its_publish_is_cancelled() -> None:
    broker = Broker()
    async with broker.subscribe(name="slow", ack="explicit") as slow, broker.subscribe(name="away", ack="explicit") as away:
        sinking = asyncio.create_task(InProcessSink(broker, timeout=20).publish([made()]))
        [delivery] = await slow.take(1)
        sinking.cancel()
        await asyncio.wait({sinking})
        assert away.take_nowait(1) == []
        delivery.ack()
        assert delivery.state is State.DONE


async def test_what_no_reader_has_had_stays_where_it_is_when_its_sink_waits_no_longer() -> None:
    """Nobody is sent a second one, and the next call with that message has the answer that comes meanwhile."""
    broker, message = Broker(), made()
    async with broker.subscribe(name="slow", ack="explicit") as slow, broker.subscribe(name="away", ack="explicit") as away:
        sink = InProcessSink(broker, timeout=0.01)
        for _ in range(3):
            assert isinstance((await sink.publish([message]))[0], Released)
        for subscription in (slow, away):
            [delivery] = await subscription.take(1)
            assert subscription.take_nowait(9) == []
            delivery.ack()
        assert await sink.publish([message]) == [PUBLISHED]
