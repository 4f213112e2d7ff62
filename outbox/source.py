"""The pump's source: lanes, claim, settle, floor. One transaction a batch, on connections of its own."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, LiteralString, Self

import psycopg

from bridges.backoff import Backoff
from bridges.deadline import happens
from bridges.errors import SourceUnavailable, told
from bridges.message import NO_HEADERS, Message
from outbox import sql
from outbox.batch import NOTHING, OutboxBatch
from outbox.destinations import Destinations
from outbox.doorbell import Doorbell
from outbox.floors import Floors, Seen
from outbox.rows import SAME_FOR_ALL, Policy, Row, Surroundings, array_of, hold_of_destination
from outbox.settlement import Settlement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from bridges.breaker import Breaker
    from bridges.ports import Batch
    from outbox.rows import Table

log = logging.getLogger("outboxd.source")

LANES: Final = 64

_OF_HOLDS: Final = 0.75
"""The share of a claim that holds may fill: a long queue drains at most of the pump's speed, and what is newer still moves."""
_FRUITLESS: Final = 5
"""Claims in a row that find nothing although something is due, after which holds without rows are looked for in the lanes of the next;
odd, so that two pumps that share the lanes look in one half after the other."""
_ROUNDS: Final = 16
"""How often a claim that only sets rows aside goes on at once; then it shows itself, so that nobody takes it for stuck."""

RETRY: Final = Backoff(first=1.0, cap=300.0, max_attempts=20)
"""The default for a `Retry`: at most an hour in all, since nobody knows whose fault it is."""


class OutboxSource:
    """Claims rows of the outbox.

    A claim is a transaction: it owns lanes, and so keys, for as long as it lives, and a pump that dies, hangs or is cut off loses it.
    Any number of sources, in any number of processes, share one outbox.

    Args:
        dsn: a libpq connection string or URI of the primary.
        schema: where the outbox's tables are.
        claims: how many claims the Bridge keeps in flight: the lanes are shared among them when there is much to do.
        poll_interval: seconds between looks while nothing rings.
        doorbell: False behind a transaction pooler, which cannot LISTEN: messages are then noticed by polling.
        retry: how long a `Retry` waits, and after how many attempts it is dead.
        claim_timeout: seconds after which Postgres ends a claim whose pump says nothing. Above the Bridge's ``publish_timeout``.
        sweep_every: seconds between claims that ignore the floor; see `outbox.floors`.
        policy: what a topic's route says of its messages.
        breakers: of the destinations that `policy` names: what goes to one that is away is set aside, and the others go on.
        max_held: rows that may be set aside for one destination; beyond it they stay in the queue.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "outbox",
        claims: int = 2,
        poll_interval: float = 1.0,
        doorbell: bool = True,
        retry: Backoff = RETRY,
        claim_timeout: float = 60.0,
        sweep_every: float | None = 10.0,
        policy: Callable[[str], Policy] = lambda _: SAME_FOR_ALL,
        breakers: Iterable[Breaker] = (),
        max_held: int = 1_000_000,
    ) -> None:
        self._dsn = dsn
        self._schema = schema
        self._share = -(-LANES // claims)
        self._most_tries = max(1, claims - 1)
        self._poll_interval = poll_interval
        self._listen = doorbell
        self._retry = retry
        self._claim_timeout = claim_timeout
        self._policy = policy
        self._destinations = Destinations(breakers, schema=schema, lanes=LANES, max_held=max_held)
        self._floors = Floors(sweep_every=sweep_every)
        self._doorbell = Doorbell(self._connect, self._look, schema=schema, poll_interval=poll_interval, listen=doorbell)
        self._idle: list[psycopg.AsyncConnection[Any]] = []
        self._next_lane = 0
        self._busy = False
        self._more = False
        self._flowing = False
        self._owned = 0
        self._tries = 0
        self._trying = asyncio.Lock()
        self._fruitless = 0
        self._in_flight = 0
        self._begun = 0
        self._look_again = asyncio.Event()
        """Whether to look again: since the last claim began one has ended that had something, or that was the last in hand; or it has found
        more than it took. Not if it has itself found nothing beside others: what there is is in their hands."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the idle connections. They are made again if they are needed."""
        await self._doorbell.close()
        while self._idle:
            await self._idle.pop().close()

    @asynccontextmanager
    async def claim(self, limit: int) -> AsyncIterator[Batch]:
        """Claim up to ``limit`` rows that are due, in one transaction that ends with the context. Raises `SourceUnavailable`."""
        self._begun += 1
        turn = self._begun
        self._look_again.clear()
        if self._owned >= LANES:  # by our own claims: there is nothing to ask for
            self._more = False
            yield NOTHING
            return
        connection = None
        trying = False
        found = False
        owned = 0
        self._in_flight += 1
        try:
            connection = self._idle.pop() if self._idle else await self._connect()
            # One after the other while a destination is away: each knows then how much waits for it, and which of them are tries.
            async with nullcontext() if self._destinations.all_there else self._trying:
                await self._destinations.count(connection)
                batch = await self._claimed(connection, limit)
                trying = batch.tried
                self._tries += trying
            owned = batch.lanes
            self._owned += owned
            found = bool(batch.messages) or batch.moved
            self._fruitless = 0 if found else self._fruitless + 1
            # Counted are the rows that were found, and not those that can be sent: what is set aside is work as well.
            self._more = batch.found is not None and batch.found >= limit and self._fruitless == 0
            if batch.found is not None:
                self._busy = self._more
            self._flowing = len(batch.messages) > 1
            if self._more:
                self._look_again.set()
            yield batch
            await batch.give_back()
            self._idle.append(connection)
            connection = None
        except psycopg.Error as problem:
            raise SourceUnavailable(told(problem)) from problem
        finally:
            self._in_flight -= 1
            self._tries -= trying
            self._owned -= owned
            if found or turn != self._begun or self._in_flight <= self._tries:
                self._look_again.set()
            if connection is not None:
                # In an unknown state: the server rolls back when it is gone.
                await connection.close()

    async def wait(self, timeout: float) -> None:
        """Sleep until the doorbell rings, something deferred falls due, or the poll finds something.

        While claims are in flight their lanes are theirs, so it waits for the first of them to end; but not if the last one left rows
        behind, nor for those that try a destination, which own a lane and may take all the time there is. Where several messages were
        found at once there are more by now, as a rule: the next claim looks, and nobody falls asleep before that.
        """
        if self._more:
            return
        if self._in_flight > self._tries:
            await happens(self._look_again, min(timeout, self._poll_interval))
            if self._in_flight > self._tries:
                return
        if self._flowing:
            self._flowing = False
            return
        try:
            await self._doorbell.sleep(timeout, fruitless=max(0, self._fruitless - 1))
        except (psycopg.Error, SourceUnavailable) as problem:
            log.debug("doorbell: %s", problem)
            await asyncio.sleep(min(timeout, self._poll_interval))  # the next claim says what is wrong, or that nothing is

    async def _look(self, connection: psycopg.AsyncConnection[Any]) -> tuple[bool, float | None]:
        """Say whether anything is due, and else in how many seconds something will be, if that is known."""
        now = asyncio.get_running_loop().time()
        parameters = {"floor": self._floors.start(range(LANES), now), "away": list(self._destinations.away())}
        cursor = await connection.execute(sql.bind(sql.PROBE, self._schema), parameters)
        row = await cursor.fetchone()
        assert row is not None
        due, due_in = row
        if not due:
            self._floors.swept(range(LANES), now)
        waits = [seconds for seconds in (due_in, self._destinations.next_try()) if seconds is not None]
        return due, min(waits, default=None)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        try:
            connection = await psycopg.AsyncConnection.connect(
                self._dsn,
                autocommit=True,  # BEGIN and COMMIT are ours, to travel in one round trip with what is between
                application_name="outboxd",
                connect_timeout=5,
                target_session_attrs="read-write",
                keepalives_idle=15,
                keepalives_interval=5,
                keepalives_count=3,
                tcp_user_timeout=int(self._claim_timeout * 1000),
                # Behind a transaction pooler a prepared statement may be on another server session.
                prepare_threshold=5 if self._listen else None,
            )
        except psycopg.OperationalError as problem:
            raise SourceUnavailable(told(problem)) from problem
        return connection

    async def _claimed(self, connection: psycopg.AsyncConnection[Any], limit: int) -> OutboxBatch:
        """Claim until there is something to send, or nothing at all: rows that are only set aside are settled on the way."""
        moved = False
        to_try = self._destinations.to_try() if self._tries < self._most_tries else None
        for _ in range(_ROUNDS):
            ticket = self._floors.ticket()
            lanes, tried = await self._own_lanes(connection, to_try)
            now = asyncio.get_running_loop().time()
            away = self._destinations.away(but=tried)
            if tried is None:
                rows, seen, holds = await self._select_due(connection, lanes, limit, self._floors.start(lanes, now), ticket, list(away))
                self._floors.swept(lanes, now)
            else:
                rows, seen, holds = await self._select_tried(connection, lanes, limit, list(away)), None, frozenset()
            if tried is not None and all(row.hold != hold_of_destination(tried, lanes[0]) for row in rows):
                # A hold without rows: somebody has deleted them. The next round is an ordinary claim.
                await self._end_empty_holds(connection, lanes)
                to_try = None
                continue
            if lanes and not rows and self._fruitless and self._fruitless % _FRUITLESS == 0:
                # Something has seemed due for a while of which there is nothing: rows in another pump's hands, or a hold without rows.
                await self._end_empty_holds(connection, lanes)
                self._fruitless += 1
                continue
            around = Surroundings(
                away=away,
                full=self._destinations.full(away),
                holds=holds,
                whole=_whole(rows, _of_holds(limit)),
            )
            settlement = Settlement(self._policy, around)
            to_send = settlement.set_aside(rows)
            batch = OutboxBatch(connection, self._schema, to_send, settlement, self._retry, self._note_settled(lanes, rows, seen))
            batch.found = len(rows) if lanes and tried is None else None
            batch.tried = tried is not None
            batch.lanes = len(lanes)
            batch.moved = moved
            if to_send or not settlement.changes_something:
                break
            await batch.settle([])
            batch.moved = moved = True
        return batch

    async def _end_empty_holds(self, connection: psycopg.AsyncConnection[Any], lanes: list[int]) -> None:
        await connection.execute(sql.bind(sql.END_EMPTY_HOLDS, self._schema), (lanes,))
        await connection.execute("COMMIT")

    async def _own_lanes(self, connection: psycopg.AsyncConnection[Any], tried: str | None) -> tuple[list[int], str | None]:
        """Begin a claim and own some lanes; or one lane, for the destination that is to be tried, if one is."""
        if tried is not None and (lanes := await self._begin(connection, sql.OWN_LANE_OF_DESTINATION, (tried,))):
            return lanes, tried
        # Everything, if there is little to do: one claim then sees all that is due. A share each, if there is much.
        share = self._share if self._busy else LANES
        lanes = await self._begin(connection, sql.OWN_LANES, (self._next_lane, share), begun=tried is not None)
        if lanes:
            self._next_lane = (lanes[-1] + 1) % LANES
        return lanes, None

    async def _begin(
        self, connection: psycopg.AsyncConnection[Any], own: LiteralString, parameters: tuple[object, ...], *, begun: bool = False
    ) -> list[int]:
        """Begin a claim, unless it has ``begun``, and return the lanes that it owns now."""
        timeout = f"{int(self._claim_timeout * 1000)}ms"
        # It ends with a Sync, by which a pooler sees that a transaction has begun.
        async with connection.pipeline():
            if not begun:
                await connection.execute(sql.BEGIN_CLAIM)
                await connection.execute(sql.bind(sql.CONFIGURE_CLAIM, self._schema), (timeout, timeout, timeout))
            owned = await connection.execute(sql.bind(own, self._schema), parameters)
        return [lane for (lane,) in await owned.fetchall()]

    async def _select_due(
        self, connection: psycopg.AsyncConnection[Any], lanes: Sequence[int], limit: int, floor: int, ticket: int, away: list[str]
    ) -> tuple[list[Row], Seen | None, frozenset[str]]:
        if not lanes:
            return [], None, frozenset()
        parameters = {"lanes": array_of(lanes), "limit": limit, "of_holds": _of_holds(limit), "floor": floor, "away": away}
        statements = (
            sql.SEE_DESTINATIONS, sql.CLAIM_HELD, sql.CLAIM_DEFERRED, sql.CLAIM_PRIORITY, sql.SEE_HORIZON, sql.CLAIM_FIFO
        )  # fmt: skip
        async with connection.pipeline():
            destinations, held, deferred, first, horizon, due = [
                await connection.cursor(binary=True).execute(sql.bind(statement, self._schema), parameters) for statement in statements
            ]
        holds = frozenset(hold for (hold,) in await destinations.fetchall())
        rows = _held_rows(await held.fetchall())
        rows += _rows("deferred", await deferred.fetchall())
        rows += _rows("messages", await first.fetchall())
        ((xmin, xid),) = await horizon.fetchall()
        fifo = _rows("messages", await due.fetchall())
        seen = None
        # More than the limit was looked at in the rare batch that has more than the FIFO in it: what is over stays for the next claim.
        room = max(0, limit - len(rows))
        if taken := fifo[:room]:
            exhausted = len(fifo) < min(limit, room + 1)
            seen = Seen(last=taken[-1].position, exhausted=exhausted, xmin=xmin, xid=xid, ticket=ticket)
        rows += taken
        return rows[:limit], seen, holds

    async def _select_tried(self, connection: psycopg.AsyncConnection[Any], lanes: Sequence[int], limit: int, away: list[str]) -> list[Row]:
        """Claim from the holds of the lane alone: one real batch for the destination that is tried."""
        parameters = {"lanes": array_of(lanes), "of_holds": limit, "away": away}
        cursor = await connection.cursor(binary=True).execute(sql.bind(sql.CLAIM_HELD, self._schema), parameters)
        return _held_rows(await cursor.fetchall())

    def _note_settled(self, lanes: Sequence[int], rows: Sequence[Row], seen: Seen | None) -> Callable[[Settlement], None]:
        def note(settlement: Settlement) -> None:
            self._destinations.note(settlement)
            if seen is None:
                return
            # Above a row that stays, nothing is settled as far as a floor is concerned.
            stay = settlement.stay
            first = min(stay, default=seen.last + 1)
            if below := [row.position for row in rows if row.table == "messages" and row.position < first]:
                last = min(seen.last, max(below))
                self._floors.settled(lanes, seen._replace(last=last, exhausted=seen.exhausted and not stay))

        return note


def _of_holds(limit: int) -> int:
    return max(1, int(limit * _OF_HOLDS))


def _whole(rows: Sequence[Row], limit: int) -> frozenset[str]:
    """Return the holds that were claimed to their ends, if fewer rows were found than were asked for."""
    held = [row for row in rows if row.table == "held"]
    if len(held) >= limit:
        return frozenset()
    return frozenset(row.hold for row in held if row.drains and row.hold is not None)


def _rows(table: Table, fetched: Sequence[tuple[Any, ...]]) -> list[Row]:
    # This runs for every row: to make a tuple of its fields as they are takes half the time of a call with each field by itself.
    make = tuple.__new__
    return [
        make(
            Row,
            (
                make(Message, (given_id, topic, payload, key, content_type, NO_HEADERS if headers is None else headers, created_at)),
                table,
                position,
                lane,
                aside,
                hold,
                attempts,
                drains,
            ),
        )
        for given_id, topic, payload, key, content_type, headers, created_at, position, lane, aside, hold, attempts, drains in fetched
    ]


def _held_rows(fetched: Sequence[tuple[Any, ...]]) -> list[Row]:
    """Return held rows, in the order of each hold."""
    return sorted(_rows("held", fetched), key=lambda row: (row.hold, row.position))
