"""Dead letters: found, put back or dropped by an operator; what is refused, and that it changes nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.rows import dict_row

from bridges.errors import ConfigurationError
from bridges.message import uuid7
from bridges.ports import Reason
from bridges.topics import Pattern
from outbox import deadletters
from outbox.deadletters import (
    LanesTaken,
    NotDead,
    Selection,
    drop,
    drop_in_batches,
    list_dead,
    requeue,
    requeue_in_batches,
    show_dead,
)
from outbox.replay import replay
from tests.engines.letters import bury, everything, hold, put, rows
from tests.engines.pumps import count, pumped

if TYPE_CHECKING:
    from tests.engines.letters import Connection

ALL = Selection()


# --- finding


async def test_each_thing_that_can_be_selected_by(connection: Connection) -> None:
    (first,) = await put(connection, "a", key="k", topic="orders.created")
    (second,) = await put(connection, "b", key="j", topic="orders.eu.created")
    (third,) = await put(connection, "c", key=None, topic="users.created")
    await bury(connection, "a", "b")
    ((between,),) = await rows(connection, "SELECT clock_timestamp()")
    await bury(connection, "c", reason="expired")

    async def found(**selection: Any) -> list[Any]:
        return [letter.id for letter in await list_dead(connection, Selection(**selection))]

    assert await found() == [third, second, first], "the latest first"
    assert await found(ids=[first, str(third)]) == [third, first]
    assert await found(topics="orders.>") == [second, first]
    assert await found(topics="*.created") == [third, first]
    assert await found(key="j") == [second]
    assert await found(reason="expired") == [third]
    assert await found(reason=Reason.TOO_LARGE, topics="*.*") == [first]
    assert await found(since=between) == [third]
    assert await found(until=between) == [second, first]
    assert await found(since=between - timedelta(days=1), until=between + timedelta(days=1)) == [third, second, first]
    assert [letter.id for letter in await list_dead(connection, limit=2)] == [third, second]


async def test_a_list_has_no_payloads_and_what_is_shown_has(connection: Connection) -> None:
    (message_id,) = await put(connection, "secret", key="k", topic="orders.created")
    await bury(connection, "secret")
    (listed,) = await list_dead(connection)
    assert (listed.payload, listed.size) == (None, 6)
    (shown,) = await show_dead(connection, message_id)
    assert shown.payload == b"secret"
    assert (shown.topic, shown.key, shown.reason, shown.error, shown.attempts) == ("orders.created", "k", "too_large", "over the limit", 1)
    assert await show_dead(connection, uuid7()) == []


TOPICS = [
    "a",
    "a.b",
    "a.b.c",
    "aXb",
    "a-b",
    "a+b",
    "a.b+",
    "a|b",
    "(a)",
    "[a]",
    "^a",
    "a\\b",
    "a{2}",
    "aa",
    "A.b",
    "ä.b",
    "a#",
    "a&b.~",
    "***=a",
]
PATTERNS = [">", "*", "a.*", "a.>", "*.b", "*.*.>", "a.b", "a+b", "a|b", "(a)", "[a]", "^a", "a\\b", "a{2}", "ä.*", "a#", "a&b.~", "A.*"]


async def test_a_pattern_selects_what_the_router_would_route(connection: Connection) -> None:
    for topic in TOPICS:
        if "*" not in topic:
            await put(connection, topic, topic=topic)
    await bury(connection, *TOPICS)
    dead = [letter.topic for letter in await list_dead(connection)]
    assert len(dead) == len(TOPICS) - 1
    for pattern in PATTERNS:
        found = {letter.topic for letter in await list_dead(connection, Selection(topics=pattern))}
        assert found == {topic for topic in dead if Pattern(pattern).matches(topic)}, pattern


# --- what is refused, and left alone


async def test_a_second_requeue_changes_nothing_and_says_so(connection: Connection) -> None:
    ids = await put(connection, *"01")
    await bury(connection, *"01")
    await requeue(connection, Selection(ids=ids))
    before = await everything(connection)
    with pytest.raises(NotDead, match=f"{ids[0]}: is not a dead letter") as refused:
        await requeue(connection, Selection(ids=ids))
    assert refused.value.ids == ids
    assert (await requeue(connection, Selection(key="k"))).letters == []
    assert await everything(connection) == before


@pytest.mark.parametrize("act", [requeue, drop])
async def test_one_id_that_is_not_dead_stops_the_others(connection: Connection, act: Any) -> None:
    dead, alive = await put(connection, *"01")
    await bury(connection, "0")
    before = await everything(connection)
    with pytest.raises(NotDead) as refused:
        await act(connection, Selection(ids=[dead, alive, dead]))
    assert refused.value.ids == [alive]
    with pytest.raises(NotDead):
        await act(connection, Selection(ids=[dead], key="another"))
    assert await everything(connection) == before


@pytest.mark.parametrize("act", [requeue, drop])
async def test_a_dry_run_changes_nothing_and_tells_what_would_be_done(connection: Connection, act: Any) -> None:
    ids = await put(connection, *"012")
    await bury(connection, *"01")
    await hold(connection, "key:k", "2", head="0", due=None)
    before = await everything(connection)
    told = await act(connection, ALL, everything=True, dry_run=True)
    assert [letter.id for letter in getattr(told, "letters", told)] == ids[:2]
    assert await everything(connection) == before
    with pytest.raises(NotDead):
        await act(connection, Selection(ids=[ids[2]]), dry_run=True)


@pytest.mark.parametrize("act", [requeue, drop])
async def test_everything_must_be_said(connection: Connection, act: Any) -> None:
    with pytest.raises(ConfigurationError, match="selection: nothing is given"):
        await act(connection, ALL)
    with pytest.raises(ConfigurationError, match="selection: everything, or key"):
        await act(connection, Selection(key="k"), everything=True)


async def test_the_expired_stay_dead_unless_they_are_meant(database: str, connection: Connection) -> None:
    """Put back as they are, the pump would only give them up again."""
    await put(connection, *"01", key=None)
    await bury(connection, *"01", reason="expired")
    await connection.execute("UPDATE outbox.dead SET expires_at = clock_timestamp() - interval '1 day' WHERE payload = '0'")
    await connection.execute("UPDATE outbox.dead SET expires_at = clock_timestamp() + interval '1 day' WHERE payload = '1'")
    done = await requeue(connection, Selection(reason="expired"))
    assert ([letter.expired for letter in done.letters], [letter.expired for letter in done.expired]) == ([False], [True])
    assert await rows(connection, "SELECT expires_at IS NOT NULL FROM outbox.deferred") == [(True,)]
    done = await requeue(connection, Selection(reason="expired"), expired=True)
    assert ([letter.expired for letter in done.letters], done.expired) == ([True], [])
    assert sorted(await pumped(database, connection)) == ["0", "1"]


async def test_a_lane_that_is_not_let_go_is_a_clear_error_and_changes_nothing(database: str, connection: Connection) -> None:
    await put(connection, "0")
    await bury(connection, "0")
    before = await everything(connection)
    async with await psycopg.AsyncConnection.connect(database) as pump:
        await pump.execute("SELECT lane FROM outbox.lanes FOR UPDATE SKIP LOCKED")
        for act in (requeue, drop):
            with pytest.raises(LanesTaken, match="has held a lane of these keys"):
                await act(connection, Selection(key="k"), lock_timeout=0.05)
    assert await everything(connection) == before
    assert len((await requeue(connection, Selection(key="k"))).letters) == 1


async def test_inside_a_transaction_it_shares_its_fate_and_leaves_its_settings(database: str, connection: Connection) -> None:
    await put(connection, "0")
    await bury(connection, "0")
    before = await everything(connection)
    async with await psycopg.AsyncConnection.connect(database, row_factory=dict_row) as own:
        await own.execute("SET LOCAL lock_timeout = '1234ms'")
        assert len((await requeue(own, Selection(key="k"), fresh=True)).letters) == 1
        assert await (await own.execute("SHOW lock_timeout")).fetchone() == {"lock_timeout": "1234ms"}
        with pytest.raises(NotDead):
            await requeue(own, Selection(ids=[uuid7()]))
        await own.rollback()
        assert await everything(connection) == before
        await requeue(own, Selection(key="k"))
    assert await count(connection, "dead") == 0, "on a connection without one, it commits its own"


async def test_a_snapshot_from_before_the_lanes_is_refused(database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as own:
        await own.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        with pytest.raises(ConfigurationError, match="connection: its transactions are repeatable read"):
            await requeue(own, ALL, everything=True)


async def test_programs_find_the_replay_here_too() -> None:
    assert deadletters.replay is replay


# --- drop


@pytest.mark.parametrize("followers", [["1", "2"], []])
async def test_dropping_the_dead_letter_lets_its_key_go_on(database: str, connection: Connection, followers: list[str]) -> None:
    await put(connection, *"012")
    await bury(connection, "0")
    await hold(connection, "key:k", *followers, head="0", due=None)
    await connection.execute("UPDATE outbox.holds SET low = head")  # the floor of what has left
    assert len(await drop(connection, Selection(key="k"))) == 1
    assert await count(connection, "dead") == 0
    assert await count(connection, "holds") == bool(followers), "a hold with nobody in it is over"
    assert await pumped(database, connection) == ["1", "2"]


async def test_dropping_another_dead_letter_of_the_key_does_not(connection: Connection) -> None:
    first, *_ = await put(connection, *"012")
    await bury(connection, *"01")
    await hold(connection, "key:k", "2", head="1", due=None)
    await drop(connection, Selection(ids=[first]))
    assert await rows(connection, "SELECT due_at FROM outbox.holds") == [(None,)]


async def test_dropping_leaves_a_failing_head_alone(connection: Connection) -> None:
    await put(connection, *"012")
    await bury(connection, "0")
    await hold(connection, "key:k", "1", "2", head="1", attempts=2)
    before = await rows(connection, "SELECT * FROM outbox.holds")
    await drop(connection, ALL, everything=True)
    assert await rows(connection, "SELECT * FROM outbox.holds") == before


# --- a great many of them


async def test_in_batches_no_transaction_owns_more_than_a_lane_and_every_key_is_whole(database: str, connection: Connection) -> None:
    """All the letters of a key go back at once, whatever the size of a batch: newer rows of it cannot come between."""
    for key in ("a", "b", "c"):
        await put(connection, *(f"{key}{n}" for n in range(5)), key=key)
    await put(connection, *map(str, range(4)), key=None)
    ((lanes,),) = await rows(connection, "SELECT count(DISTINCT lane) FROM outbox.messages")
    await bury(connection, *(f"{key}{n}" for key in "abc" for n in range(5)), *map(str, range(4)))
    before = await everything(connection)
    batches = [done async for done in requeue_in_batches(connection, ALL, everything=True, size=2, dry_run=True)]
    assert await everything(connection) == before
    keys: list[str | None] = []
    seen: list[int] = []
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as own:
        batches = []
        async for done in requeue_in_batches(own, ALL, everything=True, size=2):
            assert len({letter.lane for letter in done.letters}) == 1
            batches.append(done)
            keys += {letter.key for letter in done.letters if letter.key is not None}
            seen.append(await count(connection, "dead"))
    assert len(batches) >= lanes
    assert sorted(key for key in keys if key) == ["a", "b", "c"], "a key is in one batch"
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 0
    assert seen[0] > 0, "each batch has committed by itself"
    payloads = await pumped(database, connection)
    for key in "abc":
        assert [payload for payload in payloads if payload.startswith(key)] == [f"{key}{n}" for n in range(5)]


async def test_in_batches_a_claim_that_does_not_end_stops_its_own_lane_only(database: str, connection: Connection) -> None:
    """What was done before is done, and the error says so."""
    for number in range(20):
        await put(connection, str(number), key=str(number))
    await bury(connection, *map(str, range(20)))
    ((last,),) = await rows(connection, "SELECT max(lane) FROM outbox.dead")
    ((others,),) = await rows(connection, "SELECT count(*) FROM outbox.dead WHERE lane < %s", last)
    async with await psycopg.AsyncConnection.connect(database) as pump:
        await pump.execute("SELECT lane FROM outbox.lanes WHERE lane = %s FOR UPDATE", (last,))
        done = 0
        with pytest.raises(LanesTaken):
            async for letters in drop_in_batches(connection, ALL, everything=True, lock_timeout=0.05):
                done += len(letters)
    assert done == others
    assert await count(connection, "dead") == 20 - others


@pytest.mark.parametrize("act", [requeue_in_batches, drop_in_batches])
async def test_in_batches_by_id_it_is_all_or_nothing(connection: Connection, act: Any) -> None:
    ids = await put(connection, *"012")
    await bury(connection, *"01")
    before = await everything(connection)
    with pytest.raises(NotDead):
        _ = [done async for done in act(connection, Selection(ids=ids), size=1)]
    assert await everything(connection) == before
    assert len([done async for done in act(connection, Selection(ids=ids[:2]), size=1)]) == 1
    assert await count(connection, "dead") == 0


@pytest.mark.parametrize("act", [requeue_in_batches, drop_in_batches])
async def test_in_batches_a_transaction_that_is_open_is_refused(database: str, act: Any) -> None:
    """It would own lane after lane, and let go of none."""
    async with await psycopg.AsyncConnection.connect(database) as own:
        await own.execute("SELECT")
        with pytest.raises(ConfigurationError, match="connection: has a transaction open"):
            _ = [done async for done in act(own, ALL, everything=True)]
