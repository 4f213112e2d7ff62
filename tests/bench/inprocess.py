"""How fast the embedded broker is, as ratios to a bare `asyncio.Queue` of the same run, in pairs: the machine cancels out.

Rates are of processor time, since one thread does everything, and what else runs on the machine is not to count.

python -m tests.bench.inprocess [--messages 100000] [--pairs 7] [--subscriptions 100000] [--timers 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from bridges.inprocess import Broker
from bridges.message import Message, uuid7

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

BUFFER = 1000


async def queue_rate(count: int) -> float:
    """Put and get messages through a bounded queue, with one task at each end."""
    queue: asyncio.Queue[Message] = asyncio.Queue(BUFFER)
    message = Message(uuid7(), "orders.created", b"x")

    async def put() -> None:
        for _ in range(count):
            await queue.put(message)

    async def get() -> None:
        for _ in range(count):
            await queue.get()

    began = time.process_time()
    await asyncio.gather(put(), get())
    return count / (time.process_time() - began)


async def broker_rate(broker: Broker, count: int, *, key: str | None = None) -> float:
    """Publish messages to one subscription that handles and acknowledges each, with one task at each end."""
    message = Message(uuid7(), "orders.created", b"x", key)

    async def publish() -> None:
        for _ in range(count):
            await broker.publish(message)

    async def handle(ready: asyncio.Event) -> None:
        handled = 0
        async with broker.subscribe("orders.*", buffer=BUFFER, policy="block") as subscription:
            ready.set()
            async for _ in subscription:
                handled += 1
                if handled == count:
                    return

    ready = asyncio.Event()
    handling = asyncio.create_task(handle(ready))
    await ready.wait()
    began = time.process_time()
    await asyncio.gather(publish(), handling)
    return count / (time.process_time() - began)


async def unheard_rate(count: int) -> float:
    """Publish to nobody."""
    broker = Broker()
    message = Message(uuid7(), "orders.created", b"x")
    began = time.process_time()
    for _ in range(count):
        await broker.publish(message)
    return count / (time.process_time() - began)


@asynccontextmanager
async def crowded(subscriptions: int) -> AsyncIterator[Broker]:
    """A broker with wildcard subscriptions that match nothing of what is published."""
    broker = Broker()
    for number in range(subscriptions):
        broker.subscribe(f"unmatched.{number}.*").begin()
    gc.collect()
    gc.freeze()  # as a service does once it has started; else each collection would go over what never changes
    try:
        yield broker
    finally:
        gc.unfreeze()
        broker.close()


async def pairs(name: str, number: int, one: Callable[[], Awaitable[float]], other: Callable[[], Awaitable[float]]) -> None:
    """Measure both in turn, and print the median of their ratios."""
    ratios, ours, theirs = [], [], []
    for pair in range(number + 1):
        rates = {}
        for which in (one, other) if pair % 2 else (other, one):
            rates[which] = await which()
        if pair:  # the first is for warming up
            ratios.append(rates[one] / rates[other])
            ours.append(rates[one])
            theirs.append(rates[other])
    print(
        f"{name:58} {statistics.median(ours):9,.0f}/s beside {statistics.median(theirs):9,.0f}/s: "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def matching(subscriptions: int) -> float:
    """Return the microseconds that looking up a topic takes that reaches one subscription, beside many that do not match."""
    from bridges.inprocess.trie import Trie

    trie: Trie[int] = Trie()
    for number in range(subscriptions):
        trie.add(f"unmatched.{number}.*", number)
        trie.add(f"orders.{number}.>", number)
    trie.add("orders.*.paid", -1)
    trie.add("orders.>", -2)
    times = []
    for _ in range(7):
        began = time.process_time()
        for _ in range(10_000):
            trie.match("orders.created.paid")
        times.append((time.process_time() - began) / 10_000 * 1e6)
    return statistics.median(times)


async def lateness(number: int) -> list[float]:
    """Return how late, in seconds, messages come that are all due within one second, in random order."""
    import random

    broker = Broker()
    late: list[float] = []
    begin = datetime.now(UTC) + timedelta(seconds=2)
    async with broker.subscribe("due", buffer=number) as subscription:
        for _ in range(number):
            at = begin + timedelta(seconds=random.random())
            await broker.publish(Message(uuid7(), "due", at.isoformat().encode()), deliver_at=at)
        async for delivery in subscription:
            late.append((datetime.now(UTC) - datetime.fromisoformat(delivery.payload.decode())).total_seconds())
            if len(late) == number:
                break
    return late


async def measure(options: argparse.Namespace) -> None:
    count, number = options.messages, options.pairs

    def queue() -> Awaitable[float]:
        return queue_rate(count)

    await pairs("one subscription, publish to handler, beside a queue", number, lambda: broker_rate(Broker(), count), queue)
    await pairs("the same, all of one key", number, lambda: broker_rate(Broker(), count, key="k"), queue)
    await pairs("publish to nobody, beside a queue", number, lambda: unheard_rate(count), queue)
    async with crowded(options.subscriptions) as broker:
        name = f"beside {options.subscriptions:,} wildcards that do not match, beside none"
        await pairs(name, number, lambda: broker_rate(broker, count), lambda: broker_rate(Broker(), count))
    for subscriptions in (10, 1_000, 100_000):
        print(f"looking up one topic among {2 * subscriptions:7,} wildcards: {matching(subscriptions):.2f} us")
    late = sorted(await lateness(options.timers))
    print(
        f"{len(late):,} timers within a second: late by {late[len(late) // 2] * 1e3:.1f} ms in the median, "
        f"{late[int(len(late) * 0.99)] * 1e3:.1f} ms at 99 %, {late[-1] * 1e3:.1f} ms at most, {late[0] * 1e3:.1f} ms at least"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("messages", 100_000), ("pairs", 7), ("subscriptions", 100_000), ("timers", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
