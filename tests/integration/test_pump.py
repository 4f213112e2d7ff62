"""The pump: nothing lost, nothing twice without a fault, keys in order, whoever else is at it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from bridges.backoff import Backoff
from bridges.ports import PUBLISHED, Outcome, Reason, Rejected, Released, Retry
from outbox import Draft, Outbox
from outbox.source import OutboxSource
from tests.engines.deadline import eventually
from tests.engines.pumps import count, is_empty, pumping
from tests.engines.sinks import DownSink, RecordingSink
from tests.unit.messages import turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.message import Message

OUTBOX = Outbox()
END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'outboxd' AND datname = current_database()"


async def put(dsn: str, *drafts: Draft) -> list[object]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        return list(await OUTBOX.aput_many(connection, drafts))


async def test_everything_is_published_whole_and_leaves(database: str, connection: psycopg.AsyncConnection) -> None:
    (message_id,) = await put(database, Draft("orders.created", {"a": "é"}, key="k", headers={"Tenant": "å"}))
    sink = RecordingSink()
    async with pumping(database, sink):
        await eventually(lambda: is_empty(connection))
    (message,) = sink.published
    assert message.id == message_id
    assert (message.topic, message.key, message.content_type) == ("orders.created", "k", "application/json")
    assert message.payload == '{"a":"é"}'.encode()
    assert message.headers["Tenant"] == "å"
    assert message.created_at is not None
    assert message.created_at.utcoffset() is not None


async def test_several_pumps_share_the_work(database: str, connection: psycopg.AsyncConnection) -> None:
    """Three pumps of three claims, writers that commit late and out of order: no row twice, none lost, every key in order."""
    keys = [f"key-{n}" for n in range(20)]
    locks = {key: asyncio.Lock() for key in keys}
    written: dict[str, list[bytes]] = {key: [] for key in keys}
    choice = random.Random(7)

    async def write() -> None:
        async with await psycopg.AsyncConnection.connect(database) as writer:
            for _ in range(60):
                key = choice.choice(keys)
                async with locks[key]:  # writers of one key serialise: promise 6
                    payload = str(len(written[key])).encode()
                    async with writer.transaction():
                        await OUTBOX.aput(writer, "t", payload, key=key)
                        if choice.random() < 0.2:
                            await writer.execute("SELECT pg_sleep(0.01)")
                    written[key].append(payload)

    sink = RecordingSink()
    async with (
        pumping(database, sink, claims=3, batch=7),
        pumping(database, sink, claims=3, batch=7),
        pumping(database, sink, claims=3, batch=7),
    ):
        async with asyncio.TaskGroup() as writers:
            for _ in range(6):
                writers.create_task(write())
        await eventually(lambda: is_empty(connection))
    assert len(sink.published) == 6 * 60
    assert max(Counter(sink.ids).values()) == 1
    for key in keys:
        assert sink.payloads(key) == written[key]


async def test_no_row_is_gone_before_its_acknowledgement(database: str, connection: psycopg.AsyncConnection) -> None:
    """While a publish is on its way its rows are there; and if the pump is cut off in it, they are there afterwards."""
    await put(database, *[Draft("t", {"n": n}, key=str(n % 3)) for n in range(10)])
    on_its_way, acknowledged = asyncio.Event(), asyncio.Event()

    class SlowSink(RecordingSink):
        async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
            on_its_way.set()
            await acknowledged.wait()
            return await super().publish(messages)

    sink = SlowSink()
    async with pumping(database, sink):
        await on_its_way.wait()
        assert await count(connection, "messages") == 10
        await connection.execute(END_SESSIONS)
        on_its_way.clear()
        acknowledged.set()
        # What was published could not be settled: all of it is claimed again.
        await on_its_way.wait()
        await eventually(lambda: is_empty(connection))
    assert Counter(sink.ids) == dict.fromkeys(sink.ids, 2)
    assert len(set(sink.ids)) == 10


async def test_an_outage_changes_and_counts_nothing(
    database: str, connection: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    await put(database, *[Draft("t", {"n": n}) for n in range(5)])
    sink = RecordingSink()
    down = DownSink(sink)

    async def refused_often() -> bool:
        return down.refused > 5

    async with pumping(database, down, retry=Backoff(max_attempts=1)):
        await eventually(refused_often)
        assert await count(connection, "messages") == 5
        down.up = True
        await eventually(lambda: is_empty(connection))
    assert len(sink.published) == 5
    assert await count(connection, "dead") == 0
    logged = [record.getMessage() for record in caplog.records if record.name == "outboxd.breaker"]
    assert [line.split(":")[1].split()[:2] for line in logged] == [["outage", "begins"], ["outage", "ends"]]


async def test_a_rejected_message_is_dead_with_its_reason_and_its_key_goes_on(database: str, connection: psycopg.AsyncConnection) -> None:
    await put(database, *[Draft("t", str(n).encode(), key="k") for n in range(4)])
    sink = RecordingSink(lambda message: Rejected(Reason.TOO_LARGE, "over\0the limit") if message.payload == b"1" else PUBLISHED)
    async with pumping(database, sink):
        await eventually(lambda: is_empty(connection))
    assert sink.payloads() == [b"0", b"2", b"3"]
    cursor = await connection.execute("SELECT payload, reason, error, attempts FROM outbox.dead")
    assert await cursor.fetchall() == [(b"1", "too_large", "over\\0the limit", 1)]


async def test_a_failing_head_holds_its_own_key_and_no_other(database: str, connection: psycopg.AsyncConnection) -> None:
    await put(database, *[Draft("t", f"{key}{n}".encode(), key=key) for n in range(5) for key in ("bad", "good")])
    failures = Counter[bytes]()

    def judge(message: Message) -> Outcome:
        if message.payload == b"bad1" and failures[message.payload] < 3:
            failures[message.payload] += 1
            return Retry(Reason.REFUSED, "not now")
        return PUBLISHED

    sink = RecordingSink(judge)
    async with pumping(database, sink):
        await eventually(lambda: is_empty(connection))
    assert sink.payloads("good") == [f"good{n}".encode() for n in range(5)]
    assert sink.payloads("bad") == [f"bad{n}".encode() for n in range(5)], "those behind the head follow it, in order"
    assert failures[b"bad1"] == 3


async def test_those_that_come_later_join_the_queue_behind_the_head(database: str, connection: psycopg.AsyncConnection) -> None:
    healed = False
    sink = RecordingSink(lambda message: PUBLISHED if healed or message.key != "k" else Retry(Reason.REFUSED, "no", after=0.05))

    async def held() -> bool:
        return await count(connection, "held") == 3

    async with pumping(database, sink):
        for n in range(3):
            await put(database, Draft("t", str(n).encode(), key="k"), Draft("t", b"other", key=f"other-{n}"))
        await eventually(held)
        assert await count(connection, "messages") == 0
        assert sink.payloads().count(b"other") == 3
        healed = True
        await eventually(lambda: is_empty(connection))
    assert sink.payloads("k") == [b"0", b"1", b"2"]


async def test_a_keyless_retry_waits_alone_and_gives_up_after_its_attempts(database: str, connection: psycopg.AsyncConnection) -> None:
    await put(database, Draft("t", b"bad"), Draft("t", b"good"))
    sink = RecordingSink(lambda message: Retry(Reason.REFUSED, "no") if message.payload == b"bad" else PUBLISHED)
    async with pumping(database, sink, retry=Backoff(first=0.01, cap=0.02, max_attempts=3)):
        await eventually(lambda: is_empty(connection))
    assert sink.payloads() == [b"good"]
    cursor = await connection.execute("SELECT payload, reason, attempts, error FROM outbox.dead")
    assert await cursor.fetchall() == [(b"bad", "attempts", 3, "refused: no")]


async def test_a_keyed_retry_gives_up_after_its_attempts_and_its_key_goes_on(database: str, connection: psycopg.AsyncConnection) -> None:
    await put(database, *[Draft("t", str(n).encode(), key="k") for n in range(3)])
    sink = RecordingSink(lambda message: Retry(Reason.REFUSED, "no") if message.payload == b"0" else PUBLISHED)
    async with pumping(database, sink, retry=Backoff(first=0.01, cap=0.02, max_attempts=3)):
        await eventually(lambda: is_empty(connection))
    assert sink.payloads() == [b"1", b"2"]
    cursor = await connection.execute("SELECT payload, attempts FROM outbox.dead")
    assert await cursor.fetchall() == [(b"0", 3)]


async def test_a_scheduled_message_waits_for_its_time_and_does_not_hold_its_key(database: str, connection: psycopg.AsyncConnection) -> None:
    due = datetime.now(UTC) + timedelta(seconds=1)
    await put(database, Draft("t", b"later", key="k", deliver_at=due), Draft("t", b"now", key="k"))
    sink = RecordingSink()
    async with pumping(database, sink):
        await eventually(lambda: is_empty(connection))
        cursor = await connection.execute("SELECT clock_timestamp() >= %s", (due,))
        assert await cursor.fetchone() == (True,)
    assert sink.payloads() == [b"now", b"later"]


async def test_a_message_for_a_time_that_has_passed_is_for_now(database: str, connection: psycopg.AsyncConnection) -> None:
    """It keeps its place: it was never scheduled."""
    past = datetime.now(UTC) - timedelta(days=400)
    await put(database, Draft("t", b"0", key="k", deliver_at=past), Draft("t", b"1", key="k"), Draft("t", b"2", deliver_at=past))
    await connection.execute("SELECT outbox.put('t', '3', key => 'k', deliver_at => clock_timestamp() - interval '1 second')")
    sink = RecordingSink()
    async with pumping(database, sink):
        await eventually(lambda: is_empty(connection))
    assert sink.payloads() == [b"0", b"1", b"2", b"3"]
    assert await count(connection, "dead") == 0


async def test_an_expired_message_is_dead_and_never_sent(database: str, connection: psycopg.AsyncConnection) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    await put(database, Draft("t", b"late", expires_at=past), Draft("t", b"in time", expires_at=past + timedelta(hours=1)))
    sink = RecordingSink()
    async with pumping(database, sink):
        await eventually(lambda: is_empty(connection))
    assert sink.payloads() == [b"in time"]
    cursor = await connection.execute("SELECT payload, reason FROM outbox.dead")
    assert await cursor.fetchall() == [(b"late", "expired")]


async def test_priority_goes_first_and_keeps_key_order_within_itself(database: str, connection: psycopg.AsyncConnection) -> None:
    await put(database, *[Draft("t", f"{priority}-{n}".encode(), key="k", priority=priority) for n in range(3) for priority in (0, 5, 9)])
    sink = RecordingSink()
    async with pumping(database, sink):
        await eventually(lambda: is_empty(connection))
    assert sink.payloads() == [f"{priority}-{n}".encode() for priority in (9, 5, 0) for n in range(3)]


async def test_part_of_a_batch_released_stays_and_follows(database: str, connection: psycopg.AsyncConnection) -> None:
    """One of two destinations is away: its rows stay where they are, and the floor does not pass over them."""
    await put(database, *[Draft("t", str(n).encode(), key=f"{n % 2}") for n in range(20)])
    up = False
    sink = RecordingSink(lambda message: PUBLISHED if up or message.key == "0" else Released(Reason.UNAVAILABLE, "away"))

    async def half() -> bool:
        return await count(connection, "messages") == 10

    async with pumping(database, sink, sweep_every=None):
        await eventually(half)
        up = True
        await eventually(lambda: is_empty(connection))
    for key in ("0", "1"):
        assert sink.payloads(key) == [str(n).encode() for n in range(20) if f"{n % 2}" == key]


async def test_what_all_lanes_are_owned_by_leaves_nothing_to_ask_for(database: str, connection: psycopg.AsyncConnection) -> None:
    """Another claim of the same source is empty without a session, and the next one finds what was given back."""
    await put(database, Draft("orders.created", {}), Draft("orders.created", {}))
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outboxd' AND datname = current_database()"
    async with OutboxSource(database) as source:
        async with source.claim(1) as first:
            before = await (await connection.execute(sessions)).fetchone()
            async with source.claim(1) as second:
                assert (len(first.messages), len(second.messages)) == (1, 0)
                await second.settle([])
            assert await (await connection.execute(sessions)).fetchone() == before
        async with source.claim(2) as third:
            assert len(third.messages) == 2


async def test_what_one_claim_has_in_hand_is_not_asked_for_by_others_over_and_over(database: str) -> None:
    """Of one hot key: the claim beside that one finds nothing, and its end is no reason to look again."""
    await put(database, *[Draft("t", n, key="hot") for n in range(10)])
    async with OutboxSource(database, claims=2, poll_interval=3600.0) as source:
        async with source.claim(2) as batch:
            await batch.settle([PUBLISHED] * 2)
        async with AsyncExitStack() as in_hand:
            while not (batch := await in_hand.enter_async_context(source.claim(2))).messages:
                await in_hand.pop_all().aclose()  # of the other half of the lanes
            async with source.claim(2) as beside:
                assert not beside.messages
            waiting = asyncio.create_task(source.wait(3600.0))
            for _ in range(5):  # it begins, and would have ended
                await turn()
            assert not waiting.done()
        await asyncio.wait_for(waiting, 10)


async def test_a_claim_left_without_settling_gives_everything_back(database: str) -> None:
    await put(database, Draft("t", b"1", key="k"))
    async with OutboxSource(database) as first, OutboxSource(database) as second:
        async with first.claim(10) as batch:
            assert len(batch.messages) == 1
            async with second.claim(10) as other:
                assert not other.messages, "one claim owns the lane at a time"
        async with second.claim(10) as batch:
            assert [message.payload for message in batch.messages] == [b"1"]


async def test_a_pump_recovers_when_its_sessions_are_ended(database: str, connection: psycopg.AsyncConnection) -> None:
    sink = RecordingSink()
    async with pumping(database, sink):
        for n in range(5):
            await put(database, Draft("t", str(n).encode(), key="k"))
            await eventually(lambda: is_empty(connection))
            await connection.execute(END_SESSIONS)
    assert list(dict.fromkeys(sink.payloads())) == [str(n).encode() for n in range(5)]


async def test_the_attempts_of_a_head_are_its_own(database: str, connection: psycopg.AsyncConnection) -> None:
    """A scheduled message with a lower position falls due while its key is held: it becomes the head, with all its attempts before it."""
    due = datetime.now(UTC) + timedelta(seconds=0.5)
    await put(database, Draft("t", b"scheduled", key="k", deliver_at=due), Draft("t", b"failing", key="k"))
    failures = Counter[bytes]()

    def judge(message: Message) -> Outcome:
        if message.payload == b"scheduled" and failures[b"scheduled"] >= 2:
            return PUBLISHED
        failures[message.payload] += 1
        return Retry(Reason.REFUSED, "no", after=0.05)

    sink = RecordingSink(judge)
    async with pumping(database, sink, retry=Backoff(max_attempts=15)):
        await eventually(lambda: is_empty(connection))
    assert sink.payloads() == [b"scheduled"]
    cursor = await connection.execute("SELECT payload FROM outbox.dead")
    assert await cursor.fetchall() == [(b"failing",)]


@pytest.mark.parametrize("column", ["created_at", "deliver_at", "expires_at"])
@pytest.mark.parametrize("time", ["infinity", "-infinity", "9999-12-31 23:59:59Z", "0001-01-01 BC"])
async def test_a_time_that_no_client_can_hold_is_refused(connection: psycopg.AsyncConnection, column: str, time: str) -> None:
    """One such row would fail every claim that meets it."""
    with pytest.raises(psycopg.errors.CheckViolation, match="times_are_of_this_era"):
        await connection.execute(f"INSERT INTO outbox.messages (topic, payload, {column}) VALUES ('t', '', %s)", (time,))
