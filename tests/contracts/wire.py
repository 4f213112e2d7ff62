"""The envelope as README and design.md describe it, written down a second time: what our brokers' code is compared with."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote
from uuid import UUID

from bridges.message import Message

if TYPE_CHECKING:
    from collections.abc import Mapping

_OURS = {"outbox-id", "outbox-key", "outbox-topic", "outbox-created-at", "content-type"}


def to_kafka(message: Message) -> list[tuple[str, bytes]]:
    headers = {"outbox-id": str(message.id), "outbox-topic": message.topic, "content-type": message.content_type, **message.headers}
    if message.created_at is not None:
        headers["outbox-created-at"] = message.created_at.isoformat()
    return [(name, value.encode()) for name, value in headers.items()]


def to_nats(message: Message) -> dict[str, str]:
    headers = {name: quote(value.decode(), safe="/;=,:") for name, value in to_kafka(message)}
    if message.key is not None:
        headers["outbox-key"] = quote(message.key, safe="")
    return headers


def from_nats(headers: Mapping[str, str], payload: bytes) -> Message:
    plain = {name: unquote(str(value)) for name, value in headers.items() if not name.startswith("Nats-")}
    return _restored(plain, payload, plain.get("outbox-key"))


def from_kafka(headers: list[tuple[str, bytes]], key: bytes | None, payload: bytes) -> Message:
    return _restored({name: value.decode() for name, value in headers}, payload, None if key is None else key.decode())


def _restored(headers: Mapping[str, str], payload: bytes, key: str | None) -> Message:
    created_at = headers.get("outbox-created-at")
    return Message(
        id=UUID(headers["outbox-id"]),
        topic=headers["outbox-topic"],
        payload=payload,
        key=key,
        content_type=headers["content-type"],
        headers={name: value for name, value in headers.items() if name not in _OURS},
        created_at=datetime.fromisoformat(created_at) if created_at else None,
    )
