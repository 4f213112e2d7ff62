"""Priority, time to live, delivery at a time, filters, request and reply, typed topics."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from bridges.errors import ConfigurationError, InvalidMessage, NoReply
from bridges.inprocess import Broker, DataclassCodec, Drop, Functions, InProcessSink, MemoryLog, Topic
from bridges.message import Message, uuid7
from bridges.ports import PUBLISHED, Reason
from tests.engines.deadline import eventually
from tests.unit.messages import made, turn

if TYPE_CHECKING:
    from bridges.inprocess.settings import PolicyName


@dataclass(frozen=True)
class OrderCreated:
    order: str
    amount: int = 0


ORDERS = Topic[OrderCreated]("orders.created", codec=DataclassCodec(OrderCreated))


async def test_priority_goes_before_age_and_what_comes_again_keeps_its_place() -> None:
    broker = Broker()
    async with broker.subscribe() as subscription:
        for payload, priority in ((b"a", 0), (b"b", 5), (b"c", -1), (b"d", 0), (b"e", 5)):
            await broker.publish(made(payload), priority=priority)
        (first,) = await subscription.take(1)
        first.nack(0.0)
        assert [delivery.payload for delivery in await subscription.take(9)] == [b"b", b"e", b"a", b"d", b"c"]


async def test_what_has_expired_is_dropped_at_its_time_and_makes_room() -> None:
    broker = Broker()
    told: list[tuple[bytes, Drop]] = []
    async with broker.subscribe(buffer=1, on_drop=lambda message, why: told.append((message.payload, why))) as subscription:
        await broker.publish(made(b"short"), ttl=0.02)

        async def dropped() -> bool:
            return told == [(b"short", Drop.EXPIRED)]

        await eventually(dropped)
        await broker.publish(made(b"long"), ttl=60)
        assert [delivery.payload for delivery in await subscription.take(9)] == [b"long"]
        figures = broker.figures().topics["orders.created"]
        assert (figures.published, figures.delivered, figures.dropped) == (2, 1, 1)


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("way", ["behind a handler that computes", "out of the spill", "behind a publisher that waited for room"])
async def test_what_expires_before_its_timer_can_say_so_is_not_delivered(way: str, key: str | None) -> None:
    """Its place and its key are free then, and it is counted and told."""
    broker = Broker()
    told: list[tuple[bytes, Drop]] = []
    policy: PolicyName = "spill" if "spill" in way else "block"
    async with broker.subscribe(
        buffer=9 if "handler" in way else 1,
        policy=policy,
        spill_to=MemoryLog() if policy == "spill" else None,
        on_drop=lambda message, why: told.append((message.payload, why)),
    ) as subscription:
        await broker.publish(made(b"first", key=key))
        publish = asyncio.create_task(broker.publish(made(b"short", key=key), ttl=0.02))
        await asyncio.wait({publish}, timeout=0.01)
        assert publish.done() is ("room" not in way)
        following = asyncio.create_task(broker.publish(made(b"last", key=key)))
        await turn()
        time.sleep(0.03)  # noqa: ASYNC251 -- the event loop has no turn
        taken: list[bytes] = []
        async with asyncio.timeout(10):
            while b"last" not in taken:
                for delivery in await subscription.take(9):
                    taken.append(delivery.payload)
                    delivery.ack()
        await asyncio.gather(publish, following)
        assert taken == [b"first", b"last"]
        assert told == [(b"short", Drop.EXPIRED)]
        figures = broker.figures().topics["orders.created"]
        assert (figures.published, figures.delivered, figures.dropped) == (3, 2, 1)


async def test_what_has_expired_is_not_delivered_again() -> None:
    broker = Broker()
    async with broker.subscribe() as subscription:
        for delay in (0.0, 0.03):
            for key in (None, "k"):
                await broker.publish(made(b"short", key=key), ttl=0.02)
                (delivery,) = await subscription.take(1)
                until = time.monotonic() + 0.025

                async def expired_or_given_back() -> bool:
                    if time.monotonic() > until or delay:  # noqa: B023 -- awaited in this turn
                        delivery.nack(delay, failed=False)  # noqa: B023
                    return delivery.over  # noqa: B023

                await eventually(expired_or_given_back)
                await broker.publish(made(b"next", key=key))
                (after,) = await subscription.take(9)
                assert after.payload == b"next"
                after.ack()


async def test_ten_thousand_messages_come_at_their_times_and_not_before() -> None:
    broker = Broker(buffer=20_000)
    begin = datetime.now(UTC) + timedelta(seconds=5)  # by then they are all scheduled, on a slow machine too
    async with broker.subscribe() as subscription:
        for number in range(10_000):
            at = begin + timedelta(milliseconds=number * 7919 % 500)
            assert await broker.publish(made(at.isoformat().encode()), deliver_at=at) == []
        assert (broker.figures().scheduled, subscription.take_nowait(9)) == (10_000, [])
        late: list[float] = []
        while len(late) < 10_000:
            for delivery in await asyncio.wait_for(subscription.take(9999), 30):
                late.append((datetime.now(UTC) - datetime.fromisoformat(delivery.payload.decode())).total_seconds())
                delivery.ack()
        assert min(late) > -0.002
        assert sorted(late)[5000] < 1.0
        assert broker.figures().scheduled == 0


async def test_what_is_due_goes_to_those_who_are_subscribed_by_then() -> None:
    broker = Broker()
    await broker.publish(made(b"later"), deliver_at=datetime.now(UTC) + timedelta(seconds=0.05))
    await broker.publish(made(b"lost"), deliver_at=datetime.now(UTC) - timedelta(seconds=5))
    async with broker.subscribe() as subscription:
        (delivery,) = await asyncio.wait_for(subscription.take(1), 10)
        assert delivery.payload == b"later"


async def test_a_filter_keeps_out_what_it_does_not_want() -> None:
    broker = Broker()
    async with broker.subscribe(name="some", filter=lambda message: message.payload != b"no") as some, broker.subscribe() as everything:
        for payload in (b"yes", b"no", b"yes"):
            await broker.publish(made(payload))
        assert [delivery.payload for delivery in await some.take(9)] == [b"yes", b"yes"]
        assert len(await everything.take(9)) == 3
        assert broker.figures().subscriptions["some"].published == 2


async def test_a_filter_that_raises_drops_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker()
    async with broker.subscribe(name="bad", filter=lambda message: bool(1 // len(message.payload))), broker.subscribe() as other:
        await broker.publish(made(b""))
        assert len(await other.take(9)) == 1
    assert broker.figures().topics["orders.created"].dropped == 1
    assert "bad: its filter raised" in caplog.text


async def test_a_request_gets_the_first_reply() -> None:
    broker = Broker()

    async def serve(prefix: bytes) -> None:
        async with broker.subscribe("square", group="servers") as subscription:
            async for delivery in subscription:
                await delivery.reply(prefix + delivery.payload * 2, headers={"by": "me"})
                await delivery.reply(b"a second one is let go")

    servers = [asyncio.create_task(serve(prefix)) for prefix in (b"1", b"2")]
    await turn()
    answers = await asyncio.gather(*(broker.request(made(str(number).encode(), "square"), 20) for number in range(20)))
    assert [answer.payload[1:] for answer in answers] == [str(number).encode() * 2 for number in range(20)]
    assert {answer.headers["by"] for answer in answers} == {"me"}
    broker.close()
    await asyncio.gather(*servers)


async def test_an_answer_counts_though_who_gave_it_has_left_before_the_publish_was_through() -> None:
    broker = Broker()
    slow = broker.subscribe("square", buffer=1, policy="block").begin()
    await broker.publish(made(topic="square"))

    async def serve_once() -> None:
        async with broker.subscribe("square") as subscription:
            (request,) = await subscription.take(1)
            await request.reply(b"4")
        slow.unsubscribe()

    server = asyncio.create_task(serve_once())
    await turn()
    assert (await broker.request(made(b"2", "square"), 20)).payload == b"4"
    await server


async def test_a_request_that_nobody_takes_or_answers_raises() -> None:
    broker = Broker()
    with pytest.raises(NoReply, match="no subscription takes 'square'"):
        await broker.request(made(topic="square"), 20)
    async with broker.subscribe("square") as subscription:
        with pytest.raises(NoReply, match=r"no reply to 'square' within 0.05 s"):
            await broker.request(made(topic="square"), 0.05)
        (late,) = await subscription.take(1)
        await late.reply(b"too late: let go")
    async with broker.subscribe() as subscription:
        await broker.publish(made())
        (no_request,) = await subscription.take(1)
        with pytest.raises(InvalidMessage, match="not a request"):
            await no_request.reply(b"")


async def test_a_typed_topic_gives_values() -> None:
    broker = Broker()
    async with ORDERS.subscribe(broker, buffer=10) as subscription:
        await ORDERS.publish(broker, OrderCreated("o-1", 5), key="o-1")
        await ORDERS.publish(broker, OrderCreated("o-2"))
        seen = []
        async for received in subscription:
            seen.append((received.value, received.delivery.key))
            if len(seen) == 2:
                break
    assert seen == [(OrderCreated("o-1", 5), "o-1"), (OrderCreated("o-2"), None)]
    assert broker.figures().topics["orders.created"].delivered == 2


async def test_what_cannot_be_decoded_is_dead_with_its_reason_and_the_loop_goes_on() -> None:
    broker = Broker()
    async with ORDERS.subscribe(broker, name="typed") as subscription:
        for payload in (b"\xff", b"[1]", b'{"order": "o", "unknown": 1}', b"{}"):
            await broker.publish(made(payload))
        await ORDERS.publish(broker, OrderCreated("good"))
        async for received in subscription:
            assert received.value.order == "good"
            break
        letters = broker.dead_letters.list()
        assert [letter.reason for letter in letters] == [Reason.INVALID] * 4
        assert "UnicodeDecodeError" in letters[0].detail
        assert "unknown" in letters[2].detail
        assert "order" in letters[3].detail


async def test_a_codec_of_two_functions() -> None:
    numbers = Topic[int]("numbers", codec=Functions(lambda value: str(value).encode(), int, "text/plain"))
    broker = Broker()
    async with numbers.subscribe(broker) as subscription:
        [delivery] = await numbers.publish(broker, 7)
        assert delivery.message.content_type == "text/plain"
        async for received in subscription:
            assert received.value == 7
            break


async def test_mistakes_are_named() -> None:
    broker = Broker()
    with pytest.raises(InvalidMessage, match="ttl: 0 is not above 0"):
        await broker.publish(made(), ttl=0)
    with pytest.raises(InvalidMessage, match=r"deliver_at: .* has no time zone"):
        await broker.publish(made(), deliver_at=datetime(2030, 1, 1))  # noqa: DTZ001 -- that is the point
    with pytest.raises(InvalidMessage, match="priority: is str"):
        await broker.publish(made(), priority="high")  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage, match="topic"):
        Topic[int]("numbers.*", codec=Functions(bytes, len))
    with pytest.raises(ConfigurationError, match="codec: int is not a dataclass"):
        DataclassCodec(int)


async def test_an_answer_arrives_however_it_is_published_and_whoever_asked_before() -> None:
    """Over a sink, say, which asks first whether anybody is there; one that comes again, or too late, is let go."""
    broker = Broker()
    sink = InProcessSink(broker, timeout=10)
    async with broker.subscribe("square") as subscription:
        for answering in ("publish", "publish_and_wait", "sink"):
            asking = asyncio.create_task(broker.request(Message(uuid7(), "square", b"2"), 20))
            [request] = await asyncio.wait_for(subscription.take(1), 10)
            topic = request.headers["reply-to"]
            assert broker.hears(topic)
            answer = Message(uuid7(), topic, b"4")
            if answering == "publish":
                await broker.publish(answer)
            elif answering == "publish_and_wait":
                await broker.publish_and_wait(answer, 10)
            else:
                assert await sink.publish([answer]) == [PUBLISHED]
            assert (await asyncio.wait_for(asking, 10)).payload == b"4"
            assert not broker.hears(topic)
            assert await sink.publish([answer]) == [PUBLISHED]
