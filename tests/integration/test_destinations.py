"""Destinations fail alone: what goes to one that is away waits aside, in order, and the others do not wait for it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import psycopg

from bridges.breaker import GuardedSink
from bridges.ports import PUBLISHED, Outcome, Reason, Retry
from bridges.router import Route, Router
from bridges.topics import Pattern
from outbox import Draft, Outbox
from outbox.rows import Policy
from tests.engines.deadline import eventually
from tests.engines.destinations import Destinations
from tests.engines.pumps import count, is_empty, pumping
from tests.engines.sinks import DownSink

if TYPE_CHECKING:
    import pytest

    from bridges.message import Message

OUTBOX = Outbox()


async def put(dsn: str, *drafts: Draft) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await OUTBOX.aput_many(connection, drafts)


def drafts(topic: str, numbers: range, *, keys: int = 5) -> list[Draft]:
    return [Draft(topic, str(n).encode(), key=f"{topic}{n % keys}") for n in numbers]


def in_key_order(payloads: list[bytes], *, keys: int = 5) -> bool:
    numbers = [int(payload) for payload in payloads]
    return all(sorted(own) == own for own in ([n for n in numbers if n % keys == key] for key in range(keys)))


async def test_what_goes_to_one_that_is_away_waits_aside_and_the_others_do_not(
    database: str, connection: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    both = Destinations()
    async with pumping(database, both.router, **both.options):
        for start in range(0, 300, 100):
            await put(database, *drafts("s", range(start, start + 100)), *drafts("t", range(start, start + 100)))

        async def others_are_through() -> bool:
            return len(both.payloads("t")) == 300 and await count(connection, "messages") == 0

        await eventually(others_are_through)
        assert await count(connection, "held") == 300
        cursor = await connection.execute("SELECT DISTINCT destination, attempts, error FROM outbox.holds WHERE error IS NOT NULL")
        assert await cursor.fetchall() == [("s", 0, "unavailable: down")]
        both.down.up = True
        await eventually(lambda: is_empty(connection))
    assert len(both.payloads("s")) == 300
    assert in_key_order(both.payloads("s"))
    assert in_key_order(both.payloads("t"))
    assert await count(connection, "dead") == 0
    logged = [record.getMessage() for record in caplog.records if record.name == "outboxd.breaker"]
    assert logged[0] == "sink s: outage begins: unavailable: down"
    assert logged[1].startswith("sink s: outage ends")
    assert len(logged) == 2


async def test_a_key_that_goes_to_both_keeps_its_order(database: str, connection: psycopg.AsyncConnection) -> None:
    both = Destinations()
    topics = ["t", "s", "t", "s", "s", "t"]
    async with pumping(database, both.router, batch=2, **both.options):
        await put(database, *[Draft(topic, str(n).encode(), key="k") for n, topic in enumerate(topics)])

        async def held() -> bool:
            return await count(connection, "held") == 5

        await eventually(held)
        assert [message.payload for message in both.record.published] == [b"0"]
        both.down.up = True
        await eventually(lambda: is_empty(connection))
    assert both.record.payloads() == [b"0", b"1", b"2", b"3", b"4", b"5"]


async def test_newer_ones_wait_behind_those_that_waited(database: str, connection: psycopg.AsyncConnection) -> None:
    """Also without a key: the queue of a destination is older than what comes now."""
    both = Destinations()
    async with pumping(database, both.router, batch=10, claims=1, **both.options):
        await put(database, *[Draft("s", str(n).encode(), key="k") for n in range(100)])

        async def held() -> bool:
            return await count(connection, "held") == 100

        await eventually(held)
        await put(database, *[Draft("s", str(n).encode(), key="k") for n in range(100, 150)])
        both.down.up = True
        await eventually(lambda: is_empty(connection))
    assert both.record.payloads() == [str(n).encode() for n in range(150)]


async def test_no_more_is_set_aside_than_allowed(
    database: str, connection: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    both = Destinations()
    async with pumping(database, both.router, batch=10, max_held=50, **both.options):
        await put(database, *drafts("s", range(200)))

        async def full() -> bool:
            return any("max_held" in record.getMessage() for record in caplog.records)

        await eventually(full)
        assert 50 <= await count(connection, "held") <= 50 + 2 * 10
        assert await count(connection, "messages") == 200 - await count(connection, "held")
        both.down.up = True
        await eventually(lambda: is_empty(connection))
    assert len(both.payloads("s")) == 200
    assert in_key_order(both.payloads("s"))


async def test_several_pumps_agree_about_what_waits(database: str, connection: psycopg.AsyncConnection) -> None:
    pumps = [Destinations() for _ in range(3)]
    for other in pumps[1:]:  # one record
        other.record.published = pumps[0].record.published
    async with AsyncExitStack() as stack:
        for both in pumps:
            await stack.enter_async_context(pumping(database, both.router, batch=7, **both.options))
        await put(database, *drafts("s", range(200)), *drafts("t", range(200)))

        async def others_are_through() -> bool:
            return len(pumps[0].payloads("t")) == 200

        await eventually(others_are_through)
        pumps[1].down.up = True  # for one of them it is back; the others still think that it is away
        await put(database, *drafts("s", range(200, 300)))

        async def all_through() -> bool:
            return len(pumps[0].payloads("s")) == 300

        await eventually(all_through)
        pumps[0].down.up = pumps[2].down.up = True
        await eventually(lambda: is_empty(connection))
    assert len(pumps[0].record.published) == 500
    assert in_key_order(pumps[0].payloads("s"))


async def test_a_message_that_fails_in_the_queue_holds_its_own_key_only(database: str, connection: psycopg.AsyncConnection) -> None:
    healed = False

    def judge(message: Message) -> Outcome:
        return PUBLISHED if healed or message.payload != b"2" else Retry(Reason.REFUSED, "no", after=0.05)

    both = Destinations(judge)
    async with pumping(database, both.router, batch=8, **both.options):
        await put(database, *drafts("s", range(40)))

        async def held() -> bool:
            return await count(connection, "held") == 40

        await eventually(held)
        both.down.up = True

        async def others_are_through() -> bool:
            return len(both.payloads("s")) == 32

        await eventually(others_are_through)

        async def alone() -> bool:  # published is not yet settled
            cursor = await connection.execute("SELECT hold, count(*) FROM outbox.held GROUP BY hold")
            return await cursor.fetchall() == [("key:s2", 8)]

        await eventually(alone)
        healed = True
        await eventually(lambda: is_empty(connection))
    assert in_key_order(both.payloads("s"))


async def test_the_queue_of_a_sink_that_is_no_longer_configured_is_not_stranded(database: str, connection: psycopg.AsyncConnection) -> None:
    both = Destinations()
    async with pumping(database, both.router, **both.options):
        await put(database, *drafts("s", range(20)))

        async def held() -> bool:
            return await count(connection, "held") == 20

        await eventually(held)
    both.down.up = True
    async with pumping(database, both.router):  # knows of one destination, which has no name
        await eventually(lambda: is_empty(connection))
    assert len(both.payloads("s")) == 20


async def test_a_hold_whose_rows_somebody_has_deleted_stops_nobody(database: str, connection: psycopg.AsyncConnection) -> None:
    """By hand, in SQL: the hold is there, due, and empty; of a destination that is to be tried, and of a key."""
    both = Destinations()
    async with pumping(database, both.router, **both.options):
        await put(database, *drafts("s", range(50)))

        async def held() -> bool:
            return await count(connection, "held") == 50

        await eventually(held)
        await connection.execute("BEGIN; SELECT lane FROM outbox.lanes FOR UPDATE; DELETE FROM outbox.held; COMMIT")
        await connection.execute(
            "INSERT INTO outbox.holds (hold, due_at, attempts, lane) SELECT 'key:' || n, now(), 0, n FROM generate_series(0, 63) AS n"
        )
        await put(database, *drafts("t", range(50)))

        async def others_are_through() -> bool:
            return len(both.payloads("t")) == 50

        await eventually(others_are_through)
        both.down.up = True
        await put(database, *drafts("s", range(50, 60)))
        await eventually(lambda: is_empty(connection))
    assert len(both.payloads("s")) == 10


async def test_rows_that_keep_no_order_do_not_mislead_their_key(database: str, connection: psycopg.AsyncConnection) -> None:
    """A key's rows of a route without order may wait for one destination while its ordered rows wait for another."""
    both = Destinations()
    policy = {"s": Policy(destination="s", ordered=False), "t": Policy(destination="t")}
    both.router = Router(
        [
            Route(Pattern("s"), GuardedSink(both.down, both.breakers[0]), ordered=False),
            Route(Pattern("t"), GuardedSink(other := DownSink(both.record), both.breakers[1])),
        ]
    )
    async with pumping(database, both.router, policy=policy.__getitem__, breakers=both.breakers):
        await put(database, Draft("s", b"loose", key="k"), Draft("t", b"0", key="k"))

        async def held(wanted: int = 2) -> bool:
            return await count(connection, "held") == wanted

        await eventually(held)
        await put(database, Draft("t", b"1", key="k"))
        await eventually(lambda: held(3))
        cursor = await connection.execute("SELECT DISTINCT hold ~ '^sink:t/' FROM outbox.held WHERE topic = 't'")
        assert await cursor.fetchall() == [(True,)]
        both.down.up = True

        async def loose() -> bool:
            return both.record.payloads() == [b"loose"]

        await eventually(loose)
        other.up = True
        await eventually(lambda: is_empty(connection))
    assert both.record.payloads() == [b"loose", b"0", b"1"]
