"""Fairness between tenants: a limit for each, and turns among those that wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridges.errors import ConfigurationError
from bridges.inprocess.fairline import FairLine

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridges.inprocess.timers import Timers
    from bridges.message import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenants:
    """How a subscription tells tenants apart, and what each may have. Raises `ConfigurationError` for what cannot work.

    A full buffer is shared as well. With policy ``block`` a publish waits once the buffer is full and its tenant has its share of it: the
    buffer, divided by the tenants that have something there, but 1 at the least. So one tenant alone has the buffer, and all together
    have twice the buffer at the most. With the policies that drop, the buffer is the limit, and what goes is of the tenant that has the
    most, or else the newcomer. Not for a subscription that reads a log, as that comes in the order of the log. A key that tenants
    share is in order within each of them.

    Attributes:
        header: the name of the header that names the tenant; those without it are one tenant, ``""``.
        rate: messages a second that one tenant is handed at the most; None for no limit.
        burst: messages that one tenant may be handed at once after a quiet time.
        quantum: what one tenant is handed in its turn, in units of ``cost``.
        cost: what a message costs, 1 at least; 1 for each unless given: then `len` of its payload, say, shares bytes instead. It is asked
            when a message comes, or comes back; if it raises, that is logged, and the cost is 1.
    """

    header: str = "tenant"
    rate: float | None = None
    burst: int = 1
    quantum: int = 1
    cost: Callable[[Message], int] | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and not self.rate > 0:
            msg = f"tenants: rate: {self.rate} is not above 0"
            raise ConfigurationError(msg)
        for name in ("burst", "quantum"):
            if getattr(self, name) < 1:
                msg = f"tenants: {name}: {getattr(self, name)} is below 1"
                raise ConfigurationError(msg)

    def line(self, name: str, timers: Timers, wake: Callable[[], None]) -> FairLine:
        """Make a line of the deliveries of all tenants; ``wake`` is called when a limit lets somebody go again."""
        return FairLine(self, name, timers, wake)
