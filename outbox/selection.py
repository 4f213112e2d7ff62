"""Which messages an operator means. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from bridges.errors import ConfigurationError, InvalidMessage, InvalidPattern
from bridges.message import check_key
from bridges.ports import Reason
from bridges.topics import Pattern

if TYPE_CHECKING:
    from collections.abc import Sequence


FATAL: Final = (
    Reason.TOO_LARGE,
    Reason.INVALID,
    Reason.NO_ROUTE,
    Reason.EXPIRED,
    Reason.ATTEMPTS,
    Reason.REFUSED,
    Reason.HANDLER,
)
"""Of which messages die; all others are an outage's, or a wait's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which messages are meant: those that fit everything that is given. Raises `ConfigurationError`, naming the field.

    Attributes:
        ids: one of these; any id if there are none.
        topics: a topic pattern, which matches as it does in a route.
        key: this one.
        reason: a `bridges.ports.Reason`, of dead letters alone.
        since: died, or published, then or later; aware.
        until: died, or published, before then; aware.
    """

    ids: Sequence[UUID | str] = ()
    topics: str | None = None
    key: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(dict.fromkeys(_checked_id(given) for given in self.ids)))
        if self.reason is not None:
            object.__setattr__(self, "reason", _checked_reason(self.reason))
        try:
            if self.topics is not None:
                Pattern(self.topics)
            check_key(self.key)
        except InvalidPattern as problem:
            msg = f"topics: {problem}"
            raise ConfigurationError(msg) from None
        except InvalidMessage as problem:
            raise ConfigurationError(str(problem)) from None
        for field, time in (("since", self.since), ("until", self.until)):
            if time is not None and (not isinstance(time, datetime) or time.utcoffset() is None):
                msg = f"{field}: {time!r} is not an aware datetime: give it a time zone"
                raise ConfigurationError(msg)
        if self.since is not None and self.until is not None and self.until <= self.since:
            msg = f"until: {self.until.isoformat()} is not after since, {self.since.isoformat()}"
            raise ConfigurationError(msg)

    @property
    def message_ids(self) -> list[UUID]:
        """The ids, as they were understood."""
        return [one for one in self.ids if isinstance(one, UUID)]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is given, so that every message is meant."""
        return not self.told()

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the statements in `outbox.sql_operating` that select by it."""
        return {
            "ids": self.message_ids or None,
            # What the router itself matches with: Postgres reads this part of Python's notation in the same way.
            "topics": None if self.topics is None else f"^(?:{Pattern(self.topics).regex})$",
            "key": self.key,
            "reason": None if self.reason is None else str(self.reason),
            "since": self.since,
            "until": self.until,
        }

    def told(self) -> dict[str, Any]:
        """Return what is given, for an audit: by field, as JSON has it."""
        given = {
            "ids": [str(one) for one in self.ids] or None,
            "topics": self.topics,
            "key": self.key,
            "reason": self.reason,
            "since": self.since and self.since.isoformat(),
            "until": self.until and self.until.isoformat(),
        }
        return {field: value for field, value in given.items() if value is not None}

    def require_something(self, *, everything: bool) -> None:
        """Raise `ConfigurationError` if nothing is given, unless everything is meant."""
        if self.is_empty and not everything:
            msg = "selection: nothing is given, and that would be every message: give ids, topics, key, reason, since or until, or say all"
            raise ConfigurationError(msg)
        if everything and not self.is_empty:
            msg = f"selection: everything, or {', '.join(self.told())}? Not both"
            raise ConfigurationError(msg)


def _checked_id(given: UUID | str) -> UUID:
    if isinstance(given, UUID):
        return given
    try:
        return UUID(given)
    except (ValueError, AttributeError, TypeError):
        msg = f"ids: {given!r} is not a UUID"
        raise ConfigurationError(msg) from None


def _checked_reason(given: str) -> Reason:
    try:
        return Reason(given)
    except ValueError:
        msg = f"reason: {given!r} is not one of {', '.join(FATAL)}"
        raise ConfigurationError(msg) from None
