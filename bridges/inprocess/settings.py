"""What a subscription chooses, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from types import FunctionType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from bridges.backoff import Backoff
from bridges.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridges.inprocess.log import Log
    from bridges.inprocess.tenants import Tenants
    from bridges.message import Message


class Policy(StrEnum):
    """What a subscription does with a message for which its buffer has no room."""

    DROP_NEWEST = "drop_newest"
    """It is dropped."""
    DROP_OLDEST = "drop_oldest"
    """The oldest that waits is dropped for it."""
    BLOCK = "block"
    """Its publisher waits for room."""
    SPILL = "spill"
    """It goes to the subscription's log, and comes from there when there is room."""
    SHED = "shed"
    """It is dropped, and that is as good as acknowledged: whoever waits for its outcome is told that it is published."""


PolicyName: TypeAlias = Literal["drop_newest", "drop_oldest", "block", "spill", "shed"]


class Drop(StrEnum):
    """Why a message was dropped."""

    FULL = "full"
    """The buffer had no room for it."""
    SHED = "shed"
    """The buffer had no room for it, and the subscription does without it."""
    EXPIRED = "expired"
    """Its time to live was over before it was its turn."""
    ENDED = "ended"
    """The subscription ended before it was its turn."""
    WITHDRAWN = "withdrawn"
    """Its publisher waited no longer."""
    EVICTED = "evicted"
    """The log that it was spilled to had no room for it either."""
    FILTER = "filter"
    """The subscription's filter raised on it."""


RETRY: Final = Backoff(first=0.1, cap=30.0, max_attempts=5)
"""How a subscription retries, unless it says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a subscription, or of all the members of one queue group.

    Raises `ConfigurationError`, naming the setting, what it is and what is allowed.
    """

    buffer: int
    policy: Policy | PolicyName = Policy.DROP_NEWEST
    ack_deadline: float | None = 30.0
    retry: Backoff = RETRY
    filter: Callable[[Message], bool] | None = None
    on_drop: Callable[[Message, Drop], None] | None = None
    tenants: Tenants | None = None
    spill_to: Log | None = None

    def __post_init__(self) -> None:
        if self.buffer < 1:
            msg = f"buffer: {self.buffer} is below 1"
            raise ConfigurationError(msg)
        if self.policy not in set(Policy):
            msg = f"policy: {self.policy!r} is not one of {', '.join(Policy)}"
            raise ConfigurationError(msg)
        if self.ack_deadline is not None and not self.ack_deadline > 0:
            msg = f"ack_deadline: {self.ack_deadline} is not above 0"
            raise ConfigurationError(msg)
        if self.policy == Policy.SPILL and self.tenants is not None:
            msg = "tenants: a subscription that spills takes messages back in the order of its log; choose another policy"
            raise ConfigurationError(msg)
        if self.spill_to is not None and self.policy != Policy.SPILL:
            msg = f"spill_to: is for policy 'spill'; it is {str(self.policy)!r}"
            raise ConfigurationError(msg)

    def differs(self, other: Settings) -> str | None:
        """Return the name of a setting in which members of one group may not differ, and do."""
        names = (field.name for field in fields(self))
        return next((name for name in names if not _same(getattr(self, name), getattr(other, name))), None)


def _same(one: object, other: object) -> bool:
    """Say whether two settings are the same; functions are if they were made at one place, with equal defaults and what they close over."""
    if isinstance(one, FunctionType) and isinstance(other, FunctionType):
        return (
            one.__code__ is other.__code__
            and (one.__defaults__, one.__kwdefaults__) == (other.__defaults__, other.__kwdefaults__)
            and one.__closure__ == other.__closure__
        )
    return one == other
