"""Live and ready, judged by progress and not by a running loop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bridges.observed import Progress
    from outbox.janitor import Backlog

_TRIED_AGAIN: Final = 15.0
"""Seconds in which whatever waits for a sink is tried again: three times the longest backoff, `bridges.breaker.OUTAGE`."""


class Health:
    """What the probes answer.

    Live: every loop has come round lately. If not, only a restart helps. Ready: the outbox can be reached, its sinks take messages, and
    whatever is due is moving.

    Args:
        stall_after: seconds.
        sinks: the destinations that are configured; the only values of the gauges' label.
        registry: for the gauges of the backlog.
    """

    def __init__(self, *, stall_after: float, sinks: Iterable[str] = (), registry: CollectorRegistry = REGISTRY) -> None:
        self._stall_after = stall_after
        self._watched: dict[str, Progress] = {}
        self._live: set[str] = set()
        self._sinks: dict[str, str] = {}
        self._held_by: Mapping[str, int] = {}
        self._oldest: float = 0.0
        self._measured_at = time.monotonic()
        self._draining = False
        self._messages = Gauge("outbox_backlog_messages", "Messages in the FIFO", registry=registry)
        self._held = Gauge("outbox_held_messages", "Messages that wait aside", registry=registry)
        held_for = Gauge("outbox_held_for_destination", "Messages that wait for a destination that is away", ["sink"], registry=registry)
        self._held_for = {sink: held_for.labels(sink) for sink in sinks}
        self._deferred = Gauge("outbox_deferred_messages", "Messages waiting for a time", registry=registry)
        self._dead = Gauge("outbox_dead_letters", "Messages given up", registry=registry)
        self._age = Gauge("outbox_oldest_message_age_seconds", "Age of the oldest message that could have gone", registry=registry)

    def watch(self, name: str, progress: Progress, *, live: bool = False, sink: str | None = None) -> None:
        """Judge readiness by this too.

        Args:
            name: what it is called in the answers.
            progress: what it was last seen doing.
            live: whether it is a loop that comes round by itself, however slow its work: then liveness is judged by it as well.
            sink: the destination that it is, if its messages come from the outbox, whose backlog is measured.
        """
        self._watched[name] = progress
        if live:
            self._live.add(name)
        if sink is not None:
            self._sinks[name] = sink

    def drain(self) -> None:
        """Not ready from now on: the daemon is shutting down."""
        self._draining = True

    def note_backlog(self, backlog: Backlog, age: float = 0.0) -> None:
        """Take a measurement of the backlog that was made, by whatever daemon, ``age`` seconds ago."""
        self._oldest = backlog.oldest_seconds
        self._held_by = backlog.held_by
        self._measured_at = time.monotonic() - age
        self._messages.set(backlog.messages)
        self._held.set(backlog.held)
        for sink, gauge in self._held_for.items():
            gauge.set(backlog.held_by.get(sink, 0))
        self._deferred.set(backlog.deferred)
        self._dead.set(backlog.dead)
        self._age.set(backlog.oldest_seconds)

    def why_not_live(self) -> list[str]:
        """Return what says that only a restart would help; nothing if all is well."""
        now = time.monotonic()
        return [
            f"{name}: its loop has not come round for {now - loop.turned_at:.0f} s"
            for name, loop in self._watched.items()
            if name in self._live and now - loop.turned_at > self._stall_after
        ]

    def why_not_ready(self) -> list[str]:
        """Return what keeps messages from moving; nothing if all is well."""
        reasons = self.why_not_live()
        if self._draining:
            reasons.append("shutting down")
        for name, watched in self._watched.items():
            if watched.source_trouble:
                reasons.append(f"{name}: {watched.source_trouble}")
            if watched.sink_trouble and not self._has_gone(name, watched.sink_troubled_at):
                reasons.append(f"{name}: {watched.sink_trouble}")
        now = time.monotonic()
        if "pump" in self._watched and now - self._measured_at > self._stall_after:
            reasons.append(f"the backlog could not be measured for {now - self._measured_at:.0f} s")
        pump = self._watched.get("pump")
        if pump is not None:
            quiet = now - pump.moved_at
            if self._oldest > self._stall_after and quiet > self._stall_after:
                reasons.append(f"pump: the oldest message is {self._oldest:.0f} s old and nothing has moved for {quiet:.0f} s")
        return reasons

    def _has_gone(self, name: str, then: float) -> bool:
        """Say whether what waited for a sink then has gone by another daemon: or this one would have tried it again, and seen how it is."""
        if name not in self._sinks:
            return False
        seconds = self._measured_at - then
        return seconds > _TRIED_AGAIN and self._oldest < seconds and not self._held_by.get(self._sinks[name], 0)
