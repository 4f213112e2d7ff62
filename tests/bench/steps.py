"""Where the time goes in what is slower than it is wished to be: a message alone (B3), the trigger (B6), a consumer (B7), pumps (B1, B9).

python -m tests.bench.steps [--messages 500]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections import defaultdict
from contextlib import AsyncExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import psycopg
import uvloop

from bridges.bridge import Bridge
from outbox.batch import OutboxBatch
from outbox.bench.consumers import effects
from outbox.bench.daemons import daemon
from outbox.bench.drains import ZIPF, stream
from outbox.bench.stage import FILL, PAYLOAD, Stage, until
from outbox.bench.writers import BARE
from outbox.source import OutboxSource
from tests.contracts.outages import family

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

PUT = f"INSERT INTO {{}} (topic, key, payload) VALUES ('bench.steps', 'k', decode(repeat('78', {PAYLOAD}), 'hex'))"
ASLEEP = "SELECT count(*) = 2 FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND database = "
ASLEEP += "(SELECT oid FROM pg_database WHERE datname = current_database())"
EMPTY = "CREATE FUNCTION public.nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
# Of the database that was measured, which is dropped by now; the suite's own are there.
SPENT = "SELECT sum(total_exec_time)::float8 FROM pg_stat_statements WHERE dbid NOT IN (SELECT oid FROM pg_database)"


class Steps:
    """How long each step has taken, every time, in milliseconds."""

    def __init__(self) -> None:
        self.took: dict[str, list[float]] = defaultdict(list)

    def timed(self, step: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return the step with a clock around it."""

        async def run(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return await step(*arguments, **options)
            finally:
                self.took[name].append(1000 * (time.perf_counter() - began))

        return run


async def message_alone(stage: Stage, messages: int) -> None:
    """One message after the other, each put while the pump sleeps."""
    steps = Steps()
    async with (
        stage.database() as dsn,
        stream(stage) as (sink, _),
        OutboxSource(dsn) as source,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as writer,
    ):

        async def asleep() -> bool:
            return await (await writer.execute(ASLEEP)).fetchone() == (True,)

        async def has_settled(number: int) -> bool:
            return len(steps.took["settles, COMMIT"]) > number

        doorbell = source._doorbell
        with (
            patch.object(doorbell, "_wake_up", steps.timed(doorbell._wake_up, "wakes up")),
            patch.object(source, "_begin", steps.timed(source._begin, "claims: BEGIN, lanes")),
            patch.object(source, "_select_due", steps.timed(source._select_due, "claims: rows")),
            patch.object(sink, "publish", steps.timed(sink.publish, "publishes")),
            patch.object(OutboxBatch, "settle", steps.timed(OutboxBatch.settle, "settles, COMMIT")),
            patch.object(doorbell, "_fall_asleep", steps.timed(doorbell._fall_asleep, "falls asleep: lock")),
            patch.object(doorbell, "_look", steps.timed(doorbell._look, "falls asleep: look")),
        ):
            bridge = Bridge(source, sink, claims=2)
            running = asyncio.create_task(bridge.run())
            for number in range(messages):
                await until(asleep, within=10, what="the pump to sleep")
                await writer.execute(PUT.format("outbox.messages"))
                await until(partial(has_settled, number), within=10, what="the message to be settled")
            bridge.stop()
            await running
    print("a message alone, ms (median of each step):")
    for name, took in steps.took.items():
        print(f"  {name:24} {statistics.median(took):6.2f}")


async def trigger(stage: Stage, messages: int) -> None:
    """The same INSERT without a trigger, with one that does nothing, and with the doorbell's: in turns, hundreds of times."""
    async with stage.database() as dsn, await psycopg.AsyncConnection.connect(dsn, autocommit=True) as writer:
        await writer.execute(BARE)
        await writer.execute("CREATE TABLE public.empty (LIKE outbox.messages INCLUDING ALL)")
        await writer.execute(EMPTY)
        await writer.execute("CREATE TRIGGER nothing BEFORE INSERT ON public.empty FOR EACH STATEMENT EXECUTE FUNCTION public.nothing()")
        took: dict[str, list[float]] = {"public.bare": [], "public.empty": [], "outbox.messages": []}
        for _ in range(messages):
            for table, times in took.items():
                began = time.perf_counter()
                for _ in range(10):
                    await writer.execute(PUT.format(table), prepare=True)
                times.append(1e5 * (time.perf_counter() - began))
    bare, empty, ours = took.values()
    print("an INSERT of one message and its COMMIT, us (median):")
    print(f"  without a trigger        {statistics.median(bare):6.0f}")
    for name, times in (("an empty trigger adds", empty), ("the doorbell's adds", ours)):
        print(f"  {name:24} {statistics.median(a - b for a, b in zip(times, bare, strict=True)):6.0f}")


async def consumer(stage: Stage) -> None:
    """A consumer, message by message, and its handler alone: the time of each, and whose it is."""
    print("a consumer, message by message, ms each:")
    for side in ("bare", "dedupe", "bare", "dedupe"):
        async with await psycopg.AsyncConnection.connect(stage.postgres.dsn, autocommit=True) as look:
            await look.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            await look.execute("ALTER ROLE CURRENT_USER SET pg_stat_statements.track = 'all'")
            await look.execute("SELECT pg_stat_statements_reset()")
            began = time.process_time()
            rate = (await effects(stage, side, batch=1))["rate"]
            python = time.process_time() - began
            rows = stage.rows(5_000)
            ((spent,),) = await (await look.execute(SPENT)).fetchall()
        print(f"  {side:24} {1000 / rate:6.2f}, of it Python {1000 * python / rows:.2f} and the server's statements {spent / rows:.2f}")


def processor_seconds(pid: int) -> float:
    """Return what a process has had of the processors, with its children that have ended."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended itself meanwhile, and is its parent's
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


async def pumps(stage: Stage) -> None:
    """Daemons that drain skewed keys: what each row takes of whose processor time."""
    rows = stage.rows(100_000)
    print("daemons that drain, processor time of each row, us:")
    for number in (1, 3, 1, 3):
        async with stage.database() as dsn, stream(stage, allow_atomic=True) as (_, stored), AsyncExitStack() as stack:
            daemons = [await stack.enter_async_context(daemon(stage, dsn, f"pump-{place}")) for place in range(number)]

            def spent(daemons: Sequence[int] = daemons) -> dict[str, float]:
                of = {"the daemons": daemons, "Postgres": family(stage.postgres.pid), "nats-server": [stage.nats.pid]}
                return {name: sum(map(processor_seconds, pids)) for name, pids in of.items()}

            async def all_stored(stored: Callable[[], Awaitable[int]] = stored) -> bool:
                return await stored() >= rows

            async with await psycopg.AsyncConnection.connect(dsn) as connection:
                await connection.execute(FILL.format(key=ZIPF), (rows,))
                before, began = spent(), time.perf_counter()
                await connection.commit()
                await until(all_stored, within=120, what="the queue to be drained")
                took, after = time.perf_counter() - began, spent()
        each = ", ".join(f"{name} {1e6 * (after[name] - value) / rows:.1f}" for name, value in before.items())
        print(f"  {number} at {rows / took:6,.0f} rows/s: {each}; the machine has {1e6 * took * (os.cpu_count() or 1) / rows:.1f}")


async def measure(messages: int) -> None:
    with closing(Stage()) as stage:
        await message_alone(stage, messages)
        await trigger(stage, messages)
        await consumer(stage)
        await pumps(stage)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=500)
    uvloop.run(measure(parser.parse_args().messages))


if __name__ == "__main__":
    main()
