"""What every command of an operator is tested with: a database, a way to look into it, and a configuration with a stream in it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import nats
import psycopg
import pytest

from tests.engines import command

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.conftest import Stream
    from tests.engines.letters import Connection


@pytest.fixture
def outboxd(outboxd: command.Run, database: str, monkeypatch: pytest.MonkeyPatch) -> command.Run:
    """The command line, on a database of its own, which the environment names."""
    monkeypatch.setenv(command.DSN, database)
    return outboxd


@pytest.fixture
def at(database: str) -> Callable[[Callable[[Connection], Awaitable[Any]]], Any]:
    """Do something with a connection to the database."""

    def do(work: Callable[[Connection], Awaitable[Any]]) -> Any:
        async def connected() -> Any:
            async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
                return await work(connection)

        return asyncio.run(connected())

    return do


@pytest.fixture
def configured(tmp_path: Path, stream: Stream, database: str) -> str:
    """A configuration with a sink for everything and a route that calls a topic by another name."""
    configuration = f"""
        [sinks.events]
        kind = "jetstream"
        servers = ["{stream.url}"]
        stream = "{stream.name}"
        [sinks.here]
        kind = "inprocess"
        [[routes]]
        topics = "local.>"
        sink = "here"
        [[routes]]
        topics = "orders.>"
        sink = "events"
        subject = "{stream.subject}"
    """
    return str(command.configured(tmp_path, configuration, dsn=database))


def stored(stream: Stream) -> list[Any]:
    """Return what is in the stream."""

    async def look() -> list[Any]:
        client = await nats.connect(stream.url)
        try:
            jetstream = client.jetstream()
            last = (await jetstream.stream_info(stream.name)).state.messages
            return [await jetstream.get_msg(stream.name, seq=sequence) for sequence in range(1, last + 1)]
        finally:
            await client.close()

    return asyncio.run(look())
