"""The proxy's faults at any time, before a server that sends back what it gets."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest

from outbox.embedded import free_port
from tests.faults.echo import MUCH, WITHIN, Echo, calling, echoing, until, without_linger
from tests.faults.protocols import Direction, NatsProtocol, PostgresProtocol
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVER, CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with echoing() as echo:
        yield echo


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    async with Proxy(("127.0.0.1", echo.port)) as proxy:
        yield proxy


async def test_without_a_fault_everything_passes_and_is_counted(echo: Echo, proxy: Proxy) -> None:
    async with calling(proxy) as caller, asyncio.TaskGroup() as group:
        group.create_task(caller.sends(MUCH))
        assert await caller.hears(len(MUCH)) == MUCH
        await caller.says()
        caller.writer.write_eof()
        assert await caller.reader.read() == b""
    await until(lambda: proxy.open == 0)
    assert echo.ended == ["FIN"]
    assert (proxy.connections, proxy.forwarded) == (1, dict.fromkeys(Direction, len(MUCH) + 5))
    assert not proxy.faults


async def test_reset_once(echo: Echo, proxy: Proxy) -> None:
    async with calling(proxy) as one, calling(proxy) as two:
        await one.says()
        await two.says()
        proxy.reset()
        await one.is_reset()
        await two.is_reset()
        await until(lambda: echo.ended == ["RST", "RST"])
    async with calling(proxy) as three:
        await three.says()
    assert proxy.faults == {"reset": 2}


async def test_a_client_that_is_reset_resets_the_server(echo: Echo, proxy: Proxy) -> None:
    async with calling(proxy) as caller:
        await caller.says()
        without_linger(caller.writer)
        await until(lambda: echo.ended == ["RST"])


async def test_refuse_until_healed(proxy: Proxy) -> None:
    async with calling(proxy) as one:
        await one.says()
        proxy.refuse()
        for _ in range(2):
            async with calling(proxy) as refused:
                await refused.is_reset()
        await one.says()
        proxy.heal()
        async with calling(proxy) as two:
            await two.says()
    assert proxy.faults == {"refuse": 2}
    assert proxy.connections == 4


async def test_a_server_that_is_away_resets_and_may_be_elsewhere_later(echo: Echo, proxy: Proxy) -> None:
    proxy.target = ("127.0.0.1", free_port())
    port = proxy.port
    async with calling(proxy) as one:
        await one.is_reset()
    proxy.target = ("127.0.0.1", echo.port)
    async with calling(proxy) as two:
        await two.says()
    assert proxy.port == port


@pytest.mark.parametrize("new", [False, True])
async def test_half_close_to_the_client(echo: Echo, proxy: Proxy, new: bool) -> None:
    """The client hears the end, and what it says still arrives; healed, the connection is reset."""
    if new:
        proxy.half_close()
    async with calling(proxy) as caller:
        if not new:
            await caller.says(b"before")
            proxy.half_close()
        assert await asyncio.wait_for(caller.reader.read(), WITHIN) == b""
        caller.writer.write(b"still heard")
        await until(lambda: echo.got.endswith(b"still heard"))
        assert proxy.faults["half_close"] == 1
        proxy.heal()
        await until(lambda: echo.ended == ["RST"])
    async with calling(proxy) as other:
        await other.says()


async def test_half_close_to_the_server(echo: Echo, proxy: Proxy) -> None:
    """The server hears the end; here it ends as well, and the client hears that."""
    async with calling(proxy) as caller:
        await caller.says()
        echo.writers[0].write(b"last words")
        proxy.half_close(SERVER)
        assert await asyncio.wait_for(caller.reader.read(), WITHIN) == b"last words"
    assert echo.ended == ["FIN"]
    await until(lambda: proxy.open == 0)


@pytest.mark.parametrize("direction", [SERVER, CLIENT, None])
async def test_blackhole(echo: Echo, proxy: Proxy, direction: Direction | None) -> None:
    """Bytes of that direction are gone while the connection stays open. Healed, a connection with a hole is reset; another goes on."""
    async with calling(proxy) as one, calling(proxy) as two:
        await one.says()
        await two.says()
        proxy.blackhole(direction)
        before = proxy.forwarded
        one.writer.write(b"lost")
        await until(lambda: proxy.faults["blackhole"])
        assert (b"lost" in echo.got) == (direction is CLIENT)
        assert proxy.forwarded[CLIENT] == before[CLIENT]
        assert not one.reader.at_eof()
        assert not echo.ended
        proxy.heal()
        await one.is_reset()
        await two.says()


async def test_in_a_blackhole_an_end_is_not_heard_either(echo: Echo, proxy: Proxy) -> None:
    async with calling(proxy) as one, calling(proxy) as two:
        await one.says()
        await two.says()
        proxy.blackhole(CLIENT)
        echo.writers[0].close()
        without_linger(echo.writers[1])
        await until(lambda: len([link for link in proxy._state.links if link.broken]) == 2)
        for caller in (one, two):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(caller.reader.read(), 0.05)
        proxy.heal()
        await one.is_reset()
        await two.is_reset()


@pytest.mark.parametrize("direction", [SERVER, CLIENT, None])
async def test_freeze(echo: Echo, proxy: Proxy, direction: Direction | None) -> None:
    """Nothing moves in that direction, whoever sends is held up, and everything arrives when it is healed."""
    async with calling(proxy) as caller:
        await caller.says()
        proxy.freeze(direction)
        before = proxy.forwarded
        sending = asyncio.create_task(caller.sends(MUCH * 4))  # more than all kernel buffers on the way hold
        receiving = asyncio.create_task(caller.reader.readexactly(len(MUCH) * 4))
        if direction is CLIENT:
            await until(lambda: len(echo.got) > 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(receiving), 0.2)
        assert not sending.done()
        for frozen in [direction] if direction else Direction:
            assert proxy.forwarded[frozen] == before[frozen]
        proxy.heal()
        assert await asyncio.wait_for(receiving, WITHIN) == MUCH * 4
        await sending
    assert proxy.faults == {"freeze": 1}


async def test_a_new_connection_is_frozen_as_well(echo: Echo, proxy: Proxy) -> None:
    proxy.freeze(SERVER)
    async with calling(proxy) as caller:
        caller.writer.write(b"x")
        await until(lambda: proxy.faults["freeze"])
        assert not echo.got
        proxy.heal()
        assert await caller.hears(1) == b"x"


async def test_a_slow_reader_slows_the_writer(echo: Echo, proxy: Proxy) -> None:
    """Without any fault the proxy keeps back little: whoever does not read holds up whoever writes."""
    async with calling(proxy) as caller:
        await caller.says()
        echo.reading.clear()
        sending = asyncio.create_task(caller.sends(MUCH * 4))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(sending), 0.3)
        assert sum(flow._size for link in proxy._state.links for flow in link.flows.values()) <= 1 << 18
        echo.reading.set()
        assert await caller.hears(len(MUCH) * 4) == MUCH * 4
        await sending


async def test_delay_is_latency_and_not_throughput(echo: Echo, proxy: Proxy) -> None:
    """Each way takes its time; what is sent in between is under way together."""
    async with calling(proxy) as caller:
        await caller.says()
        proxy.delay(0.3)
        began = asyncio.get_running_loop().time()
        for number in range(20):
            caller.writer.write(b"%02d" % number)
            await until(partial(_delayed, proxy, number))  # so that these are chunks of their own
        assert await caller.hears(40) == b"".join(b"%02d" % number for number in range(20))
        assert 0.6 <= asyncio.get_running_loop().time() - began < 3
        caller.writer.write(b"now")
        proxy.delay(60, CLIENT)
        await until(lambda: echo.got.endswith(b"now"))
        proxy.heal()
        assert await caller.hears(3) == b"now"
        await caller.says()


def _delayed(proxy: Proxy, chunks: int) -> bool:
    return proxy.faults["delay"] > chunks


async def test_slice(echo: Echo, proxy: Proxy) -> None:
    """All of it arrives, in order, in single bytes."""
    async with calling(proxy) as caller:
        proxy.slice(CLIENT)
        await caller.says(MUCH[:10_000])
        assert proxy.faults == {"slice": 10_000}
        proxy.slice()
        caller.writer.write(MUCH[:100_000])
        await until(lambda: proxy.faults["slice"] > 20_000)
        proxy.heal()
        assert await caller.hears(100_000) == MUCH[:100_000]


async def test_faults_add_up_and_heal_undoes_them_all(proxy: Proxy) -> None:
    proxy.slice()
    proxy.delay(0.01)
    proxy.freeze(CLIENT)
    async with calling(proxy) as caller:
        caller.writer.write(b"hello")
        await until(lambda: proxy.forwarded[SERVER] == 5)
        proxy.refuse()
        proxy.heal()
        assert await caller.hears(5) == b"hello"
        before = proxy.faults
        await caller.says()
        assert proxy.faults == before


async def test_unknown_moments_are_refused() -> None:
    """A fault that could never happen is a mistake, and says what there is."""
    with pytest.raises(ValueError, match="known are none"):
        Proxy(("", 0)).cut("after_pub")
    with pytest.raises(ValueError, match="known are after_pub, from number 1 on"):
        Proxy(("", 0), NatsProtocol()).repeat("after_commit")
    with pytest.raises(ValueError, match="'after_commit' number 1: known are none"):
        Proxy(("", 0), PostgresProtocol()).lose("after_commit")
    with pytest.raises(ValueError, match="number 0"):
        Proxy(("", 0), PostgresProtocol()).cut("after_commit", nth=0)
