"""``outboxd check`` says what is wrong, in plain words, and exits 1 for it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import nats
import psycopg
from nats.js.api import RetentionPolicy, StorageType, StreamConfig
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.conftest import Stream


def check(folder: Path, configuration: str, dsn: str) -> tuple[int, str]:
    file = folder / "outboxd.toml"
    file.write_text(configuration)
    done = subprocess.run(
        [sys.executable, "-m", "outbox.daemon", "check", "-c", str(file)],
        env={**os.environ, "OUTBOXD_POSTGRES__DSN": dsn},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def configured(stream: Stream, kafka_servers: str, kafka_topic: str) -> str:
    return f"""
[sinks.events]
kind = "jetstream"
servers = ["{stream.url}"]
stream = "{stream.name}"
[sinks.log]
kind = "kafka"
servers = ["{kafka_servers}"]
[[routes]]
topics = "orders.>"
sink = "events"
subject = "{stream.subject}"
[[routes]]
topics = "logs.>"
sink = "log"
topic = "{kafka_topic}"
[[consumers]]
app = "tests.integration.shop:consumer"
source = "events"
"""


def test_all_is_well(database: str, stream: Stream, kafka_servers: str, kafka_topic: str, tmp_path: Path) -> None:
    code, said = check(tmp_path, configured(stream, kafka_servers, kafka_topic), database)
    assert code == 0, said
    assert "all is well" in said
    assert "consumer shop handles orders.>" in said


def test_everything_that_is_missing_is_named(empty_database: str, nats_url: str, kafka_servers: str, tmp_path: Path) -> None:
    configuration = configured(Stream(nats_url, "NO-SUCH", "nowhere"), kafka_servers, "no-such-topic")
    code, said = check(tmp_path, configuration.replace("shop:consumer", "shop:nobody"), empty_database)
    assert code == 1
    assert "run `outboxd migrate`" in said
    assert "stream 'NO-SUCH' does not exist" in said
    assert "topic 'no-such-topic' does not exist" in said
    assert "'tests.integration.shop:nobody' cannot be imported" in said
    assert "4 problems" in said


async def test_a_stream_that_does_not_keep_what_it_acknowledges(database: str, nats_url: str, tmp_path: Path) -> None:
    name = f"test-{secrets.token_hex(6)}"
    client = await nats.connect(nats_url)
    config = StreamConfig(
        name=name,
        subjects=[f"{name}.other"],
        retention=RetentionPolicy.INTEREST,
        storage=StorageType.MEMORY,
        max_msgs=10,
        duplicate_window=1,
    )
    await client.jetstream().add_stream(config)
    configuration = f"""
[sinks.events]
kind = "jetstream"
servers = ["{nats_url}"]
stream = "{name}"
[[routes]]
topics = "orders.>"
sink = "events"
subject = "{name}.{{topic}}"
"""
    code, said = check(tmp_path, configuration, database)
    await client.jetstream().delete_stream(name)
    await client.close()
    assert code == 1
    for words in ("does not take subject", "stored in memory", "interest retention", "discards its oldest", "recognises duplicates"):
        assert words in said


def test_what_cannot_be_reached(database: str, tmp_path: Path) -> None:
    configuration = configured(Stream("nats://127.0.0.1:1", "S", "s"), "127.0.0.1:1", "t")
    code, said = check(tmp_path, configuration, "postgresql://nobody@127.0.0.1:1/nowhere")
    assert code == 1
    assert said.count("PROBLEM") == 3, said


def test_a_role_that_cannot_claim_is_told_what_it_lacks(database: str, tmp_path: Path) -> None:
    role = f"pump_{secrets.token_hex(4)}"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'pump'").format(sql.Identifier(role)))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA outbox TO {}").format(sql.Identifier(role)))
        connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO {}").format(sql.Identifier(role)))
        configuration = '[sinks.local]\nkind = "inprocess"\n[[routes]]\ntopics = ">"\nsink = "local"\n'
        try:
            code, said = check(tmp_path, configuration, make_conninfo(database, user=role, password="pump"))
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
    assert code == 1
    assert "UPDATE on lanes" in said
    assert "DELETE on messages" in said


def test_the_installed_command_finds_an_application_where_it_is_started(database: str, tmp_path: Path) -> None:
    """`outboxd`, and not `python -m`: a script's own folder is on the path, and not the one it was called from."""
    application = """
from dedupe import Consumer
consumer = Consumer("shop")
@consumer.handler("orders.*")
async def handle(message, connection): ...
"""
    (tmp_path / "shop.py").write_text(application)
    (tmp_path / "outboxd.toml").write_text('[sinks.local]\nkind = "inprocess"\n[[consumers]]\napp = "shop:consumer"\n')
    done = subprocess.run(
        [Path(sys.executable).with_name("outboxd"), "check", "-c", "outboxd.toml"],
        env={**os.environ, "OUTBOXD_POSTGRES__DSN": database},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "consumer shop handles orders.*" in done.stdout
