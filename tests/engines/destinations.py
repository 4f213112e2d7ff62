"""Two destinations behind a router, each with a breaker: "s" and "t", which are also the topics that go there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridges.backoff import Backoff
from bridges.breaker import Breaker, GuardedSink
from bridges.router import Route, Router
from bridges.topics import Pattern
from outbox.rows import Policy
from tests.engines.sinks import DownSink, RecordingSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridges.message import Message
    from bridges.ports import Outcome


class Destinations:
    """What a test needs of them: ``down`` is what stands before "s"; both write into one record, in the order in which they publish."""

    def __init__(self, judge: Callable[[Message], Outcome] | None = None, **policy: Any) -> None:
        self.record = RecordingSink(judge) if judge else RecordingSink()
        self.down = DownSink(self.record)
        self.breakers = [Breaker(name, Backoff(first=0.01, cap=0.05), label=f"sink {name}") for name in ("s", "t")]
        sinks = (GuardedSink(self.down, self.breakers[0]), GuardedSink(self.record, self.breakers[1]))
        self.router = Router([Route(Pattern(name), sink) for name, sink in zip(("s", "t"), sinks, strict=True)])
        self._policy = policy

    @property
    def options(self) -> dict[str, Any]:
        """What the pump's source is made with."""
        return {"policy": lambda topic: Policy(destination=topic, sink=topic, **self._policy), "breakers": self.breakers}

    def payloads(self, topic: str) -> list[bytes]:
        """What was published to a topic, in order."""
        return [message.payload for message in self.record.published if message.topic == topic]
