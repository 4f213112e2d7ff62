"""A message as bytes, and back: what a durable log keeps of it. Pure.

    version 1 | id | lengths of topic, key, content type, created_at, headers, stamps | these, text in UTF-8 | payload, to the end

How it is to be delivered (`Stamps`) stands beside the headers, not in them: those are the user's, whatever their names.

Numbers are big-endian. The version is the first byte, so that a later layout can stand beside this one in the same log.
"""

from __future__ import annotations

import json
from datetime import datetime
from math import isnan, nan
from struct import Struct
from typing import Final
from uuid import UUID

from bridges.errors import InvalidMessage
from bridges.inprocess.stamps import PLAIN, Stamps
from bridges.message import NO_HEADERS, Message

_VERSION: Final = 1
_HEAD: Final = Struct(">B16sHHHHIB")
_STAMPS: Final = Struct(">qdd")
_NO_KEY: Final = 0xFFFF
"""In place of a key's length: an empty key is a key."""


def encode(message: Message, its: Stamps = PLAIN) -> bytes:
    """Return the message as bytes, with how it is to be delivered.

    Raises `InvalidMessage` for a field that the layout cannot hold; no other limit is checked.
    """
    topic = _text("topic", message.topic)
    key = b"" if message.key is None else _text("key", message.key)
    content_type = _text("content_type", message.content_type)
    created_at = b"" if message.created_at is None else _moment(message.created_at)
    headers = _text("headers", json.dumps(dict(message.headers), ensure_ascii=False), 0xFFFFFFFF) if message.headers else b""
    key_size = _NO_KEY if message.key is None else len(key)
    stamps = b"" if its is PLAIN or its == PLAIN else _stamps(its)
    head = _HEAD.pack(_VERSION, message.id.bytes, len(topic), key_size, len(content_type), len(created_at), len(headers), len(stamps))
    return b"".join((head, topic, key, content_type, created_at, headers, stamps, message.payload))


def decode(body: bytes) -> tuple[Message, Stamps]:
    """Return the message that was encoded, and its stamps. Raises `InvalidMessage` for a version that this program does not know."""
    _, identity, topic_size, key_size, content_type_size, created_at_size, headers_size, stamps_size = _head(body)
    topic = _HEAD.size + topic_size
    key = topic if key_size == _NO_KEY else topic + key_size
    content_type = key + content_type_size
    created_at = content_type + created_at_size
    headers = created_at + headers_size
    stamps = headers + stamps_size
    message = Message(
        UUID(bytes=identity),
        body[_HEAD.size : topic].decode(),
        body[stamps:],
        None if key_size == _NO_KEY else body[topic:key].decode(),
        body[key:content_type].decode(),
        json.loads(body[created_at:headers]) if headers_size else NO_HEADERS,
        datetime.fromisoformat(body[content_type:created_at].decode()) if created_at_size else None,
    )
    return message, _stamps_of(body[headers:stamps]) if stamps_size else PLAIN


def key_of(body: bytes) -> tuple[bytes | None, bool]:
    """Return the key of an encoded message, in UTF-8, and whether its payload is empty, without decoding the rest."""
    _, _, topic_size, key_size, *sizes = _head(body)
    topic = _HEAD.size + topic_size
    if key_size == _NO_KEY:
        return None, False
    end = topic + key_size + sum(sizes)
    return body[topic : topic + key_size], len(body) == end


def _head(body: bytes) -> tuple[int, bytes, int, int, int, int, int, int]:
    if body[:1] != b"\x01":
        raise InvalidMessage("version", f"{body[:1].hex() or 'nothing'} is not {_VERSION}, the layout that this program reads")
    head: tuple[int, bytes, int, int, int, int, int, int] = _HEAD.unpack_from(body)
    return head


def _text(field: str, text: str, limit: int = _NO_KEY - 1) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise InvalidMessage(field, "has a lone surrogate, which is not text in UTF-8") from None
    if len(encoded) > limit:
        raise InvalidMessage(field, f"is {len(encoded)} bytes in UTF-8; a log keeps {limit}")
    return encoded


def _moment(moment: datetime) -> bytes:
    if moment.utcoffset() is None:
        raise InvalidMessage("created_at", "has no time zone, so that it is no point in time")
    return moment.isoformat().encode()


def _stamps(its: Stamps) -> bytes:
    if not -(1 << 63) <= its.priority < 1 << 63:
        raise InvalidMessage("priority", f"{its.priority} is more than a log keeps: 64 bits")
    return _STAMPS.pack(its.priority, nan if its.expires is None else its.expires, nan if its.due is None else its.due)


def _stamps_of(data: bytes) -> Stamps:
    priority, expires, due = _STAMPS.unpack(data)
    return Stamps(priority, None if isnan(expires) else expires, None if isnan(due) else due)
