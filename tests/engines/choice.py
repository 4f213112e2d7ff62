"""Choosing an engine, and starting it."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outbox.demo.engines import KAFKA_VERSION, PrivateKafka, PrivateNats, find_kafka, find_nats, nats_version
from outbox.embedded import PrivatePostgres, find_binaries
from tests.engines import containers

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack


@dataclass(frozen=True)
class Choice:
    """An engine that was chosen, and how to start it: ``start`` returns its URL or servers."""

    description: str
    start: Callable[[ExitStack], str]


def choose_postgres() -> Choice:
    if url := os.environ.get("OUTBOXD_TEST_POSTGRES"):
        return Choice("Postgres given in OUTBOXD_TEST_POSTGRES", lambda _: url)
    if containers.available(containers.POSTGRES_IMAGE):
        return Choice(
            f"PostgreSQL {containers.version(containers.POSTGRES_IMAGE)} in a container, {containers.POSTGRES_IMAGE}",
            containers.start_postgres,
        )
    said = subprocess.run([find_binaries() / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"[\d.]+", said)
    return Choice(
        f"PostgreSQL {version[0] if version else said.strip()}, private, {find_binaries()}",
        lambda stack: stack.enter_context(PrivatePostgres(durable=False)).dsn,
    )


def choose_nats() -> Choice:
    if url := os.environ.get("OUTBOXD_TEST_NATS"):
        return Choice("NATS given in OUTBOXD_TEST_NATS", lambda _: url)
    if containers.available(containers.NATS_IMAGE):
        return Choice(
            f"nats-server {containers.version(containers.NATS_IMAGE)} in a container, {containers.NATS_IMAGE}", containers.start_nats
        )
    binary = find_nats()
    version = ".".join(map(str, nats_version(binary)))
    return Choice(f"nats-server {version}, private, {binary}", lambda stack: stack.enter_context(PrivateNats()).servers[0])


def choose_kafka() -> Choice:
    if servers := os.environ.get("OUTBOXD_TEST_KAFKA"):
        return Choice("Kafka given in OUTBOXD_TEST_KAFKA", lambda _: servers)
    if containers.available(containers.KAFKA_IMAGE):
        return Choice(f"Apache Kafka {KAFKA_VERSION} in a container, {containers.KAFKA_IMAGE}", containers.start_kafka)
    _, jars = find_kafka()
    return Choice(f"Apache Kafka {KAFKA_VERSION}, private, {jars}", lambda stack: stack.enter_context(PrivateKafka()).servers[0])
