"""The exception tree. Outcomes are data; these are for the caller's mistakes and for what nobody can settle.

OutboxError
├── InvalidMessage(ValueError)       a field of a message is outside its limit: nothing was written, nothing was sent
├── InvalidPattern(ValueError)       a topic pattern or a destination template that cannot mean anything
├── ConfigurationError(ValueError)   a setting that cannot work, named with what is allowed
├── NoTransaction                    a put on a connection that would commit the message by itself
├── SourceUnavailable                a source cannot be reached now; the Bridge waits and tries again
└── Closed                           used after it was closed
"""

from __future__ import annotations


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
