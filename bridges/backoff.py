"""How long to wait, and when to give up. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridges.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential backoff with full jitter: uniform between zero and ``first * 2**(attempt - 1)``, at most ``cap``.

    Full jitter, from "Exponential Backoff And Jitter" (M. Brooker, AWS Architecture Blog, 2015), spreads those who failed together.

    Attributes:
        first: seconds, the ceiling of the first wait.
        cap: seconds, the ceiling of every wait.
        max_attempts: the attempt after which there is no other; None for ever.
    """

    first: float = 1.0
    cap: float = 300.0
    max_attempts: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.cap:
            msg = f"backoff: 0 < first <= cap must hold; first is {self.first}, cap is {self.cap}"
            raise ConfigurationError(msg)
        if self.max_attempts is not None and self.max_attempts < 1:
            msg = f"max_attempts: {self.max_attempts} is below 1"
            raise ConfigurationError(msg)

    def delay(self, attempt: int, *, uniform: Callable[[float, float], float] = random.uniform) -> float:
        """Return the seconds to wait after the ``attempt``-th failure in a row (from 1)."""
        # The exponent is bounded: 2.0 ** 1024 overflows, and every cap is reached long before.
        return uniform(0.0, min(self.cap, self.first * 2.0 ** min(attempt - 1, 63)))

    def exhausted(self, attempts: int) -> bool:
        """Say whether ``attempts`` failures were the last ones allowed."""
        return self.max_attempts is not None and attempts >= self.max_attempts
