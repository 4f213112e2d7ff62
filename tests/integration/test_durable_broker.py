"""A broker on a durable log, killed: what was published is delivered, what was not acknowledged is delivered again, timers go off."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import PIPE, Popen
from uuid import UUID

import pytest

from bridges.inprocess import Broker, InProcessSink, InProcessSource, disk
from bridges.inprocess.cursors import DurableCursors
from bridges.inprocess.durable import DurableLog
from bridges.message import Message
from bridges.ports import PUBLISHED


async def broker_on(folder: Path) -> tuple[Broker, DurableLog]:
    log = await DurableLog.open(folder / "log")
    broker = Broker()
    broker.keep("orders.>", log, await DurableCursors.open(folder / "cursors", fsync=5))
    return broker, log


def numbered(number: int) -> Message:
    return Message(UUID(int=number), "orders.created", b"%d" % number, key=str(number % 5))


async def work(folder: Path) -> None:
    """Publish for ever, every tenth message for a little later, and acknowledge all but some."""
    broker, log = await broker_on(folder)
    number = log.next

    async def handle() -> None:
        async with broker.subscribe("orders.>", durable="billing", ack="explicit", buffer=100) as subscription:
            async for delivery in subscription:
                if random.random() < 0.9:
                    os.write(1, b"handled %s\n" % delivery.payload)
                    delivery.ack()

    async with asyncio.TaskGroup() as group:
        group.create_task(handle())
        while True:
            later = datetime.now(UTC) + timedelta(milliseconds=200) if number % 10 == 0 else None
            await broker.publish(numbered(number), deliver_at=later)
            os.write(1, b"published %d\n" % number)
            number += 1


def killed_after(lines: int, folder: Path, published: set[int], handled: set[int]) -> None:
    with Popen([sys.executable, "-m", "tests.integration.test_durable_broker", str(folder)], stdout=PIPE, text=True) as process:
        assert process.stdout
        for count, line in enumerate(process.stdout):
            what, number = line.split()
            (published if what == "published" else handled).add(int(number))
            if count == lines:
                process.kill()


async def test_whatever_was_published_before_a_kill_is_delivered_and_timers_go_off(tmp_path: Path) -> None:
    published: set[int] = set()
    handled: set[int] = set()
    for _ in range(5):
        await asyncio.to_thread(killed_after, 300, tmp_path, published, handled)
    broker, log = await broker_on(tmp_path)
    assert published <= set(range(log.next))
    async with asyncio.timeout(20), broker.subscribe("orders.>", durable="billing") as subscription:
        waiting = set(range(log.next)) - handled
        assert waiting
        async for delivery in subscription:
            handled.add(int(delivery.payload))
            if handled >= set(range(log.next)):
                break
    await broker.aclose()
    log = await DurableLog.open(tmp_path / "log")
    assert [entry.message.payload for entry in log.read(0, 1 << 30)] == [b"%d" % number for number in range(log.next)]
    await log.close()


async def test_what_a_durable_name_has_not_acknowledged_yet_is_there_after_a_restart(tmp_path: Path) -> None:
    """Though it has never acknowledged anything, so that nothing was saved for it but where it began."""
    broker, _ = await broker_on(tmp_path)
    subscription = broker.subscribe("orders.>", durable="billing").begin()
    InProcessSource(broker, "orders.>", durable="bridge")
    assert await InProcessSink(broker).publish([numbered(number) for number in range(6)]) == [PUBLISHED] * 6
    assert await subscription.take(3)
    await broker.aclose()
    broker, _ = await broker_on(tmp_path)
    subscription = broker.subscribe("orders.>", durable="billing").begin()
    assert [int(delivery.payload) for delivery in await asyncio.wait_for(subscription.take(9), 10)] == [0, 1, 2, 3, 4, 5]
    async with InProcessSource(broker, "orders.>", durable="bridge").claim(9) as batch:
        assert len(batch.messages) == 6
    await broker.aclose()


@pytest.mark.parametrize("cancelled", [True, False])
async def test_readers_hear_of_what_is_stored_whoever_waits_for_it(
    *, cancelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its publisher has given up meanwhile; or the reader has only begun to read since it was published."""
    broker, _ = await broker_on(tmp_path)
    syncing, go_on, sync = threading.Event(), threading.Event(), disk.sync

    def slow(file: int) -> None:
        syncing.set()
        assert go_on.wait(20)
        sync(file)

    monkeypatch.setattr(disk, "sync", slow)
    if cancelled:
        early = broker.subscribe("orders.>", start="live").begin()
        taking = asyncio.create_task(early.take(1))
    publishing = asyncio.create_task(broker.publish(numbered(0)))
    assert await asyncio.to_thread(syncing.wait, 20)
    if cancelled:
        publishing.cancel()
    else:
        late = broker.subscribe("orders.>", start="live").begin()
        taking = asyncio.create_task(late.take(1))
    await asyncio.wait([publishing], timeout=0 if not cancelled else None)
    go_on.set()
    assert [int(delivery.payload) for delivery in await asyncio.wait_for(taking, 20)] == [0]
    await asyncio.gather(publishing, return_exceptions=True)
    await broker.aclose()


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1])))
