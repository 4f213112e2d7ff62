"""What is particular to JetStream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bridges.jetstream import JetStream, JetStreamSink, JetStreamSource
from bridges.message import Message, uuid7
from bridges.ports import BEHIND, PUBLISHED, Published

if TYPE_CHECKING:
    from tests.conftest import Stream


async def test_a_hot_key_gets_as_far_as_its_time_allows_and_is_no_outage(stream: Stream) -> None:
    """One message of a key at a time: what there is no time for keeps its place, and what was acknowledged is said to be."""
    messages = [Message(uuid7(), "t", b"", "hot") for _ in range(20_000)]
    async with JetStream([stream.url]) as connection:
        sink = JetStreamSink(connection, stream=stream.name, subject=stream.subject, timeout=1.0)
        async with asyncio.timeout(20):
            outcomes = list(await sink.publish(messages))
        done = outcomes.count(PUBLISHED)
        assert 0 < done < len(messages)
        assert outcomes == [PUBLISHED] * done + [BEHIND] * (len(messages) - done)
        assert isinstance((await sink.publish(messages[done : done + 1]))[0], Published)


async def test_a_durable_whose_handlers_have_changed_gets_the_new_subjects(stream: Stream) -> None:
    async with JetStream([stream.url]) as connection:
        sink = JetStreamSink(connection, stream=stream.name, subject=stream.subject)
        for topics in (["orders.created"], ["orders.created", "orders.paid"]):
            source = JetStreamSource(
                connection, stream=stream.name, durable="d", subjects=[f"{stream.prefix}.{topic}" for topic in topics], linger=2
            )
            async with source.claim(10) as batch:
                assert batch.messages == []
            assert await sink.publish([Message(uuid7(), topics[-1], b"")]) == [PUBLISHED]
            async with source.claim(10) as batch:
                assert [message.topic for message in batch.messages] == [topics[-1]]
                await batch.settle([PUBLISHED])
            await source.close()
