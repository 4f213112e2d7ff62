"""`outboxd doctor` finds what is wrong at the brokers, and says what it has found in lines or as JSON."""

from __future__ import annotations

import json
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import nats
import psycopg
import pytest
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamSource
from psycopg import sql
from psycopg.conninfo import make_conninfo

from dedupe.retention import keep_processed
from outbox.daemon.config import load
from outbox.daemon.inspection import diagnose
from tests.conftest import Stream, make_topic
from tests.engines.command import configured, run_outboxd
from tests.engines.findings import IN_PROCESS, ROUTE, found, the_one

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from outbox.doctor import Finding


# --- brokers --------------------------------------------------------------------------------------------------------------


async def about_sinks(folder: Path, database: str, text: str) -> list[Finding]:
    """Return what a configuration's doctor finds at its brokers."""
    findings = await found(diagnose(load(configured(folder, text, dsn=database))))
    return [finding for finding in findings if finding.what.startswith("sink ")]


@asynccontextmanager
async def made(url: str, **settings: Any) -> AsyncIterator[Stream]:
    """A stream with file storage, unless the settings say otherwise."""
    name = f"test-{secrets.token_hex(6)}"
    client = await nats.connect(url)
    if "mirror" not in settings:
        settings["subjects"] = [f"{name}.>"]
    await client.jetstream().add_stream(StreamConfig(name=name, **{"storage": StorageType.FILE, **settings}))
    try:
        yield Stream(url, name, name)
    finally:
        await client.jetstream().delete_stream(name)
        await client.close()


async def topic_with(servers: str, name: str, settings: dict[str, Any]) -> str:
    return await make_topic(servers, name, partitions=1, **settings)


def jetstream(stream: Stream, *, consumer: bool = False) -> str:
    sink = (
        f'[sinks.events]\nkind = "jetstream"\nservers = ["{stream.url}"]\nstream = "{stream.name}"\n{ROUTE}subject = "{stream.subject}"\n'
    )
    return sink + ('[[consumers]]\napp = "tests.integration.shop:consumer"\n' if consumer else "")


def kafka(servers: str, topic: str, *, consumer: bool = False) -> str:
    sink = f'[sinks.events]\nkind = "kafka"\nservers = ["{servers}"]\n{ROUTE}topic = "{topic}"\n'
    return sink + ('[[consumers]]\napp = "tests.integration.shop:consumer"\n' if consumer else "")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"storage": StorageType.MEMORY}, "stored in memory"),
        ({"retention": RetentionPolicy.INTEREST}, "interest retention"),
        ({"max_msgs": 10, "discard": DiscardPolicy.OLD}, "discards its oldest"),
        ({"max_msgs_per_subject": 3}, "keeps the last 3 messages of a subject"),
        ({"no_ack": True}, "does not acknowledge"),
    ],
)
async def test_a_stream_that_acknowledges_without_keeping_or_keeps_without_acknowledging(
    database: str, nats_url: str, tmp_path: Path, settings: dict[str, Any], problem: str
) -> None:
    async with made(nats_url, **settings) as stream:
        finding = await the_one(diagnose(load(configured(tmp_path, jetstream(stream), dsn=database))))
    assert finding.what == "sink events (jetstream)"
    assert problem in finding.problem
    assert finding.advice


async def test_a_mirror_takes_nothing(database: str, stream: Stream, tmp_path: Path) -> None:
    async with made(stream.url, mirror=StreamSource(name=stream.name)) as mirror:
        finding = await the_one(diagnose(load(configured(tmp_path, jetstream(mirror), dsn=database))))
    assert "is a mirror" in finding.problem


async def test_a_stream_that_delivers_again_for_longer_than_ids_are_kept(database: str, nats_url: str, tmp_path: Path) -> None:
    """With consumers only: nothing else remembers ids."""
    async with made(nats_url) as for_ever, made(nats_url, max_age=2 * 86400.0) as two_days:

        async def problems(stream: Stream, keep: str, *, consumer: bool = True) -> list[str]:
            text = f'{jetstream(stream, consumer=consumer)}[dedupe]\nkeep = "{keep}"\n'
            return [finding.problem for finding in await about_sinks(tmp_path, database, text)]

        assert await problems(for_ever, "30 days") == [
            f"stream '{for_ever.name}' can deliver a message again for ever, and its id is forgotten after 30 days, 0:00:00"
        ]
        text = f'{jetstream(for_ever, consumer=True)}[dedupe]\nkeep = "30 days"\n'
        ((_, _, advice, *_),) = await about_sinks(tmp_path, database, text)
        assert advice.startswith('set keep = "forever" in [dedupe]; ')
        assert advice.endswith("which deletes what is older from the stream, read or not")
        assert await problems(two_days, "1 day") == [
            f"stream '{two_days.name}' can deliver a message again for 2 days, 0:00:00, and its id is forgotten after 1 day, 0:00:00"
        ]
        assert await problems(two_days, "3 days") == []
        assert await problems(for_ever, "forever") == []
        assert await problems(for_ever, "1 day", consumer=False) == []


async def test_a_topic_with_one_insync_replica(database: str, kafka_servers: str, tmp_path: Path) -> None:
    name = f"test-{secrets.token_hex(6)}"
    await topic_with(kafka_servers, f"{name}-1", {"min.insync.replicas": "1"})
    await topic_with(kafka_servers, f"{name}-2", {"min.insync.replicas": "2"})
    finding = await the_one(diagnose(load(configured(tmp_path, kafka(kafka_servers, f"{name}-1"), dsn=database))))
    assert finding.what == "sink events (kafka)"
    assert f"topic '{name}-1' has min.insync.replicas = 1" in finding.problem
    assert await found(diagnose(load(configured(tmp_path, kafka(kafka_servers, f"{name}-2"), dsn=database)))) == []


async def test_the_topics_of_a_pattern_are_looked_up(database: str, kafka_servers: str, tmp_path: Path) -> None:
    prefix = f"test-{secrets.token_hex(6)}"
    for name in ("orders.paid", "orders.sent", "stock.low"):
        await topic_with(kafka_servers, f"{prefix}-{name}", {"min.insync.replicas": "1"})
    findings = await found(diagnose(load(configured(tmp_path, kafka(kafka_servers, f"{prefix}-{{topic}}"), dsn=database))))
    assert sorted(finding.problem.split("'")[1] for finding in findings) == [f"{prefix}-orders.paid", f"{prefix}-orders.sent"]


@pytest.mark.parametrize(
    ("settings", "keep", "again_for"),
    [
        ({"retention.ms": "-1"}, "30 days", "ever"),
        ({"retention.ms": "172800000"}, "1 day", "2 days, 0:00:00"),
        ({"cleanup.policy": "compact"}, "30 days", "ever"),
        ({"retention.ms": "172800000"}, "3 days", None),
        ({"retention.ms": "-1"}, "forever", None),
    ],
)
async def test_a_topic_that_delivers_again_for_longer_than_ids_are_kept(
    database: str, kafka_servers: str, tmp_path: Path, settings: dict[str, str], keep: str, again_for: str | None
) -> None:
    topic = await topic_with(kafka_servers, f"test-{secrets.token_hex(6)}", {"min.insync.replicas": "2", **settings})
    text = f'{kafka(kafka_servers, topic, consumer=True)}[dedupe]\nkeep = "{keep}"\n'
    findings = await about_sinks(tmp_path, database, text)
    expected = [] if again_for is None else [f"topic '{topic}' can deliver a message again for {again_for}, and its id is forgotten after"]
    assert [finding.problem.partition(" after")[0] + " after" for finding in findings] == expected
    for finding in findings:
        assert finding.advice.startswith(
            "raise keep in [dedupe] above that; " if again_for != "ever" else 'set keep = "forever" in [dedupe]'
        )
        assert ("deletes what is older from the topic" in finding.advice) == ("compact" not in settings.values())


async def test_what_cannot_be_reached_is_a_finding_each(tmp_path: Path) -> None:
    text = (
        '[sinks.events]\nkind = "jetstream"\nservers = ["nats://127.0.0.1:1"]\nstream = "S"\n'
        '[sinks.log]\nkind = "kafka"\nservers = ["127.0.0.1:1"]\n'
        f'{ROUTE}[[routes]]\ntopics = ">"\nsink = "log"\n'
    )
    findings = await found(diagnose(load(configured(tmp_path, text, dsn="postgresql://u:hunter2@127.0.0.1:1/x"))))
    assert [finding.what for finding in findings] == ["Postgres", "sink events (jetstream)", "sink log (kafka)"]
    assert "hunter2" not in str(findings)


# --- the command ----------------------------------------------------------------------------------------------------------


def outboxd_doctor(file: Path, *options: str) -> tuple[int, str]:
    ended = run_outboxd("doctor", "-c", str(file), *options)
    assert not ended.err
    return ended.code, ended.out


async def test_a_healthy_installation(
    connection: psycopg.AsyncConnection, database: str, nats_url: str, kafka_servers: str, tmp_path: Path
) -> None:
    topic = await topic_with(kafka_servers, f"test-{secrets.token_hex(6)}", {"min.insync.replicas": "2"})
    await connection.execute("SELECT outbox.put('orders.paid', '{}', key => 'k'), outbox.put('logs.written', '{}')")
    await keep_processed(connection, keep=None)  # as a daemon does before it consumes
    async with made(nats_url, max_age=7 * 86400.0) as stream:
        text = f"""
{jetstream(stream, consumer=True)}
source = "events"
[sinks.log]
kind = "kafka"
servers = ["{kafka_servers}"]
[[routes]]
topics = "logs.>"
sink = "log"
topic = "{topic}"
[[consumers]]
app = "tests.integration.shop:consumer"
source = "log"
topics = ["{topic}"]
"""
        file = configured(tmp_path, text, dsn=database)
        assert outboxd_doctor(file) == (0, "all is well\n")
        assert outboxd_doctor(file, "--json") == (0, '{"findings": []}\n')


async def test_findings_are_lines_and_exit_code_1(connection: psycopg.AsyncConnection, database: str, tmp_path: Path) -> None:
    await connection.execute("DELETE FROM outbox.lanes WHERE lane = 5")
    await connection.execute("SELECT outbox.put('stock.low', '{}')")
    file = configured(tmp_path, IN_PROCESS, dsn=database)
    code, said = outboxd_doctor(file)
    assert code == 1
    first, advice, second, _, last = said.splitlines()
    assert first.startswith("PROBLEM  lanes: 1 row of lanes missing")
    assert advice.startswith('  to do  put them back: INSERT INTO "outbox".lanes')
    assert second.startswith("PROBLEM  routes: 1 message without a route")
    assert last == "2 problems"
    code, said = outboxd_doctor(file, "--json")
    assert code == 1
    assert [(finding["what"], bool(finding["advice"])) for finding in json.loads(said)["findings"]] == [("lanes", True), ("routes", True)]


async def test_notes_are_no_problems(connection: psycopg.AsyncConnection, database: str, tmp_path: Path) -> None:
    """What a role may not see may well be in order, and somebody is connected nearly always."""
    role = sql.Identifier(name := f"reader_{secrets.token_hex(4)}")
    await connection.execute(sql.SQL("CREATE ROLE {} LOGIN; GRANT USAGE ON SCHEMA outbox TO {}").format(role, role))
    await connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO {}").format(role))
    try:
        file = configured(tmp_path, IN_PROCESS, dsn=make_conninfo(database, user=name))
        code, said = outboxd_doctor(file)
        first, _, last = said.splitlines()
        assert (code, last) == (0, "all is well")
        assert first.startswith(f"note     rights: the role {name} may not see")
        code, said = outboxd_doctor(file, "--json")
        assert code == 0
        assert [(finding["what"], finding["is_note"]) for finding in json.loads(said)["findings"]] == [("rights", True)]
    finally:
        await connection.execute(sql.SQL("DROP OWNED BY {}; DROP ROLE {}").format(role, role))


async def test_a_schema_that_does_not_fit_is_one_finding(empty_database: str, tmp_path: Path) -> None:
    finding = await the_one(diagnose(load(configured(tmp_path, IN_PROCESS, dsn=empty_database))))
    assert finding.what == "schema outbox"
    assert "run `outboxd migrate`" in finding.problem
