"""A line that is fair between tenants: a limit for each (token bucket), and deficit round-robin among those that wait.

After "Efficient Fair Queuing Using Deficit Round-Robin" (M. Shreedhar and G. Varghese, 1996); whom to drop is that of "Stochastic Fair
Queueing" (P. McKenney, 1990): who has the most. What a tenant has is all that waits: in its line, parked behind its key, or for a retry.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from time import monotonic
from typing import TYPE_CHECKING

from bridges.inprocess.line import FirstComeLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bridges.inprocess.delivery import Delivery
    from bridges.inprocess.tenants import Tenants
    from bridges.inprocess.timers import Timer, Timers
    from bridges.message import Message

log = logging.getLogger("outboxd.inprocess")


class _Tenant:
    """The line of one tenant, and what it may have. It is forgotten when its line is empty and its bucket is full."""

    __slots__ = ("deficit", "filled_at", "in_turn", "line", "tokens")

    def __init__(self, tokens: float) -> None:
        self.line = FirstComeLine()
        self.deficit = 0
        self.in_turn = False
        self.tokens = tokens
        self.filled_at = monotonic()


class FairLine:
    """A line for each tenant; every tenant that waits gets its turn, and none gets more than its limit."""

    def __init__(self, tenants: Tenants, name: str, timers: Timers, wake: Callable[[], None]) -> None:
        self._tenants = tenants
        self._mailbox = name
        self._timers = timers
        self._wake = wake
        self._known: dict[str, _Tenant] = {}
        self._turns: OrderedDict[str, _Tenant] = OrderedDict()
        self._waiting: dict[str, int] = {}
        """How many wait of each tenant that has any, in its line or beside it."""
        self._costs: dict[Delivery, int] = {}
        """What each of them costs, if not 1."""
        self._timer: Timer | None = None
        self.append: Callable[[Delivery], None] = self._append
        self.fresh: deque[Delivery] = deque()
        self.placed: list[tuple[int, int, Delivery]] = []

    def came(self, delivery: Delivery) -> None:
        """One begins to wait, and does not go through `append`."""
        name = self._name(delivery)
        self._waiting[name] = self._waiting.get(name, 0) + 1
        if self._tenants.cost is not None and (cost := self._cost(self._tenants.cost, delivery.message)) > 1:
            self._costs[delivery] = cost

    def insert(self, delivery: Delivery) -> None:
        """Take in what has a place of its own, in the line of its tenant."""
        self._enter(delivery).line.insert(delivery)

    def pop(self) -> Delivery | None:
        """Take out the next of the tenant whose turn it is; None if no tenant may go now."""
        limited = 0
        short: dict[str, int] = {}
        while limited < len(self._turns):
            name, tenant = next(iter(self._turns.items()))
            if not self._has_token(tenant):
                self._turns.move_to_end(name)
                limited += 1
                continue
            if name in short:  # everyone who may go has had a turn, and it was too little
                self._pass_turns(short)
                short.clear()
            delivery = tenant.line.pop()
            if delivery is None:
                self._leave_if_empty(name, tenant)
                continue
            if not tenant.in_turn:
                tenant.in_turn = True
                tenant.deficit += self._tenants.quantum
            missing = self._costs.get(delivery, 1) - tenant.deficit
            if missing > 0 and not delivery.over:
                tenant.line.insert(delivery)
                self._end_turn(name, tenant)
                short[name] = missing
                limited = 0
                continue
            self._leave_if_empty(name, tenant)
            return delivery
        self._arm()
        return None

    def charge(self, delivery: Delivery) -> None:
        """Take what a delivery costs from its tenant, which may have nothing more in line."""
        name = self._name(delivery)
        tenant = self._know(name)
        cost = self._waits_no_longer(name, delivery)
        if self._tenants.rate is not None:
            tenant.tokens -= 1
        if name in self._turns:
            tenant.deficit -= cost
            if tenant.deficit <= 0:
                self._end_turn(name, tenant)
        else:
            self._leave_if_empty(name, tenant)

    def evict(self, newcomer: Delivery, *, oldest: bool) -> Delivery:
        """Return whom to drop: one of the tenant that has the most, among those of which one may go; else the newcomer.

        None of a tenant that has less than the newcomer's would have; and where it has as many, the newcomer, unless it is the ``oldest``
        that is to go.
        """
        own = self._name(newcomer)
        number = self._waiting.get(own, 0) + (not oldest)
        fuller = [name for name in self._turns if name != own and self._waiting.get(name, 0) > number]
        for name in sorted(fuller, key=self._waiting.__getitem__, reverse=True):
            if (victim := self._evict_of(name, newcomer, oldest=oldest)) is not newcomer:
                return victim
        return self._evict_of(own, newcomer, oldest=True) if oldest and own in self._turns else newcomer

    def over(self, delivery: Delivery) -> None:
        """One waits no longer, in its line or beside it."""
        self._waits_no_longer(self._name(delivery), delivery)

    def admits(self, newcomer: Message, limit: int) -> bool:
        """Say whether a newcomer may come in although ``limit`` are waiting: if its tenant has less than its share of them."""
        own = self._waiting.get(self._name(newcomer), 0)
        return own < max(1, limit // (len(self._waiting) + (not own)))

    def ready(self) -> bool:
        """Say whether some tenant may go now."""
        if any(map(self._has_token, self._turns.values())):
            return True
        self._arm()
        return False

    def lags(self) -> dict[str, int]:
        """Return how many wait of each tenant."""
        return dict(self._waiting)

    def purge(self) -> None:
        """Take out all that are over."""
        for name, tenant in list(self._turns.items()):
            tenant.line.purge()
            self._leave_if_empty(name, tenant)

    def __iter__(self) -> Iterator[Delivery]:
        for tenant in self._turns.values():
            yield from tenant.line

    def _append(self, delivery: Delivery) -> None:
        self.came(delivery)
        self._enter(delivery).line.append(delivery)

    def _enter(self, delivery: Delivery) -> _Tenant:
        name = self._name(delivery)
        tenant = self._know(name)
        self._turns.setdefault(name, tenant)
        return tenant

    def _know(self, name: str) -> _Tenant:
        tenant = self._known.get(name)
        if tenant is None:
            tenant = self._known[name] = _Tenant(self._tenants.burst)
        return tenant

    def _waits_no_longer(self, name: str, delivery: Delivery) -> int:
        """Forget one that waited; return what it costs."""
        number = self._waiting.pop(name, 0)
        if number > 1:
            self._waiting[name] = number - 1
        return self._costs.pop(delivery, 1)

    def _evict_of(self, name: str, newcomer: Delivery, *, oldest: bool) -> Delivery:
        """Take one out of the line of a tenant; return the newcomer if there is none that may go for it."""
        tenant = self._turns[name]
        victim = tenant.line.evict(newcomer, oldest=True) if oldest else tenant.line.pop_newest()
        self._leave_if_empty(name, tenant)
        return newcomer if victim is None else victim

    def _pass_turns(self, short: dict[str, int]) -> None:
        """Give tenants that miss something for their next the turns in which still none of them could go, all at once."""
        quantum = self._tenants.quantum
        turns = -(-min(short.values()) // quantum) - 1
        for name in short:
            self._turns[name].deficit += turns * quantum

    def _end_turn(self, name: str, tenant: _Tenant) -> None:
        tenant.in_turn = False
        self._turns.move_to_end(name)

    def _leave_if_empty(self, name: str, tenant: _Tenant) -> None:
        if not tenant.line.ready():
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

    def _cost(self, cost: Callable[[Message], int], message: Message) -> int:
        try:
            return int(cost(message))
        except Exception:  # it is the application's: whatever it raises must not reach a publisher, or lose the message
            log.exception("%s: the cost of tenants raised for a message of %r; it counts as 1", self._mailbox, message.topic)
            return 1
