"""Which partition a message belongs to: what is known of a topic, and the hash of the key. Pure."""

from __future__ import annotations

import random
import re
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from aiokafka import TopicPartition

from bridges.ports import Outcome, Reason, Rejected, Released

if TYPE_CHECKING:
    from collections.abc import Sequence

Place: TypeAlias = "TopicPartition | Outcome"
"""Where a message goes, or why it goes nowhere."""

_NAME = re.compile(r"(?!\.{1,2}\Z)[a-zA-Z0-9._-]{1,249}")
_WORD = 0xFFFFFFFF
_MIX = 0x5BD1E995


def is_name(text: str) -> bool:
    """Say whether Kafka takes this for the name of a topic."""
    return _NAME.fullmatch(text) is not None


def places_of(name: str, cluster: Any) -> list[Place]:
    """Return the places of a topic, one for each of its partitions, by number; or one outcome in place of them all."""
    if not is_name(name):
        return [Rejected(Reason.INVALID, f"{name!r} is no name for a topic in Kafka (1 to 249 of A-Z, a-z, 0-9, '.', '_' and '-')")]
    if name in cluster.unauthorized_topics:
        return [Released(Reason.FORBIDDEN, f"topic {name!r} is not authorized for us")]
    partitions = cluster.partitions_for_topic(name)
    if not partitions:
        return [Released(Reason.MISSING, f"topic {name!r} is not there")]
    # A batch for a partition without a leader would wait until the deadline, and take the producer with it.
    led = cluster.available_partitions_for_topic(name)
    return [
        TopicPartition(name, number)
        if number in led
        else Released(Reason.UNAVAILABLE, f"partition {number} of topic {name!r} has no leader")
        for number in sorted(partitions)
    ]


def place_for(key: str, places: Sequence[Place]) -> Place:
    """Return the place of a key, which is the same for every client that does as the Java client does."""
    return places[_hash(key) % len(places)]


def any_of(places: Sequence[Place]) -> Place:
    """Return a place for what has no key; one with a leader, if there is one."""
    return random.choice([place for place in places if isinstance(place, TopicPartition)] or places)  # noqa: S311 - not a secret


@lru_cache(maxsize=1 << 16)
def _hash(key: str) -> int:
    return murmur2(key.encode(errors="surrogatepass")) & 0x7FFFFFFF


def murmur2(data: bytes) -> int:
    """Return MurmurHash2 (A. Appleby) with the seed of Kafka's clients (org.apache.kafka.common.utils.Utils.murmur2).

    The same as ``aiokafka.partitioner.murmur2``, a word at a time: that one takes each byte, and was a fifth of a publish.
    """
    words = len(data) >> 2
    hashed = 0x9747B28C ^ len(data)
    for word in struct.unpack_from(f"<{words}I", data):
        mixed = word * _MIX & _WORD
        hashed = (hashed * _MIX & _WORD) ^ ((mixed ^ mixed >> 24) * _MIX & _WORD)
    if rest := data[words << 2 :]:
        hashed = (hashed ^ int.from_bytes(rest, "little")) * _MIX & _WORD
    hashed = (hashed ^ hashed >> 13) * _MIX & _WORD
    return hashed ^ hashed >> 15
