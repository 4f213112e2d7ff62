"""What a message is called on the wire: the same header names on every broker, both ways. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote
from uuid import UUID, uuid5

from bridges.message import Message

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ID: Final = "outbox-id"
KEY: Final = "outbox-key"
TOPIC: Final = "outbox-topic"
CREATED_AT: Final = "outbox-created-at"
CONTENT_TYPE: Final = "content-type"

REPLAYED: Final = "outbox-replayed"
"""What an operator's replay adds to a message, as a header like any other, which consumers see: a value of its own for each replay."""

VIA: Final = "outbox-via"
"""What each bridge adds to a message that passes it: the names of the bridges that it has passed, in order, joined by commas."""
RENAMED: Final = "outbox-renamed"
"""What the first bridge that renames a message's topic adds to it: the topic that it had till then."""
MAX_PASSED: Final = 32
"""Bridges that a message may pass. It bounds the header, and is far beyond what anybody would build on purpose."""

_OURS = {ID, KEY, TOPIC, CREATED_AT, CONTENT_TYPE}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FOREIGN_IDS = UUID("8a3e4b8e-7d0f-5c7c-9d0a-2f6f0f8d2c11")
_PLAIN = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")


def text_of(given_id: UUID) -> str:
    """Return what `str` does, in two thirds of the time: it is done for every message."""
    text = given_id.int.to_bytes(16).hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def text_of_time(time: datetime) -> str:
    """Return what ``isoformat`` does, in two thirds of the time for one in UTC: the messages of a batch are of a few seconds."""
    if time.tzinfo is not UTC or not (microsecond := time.microsecond):
        return time.isoformat()
    since = time - _EPOCH
    return f"{_text_of_second(since.days, since.seconds)}.{microsecond:06d}+00:00"


def encode(message: Message, *, key: bool) -> Iterator[tuple[str, str]]:
    """Yield the headers that carry everything of a message but its payload.

    ``key`` says whether the key travels as a header (NATS) or elsewhere (Kafka's own key).
    """
    yield ID, text_of(message.id)
    yield TOPIC, message.topic
    if key and message.key is not None:
        yield KEY, message.key
    if message.created_at is not None:
        yield CREATED_AT, text_of_time(message.created_at)
    yield CONTENT_TYPE, message.content_type
    yield from message.headers.items()


def decode(headers: Mapping[str, str], payload: bytes, *, topic: str, key: str | None, origin: str) -> Message:
    """Return the message that arrived with these headers.

    A message of ours is restored as it was put. Of any other, ``topic`` and ``key`` are what the broker calls them, and the id is
    derived from ``origin`` (a text that names the place it is stored at), so that it is the same on every delivery.
    """
    created_at = headers.get(CREATED_AT)
    return Message(
        id=_id_of(headers.get(ID), origin),
        topic=headers.get(TOPIC, topic),
        payload=payload,
        key=headers.get(KEY, key),
        content_type=headers.get(CONTENT_TYPE, "application/octet-stream"),
        headers={name: value for name, value in headers.items() if name not in _OURS},
        created_at=_time_of(created_at) if created_at else None,
    )


def passed(message: Message) -> list[str]:
    """Return the names of the bridges that a message has passed."""
    names = message.headers.get(VIA)
    return names.split(",") if names else []


def passing(message: Message, bridge: str, topic: str) -> Message:
    """Return the message as it leaves a bridge for a topic: with the bridge's name behind those that it has passed before."""
    headers = {**message.headers, VIA: ",".join([*passed(message), bridge])}
    if topic != message.topic:
        headers.setdefault(RENAMED, message.topic)
    return message._replace(topic=topic, headers=headers)


def copy_of(message: Message) -> str:
    """Return what tells copies of a message apart that may be stored beside each other, behind its id; the first has nothing.

    A broker that knows duplicates by a name would otherwise take for one what an operator replays, and what a bridge brings under another
    topic to where the message is already. A bridge that carries a message a second time, or back to its first topic, makes no new copy.
    """
    headers = message.headers
    replay, first = headers.get(REPLAYED), headers.get(RENAMED, message.topic)
    return (f".{replay}" if replay else "") + (f"/{message.topic}" if first != message.topic else "")


def quoted(value: str) -> str:
    """Percent-encode what NATS would change: anything beyond printable ASCII, blanks at the ends, and the percent sign."""
    if value.isascii() and value.isprintable() and "%" not in value and value == value.strip():
        return value
    return quote(value, safe=_PLAIN)


def unquoted(value: str) -> str:
    """Undo `quoted`."""
    return unquote(value) if "%" in value else value


@lru_cache(maxsize=1000)
def _text_of_second(days: int, seconds: int) -> str:
    return (_EPOCH + timedelta(days, seconds)).isoformat().removesuffix("+00:00")


def _id_of(text: str | None, origin: str) -> UUID:
    if text is not None:
        try:
            return UUID(text)
        except ValueError:
            pass  # not ours after all
    return uuid5(_FOREIGN_IDS, origin)


def _time_of(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.utcoffset() is not None else None  # without its zone it is no point in time
