"""Sleeping and waking: no wake-up is lost, and an idle pump hardly asks anything."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING

import psycopg

from bridges.ports import PUBLISHED
from migrations.runner import migrate
from outbox import Outbox
from outbox.embedded import PrivatePostgres
from outbox.source import OutboxSource
from tests.engines.deadline import eventually
from tests.engines.pumps import is_empty, pumping, sleeping
from tests.engines.sinks import RecordingSink

if TYPE_CHECKING:
    import pytest

OUTBOX = Outbox()
NEVER = 3600.0
"""A poll that does not come: what wakes the pump then is the doorbell."""


async def put(dsn: str, payload: bytes) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await OUTBOX.aput(connection, "t", payload)


async def test_a_sleeping_pump_is_woken_by_a_commit(database: str, connection: psycopg.AsyncConnection) -> None:
    sink = RecordingSink()
    async with pumping(database, sink, poll_interval=NEVER):
        for n in range(20):
            await eventually(lambda: sleeping(connection))
            await put(database, str(n).encode())
            await eventually(lambda: is_empty(connection))
    assert sink.payloads() == [str(n).encode() for n in range(20)]


async def test_no_wake_up_is_lost_however_the_commits_fall(database: str, connection: psycopg.AsyncConnection) -> None:
    """Writers commit at any moment of falling asleep and waking; without a poll, one lost wake-up would hang this."""
    sink = RecordingSink()
    async with pumping(database, sink, poll_interval=NEVER, batch=3):
        for n in range(300):
            await put(database, str(n).encode())
            if n % 10 == 0:
                await eventually(lambda: is_empty(connection))
        await eventually(lambda: is_empty(connection))
    assert len(sink.published) == 300


async def test_a_long_transaction_is_heard_when_it_ends(database: str, connection: psycopg.AsyncConnection) -> None:
    """It was there before the pump slept, so it will not ring: the pump, refused the lock, keeps looking."""
    sink = RecordingSink()
    async with await psycopg.AsyncConnection.connect(database) as writer:
        await OUTBOX.aput(writer, "t", b"long")
        async with pumping(database, sink, poll_interval=NEVER):
            await put(database, b"short")

            async def short() -> bool:
                return sink.payloads() == [b"short"]

            await eventually(short)
            await writer.commit()
            await eventually(lambda: is_empty(connection))
    assert sink.payloads() == [b"short", b"long"]


async def test_one_of_several_pumps_minds_the_doorbell_and_another_takes_over(database: str, connection: psycopg.AsyncConnection) -> None:
    sink = RecordingSink()
    async with pumping(database, sink, poll_interval=0.1):
        async with pumping(database, sink, poll_interval=0.1):
            await put(database, b"two")
            await eventually(lambda: is_empty(connection))
        await eventually(lambda: sleeping(connection))
        await put(database, b"one")
        await eventually(lambda: is_empty(connection))
    assert sink.payloads() == [b"two", b"one"]


async def test_poll_only_works_and_is_announced(
    database: str, connection: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    sink = RecordingSink()
    with caplog.at_level(logging.WARNING, "outboxd.doorbell"):
        async with pumping(database, sink, poll_interval=0.05, doorbell=False):
            await eventually(lambda: is_empty(connection))
            await put(database, b"1")
            await eventually(lambda: is_empty(connection))

            async def announced() -> bool:
                return any("switched off" in record.getMessage() for record in caplog.records)

            await eventually(announced)
    assert sink.payloads() == [b"1"]


async def test_what_is_scheduled_wakes_the_pump_by_itself(database: str, connection: psycopg.AsyncConnection) -> None:
    sink = RecordingSink()
    async with await psycopg.AsyncConnection.connect(database) as writer:
        await writer.execute(
            "INSERT INTO outbox.messages (topic, payload, deliver_at) VALUES ('t', 'x', clock_timestamp() + interval '0.5 s')"
        )
    async with pumping(database, sink, poll_interval=NEVER):
        await eventually(lambda: is_empty(connection))
    assert len(sink.published) == 1


async def test_an_idle_pump_asks_once_per_poll() -> None:
    """Counted in the server's own log of statements: one query a poll, and at one poll a second that is one query a second."""
    with PrivatePostgres(durable=False, settings={"log_statement": "all", "log_min_messages": "log"}) as server:
        log = server.log
        with psycopg.connect(server.dsn) as connection:
            migrate(connection, "outbox", schema="outbox")
        async with pumping(server.dsn, RecordingSink(), poll_interval=0.05):

            async def statements() -> list[str]:
                text = await asyncio.to_thread(log.read_text)
                return re.findall(r"(?:statement|execute [^:]*): \s*(\w+ \w+)", text.partition("LISTEN")[2])

            async def polled_often() -> list[str]:
                said = await statements()
                return said if said.count("SELECT EXISTS") >= 20 else []

            said = await eventually(polled_often)
    # Once asleep, nothing but the look; before it, the locks of the doorbell and the first look.
    assert set(said[5:20]) == {"SELECT EXISTS"}


async def test_the_source_of_a_bridge_waits_no_longer_than_it_is_told(database: str) -> None:
    async with OutboxSource(database, poll_interval=NEVER) as source:
        await asyncio.wait_for(source.wait(0.05), 10)


async def test_where_several_were_found_at_once_a_claim_is_the_next_look(database: str, connection: psycopg.AsyncConnection) -> None:
    """And where that finds nothing, the pump sleeps."""
    async with OutboxSource(database, poll_interval=NEVER) as source:

        async def claimed() -> list[bytes]:
            async with source.claim(10) as batch:
                await batch.settle([PUBLISHED] * len(batch.messages))
                return [message.payload for message in batch.messages]

        for payload in (b"1", b"2"):
            await put(database, payload)
        assert await claimed() == [b"1", b"2"]
        await asyncio.wait_for(source.wait(NEVER), 10)
        assert await claimed() == []
        waiting = asyncio.create_task(source.wait(NEVER))
        await eventually(lambda: sleeping(connection))
        await put(database, b"3")
        await asyncio.wait_for(waiting, 10)
        assert await claimed() == [b"3"]
