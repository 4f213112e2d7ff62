"""Bridges of a real ``outboxd run``: dead letters, loops, signals, probes; and the configuration that `check` warns of."""

from __future__ import annotations

import json
import secrets
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import nats as client_library
import psycopg
from nats.js.api import StreamConfig
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bridges.envelope import RENAMED, REPLAYED, VIA
from bridges.jetstream import JetStream, JetStreamSink
from bridges.kafka import Kafka, KafkaSink
from bridges.ports import Published
from outbox.demo.engines import PrivateNats
from tests.conftest import make_topic
from tests.contracts.harness_jetstream import connected
from tests.contracts.messages import ids, message, series
from tests.engines.command import configured, run_outboxd
from tests.engines.daemons import Daemon
from tests.engines.deadline import eventually
from tests.integration.test_bridges_outages import read_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from bridges.message import Message
    from bridges.ports import Sink
    from tests.conftest import Stream


@asynccontextmanager
async def two_streams(stream: Stream, **target: Any) -> AsyncIterator[tuple[str, str]]:
    """Yield the names of a stream to bridge from and of one to bridge to; each takes the subjects below its name."""
    target_name = f"{stream.name}-target"
    async with connected(stream.url) as jetstream:
        await jetstream.add_stream(StreamConfig(name=target_name, subjects=[f"{target_name}.>"], **target))
        yield stream.name, target_name
        await jetstream.delete_stream(target_name)


def bridged(url: str, one: str, other: str, *, via: str = "") -> str:
    """A bridge "there" between two streams, and a route for what is requeued, or goes by the outbox."""
    return f"""
[pump]
batch = 100
drain_timeout = 10
poll_interval = 0.1
[sinks.one]
kind = "jetstream"
servers = ["{url}"]
stream = "{one}"
timeout = 2
[sinks.other]
kind = "jetstream"
servers = ["{url}"]
stream = "{other}"
timeout = 2
[[routes]]
topics = "{other}.>"
sink = "other"
[[bridges]]
name = "there"
source = "one"
sink = "other"
mapping = "{one}.> -> {other}.{{1}}"
{via}
"""


async def publish(sink: Sink, messages: Sequence[Message]) -> None:
    assert all(isinstance(outcome, Published) for outcome in await sink.publish(messages))


async def stored(url: str, stream: str) -> int:
    async with connected(url) as jetstream:
        return (await jetstream.stream_info(stream)).state.messages


async def holds(url: str, stream: str, count: int) -> None:
    async def so_many() -> bool:
        return await stored(url, stream) >= count

    await eventually(so_many, within=30, what=f"{count} messages in {stream}")


async def test_too_large_is_a_dead_letter_that_can_be_requeued_and_the_bridge_goes_on(
    database: str, stream: Stream, tmp_path: Path
) -> None:
    async with two_streams(stream, max_msg_size=5000) as (one, other):
        topic = f"{one}.orders"
        sent = [message(topic, 1, key="k"), message(topic, key="k", size=6000), message(topic, 2, key="k"), message(topic, 3)]
        async with JetStream([stream.url]) as connection:
            await publish(JetStreamSink(connection, stream=one, subject="{topic}"), sent)
        async with Daemon(tmp_path, bridged(stream.url, one, other), database) as daemon:
            await holds(stream.url, other, 3)
            (large,) = [each for each in sent if len(each.payload) > 5000]
            listed = [json.loads(line) for line in run_outboxd("dead", "list", "--json", dsn=database).said.splitlines()]
            assert [(letter["id"], letter["topic"], letter["reason"], letter["attempts"]) for letter in listed] == [
                (str(large.id), f"{other}.orders", "too_large", 1)
            ]
            shown = run_outboxd("dead", "show", str(large.id), dsn=database).said
            assert f"{VIA}: there" in shown or f'"{VIA}": "there"' in shown, shown
            await daemon.answers(
                "/metrics", 200, having='outbox_outcomes_total{outcome="rejected",reason="too_large",sink="bridge there"} 1.0'
            )
            await daemon.answers("/metrics", 200, having="outbox_dead_letters 1.0")
            async with connected(stream.url) as jetstream:
                await jetstream._jsm.update_stream(StreamConfig(name=other, subjects=[f"{other}.>"], max_msg_size=-1))
            assert run_outboxd("dead", "requeue", "--id", str(large.id), dsn=database).code == 0
            await holds(stream.url, other, 4)
        arrived = await read_stream(stream.url, other)
    assert sorted(ids(arrived), key=str) == sorted(ids(sent), key=str)
    assert [each.payload for each in arrived if each.key == "k"] == [sent[0].payload, sent[2].payload, sent[1].payload]
    assert {each.headers[VIA] for each in arrived} == {"there"}


async def test_what_the_outbox_does_not_take_is_a_dead_letter_too(database: str, stream: Stream, tmp_path: Path) -> None:
    """And what it takes is as it was when it comes out, a replayed message with its mark."""
    async with two_streams(stream) as (one, other):
        topic = f"{one}.orders"
        replayed = message(topic, 1, key="k")._replace(headers={REPLAYED: "abc", "traceparent": "00-1-2-01"})
        strange = message(topic, 2)._replace(headers={"outbox-strange": "x"})
        async with JetStream([stream.url]) as connection:
            await publish(JetStreamSink(connection, stream=one, subject="{topic}"), [replayed, strange, message(topic, 3)])
        async with Daemon(tmp_path, bridged(stream.url, one, other, via='via = "outbox"'), database) as daemon:
            await holds(stream.url, other, 2)
            await daemon.answers("/metrics", 200, having="outbox_dead_letters 1.0")
            listed = json.loads(run_outboxd("dead", "list", "--json", dsn=database).said)
            assert (listed["id"], listed["reason"]) == (str(strange.id), "invalid")
        arrived = {each.id: each for each in await read_stream(stream.url, other)}
    headers = {**replayed.headers, VIA: "there", RENAMED: topic}
    assert arrived[replayed.id] == replayed._replace(topic=f"{other}.orders", headers=headers)


def there_and_back(servers: str, one: str, other: str) -> str:
    return f"""
[sinks.one]
kind = "kafka"
servers = ["{servers}"]
[sinks.other]
kind = "kafka"
servers = ["{servers}"]
[[bridges]]
name = "there"
source = "one"
sink = "other"
topics = ["{one}"]
mapping = "{one} -> {other}"
[[bridges]]
name = "back"
source = "other"
sink = "one"
topics = ["{other}"]
mapping = "{other} -> {one}"
"""


async def test_a_loop_is_cut_counted_and_warned_of(database: str, kafka_servers: str, kafka_topic: str, tmp_path: Path) -> None:
    """On Kafka, which stores whatever it is given: once each way, and no further."""
    other = await make_topic(kafka_servers, f"{kafka_topic}-other")
    sent = series([kafka_topic], 20, keys=3)
    configuration = there_and_back(kafka_servers, kafka_topic, other)
    async with Kafka([kafka_servers]) as kafka:
        await publish(KafkaSink(kafka), sent)
    async with Daemon(tmp_path, configuration, database) as daemon:
        await daemon.answers("/metrics", 200, having='outbox_bridge_loops_total{bridge="there"} 20.0')
        text = await daemon.answers("/metrics", 200, having='outbox_messages_published_total{sink="bridge back"} 20.0')
        assert 'outbox_messages_published_total{sink="bridge there"} 20.0' in text
        assert 'outbox_bridge_loops_total{bridge="back"} 0.0' in text
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
    assert daemon.log.read_text().count("came back") == 1, "told once, and then counted"
    ended = run_outboxd("check", "-c", str(daemon.file), dsn=database)
    assert ended.code == 0, ended.said
    assert "WARNING  bridges there -> back -> there: they may feed each other" in ended.said
    daemon.file.write_text(configuration.replace(f"{other} -> {kafka_topic}", f"{other}.x -> {kafka_topic}"))
    assert "WARNING" not in run_outboxd("check", "-c", str(daemon.file), dsn=database).said


async def test_sigterm_drains_what_is_in_flight_and_gives_back_the_rest(database: str, stream: Stream, tmp_path: Path) -> None:
    async with two_streams(stream) as (one, other):
        sent = series([f"{one}.orders"], 5000, keys=500)
        async with JetStream([stream.url]) as connection:
            await publish(JetStreamSink(connection, stream=one, subject="{topic}"), sent)
        configuration = bridged(stream.url, one, other)
        async with Daemon(tmp_path, configuration, database) as daemon:
            await holds(stream.url, other, 500)
            daemon.signal(signal.SIGTERM)
            assert await daemon.ended() == 0
        got = await stored(stream.url, other)
        async with connected(stream.url) as jetstream:

            async def acknowledged_what_was_sent() -> bool:
                floor = (await jetstream.consumer_info(one, "bridge-there")).ack_floor
                return floor is not None and floor.stream_seq == got

            await eventually(acknowledged_what_was_sent, what=f"{got} acknowledged, and nothing else")
        assert got < 5000, "nothing left to prove it with"
        async with Daemon(tmp_path, configuration, database) as daemon:
            await holds(stream.url, other, 5000)
            await daemon.answers("/metrics", 200, having=f'outbox_messages_published_total{{sink="bridge there"}} {5000 - got}.0')
        arrived = await read_stream(stream.url, other)
    assert {key: [n for n in ids(arrived) if n in those] for key, those in _by_key(sent).items()} == _by_key(sent)


def _by_key(messages: Sequence[Message]) -> dict[str | None, list[object]]:
    found: dict[str | None, list[object]] = {}
    for each in messages:
        found.setdefault(each.key, []).append(each.id)
    return found


async def test_probes_tell_of_a_bridge_whose_broker_is_away(database: str, tmp_path: Path) -> None:
    with PrivateNats() as server:
        client = await client_library.connect(server.servers[0])
        for name in ("one", "other"):
            await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
        await client.close()
        async with Daemon(tmp_path, bridged(server.servers[0], "one", "other"), database) as daemon:
            await daemon.answers("/readyz", 200)
            server.stop(signal.SIGKILL)
            await daemon.answers("/readyz", 503, having="bridge there: ")
            assert daemon.ask("/livez")[0] == 200, "a restart would not help"
            server.start()
            await daemon.answers("/readyz", 200)


async def test_check_looks_at_what_bridges_need(database: str, stream: Stream, tmp_path: Path) -> None:
    file = configured(tmp_path, bridged(stream.url, stream.name, "no-such-stream"))
    ended = run_outboxd("check", "-c", str(file), dsn=database)
    assert ended.code == 1
    assert "stream 'no-such-stream' does not exist" in ended.said
    assert "rights of the bridges" in ended.said
    file.write_text(
        bridged(stream.url, "nowhere", stream.name).replace(f"-> {stream.name}.", "-> elsewhere.").replace("nowhere", stream.name)
    )
    ended = run_outboxd("check", "-c", str(file), dsn=database)
    assert f"stream '{stream.name}' does not take subject 'elsewhere.>'" in ended.said


async def test_a_bridge_that_says_nothing_of_topics_takes_everything(database: str, stream: Stream, tmp_path: Path) -> None:
    """From a stream whose subjects are not all there are."""
    async with two_streams(stream) as (one, other):
        configuration = bridged(stream.url, one, other).replace(f'mapping = "{one}.> -> {other}.{{1}}"', f'mapping = "> -> {other}.{{1}}"')
        sent = [message(f"{one}.orders", 1), message(f"{one}.invoices.paid", 2)]
        async with JetStream([stream.url]) as connection:
            await publish(JetStreamSink(connection, stream=one, subject="{topic}"), sent)
        async with Daemon(tmp_path, configuration, database):
            await holds(stream.url, other, 2)
        assert sorted(each.topic for each in await read_stream(stream.url, other)) == [
            f"{other}.{one}.invoices.paid",
            f"{other}.{one}.orders",
        ]


def test_check_names_what_the_bridges_role_lacks(database: str, tmp_path: Path) -> None:
    """A position for a dead letter is drawn from the table's sequence: a right that comes with no other."""
    role = f"bridge_{secrets.token_hex(4)}"
    sinks = '[sinks.one]\nkind = "inprocess"\n[sinks.other]\nkind = "inprocess"\n'
    file = configured(tmp_path, f'{sinks}[[bridges]]\nname = "b"\nsource = "one"\nsink = "other"\n')
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in (
            "CREATE ROLE {} LOGIN PASSWORD 'bridge'",
            "GRANT USAGE ON SCHEMA outbox TO {}",
            "GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA outbox TO {}",
        ):
            connection.execute(sql.SQL(statement).format(sql.Identifier(role)))
        try:
            dsn = make_conninfo(database, user=role, password="bridge")
            ended = run_outboxd("check", "-c", str(file), dsn=dsn)
            assert ended.code == 1
            assert f"the role {role} lacks USAGE on the sequence outbox.messages_position_seq" in ended.said
            connection.execute(sql.SQL("GRANT USAGE ON SEQUENCE outbox.messages_position_seq TO {}").format(sql.Identifier(role)))
            ended = run_outboxd("check", "-c", str(file), dsn=dsn)
            assert ended.code == 0, ended.said
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
