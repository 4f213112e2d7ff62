"""What a message in a log says of its own delivery: headers with reserved names, there from its storing to its delivery."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from bridges.errors import InvalidMessage

if TYPE_CHECKING:
    from datetime import datetime

    from bridges.message import Message

PRIORITY: Final = "outbox-priority"
EXPIRES: Final = "outbox-expires-at"
DELIVER: Final = "outbox-deliver-at"


class Stamps(NamedTuple):
    """How one message is to be delivered.

    Attributes:
        priority: the higher, the sooner.
        expires: Unix seconds after which it is not delivered.
        due: Unix seconds before which it is not delivered.
    """

    priority: int = 0
    expires: float | None = None
    due: float | None = None


PLAIN: Final = Stamps()


def stamps(priority: int, ttl: float | None, deliver_at: datetime | None) -> Stamps:
    """Check what a publisher asks for. Raises `InvalidMessage`, naming it. The time to live begins when it is due."""
    due = None
    if deliver_at is not None:
        if deliver_at.tzinfo is None:
            raise InvalidMessage("deliver_at", f"{deliver_at} has no time zone")
        due = deliver_at.timestamp()
    if ttl is not None and not ttl > 0:
        raise InvalidMessage("ttl", f"{ttl} is not above 0")
    if not isinstance(priority, int):
        raise InvalidMessage("priority", f"is {type(priority).__name__}, not int")
    return Stamps(priority, None if ttl is None else (due or time.time()) + ttl, due)


def stamped(message: Message, its: Stamps) -> Message:
    """Return the message as it is stored."""
    if its == PLAIN:
        return message
    headers = dict(message.headers)
    for name, value in ((PRIORITY, its.priority or None), (EXPIRES, its.expires), (DELIVER, its.due)):
        if value is not None:
            headers[name] = repr(value)
    return message._replace(headers=headers)


def unstamped(message: Message) -> tuple[Message, Stamps]:
    """Return the message as it was published, and how it is to be delivered."""
    headers = message.headers
    if not headers or headers.keys().isdisjoint((PRIORITY, EXPIRES, DELIVER)):
        return message, PLAIN
    expires, due = headers.get(EXPIRES), headers.get(DELIVER)
    its = Stamps(int(headers.get(PRIORITY, "0")), None if expires is None else float(expires), None if due is None else float(due))
    plain = {name: value for name, value in headers.items() if name not in {PRIORITY, EXPIRES, DELIVER}}
    return message._replace(headers=plain), its
