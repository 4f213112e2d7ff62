"""A Sink over Sinks, by topic."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from bridges.ordering import Blocked, waves
from bridges.ports import BEHIND, Outcome, Reason, Rejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.message import Message
    from bridges.ports import Sink
    from bridges.topics import Pattern


PATIENCE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Route:
    """Messages whose topic matches the pattern go to the sink.

    Attributes:
        topics: which.
        sink: where to. With a `bridges.breaker.GuardedSink` it is away by itself, and the others need not wait for it.
        ordered: False if its messages wait for no earlier one of their key, and no later one for them.
    """

    topics: Pattern
    sink: Sink
    ordered: bool = True


class Router:
    """Sends each message to the sink of the first route that matches its topic.

    The key prefix holds across sinks: a message waits until the one ahead of it in its key is acknowledged, wherever that one goes.
    A message that no route matches is `Rejected`: a dead letter, to be requeued when there is a route.

    Args:
        routes: in order.
        patience: seconds after which no further wave begins, where keys alternate between sinks; what is left waits behind its key.
    """

    def __init__(self, routes: Sequence[Route], *, patience: float = PATIENCE) -> None:
        self._routes = tuple(routes)
        self._patience = patience
        # Topics are few and messages are many.
        self._route_of = lru_cache(maxsize=10_000)(self._find)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Publish to all the sinks concerned at once. One outcome each, in order."""
        routes = [self._route_of(message.topic) for message in messages]
        if len(set(routes)) == 1 and routes[0] is not None:
            return await routes[0].sink.publish(messages)
        outcomes: list[Outcome] = [BEHIND] * len(messages)
        # What keeps no order is treated as if it had no key.
        keyed = [
            message if route is None or route.ordered else message._replace(key=None)
            for message, route in zip(messages, routes, strict=True)
        ]
        blocked = Blocked()
        loop = asyncio.get_running_loop()
        began = loop.time()
        for wave in waves(keyed, routes):
            if loop.time() > began + self._patience:
                break
            shares: dict[Route | None, list[int]] = {}
            for index in wave:
                if keyed[index] not in blocked:
                    shares.setdefault(routes[index], []).append(index)
            async with asyncio.TaskGroup() as group:
                for route, indexes in shares.items():
                    group.create_task(self._publish_share(route, messages, indexes, outcomes))
            for index in wave:
                blocked.note(keyed[index], outcomes[index])
        return outcomes

    async def _publish_share(
        self, route: Route | None, messages: Sequence[Message], indexes: Sequence[int], outcomes: list[Outcome]
    ) -> None:
        if route is None:
            for index in indexes:
                outcomes[index] = Rejected(Reason.NO_ROUTE, f"no route matches topic {messages[index].topic!r}")
            return
        answers = await route.sink.publish([messages[index] for index in indexes])
        for index, answer in zip(indexes, answers, strict=True):
            outcomes[index] = answer

    def _find(self, topic: str) -> Route | None:
        return next((route for route in self._routes if route.topics.matches(topic)), None)
