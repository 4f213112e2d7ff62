"""The destinations that may be away while others are not, as a claim sees them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from outbox import sql
from outbox.rows import destination_of, hold_of_destination

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import psycopg

    from bridges.breaker import Breaker
    from outbox.settlement import Settlement

log = logging.getLogger("outboxd.source")

_COUNT_EVERY: Final = 5.0
"""Seconds between exact counts of what waits for a destination, at least; in between, what we add is added. Other pumps are seen then."""
_COUNT_SHARE: Final = 50
"""A count that took a second is made again after as many seconds."""


class Destinations:
    """What the breakers say, and how much waits for each.

    Args:
        breakers: one a destination, shared with the sinks that they guard.
        schema: of the outbox.
        lanes: how many there are.
        max_held: rows that may be set aside for one destination.
    """

    def __init__(self, breakers: Iterable[Breaker], *, schema: str, lanes: int, max_held: int) -> None:
        self._breakers = {breaker.name: breaker for breaker in breakers}
        self._schema = schema
        self._lanes = range(lanes)
        self._max_held = max_held
        self._held: Counter[str] = Counter()
        self._count_at: dict[str, float] = {}
        self._full: frozenset[str] = frozenset()

    @property
    def all_there(self) -> bool:
        """Whether none of them is away, or was and is to be tried."""
        return all(breaker.closed for breaker in self._breakers.values())

    def away(self, *, but: str | None = None) -> dict[str, float]:
        """Return the destinations that take nothing now, except one, and the seconds until each is tried again.

        One whose next try is due is not among them: whatever goes to it is the try, and its breaker lets one claim through.
        """
        return {
            name: breaker.remaining() for name, breaker in self._breakers.items() if not breaker.closed and not breaker.due and name != but
        }

    def to_try(self) -> str | None:
        """Return a destination whose next try is due, if there is one."""
        return next((name for name, breaker in self._breakers.items() if breaker.due), None)

    def next_try(self) -> float | None:
        """Return the seconds until one of them is to be tried again; None if that is not known."""
        return min((seconds for seconds in self.away().values() if seconds > 0), default=None)

    async def count(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Count what waits for those that are away, if that was not done lately. On a connection that owns no lane: it may take long."""
        now = asyncio.get_running_loop().time()
        for name, breaker in self._breakers.items():
            if not breaker.closed and now >= self._count_at.get(name, float("-inf")):
                self._count_at[name] = float("inf")  # one claim counts, and the others go on
                try:
                    holds = [hold_of_destination(name, lane) for lane in self._lanes]
                    cursor = await connection.execute(sql.bind(sql.COUNT_HELD, self._schema), (holds,))
                    ((self._held[name],),) = await cursor.fetchall()
                finally:
                    ended = asyncio.get_running_loop().time()
                    self._count_at[name] = ended + max(_COUNT_EVERY, _COUNT_SHARE * (ended - now))

    def full(self, away: Mapping[str, float]) -> frozenset[str]:
        """Return those of the destinations that are away for which no more may be set aside."""
        full = frozenset(name for name in away if self._held[name] >= self._max_held)
        for name in full - self._full:
            log.warning(
                "sink %s: %d messages wait aside, as many as may (max_held): what follows stays in the queue", name, self._held[name]
            )
        self._full = full | {name for name in self._full if not self._breakers[name].closed}
        return full

    def note(self, settlement: Settlement) -> None:
        """Count what a settlement has set aside."""
        for held in settlement.held:
            if (destination := destination_of(held.hold)) is not None:
                self._held[destination] += 1
