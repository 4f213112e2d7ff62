"""What a bridge from inside the process does with a full buffer; what bridges publish, for those who check it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Literal

import pytest

from bridges.ports import PUBLISHED, Reason, Released
from outbox.daemon.bridging import written_by_bridges
from outbox.daemon.brokers import _InProcessBroker, make_broker
from outbox.daemon.config import InProcessSection
from outbox.daemon.crossings import BridgeSection
from tests.contracts.claims import claimed
from tests.contracts.messages import ids
from tests.engines.deadline import eventually
from tests.unit.fakes import message
from tests.unit.test_crossings import bridge, read

if TYPE_CHECKING:
    from pathlib import Path

    from bridges.message import Message


@pytest.mark.parametrize(("when_full", "arrive"), [("block", 12), ("drop", 5)])
async def test_a_full_buffer_blocks_or_drops_and_counts(when_full: Literal["block", "drop"], arrive: int) -> None:
    """Dropped, a message is no trouble of its publisher's; and another subscription to the topic has all of them."""
    dropped: list[int] = []
    section = BridgeSection(name="b", source="local", sink="events", topics=["t"], buffer=5, when_full=when_full)
    async with AsyncExitStack() as stack:
        broker = make_broker(InProcessSection(kind="inprocess"), stack)
        source = broker.source_of_bridge(section, [], lambda: dropped.append(1))
        other = broker.source("other", ["t"], [], None)
        messages = [message(number, topic="t") for number in range(12)]
        publishing = asyncio.ensure_future(broker.sink("{topic}").publish(messages))
        got: list[Message] = []
        beside: list[Message] = []

        async def settled() -> bool:
            beside.extend(await claimed(other, lambda some: [PUBLISHED] * len(some)))
            return len(beside) >= (12 if when_full == "drop" else 5)

        await eventually(settled)
        assert not publishing.done()

        async def ended() -> bool:
            for source_, into in ((source, got), (other, beside)):
                into.extend(await claimed(source_, lambda some: [PUBLISHED] * len(some)))
            return publishing.done()

        await eventually(ended)
        assert publishing.result() == [PUBLISHED] * 12
        assert ids(got) == ids(messages)[:arrive]
        assert ids(beside) == ids(messages)
        assert len(dropped) == 12 - arrive
        # There is room again.
        publishing = asyncio.ensure_future(broker.sink("{topic}").publish([message(99, topic="t")]))
        await eventually(ended)
        assert got[-1].id.int == 99


async def test_a_bridge_that_drops_holds_up_nobody_while_its_sink_is_away() -> None:
    """What its claims give back is beside the buffer: whoever publishes goes on, and each message is in the bridge's hands or counted."""
    dropped: list[int] = []
    section = BridgeSection(name="b", source="local", sink="events", topics=["t"], buffer=5, when_full="drop")
    away = Released(Reason.UNAVAILABLE, "away")
    async with AsyncExitStack() as stack:
        broker = make_broker(InProcessSection(kind="inprocess", timeout=0.05), stack)
        assert isinstance(broker, _InProcessBroker)
        source = broker.source_of_bridge(section, [], lambda: dropped.append(1))
        published = 0

        async def publish(count: int) -> None:
            nonlocal published
            for _ in range(count):
                await asyncio.wait_for(broker.embedded.publish(message(published, topic="t")), 10)
                published += 1

        for _ in range(3):
            async with source.claim(99) as first, source.claim(99) as second:
                await publish(8)
                async with source.claim(99) as third:
                    await publish(8)
                    for batch in (first, second, third):
                        await batch.settle([away] * len(batch.messages))
            await publish(3)
        got = await claimed(source, lambda some: [PUBLISHED] * len(some))
        assert len(got) > 5, "nothing was given back above the buffer"
        assert len(got) + len(dropped) == published
        # Of what is dropped, its publisher is not told to send it again; what has room is published when the sink has it.
        await publish(5)
        sink = broker.sink("{topic}")
        assert await asyncio.wait_for(sink.publish([message(published, topic="t")]), 10) == [PUBLISHED]
        assert len(got) + len(dropped) == published + 1 - 5


def test_what_bridges_publish_is_known_as_far_as_the_configuration_says(tmp_path: Path) -> None:
    text = (
        bridge("a", "local", "events", mapping='"x.> -> y.{1}"')
        + bridge("b", "local", "events", topics='["z.*"]')
        + bridge("c", "other", "events")  # whatever the messages there are called
        + bridge("d", "local", "other", mapping='"x.> -> w.{1}"')
    )
    assert [(route.topics, route.destination) for route in written_by_bridges(read(tmp_path, text), "events")] == [
        ("y.>", "{topic}"),
        ("z.*", "{topic}"),
    ]
