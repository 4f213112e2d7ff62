"""Put messages into the outbox: one INSERT in the caller's own transaction."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bridges.errors import InvalidMessage
from bridges.message import (
    MAX_PAYLOAD,
    NO_HEADERS,
    check_content_type,
    check_headers,
    check_key,
    check_payload,
    check_topic,
    encoded_headers,
    uuid7,
)
from bridges.tracing import creating
from outbox import dialects, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime
    from uuid import UUID

# A NUL as JSON writes it; an even number of backslashes before it are backslashes of their own.
_ESCAPED_NUL: Final = r"(?<!\\)(?:\\\\)*\\u0000"
_MAX_PRIORITY = 32767  # a smallint


def to_json(payload: object) -> bytes:
    """Serialize to compact JSON in UTF-8. Raises `InvalidMessage` for what JSON, or a Postgres jsonb, cannot hold."""
    import json

    try:
        text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        encoded = text.encode()
    except UnicodeEncodeError:
        raise InvalidMessage("payload", "has a lone surrogate, which is not text in UTF-8") from None
    except RecursionError:
        raise InvalidMessage("payload", "is nested too deeply for JSON") from None
    except (TypeError, ValueError) as problem:
        raise InvalidMessage("payload", f"cannot be JSON: {problem}") from problem
    if "\\u0000" in text and re.search(_ESCAPED_NUL, text):
        raise InvalidMessage("payload", "has a NUL (\\u0000), which jsonb cannot hold")
    return encoded


class Draft(NamedTuple):
    """A message as the application hands it over; see `Outbox.put` for the fields."""

    topic: str
    payload: object
    key: str | None = None
    headers: Mapping[str, str] = NO_HEADERS
    id: UUID | str | None = None
    deliver_at: datetime | None = None
    expires_at: datetime | None = None
    priority: int = 0
    content_type: str | None = None


class Outbox:
    """Writes messages into the outbox through connections that the application owns. Cheap, immutable, share it.

    Connections: psycopg's `Connection`, `AsyncConnection` and their cursors; SQLAlchemy's `Connection`, `Session`,
    `AsyncConnection` and `AsyncSession` over psycopg.

    Args:
        schema: where the outbox's tables are.
        serializer: turns a payload that is not bytes into bytes.
        content_type: what the serializer makes.
        max_payload: bytes; the table has a limit of its own (``outboxd migrate --max-payload``).
        allow_autocommit: put on an autocommit connection outside a transaction as well, where the message commits by itself.
    """

    def __init__(
        self,
        *,
        schema: str = "outbox",
        serializer: Callable[[Any], bytes] = to_json,
        content_type: str = "application/json",
        max_payload: int = MAX_PAYLOAD,
        allow_autocommit: bool = False,
    ) -> None:
        self._insert_one = sql.bind(sql.INSERT_ONE, schema)
        self._insert_many = sql.bind(sql.INSERT_MANY, schema)
        self._serializer = serializer
        check_content_type(content_type)
        self._content_type = content_type
        self._max_payload = max_payload
        self._allow_autocommit = allow_autocommit

    def put(
        self,
        connection: object,
        topic: str,
        payload: object,
        *,
        key: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        id: UUID | str | None = None,  # noqa: A002 - the field's name
        deliver_at: datetime | None = None,
        expires_at: datetime | None = None,
        priority: int = 0,
        content_type: str | None = None,
    ) -> UUID:
        """Put one message, and return its id. It is published once the connection's transaction commits.

        Args:
            connection: the caller's own, with a transaction open or about to be.
            topic: where it is addressed, such as ``orders.created``: at most 255 bytes.
            payload: bytes go as they are; anything else goes through the serializer.
            key: messages with the same key keep their order: at most 1 KiB.
            headers: text by name.
            id: the message's id for ever; a new UUIDv7 if None.
            deliver_at: not before then; aware, and a time in the past is now.
            expires_at: not after then; aware.
            priority: 0 to 32767; above zero it is claimed before the others.
            content_type: the payload's media type; by default the serializer's, or ``application/octet-stream`` for bytes.

        Raises:
            InvalidMessage: a field is outside its limit; nothing was written.
            NoTransaction: the connection would commit the message by itself.
        """
        draft = Draft(topic, payload, key, headers, id, deliver_at, expires_at, priority, content_type)
        with ExitStack() as spans:
            row = self._row(draft, spans)
            dialects.execute(connection, self._insert_one, row, allow_autocommit=self._allow_autocommit)
        return row[0]

    async def aput(
        self,
        connection: object,
        topic: str,
        payload: object,
        *,
        key: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        id: UUID | str | None = None,  # noqa: A002 - the field's name
        deliver_at: datetime | None = None,
        expires_at: datetime | None = None,
        priority: int = 0,
        content_type: str | None = None,
    ) -> UUID:
        """Do as `put`, on an asynchronous connection."""
        draft = Draft(topic, payload, key, headers, id, deliver_at, expires_at, priority, content_type)
        with ExitStack() as spans:
            row = self._row(draft, spans)
            await dialects.aexecute(connection, self._insert_one, row, allow_autocommit=self._allow_autocommit)
        return row[0]

    def put_many(self, connection: object, drafts: Iterable[Draft]) -> list[UUID]:
        """Put any number of messages in one statement, in their order, and return their ids. All are checked before any is written."""
        with ExitStack() as spans:
            rows = [self._row(draft, spans) for draft in drafts]
            if rows:
                columns = list(map(list, zip(*rows, strict=True)))
                dialects.execute(connection, self._insert_many, columns, allow_autocommit=self._allow_autocommit)
        return [row[0] for row in rows]

    async def aput_many(self, connection: object, drafts: Iterable[Draft]) -> list[UUID]:
        """Do as `put_many`, on an asynchronous connection."""
        with ExitStack() as spans:
            rows = [self._row(draft, spans) for draft in drafts]
            if rows:
                columns = list(map(list, zip(*rows, strict=True)))
                await dialects.aexecute(connection, self._insert_many, columns, allow_autocommit=self._allow_autocommit)
        return [row[0] for row in rows]

    def _row(self, draft: Draft, spans: ExitStack) -> tuple[UUID, *tuple[Any, ...]]:
        """Check a draft and return the parameters of its row, in the order of the INSERT."""
        check_topic(draft.topic)
        check_key(draft.key)
        payload, content_type = self._serialized(draft)
        message_id = _checked_id(draft.id)
        deliver_at = _checked_time("deliver_at", draft.deliver_at)
        expires_at = _checked_time("expires_at", draft.expires_at)
        if deliver_at is not None and expires_at is not None and expires_at < deliver_at:
            raise InvalidMessage("expires_at", f"{expires_at.isoformat()} is before deliver_at, {deliver_at.isoformat()}")
        if type(draft.priority) is not int or not 0 <= draft.priority <= _MAX_PRIORITY:
            raise InvalidMessage("priority", f"{draft.priority!r} is not a whole number from 0 to {_MAX_PRIORITY}")
        check_headers(draft.headers)
        headers = spans.enter_context(creating(draft.topic, message_id, draft.headers))
        headers_json = encoded_headers(headers)  # with the trace context, which counts too
        return (
            message_id,
            draft.topic,
            draft.key,
            payload,
            content_type,
            headers_json,
            deliver_at,
            expires_at,
            draft.priority,
        )

    def _serialized(self, draft: Draft) -> tuple[bytes, str]:
        if isinstance(draft.payload, bytes | bytearray | memoryview):
            payload, content_type = bytes(draft.payload), "application/octet-stream"
        else:
            payload, content_type = self._serializer(draft.payload), self._content_type
            if not isinstance(payload, bytes):
                raise InvalidMessage("payload", f"the serializer made {type(payload).__name__} of it, not bytes")
        check_payload(payload, self._max_payload)
        if draft.content_type is not None:
            check_content_type(draft.content_type)
            content_type = draft.content_type
        return payload, content_type


def _checked_id(given: UUID | str | None) -> UUID:
    from uuid import UUID

    if given is None:
        return uuid7()
    if isinstance(given, UUID):
        return given
    try:
        return UUID(str(given))  # some other library's UUID too, which psycopg could not adapt
    except ValueError:
        raise InvalidMessage("id", f"{given!r} is not a UUID") from None


def _checked_time(field: str, given: datetime | None) -> datetime | None:
    if given is None:
        return None
    from datetime import UTC, datetime

    if not isinstance(given, datetime) or given.utcoffset() is None:
        raise InvalidMessage(field, f"{given!r} is not an aware datetime: give it a time zone")
    try:
        return given.astimezone(UTC)
    except OverflowError:
        raise InvalidMessage(field, f"{given!r} is outside the years 1 to 9999 in UTC") from None
