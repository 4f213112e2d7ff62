"""What was seen of a run from outside, made into what the checker and the report read: recoveries, and looks at the outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from tests.faults.history import Audit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from tests.faults.history import Copy, Fault

PART: Final = 0.9
"""Of the former rate: what comes to it has recovered."""
_WINDOW: Final = 1.0


class Count(NamedTuple):
    """How many effects there were at a time."""

    at: float
    effects: int


class Look(NamedTuple):
    """At the outbox: what was committed before it began was left in it, or was stored before it ended."""

    began: float
    ended: float
    left: frozenset[UUID]


def with_recovery(faults: Sequence[Fault], counts: Sequence[Count], warm: float) -> list[Fault]:
    """Return the faults, each with the seconds from its healing to `PART` of the rate that there was before the first.

    Before a later one the rate may be nothing, or a backlog's, which is worked off faster than anybody writes. A fault that follows
    before the rate is back is part of the time.

    Args:
        faults: in their order.
        counts: by time.
        warm: seconds before the first fault whose rate counts.
    """
    former = rate(counts, faults[0].began - warm, faults[0].began) if faults else None
    return [fault._replace(recovery=_recovery(fault, counts, former) if former else None) for fault in faults]


def _recovery(fault: Fault, counts: Sequence[Count], former: float) -> float:
    for count in counts:
        if count.at > fault.healed and (now := rate(counts, count.at - _WINDOW, count.at)) is not None and now >= PART * former:
            return count.at - fault.healed
    return float("inf")


def rate(counts: Iterable[Count], began: float, ended: float) -> float | None:
    """Return effects a second between two times; None if nobody saw."""
    seen = [count for count in counts if began <= count.at <= ended]
    if len(seen) < 2 or seen[-1].at == seen[0].at:
        return None
    return (seen[-1].effects - seen[0].effects) / (seen[-1].at - seen[0].at)


def audits(looks: Iterable[Look], copies: Iterable[Copy]) -> list[Audit]:
    """Return each look beside what the broker had when it ended: what left the outbox meanwhile was stored by then."""
    copies = list(copies)
    return [Audit(look.began, look.left, frozenset(copy.id for copy in copies if copy.at <= look.ended)) for look in looks]
