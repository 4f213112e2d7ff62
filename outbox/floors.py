"""The floor of each lane: the position below which a claim need not look. Pure but for a monotonic clock, which is given.

A claim whose statement saw a snapshot and whose last row has position P remembers (P, the snapshot's xmax) for its lanes once it has
committed. A later claim of the lane, whose own snapshot's xmin is at or above that xmax, sees everything that will ever exist below P:
each transaction draws its xid before its positions (the table's trigger sees to it), so whoever drew a position below P had an xid
below that xmax, and is over. When that later claim has settled too, and reached P, the lane's floor rises to P.

``tests/properties/test_floors.py`` runs this against a model of late-committing writers; raised one claim too early, it loses rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

BOTTOM: Final = -1
"""Below every position."""


class Seen(NamedTuple):
    """What a claim's FIFO statement saw: its last position, whether that was all there was, and its snapshot's bounds."""

    last: int
    exhausted: bool
    xmin: int
    xmax: int


class Floors:
    """The floors of all lanes, as one pump knows them.

    Args:
        sweep_every: seconds between claims from the bottom, for writers that bypass the trigger (logical replication,
            ``session_replication_role``); None for never.
    """

    def __init__(self, *, sweep_every: float | None = 10.0) -> None:
        self._sweep_every = sweep_every
        self._swept_at: dict[int, float] = {}
        self._floors: dict[int, int] = {}
        self._remembered: dict[int, list[tuple[int, int]]] = {}

    def start(self, lanes: Iterable[int], now: float) -> int:
        """Return the position above which a claim of these lanes has to look; ``now`` is monotonic seconds."""
        floor = BOTTOM
        for place, lane in enumerate(lanes):
            if self._sweep_due(lane, now):
                return BOTTOM
            own = self._floors.get(lane, BOTTOM)
            floor = own if place == 0 else min(floor, own)
        return floor

    def swept(self, lanes: Iterable[int], now: float) -> None:
        """Note that these lanes were looked at from where `start` said."""
        for lane in lanes:
            if self._sweep_due(lane, now):
                self._swept_at[lane] = now

    def settled(self, lanes: Iterable[int], seen: Seen) -> None:
        """Note a claim of these lanes that saw ``seen``, moved all of it out of the FIFO, and has committed."""
        for lane in lanes:
            kept = []
            for position, horizon in self._remembered.get(lane, ()):
                if horizon <= seen.xmin and (seen.exhausted or position <= seen.last):
                    self._floors[lane] = max(self._floors.get(lane, BOTTOM), position)
                else:
                    kept.append((position, horizon))
            # Under a long write transaction nothing can rise: the oldest is the one that rises first, the newest rises furthest.
            self._remembered[lane] = [*kept[:1], *kept[1:][-1:], (seen.last, seen.xmax)]

    def _sweep_due(self, lane: int, now: float) -> bool:
        if self._sweep_every is None:
            return False
        return now - self._swept_at.get(lane, float("-inf")) >= self._sweep_every
