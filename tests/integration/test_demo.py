"""``outboxd demo``: the proof holds through each broker, also when the pump is killed twice in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from typing import Any

import pytest

from tests.engines.command import COMMAND, run_outboxd

KEYS = [
    *("committed", "published", "delivered", "duplicates", "effects", "lost", "out_of_order", "balances_match"),
    *("p50_ms", "p99_ms", "seconds", "engines"),
]


def demo(*options: str, kills: int = 0) -> dict[str, Any]:
    """Run the demo, killing what it says it runs ``kills`` times, and return its last line."""
    with subprocess.Popen([*COMMAND, "demo", "--json", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert process.stdout
        said = []
        pump = None
        for line in process.stderr:
            said.append(line)
            if found := re.match(r"pump.*: outboxd run, pid (\d+)", line):
                pump = int(found[1])
            if kills and pump and re.match(r"committed \d+, effects [1-9]", line):
                os.kill(pump, signal.SIGKILL)
                pump, kills = None, kills - 1
        last = process.stdout.read().splitlines()[-1:]
    assert process.returncode == 0, "".join(said)
    assert kills == 0, "".join(said)
    result: dict[str, Any] = json.loads(last[0])
    return result


def holds(proof: dict[str, Any], transactions: int) -> bool:
    return (
        list(proof) == KEYS
        and proof["committed"] == proof["published"] == proof["effects"] == transactions
        and proof["lost"] == proof["out_of_order"] == 0
        and proof["balances_match"] is True
        and proof["delivered"] == transactions + proof["duplicates"]
    )


@pytest.mark.parametrize("via", ["inprocess", "nats", "kafka"])
def test_the_proof_holds(via: str) -> None:
    proof = demo("--transactions", "1001", "--clients", "4", "--via", via)
    assert holds(proof, 1001), proof
    assert proof["engines"][0].startswith("PostgreSQL")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("via", ["inprocess", "nats", "kafka"])
def test_the_proof_holds_when_the_pump_is_killed_twice(via: str) -> None:
    proof = demo("--transactions", "6000", "--clients", "4", "--via", via, kills=2)
    assert holds(proof, 6000), proof


def test_an_unknown_way_is_refused() -> None:
    ended = run_outboxd("demo", "--via", "pigeon")
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == "outboxd: via: 'pigeon' is not one of inprocess, nats, kafka"
