"""What aiokafka's client, which a producer or a consumer holds, does not do: ask without making, say why, and let go at once."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import aiokafka.client
from aiokafka.errors import (
    AuthenticationFailedError,
    BrokerResponseError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
    kafka_errors,
)
from aiokafka.protocol.metadata import MetadataRequest

from bridges.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine

    from bridges.security import Security

log = logging.getLogger("aiokafka")

LOGIN_ERRORS = (AuthenticationFailedError, IllegalSaslStateError, SaslAuthenticationFailed, UnsupportedSaslMechanismError)


class InvalidRecordError(BrokerResponseError):  # type: ignore[misc]  # aiokafka has no types
    """A record that the topic does not allow, such as one without a key in a compacted topic."""

    errno = 87
    message = "INVALID_RECORD"
    description = "The topic does not allow this record."


# aiokafka does not know this code: it would be an UnknownError, which could be anybody's fault.
kafka_errors.setdefault(InvalidRecordError.errno, InvalidRecordError)


# The connections that a client makes for its first request for metadata. Cancelled in it, aiokafka forgets the one it has open, whose
# reader then lives until the broker hangs up.
_first_connections: ContextVar[list[Any] | None] = ContextVar("first_connections", default=None)
_create_connection = aiokafka.client.create_conn


async def _create_and_note_connection(*args: Any, **options: Any) -> Any:
    connection = await _create_connection(*args, **options)
    if (noted := _first_connections.get()) is not None:
        noted.append(connection)
    return connection


aiokafka.client.create_conn = _create_and_note_connection


def prepare(client: Any, security: Security) -> None:
    """Have the client ask for topics without making them, say who it is to nobody in clear, and keep what it sends out of the log."""
    client.bootstrap = partial(_bootstrap, client.bootstrap)
    client._metadata_update = partial(_update_metadata, client)
    client._get_conn = partial(_connect_guarded, client, client._get_conn, security)
    # Its debug log prints requests: passwords, payloads. An application that turns the root logger to debug does not mean that.
    log.setLevel(max(logging.INFO, log.getEffectiveLevel()))


async def look_up(client: Any, topics: Collection[str]) -> None:
    """Ask for the topics that the client does not know. What is still not in its ``cluster`` then is not there for us.

    Raises `KafkaConnectionError` if no broker answers.
    """
    wanted = set(topics)
    # Metadata may hold more than is asked for, from a time when all was: the next update would drop it.
    client._topics.update(wanted)
    for _ in range(2):  # an update that was under way already may not have asked for them
        if not _unknown(client, wanted):
            return
        if not await client.force_metadata_update():
            msg = "no broker answers a request for metadata"
            raise KafkaConnectionError(msg)
    client._topics.difference_update(_unknown(client, wanted))  # not asked for again until they are wanted again


def _unknown(client: Any, topics: Collection[str]) -> list[str]:
    return [topic for topic in topics if client.cluster.partitions_for_topic(topic) is None]


async def _bootstrap(bootstrap: Callable[[], Awaitable[None]]) -> None:
    noted: list[Any] = []
    token = _first_connections.set(noted)
    try:
        await bootstrap()
    except BaseException:  # a cancellation most of all: whatever ended it, aiokafka has forgotten them
        for connection in noted:
            connection.close()
        raise
    finally:
        _first_connections.reset(token)


async def _update_metadata(client: Any, cluster: Any, topics: Collection[str]) -> bool:
    # In place of the client's own, which lets the broker create each topic that it asks for.
    request = MetadataRequest(list(topics) if topics else None, allow_auto_topic_creation=False)
    nodes = [broker.nodeId for broker in client.cluster.brokers()]
    random.shuffle(nodes)
    for node in nodes:
        with suppress(KafkaError, OSError):
            answer = await client.send(node, request)
            if answer.brokers:
                cluster.update_metadata(answer)
                return True
    cluster.failed_update(None)
    return False


async def _connect_guarded(client: Any, connect: Any, security: Security, node: Any, **options: Any) -> Any:
    # The servers that were configured were checked; the brokers that these tell of may be anywhere.
    broker = client.cluster.broker_metadata(node)
    if broker is not None:
        try:
            security.check_servers([f"{broker.host}:{broker.port}"])
        except ConfigurationError as problem:
            log.error("broker %s is not connected to: %s", node, problem)  # noqa: TRY400 - the text says it all
            return None
    return await connect(node, **options)


def cut(client: Any) -> None:
    """Cut every connection now, so that nothing which is still buffered in it is sent."""
    if client._sync_task is not None:
        client._sync_task.cancel()  # it would connect again
    for connection in list(client._conns.values()):
        if connection._writer is not None:
            connection._writer.transport.abort()


async def bounded(work: Coroutine[Any, Any, object], seconds: float) -> None:
    """Give a closing coroutine some seconds to end, then cancel it. Its errors are nobody's."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
    await asyncio.wait({task}, timeout=seconds)
    if task.done() and not task.cancelled():
        task.exception()
