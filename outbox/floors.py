"""The floor of each lane: the position below which a claim need not look. Pure but for a monotonic clock, which is given.

When a claim has settled all of its rows up to P and has committed, a lower row may still come: its writer drew the position earlier and
commits later. But each transaction draws its xid before its positions (the table's trigger sees to it), so that writer's xid is lower
than any that is drawn after the claim saw P. The first later claim of the lane draws such an xid: the horizon. A claim whose snapshot
finds nothing running below the horizon (its xmin) sees everything that will ever exist below P; when it has settled and committed too, and
has reached P, the lane's floor rises to P.

The snapshot's own xmax is no horizon: it is one past the highest xid that has *ended*, and a running writer may be above it.

``tests/properties/test_floors.py`` runs this against a model of late-committing writers; raised one claim too early, it loses rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

BOTTOM: Final = -1
"""Below every position."""


class Seen(NamedTuple):
    """What a claim's FIFO statement saw.

    Attributes:
        last: the position up to which everything it saw was settled.
        exhausted: there was nothing beyond.
        xmin: of its snapshot: every transaction below was over.
        xid: the claim's own, drawn when it took its lanes.
        ticket: from `Floors.ticket`, taken before the claim began.
    """

    last: int
    exhausted: bool
    xmin: int
    xid: int
    ticket: int


class _Reached(NamedTuple):
    position: int
    ticket: int
    horizon: int | None


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
        self._remembered: dict[int, list[_Reached]] = {}
        self._settled = 0

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

    def ticket(self) -> int:
        """Return what a claim needs to know, before it begins, of those that are over: its xid is drawn after theirs saw what they saw."""
        return self._settled

    def settled(self, lanes: Iterable[int], seen: Seen) -> None:
        """Note a claim of these lanes that saw ``seen``, moved all of it out of the FIFO, and has committed."""
        self._settled += 1
        for lane in lanes:
            kept = []
            for reached in self._remembered.get(lane, ()):
                horizon = reached.horizon
                if horizon is None and reached.ticket <= seen.ticket:
                    horizon = seen.xid
                if horizon is not None and horizon <= seen.xmin and (seen.exhausted or reached.position <= seen.last):
                    self._floors[lane] = max(self._floors.get(lane, BOTTOM), reached.position)
                else:
                    kept.append(reached._replace(horizon=horizon))
            # Under a long write transaction nothing can rise: the oldest is the one that rises first, the newest rises furthest.
            self._remembered[lane] = [*kept[:1], *kept[1:][-1:], _Reached(seen.last, self._settled, None)]

    def _sweep_due(self, lane: int, now: float) -> bool:
        if self._sweep_every is None:
            return False
        return now - self._swept_at.get(lane, float("-inf")) >= self._sweep_every
