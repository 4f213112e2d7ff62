"""Replay: what the archive kept goes out again, as often as it is asked for, in order; and its row says how far it came."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from bridges.backoff import Backoff
from bridges.envelope import REPLAYED
from bridges.errors import ConfigurationError
from bridges.jetstream import JetStream, JetStreamSink
from bridges.ports import PUBLISHED, Outcome, Reason, Rejected, Retry
from outbox.replay import Replayed, count_archived, replay
from outbox.selection import Selection
from tests.engines.deadline import eventually
from tests.engines.letters import archive, everything, put
from tests.engines.sinks import DownSink, RecordingSink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.message import Message
    from bridges.ports import Sink
    from tests.conftest import Stream

Connection = psycopg.AsyncConnection[Any]
SOON = Backoff(first=0.01, cap=0.01, max_attempts=3)


async def replayed(database: str, sink: Sink, selection: Selection | None = None, **more: Any) -> Replayed:
    """Replay what is selected, or everything."""
    return await replay(database, selection or Selection(), sink, to="events", everything=selection is None, retry=SOON, **more)


async def audit(connection: Connection) -> list[tuple[Any, ...]]:
    cursor = await connection.execute("SELECT matched, published, rejected, ended_at IS NOT NULL FROM outbox.replays ORDER BY started_at")
    return await cursor.fetchall()


async def test_everything_goes_out_again_in_order_and_stays(database: str, connection: Connection) -> None:
    """More than a page of it."""
    payloads = [str(n) for n in range(1200)]
    ids = await put(connection, *payloads)
    await archive(connection)
    before = (await everything(connection))["archive"]
    sink = RecordingSink()
    done = await replayed(database, sink)
    assert (done.matched, done.published, done.rejected, done.complete) == (1200, 1200, {}, True)
    assert [payload.decode() for payload in sink.payloads()] == payloads
    assert sink.ids == ids
    assert {message.headers[REPLAYED] for message in sink.published} == {str(done.replay)}
    assert (await everything(connection))["archive"] == before
    assert await audit(connection) == [(1200, 1200, 0, True)]


async def test_the_row_says_who_replayed_what(database: str, connection: Connection) -> None:
    (message_id,) = await put(connection, "0", topic="orders.created")
    await archive(connection)
    done = await replayed(database, RecordingSink(), Selection(topics="orders.*", ids=[message_id]), who="ada")
    cursor = await connection.execute("SELECT replay, sink, who = 'ada as ' || session_user, selection FROM outbox.replays")
    assert await cursor.fetchall() == [(done.replay, "events", True, {"topics": "orders.*", "ids": [str(message_id)]})]


async def test_each_thing_that_can_be_selected_by(database: str, connection: Connection) -> None:
    (first,) = await put(connection, "a", topic="orders.created", key="k")
    await archive(connection, age="2 hours")
    await put(connection, "b", topic="orders.eu.paid", key="j")
    await put(connection, "c", topic="users.created", key=None)
    await archive(connection)
    row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
    assert row is not None
    hour_ago = row[0] - timedelta(hours=1)
    for selection, expected in [
        (Selection(topics="orders.>"), [b"a", b"b"]),
        (Selection(key="j"), [b"b"]),
        (Selection(ids=[first]), [b"a"]),
        (Selection(until=hour_ago), [b"a"]),
        (Selection(since=hour_ago), [b"b", b"c"]),
        (Selection(since=hour_ago, topics="*.created"), [b"c"]),
    ]:
        sink = RecordingSink()
        await replayed(database, sink, selection)
        assert sink.payloads() == expected
        assert sum((await count_archived(database, selection)).values()) == len(expected)


async def test_nothing_that_fits_is_told_and_leaves_no_row(database: str, connection: Connection) -> None:
    sink = RecordingSink()
    done = await replayed(database, sink, Selection(topics="nothing.>"))
    assert (done.replay, done.matched, done.published) == (None, 0, 0)
    assert sink.calls == 0
    assert await audit(connection) == []


async def test_counting_changes_nothing(database: str, connection: Connection) -> None:
    await put(connection, *"012", topic="orders.created")
    await put(connection, *"01", topic="orders.paid")
    await archive(connection)
    before = await everything(connection)
    assert await count_archived(database, Selection(topics="orders.*")) == {"orders.created": 3, "orders.paid": 2}
    assert await everything(connection) == before


async def test_it_ends_although_the_archive_grows_while_it_runs(database: str, connection: Connection) -> None:
    await put(connection, *"012")
    await archive(connection)

    class FeedingSink(RecordingSink):
        async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
            await put(connection, "more")
            await archive(connection, age="0 seconds")
            return await super().publish(messages)

    sink = FeedingSink()
    done = await replayed(database, sink)
    assert sink.payloads() == [b"0", b"1", b"2"]
    assert done.complete


async def test_the_rate_is_kept(database: str, connection: Connection) -> None:
    await put(connection, *map(str, range(30)))
    await archive(connection)
    sink, loop = RecordingSink(), asyncio.get_running_loop()
    began = loop.time()
    assert (await replayed(database, sink, rate=60)).published == 30
    assert 0.35 < loop.time() - began < 5
    assert sink.calls >= 5, "spread over the time"


async def test_an_outage_is_waited_for_and_nothing_is_passed_over(database: str, connection: Connection) -> None:
    await put(connection, *map(str, range(20)))
    await archive(connection)
    sink = RecordingSink()
    down = DownSink(sink)

    async def refused() -> bool:
        return down.refused > 1

    running = asyncio.create_task(replayed(database, down))
    await eventually(refused)
    assert await audit(connection) == [(20, 0, 0, False)]
    down.up = True
    assert (await running).published == 20
    assert sink.payloads() == [str(n).encode() for n in range(20)]


async def test_one_that_is_refused_stops_no_other(database: str, connection: Connection) -> None:
    """One for good, and one as often as a message is tried; those behind them in their key follow in order."""
    await put(connection, *"012345")
    await archive(connection)
    tried: list[bytes] = []

    def judge(message: Message) -> Outcome:
        tried.append(message.payload)
        if message.payload == b"1":
            return Rejected(Reason.TOO_LARGE, "too large")
        return Retry(Reason.REFUSED, "unclear") if message.payload == b"3" else PUBLISHED

    sink = RecordingSink(judge)
    done = await replayed(database, sink)
    assert sink.payloads() == [b"0", b"2", b"4", b"5"]
    assert tried.count(b"3") == 3
    assert (done.published, done.rejected, done.complete) == (4, {"too_large": 1, "attempts": 1}, True)
    assert await audit(connection) == [(6, 4, 2, True)]


async def test_it_goes_on_when_its_session_was_ended_and_sends_nothing_twice(database: str, connection: Connection) -> None:
    payloads = [str(n) for n in range(40)]
    await put(connection, *payloads)
    await archive(connection)

    class CuttingSink(RecordingSink):
        async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
            if self.calls in {2, 5}:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'outboxd replay' AND datname = current_database()"
                )
            return await super().publish(messages)

    sink = CuttingSink()
    done = await replayed(database, sink, rate=50)
    assert [payload.decode() for payload in sink.payloads()] == payloads
    assert done.complete
    assert await audit(connection) == [(40, 40, 0, True)]


@pytest.mark.parametrize("how", ["stopped", "cancelled"])
async def test_ended_early_its_row_says_how_far_it_came(database: str, connection: Connection, how: str) -> None:
    await put(connection, *map(str, range(100)))
    await archive(connection)
    sink, stop = RecordingSink(), asyncio.Event()

    async def some_went_out() -> bool:
        return len(sink.published) >= 3

    running = asyncio.create_task(replayed(database, sink, rate=10, stop=stop))
    await eventually(some_went_out)
    if how == "stopped":
        stop.set()
        done = await running
        assert (done.complete, done.matched, done.published) == (False, 100, len(sink.published))
    else:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert await audit(connection) == [(100, len(sink.published), 0, False)], "it was broken off"


async def test_what_was_dropped_meanwhile_is_missed_and_told(database: str, connection: Connection) -> None:
    """The janitor drops what is over, whoever replays."""
    await put(connection, *map(str, range(40)))
    await archive(connection)

    class Dropping(RecordingSink):
        async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
            await connection.execute("DELETE FROM outbox.archive WHERE payload LIKE '3%'")
            return await super().publish(messages)

    sink = Dropping()
    done = await replayed(database, sink, rate=100)
    assert done.complete
    assert (done.matched, done.published, done.missed) == (40, len(sink.published), 40 - len(sink.published))
    assert done.missed >= 5
    assert await audit(connection) == [(40, len(sink.published), 0, True)]


async def test_an_error_in_the_sink_comes_out_and_the_row_says_that_it_was_broken_off(database: str, connection: Connection) -> None:
    await put(connection, "0")
    await archive(connection)

    class BrokenSink:
        async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.wait_for(replayed(database, BrokenSink()), 10)
    assert raised.group_contains(ZeroDivisionError)
    assert await audit(connection) == [(1, 0, 0, False)]


async def test_jetstream_takes_no_copy_for_a_duplicate_and_the_id_stays(database: str, connection: Connection, stream: Stream) -> None:
    import nats

    client = await nats.connect(stream.url)
    (message_id,) = await put(connection, "0", topic="orders")
    await archive(connection)
    async with JetStream([stream.url]) as jetstream:
        sink = JetStreamSink(jetstream, stream=stream.name, subject=stream.subject)
        for _ in range(2):
            assert (await replayed(database, sink)).published == 1
        for sequence in (1, 2):
            stored = await client.jetstream().get_msg(stream.name, seq=sequence)
            assert stored.headers is not None
            assert stored.headers["outbox-id"] == str(message_id)
    await client.close()


async def test_what_cannot_be_replayed_is_refused(database: str) -> None:
    with pytest.raises(ConfigurationError, match="selection: nothing is given"):
        await replay(database, Selection(), RecordingSink(), to="events")
    with pytest.raises(ConfigurationError, match="reason: dead letters have one"):
        await replayed(database, RecordingSink(), Selection(reason="expired"))
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="rate: "):
            await replayed(database, RecordingSink(), rate=rate)
