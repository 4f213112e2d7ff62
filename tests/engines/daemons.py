"""A real ``outboxd run`` beside a test."""

from __future__ import annotations

import asyncio
import http.client
import subprocess
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Self

from outbox.embedded import free_port
from tests.engines.command import COMMAND, environment
from tests.engines.deadline import eventually

if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType


class Daemon:
    """``outboxd run`` with a configuration, in a process of its own."""

    def __init__(self, folder: Path, configuration: str, dsn: str, *, options: Sequence[str] = (), port: int | None = None) -> None:
        self.port = port or free_port()
        self._options = options
        self.log = folder / f"daemon-{self.port}.log"
        self.file = folder / f"daemon-{self.port}.toml"
        self.file.write_text(configuration + f'\n[http]\nlisten = "127.0.0.1:{self.port}"\nstall_after = 5\nmeasure_every = 0.2\n')
        self._environment = environment(dsn)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [*COMMAND, "run", "-c", str(self.file), *self._options]
            self.process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log, start_new_session=True)

    async def ended(self, within: float = 30.0) -> int:
        """Wait for the process to end, and return its exit code."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, within)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def ask(self, path: str) -> tuple[int, str]:
        """Return the status and the text of an answer; 0 if nobody answers."""
        return ask(self.port, path)

    async def answers(self, path: str, status: int, *, having: str = "", within: float = 30.0) -> str:
        """Wait until a path answers with a status and a text, and return the text."""

        async def as_wanted() -> str:
            code, text = await asyncio.to_thread(self.ask, path)
            return text if code == status and having in text else ""

        return await eventually(as_wanted, within=within, what=f"{path} to answer {status} with {having!r}: {self.log.read_text()[-2000:]}")

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


def ask(port: int, path: str) -> tuple[int, str]:
    """Ask a daemon on this machine: the status and the text of its answer; 0 if nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as problem:
        with problem:
            return problem.code, problem.read().decode()
    except (OSError, http.client.HTTPException):  # the latter if it is killed in the middle of its answer
        return 0, ""
