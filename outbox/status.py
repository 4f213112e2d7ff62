"""What is in the outbox and who is at work on it, read from the database alone: no daemon need run, and SELECT is all it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, LiteralString

from outbox import sql, sql_watching

if TYPE_CHECKING:
    from datetime import datetime

    import psycopg


@dataclass(frozen=True)
class Deferred:
    """What is scheduled, and keyless retries.

    Attributes:
        messages: all of them.
        due: those whose time has come.
        next_seconds: until the next one's time comes; None if there is none to come.
    """

    messages: int
    due: int
    next_seconds: float | None


@dataclass(frozen=True)
class Holds:
    """The queues of one kind.

    Attributes:
        kind: ``key``: behind a failing head; ``operator``: a key that waits for an operator; ``destination``: of a sink.
        destination: the sink's name, for the last kind.
        holds: how many queues.
        messages: how many messages are in them.
        oldest_seconds: the age of the oldest of these.
        error: what the destination last said.
    """

    kind: Literal["destination", "key", "operator"]
    destination: str | None
    holds: int
    messages: int
    oldest_seconds: float
    error: str | None


@dataclass(frozen=True)
class DeadLetters:
    """Dead letters of one reason, and how many seconds ago the last of them died."""

    reason: str
    messages: int
    last_seconds: float


@dataclass(frozen=True)
class LaneOwner:
    """A transaction that holds lanes: a claim, or a command of an operator.

    Attributes:
        pid: the server's process; None for a prepared transaction.
        application: what the client calls itself; the name of a prepared transaction.
        client: its address; None over a local socket.
        state: what it does, as in ``pg_stat_activity``.
        seconds: for how long its transaction has been open.
        lanes: how many it holds.

    What a role without ``pg_read_all_stats`` may not know of another's session is None.
    """

    pid: int | None
    application: str | None
    client: str | None
    state: str | None
    seconds: float | None
    lanes: int


@dataclass(frozen=True)
class Archive:
    """What was published and is kept: its size on disk, and the tables, of a day each, that it is in."""

    bytes: int
    tables: int


@dataclass(frozen=True)
class Status:
    """All of it, at one moment.

    Attributes:
        measured_at: the database's time.
        messages: what waits to be published, in order.
        oldest_seconds: the age of the oldest message that could have gone by now.
        deferred: what is not due before a time.
        holds: the queues aside, by kind and destination.
        dead: dead letters by reason, the most frequent first.
        lanes: how many there are.
        owners: who holds which of them.
        archive: what is kept.
    """

    measured_at: datetime
    messages: int
    oldest_seconds: float
    deferred: Deferred
    holds: tuple[Holds, ...]
    dead: tuple[DeadLetters, ...]
    lanes: int
    owners: tuple[LaneOwner, ...]
    archive: Archive


async def read_status(connection: psycopg.AsyncConnection[Any], *, schema: str = "outbox") -> Status:
    """Read the status in one transaction that only reads. The connection must have none open. Raises psycopg's errors."""
    async with connection.transaction():
        await connection.execute(sql_watching.BEGIN_STATUS)
        ((at, messages, deferred, due, next_seconds, oldest, archived, tables),) = await _rows(
            connection, sql.bind(sql_watching.STATUS, schema)
        )
        holds = await _rows(connection, sql.bind(sql_watching.STATUS_OF_HOLDS, schema))
        dead = await _rows(connection, sql.bind(sql_watching.STATUS_OF_DEAD, schema))
        ((lanes,),) = await _rows(connection, sql.bind(sql_watching.COUNT_LANES, schema))
        owners = await read_lane_owners(connection, schema=schema)
    return Status(
        measured_at=at,
        messages=messages,
        oldest_seconds=oldest,
        deferred=Deferred(deferred, due, next_seconds),
        holds=tuple(Holds(*row) for row in holds),
        dead=tuple(DeadLetters(*row) for row in dead),
        lanes=lanes,
        owners=tuple(owners),
        archive=Archive(archived, tables),
    )


async def read_lane_owners(connection: psycopg.AsyncConnection[Any], *, schema: str = "outbox") -> list[LaneOwner]:
    """Return the transactions that hold lanes at this moment."""
    return [LaneOwner(*row) for row in await _rows(connection, sql.bind(sql_watching.LANE_OWNERS, schema))]


async def _rows(connection: psycopg.AsyncConnection[Any], statement: LiteralString) -> list[tuple[Any, ...]]:
    return await (await connection.execute(statement)).fetchall()
