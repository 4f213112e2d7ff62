"""What failures cost those that do not fail: each figure is a ratio of two rates in one run, or a time after a return.

python -m tests.bench.failures [destinations|key|snapshot|queue|scheduled|outage ...] [--seconds 60] [--pairs 3]
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import uvloop

from bridges.backoff import Backoff
from bridges.breaker import Breaker, GuardedSink
from bridges.bridge import Bridge
from bridges.jetstream import JetStream, JetStreamSink
from bridges.jetstream.settings import make_stream
from bridges.ports import PUBLISHED, Outcome, Published, Reason, Retry, Sink
from bridges.router import Route, Router
from bridges.topics import Pattern
from migrations.runner import migrate
from outbox import Draft, Outbox
from outbox.demo.engines import PrivateNats
from outbox.embedded import PrivatePostgres
from outbox.rows import Policy
from outbox.source import OutboxSource
from tests.engines.deadline import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridges.message import Message

FILL = """
INSERT INTO outbox.messages (topic, key, payload)
SELECT (%(topics)s::text[])[1 + i %% cardinality(%(topics)s::text[])], 'k' || i %% %(keys)s, decode(repeat('78', 300), 'hex')
FROM generate_series(1, %(rows)s) AS i"""


@dataclass
class Noting:
    """A Sink that notes when the messages were published that are counted."""

    sink: Sink | None = None
    counts: Callable[[Message], bool] = lambda _: True
    times: list[float] = field(default_factory=list)
    enough: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        outcomes = await self.sink.publish(messages) if self.sink else [PUBLISHED] * len(messages)
        now = time.perf_counter()
        for message, outcome in zip(messages, outcomes, strict=True):
            if isinstance(outcome, Published) and self.counts(message):
                self.times.append(now)
        if self.enough and len(self.times) >= self.enough:
            self.done.set()
        return outcomes


async def fill(dsn: str, rows: int, *, topics: Sequence[str] = ("t",), keys: int = 1000) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(FILL, {"rows": rows, "topics": list(topics), "keys": keys})
        await connection.execute("VACUUM ANALYZE outbox.messages")
        await connection.execute("CHECKPOINT")


async def drain(dsn: str, noting: Noting, sink: Sink, **source: Any) -> float:
    """Run a pump until enough was published, and return the seconds that took."""
    async with OutboxSource(dsn, **source) as outbox:
        bridge = Bridge(outbox, sink)
        began = time.perf_counter()
        running = asyncio.create_task(bridge.run())
        await noting.done.wait()
        seconds = time.perf_counter() - began
        bridge.stop()
        await running
    return seconds


async def clear(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("TRUNCATE outbox.messages, outbox.held, outbox.holds, outbox.deferred, outbox.dead")


async def drain_behind_a_snapshot(dsn: str, table: str, rows: int) -> None:
    """Drain a table of so many rows while a session holds an old snapshot, and print the rates of its first and its last tenth."""
    async with await psycopg.AsyncConnection.connect(dsn) as old:
        await old.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await old.execute(f"SELECT 1 FROM outbox.{table} LIMIT 1")
        noting = Noting(enough=rows)
        began = time.perf_counter()
        await drain(dsn, noting, noting)
    times = [began, *noting.times]
    tenth = rows // 10
    first, last = tenth / (times[tenth] - times[0]), tenth / (times[-1] - times[-1 - tenth])
    ratio = last / first
    verdict = "ok" if ratio >= 0.8 else "MISSED"
    print(f"{table} behind an old snapshot: first {first:,.0f}/s, last {last:,.0f}/s: ratio {ratio:.2f}; at least 0.8 wanted: {verdict}")
    await clear(dsn)


async def compare(name: str, least: float, pairs: int, measure: Callable[[bool], Any]) -> None:
    """Measure without and with the fault in turns, and print the median ratio."""
    ratios = []
    for pair in range(pairs + 1):
        rates = {}
        for fault in (False, True) if pair % 2 else (True, False):
            rates[fault] = await measure(fault)
        ratio = rates[True] / rates[False]
        note = "" if pair else "   (warm-up, not counted)"
        print(f"{name}: {rates[False]:9,.0f}/s without, {rates[True]:9,.0f}/s with: ratio {ratio:.2f}{note}")
        if pair:
            ratios.append(ratio)
    median = statistics.median(ratios)
    print(f"{name}: median ratio {median:.2f} of {pairs} pairs; at least {least} wanted: {'ok' if median >= least else 'MISSED'}")


async def destinations(dsn: str, options: argparse.Namespace) -> None:
    """The rate of one sink, beside another one that is up or down."""
    rows = 60_000
    with PrivateNats() as here, PrivateNats() as there:
        for nats in (here, there):
            async with JetStream(nats.servers) as connection:
                await make_stream(connection, "BENCH", ["here", "there"])

        async def measure(down: bool) -> float:
            await clear(dsn)
            await fill(dsn, rows, topics=("here", "there"))
            async with AsyncExitStack() as stack:
                breakers, routes = [], []
                noting = Noting(counts=lambda message: message.topic == "here", enough=rows // 2)
                for name, nats in (("here", here), ("there", there)):
                    servers = ["nats://127.0.0.1:1"] if down and name == "there" else nats.servers
                    connection = await stack.enter_async_context(JetStream(servers))
                    breakers.append(Breaker(name))
                    routes.append(Route(Pattern(name), GuardedSink(JetStreamSink(connection, stream="BENCH"), breakers[-1])))
                noting.sink = Router(routes)
                policies = {name: Policy(destination=name) for name in ("here", "there")}
                return rows / 2 / await drain(dsn, noting, noting, policy=policies.__getitem__, breakers=breakers)

        await compare("one of two sinks down", 0.8, options.pairs, measure)
    await clear(dsn)


async def key(dsn: str, options: argparse.Namespace) -> None:
    """The rate of 999 keys, beside one that fails for ever or does not."""
    rows = 60_000
    with PrivateNats() as nats:
        async with JetStream(nats.servers) as connection:
            await make_stream(connection, "BENCH", ["t"])

            async def measure(fails: bool) -> float:
                await clear(dsn)
                await fill(dsn, rows)
                noting = Noting(
                    sink=JetStreamSink(connection, stream="BENCH"), counts=lambda message: message.key != "k7", enough=rows - rows // 1000
                )

                class Failing:
                    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
                        if not fails:
                            return await noting.publish(messages)
                        good = [message for message in messages if message.key != "k7"]
                        outcomes = iter(await noting.publish(good))
                        return [Retry(Reason.REFUSED, "no") if message.key == "k7" else next(outcomes) for message in messages]

                return (rows - rows // 1000) / await drain(dsn, noting, Failing(), retry=Backoff(first=0.05, cap=0.5))

            await compare("one of 1,000 keys fails", 0.9, options.pairs, measure)
    await clear(dsn)


async def snapshot(dsn: str, options: argparse.Namespace) -> None:
    """The rates of the first and the last tenth of 1,000,000 rows behind a session that holds an old snapshot."""
    rows = 1_000_000
    await fill(dsn, rows)
    await drain_behind_a_snapshot(dsn, "messages", rows)


async def queue(dsn: str, options: argparse.Namespace) -> None:
    """The same for the queue of a destination that was away: 400,000 rows in the holds of 64 lanes."""
    rows = 400_000
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute(
            """
            INSERT INTO outbox.held (position, id, created_at, priority, lane, topic, key, content_type, headers, hold, payload)
            SELECT n, gen_random_uuid(), now(), 0, n %% 64, 't', 'k' || n, 'a', '{}', 'sink:s/' || n %% 64, decode(repeat('78', 300), 'hex')
            FROM generate_series(1, %s) AS n""",
            (rows,),
        )
        await connection.execute("""
            INSERT INTO outbox.holds (hold, destination, due_at, attempts, lane)
            SELECT 'sink:s/' || n, 's', now(), 0, n FROM generate_series(0, 63) AS n""")
    await drain_behind_a_snapshot(dsn, "held", rows)


async def scheduled(dsn: str, options: argparse.Namespace) -> None:
    """How late 10,000 messages are that were scheduled for the same second."""
    due = datetime.now(UTC) + timedelta(seconds=4)
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await Outbox().aput_many(connection, [Draft("t", b"", deliver_at=due) for _ in range(10_000)])
    noting = Noting(enough=10_000)
    offset = time.perf_counter() + (due - datetime.now(UTC)).total_seconds()
    await drain(dsn, noting, noting)
    late = sorted((moment - offset) * 1000 for moment in noting.times)
    batches = len(set(noting.times))
    print(f"10,000 for the same second: first {late[0]:.0f} ms late, median {late[5000]:.0f}, last {late[-1]:.0f}, in {batches} batches")
    await clear(dsn)


async def outage(dsn: str, options: argparse.Namespace) -> None:
    """A broker that is killed under load, and comes back: nothing dead, nothing counted, and how soon all is through."""
    written = 0
    writing = True
    with PrivateNats() as nats:
        async with JetStream(nats.servers) as connection:
            await make_stream(connection, "BENCH", ["t"])
            noting = Noting(sink=JetStreamSink(connection, stream="BENCH", timeout=5.0))

            async def caught_up(but: int) -> bool:
                return written - len(noting.times) <= but

            async def write() -> None:
                nonlocal written
                async with await psycopg.AsyncConnection.connect(dsn) as writer:
                    while writing:
                        await Outbox().aput_many(writer, [Draft("t", b"x" * 300, key=f"k{n}") for n in range(50)])
                        await writer.commit()
                        written += 50
                        await asyncio.sleep(0.05)

            async with OutboxSource(dsn, retry=Backoff(max_attempts=3)) as source:
                bridge = Bridge(source, noting)
                running, load = asyncio.create_task(bridge.run()), asyncio.create_task(write())
                await asyncio.sleep(3)
                nats.stop(signal.SIGKILL)
                await asyncio.sleep(options.seconds)
                waiting = written - len(noting.times)
                nats.start()
                back = time.perf_counter()
                await eventually(lambda: caught_up(100), within=120)
                seconds = time.perf_counter() - back
                writing = False
                await load
                await eventually(lambda: caught_up(0), within=120)
                bridge.stop()
                await running
    async with await psycopg.AsyncConnection.connect(dsn) as connection_:
        cursor = await connection_.execute(
            "SELECT (SELECT count(*) FROM outbox.dead), (SELECT count(*) FROM outbox.deferred) + (SELECT count(*) FROM outbox.holds)"
        )
        ((dead, counted),) = await cursor.fetchall()
    verdict = "ok" if seconds <= 10 and dead == counted == 0 else "MISSED"
    print(
        f"away for {options.seconds} s under load, max_attempts = 3: {dead} dead, {counted} attempts charged, {waiting:,} waited, "
        f"drained {seconds:.1f} s after its return; at most 10 wanted: {verdict}"
    )


PARTS = {part.__name__: part for part in (destinations, key, snapshot, queue, scheduled, outage)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        postgres = stack.enter_context(PrivatePostgres(settings={"shared_buffers": "512MB", "max_wal_size": "4GB"}))
        with psycopg.connect(postgres.dsn) as connection:
            migrate(connection, "outbox", schema="outbox")
        for name in options.parts or PARTS:
            uvloop.run(PARTS[name](postgres.dsn, options))


if __name__ == "__main__":
    main()
