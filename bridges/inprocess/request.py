"""Request and reply: a message that says where its answer is awaited."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from bridges.errors import InvalidMessage
from bridges.message import Message, uuid7

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REPLY_TO: Final = "reply-to"
"""The header that says to which topic an answer goes."""
INBOX: Final = "_reply."
"""What the topics begin with at which a broker awaits answers."""


class Replies:
    """The requests of one broker that are not answered yet."""

    def __init__(self) -> None:
        self._awaited: dict[str, asyncio.Future[Message]] = {}

    @contextmanager
    def awaited(self, request: Message) -> Iterator[tuple[Message, asyncio.Future[Message]]]:
        """Give the request as it is to be published, and what its first answer will be set on."""
        topic = INBOX + uuid4().hex
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._awaited[topic] = answer
        try:
            yield request._replace(headers={**request.headers, REPLY_TO: topic}), answer
        finally:
            del self._awaited[topic]

    def awaits(self, topic: str) -> bool:
        """Say whether an answer is awaited at a topic."""
        return topic in self._awaited

    def settle(self, message: Message) -> bool:
        """Say whether a message is an answer, which goes to who awaits it and nowhere else; if nobody does any more, it is let go."""
        answer = self._awaited.get(message.topic)
        if answer is not None and not answer.done():
            answer.set_result(message)
        return message.topic.startswith(INBOX)


def answer_to(request: Message, payload: bytes, content_type: str | None, headers: Mapping[str, str]) -> Message:
    """Make the answer to a request. Raises `InvalidMessage` if it is none."""
    topic = request.headers.get(REPLY_TO)
    if topic is None:
        raise InvalidMessage("headers", f"have no {REPLY_TO}: the message is not a request")
    return Message(uuid7(), topic, payload, request.key, content_type or request.content_type, headers)
