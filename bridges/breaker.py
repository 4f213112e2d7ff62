"""Something is away: how long to wait for it, who tries it next, and one line in the log when that begins and one when it ends.

Closed, everything passes. Open, nothing does until the backoff is over. Then it is half-open: one try, and its outcome decides. After
"Release It!" (M. Nygard, 2007, "Circuit Breaker"), with a backoff that grows instead of one fixed time.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from bridges.backoff import Backoff
from bridges.ports import Published, Reason, Released

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.message import Message
    from bridges.ports import Outcome, Sink

log = logging.getLogger("outboxd.breaker")

OUTAGE: Final = Backoff(first=0.1, cap=5.0)
"""The default wait between tries while something is away: short, since recovery is then seen within seconds, and never given up."""

_HARMLESS: Final = {Reason.BEHIND, Reason.STOPPING}


def trouble_in(outcomes: Sequence[Outcome]) -> Released | None:
    """Return the first outcome that says that a destination is away, if there is one."""
    return next((one for one in outcomes if isinstance(one, Released) and one.reason not in _HARMLESS), None)


class Breaker:
    """The state of one thing that may be away. Its times are those of the running event loop.

    Args:
        name: by which messages are set aside for a destination.
        backoff: how long to wait between tries.
        label: what the log calls it; its name if None.
    """

    def __init__(self, name: str, backoff: Backoff = OUTAGE, *, label: str | None = None) -> None:
        self.name = name
        self._label = label or name
        self.trouble = Released(Reason.UNAVAILABLE)
        """What was last seen to be wrong."""
        self._backoff = backoff
        self._failures = 0
        self._began = 0.0
        self._until = 0.0
        self._trying = False

    @property
    def closed(self) -> bool:
        """Whether everything passes."""
        return self._failures == 0

    @property
    def due(self) -> bool:
        """Whether the next try is due, and nobody is at it."""
        return not self.closed and not self._trying and self.remaining() == 0

    def remaining(self) -> float:
        """Return the seconds until the next try; 0 if it is due, or if all is well."""
        return max(0.0, self._until - asyncio.get_running_loop().time()) if self._failures else 0.0

    def admit(self) -> bool:
        """Say whether something may pass now. If that is the one try of a half-open breaker, its end must be told."""
        if self.closed:
            return True
        if self.due:
            self._trying = True
            return True
        return False

    def failed(self, trouble: Released) -> None:
        """It is away."""
        now = asyncio.get_running_loop().time()
        self._trying = False
        self.trouble = trouble
        if self.closed:
            self._began = now
            log.warning("%s: outage begins: %s: %s", self._label, trouble.reason, trouble.detail)
        if now >= self._until:  # what was in flight together fails together: that is one failure
            self._failures += 1
            self._until = now + self._backoff.delay(self._failures)

    def succeeded(self) -> None:
        """It is there."""
        self._trying = False
        if not self.closed:
            seconds = asyncio.get_running_loop().time() - self._began
            log.warning("%s: outage ends after %.1f s and %d tries", self._label, seconds, self._failures)
            self._failures = 0
            self._until = 0.0

    def undecided(self) -> None:
        """The try has ended, and said nothing: the next one may follow at once."""
        self._trying = False


class GuardedSink:
    """A Sink behind a breaker: while its destination is away it says so at once, and names the destination.

    For sinks of which others should not wait: a source may then set messages aside until this one is back.
    """

    def __init__(self, sink: Sink, breaker: Breaker) -> None:
        self._sink = sink
        self._breaker = breaker

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Publish through the inner sink, if the breaker lets it pass."""
        breaker = self._breaker
        if not breaker.admit():
            return [replace(breaker.trouble, destination=breaker.name)] * len(messages)
        try:
            outcomes = await self._sink.publish(messages)
        except BaseException as problem:
            # Cancelled by a deadline, most likely: it is as good as away.
            breaker.failed(Released(Reason.TIMEOUT, f"no answer: {type(problem).__name__}"))
            raise
        if trouble := trouble_in(outcomes):
            breaker.failed(trouble)
            return [self._named(outcome) for outcome in outcomes]
        if any(isinstance(outcome, Published) for outcome in outcomes):
            breaker.succeeded()
        else:
            breaker.undecided()
        return outcomes

    def _named(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Released) and outcome.reason not in _HARMLESS:
            return replace(outcome, destination=self._breaker.name)
        return outcome
