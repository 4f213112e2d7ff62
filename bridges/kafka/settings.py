"""A cluster's topics: making one, and what is wrong with them, in plain words."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from bridges.kafka.client import bounded, prepare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.kafka.connection import Kafka

_PATIENCE: Final = 10.0
_SETTINGS: Final = ("min.insync.replicas", "retention.ms", "cleanup.policy")


async def make_topic(connection: Kafka, topic: str, *, partitions: int) -> None:
    """Make a topic without replicas. For demonstrations; in production its settings are decided elsewhere."""
    admin = AIOKafkaAdminClient(**connection.client_settings())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=partitions, replication_factor=1)])
    finally:
        await admin.close()


async def stored(connection: Kafka, topic: str) -> int:
    """Return how many messages a topic has taken, where no producer uses transactions: its partitions' end offsets, all together."""
    consumer = AIOKafkaConsumer(topic, **connection.client_settings())
    prepare(consumer._client, connection._security)
    try:
        await consumer.start()
        partitions = consumer.partitions_for_topic(topic) or ()
        return sum((await consumer.end_offsets([TopicPartition(topic, partition) for partition in partitions])).values())
    finally:
        await consumer.stop()


async def problems(connection: Kafka, topics: Sequence[str]) -> list[str]:
    """Return what keeps the topics from taking messages; nothing if all is well. Does not raise for trouble.

    Args:
        connection: where.
        topics: the names that will be published to.
    """
    try:
        producer = await connection.producer()
        await producer.look_up(topics)
    except (KafkaError, OSError, TimeoutError) as problem:
        return [f"cannot be reached: {str(problem) or type(problem).__name__}"]
    return [f"topic {topic!r} does not exist, and is not made here" for topic in topics if not producer.cluster.partitions_for_topic(topic)]


async def risks(connection: Kafka, *, published: str, consumed: str, keep: timedelta | None) -> list[tuple[str, str]]:
    """Return how the topics' settings could lose a message or repeat an effect, each with what to do. Does not raise for trouble.

    Args:
        connection: where.
        published: a regular expression for the names that are published to.
        consumed: one for those that are consumed.
        keep: how long the consumers remember what they have processed; None for ever.
    """
    try:
        settings = await _describe(connection, f"{published}|{consumed}")
    except (KafkaError, OSError, TimeoutError) as trouble:
        reason = str(trouble) or type(trouble).__name__
        return [(f"cannot be asked: {reason}", "`outboxd check` says more; the outbox keeps everything until it is mended")]
    found = []
    for topic, of_topic in settings.items():
        alter = (
            f"kafka-configs.sh --bootstrap-server {connection._servers[0]} --alter --entity-type topics --entity-name {topic} --add-config"
        )
        if re.fullmatch(published, topic) and int(of_topic["min.insync.replicas"]) < 2:
            problem = f"topic {topic!r} has min.insync.replicas = 1: acks=all is then one broker, and what it acknowledged can go with it"
            found.append((problem, f"with three replicas, `{alter} min.insync.replicas=2`"))
        # A compacted topic keeps the last of each key for ever.
        deletes = "delete" in of_topic["cleanup.policy"]
        retention = int(of_topic["retention.ms"]) if deletes else -1
        longest = timedelta(milliseconds=retention) if retention >= 0 else None
        if re.fullmatch(consumed, topic) and keep is not None and (longest is None or longest > keep):
            problem = f"topic {topic!r} can deliver a message again for {longest or 'ever'}, and its id is forgotten after {keep}"
            longer = "raise keep in [dedupe] above that" if longest else 'set keep = "forever" in [dedupe]'
            shorter = f"`{alter} retention.ms={keep.total_seconds() * 500:.0f}`, or less, which deletes what is older from the topic"
            found.append((problem, f"{longer}; there is also {shorter}, read or not" if deletes else longer))
    return found


async def _describe(connection: Kafka, wanted: str) -> dict[str, dict[str, str]]:
    """Return, of each topic whose name matches, the settings that matter here."""
    admin = AIOKafkaAdminClient(**connection.client_settings())
    prepare(admin._client, connection._security)
    try:
        async with asyncio.timeout(_PATIENCE):
            await admin.start()
            topics = [topic for topic in await admin.list_topics() if re.fullmatch(wanted, topic)]
            answers = await admin.describe_configs(
                [ConfigResource(ConfigResourceType.TOPIC, topic, dict.fromkeys(_SETTINGS)) for topic in topics]
            )
    finally:
        await bounded(admin.close(), _PATIENCE)
    resources = [resource for answer in answers for resource in answer.to_object()["resources"]]
    if errors := {for_code(resource["error_code"]) for resource in resources if resource["error_code"]}:
        raise errors.pop()
    return {
        resource["resource_name"]: {entry["config_names"]: entry["config_value"] for entry in resource["config_entries"]}
        for resource in resources
    }
