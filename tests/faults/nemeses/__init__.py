"""What can be done to a run, by name; and what all of it needs.

A nemesis does its harm and undoes what it must; whatever a proxy was told is healed after it. It starts again the processes that it killed:
that is the supervisor's part. None starts one that ended by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tests.engines.deadline import eventually
from tests.faults.fleet import SINKS, Fleet, Member, metric
from tests.faults.history import History, Probe

if TYPE_CHECKING:
    import random

Hurt: TypeAlias = Callable[[Fleet, "random.Random", History], Awaitable[None]]

SERVERS: Final = ("jetstream", "kafka")
"""The sinks that have a server."""


@dataclass(frozen=True)
class Nemesis:
    """Something that may be done to a run."""

    name: str
    hurt: Hurt
    sinks: tuple[str, ...] = SINKS
    pumps: int = 1
    """How many pumps there must be at least."""
    longest: float = 60.0
    """Seconds after which it is itself what hangs."""
    small_disks: bool = False
    """Whether the servers' data must be on disks that can be filled."""
    times: int = 1
    """How often it breaks something."""
    hits_consumer: bool = False
    """Whether a consumer may not get, or not acknowledge, what it was sent."""


NEMESES: Final[dict[str, Nemesis]] = {}


def nemesis(name: str, **how: Any) -> Callable[[Hurt], Hurt]:
    """Register what follows under a name; ``how`` are the fields of `Nemesis`."""

    def register(hurt: Hurt) -> Hurt:
        assert name not in NEMESES, name
        NEMESES[name] = Nemesis(name, hurt, **how)
        return hurt

    return register


async def last(seconds: float) -> None:
    """Let a harm, or the quiet between two, last so long: it is a dose, and no condition is waited for."""
    await asyncio.sleep(seconds)


async def reached(moment: asyncio.Event, what: str, within: float = 20.0) -> None:
    """Wait for a moment of a protocol."""
    try:
        async with asyncio.timeout(within):
            await moment.wait()
    except TimeoutError:
        raise AssertionError(f"{what} was not reached within {within:g} s") from None


async def unready(ours: Fleet, history: History, *members: Member) -> None:
    """Wait until daemons say that something is wrong, or note that they did not: the probes must not be green in an outage.

    Those given, or the first pump: another, to which nothing falls meanwhile, does not meet a broker that is away.
    """

    async def note(member: Member) -> None:
        async def is_unready() -> bool:
            return (await member.ask("/readyz"))[0] == 503

        green = True
        with suppress(AssertionError):
            green = not await eventually(is_unready, within=15, what=f"{member.name} to be unready")
        history.probes.append(Probe(time.time(), member.name, "readyz", float(green), 0.0))

    await asyncio.gather(*map(note, members or ours.pumps[:1]))


async def backlogged(ours: Fleet, history: History) -> None:
    """Wait until the first pump says that messages wait, which go on to be written, or note that it did not."""
    pump, said = ours.pumps[0], 0.0

    async def is_told() -> bool:
        nonlocal said
        _, text = await pump.ask("/metrics")
        said = float(sum(metric(text, f"outbox_{which}_messages") or 0 for which in ("backlog", "held")) > 0)
        return bool(said)

    with suppress(AssertionError):
        await eventually(is_told, within=15, what=f"{pump.name} to tell of what waits")
    history.probes.append(Probe(time.time(), pump.name, "whether messages wait", said, 1.0))
