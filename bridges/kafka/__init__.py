"""Kafka: publish one record batch per partition with acks=all, and consume as a member of a group with commits of our own.

One `Kafka` serves any number of sinks and sources. Its producer is built when it is needed and thrown away on any doubt: an idempotent
producer never gives up, so that what it still holds would be sent late, and one that lost count of its sequence numbers is refused for
ever. Each source has a consumer of its own, treated likewise. Topics are looked up and never made. One place retries: the Bridge.

A key is in one partition, as the Java client would place it, and a record batch stands or falls as one: that is the key prefix. A
source hands out a partition in one batch at a time, and a message that must wait holds back its partition, not the group.
"""

from bridges.kafka.connection import Kafka
from bridges.kafka.sink import KafkaSink
from bridges.kafka.source import KafkaSource

__all__ = ["Kafka", "KafkaSink", "KafkaSource"]
