"""Our own processes: killed, frozen, stopped, restarted, on a machine with a wrong clock, or at a failpoint."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from bridges.failpoints import POINTS, SLEEP
from tests.engines.deadline import eventually
from tests.faults.fleet import BRIDGED, CLAIM_TIMEOUT, SINKS, Fleet, Member
from tests.faults.nemeses import SERVERS, Nemesis, last, nemesis

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from tests.faults.history import History


async def kill_and_restart(member: Member, chance: random.Random) -> None:
    """As a supervisor would see it."""
    await member.kill()
    await last(chance.uniform(0, 0.5))
    member.start()


@nemesis("kill pump")
async def kill_pump(ours: Fleet, chance: random.Random, _: History) -> None:
    await kill_and_restart(chance.choice(ours.pumps), chance)
    await ours.ready()


@nemesis("kill consumer", sinks=SERVERS, hits_consumer=True)
async def kill_consumer(ours: Fleet, chance: random.Random, _: History) -> None:
    await kill_and_restart(ours.others["consumer"], chance)
    await ours.ready()


@nemesis("kill writer")
async def kill_writer(ours: Fleet, chance: random.Random, _: History) -> None:
    await kill_and_restart(ours.writer, chance)


async def freeze(member: Member, seconds: float) -> None:
    """Have a process stand still, and then go on as if nothing had been."""
    member.signal(signal.SIGSTOP)
    try:
        await last(seconds)
    finally:
        member.signal(signal.SIGCONT)


@nemesis("freeze pump", pumps=2)
async def freeze_pump(ours: Fleet, chance: random.Random, _: History) -> None:
    """Past its claim's deadline, while another pump takes over what it had claimed."""
    await freeze(chance.choice(ours.pumps), CLAIM_TIMEOUT + 3)
    await ours.ready()


@nemesis("freeze consumer", sinks=SERVERS, hits_consumer=True)
async def freeze_consumer(ours: Fleet, chance: random.Random, _: History) -> None:
    await freeze(ours.others["consumer"], chance.uniform(3, 6))
    await ours.ready()


@nemesis("freeze consumer for 35 s", sinks=SERVERS, longest=100, hits_consumer=True)
async def freeze_consumer_long(ours: Fleet, _: random.Random, __: History) -> None:
    """Past the time after which JetStream delivers again what it has not acknowledged, and Kafka puts it out of its group."""
    await freeze(ours.others["consumer"], 35)
    await ours.ready()


@nemesis("freeze writer")
async def freeze_writer(ours: Fleet, chance: random.Random, _: History) -> None:
    """In the middle of a transaction, perhaps, which then holds the locks of its keys and the floor."""
    await freeze(ours.writer, chance.uniform(2, 5))


@nemesis("rolling restart", pumps=3)
async def rolling_restart(ours: Fleet, _: random.Random, history: History) -> None:
    """Each pump in its turn, as a deployment does it."""
    for pump in ours.pumps:
        ended = await pump.stop(15.0)
        history.exits.append(ended)
        pump.start()
        await ours.ready(pump)


@nemesis("SIGTERM twice")
async def sigterm_twice(ours: Fleet, chance: random.Random, _: History) -> None:
    """By somebody who cannot wait: it leaves at once, and what was in flight is rolled back."""
    pump = chance.choice(ours.pumps)
    pump.signal(signal.SIGTERM)
    await last(chance.uniform(0, 0.05))
    pump.signal(signal.SIGTERM)
    assert await pump.ended(5) is not None, f"{pump.name} did not end within 5 s of a second signal"
    pump.start()
    await ours.ready()


@nemesis("clock an hour ahead")
async def clock_ahead(ours: Fleet, chance: random.Random, _: History) -> None:
    """A pump whose machine thinks that it is an hour later, for a while; and then one that goes back."""
    pump = chance.choice(ours.pumps)
    for seconds in (3600, -3600):
        await pump.kill()
        pump.start([sys.executable, "-m", "tests.faults.shifted", str(seconds), *pump.command[3:]])
        await ours.ready()
        await last(2)
    await pump.kill()
    pump.start()
    await ours.ready()


@nemesis("killed at a failpoint", times=2, hits_consumer=True)
async def killed_at_a_failpoint(ours: Fleet, chance: random.Random, _: History) -> None:
    """Or after a while, if other pumps have had everything meanwhile."""
    point = chance.choice([point for point in POINTS if not point.startswith("bridge.")])
    member = chance.choice(ours.pumps if point.startswith("pump.") else ours.consumers)
    await member.kill()
    member.start(OUTBOXD_FAILPOINT=f"{point}:kill")
    code = await member.ended(20)
    assert code in {None, -signal.SIGKILL}, f"{member.name} ended with {code}, and was to be killed at {point}"
    await kill_and_restart(member, chance)
    await ours.ready()


def failpoints(loop: str, armed: Sequence[str]) -> Nemesis:
    """Return the nemesis that has a daemon do things at points of a loop: each in a process of its own, one after the other.

    Args:
        loop: ``pump``, ``consumer`` or ``bridge``.
        armed: what the variable says each time, such as ``pump.publish.after:kill``.
    """

    async def hurt(ours: Fleet, chance: random.Random, _: History) -> None:
        member = chance.choice({"pump": ours.pumps, "consumer": ours.consumers}.get(loop) or [ours.others[loop]])
        for each in armed:
            point, action = each.split(":")
            await member.kill()
            said = f"failpoint {point}: {action}"
            before = member.log.read_text().count(said)
            member.start(OUTBOXD_FAILPOINT=f"{each}:{chance.randint(1, 3)}")

            async def is_reached(said: str = said, before: int = before) -> bool:
                return member.log.read_text().count(said) > before

            await eventually(is_reached, within=30, what=f"{each} to be reached: {member.log.read_text()[-1500:]}")
            await _seen(member, point, action)
        await member.kill()
        member.start()
        await ours.ready()

    return Nemesis(
        f"failpoints of the {loop}",
        hurt,
        sinks=(BRIDGED,) if loop == "bridge" else SINKS,
        longest=40.0 * len(armed),
        times=2 * len(armed),  # each is killed before it is armed, and at its point
        hits_consumer=loop != "pump",
    )


async def _seen(member: Member, point: str, action: str) -> None:
    """See that a process does what it was told, which for most is its end."""
    match action:
        case "kill":
            assert await member.ended(10) == -signal.SIGKILL, f"{member.name} was to be killed at {point}"
        case "raise" if not point.startswith("consumer.handler."):  # there it is a message that has failed, which is tried again
            assert await member.ended(15) == 1, "a fault of the program itself ends it, loudly"
        case "stop":

            async def is_stopped() -> bool:
                return member.is_stopped()

            await eventually(is_stopped, within=5, what=f"{member.name} to stand still")
        case _:
            await last(SLEEP + 1)  # while others are at work
            assert member.pid, "it goes on"
