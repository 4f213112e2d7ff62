"""Engines in containers, where Docker really works: a Docker that answers may still have no image and no way to get one."""

from __future__ import annotations

import functools
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import ExitStack

POSTGRES_IMAGE = "postgres:18"
NATS_IMAGE = "nats:2.12"
KAFKA_IMAGE = "confluentinc/cp-kafka:8.1.0"  # Apache Kafka 4.1; testcontainers knows the start script of this image alone


@functools.cache
def available(image: str) -> bool:
    """Say whether Docker answers, and has or gets the image."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    if not os.environ.get("DOCKER_HOST"):
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex("/var/run/docker.sock") != 0:
                return False  # asked first: the client leaks a socket where nobody answers
    try:
        client = docker.from_env(timeout=5)
        client.ping()
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


def start_postgres(stack: ExitStack) -> str:
    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer(POSTGRES_IMAGE, username="postgres", password="postgres", dbname="postgres", driver=None)
    return str(stack.enter_context(container).get_connection_url())


def start_nats(stack: ExitStack) -> str:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    container = DockerContainer(NATS_IMAGE).with_command("-js").with_exposed_ports(4222)
    container.waiting_for(LogMessageWaitStrategy("Server is ready"))
    started = stack.enter_context(container)
    return f"nats://{started.get_container_host_ip()}:{started.get_exposed_port(4222)}"


def start_kafka(stack: ExitStack) -> str:
    from testcontainers.community.kafka import KafkaContainer

    return str(stack.enter_context(KafkaContainer(KAFKA_IMAGE).with_kraft()).get_bootstrap_server())
