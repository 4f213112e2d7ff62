"""A real ``outboxd run``: what signals, kills and outages do to it, and what its probes say."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import nats as client_library
import psycopg
import pytest
from nats.js.api import StreamConfig

from outbox import Draft, Outbox
from outbox.demo.engines import PrivateNats
from outbox.embedded import PrivatePostgres
from tests.conftest import Stream
from tests.engines.daemons import Daemon
from tests.engines.deadline import eventually
from tests.engines.pumps import is_empty
from tests.integration import shop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

OUTBOX = Outbox()

IN_PROCESS = """
[pump]
batch = 20
drain_timeout = 10
[sinks.local]
kind = "inprocess"
[[routes]]
topics = "orders.>"
sink = "local"
[[consumers]]
app = "tests.integration.shop:consumer"
"""


def through(stream: Stream) -> str:
    sink = f'kind = "jetstream"\nservers = ["{stream.url}"]\nstream = "{stream.name}"\ntimeout = 2'
    route = f'topics = "orders.>"\nsink = "events"\nsubject = "{stream.subject}"'
    return f"[pump]\nbatch = 50\ndrain_timeout = 10\n[sinks.events]\n{sink}\n[[routes]]\n{route}\n"


async def put(dsn: str, first: int, number: int) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await OUTBOX.aput_many(connection, [Draft("orders.created", str(n).encode(), key=str(n % 7)) for n in range(first, first + number)])


async def handled(connection: psycopg.AsyncConnection) -> list[tuple[str, int]]:
    cursor = await connection.execute("SELECT key, payload::int FROM effects ORDER BY place")
    return [(row[0], row[1]) for row in await cursor.fetchall()]


def in_order(effects: list[tuple[str, int]]) -> bool:
    return all(numbers == sorted(numbers) for key in {key for key, _ in effects} for numbers in [[n for k, n in effects if k == key]])


async def test_sigterm_finishes_what_is_in_flight_and_exits_0(database: str, connection: psycopg.AsyncConnection, tmp_path: Path) -> None:
    await connection.execute(shop.TABLE)
    await put(database, 0, 500)
    async with Daemon(tmp_path, IN_PROCESS, database) as daemon:

        async def some() -> bool:
            return len(await handled(connection)) > 20

        await eventually(some)
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
    async with Daemon(tmp_path, IN_PROCESS, database) as daemon:
        await eventually(lambda: is_empty(connection))
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
    effects = await handled(connection)
    assert sorted(n for _, n in effects) == list(range(500))
    assert in_order(effects)


async def test_sigkill_at_any_moment_loses_nothing_and_repeats_no_effect(
    database: str, connection: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    await connection.execute(shop.TABLE)
    await put(database, 0, 400)
    for kill_after in (1, 100, 250):
        async with Daemon(tmp_path, IN_PROCESS, database) as daemon:

            async def so_many(wanted: int = kill_after) -> bool:
                return len(await handled(connection)) >= wanted

            await eventually(so_many)
            daemon.signal(signal.SIGKILL)
            assert await daemon.ended() == -signal.SIGKILL
    async with Daemon(tmp_path, IN_PROCESS, database):
        await eventually(lambda: is_empty(connection))
    effects = await handled(connection)
    assert sorted(n for _, n in effects) == list(range(400))
    assert in_order(effects)


async def test_through_jetstream_with_kills_of_the_pump(
    database: str, connection: psycopg.AsyncConnection, stream: Stream, tmp_path: Path
) -> None:
    """Every message is in the stream at least once, and each key's first copies are in order."""
    await put(database, 0, 2000)
    for rest in (1990, 1000):
        async with Daemon(tmp_path, through(stream), database) as daemon:

            async def fewer(wanted: int = rest) -> bool:
                cursor = await connection.execute("SELECT count(*) <= %s FROM outbox.messages", (wanted,))
                return await cursor.fetchone() == (True,)

            await eventually(fewer)
            daemon.signal(signal.SIGKILL)
            await daemon.ended()
    async with Daemon(tmp_path, through(stream), database):
        await eventually(lambda: is_empty(connection))
    import nats

    client = await nats.connect(stream.url)
    subscription = await client.jetstream().subscribe(f"{stream.prefix}.>", ordered_consumer=True)
    seen: dict[int, None] = {}
    while len(seen) < 2000:
        message = await subscription.next_msg(timeout=10)
        seen.setdefault(int(message.data))
    await client.close()
    assert in_order([(str(n % 7), n) for n in seen])


@asynccontextmanager
async def publishing_to_a_frozen_broker(
    database: str, connection: psycopg.AsyncConnection, folder: Path, *, drain_timeout: int
) -> AsyncIterator[Daemon]:
    """Yield a daemon that has claimed ten messages and waits for their acknowledgements, for longer than it may drain."""
    with PrivateNats() as nats:
        client = await client_library.connect(nats.servers[0])
        await client.jetstream().add_stream(StreamConfig(name="s", subjects=["s.>"]))
        await client.close()
        configuration = through(Stream(nats.servers[0], "s", "s")).replace("timeout = 2\n", "timeout = 25\n")
        async with Daemon(folder, configuration.replace("drain_timeout = 10", f"drain_timeout = {drain_timeout}"), database) as daemon:
            await daemon.answers("/readyz", 200)
            nats.signal(signal.SIGSTOP)
            await put(database, 0, 10)

            async def claimed() -> bool:
                cursor = await connection.execute(
                    "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'outboxd' AND state = 'idle in transaction'"
                )
                return await cursor.fetchone() == (True,)

            await eventually(claimed)
            yield daemon
        nats.signal(signal.SIGCONT)


async def test_a_second_signal_ends_it_at_once(database: str, connection: psycopg.AsyncConnection, tmp_path: Path) -> None:
    async with publishing_to_a_frozen_broker(database, connection, tmp_path, drain_timeout=60) as daemon:
        daemon.signal(signal.SIGTERM)
        await daemon.answers("/readyz", 503, having="shutting down")
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended(5) == 128 + signal.SIGTERM


async def test_the_drain_timeout_holds_with_a_frozen_broker(database: str, connection: psycopg.AsyncConnection, tmp_path: Path) -> None:
    async with publishing_to_a_frozen_broker(database, connection, tmp_path, drain_timeout=3) as daemon:
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended(8) == 0
    cursor = await connection.execute("SELECT count(*) FROM outbox.messages")
    assert await cursor.fetchone() == (10,), "what was in flight is given back"


async def test_probes_and_metrics(database: str, connection: psycopg.AsyncConnection, tmp_path: Path) -> None:
    await connection.execute(shop.TABLE)
    await put(database, 0, 10)
    async with Daemon(tmp_path, IN_PROCESS, database) as daemon:
        await daemon.answers("/livez", 200, having="ok")
        await daemon.answers("/readyz", 200, having="ok")
        text = await daemon.answers("/metrics", 200, having='outbox_messages_published_total{sink="local"} 10.0')
        for name in (
            "outbox_outcomes_total",
            "outbox_backlog_messages",
            "outbox_oldest_message_age_seconds",
            "outbox_deferred_messages",
            "outbox_dead_letters",
            "outbox_claim_seconds",
            "outbox_publish_seconds",
            "outbox_settle_seconds",
            "outbox_latency_seconds",
            "outbox_batch_messages",
            "outbox_sink_up",
            "outbox_last_progress_timestamp_seconds",
            "dedupe_processed_total",
            "dedupe_duplicates_total",
            "dedupe_handler_seconds",
        ):
            assert f"# TYPE {name.removesuffix('_total')}" in text or f"# TYPE {name}" in text


async def test_the_figures_of_each_in_process_broker_are_among_the_metrics(
    database: str, connection: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    await connection.execute(shop.TABLE)
    await put(database, 0, 10)
    async with Daemon(tmp_path, IN_PROCESS + 'source = "local"\n[sinks.spare]\nkind = "inprocess"\n', database) as daemon:
        done = 'outbox_inprocess_done_total{broker="local",subscription="shop"} 10.0'
        text = await daemon.answers("/metrics", 200, having=done)
        for line in (
            'outbox_inprocess_published_total{broker="local",subscription="shop"} 10.0',
            'outbox_inprocess_lag_messages{broker="local",subscription="shop"} 0.0',
            'outbox_inprocess_handler_seconds_count{broker="local",subscription="shop"} 10.0',
            'outbox_inprocess_dead_letters{broker="local"} 0.0',
            'outbox_inprocess_dead_letters{broker="spare"} 0.0',
        ):
            assert line in text


async def test_readiness_tells_of_a_broker_that_is_away_and_of_its_return(
    database: str, connection: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    with PrivateNats() as nats:
        client = await client_library.connect(nats.servers[0])
        await client.jetstream().add_stream(StreamConfig(name="s", subjects=["s.>"]))
        await client.close()
        async with Daemon(tmp_path, through(Stream(nats.servers[0], "s", "s")), database) as daemon:
            await daemon.answers("/readyz", 200)
            nats.stop(signal.SIGKILL)
            await put(database, 0, 10)
            await daemon.answers("/readyz", 503, having="sink events")
            assert daemon.ask("/livez")[0] == 200, "a restart would not help"
            nats.start()
            await eventually(lambda: is_empty(connection))
            await daemon.answers("/readyz", 200)
            daemon.signal(signal.SIGTERM)
            assert await daemon.ended() == 0
        assert daemon.log.read_text().count("outage begins") == 1
        assert daemon.log.read_text().count("outage ends") == 1


async def test_it_waits_for_postgres_and_survives_its_restart(tmp_path: Path) -> None:
    from migrations.runner import TRACKS, migrate

    with PrivatePostgres(durable=False) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            for track in TRACKS:
                migrate(connection, track, schema=track)
            connection.execute(shop.TABLE)
        server.stop()
        async with Daemon(tmp_path, IN_PROCESS, server.dsn) as daemon:

            async def waits() -> bool:
                return "waiting for it" in daemon.log.read_text()

            await eventually(waits)
            for first in (0, 10):
                server.start()
                await put(server.dsn, first, 10)
                async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as look:

                    async def all_handled(look: psycopg.AsyncConnection = look, wanted: int = first + 10) -> bool:
                        return len(await handled(look)) == wanted

                    await eventually(all_handled, within=40)
                server.stop(signal.SIGQUIT)
            server.start()
            daemon.signal(signal.SIGTERM)
            assert await daemon.ended() == 0


async def test_a_schema_that_does_not_fit_is_one_line_and_exit_2(empty_database: str, tmp_path: Path) -> None:
    async with Daemon(tmp_path, IN_PROCESS, empty_database) as daemon:
        assert await daemon.ended() == 2
    lines = [line for line in daemon.log.read_text().splitlines() if line.startswith("outboxd: ")]
    assert lines == ["outboxd: schema 'outbox' lacks outbox/0001_outbox, outbox/0002_destinations: run `outboxd migrate`"]


@pytest.mark.parametrize("secret", ["hunter2"])
async def test_no_secret_is_logged(database: str, tmp_path: Path, secret: str) -> None:
    sink = f'kind = "jetstream"\nservers = ["nats://127.0.0.1:1"]\nstream = "s"\nuser = "u"\npassword = "{secret}"\n'
    configuration = f'[sinks.events]\n{sink}[[routes]]\ntopics = ">"\nsink = "events"\n[telemetry]\nlog_level = "debug"\n'
    await put(database, 0, 1)
    async with Daemon(tmp_path, configuration, database) as daemon:
        await daemon.answers("/readyz", 503, having="sink events")
        daemon.signal(signal.SIGTERM)
        await daemon.ended()
    assert secret not in daemon.log.read_text()
