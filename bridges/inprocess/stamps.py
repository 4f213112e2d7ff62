"""How one message is to be delivered: what its publisher asks for, kept beside it in a log, never among the user's headers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from bridges.errors import InvalidMessage

if TYPE_CHECKING:
    from datetime import datetime


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
