"""What travels, and what it may look like.

Light to import, since every application that writes a message does: what only the first message needs is imported with it.
"""

from __future__ import annotations

import os
import re
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from bridges.errors import InvalidMessage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

MAX_TOPIC: Final = 255
"""Bytes of a topic in UTF-8. Kafka allows 249 characters and NATS 4 KiB of a whole control line; mapped names are checked again."""
MAX_KEY: Final = 1024
"""Bytes of a key in UTF-8."""
MAX_HEADERS: Final = 32768
"""Bytes of all header names and values together, as JSON."""
MAX_PAYLOAD: Final = 1 << 20
"""Bytes of a payload, unless configured otherwise. The default ``max_payload`` of nats-server and ``message.max.bytes`` of Kafka."""

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

# Patterns are compiled when they are first used, by `re` itself: half of what an import of this module would cost.
# White space and control characters of ASCII and Unicode, and the wildcards. The CHECK constraint says the same.
_BARRED = r"\x00-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff*>"
_TOPIC: Final = rf"(?!\$)[^{_BARRED}.]+(?:\.[^{_BARRED}.]+)*"
_HEADER_NAME: Final = r"[A-Za-z0-9_-]{1,128}"
_CONTENT_TYPE: Final = r"[\x20-\x7e]{1,255}"
_RESERVED: Final = r"(?i:nats-|outbox-|content-type\Z)"


class Message(NamedTuple):
    """What travels: one message, immutable, the same on every broker.

    Attributes:
        id: names the message for ever; every copy of it carries the same id. UUIDv7 unless the application chose otherwise.
        topic: where it is addressed: tokens joined by dots, as in ``orders.created``.
        payload: the bytes, never looked into.
        key: messages with the same key keep their order; None has no order.
        content_type: the media type of the payload.
        headers: text by name; ``traceparent`` and ``tracestate`` among them.
        created_at: when it was put, by the database's clock; None if its source does not say.
    """

    id: UUID
    topic: str
    payload: bytes
    key: str | None = None
    content_type: str = "application/json"
    headers: Mapping[str, str] = NO_HEADERS
    created_at: datetime | None = None


def uuid7() -> UUID:
    """Make a UUID that sorts by time: 48 bits of Unix milliseconds and 74 random bits (RFC 9562, section 5.7)."""
    from uuid import UUID

    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    return UUID(int=milliseconds << 80 | 7 << 76 | (random >> 68) << 64 | 2 << 62 | random & (1 << 62) - 1)


def check_message(message: Message, *, max_payload: int = MAX_PAYLOAD) -> None:
    """Raise `InvalidMessage`, naming the field and the limit, unless every part of the message is sound."""
    check_topic(message.topic)
    check_key(message.key)
    check_content_type(message.content_type)
    check_headers(message.headers)
    check_payload(message.payload, max_payload)


def check_topic(topic: str) -> None:
    """Raise `InvalidMessage` for a topic that is empty, over 255 bytes, or has a character or token that is not allowed."""
    if len(_encoded("topic", topic)) > MAX_TOPIC:
        problem = f"is {len(topic.encode())} bytes in UTF-8; the limit is {MAX_TOPIC}"
    elif re.fullmatch(_TOPIC, topic):
        return
    else:
        problem = (
            f"{topic!r} must be tokens joined by dots, none empty, without white space, control characters or wildcards, "
            f"and must not begin with $"
        )
    raise InvalidMessage("topic", problem)


def check_key(key: str | None) -> None:
    """Raise `InvalidMessage` for a key over 1 KiB in UTF-8 or with a NUL."""
    if key is None:
        return
    size = len(_encoded("key", key))
    if size > MAX_KEY:
        raise InvalidMessage("key", f"is {size} bytes in UTF-8; the limit is {MAX_KEY}")
    if "\0" in key:
        raise InvalidMessage("key", "has a NUL, which Postgres cannot store")


def check_content_type(content_type: str) -> None:
    """Raise `InvalidMessage` for a content type that is not 1 to 255 printable ASCII characters."""
    if not (isinstance(content_type, str) and re.fullmatch(_CONTENT_TYPE, content_type)):
        raise InvalidMessage("content_type", f"{content_type!r} is not 1 to 255 printable ASCII characters")


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise `InvalidMessage` for a header name or value that a broker would refuse, change or take for its own."""
    for name, value in headers.items():
        if not (isinstance(name, str) and re.fullmatch(_HEADER_NAME, name)):
            raise InvalidMessage("headers", f"the name {name!r} is not 1 to 128 characters of A-Z, a-z, 0-9, _ and -")
        if re.match(_RESERVED, name):
            raise InvalidMessage("headers", f"the name {name!r} is reserved (Nats-*, outbox-*, content-type)")
        if not isinstance(value, str):
            raise InvalidMessage("headers", f"the value of {name!r} is {type(value).__name__}, not str")
        if "\r" in value or "\n" in value or "\0" in value:
            raise InvalidMessage("headers", f"the value of {name!r} has a CR, LF or NUL")
    encoded_headers(headers)


def encoded_headers(headers: Mapping[str, str]) -> str:
    """Return the headers as JSON, written as Postgres writes it. Raises `InvalidMessage` if it is over 32 KiB or not text."""
    if not headers:
        return "{}"
    import json

    text = json.dumps(dict(headers), ensure_ascii=False)
    size = len(_encoded("headers", text))
    if size > MAX_HEADERS:
        raise InvalidMessage("headers", f"are {size} bytes together, as JSON; the limit is {MAX_HEADERS}")
    return text


def check_payload(payload: bytes, limit: int) -> None:
    """Raise `InvalidMessage` for a payload over ``limit`` bytes."""
    if len(payload) > limit:
        raise InvalidMessage("payload", f"is {len(payload)} bytes; the limit is {limit}")


def _encoded(field: str, text: str) -> bytes:
    if not isinstance(text, str):
        raise InvalidMessage(field, f"is {type(text).__name__}, not str")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidMessage(field, "has a lone surrogate, which is not text in UTF-8") from None
