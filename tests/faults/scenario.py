"""A run: everything is started, one nemesis after the other is let loose, then it heals, drains and is written down for the checker."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import psycopg

from tests.engines.command import COMMAND
from tests.engines.deadline import eventually
from tests.faults.catalogue import chosen
from tests.faults.fleet import fleet, metric
from tests.faults.history import Death, Effect, Fault, History, Probe, Settled, Stuck
from tests.faults.nemeses import last
from tests.faults.sabotage import SABOTAGES
from tests.faults.watched import Count, Look, audits, with_recovery

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from uuid import UUID

    from tests.faults.fleet import Fleet, Member
    from tests.faults.history import Sample
    from tests.faults.nemeses import Nemesis

WARM_UP: Final = 4.0
"""Seconds without a fault before the first: for the rate that a recovery is compared with, in the later half, and for the first sample."""
QUIET: Final = 0.25
"""The share of a mixture in which nothing is done to anybody."""
DRAIN: Final = 60.0
"""By then everything is through when all has healed."""
STOP: Final = 15.0
"""Seconds that a daemon may take to stop: its drain timeout, and what a process needs to end on a busy machine."""
_LOOK_EVERY: Final = 0.25
_AUDIT_EVERY: Final = 3.0
_GAUGES: Final = {
    "outbox_backlog_messages": "messages",
    "outbox_held_messages": "held",
    "outbox_deferred_messages": "deferred",
    "outbox_dead_letters": "dead",
}
"""What a pump says of the tables."""


class Watch:
    """What is seen from outside while a run goes on: effects, what the outbox still has, what the processes use."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.counts: list[Count] = []
        self.looks: list[Look] = []
        self.samples: list[Sample] = []

    async def run(self) -> None:
        """Look at a steady pace until cancelled, over a new connection when Postgres was away."""
        while True:
            with suppress(psycopg.Error, OSError):
                async with self._fleet.look() as connection:
                    while True:
                        await self._look(connection)
                        await asyncio.sleep(_LOOK_EVERY)
            await asyncio.sleep(_LOOK_EVERY)

    async def _look(self, connection: psycopg.AsyncConnection[Any]) -> None:
        cursor = await connection.execute("SELECT count(*) FROM effects")
        ((effects,),) = await cursor.fetchall()
        self.counts.append(Count(time.time(), effects))
        if not self.looks or time.time() - self.looks[-1].began > _AUDIT_EVERY:
            self.samples += await self._fleet.samples(connection)
            began = time.time()
            left = frozenset(await _ids(connection, ("messages", "held", "deferred", "dead")))
            self.looks.append(Look(began, time.time(), left))


async def play(
    sink: str,
    folder: Path,
    nemeses: Sequence[Nemesis],
    *,
    seed: int,
    seconds: float | None = None,
    pumps: int | None = None,
    rate: float = 40.0,
    calm: float = WARM_UP,
    drain: float = DRAIN,
    command: Sequence[str] = COMMAND,
) -> History:
    """Run a mixture of nemeses, or each of them once, and return what there is to check.

    Args:
        sink: one of `tests.faults.fleet.SINKS`.
        folder: for everything that the processes write.
        nemeses: what may be done.
        seed: of the mixture, and of the messages.
        seconds: how long the mixture goes on, in which none is done again before all were; None: each nemesis once, in its order.
        pumps: daemons with a pump; None: as many as the nemeses need.
        rate: transactions a second.
        calm: seconds after each nemesis, at the least.
        drain: seconds that everything may take to be through when all has healed.
        command: ``outboxd``.

    What a nemesis waits for in vain ends the mixture, and is in the history.
    """
    chance = random.Random(seed)
    pumps = pumps or max((nemesis.pumps for nemesis in nemeses), default=1)
    history = History(sink, seed, consumers=("ledger",), nemeses=tuple(each.name for each in nemeses))
    small_disks = any(each.small_disks for each in nemeses)
    async with fleet(sink, folder, pumps=pumps, rate=rate, seed=seed, small_disks=small_disks, command=command) as ours:
        watch = Watch(ours)
        for daemon in ours.daemons:
            daemon.start()
        await ours.ready()
        ours.writer.start()
        watching = asyncio.create_task(watch.run())
        try:
            await last(WARM_UP)
            for nemesis in mixture(nemeses, chance, seconds):
                began = time.time()
                await _let_loose(nemesis, ours, chance, history)
                history.consumer_hit |= nemesis.hits_consumer and sink in {"jetstream", "bridged"}
                await _heal(ours, history)
                if history.stuck:
                    break
                # Long enough to see it recover, and a quarter of the time in any case.
                await last(max(calm, (time.time() - began) * QUIET / (1 - QUIET)))
            await _drain(ours, drain)
            history.probes += await _probes(ours)
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching  # what ended it before has blinded the checker
        history.exits += [await daemon.stop(STOP) for daemon in ours.daemons]
        await _collect(ours, watch, history)
    return history


async def play_with(bug: str, folder: Path) -> History:
    """Run daemons that have a bug of `tests.faults.sabotage`, and return what there is to check."""
    its = SABOTAGES[bug]
    command = (sys.executable, "-m", "tests.faults.sabotage", bug)
    nemeses = chosen(its.nemeses, its.sink) if its.nemeses else []
    return await play(its.sink, folder, nemeses, seed=1, calm=its.calm, drain=10.0, command=command)


def mixture(nemeses: Sequence[Nemesis], chance: random.Random, seconds: float | None) -> Iterator[Nemesis]:
    """Yield each once, in order; or one after the other for so many seconds, all of them before any again."""
    if seconds is None:
        yield from nemeses
        return
    deadline = time.monotonic() + seconds
    while nemeses:
        for nemesis in chance.sample(nemeses, len(nemeses)):
            if time.monotonic() >= deadline:
                return
            yield nemesis


async def _let_loose(nemesis: Nemesis, ours: Fleet, chance: random.Random, history: History) -> None:
    began, ours.waited_since = time.time(), None
    try:
        async with asyncio.timeout(nemesis.longest):
            await nemesis.hurt(ours, chance, history)
    except (AssertionError, TimeoutError) as problem:  # the latter may be its server's, which says more
        why = str(problem) or f"it was still waiting after {time.time() - began:.0f} s"
        history.stuck.append(Stuck(time.time(), nemesis.name, why))
    # The last that it does is to wait, if anybody is to come back.
    history.faults.append(Fault(nemesis.name, began, ours.waited_since or time.time(), nemesis.times))


async def _heal(ours: Fleet, history: History) -> None:
    """Undo what a nemesis may have left, and note who ended who was not killed: a nemesis starts again whom it kills."""
    for way in ours.ways:
        way.heal()
    for daemon in ours.daemons:
        if not daemon.pid:
            history.restarts += 1
            daemon.start()
    if not ours.writer.pid:
        ours.writer.start()


async def _drain(ours: Fleet, seconds: float) -> None:
    """Stop writing, and wait until everything is through, or as long as it may take: the checker says what is not."""
    await ours.writer.stop(STOP)
    wanted = sum(put.outcome == "ok" for put in ours.puts())

    async def is_through() -> bool:
        return await ours.waiting() == 0 and await ours.effects() >= wanted

    with suppress(AssertionError, psycopg.Error):
        await eventually(is_through, within=seconds, what="the outbox to be empty")


async def _probes(ours: Fleet) -> list[Probe]:
    """Compare what the daemons say with what is so, now that nothing moves."""
    async with ours.look() as connection:
        wanted = {gauge: float(len(await _ids(connection, [table]))) for gauge, table in _GAUGES.items()}
    found = []
    for daemon in ours.daemons:

        async def measured(daemon: Member = daemon) -> bool:
            _, text = await daemon.ask("/metrics")
            return all(metric(text, name) == so for name, so in wanted.items())

        if daemon in ours.pumps:
            with suppress(AssertionError):
                await eventually(measured, within=5, what="the next measurement")

        async def ready(daemon: Member = daemon) -> bool:
            return (await daemon.ask("/readyz"))[0] == 200

        with suppress(AssertionError):  # what another pump has published was to be tried again by now, and to be measured
            await eventually(ready, within=30, what="the daemon to be ready")
        found.append(Probe(time.time(), daemon.name, "readyz", await ready(), 1.0))
        _, text = await daemon.ask("/metrics")
        for name, so in wanted.items() if daemon in ours.pumps else ():
            said = metric(text, name)
            found.append(Probe(time.time(), daemon.name, name, -1.0 if said is None else said, so))
    return found


async def _collect(ours: Fleet, watch: Watch, history: History) -> None:
    history.puts += ours.puts()
    history.copies = await ours.broker.copies()
    history.samples = watch.samples
    history.in_flight = ours.in_flight
    async with ours.look() as connection:
        cursor = await connection.execute("SELECT place, id, key, number, digest FROM effects ORDER BY place")
        history.effects = [Effect(place, "ledger", *effect) for place, *effect in await cursor.fetchall()]
        cursor = await connection.execute(
            "SELECT id, reason FROM outbox.dead UNION ALL SELECT message_id, 'consumer' FROM dedupe.consumer_dead"
        )
        history.deaths = [Death(identity, reason) for identity, reason in await cursor.fetchall()]
        history.left = await _ids(connection, ("messages", "held", "deferred"))
        cursor = await connection.execute("SELECT at, session, ids, unowned FROM settled")
        history.settled = [Settled(at, who, frozenset(ids), frozenset(unowned)) for at, who, ids, unowned in await cursor.fetchall()]
    history.audits = audits(watch.looks, history.copies)
    history.faults = with_recovery(history.faults, watch.counts, warm=WARM_UP / 2)  # by then the writer has begun
    logs = {member.name: member.log for member in (ours.writer, *ours.daemons)} | ours.server_logs
    history.logs = {name: log.read_text(errors="replace") for name, log in logs.items() if log.exists()}


async def _ids(connection: psycopg.AsyncConnection[Any], tables: Sequence[str]) -> list[UUID]:
    query = " UNION ALL ".join(f"SELECT id FROM outbox.{table}" for table in tables)
    cursor = await connection.execute(query.encode())  # of our own names
    return [identity for (identity,) in await cursor.fetchall()]
