"""Topics and queue groups under load: every copy arrives once, at the right place."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from bridges.errors import ConfigurationError
from bridges.inprocess import Broker, InProcessSource, MemoryLog, Subscription
from bridges.ports import PUBLISHED
from tests.engines.deadline import eventually
from tests.unit.messages import made, turn


async def test_topics_are_isolated() -> None:
    """4 topics, 100 subscriptions each, 4 publishers: each subscription gets all of its topic, once, and nothing else."""
    broker = Broker(buffer=50)
    topics = [f"topic.{number}" for number in range(4)]
    seen: list[Counter[tuple[str, bytes]]] = []
    each = 40
    ready = asyncio.Semaphore(0)

    async def subscribe(topic: str) -> None:
        mine: Counter[tuple[str, bytes]] = Counter()
        seen.append(mine)
        async with broker.subscribe(topic, policy="block") as subscription:
            ready.release()
            async for delivery in subscription:
                mine[delivery.topic, delivery.payload] += 1
                if mine.total() == 4 * each:
                    break

    async def publish(publisher: int) -> None:
        for number in range(each):
            for topic in topics:
                await broker.publish(made(f"{publisher}-{number}".encode(), topic))

    subscribers = [asyncio.create_task(subscribe(topic)) for topic in topics for _ in range(100)]
    for _ in subscribers:
        await ready.acquire()
    await asyncio.wait_for(asyncio.gather(*(publish(publisher) for publisher in range(4))), 60)
    await asyncio.wait_for(asyncio.gather(*subscribers), 60)
    payloads = [f"{publisher}-{number}".encode() for publisher in range(4) for number in range(each)]
    for place, mine in enumerate(seen):
        assert mine == Counter({(topics[place // 100], payload): 1 for payload in payloads})
    for topic in topics:
        figures = broker.figures().topics[topic]
        assert (figures.published, figures.delivered, figures.dropped) == (4 * each * 100, 4 * each * 100, 0)


async def test_members_join_and_leave_under_load_without_loss() -> None:  # noqa: C901 -- one scene, with all who act in it
    """Three groups; members that end at any moment, with deliveries in hand, by scope, by error and by cancellation."""
    broker = Broker()
    groups = ("a", "b", "c")
    total = 3000
    done: dict[str, Counter[bytes]] = {group: Counter() for group in groups}
    over = asyncio.Event()

    async def handle(group: str, number: int, subscription: Subscription) -> None:
        taken = 0
        async for delivery in subscription:
            if number % 3:
                await turn()
            taken += 1
            if taken > 5 + number % 7:
                if number % 2:
                    raise ZeroDivisionError  # with one in hand, not acknowledged
                delivery.nack(failed=False)
                return
            done[group][delivery.payload] += 1

    async def member(group: str, number: int) -> None:
        async with broker.subscribe("orders.*", group=group, policy="block", buffer=64) as subscription:
            await handle(group, number, subscription)

    async def come_and_go(group: str) -> None:
        number = 0
        while not over.is_set():
            members = [asyncio.create_task(member(group, number + place)) for place in range(4)]
            number += 4
            await turn()
            members[number // 4 % 4].cancel()
            await asyncio.wait(members, timeout=0.02)
            for one in members:
                one.cancel()
            await asyncio.gather(*members, return_exceptions=True)

    stays = [broker.subscribe("orders.*", group=group, policy="block", buffer=64).begin() for group in groups]
    coming = [asyncio.create_task(come_and_go(group)) for group in groups]
    for number in range(total):
        await asyncio.wait_for(broker.publish(made(str(number).encode(), key=str(number % 17))), 20)
    over.set()
    await asyncio.wait_for(asyncio.gather(*coming), 30)
    for group, stay in zip(groups, stays, strict=True):
        for delivery in stay.take_nowait(10**6):
            done[group][delivery.payload] += 1
            delivery.ack()
        assert set(done[group]) == {str(number).encode() for number in range(total)}
        # One that was cancelled after its body, and before it came for the next, is delivered again.
        assert max(done[group].values()) <= 3
    broker.close()


async def test_a_key_is_with_one_member_at_a_time_and_in_order() -> None:
    broker = Broker()
    order: dict[str | None, list[int]] = {}
    busy: set[str | None] = set()

    async def member() -> None:
        async with broker.subscribe(group="g", policy="block") as subscription:
            async for delivery in subscription:
                assert delivery.key not in busy
                busy.add(delivery.key)
                await turn()
                busy.discard(delivery.key)
                order.setdefault(delivery.key, []).append(int(delivery.payload))

    members = [asyncio.create_task(member()) for _ in range(5)]
    await turn()
    for number in range(500):
        await broker.publish(made(str(number).encode(), key=f"k{number % 3}"))

    async def all_came() -> bool:
        return sum(map(len, order.values())) == 500 and not busy

    await eventually(all_came)
    assert order == {f"k{key}": list(range(key, 500, 3)) for key in range(3)}
    broker.close()
    await asyncio.gather(*members)


async def test_several_tasks_may_iterate_over_one_subscription() -> None:
    broker = Broker()
    seen: list[bytes] = []
    async with broker.subscribe() as subscription:

        async def work() -> None:
            async for delivery in subscription:
                await turn()
                seen.append(delivery.payload)

        workers = [asyncio.create_task(work()) for _ in range(3)]
        for number in range(30):
            await broker.publish(made(str(number).encode()))

        async def all_came() -> bool:
            return len(seen) == 30

        await eventually(all_came)
    await asyncio.gather(*workers)
    assert len(set(seen)) == 30


async def test_the_members_of_a_group_agree() -> None:
    broker = Broker()
    async with broker.subscribe("orders.*", group="g", buffer=5):
        with pytest.raises(ConfigurationError, match=r"group 'g' takes orders\.\*; a member that takes orders\.> cannot"):
            broker.subscribe("orders.>", group="g", buffer=5).begin()
        with pytest.raises(ConfigurationError, match="group 'g' has buffer 5; a member that has 6 cannot"):
            broker.subscribe("orders.*", group="g", buffer=6).begin()
        with pytest.raises(ConfigurationError, match="group 'g' has policy drop_newest; a member that has block cannot"):
            broker.subscribe("orders.*", group="g", buffer=5, policy="block").begin()
        with pytest.raises(ConfigurationError, match="group 'g' has filter None; a member that has <function"):
            broker.subscribe("orders.*", group="g", buffer=5, filter=lambda message: False).begin()
        with pytest.raises(ConfigurationError, match="group 'g' has on_drop None; a member that has <function"):
            broker.subscribe("orders.*", group="g", buffer=5, on_drop=lambda message, why: None).begin()


async def test_members_of_a_group_are_made_by_one_function_with_lambdas_of_their_own() -> None:
    """Those agree if they are of one place in the source, and close over equal things."""
    broker = Broker()

    def member(key: str) -> Subscription:
        return broker.subscribe(group="g", filter=lambda message: message.key == key, on_drop=lambda message, why: None)

    async with member("a"), member("a"):
        with pytest.raises(ConfigurationError, match="group 'g' has filter <function"):
            member("b").begin()


async def test_subscriptions_without_a_name_are_told_apart() -> None:
    broker = Broker()
    async with broker.subscribe("a") as one, broker.subscribe("a") as two, broker.subscribe("a", name="three") as three:
        assert (one.name, two.name, three.name) == ("a", "a#2", "three")


async def test_a_made_name_is_never_one_that_was_given() -> None:
    broker = Broker()
    given = broker.subscribe("a.>", name="x#2", buffer=1, policy="block").begin()
    async with broker.subscribe("b.>", name="x") as one, broker.subscribe("c.>", name="x") as two:
        assert len({given.name, one.name, two.name}) == 3
        assert set(broker.figures().subscriptions) == {given.name, one.name, two.name}
        await broker.publish(made(topic="a.b"))
        blocked = asyncio.create_task(broker.publish(made(topic="a.b")))
        await turn()
        given.unsubscribe()
        assert await asyncio.wait_for(blocked, 10) == []
        assert not broker.hears("a.b")


async def test_who_makes_room_wakes_the_next_reader_for_what_is_behind_the_buffer() -> None:
    """What comes back fills the buffer; when one member takes it, the log has more for the other, and nobody else says so."""
    broker = Broker()
    broker.keep("orders.>", MemoryLog())
    one, two = (broker.subscribe("orders.>", group="g", start="live", buffer=1, prefetch=1, ack="explicit").begin() for _ in range(2))
    await broker.publish(made(0))
    (first,) = one.take_nowait(1)
    first.nack(0.05)
    waits = [asyncio.create_task(member.take(1)) for member in (one, two)]
    await turn()
    await broker.publish(made(1))
    taken = [delivery.payload for wait in waits for delivery in await asyncio.wait_for(wait, 10)]
    assert sorted(taken) == [b"0", b"1"]
    broker.close()


async def test_a_source_that_is_woken_and_does_not_claim_leaves_the_message_to_the_next() -> None:
    broker = Broker()
    one, two = (InProcessSource(broker, "orders.>", group="g") for _ in range(2))
    waits = [asyncio.create_task(source.wait(60)) for source in (one, two)]
    await turn()
    await broker.publish(made(b"1"))
    await asyncio.wait_for(asyncio.gather(*waits), 10)
    async with two.claim(1) as batch:
        assert [message.payload for message in batch.messages] == [b"1"]
    broker.close()


async def test_a_source_waits_on_when_another_was_quicker() -> None:
    broker = Broker()
    source, quick = (InProcessSource(broker, "orders.>", group="g") for _ in range(2))
    wait = asyncio.create_task(source.wait(60))
    await turn()
    await broker.publish(made(b"1"))
    async with quick.claim(1) as batch:
        for _ in range(3):
            await turn()
        assert not wait.done()
        await batch.settle([PUBLISHED])
    await broker.publish(made(b"2"))
    await asyncio.wait_for(wait, 10)
    broker.close()


async def test_a_member_that_has_all_it_may_does_not_keep_a_message_from_one_that_waits() -> None:
    broker = Broker()
    async with broker.subscribe(group="g", prefetch=1) as full, broker.subscribe(group="g") as free:
        await broker.publish(made(b"1"))
        assert len(await full.take(1)) == 1
        waits = [asyncio.create_task(full.take(1)), asyncio.create_task(free.take(1))]
        await turn()
        await broker.publish(made(b"2"))
        assert [delivery.payload for delivery in await asyncio.wait_for(waits[1], 10)] == [b"2"]
        assert not waits[0].done()
        waits[0].cancel()


async def test_what_is_dropped_for_a_newer_one_frees_what_was_behind_it_in_its_key() -> None:
    broker = Broker()
    async with (
        broker.subscribe(group="g", buffer=2, policy="drop_oldest") as one,
        broker.subscribe(group="g", buffer=2, policy="drop_oldest") as two,
    ):
        await broker.publish(made(b"1", key="k"))
        (first,) = await one.take(1)
        await broker.publish(made(b"2", key="k"))
        await broker.publish(made(b"3", key="k"))
        assert two.take_nowait(9) == []
        first.ack()
        await broker.publish(made(b"4", key="other"))  # drops the second, which is next of its key
        assert [delivery.payload for delivery in two.take_nowait(9)] == [b"3", b"4"]


async def test_a_source_that_waits_and_is_closed_waits_no_longer() -> None:
    broker = Broker()
    source, other = (InProcessSource(broker, "orders.>", group="g") for _ in range(2))
    waiting = asyncio.create_task(source.wait(60))
    await turn()
    source.close()
    await asyncio.wait_for(waiting, 10)
    other.close()
