"""The two ports that everything here is made of, and the outcomes that pass between them.

``publish`` answers one outcome per message, in order, and keeps the key prefix: if a message of a key is not `Published`, no later
message of that key in the call is. It does not raise for a broker's trouble; a programming error raises.
``tests/contracts`` holds every implementation, and every wrapper, to these sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from bridges.message import Message


class Reason(StrEnum):
    """Why a message was not published. A closed list, since it labels a metric."""

    UNAVAILABLE = "unavailable"
    """The destination cannot be reached, or says that it cannot serve now."""
    TIMEOUT = "timeout"
    """No acknowledgement within the deadline."""
    MISSING = "missing"
    """The stream, topic or subscription is not there."""
    FORBIDDEN = "forbidden"
    """The destination refuses our credentials or lacks a permission."""
    FULL = "full"
    """The destination is at a limit of its own."""
    STOPPING = "stopping"
    """We are shutting down."""
    BEHIND = "behind"
    """Held behind an earlier message of its key."""
    TOO_LARGE = "too_large"
    """Over the destination's limit of size."""
    INVALID = "invalid"
    """The destination will never accept this topic, key or header."""
    NO_ROUTE = "no_route"
    """No route's pattern matches the topic."""
    EXPIRED = "expired"
    """Its ``expires_at`` passed before it could be sent."""
    ATTEMPTS = "attempts"
    """Failed as often as the retry policy allows."""
    REFUSED = "refused"
    """The destination refused it with an error that says nothing about why."""
    HANDLER = "handler"
    """The handler raised."""


@dataclass(frozen=True, slots=True)
class Published:
    """Acknowledged by the destination, durably; ``duplicate`` if it had the message already."""

    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Released:
    """Not the message's fault: given back, not counted.

    Attributes:
        reason: why.
        detail: for the log.
        destination: the name of the destination that is away, where there are others which are not: the source may set the message
            aside for it.
    """

    reason: Reason
    detail: str = ""
    destination: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Unclear whose fault: counted. The backoff policy says when, unless ``after`` (seconds) does; its last attempt is the end."""

    reason: Reason
    detail: str = ""
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """Will never be accepted: a dead letter, with this reason."""

    reason: Reason
    detail: str = ""


Outcome: TypeAlias = Published | Released | Retry | Rejected
"""What became of one message."""

PUBLISHED = Published()
BEHIND = Released(Reason.BEHIND, "behind an earlier message of its key")


class Batch(Protocol):
    """What one claim holds, until it is settled or left."""

    @property
    def messages(self) -> Sequence[Message]:
        """The claimed messages, in the source's order; empty if there was nothing to claim."""

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Tell the source what became of each message, in the order of ``messages``. Once at most."""


class Source(Protocol):
    """Where messages come from. One `Bridge` owns it."""

    def claim(self, limit: int) -> AbstractAsyncContextManager[Batch]:
        """Take up to ``limit`` messages. Leaving the context without having settled gives all of them back.

        It may be called again while an earlier call still looks.
        Raises `bridges.errors.SourceUnavailable` while the source cannot be reached.
        """

    async def wait(self, timeout: float) -> None:
        """Return when there may be something to claim, after ``timeout`` seconds at the latest; it may return early."""


class Sink(Protocol):
    """Where messages go."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Publish the messages and answer one outcome for each, in order."""
