"""Dead letters that are put back keep the order of their keys; none is lost or sent twice, whoever else is at it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import psycopg
import pytest

from bridges.envelope import REPLAYED
from bridges.jetstream import JetStream, JetStreamSink
from bridges.ports import PUBLISHED, Outcome, Reason, Rejected
from outbox.deadletters import Selection, requeue
from tests.engines.deadline import eventually
from tests.engines.letters import KEPT, bury, hold, put, rows
from tests.engines.pumps import is_empty, pumped, pumping, sleeping
from tests.engines.sinks import RecordingSink

if TYPE_CHECKING:
    from bridges.message import Message
    from tests.conftest import Stream
    from tests.engines.letters import Connection

ALL = Selection()


# --- the order within a key


async def test_a_key_without_a_hold_gets_one_and_goes_out_in_order(database: str, connection: Connection) -> None:
    """What is still in the FIFO follows at its own place: the later waits, and the earlier goes ahead."""
    await put(connection, *"01234")
    await put(connection, "other", key="j")
    await bury(connection, "1", "3")
    done = await requeue(connection, ALL, everything=True)
    assert [letter.topic for letter in done.letters] == ["t", "t"]
    assert (done.expired, done.waiting) == ([], {})
    holds = await rows(connection, "SELECT hold, head, attempts, due_at <= clock_timestamp(), destination FROM outbox.holds")
    assert holds == [("key:k", None, 0, True, None)]
    held = await rows(connection, "SELECT payload, hold FROM outbox.held ORDER BY position")
    assert held == [(payload, "key:k") for payload in (b"0", b"1", b"2", b"3")]
    payloads = await pumped(database, connection)
    assert [payload for payload in payloads if payload != "other"] == list("01234")
    assert payloads.count("other") == 1


async def test_the_requeued_goes_before_a_failing_head_which_keeps_its_attempts(database: str, connection: Connection) -> None:
    await put(connection, *"0123")
    await bury(connection, "0")
    await hold(connection, "key:k", "1", "2", "3", head="1", attempts=3)
    await requeue(connection, Selection(key="k"))
    assert await rows(
        connection, "SELECT head = (SELECT min(position) FROM outbox.held WHERE payload = '1'), attempts FROM outbox.holds"
    ) == [(True, 3)]
    assert await pumped(database, connection) == list("0123")


async def test_behind_a_failing_head_the_time_of_its_next_try_stays(connection: Connection) -> None:
    await put(connection, *"012")
    await bury(connection, "1")
    await hold(connection, "key:k", "0", "2", head="0", attempts=3)
    before = await rows(connection, "SELECT hold, head, due_at, attempts FROM outbox.holds")
    await requeue(connection, Selection(key="k"))
    assert await rows(connection, "SELECT hold, head, due_at, attempts FROM outbox.holds") == before
    assert await rows(connection, "SELECT payload FROM outbox.held ORDER BY position") == [(b"0",), (b"1",), (b"2",)]


@pytest.mark.parametrize("followers", [["1", "2"], []])
async def test_a_key_that_waits_for_an_operator_goes_on_with_its_dead_letter(
    database: str, connection: Connection, followers: list[str]
) -> None:
    await put(connection, *"012")
    await bury(connection, "0")
    await hold(connection, "key:k", *followers, head="0", due=None)
    done = await requeue(connection, Selection(key="k"))
    assert done.waiting == {}
    assert await rows(connection, "SELECT head, attempts, due_at <= clock_timestamp() FROM outbox.holds") == [(None, 0, True)]
    assert await pumped(database, connection) == list("012")


async def test_a_key_waits_on_for_another_dead_letter_and_says_so(database: str, connection: Connection) -> None:
    """An earlier dead letter of the key, which did not hold it, does not take it past the one that does."""
    first, *_ = await put(connection, *"0123")
    await bury(connection, "0", "2")
    await hold(connection, "key:k", "3", head="2", due=None)
    ((position,),) = await rows(connection, "SELECT position FROM outbox.dead WHERE payload = '2'")
    done = await requeue(connection, Selection(ids=[first]))
    assert done.waiting == {"k": position}
    assert await rows(connection, "SELECT due_at FROM outbox.holds") == [(None,)]
    done = await requeue(connection, Selection(key="k"))
    assert done.waiting == {}
    assert await pumped(database, connection) == list("0123")


async def test_a_key_in_the_queue_of_a_destination_joins_that_queue(database: str, connection: Connection) -> None:
    """All held rows of a key are in one hold, and its time is not for an operator to say."""
    await put(connection, *"012")
    await bury(connection, "0")
    ((lane,),) = await rows(connection, "SELECT lane FROM outbox.dead")
    queue = f"sink:events/{lane}"
    await hold(connection, queue, "1", destination="events")
    before = await rows(connection, "SELECT * FROM outbox.holds")
    await requeue(connection, Selection(key="k"))
    assert await rows(connection, "SELECT * FROM outbox.holds") == before
    assert await rows(connection, "SELECT payload, hold FROM outbox.held ORDER BY position") == [(b"0", queue), (b"1", queue)]
    await connection.execute("UPDATE outbox.holds SET due_at = clock_timestamp()")
    assert await pumped(database, connection) == list("012")


async def test_without_a_key_they_are_due_at_once_in_the_order_of_the_outbox(database: str, connection: Connection) -> None:
    payloads = [f"{n:02}" for n in range(20)]
    await put(connection, *payloads, key=None)
    await bury(connection, *reversed(payloads))
    await requeue(connection, ALL, everything=True)
    assert await rows(connection, "SELECT DISTINCT attempts, due_at <= clock_timestamp() FROM outbox.deferred") == [(0, True)]
    assert await pumped(database, connection) == payloads


# --- what a letter was, it is again


async def test_a_letter_that_kept_no_order_holds_back_no_key(database: str, connection: Connection) -> None:
    """Of a route with order = "none": its key has no hold, nor does it join the one that its key has."""
    await put(connection, *"012")
    await bury(connection, "0")
    await connection.execute("UPDATE outbox.dead SET ordered = false")
    await hold(connection, "key:k", "1", head="1", attempts=3)
    before = await rows(connection, "SELECT * FROM outbox.holds")
    await requeue(connection, Selection(key="k"))
    assert await rows(connection, "SELECT * FROM outbox.holds") == before
    assert await rows(connection, "SELECT payload, key, due_at <= clock_timestamp() FROM outbox.deferred") == [(b"0", "k", True)]
    assert await rows(connection, "SELECT payload FROM outbox.held") == [(b"1",)]
    assert await rows(connection, "SELECT payload FROM outbox.messages") == [(b"2",)]


async def test_the_hold_of_its_key_is_preferred_to_the_queue_of_a_destination(connection: Connection) -> None:
    """As the pump prefers it."""
    await put(connection, *"01")
    await bury(connection, "0")
    ((lane,),) = await rows(connection, "SELECT lane FROM outbox.dead")
    await hold(connection, f"sink:events/{lane}", "1", destination="events")
    await hold(connection, "key:k", head="0", due=None)
    await requeue(connection, Selection(key="k"))
    assert await rows(connection, "SELECT hold FROM outbox.held WHERE payload = '0'") == [("key:k",)]


async def test_an_earlier_one_that_is_scheduled_stays_so(connection: Connection) -> None:
    """A scheduled message is not of its key's order, and is not sent before its time."""
    await put(connection, *"012")
    await bury(connection, "2")
    await connection.execute("UPDATE outbox.messages SET deliver_at = clock_timestamp() + interval '1 hour' WHERE payload = '0'")
    await connection.execute("UPDATE outbox.messages SET deliver_at = clock_timestamp() - interval '1 hour' WHERE payload = '1'")
    await requeue(connection, Selection(key="k"))
    assert await rows(connection, "SELECT payload FROM outbox.held ORDER BY position") == [(b"1",), (b"2",)]
    assert await rows(connection, "SELECT payload FROM outbox.messages") == [(b"0",)]


async def test_a_dry_run_tells_of_the_keys_that_would_wait_on(connection: Connection) -> None:
    first, *_ = await put(connection, *"0123")
    await bury(connection, "0", "2")
    await hold(connection, "key:k", "3", head="2", due=None)
    ((position,),) = await rows(connection, "SELECT position FROM outbox.dead WHERE payload = '2'")
    assert (await requeue(connection, Selection(ids=[first]), dry_run=True)).waiting == {"k": position}
    assert (await requeue(connection, Selection(key="k"), dry_run=True)).waiting == {}


# --- with a pump at work


@pytest.mark.parametrize("key", ["k", None])
async def test_a_pump_that_sleeps_is_woken(database: str, connection: Connection, key: str | None) -> None:
    await put(connection, "0", key=key)
    await bury(connection, "0")
    sink = RecordingSink()

    async with pumping(database, sink, poll_interval=60):
        await eventually(lambda: sleeping(connection), what="the pump to sleep")
        await requeue(connection, ALL, everything=True)
        await eventually(lambda: is_empty(connection), within=10)
    assert sink.payloads() == [b"0"]


async def test_beside_two_pumps_nothing_is_lost_nothing_twice_and_every_key_in_order(database: str, connection: Connection) -> None:
    """Every fourth message is refused once; operators requeue what they find, two at a time, while new ones come."""
    refused = set[bytes]()
    sent: dict[str, list[int]] = {}

    def judge(message: Message) -> Outcome:
        number = int(message.payload)
        if number % 4 == 0 and message.payload not in refused:
            refused.add(message.payload)
            return Rejected(Reason.REFUSED, "once")
        sent.setdefault(message.key or "", []).append(number)
        return PUBLISHED

    async def operate(stop: asyncio.Event) -> int:
        done = 0
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as own:
            while not stop.is_set():
                done += len((await requeue(own, ALL, everything=True)).letters)
        return done

    async def nothing_is_left() -> bool:
        """At one moment: a letter is somewhere else at the next."""
        tables = " UNION ALL ".join(f"SELECT FROM outbox.{table}" for table in ("messages", "deferred", "held", "holds", "dead"))
        return await rows(connection, f"SELECT count(*) FROM ({tables}) AS everything") == [(0,)]

    sink, stop = RecordingSink(judge), asyncio.Event()
    async with pumping(database, sink, batch=7, claims=2), pumping(database, sink, batch=7, claims=2):
        operators = [asyncio.create_task(operate(stop)) for _ in range(2)]
        for number in range(0, 400, 10):
            await put(connection, *[str(one) for one in range(number, number + 10)], key=f"key-{number // 10 % 5}")
        await eventually(nothing_is_left, within=60)
        stop.set()
        requeued = sum(await asyncio.gather(*operators))
    assert requeued == len(refused) == 100
    assert Counter(sink.payloads()) == {str(one).encode(): 1 for one in range(400)}
    for numbers in sent.values():
        accepted = [number for number in numbers if number % 4]
        assert accepted == sorted(accepted)


# --- JetStream


async def test_only_a_fresh_copy_passes_the_duplicate_window(database: str, connection: Connection, stream: Stream) -> None:
    """The broker has stored the message and its acknowledgement was lost often enough: sent again it is a duplicate, unless it is fresh."""
    import nats

    client = await nats.connect(stream.url)
    (message_id,) = await put(connection, "0", topic="orders")

    async def stored() -> int:
        return (await client.jetstream().stream_info(stream.name)).state.messages

    async with JetStream([stream.url]) as jetstream:
        sink = JetStreamSink(jetstream, stream=stream.name, subject=stream.subject)
        await connection.execute("CREATE TABLE copied AS SELECT * FROM outbox.messages")
        async with pumping(database, sink):
            await eventually(lambda: is_empty(connection))
        for fresh, expected in ((False, 1), (True, 2), (True, 3)):
            await connection.execute(f"INSERT INTO outbox.dead ({KEPT}, reason, attempts) SELECT {KEPT}, 'attempts', 20 FROM copied")
            await requeue(connection, Selection(ids=[message_id]), fresh=fresh)
            async with pumping(database, sink):
                await eventually(lambda: is_empty(connection))
            assert await stored() == expected
        last = await client.jetstream().get_msg(stream.name, seq=3)
        assert last.headers is not None
        assert last.headers["outbox-id"] == str(message_id)
        assert last.headers["Nats-Msg-Id"] == f"{message_id}.{last.headers[REPLAYED]}"
    await client.close()
