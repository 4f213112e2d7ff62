"""What holds for the proxy whatever it is told to do."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from tests.faults.echo import MUCH, calling, echoing, until
from tests.faults.protocols import Direction
from tests.faults.proxy import Proxy

GENTLE = ("freeze", "delay", "slice")
HARSH = ("blackhole", "half_close", "reset", "refuse")
SENT = MUCH[:3_000_000]


@pytest.mark.parametrize("kinds", [GENTLE, GENTLE + HARSH], ids=["gentle", "all"])
@pytest.mark.parametrize("seed", range(3))
async def test_what_arrives_has_no_hole(seed: int, kinds: tuple[str, ...]) -> None:
    """Whatever is done in whatever order, a client gets what it has sent, from the beginning on, and all of it unless it is told."""
    chance = random.Random(seed)
    whole: list[bool] = []
    async with echoing() as echo, Proxy(("127.0.0.1", echo.port)) as proxy:
        for _ in range(8):
            callers = [asyncio.create_task(_gets_all(proxy)) for _ in range(3)]
            for _ in range(4):
                _do(proxy, chance.choice(kinds), chance)
                await asyncio.sleep(chance.uniform(0, 0.02))  # at any point of the transfer
                if chance.random() < 0.3:
                    proxy.heal()
            proxy.heal()
            whole += await asyncio.wait_for(asyncio.gather(*callers), 30)
    assert all(whole) == (kinds == GENTLE)


def _do(proxy: Proxy, kind: str, chance: random.Random) -> None:
    direction = chance.choice(list(Direction))
    match kind:
        case "reset" | "refuse":
            getattr(proxy, kind)()
        case "half_close":
            proxy.half_close(direction)
        case "delay":
            proxy.delay(0.02, chance.choice([direction, None]))
        case _:
            getattr(proxy, kind)(chance.choice([direction, None]))


async def _gets_all(proxy: Proxy) -> bool:
    got = bytearray()
    async with calling(proxy) as caller:
        sending = asyncio.create_task(caller.sends(SENT))
        with suppress(ConnectionError):
            while len(got) < len(SENT) and (data := await caller.reader.read(1 << 16)):
                got += data
        sending.cancel()
        await asyncio.wait({sending})
        if not sending.cancelled():
            sending.exception()  # the connection was reset
    assert SENT.startswith(got)
    return len(got) == len(SENT)


async def test_it_leaves_nothing_behind() -> None:
    """However its connections are when it is left: no task, no socket, and its clients are reset."""
    async with echoing() as echo, AsyncExitStack() as stack:
        files, tasks = _files(), asyncio.all_tasks()
        async with Proxy(("127.0.0.1", echo.port)) as proxy:
            callers = [await stack.enter_async_context(calling(proxy)) for _ in range(3)]
            for caller in callers:
                await caller.says()
            proxy.delay(60)
            proxy.half_close()
            callers[0].writer.write(MUCH)
            proxy.freeze(Direction.TO_SERVER)
            callers[1].writer.write(MUCH)
            port = proxy.port
        for caller in callers:
            await caller.is_reset()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await stack.aclose()
        await until(lambda: len(echo.ended) == 3)
        await until(lambda: asyncio.all_tasks() == tasks)
        await until(lambda: _files() == files)


def _files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
