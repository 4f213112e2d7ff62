"""A proxy in front of one server, which breaks its connections: at any time, or at a moment of the protocol."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from tests.faults.protocols import Direction
from tests.faults.relay import End, Link
from tests.faults.switches import Plan, State

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Collection

    from tests.faults.protocols import Protocol


class Proxy:
    """A proxy on a loopback port that stays the same for its life; an async context manager, in whose event loop it runs.

    Each fault holds for the connections that there are and for new ones, until `heal`; faults add up. Without a direction it is both.
    Kafka's clients go to where the brokers' metadata send them: past the proxy, unless the broker advertises it
    (``PrivateKafka(port=..., advertised=proxy.port)``).

    Args:
        target: host and port of the server. It need not be there; a client is reset when it is not.
        protocol: what is spoken, for the faults at a moment: `PostgresProtocol`, `NatsProtocol` or `KafkaProtocol`.

    Attributes:
        target: may be set to another server, for new connections.
    """

    def __init__(self, target: tuple[str, int], protocol: Protocol | None = None) -> None:
        self.target = target
        self._protocol = protocol
        self._state = State()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        state = self._state
        state.refusing = True  # whoever is being accepted
        if self._server is not None:
            self._server.close()
        self._reset_all()
        for connecting in state.connecting:
            connecting.cancel()
        if state.connecting:
            await asyncio.wait(state.connecting)
        for end in list(state.ends):  # those of connections that have ended, and whose last bytes nobody has taken
            end.reset()
        while state.ends:
            await state.closed.wait()
        if self._server is not None:
            await self._server.wait_closed()

    def _accept(self) -> End:
        return Link(self._state, self.target, self._protocol.another() if self._protocol else None).client

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1. Raises `RuntimeError` before it was entered."""
        if self._server is None or not self._server.sockets:
            msg = "the proxy is not running"
            raise RuntimeError(msg)
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """Connections that were accepted, those that were refused by `refuse` among them."""
        return self._state.connections

    @property
    def open(self) -> int:
        """Connections that there are now."""
        return len(self._state.links)

    @property
    def forwarded(self) -> dict[Direction, int]:
        """Bytes that were passed on."""
        return dict(self._state.forwarded)

    @property
    def faults(self) -> Counter[str]:
        """How often each fault, by its method's name, took effect.

        Connections for ``reset``, ``refuse``, ``half_close`` and ``freeze``; chunks for ``blackhole`` and ``delay``; bytes for ``slice``;
        moments for the others.
        """
        return self._state.faults.copy()

    def heal(self) -> None:
        """Undo every fault, and call off those at a moment that has not come.

        A connection that cannot go on is reset: one that was half-closed, has lost bytes, or whose other end has gone unnoticed.
        """
        state = self._state
        state.refusing = False
        state.plans.clear()
        for fault in (state.half_closed, state.swallowing, state.frozen, state.sliced, state.delays):
            fault.clear()
        for link in list(state.links):
            if link.broken:
                link.reset()
            else:
                for flow in link.flows.values():
                    flow.hurry()
                link.pump()

    def reset(self) -> None:
        """End every connection with RST, once. New ones are let in."""
        self._state.faults["reset"] += self._reset_all()

    def refuse(self) -> None:
        """Reset each new connection at once."""
        self._state.refusing = True

    def half_close(self, direction: Direction = Direction.TO_CLIENT) -> None:
        """Send FIN in one direction, and swallow what would follow it; the other stays open."""
        self._state.half_closed.add(direction)
        for link in list(self._state.links):
            if link.server.transport is not None:  # else when it is connected
                link.flows[direction].half_close()

    def blackhole(self, direction: Direction | None = None) -> None:
        """Swallow what comes, the end of a connection included."""
        self._state.swallowing.update(_directions(direction))

    def freeze(self, direction: Direction | None = None) -> None:
        """Read nothing: the sender is held up once the kernel's buffers are full."""
        self._state.frozen.update(_directions(direction))
        self._state.faults["freeze"] += len(self._state.links)
        self._pump_all()

    def delay(self, seconds: float, direction: Direction | None = None) -> None:
        """Pass everything on so much later, each way; as much may be under way as comes, up to 4 MiB a connection and direction."""
        self._state.delays.update(dict.fromkeys(_directions(direction), seconds))

    def slice(self, direction: Direction | None = None) -> None:
        """Pass on single bytes, each in a packet of its own, with a turn of the event loop between."""
        self._state.sliced.update(_directions(direction))

    def cut(self, moment: str, nth: int = 1) -> asyncio.Event:
        """Swallow the frame of the nth such moment from now, on any connection, and reset its connection, both ends.

        Returns an event that tells when it has happened. It never does, if `heal` comes first.
        Raises `ValueError` if the protocol has no such moment, or this cannot be done at it.
        """
        return self._plan(Plan("cut", moment, nth))

    def lose(self, moment: str, nth: int = 1) -> asyncio.Event:
        """Likewise, but swallow the answer and leave the connection open. With Kafka nothing else comes to the client on it either."""
        return self._plan(Plan("lose", moment, nth))

    def repeat(self, moment: str, nth: int = 1) -> asyncio.Event:
        """Likewise, but deliver the answer twice."""
        return self._plan(Plan("repeat", moment, nth))

    def late(self, moment: str, seconds: float, nth: int = 1) -> asyncio.Event:
        """Likewise, but hold the frame back for so long, and what follows behind it. The event tells when that begins."""
        return self._plan(Plan("late", moment, nth, seconds))

    def _plan(self, plan: Plan) -> asyncio.Event:
        moments = self._protocol.moments if self._protocol else {}
        known = sorted(moment for moment, actions in moments.items() if plan.action in actions)
        if plan.moment not in known or plan.left < 1:
            msg = f"{plan.action} at {plan.moment!r} number {plan.left}: known are {', '.join(known) or 'none'}, from number 1 on"
            raise ValueError(msg)
        self._state.plans.append(plan)
        return plan.done

    def _reset_all(self) -> int:
        links = list(self._state.links)
        for link in links:
            link.reset()
        return len(links)

    def _pump_all(self) -> None:
        for link in list(self._state.links):
            link.pump()


def _directions(direction: Direction | None) -> Collection[Direction]:
    return list(Direction) if direction is None else [direction]
