"""What lies between: resets, half-closed and silent connections, delays, and cuts at a moment of the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.faults.fleet import SINKS, Fleet
from tests.faults.nemeses import SERVERS, last, nemesis, reached
from tests.faults.protocols import Direction

if TYPE_CHECKING:
    import asyncio
    import random
    from collections.abc import Callable, Mapping

    from tests.faults.history import History
    from tests.faults.proxy import Proxy


def way_of(ours: Fleet, name: str) -> Proxy:
    """Return the proxy that a nemesis is about, by its name."""
    way = ours.postgres_way if name.endswith("Postgres") else ours.broker.way
    assert way is not None
    return way


def _harm(what: str, begin: Callable[[Proxy], object], seconds: tuple[float, float]) -> None:
    """Register a harm of a proxy, on each of the ways."""
    for name, sinks in ((f"{what} to Postgres", SINKS), (f"{what} to the broker", SERVERS)):

        async def hurt(ours: Fleet, chance: random.Random, _: History, name: str = name) -> None:
            way = way_of(ours, name)
            begin(way)
            await last(chance.uniform(*seconds))
            way.heal()
            await ours.ready()

        nemesis(name, sinks=sinks, hits_consumer=sinks is SERVERS)(hurt)


def shut(way: Proxy) -> None:
    """Reset every connection, and each new one."""
    way.reset()
    way.refuse()


_harm("connections reset", lambda way: way.reset(), (0, 1))
_harm("new connections refused", shut, (2, 4))
_harm("half-closed", lambda way: way.half_close(), (2, 4))
_harm("half-closed the other way", lambda way: way.half_close(Direction.TO_SERVER), (2, 4))
_harm("answers swallowed on the way", lambda way: way.blackhole(Direction.TO_CLIENT), (2, 5))
_harm("requests swallowed on the way", lambda way: way.blackhole(Direction.TO_SERVER), (2, 5))
_harm("all swallowed on the way", lambda way: way.blackhole(), (2, 5))
_harm("nothing read on the way", lambda way: way.freeze(), (2, 5))
_harm("50 ms more on the way", lambda way: way.delay(0.05), (2, 4))
_harm("single bytes on the way", lambda way: way.slice(), (2, 4))


def _at_a_moment(name: str, moments: Mapping[str, str], plan: Callable[[Proxy, str], asyncio.Event], times: int) -> None:
    """Register what is done at a moment of the protocol, some times in a row."""

    async def hurt(ours: Fleet, chance: random.Random, _: History) -> None:
        moment = moments.get(ours.broker.kind) or moments["Postgres"]
        way = way_of(ours, "Postgres" if "Postgres" in moments else "broker")
        for _turn in range(times):
            await reached(plan(way, moment), moment)
            await last(chance.uniform(0, 0.2))
        await ours.ready()

    nemesis(name, sinks=SINKS if "Postgres" in moments else tuple(moments), times=times, hits_consumer="Postgres" not in moments)(hurt)


_COMMITTED: Final = {"Postgres": "after_commit"}
_STORED: Final = {"jetstream": "after_pub", "kafka": "after_produce"}
_at_a_moment("cut before COMMIT", {"Postgres": "before_commit"}, lambda way, moment: way.cut(moment), 5)
_at_a_moment("cut after COMMIT", _COMMITTED, lambda way, moment: way.cut(moment), 5)
_at_a_moment("COMMIT answered late", _COMMITTED, lambda way, moment: way.late(moment, 1.0), 2)
_at_a_moment("cut after the broker has stored", _STORED, lambda way, moment: way.cut(moment), 5)
_at_a_moment("acknowledgement lost", _STORED, lambda way, moment: way.lose(moment), 2)
_at_a_moment("acknowledgement late", _STORED, lambda way, moment: way.late(moment, 3.0), 2)
_at_a_moment("acknowledgement twice", {"jetstream": "after_pub"}, lambda way, moment: way.repeat(moment), 20)


@nemesis("writer cut at COMMIT")
async def writer_cut(ours: Fleet, chance: random.Random, _: History) -> None:
    """The application does not know whether it has committed; its messages are there, or they never were."""
    for moment in ("before_commit", "after_commit") * 3:
        await reached(ours.writers_way.cut(moment), moment)
        await last(chance.uniform(0, 0.3))
