"""The ``outboxd`` command line in a test: in this process or in one of its own; and the file that it reads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import pytest

if TYPE_CHECKING:
    from pathlib import Path

COMMAND: Final = (sys.executable, "-m", "outbox.daemon")
DSN: Final = "OUTBOXD_POSTGRES__DSN"


class Ended(NamedTuple):
    """How a command ended: its exit code, and what it wrote to its output and to its errors."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Both, for those who do not mind where it said something."""
        return self.out + self.err


Run: TypeAlias = Callable[..., Ended]
"""``run(*arguments)``: a command, to its end."""


def run_outboxd(*arguments: str, dsn: str | None = None, folder: Path | None = None) -> Ended:
    """Run a command in a process of its own, in this folder or ours; the environment names the database, or none."""
    done = subprocess.run([*COMMAND, *arguments], env=environment(dsn), cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    return Ended(done.returncode, done.stdout, done.stderr)


def running_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs a command in this process, where a test can change what it finds; the environment names no database."""
    monkeypatch.delenv(DSN, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: str) -> Ended:
        from outbox.daemon import cli  # not above: conftest.py imports this module, and most tests run no command

        monkeypatch.setattr(sys, "argv", ["outboxd", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Ended(code or 0, *capsys.readouterr())

    return run


def environment(dsn: str | None) -> dict[str, str]:
    """Ours, without colours, and with this database or none."""
    ours = {name: value for name, value in os.environ.items() if name != DSN}
    return {**ours, "NO_COLOR": "1", **({} if dsn is None else {DSN: dsn})}


def configured(folder: Path, configuration: str, *, dsn: str | None = None) -> Path:
    """Write ``outboxd.toml``, with a [postgres] section for the database if one is given, and return its path."""
    file = folder / "outboxd.toml"
    file.write_text(configuration if dsn is None else f'[postgres]\ndsn = "{dsn}"\n{configuration}')
    return file
