"""A message as the bytes of one HPUB. Pure.

The server closes the connection for a frame that breaks a limit, and takes a subject or a header as it comes: so everything is checked
here, singly, before anything is sent.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from bridges.envelope import CONTENT_TYPE, CREATED_AT, ID, KEY, TOPIC, copy_of, quoted, text_of, text_of_time
from bridges.errors import InvalidMessage
from bridges.message import check_topic
from bridges.ports import Reason, Rejected
from bridges.topics import Destination

if TYPE_CHECKING:
    from bridges.message import Message

# The whole control line may be 4 KiB (max_control_line), of which the reply subject and the sizes take some sixty bytes.
_MAX_SUBJECT: Final = 1024
_HEADER_NAME = re.compile(r"(?!nats-)[A-Za-z0-9_-]{1,128}", re.IGNORECASE)
# What travels as it is: printable ASCII without a percent sign, and no blank at an end.
_PLAIN = re.compile(r"[!-$&-~](?:[ -$&-~]*[!-$&-~])?")


class Framer:
    """Makes frames for one stream.

    Args:
        stream: the stream that is expected to take them.
        subject: what a topic is called there.
    """

    def __init__(self, stream: str, subject: str) -> None:
        self._stream = stream
        self._subject = Destination(subject)
        # Topics and content types are few, and messages are many.
        self._start = lru_cache(maxsize=10_000)(self._make_start)

    def frame(self, message: Message, reply: bytes, max_payload: int, extra: str = "") -> bytes | Rejected:
        """Return the HPUB of a message, or why the server would refuse it.

        Args:
            message: what to send.
            reply: the subject of the acknowledgement; empty for none.
            max_payload: bytes of headers and payload together that the server takes.
            extra: whole header lines that the server is told beside the message's own.
        """
        start = self._start(message.topic, message.content_type)
        if isinstance(start, Rejected):
            return start
        subject, constant = start
        given_id, _, payload, key, _, more, created_at = message
        message_id = text_of(given_id)
        copy = own = ""
        if more:
            copy = _quoted(copy_of(message))
            for name, value in more.items():
                if not _is_sound(name):
                    allowed = "1 to 128 characters of A-Z, a-z, 0-9, _ and -, and none of NATS's own"
                    return Rejected(Reason.INVALID, f"the header name {name!r} is not {allowed}")
                own += f"{name}: {_quoted(value)}\r\n"
        of_key = "" if key is None else f"{KEY}: {_quoted(key)}\r\n"
        of_time = "" if created_at is None else f"{CREATED_AT}: {text_of_time(created_at)}\r\n"
        # In one piece, since this is done for every message.
        headers = f"{constant}{extra}Nats-Msg-Id: {message_id}{copy}\r\n{ID}: {message_id}\r\n{of_key}{of_time}{own}\r\n".encode()
        size = len(headers) + len(payload)
        if size > max_payload:
            return Rejected(Reason.TOO_LARGE, f"headers and payload are {size} bytes; the server's max_payload is {max_payload}")
        return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, len(headers), size, headers, payload)

    def _make_start(self, topic: str, content_type: str) -> tuple[bytes, str] | Rejected:
        """Return the subject and the headers that all messages of a topic share."""
        try:
            check_topic(topic)
            subject = self._subject.of(topic)
            encoded = subject.encode()
        except InvalidMessage as problem:
            return Rejected(Reason.INVALID, str(problem))
        if len(encoded) > _MAX_SUBJECT:
            return Rejected(Reason.INVALID, f"the subject is over {_MAX_SUBJECT} bytes")
        headers = f"NATS/1.0\r\nNats-Expected-Stream: {self._stream}\r\n"
        return encoded, f"{headers}{TOPIC}: {_quoted(topic)}\r\n{CONTENT_TYPE}: {_quoted(content_type)}\r\n"


@lru_cache(maxsize=10_000)
def _is_sound(name: str) -> bool:
    return _HEADER_NAME.fullmatch(name) is not None


def _quoted(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else quoted(value)
