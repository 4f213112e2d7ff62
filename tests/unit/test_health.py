"""Live and ready, judged by progress."""

from __future__ import annotations

import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from bridges.observed import Progress
from outbox.daemon.health import Health
from outbox.janitor import Backlog

STALL = 60.0


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def health(registry: CollectorRegistry) -> Health:
    return Health(stall_after=STALL, registry=registry)


def backlog(**fields: Any) -> Backlog:
    return Backlog(**{"messages": 0, "held": 0, "deferred": 0, "dead": 0, "oldest_seconds": 0.0, **fields})


def progress(*, turned: float = 0.0, moved: float = 0.0, source: str | None = None, sink: str | None = None) -> Progress:
    """Return one that came round and moved so many seconds ago."""
    made = Progress()
    made.turned_at = time.monotonic() - turned
    made.moved_at = time.monotonic() - moved
    made.source_trouble, made.sink_trouble = source, sink
    return made


def test_a_daemon_with_nothing_to_watch_is_live_and_ready(health: Health) -> None:
    assert health.why_not_live() == health.why_not_ready() == []


def test_a_loop_that_comes_round_is_live_whatever_is_away(health: Health) -> None:
    """A restart would not help."""
    health.watch("pump", progress(turned=STALL - 1, moved=9999, source="no route to host", sink="timeout"), live=True)
    health.note_backlog(backlog(messages=1, oldest_seconds=9999))
    assert health.why_not_live() == []


def test_a_loop_that_does_not_come_round_is_neither_live_nor_ready(health: Health) -> None:
    health.watch("pump", progress(turned=STALL + 5), live=True)
    (reason,) = health.why_not_live()
    assert reason == "pump: its loop has not come round for 65 s"
    assert reason in health.why_not_ready()


def test_only_loops_that_come_round_by_themselves_are_judged_for_life(health: Health) -> None:
    """A consumer's handler may take an hour."""
    health.watch("consumer billing", progress(turned=9999))
    assert health.why_not_live() == health.why_not_ready() == []


def test_whatever_is_away_keeps_it_from_being_ready_and_is_named(health: Health) -> None:
    health.watch("pump", progress(source="no route to host"), live=True)
    health.watch("sink events", progress(sink="timeout: no answer"))
    assert health.why_not_ready() == ["pump: no route to host", "sink events: timeout: no answer"]


def test_it_is_ready_again_when_the_trouble_is_over(health: Health) -> None:
    troubled = progress(sink="away")
    health.watch("sink events", troubled)
    assert health.why_not_ready()
    troubled.sink_trouble = None
    assert health.why_not_ready() == []


@pytest.mark.parametrize(
    ("ago", "measured", "oldest", "held", "ready"),
    [
        (20, 0, 0, 0, True),
        (20, 0, 19, 0, True),
        (20, 0, 21, 0, False),  # what met the trouble still waits
        (20, 0, 0, 1, False),  # or waits aside
        (20, 25, 0, 0, False),  # it was measured before
        (10, 0, 0, 0, False),  # it may be about to be tried again
    ],
)
def test_a_sink_whose_messages_another_daemon_has_published_is_in_no_trouble(
    health: Health, ago: float, measured: float, oldest: float, held: int, ready: bool
) -> None:
    """Nothing may come for this one for days. A bridge of its own, with messages that nobody else has, goes by its own last publish."""
    troubled = progress(sink="timeout: no answer")
    troubled.sink_troubled_at = time.monotonic() - ago
    health.watch("sink events", troubled, sink="events")
    health.note_backlog(backlog(oldest_seconds=oldest, held_by={"events": held, "other": 3}), measured)
    assert (health.why_not_ready() == []) == ready
    troubled.sink_trouble = "timeout: no answer"
    assert health.why_not_ready() == ["sink events: timeout: no answer"]
    troubled.sink_troubled_at = time.monotonic() - 9999
    health.watch("bridge orders", troubled)
    health.note_backlog(backlog())
    assert health.why_not_ready() == ["bridge orders: timeout: no answer"]


@pytest.mark.parametrize(
    ("oldest", "quiet", "ready"),
    [
        (STALL - 1, STALL + 5, True),  # nothing is due for long
        (STALL + 5, STALL - 1, True),  # a long backlog that moves
        (STALL + 5, STALL + 5, False),
    ],
)
def test_the_oldest_message_must_be_moving(health: Health, oldest: float, quiet: float, ready: bool) -> None:
    health.watch("pump", progress(moved=quiet), live=True)
    health.note_backlog(backlog(messages=1, oldest_seconds=oldest))
    reasons = health.why_not_ready()
    assert (reasons == []) == ready
    assert ready or reasons == ["pump: the oldest message is 65 s old and nothing has moved for 65 s"]


def test_a_daemon_that_is_draining_is_live_and_not_ready(health: Health) -> None:
    health.drain()
    assert health.why_not_live() == []
    assert health.why_not_ready() == ["shutting down"]


def test_a_measurement_that_another_daemon_made_long_ago_is_none(health: Health) -> None:
    """All export the same figures; when nobody measures any more, each is unready for that."""
    health.watch("pump", progress(), live=True)
    health.note_backlog(backlog(), STALL - 1)
    assert health.why_not_ready() == []
    health.note_backlog(backlog(), STALL + 5)
    assert health.why_not_ready() == ["the backlog could not be measured for 65 s"]


def test_what_waits_for_a_destination_is_shown_for_those_that_are_configured(registry: CollectorRegistry) -> None:
    health = Health(stall_after=STALL, sinks=["events", "other"], registry=registry)
    health.note_backlog(Backlog(0, 6, 0, 0, 0.0, {"events": 2, "key": 1, "renamed since": 3}))
    shown = {sample.labels["sink"]: sample.value for metric in registry.collect() for sample in metric.samples if sample.labels}
    assert shown == {"events": 2, "other": 0}
    health.note_backlog(Backlog(0, 0, 0, 0, 0.0))
    assert registry.get_sample_value("outbox_held_for_destination", {"sink": "events"}) == 0


def test_a_measurement_is_shown(health: Health, registry: CollectorRegistry) -> None:
    health.note_backlog(backlog(messages=1, held=2, deferred=3, dead=4, oldest_seconds=5.5))
    shown = {sample.name: sample.value for metric in registry.collect() for sample in metric.samples}
    assert shown["outbox_backlog_messages"] == 1
    assert shown["outbox_deferred_messages"] == 3
    assert shown["outbox_dead_letters"] == 4
    assert shown["outbox_oldest_message_age_seconds"] == 5.5
    assert shown["outbox_held_messages"] == 2
