"""``outboxd run --processes N``: as many daemons side by side, for when one Python process is the wall.

Each is a whole ``outboxd run``, and they share the outbox as daemons on several machines do. They end together: one that ends by itself
takes the others with it, so that whatever has started us hears of it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from bridges.errors import ConfigurationError
from outbox.daemon.telemetry import set_up_logging

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from outbox.daemon.config import Settings

log = logging.getLogger("outboxd")

_LISTEN: Final = "OUTBOXD_HTTP__LISTEN"
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def run(settings: Settings, config: Path | None, number: int) -> int:
    """Run so many daemons until a signal ends them, or one ends by itself, and return the exit code.

    The first listens where the configuration says, and each of the others on the port after. Raises `ConfigurationError` if there are not
    as many ports.
    """
    addresses = list(_addresses(settings.http.listen, number))
    set_up_logging(settings.telemetry)
    return _Group(addresses, config).run()


def _addresses(listen: str | None, number: int) -> Iterator[str | None]:
    if listen is None:
        yield from [None] * number
        return
    host, _, port = listen.rpartition(":")
    if (last := int(port) + number - 1) > 65535:
        msg = f"processes: {number} of them listen on the ports from {port} on, and {last} is above 65535"
        raise ConfigurationError(msg)
    yield from (f"{host}:{int(port) + place}" for place in range(number))


class _Group:
    """The daemons, by their process ids, and whether they were told to end."""

    def __init__(self, addresses: list[str | None], config: Path | None) -> None:
        self._addresses = addresses
        self._config = config
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._told = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._tell)
        for address in self._addresses:
            if self._told:
                break
            process = _start(self._config, address)
            self._running[process.pid] = process
            log.info("process %d of %d: pid %d, probes and metrics at %s", len(self._running), len(self._addresses), process.pid, address)
        if self._told:  # while they were being started: the last one has not heard of it
            self._tell(signal.SIGTERM)
        failed = False
        while self._running:
            pid, status = os.wait()
            process = self._running.pop(pid)
            process.returncode = code = os.waitstatus_to_exitcode(status)
            if not self._told:
                log.critical("pid %d ended with %d and was not told to: the others are stopped", pid, code)
                self._tell(signal.SIGTERM)
                failed = True
            failed = failed or code != 0
        return int(failed)

    def _tell(self, number: int, _: Any = None) -> None:
        """Hand a signal on: the first has them finish, and a second ends them at once, as it does one daemon."""
        self._told = True
        for process in self._running.values():
            process.send_signal(number)


def _start(config: Path | None, address: str | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "outbox.daemon", "run", *(["-c", str(config)] if config else [])]
    environment = {**os.environ, **({_LISTEN: address} if address else {})}
    # A session of its own: what a terminal sends to all of us comes to it once, through us.
    return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_end_with_parent)  # noqa: PLW1509 - one thread here


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent is gone, however it went: nobody else would."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
