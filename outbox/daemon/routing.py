"""From the routes of the configuration to what carries them out: the Router's, and what the outbox's source knows of them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from bridges.breaker import Breaker, GuardedSink
from bridges.observed import ObservedSink
from bridges.router import Route
from bridges.topics import Pattern
from outbox.rows import SAME_FOR_ALL, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bridges.observed import Metrics, Progress
    from bridges.ports import Sink
    from outbox.daemon.brokers import Broker
    from outbox.daemon.config import Settings
    from outbox.daemon.sections import RouteSection


class Routing(NamedTuple):
    """Everything about the routes: for the Router, and for the source."""

    routes: list[Route]
    policy: Callable[[str], Policy]
    breakers: list[Breaker]


def make_routing(settings: Settings, brokers: Mapping[str, Broker], metrics: Metrics, progress: Mapping[str, Progress]) -> Routing:
    """Join the routes to their sinks.

    With one sink there is nobody whom its absence could hold up: the pump waits for it. Of several, each has a breaker, and what goes to
    one that is away is set aside.
    """
    names = list(dict.fromkeys(route.sink for route in settings.routes))
    breakers = {name: Breaker(name, label=f"sink {name}") for name in names} if len(names) > 1 else {}

    def sink_of(route: RouteSection) -> Sink:
        sink = brokers[route.sink].sink(route.destination, ordered=route.order == "key")
        observed = ObservedSink(sink, route.sink, metrics, progress[route.sink])
        return GuardedSink(observed, breakers[route.sink]) if route.sink in breakers else observed

    return Routing(
        routes=[Route(Pattern(route.topics), sink_of(route), ordered=route.order == "key") for route in settings.routes],
        policy=make_policy(settings),
        breakers=list(breakers.values()),
    )


def make_policy(settings: Settings) -> Callable[[str], Policy]:
    """Return what says, of a topic, what its route says; the first that matches, as in the Router."""
    several = len({route.sink for route in settings.routes}) > 1
    policies = [
        (
            Pattern(route.topics),
            Policy(
                destination=route.sink if several else None,
                ordered=route.order == "key",
                holds_after_dead=route.after_dead == "hold",
                keep=route.archive,
                sink=route.sink,
            ),
        )
        for route in settings.routes
    ]

    @lru_cache(maxsize=10_000)  # topics are few, and messages are many
    def policy(topic: str) -> Policy:
        return next((policy for pattern, policy in policies if pattern.matches(topic)), SAME_FOR_ALL)

    return policy
