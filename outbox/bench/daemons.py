"""An ``outboxd run`` in a process of its own, as anybody would have it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from outbox.bench.stage import until
from outbox.embedded import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from outbox.bench.stage import Stage

_CONFIGURATION: Final = """
[sinks.bench]
kind = "jetstream"
servers = {servers}
stream = "BENCH"
[[routes]]
topics = "bench.>"
sink = "bench"
[http]
listen = "127.0.0.1:{port}"
"""


@asynccontextmanager
async def daemon(stage: Stage, dsn: str, name: str, *, processes: int = 1) -> AsyncIterator[int]:
    """Run a daemon that pumps to the stream ``BENCH``; yield its process id when it is ready, and stop it."""
    port = _free_ports(processes)
    file, log = stage.folder / f"{name}.toml", stage.folder / f"{name}.log"
    file.write_text(_CONFIGURATION.format(servers=stage.nats.servers, port=port))
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - it takes no time to begin
            [sys.executable, "-m", "outbox.daemon", "run", "-c", str(file), "--processes", str(processes)],
            env={**{name: value for name, value in os.environ.items() if not name.startswith("OUTBOXD_")}, "OUTBOXD_POSTGRES__DSN": dsn},
            stdout=output,
            stderr=output,
        )

    def ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended: {log.read_text(errors='replace')[-1000:]}")
        try:
            for place in range(processes):
                urllib.request.urlopen(f"http://127.0.0.1:{port + place}/readyz", timeout=1).close()
        except OSError:  # 503 is one
            return False
        return True

    async def is_ready() -> bool:
        return await asyncio.to_thread(ready)

    try:
        await until(is_ready, within=60, what=f"{name} to be ready")
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, 30)
        finally:
            process.kill()


def _free_ports(number: int) -> int:
    """Return the first of so many ports in a row that nobody listens on."""
    while True:
        first = free_port()
        with ExitStack() as stack, suppress(OSError, OverflowError):
            for port in range(first, first + number):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
