"""A cluster's topics: making one, and what is wrong with them, in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.kafka.connection import Kafka


async def make_topic(connection: Kafka, topic: str, *, partitions: int) -> None:
    """Make a topic without replicas. For demonstrations; in production its settings are decided elsewhere."""
    admin = AIOKafkaAdminClient(**connection.client_settings())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=partitions, replication_factor=1)])
    finally:
        await admin.close()


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
