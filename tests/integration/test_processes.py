"""``outboxd run --processes``: several daemons that begin and end as one."""

from __future__ import annotations

import os
import re
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.engines.command import configured, run_outboxd
from tests.engines.daemons import Daemon, ask
from tests.engines.deadline import eventually
from tests.engines.pumps import is_empty
from tests.integration import shop
from tests.integration.test_daemon import IN_PROCESS, handled, in_order, put

if TYPE_CHECKING:
    from pathlib import Path

    import psycopg


def two_ports() -> int:
    """Return a port after which the next is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


class Two(Daemon):
    """Two daemons under one."""

    def __init__(self, folder: Path, configuration: str, dsn: str) -> None:
        super().__init__(folder, configuration, dsn, options=("--processes", "2"), port=two_ports())

    @property
    def pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"process \d of 2: pid (\d+)", self.log.read_text())]

    async def ready(self) -> None:
        await self.answers("/readyz", 200)
        await eventually(self._second_is_ready, what="the second to be ready")

    async def _second_is_ready(self) -> bool:
        return ask(self.port + 1, "/readyz")[0] == 200

    async def gone(self) -> bool:
        return not any(alive(pid) for pid in self.pids)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_two_share_the_work_and_end_at_a_signal(database: str, connection: psycopg.AsyncConnection, tmp_path: Path) -> None:
    await connection.execute(shop.TABLE)
    async with Two(tmp_path, IN_PROCESS, database) as both:
        await both.ready()
        assert len(both.pids) == 2
        await put(database, 0, 400)
        await eventually(lambda: is_empty(connection))
        both.signal(signal.SIGTERM)
        assert await both.ended() == 0
        assert await both.gone()
    effects = await handled(connection)
    assert sorted(number for _, number in effects) == list(range(400))
    assert in_order(effects)


async def test_one_that_ends_by_itself_takes_the_other_with_it(database: str, connection: psycopg.AsyncConnection, tmp_path: Path) -> None:
    await connection.execute(shop.TABLE)
    async with Two(tmp_path, IN_PROCESS, database) as both:
        await both.ready()
        os.kill(both.pids[1], signal.SIGKILL)
        assert await both.ended() == 1
        assert await both.gone()
        assert f"pid {both.pids[1]} ended with -9 and was not told to" in both.log.read_text()


async def test_a_signal_while_they_begin_is_no_failure(database: str, tmp_path: Path) -> None:
    """They are still being imported, and look for no signals: they end by it."""
    async with Two(tmp_path, IN_PROCESS, database) as both:

        async def one_is_started() -> bool:
            return len(both.pids) >= 1

        await eventually(one_is_started)
        both.signal(signal.SIGTERM)
        assert await both.ended() == 0
        assert await both.gone()


async def test_a_mistake_that_all_of_them_find_is_told_as_one_daemon_tells_it(empty_database: str, tmp_path: Path) -> None:
    async with Two(tmp_path, IN_PROCESS, empty_database) as both:
        assert await both.ended() == 2
        assert "outboxd migrate" in both.log.read_text()


async def test_none_is_left_when_the_first_process_is_killed(database: str, connection: psycopg.AsyncConnection, tmp_path: Path) -> None:
    await connection.execute(shop.TABLE)
    async with Two(tmp_path, IN_PROCESS, database) as both:
        await both.ready()
        both.signal(signal.SIGKILL)
        await eventually(both.gone, what="the daemons to end")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("2", "outboxd: processes: 2 of them listen on the ports from 65535 on, and 65536 is above 65535"),
        ("0", "greater than or equal to 1"),
    ],
)
def test_as_many_as_there_can_be(number: str, said: str, tmp_path: Path) -> None:
    file = configured(tmp_path, IN_PROCESS + '[http]\nlisten = "127.0.0.1:65535"\n', dsn="postgresql://nobody@127.0.0.1/nowhere")
    ended = run_outboxd("run", "-c", str(file), "--processes", number)
    assert ended.code == 2
    assert said in ended.err


def test_a_mistake_in_the_configuration_is_said_once(tmp_path: Path) -> None:
    ended = run_outboxd("run", "-c", str(configured(tmp_path, "[pump]\nbatches = 1\n")), "--processes", "2")
    assert ended.code == 2
    assert ended.err.count("batches") == 1
