"""A real ``outboxd run`` whose destinations, or whose Postgres, are away or frozen."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import nats as client_library
import psycopg
from nats.js.api import StreamConfig

from migrations.runner import TRACKS, migrate
from outbox import Draft, Outbox
from outbox.demo.engines import PrivateNats
from outbox.embedded import PrivatePostgres
from tests.contracts.outages import Outages
from tests.engines.daemons import Daemon
from tests.engines.deadline import eventually
from tests.engines.pumps import count, is_empty
from tests.integration import shop

if TYPE_CHECKING:
    from pathlib import Path

OUTBOX = Outbox()

LOCAL = """
[pump]
drain_timeout = 3
[pump.retry]
max_attempts = 3
[sinks.local]
kind = "inprocess"
[[routes]]
topics = "orders.>"
sink = "local"
[[consumers]]
app = "tests.integration.shop:consumer"
source = "local"
"""


def and_jetstream(nats: PrivateNats) -> str:
    sink = f'[sinks.far]\nkind = "jetstream"\nservers = ["{nats.servers[0]}"]\nstream = "FAR"\ntimeout = 2\n'
    return f'{LOCAL}{sink}[[routes]]\ntopics = "far.>"\nsink = "far"\n'


async def make_stream(nats: PrivateNats) -> None:
    client = await client_library.connect(nats.servers[0])
    await client.jetstream().add_stream(StreamConfig(name="FAR", subjects=["far.>"]))
    await client.close()


async def stored(nats: PrivateNats) -> list[str]:
    """What is in the stream, in order."""
    client = await client_library.connect(nats.servers[0])
    manager = client.jsm()
    number = (await manager.stream_info("FAR")).state.messages
    payloads = [(await manager.get_msg("FAR", seq=sequence)).data for sequence in range(1, number + 1)]
    await client.close()
    return [payload.decode() for payload in payloads if payload is not None]


async def put(dsn: str, topic: str, numbers: range) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await OUTBOX.aput_many(connection, [Draft(topic, str(n).encode(), key=f"{topic}{n % 3}") for n in numbers])


async def effects(connection: psycopg.AsyncConnection) -> int:
    cursor = await connection.execute("SELECT count(*) FROM effects")
    ((number,),) = await cursor.fetchall()
    return int(number)


async def test_a_missing_stream_pauses_its_destination_alone(database: str, connection: psycopg.AsyncConnection, tmp_path: Path) -> None:
    """It says which stream, in the log and by a metric; nothing is charged or dead; and when the stream is made, all arrives in order."""
    await connection.execute(shop.TABLE)
    with PrivateNats() as nats:
        async with Daemon(tmp_path, and_jetstream(nats), database) as daemon:
            await daemon.answers("/livez", 200)
            for start in (0, 30, 60):
                await put(database, "far.orders", range(start, start + 30))
                await put(database, "orders.created", range(start, start + 30))

            async def others_are_through() -> bool:
                return await effects(connection) == 90

            await eventually(others_are_through)

            async def set_aside() -> bool:
                return await count(connection, "held") == 90

            await eventually(set_aside)
            await daemon.answers("/metrics", 200, having='outbox_sink_up{sink="far"} 0.0')
            await daemon.answers("/metrics", 200, having='outbox_held_for_destination{sink="far"} 90.0')
            await daemon.answers("/readyz", 503, having="sink far: missing: no stream takes this subject")
            said = daemon.log.read_text()
            assert said.count("outage begins") == 1
            assert "sink far: outage begins: missing: no stream takes this subject" in said
            await make_stream(nats)
            await eventually(lambda: is_empty(connection))
            await daemon.answers("/metrics", 200, having='outbox_sink_up{sink="far"} 1.0')
        assert daemon.log.read_text().count("outage ends") == 1
        assert await count(connection, "dead") == 0
        numbers = [int(payload) for payload in await stored(nats)]
        assert sorted(numbers) == list(range(90))
        assert all(own == sorted(own) for own in ([n for n in numbers if n % 3 == key] for key in range(3)))


async def test_a_long_outage_charges_and_kills_nothing(database: str, connection: psycopg.AsyncConnection, tmp_path: Path) -> None:
    """A broker that is killed twice while messages keep coming, with few attempts allowed. `tests.bench.failures outage` takes a minute."""
    with PrivateNats() as nats:
        await make_stream(nats)
        async with Daemon(tmp_path, and_jetstream(nats), database) as daemon:
            await daemon.answers("/readyz", 200)
            numbers = 0
            for _ in range(2):
                nats.stop(signal.SIGKILL)
                for _ in range(10):
                    await put(database, "far.orders", range(numbers, numbers + 20))
                    numbers += 20

                async def waits(wanted: int = 200) -> bool:
                    return await count(connection, "held") == wanted

                await eventually(waits)
                assert await count(connection, "dead") == 0
                cursor = await connection.execute("SELECT coalesce(sum(attempts), 0) FROM outbox.holds")
                assert await cursor.fetchone() == (0,)
                nats.start()
                await eventually(lambda: is_empty(connection), within=15)
            assert sorted(int(payload) for payload in await stored(nats)) == list(range(400))
        assert await count(connection, "dead") == 0


async def test_the_drain_timeout_holds_with_a_frozen_postgres(tmp_path: Path) -> None:
    with PrivatePostgres(durable=False) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            for track in TRACKS:
                migrate(connection, track, schema=track)
            connection.execute(shop.TABLE)
        async with Daemon(tmp_path, LOCAL, server.dsn) as daemon:
            await daemon.answers("/readyz", 200)
            await put(server.dsn, "orders.created", range(10))
            async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as look:

                async def handled() -> bool:
                    return await effects(look) == 10

                await eventually(handled)
            outages = Outages(server)
            try:
                await outages.freeze()
                began = asyncio.get_running_loop().time()
                daemon.signal(signal.SIGTERM)
                assert await daemon.ended(10) == 0
                assert asyncio.get_running_loop().time() - began < 3 + 2, "the drain timeout, and a little for the process to end"
            finally:
                await outages.undo()
