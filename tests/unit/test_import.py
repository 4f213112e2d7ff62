"""An application that writes messages pays for nothing else."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

OURS: Final = {"outbox", "bridges", "migrations"}
LIMIT: Final = 30_000  # microseconds
LIST_MODULES: Final = "import json, sys; print(json.dumps(sorted(sys.modules)))"


def python(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, away from this directory: what is installed is what is imported."""
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path("/"),
        env={**os.environ, **environment},
        timeout=60,
    )


def modules(code: str) -> set[str]:
    return set(json.loads(python(f"{code}\n{LIST_MODULES}").stdout))


@pytest.fixture(scope="module")
def bare() -> set[str]:
    return modules("")


def test_import_outbox_loads_the_standard_library_and_ours_alone(bare: set[str]) -> None:
    loaded = {name.partition(".")[0] for name in modules("import outbox") - bare}
    assert loaded - sys.stdlib_module_names == OURS
    assert not loaded & {"asyncio", "logging", "psycopg", "opentelemetry", "pydantic", "nats", "aiokafka"}


def test_import_bridges_loads_no_asyncio_either(bare: set[str]) -> None:
    loaded = {name.partition(".")[0] for name in modules("import bridges") - bare}
    assert loaded - sys.stdlib_module_names == {"bridges"}
    assert "asyncio" not in loaded


def test_import_dedupe_loads_no_broker() -> None:
    loaded = {name.partition(".")[0] for name in modules("import dedupe")}
    assert not loaded & {"nats", "aiokafka", "pydantic", "prometheus_client", "outbox"}
    assert "psycopg" in loaded


def test_each_broker_loads_its_own_client_alone() -> None:
    clients = {"nats", "aiokafka"}
    assert not modules("import bridges.inprocess") & {*clients, "google_crc32c", "prometheus_client"}
    assert modules("import bridges.jetstream") & clients == {"nats"}
    assert modules("import bridges.kafka") & clients == {"aiokafka"}


def self_times(code: str, bytecode: Path) -> dict[str, int]:
    """Return the microseconds that each module took by itself, as ``-X importtime`` writes them; compiled once, as in an application."""
    times = {}
    said = python(code, "-X", "importtime", PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(bytecode)).stderr
    for line in said.splitlines():
        own, _, rest = line.removeprefix("import time:").partition("|")
        if own.strip().isdigit():
            times[rest.partition("|")[2].strip()] = int(own)
    return times


def test_import_outbox_takes_less_than_30_ms(tmp_path: Path) -> None:
    """On a machine whose bare interpreter takes 9 ms for its own imports; elsewhere, and on a busy one, in proportion to that."""
    self_times("import outbox", tmp_path)
    names = set(self_times("pass", tmp_path))
    assert names, "a bare interpreter imports something"
    ratios = []
    for _ in range(7):
        bare = sum(self_times("pass", tmp_path).values())
        times = self_times("import outbox", tmp_path)
        assert "outbox.writer" in times
        ratios.append(sum(own for name, own in times.items() if name not in names) / bare)
    assert statistics.median(ratios) < LIMIT / 9_000, f"{sorted(times.items(), key=lambda one: -one[1])[:5]}"
