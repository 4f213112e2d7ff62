"""Fairness between tenants: a limit for each (token bucket), and deficit round-robin among those that wait.

After "Efficient Fair Queuing Using Deficit Round-Robin" (M. Shreedhar and G. Varghese, 1996); whom to drop is that of "Stochastic Fair
Queueing" (P. McKenney, 1990): who has the longest line.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from bridges.errors import ConfigurationError
from bridges.inprocess.line import FirstComeLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bridges.inprocess.delivery import Delivery
    from bridges.inprocess.timers import Timer, Timers
    from bridges.message import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenants:
    """How a subscription tells tenants apart, and what each may have. Raises `ConfigurationError` for what cannot work.

    Attributes:
        header: the name of the header that names the tenant; those without it are one tenant, ``""``.
        rate: messages a second that one tenant is handed at the most; None for no limit.
        burst: messages that one tenant may be handed at once after a quiet time.
        quantum: what one tenant is handed in its turn, in units of ``cost``.
        cost: what a message costs, 1 at least; 1 for each unless given: then `len` of its payload, say, shares bytes instead.
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

    def line(self, timers: Timers, wake: Callable[[], None]) -> FairLine:
        """Make a line of the deliveries of all tenants; ``wake`` is called when a limit lets somebody go again."""
        return FairLine(self, timers, wake)


class _Tenant:
    """The line of one tenant, and what it may have. It is forgotten when it is empty and its bucket is full.

    Attributes:
        number: how many are in its line.
        stale: how many of them are over, at the most.
    """

    __slots__ = ("deficit", "filled_at", "in_turn", "line", "number", "stale", "tokens")

    def __init__(self, tokens: float) -> None:
        self.line = FirstComeLine()
        self.number = self.stale = 0
        self.deficit = 0
        self.in_turn = False
        self.tokens = tokens
        self.filled_at = monotonic()


class FairLine:
    """A line for each tenant; every tenant that waits gets its turn, and none gets more than its limit."""

    def __init__(self, tenants: Tenants, timers: Timers, wake: Callable[[], None]) -> None:
        self._tenants = tenants
        self._timers = timers
        self._wake = wake
        self._known: dict[str, _Tenant] = {}
        self._turns: OrderedDict[str, _Tenant] = OrderedDict()
        self._timer: Timer | None = None
        self._stale = False
        self.append: Callable[[Delivery], None] = self._append
        self.fresh: deque[Delivery] = deque()
        self.placed: list[tuple[int, int, Delivery]] = []

    def insert(self, delivery: Delivery) -> None:
        """Take in what has a place of its own, in the line of its tenant."""
        self._enter(delivery).line.insert(delivery)

    def pop(self) -> Delivery | None:
        """Take out the next of the tenant whose turn it is; None if no tenant may go now."""
        limited = 0
        while limited < len(self._turns):
            name, tenant = next(iter(self._turns.items()))
            if not self._has_token(tenant):
                self._turns.move_to_end(name)
                limited += 1
                continue
            delivery = tenant.line.pop()
            if delivery is None:
                tenant.number = 0
                self._leave_if_empty(name, tenant)
                continue
            if not tenant.in_turn:
                tenant.in_turn = True
                tenant.deficit += self._tenants.quantum
            cost = self._cost(delivery)
            if cost > tenant.deficit and not delivery.over:
                tenant.line.insert(delivery)
                self._end_turn(name, tenant)
                limited = 0
                continue
            tenant.number -= 1
            tenant.stale -= delivery.over
            self._leave_if_empty(name, tenant)
            return delivery
        self._arm()
        return None

    def charge(self, delivery: Delivery) -> None:
        """Take what a delivery costs from its tenant, which may have nothing more in line."""
        name = self._name(delivery)
        tenant = self._know(name)
        if self._tenants.rate is not None:
            tenant.tokens -= 1
        if name in self._turns:
            tenant.deficit -= self._cost(delivery)
            if tenant.deficit <= 0:
                self._end_turn(name, tenant)
        else:
            self._leave_if_empty(name, tenant)

    def evict(self, newcomer: Delivery, *, oldest: bool) -> Delivery:
        """Return whom to drop: the newcomer if its tenant has the longest line, or one of who has."""
        victim = self._evict(newcomer, oldest=oldest)
        if (tenant := self._known.get(self._name(victim))) is not None:
            tenant.stale -= 1  # it is in no line, and will be told of as over
        return victim

    def over(self, delivery: Delivery) -> None:
        """Count it among the stale."""
        if (tenant := self._known.get(self._name(delivery))) is not None:
            tenant.stale += 1
            self._stale |= tenant.stale > 0

    def _evict(self, newcomer: Delivery, *, oldest: bool) -> Delivery:
        self._purge_stale()
        longest = max(self._turns, key=lambda name: self._turns[name].number, default=None)
        if longest is None:
            return newcomer
        tenant = self._turns[longest]
        own = self._turns.get(self._name(newcomer))
        if oldest:
            victim: Delivery | None = tenant.line.evict(newcomer, oldest=True)
        else:
            victim = None if own is not None and own.number >= tenant.number else tenant.line.pop_newest()
        if victim is None or victim is newcomer:
            return newcomer
        tenant.number -= 1
        self._leave_if_empty(longest, tenant)
        return victim

    def admits(self, newcomer: Message, limit: int) -> bool:
        """Say whether a newcomer may come in although ``limit`` are waiting: if its tenant has less than its share of them."""
        self._purge_stale()
        own = self._turns.get(self._name(newcomer))
        return (own.number if own is not None else 0) < limit // (len(self._turns) + (own is None))

    def ready(self) -> bool:
        """Say whether some tenant may go now."""
        if any(map(self._has_token, self._turns.values())):
            return True
        self._arm()
        return False

    def lags(self) -> dict[str, int]:
        """Return how many wait of each tenant."""
        lags = {name: sum(not one.over for one in tenant.line) for name, tenant in self._turns.items()}
        return {name: lag for name, lag in lags.items() if lag}

    def purge(self) -> None:
        """Take out all that are over."""
        for name, tenant in list(self._turns.items()):
            self._purge(name, tenant)

    def _purge_stale(self) -> None:
        """Count nobody who is over, before lines are compared: of a line that has none of those, nothing is looked at."""
        if self._stale:
            self._stale = False
            for name, tenant in list(self._turns.items()):
                if tenant.stale > 0:
                    self._purge(name, tenant)

    def _purge(self, name: str, tenant: _Tenant) -> None:
        tenant.line.purge()
        tenant.number = len(tenant.line.fresh) + len(tenant.line.placed)
        tenant.stale = 0
        self._leave_if_empty(name, tenant)

    def __iter__(self) -> Iterator[Delivery]:
        for tenant in self._turns.values():
            yield from tenant.line

    def _append(self, delivery: Delivery) -> None:
        self._enter(delivery).line.append(delivery)

    def _enter(self, delivery: Delivery) -> _Tenant:
        name = self._name(delivery)
        tenant = self._know(name)
        tenant.number += 1
        self._turns.setdefault(name, tenant)
        return tenant

    def _know(self, name: str) -> _Tenant:
        tenant = self._known.get(name)
        if tenant is None:
            tenant = self._known[name] = _Tenant(self._tenants.burst)
        return tenant

    def _end_turn(self, name: str, tenant: _Tenant) -> None:
        tenant.in_turn = False
        self._turns.move_to_end(name)

    def _leave_if_empty(self, name: str, tenant: _Tenant) -> None:
        if tenant.number <= 0:
            tenant.deficit = 0
            tenant.in_turn = False
            self._turns.pop(name, None)
            self._has_token(tenant)
            if self._tenants.rate is None or tenant.tokens >= self._tenants.burst:
                self._known.pop(name, None)
            else:
                self._arm()

    def _has_token(self, tenant: _Tenant) -> bool:
        rate = self._tenants.rate
        if rate is None:
            return True
        now = monotonic()
        tenant.tokens = min(float(self._tenants.burst), tenant.tokens + (now - tenant.filled_at) * rate)
        tenant.filled_at = now
        return tenant.tokens >= 1

    def _arm(self) -> None:
        """Come back when the first of those that wait may go; or, if nobody waits, when the buckets are full again."""
        rate = self._tenants.rate
        if rate is None or not self._known:
            return
        if self._turns:
            missing = min(1 - tenant.tokens for tenant in self._turns.values())
        else:
            missing = max(self._tenants.burst - tenant.tokens for tenant in self._known.values())
        when = monotonic() + max(missing, 0.0) / rate
        if self._timer is not None:
            if self._timer.when <= when:
                return
            self._timer.cancel()
        self._timer = self._timers.at(when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        for name, tenant in list(self._known.items()):
            if name not in self._turns:
                self._leave_if_empty(name, tenant)
        if self._turns:
            self._wake()

    def _name(self, delivery: Delivery | Message) -> str:
        return delivery.headers.get(self._tenants.header, "")

    def _cost(self, delivery: Delivery) -> int:
        return max(1, self._tenants.cost(delivery.message)) if self._tenants.cost is not None else 1
