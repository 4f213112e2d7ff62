"""Engines in containers, where Docker really works: a Docker that answers may still have no image and no way to get one.

The images are those of ``compose/compose.yaml``.
"""

from __future__ import annotations

import functools
import os
import re
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from outbox.demo.engines import KAFKA_VERSION

if TYPE_CHECKING:
    from contextlib import ExitStack

    from testcontainers.core.container import DockerContainer

POSTGRES_IMAGE = "postgres:18"
NATS_IMAGE = "nats:2.12-alpine"
KAFKA_IMAGE = f"apache/kafka:{KAFKA_VERSION}"

_SOCKET = "unix:///var/run/docker.sock"
_ANSWER_WITHIN = 10.0  # enough for a daemon that is started by the first who asks


@functools.cache
def available(image: str) -> bool:
    """Say whether Docker answers, and has or gets the image. Raises `pytest.UsageError` if it listens and does not answer."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    if not _docker_answers(os.environ.get("DOCKER_HOST") or _SOCKET):
        return False
    try:
        client = docker.from_env()
    except DockerException:
        return False
    try:
        client.images.get(image)
    except ImageNotFound:
        try:
            client.images.pull(image)
        except DockerException:
            return False
    finally:
        client.close()
    return True


def version(image: str) -> str:
    """Return the version that the image's server gives for its own: a tag such as ``18`` says less."""
    with _container(image).with_command(["--version"]) as asked:
        asked.wait()
        said = asked.get_logs()[0].decode()
    found = re.search(r"\d[\d.]*", said)
    return found[0] if found else said.strip()


def start_postgres(stack: ExitStack) -> str:
    from testcontainers.community.postgres import PostgresContainer

    _look_for_the_reaper()
    container = PostgresContainer(POSTGRES_IMAGE, username="postgres", password="postgres", dbname="postgres", driver=None)
    # As the private server is: roles without passwords, no locale, nothing kept.
    container.with_envs(POSTGRES_HOST_AUTH_METHOD="trust", POSTGRES_INITDB_ARGS="--encoding=UTF8 --locale=C --no-sync")
    container.with_command(["-cfsync=off", "-cfull_page_writes=off", "-cmax_connections=200"])
    started = stack.enter_context(container)
    return str(started.get_connection_url(host=_host(started)))


def start_nats(stack: ExitStack) -> str:
    container = _container(NATS_IMAGE).with_command(["--jetstream"]).with_exposed_ports(4222)
    started = stack.enter_context(container)
    _wait_for(started, "Server is ready")
    return f"nats://{_host(started)}:{started.get_exposed_port(4222)}"


def start_kafka(stack: ExitStack) -> str:
    # A broker tells its clients where to find it, and Docker says where that is when the container runs: so the broker waits to be told.
    # It reaches itself by a listener of its own, as the clients' address need not lead anywhere from inside.
    told = "/tmp/advertised"
    wait = f'until [ -s {told} ]; do sleep 0.1; done; KAFKA_ADVERTISED_LISTENERS="$(cat {told})" exec /etc/kafka/docker/run'
    container = _container(KAFKA_IMAGE).with_command(["sh", "-c", wait]).with_exposed_ports(9092)
    container.with_envs(
        KAFKA_NODE_ID="1",
        KAFKA_PROCESS_ROLES="broker,controller",
        KAFKA_CONTROLLER_QUORUM_VOTERS="1@localhost:9093",
        KAFKA_LISTENERS="PLAINTEXT://:9092,CONTROLLER://:9093,ITSELF://localhost:9094",
        KAFKA_CONTROLLER_LISTENER_NAMES="CONTROLLER",
        KAFKA_INTER_BROKER_LISTENER_NAME="ITSELF",
        KAFKA_LISTENER_SECURITY_PROTOCOL_MAP="CONTROLLER:PLAINTEXT,ITSELF:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR="1",
        KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS="1",
        KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR="1",
        KAFKA_TRANSACTION_STATE_LOG_MIN_ISR="1",
        KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS="0",
        KAFKA_AUTO_CREATE_TOPICS_ENABLE="false",
    )
    started = stack.enter_context(container)
    servers = f"{_host(started)}:{started.get_exposed_port(9092)}"
    started.copy_into_container(f"PLAINTEXT://{servers},ITSELF://localhost:9094".encode(), told)
    _wait_for(started, "Kafka Server started")
    return servers


def _docker_answers(url: str) -> bool:
    """Ask over a socket of our own: Docker's client leaks one where nobody answers."""
    if not url.startswith(("unix://", "tcp://")):
        return True  # over SSH, say: the client asks for itself
    try:
        with _connected(url) as probe:
            probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return bool(probe.recv(1))  # whatever it is: it may want TLS
    except (TimeoutError, BlockingIOError):
        # Not a reason to take something else: whoever has Docker wants to know that it hangs.
        msg = f"Docker listens on {url} but does not answer: mend it or stop it, or give OUTBOXD_TEST_POSTGRES, _NATS and _KAFKA"
        raise pytest.UsageError(msg) from None
    except OSError:
        return False


def _connected(url: str) -> socket.socket:
    where = urlsplit(url)
    if where.scheme == "tcp":
        return socket.create_connection((where.hostname, where.port or 2375), timeout=_ANSWER_WITHIN)
    probe = socket.socket(socket.AF_UNIX)
    try:
        probe.settimeout(_ANSWER_WITHIN)
        probe.connect(where.path)
    except OSError:
        probe.close()
        raise
    return probe


def _container(image: str) -> DockerContainer:
    from testcontainers.core.container import DockerContainer

    _look_for_the_reaper()
    return DockerContainer(image)


def _look_for_the_reaper() -> None:
    """Do without testcontainers' reaper where its image cannot be had: nothing would start.

    It is worth having, as it ends the containers of a run that was killed. A run that ends by itself ends its own, through the stack.
    """
    from testcontainers.core.config import testcontainers_config

    if not testcontainers_config.ryuk_disabled and not available(testcontainers_config.ryuk_image):
        testcontainers_config.ryuk_disabled = True


def _wait_for(container: DockerContainer, message: str) -> None:
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    LogMessageWaitStrategy(message).with_startup_timeout(60).with_poll_interval(0.1).wait_until_ready(container)


def _host(container: DockerContainer) -> str:
    # By number: the name may lead to ::1 first, where Docker need not publish, or not on the same port.
    host = container.get_container_host_ip()
    return "127.0.0.1" if host == "localhost" else str(host)
