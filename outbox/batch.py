"""What one claim holds, and how its settlement is carried out: in one round trip with its COMMIT."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, LiteralString, NamedTuple

from outbox import sql
from outbox.rows import array_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import psycopg

    from bridges.backoff import Backoff
    from bridges.message import Message
    from bridges.ports import Outcome
    from outbox.rows import Row, Table
    from outbox.settlement import Held, Settlement

log = logging.getLogger("outboxd.source")


class OutboxBatch:
    """What one claim holds. `settle` moves the rows and commits; left without it, everything stays as it was."""

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        schema: str,
        rows: Sequence[Row],
        settlement: Settlement,
        retry: Backoff,
        note_settled: Callable[[Settlement], None],
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._rows = rows
        self._settlement = settlement
        self._retry = retry
        self._note_settled = note_settled
        self._open = True
        self.found: int | None = None
        """How many rows the claim saw; None if it knows nothing of what there is to do, since it owns no lanes, or one on purpose."""
        self.lanes = 0
        """How many it owns."""
        self.tried = False
        """Whether it is the one try of a destination that is away."""
        self.moved = False
        """Whether rows were set aside on the way to this batch."""
        self.messages = [row.message for row in rows]

    @property
    def backend(self) -> int:
        """The process id of the server session that holds the claim."""
        return self._connection.info.backend_pid

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Delete what was published, move what was not where it belongs, and commit. An outage changes and counts nothing.

        Raises psycopg's errors: a settlement whose answer was lost counts as not made, and the messages may go out again.
        """
        self._settlement.decide(self._rows, outcomes, self._retry)
        if not self._settlement.changes_something:
            return  # leaving gives all back
        self._open = False
        # Cancelled in the middle, the commit may or may not have happened: it is finished first.
        settling = asyncio.ensure_future(self._execute(self._settlement))
        try:
            await asyncio.shield(settling)
        except asyncio.CancelledError:
            await asyncio.wait({settling})
            raise
        self._note_settled(self._settlement)

    async def give_back(self) -> None:
        """Roll back, unless settled."""
        if self._open:
            self._open = False
            await self._connection.execute("ROLLBACK")

    async def _execute(self, settlement: Settlement) -> None:
        async with self._connection.pipeline():
            for statement, parameters in _statements(settlement):
                await self._connection.execute(sql.bind(statement, self._schema), parameters)
            await self._connection.execute("COMMIT")
        for row in settlement.dead:
            log.error("dead letter: position %d: %s: %s", row.position, row.reason, row.error)


class _Nothing:
    """A batch without anything."""

    messages: Sequence[Message] = ()

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Change nothing."""


NOTHING: Final = _Nothing()


def _statements(settlement: Settlement) -> Iterator[tuple[LiteralString, Any]]:
    """Yield what carries the settlement out, in this order: rows go first, and then holds are judged by what is left in them."""
    for table, statement in _DELETES.items():
        if positions := settlement.published[table]:
            yield statement, (array_of(positions),)
    moves: tuple[tuple[LiteralString, Sequence[NamedTuple]], ...] = (
        (sql.MOVE_TO_ARCHIVE, settlement.archived),
        (sql.MOVE_TO_DEAD, settlement.dead),
        (sql.MOVE_TO_DEFERRED, settlement.deferred),
    )
    for statement, rows in moves:
        if rows:
            yield statement, _columns(rows)
    if settlement.held:
        yield sql.MOVE_TO_HELD, _by_hold(settlement.held)
    if settlement.reheld:
        yield sql.MOVE_KEYS_TO_HOLDS, _columns(settlement.reheld)
    if settlement.holds:
        yield sql.HOLD, _columns(list(settlement.holds.values()))
    if settlement.postponed:
        yield sql.POSTPONE_HOLDS, _columns(list(settlement.postponed.values()))
    if settlement.advanced:
        yield sql.ADVANCE_HOLDS, (list(settlement.advanced),)
        yield sql.END_HOLDS, (list(settlement.advanced),)


_DELETES: Final[dict[Table, LiteralString]] = {
    "messages": sql.DELETE_MESSAGES,
    "deferred": sql.DELETE_DEFERRED,
    "held": sql.DELETE_HELD,
}


def _columns(rows: Sequence[NamedTuple]) -> dict[str, list[Any]]:
    """Return what `unnest` wants: an array for each field."""
    return {name: list(column) for name, column in zip(rows[0]._fields, zip(*rows, strict=True), strict=True)}


def _by_hold(rows: Sequence[Held]) -> dict[str, Any]:
    places = {hold: place for place, hold in enumerate(dict.fromkeys(row.hold for row in rows), start=1)}
    return {
        "holds": list(places),
        "position": array_of([row.position for row in rows]),
        "place": array_of([places[row.hold] for row in rows]),
        "ordered": array_of([row.ordered for row in rows]),
    }
