"""What a route may say, through the whole pump; and what the outbox does with rows that may not go."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg

from bridges.backoff import Backoff
from bridges.ports import PUBLISHED, Outcome, Reason, Rejected, Retry
from migrations.runner import max_payload_statement
from outbox import Draft, Outbox, sql
from outbox.deadletters import Selection, drop, requeue
from outbox.rows import Policy
from outbox.source import OutboxSource
from tests.engines.deadline import eventually
from tests.engines.pumps import count, is_empty, pumping
from tests.engines.sinks import RecordingSink

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from bridges.message import Message

OUTBOX = Outbox()


async def put(dsn: str, *drafts: Draft) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await OUTBOX.aput_many(connection, drafts)


def refusing(*payloads: bytes) -> RecordingSink:
    return RecordingSink(lambda message: Rejected(Reason.INVALID, "no") if message.payload in payloads else PUBLISHED)


def series(key: str | None, numbers: range, topic: str = "t") -> list[Draft]:
    return [Draft(topic, str(n).encode(), key=key) for n in numbers]


async def test_after_a_dead_letter_its_key_may_wait_for_an_operator(database: str, connection: psycopg.AsyncConnection) -> None:
    sink = refusing(b"1")
    async with pumping(database, sink, policy=lambda _: Policy(holds_after_dead=True)):
        await put(database, *series("k", range(4)), Draft("t", b"other", key="o"))

        async def waits() -> bool:
            return await count(connection, "held") == 2 and b"other" in sink.payloads()

        await eventually(waits)
        await put(database, Draft("t", b"4", key="k"))

        async def joined() -> bool:
            return await count(connection, "held") == 3

        await eventually(joined)
        assert sink.payloads("k") == [b"0"]
        sink.judge = lambda _: PUBLISHED
        await requeue(connection, Selection(key="k"))
        await eventually(lambda: is_empty(connection))
    assert sink.payloads("k") == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_key_that_waits_for_an_operator_goes_on_when_its_dead_letter_is_dropped(
    database: str, connection: psycopg.AsyncConnection
) -> None:
    sink = refusing(b"0")
    async with pumping(database, sink, policy=lambda _: Policy(holds_after_dead=True)):
        await put(database, *series("k", range(3)))

        async def waits() -> bool:
            return await count(connection, "held") == 2

        await eventually(waits)
        await drop(connection, Selection(key="k"))
        await eventually(lambda: is_empty(connection))
    assert sink.payloads("k") == [b"1", b"2"]


async def test_without_order_a_failing_message_holds_back_nobody(database: str, connection: psycopg.AsyncConnection) -> None:
    failures = Counter[bytes]()

    def judge(message: Message) -> Outcome:
        failures[message.payload] += 1
        return Retry(Reason.REFUSED, "not yet", after=0.05) if message.payload == b"0" and failures[b"0"] < 4 else PUBLISHED

    class Unordered(RecordingSink):
        async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
            outcomes = [self.judge(message) for message in messages]
            self.published += [message for message, outcome in zip(messages, outcomes, strict=True) if outcome is PUBLISHED]
            return outcomes

    sink = Unordered(judge)
    async with pumping(database, sink, policy=lambda _: Policy(ordered=False)):
        await put(database, *series("k", range(4)))
        await eventually(lambda: is_empty(connection))
    assert sink.payloads("k") == [b"1", b"2", b"3", b"0"]


async def test_a_dead_letter_knows_whether_it_kept_its_keys_order(database: str, connection: psycopg.AsyncConnection) -> None:
    """A requeue puts it back as it was."""
    sink = RecordingSink(lambda message: Rejected(Reason.REFUSED, "") if message.payload == b"0" else PUBLISHED)
    async with pumping(database, sink, policy=lambda topic: Policy(ordered=topic == "t")):
        await put(database, *series("k", range(1)), Draft("loose", b"0", key="k"))
        await eventually(lambda: is_empty(connection))
    cursor = await connection.execute("SELECT topic, ordered FROM outbox.dead ORDER BY position")
    assert await cursor.fetchall() == [("t", True), ("loose", False)]


async def test_what_a_route_keeps_is_in_the_archive(database: str, connection: psycopg.AsyncConnection) -> None:
    sink = RecordingSink()
    week = timedelta(days=7)
    async with pumping(database, sink, policy=lambda topic: Policy(keep=week if topic == "kept" else None, sink="events")):
        await put(database, Draft("kept", {"n": 1}, key="k", headers={"a": "b"}), Draft("gone", b""))
        await eventually(lambda: is_empty(connection))
    cursor = await connection.execute(
        "SELECT topic, key, payload, headers ->> 'a', destination, round(extract(epoch FROM drop_at - published_at)) FROM outbox.archive"
    )
    assert await cursor.fetchall() == [("kept", "k", b'{"n":1}', "b", "events", 7 * 86400)]


async def test_a_row_over_a_limit_that_was_lowered_is_a_dead_letter_and_its_lane_goes_on(
    database: str, connection: psycopg.AsyncConnection
) -> None:
    await put(database, Draft("t", b"x" * 2000, key="k"), *series("k", range(3)))
    await connection.execute(max_payload_statement(1000, schema="outbox"))
    sink = RecordingSink()
    async with pumping(database, sink):
        await eventually(lambda: is_empty(connection))
    assert sink.payloads() == [b"0", b"1", b"2"]
    cursor = await connection.execute("SELECT reason, length(payload) FROM outbox.dead")
    assert await cursor.fetchall() == [("too_large", 2000)]


async def test_a_claim_sees_what_the_last_owner_of_its_lane_committed(
    database: str, connection: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why a claim takes its lanes in a statement of its own: another pump commits between its beginning and its lane lock.

    The second pump's transaction has begun, and has run a statement; then the first one moves the head of a key into a hold and commits.
    Were the second's snapshot older than its lock, it would see the followers without the hold, and send them ahead of their head.
    """
    await put(database, *series("k", range(3)))
    looks_and_waits = ', (SELECT count(*) FROM :"schema".holds), pg_advisory_xact_lock(4711)'

    async def begun() -> bool:
        cursor = await connection.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE objid = 4711 AND NOT granted)")
        return await cursor.fetchone() == (True,)

    async with OutboxSource(database) as first, OutboxSource(database) as second:
        async with first.claim(1) as batch:
            await connection.execute("SELECT pg_advisory_lock(4711)")
            monkeypatch.setattr(sql, "CONFIGURE_CLAIM", sql.CONFIGURE_CLAIM + looks_and_waits)
            claim = second.claim(10)
            claiming = asyncio.create_task(claim.__aenter__())
            await eventually(begun)
            await batch.settle([Retry(Reason.REFUSED, "no", after=1000.0)])
        await connection.execute("SELECT pg_advisory_unlock(4711)")
        assert (await claiming).messages == [], "they wait behind their head"
        await claim.__aexit__(None, None, None)
    assert await count(connection, "held") == 3


async def test_a_stale_snapshot_would_miss_the_hold(database: str, connection: psycopg.AsyncConnection) -> None:
    """The test above can fail: with a snapshot from before the lock, as in REPEATABLE READ, the hold is not seen."""
    await put(database, *series("k", range(3)))
    async with OutboxSource(database) as first, await psycopg.AsyncConnection.connect(database) as stale:
        await stale.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await stale.execute("SELECT count(*) FROM outbox.holds")
        async with first.claim(1) as batch:
            await batch.settle([Retry(Reason.REFUSED, "no", after=1000.0)])
        await stale.execute("SELECT lane FROM outbox.lanes FOR UPDATE")
        cursor = await stale.execute("SELECT count(*) FROM outbox.holds")
        assert await cursor.fetchone() == (0,)


async def test_a_long_queue_behind_one_key_is_not_looked_at(database: str, connection: psycopg.AsyncConnection) -> None:
    """100,000 rows wait behind a failing head; other keys pass, and a claim reads one row of the hold, not the queue."""
    await connection.execute("""
        INSERT INTO outbox.held (position, id, created_at, priority, lane, topic, key, content_type, headers, hold, payload)
        SELECT n, gen_random_uuid(), now(), 0, hashtextextended('bad', 0) & 63, 't', 'bad', 'a', '{}', 'key:bad', n::text::bytea
        FROM generate_series(-100000, -1) AS n""")
    await connection.execute(
        "INSERT INTO outbox.holds (hold, head, due_at, attempts, lane) SELECT 'key:bad', -100000, now(), 1, hashtextextended('bad', 0) & 63"
    )
    sink = RecordingSink(lambda message: Retry(Reason.REFUSED, "no", after=0.01) if message.key == "bad" else PUBLISHED)
    async with pumping(database, sink, retry=Backoff(first=0.01, cap=0.01)):
        await put(database, *[draft for key in range(20) for draft in series(f"k{key}", range(50))])

        async def through() -> bool:
            return len(sink.published) == 1000

        await eventually(through)
        assert await count(connection, "held") == 100_000
    # What the pump's sessions have read is reported at their ends.

    async def reported() -> int:
        cursor = await connection.execute("SELECT coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = 'held'")
        ((fetched,),) = await cursor.fetchall()
        return int(fetched)

    assert await reported() < 20_000


async def test_ten_thousand_messages_for_the_same_moment(database: str, connection: psycopg.AsyncConnection) -> None:
    """They are claimed in batches, in order of time and position, and none before its time."""
    due = datetime.now(UTC) + timedelta(seconds=1)
    await put(database, *[Draft("t", str(n).encode(), deliver_at=due) for n in range(10_000)])
    early = 0

    def judge(_: Message) -> Outcome:
        nonlocal early
        early += datetime.now(UTC) < due - timedelta(seconds=0.5)  # two clocks, and yet far from a second
        return PUBLISHED

    sink = RecordingSink(judge)
    async with pumping(database, sink, batch=1000):
        await eventually(lambda: is_empty(connection), within=60)
    assert len(sink.published) == 10_000
    assert early == 0
    assert 10 <= sink.calls <= 80, "batches, and not one by one"
