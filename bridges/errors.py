"""The exception tree. Outcomes are data; these are for the caller's mistakes and for what nobody can settle.

OutboxError
├── InvalidMessage(ValueError)       a field of a message is outside its limit: nothing was written, nothing was sent
├── InvalidPattern(ValueError)       a topic pattern or a destination template that cannot mean anything
├── ConfigurationError(ValueError)   a setting that cannot work, named with what is allowed
├── NoTransaction                    a put on a connection that would commit the message by itself
├── SourceUnavailable                a source cannot be reached now; the Bridge waits and tries again
├── Evicted(LookupError)             a log no longer has what was asked for; nothing of it was delivered
├── Stalled(TimeoutError)            subscriptions did not take a message in time; it names them
├── NoReply(TimeoutError)            a request that nobody took, or answered in time
├── LogInUse                         a durable log's folder is open already
├── LogFailed                        an append could not be stored; the log takes more as soon as its disk does
├── CorruptLog                       what a durable log holds is not what was written: opening refuses to guess
└── Closed                           used after it was closed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class OutboxError(Exception):
    """The root of everything that outboxd raises on purpose."""


class InvalidMessage(OutboxError, ValueError):
    """A field of a message is outside its limit.

    ``field`` names it (``topic``, ``key``, ``headers``, ``payload``, ``id``, ...); the text says which limit and what was given.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class InvalidPattern(OutboxError, ValueError):
    """A topic pattern or a destination template that cannot mean anything; the text names the token."""


class ConfigurationError(OutboxError, ValueError):
    """A setting that cannot work; the text names the key and what is allowed."""


class NoTransaction(OutboxError):
    """A put on an autocommit connection with no transaction open: the message would not share the fate of anything."""


class SourceUnavailable(OutboxError):
    """A source cannot be reached now. What was claimed is given back; the Bridge waits and tries again."""


class Evicted(OutboxError, LookupError):
    """A log no longer has the offset: its retention has evicted it. Nothing was delivered in its stead; ``first`` is what is left."""

    def __init__(self, offset: int, first: int) -> None:
        super().__init__(f"offset {offset} is evicted; the log begins at {first}")
        self.offset = offset
        self.first = first


class Stalled(OutboxError, TimeoutError):
    """Subscriptions that did not take a message in time, by ``names``; the others have it."""

    def __init__(self, topic: str, names: Sequence[str], timeout: float) -> None:
        super().__init__(f"{topic!r} was not taken within {timeout:g} s by {', '.join(names)}")
        self.names = tuple(names)


class NoReply(OutboxError, TimeoutError):
    """A request that no subscription takes, or that nobody answered in time."""


class LogInUse(OutboxError):
    """A durable log's folder is open already, in another process or in this one."""


class LogFailed(OutboxError):
    """An append could not be stored as durably as configured. The log takes more as soon as its disk does.

    What the append wrote may be found then, or not: as after a connection that was lost during COMMIT.
    """


class CorruptLog(OutboxError):
    """What a durable log holds is not what was written; ``file`` and ``position`` say where.

    A torn end is not that: it is what a crash leaves, and opening cuts it off. Opening with ``skip_corrupt=True`` goes on without
    what is damaged, keeps the damaged file aside, and reports it.
    """

    def __init__(self, file: str, position: int, problem: str) -> None:
        super().__init__(f"{file}, byte {position}: {problem}")
        self.file = file
        self.position = position


class Closed(OutboxError):
    """Used after it was closed."""


_STORABLE = 2000


def told(problem: BaseException) -> str:
    """Return what went wrong in one line: the kind of error and the first line of its text."""
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0]}" if lines else type(problem).__name__


def storable(text: str) -> str:
    """Return foreign text as Postgres can store it: 2,000 characters at most, without NUL and lone surrogates."""
    return text.replace("\0", "\\0")[:_STORABLE].encode(errors="replace").decode()
