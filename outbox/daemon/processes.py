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
from contextlib import suppress
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
    """The daemons, by their process ids, and which of them were told to end."""

    def __init__(self, addresses: list[str | None], config: Path | None) -> None:
        self._addresses = addresses
        self._config = config
        self._running: set[int] = set()
        self._told: set[int] = set()
        self._signals = 0
        """How many have come."""

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)
        for address in self._addresses:
            pid = _start(self._config, address)
            self._running.add(pid)
            log.info("process %d of %d: pid %d, probes and metrics at %s", len(self._running), len(self._addresses), pid, address)
            if self._stops():
                if pid not in self._told:  # it was being started when the signal came
                    self._tell(pid, signal.SIGTERM)
                break
        failed = 0
        while self._running:
            pid, status = os.wait()
            self._running.discard(pid)
            code = os.waitstatus_to_exitcode(status)
            # One that is told before it has looked for signals, while it is still being imported, ends by the signal itself.
            as_told = pid in self._told and code in {0, -signal.SIGTERM, -signal.SIGINT}
            if as_told:
                continue
            failed = failed or max(code, 1)
            if not self._told:
                log.critical("pid %d ended with %d and was not told to: the others are stopped", pid, code)
                for other in self._running:
                    self._tell(other, signal.SIGTERM)
        return failed

    def _hear(self, number: int, _: Any) -> None:
        """The first signal has those finish who were not told to already; a second ends them at once, as it does one daemon."""
        self._signals += 1
        for pid in self._running:
            if self._signals > 1 or pid not in self._told:
                self._tell(pid, number)

    def _stops(self) -> bool:
        return self._signals > 0

    def _tell(self, pid: int, number: int) -> None:
        self._told.add(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _start(config: Path | None, address: str | None) -> int:
    """Start a daemon, and return its process id: it is waited for with the others."""
    command = [sys.executable, "-m", "outbox.daemon", "run", *(["-c", str(config)] if config else [])]
    environment = {**os.environ, **({_LISTEN: address} if address else {})}
    parent = os.getpid()

    def end_with_parent() -> None:
        # Have the kernel send SIGTERM when the parent is gone, however it went: nobody else would. It may be gone already.
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

    # A session of its own: what a terminal sends to all of us comes to it once, through us.
    process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=end_with_parent)  # noqa: PLW1509 - one thread here
    process.returncode = 0  # its end is not asked of this object, which would take it away from `os.wait`
    return process.pid
