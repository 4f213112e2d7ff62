"""A type checker accepts the use of the public API, and finds the mistakes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

# Each line with a comment is a mistake, and the comment is mypy's code for it.
MISTAKES = """
from __future__ import annotations

import psycopg

from bridges import Bridge, Message, Outcome, Published, Reason, Released, Retry, Source
from bridges.inprocess import Broker, Functions, Topic
from dedupe import Consumer
from outbox import Draft, Outbox

outbox = Outbox()
consumer = Consumer("billing")


def put(connection: psycopg.Connection) -> None:
    outbox.put(connection, "t", {}, "key")  # call-arg misc
    outbox.put(connection, b"t", {})  # arg-type
    outbox.put(connection, "t", {}, priority="high")  # arg-type
    outbox.put(connection, "t", {}, headers={"a": 1})  # dict-item
    outbox.put(connection, "t", {}, deliver_at=5)  # arg-type
    text: str = outbox.put(connection, "t", {})  # assignment
    outbox.aput(connection, "t", {})  # unused-coroutine
    outbox.put_many(connection, [("t", {})])  # list-item
    Draft("t", {}, key=5)  # arg-type
    Outbox("outbox")  # call-arg misc
    Outbox(serializer=str)  # arg-type


@consumer.handler("t")  # type-var arg-type
async def wrong_arguments(message: Message) -> None: ...


@consumer.handler("t")  # type-var arg-type
def not_a_coroutine(message: Message, connection: psycopg.AsyncConnection) -> None: ...


class HalfASource:
    async def wait(self, timeout: float) -> None: ...


class Sink:
    async def publish(self, messages: list[Message]) -> list[Outcome]:
        return []


def join(source: Source, sink: Sink) -> None:
    Bridge(HalfASource(), sink)  # arg-type
    Bridge(source, sink)  # arg-type
    Bridge(source)  # call-arg


def look(message: Message, outcome: Outcome) -> None:
    message.topic = "other"  # misc
    outcome.reason  # union-attr
    Released("because")  # arg-type
    Retry(Reason.HANDLER, after="soon")  # arg-type
    Published().duplicate = True  # misc


NUMBERS = Topic[int]("numbers", codec=Functions(lambda number: str(number).encode(), int))
WRONG = Topic[str]("words", codec=Functions(lambda number: str(number).encode(), int))  # arg-type


async def travel(broker: Broker, message: Message) -> None:
    await NUMBERS.publish(broker, "seven")  # arg-type
    await NUMBERS.publish(broker, 7, priority="high")  # arg-type
    NUMBERS.publish(broker, 7)  # unused-coroutine
    NUMBERS.subscribe(broker, policy="drop_random")  # typeddict-item arg-type
    NUMBERS.subscribe(broker, colour="red")  # call-arg
    async with NUMBERS.subscribe(broker) as subscription:
        async for received in subscription:
            word: str = received.value  # assignment
    broker.subscribe("a", policy="drop_random")  # arg-type
    broker.subscribe("a", ack="never")  # arg-type
    broker.publish(message)  # unused-coroutine
    await broker.publish(message, deliver_at=5)  # arg-type
    await broker.publish_and_wait(message)  # call-arg
"""

FOUND = re.compile(r"^mistakes\.py:(\d+): error: .*\[([a-z-]+)\]$")


@pytest.fixture(scope="module")
def mypy(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Run mypy on both files, in a folder of their own: what is installed is found by its ``py.typed``."""
    folder = tmp_path_factory.mktemp("typing")
    (folder / "use.py").write_text(Path(__file__).with_name("use.py").read_text())
    (folder / "mistakes.py").write_text(MISTAKES)
    (folder / "mypy.ini").write_text(
        "[mypy]\nstrict = true\nenable_error_code = unused-awaitable\n[mypy-aiokafka.*]\nignore_missing_imports = true\n"
    )
    said = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-color-output", "--hide-error-context", "use.py", "mistakes.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=110,
    )
    assert said.returncode == 1, said.stdout + said.stderr
    return said.stdout.splitlines()


def test_the_use_of_the_public_api_is_accepted(mypy: list[str]) -> None:
    assert [line for line in mypy if not line.startswith(("mistakes.py", "Found "))] == []


def test_every_mistake_is_found_where_it_is(mypy: list[str]) -> None:
    found: dict[int, set[str]] = {}
    for match in filter(None, map(FOUND.match, mypy)):
        found.setdefault(int(match[1]), set()).add(match[2])
    expected = {
        number: set(line.rpartition("  # ")[2].split()) for number, line in enumerate(MISTAKES.splitlines(), start=1) if "  # " in line
    }
    assert set(found) == set(expected), "\n".join(mypy)
    for number, codes in found.items():
        assert codes & expected[number], f"line {number}: {codes}, not {expected[number]}"
