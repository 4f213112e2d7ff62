"""What a proxy is told to do to its connections, and what it has done."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from tests.faults.protocols import Direction

if TYPE_CHECKING:
    from tests.faults.relay import End, Link

Action: TypeAlias = Literal["cut", "lose", "repeat", "late"]


@dataclass
class Plan:
    """What is to be done at a protocol moment, at the ``left``-th from now."""

    action: Action
    moment: str
    left: int
    seconds: float = 0.0
    done: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class State:
    """What is done to all connections of a proxy, and what has been done."""

    refusing: bool = False
    half_closed: set[Direction] = field(default_factory=set)
    swallowing: set[Direction] = field(default_factory=set)
    frozen: set[Direction] = field(default_factory=set)
    sliced: set[Direction] = field(default_factory=set)
    delays: dict[Direction, float] = field(default_factory=dict)
    plans: list[Plan] = field(default_factory=list)
    connections: int = 0
    forwarded: dict[Direction, int] = field(default_factory=lambda: dict.fromkeys(Direction, 0))
    faults: Counter[str] = field(default_factory=Counter)
    links: set[Link] = field(default_factory=set)
    ends: set[End] = field(default_factory=set)
    """Open sockets."""
    connecting: set[asyncio.Task[None]] = field(default_factory=set)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever the last socket is closed."""

    def plan(self, moment: str | None) -> Plan | None:
        """Return what is to be done now, at this moment, and count it."""
        fit = [plan for plan in self.plans if plan.moment == moment]
        for plan in fit:
            plan.left -= 1
        due = next((plan for plan in fit if plan.left <= 0), None)  # another that is due as well has the next
        if due:
            self.plans.remove(due)
        return due
