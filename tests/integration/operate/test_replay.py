"""``outboxd replay``: where what is archived goes, what is told of it, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from outbox.replay import ArchiveSource
from tests.engines.command import COMMAND
from tests.engines.letters import archive, everything, put
from tests.integration.operate.conftest import stored

if TYPE_CHECKING:
    from uuid import UUID

    from tests.conftest import Stream
    from tests.engines.command import Run
    from tests.engines.letters import Connection


def archived(at: Any, *topics: str) -> list[UUID]:
    """Put a message of each topic into the archive."""

    async def make(connection: Connection) -> list[UUID]:
        ids = [(await put(connection, topic, topic=topic))[0] for topic in topics]
        await archive(connection)
        return ids

    ids: list[UUID] = at(make)
    return ids


def test_replay_goes_where_the_route_says_or_to_the_plain_topic(outboxd: Run, at: Any, configured: str, stream: Stream) -> None:
    ids = archived(at, "orders.created", f"{stream.prefix}.users", "local.x")
    code, out, _ = outboxd("replay", "-c", configured, "--to", "events", "--id", str(ids[0]), "--id", str(ids[1]))
    ((row,),) = at(everything)["replays"]
    told = json.loads(row)
    assert code == 0
    assert out == f"replay {told['replay']} to events, complete: 2 of 2 messages published\n"
    assert (told["sink"], told["published"]) == ("events", 2)
    assert [message.subject for message in stored(stream)] == [f"{stream.prefix}.orders.created", f"{stream.prefix}.users"]
    assert {message.headers["outbox-replayed"] for message in stored(stream)} == {told["replay"]}


def test_replay_by_age_as_json(outboxd: Run, at: Any, configured: str) -> None:
    archived(at, "orders.created")
    code, out, _ = outboxd("replay", "-c", configured, "--to", "events", "--since", "2 hours", "--json")
    assert code == 0
    told = json.loads(out)
    assert told.pop("replay")
    assert told == {"matched": 1, "published": 1, "rejected": {}, "complete": True, "missed": 0}


def test_a_replay_that_missed_something_says_so_and_exits_1(
    outboxd: Run, at: Any, configured: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archived(at, "orders.created")

    async def count(source: ArchiveSource) -> dict[str, int]:
        """As it would have counted before a row was dropped."""
        await source._until_now()
        return {"orders.created": 2}

    monkeypatch.setattr(ArchiveSource, "count", count)
    code, out, _ = outboxd("replay", "-c", configured, "--to", "events", "--all")
    assert code == 1
    first, second = out.splitlines()
    assert first.endswith("complete: 1 of 2 messages published")
    assert second.split(maxsplit=1) == ["1", "not found: their time in the archive was over before they were reached"]


def test_a_dry_replay_sends_nothing(outboxd: Run, at: Any, configured: str, stream: Stream) -> None:
    archived(at, *["orders.created"] * 2, *[f"orders.n{n}" for n in range(11)])
    before = at(everything)
    code, out, _ = outboxd("replay", "-c", configured, "--to", "events", "--all", "--dry-run", "--rate", "50")
    assert code == 0
    first, second, *others, last = out.splitlines()
    assert (first, second) == ("would replay 13 messages to events, at most 50 a second", "        2  orders.created")
    assert (len(others), last) == (9, "        2  of 2 other topics")
    assert at(everything) == before
    assert stored(stream) == []


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_replay_that_matches_nothing_exits_1(outboxd: Run, at: Any, configured: str, more: list[str]) -> None:
    archived(at, "orders.created")
    assert outboxd("replay", "-c", configured, "--to", "events", "--topic", "nothing", *more) == (1, "nothing in the archive fits\n", "")
    assert at(everything)["replays"] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--to", "elsewhere", "--all"], "to: 'elsewhere' is not one of [sinks]: events, here"),
        (["--to", "here", "--all"], "to: 'here' is in-process"),
        (["--to", "events"], "selection: nothing is given"),
        (["--to", "events", "--all", "--rate", "0"], "rate: 0.0 is not a number of messages a second above zero"),
        (["--to", "events", "--since", "yesterday"], "since: 'yesterday' is neither a time"),
    ],
)
def test_a_mistake_in_a_replay(outboxd: Run, configured: str, arguments: list[str], says: str) -> None:
    code, out, err = outboxd("replay", "-c", configured, *arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"outboxd: {says}")


def test_ctrl_c_ends_a_replay_cleanly(at: Any, configured: str, stream: Stream) -> None:
    archived(at, *["orders.created"] * 50)
    command = [*COMMAND, "replay", "-c", configured, "--to", "events", "--all", "--rate", "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not stored(stream):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    ((row,),) = at(everything)["replays"]
    told = json.loads(row)
    assert (process.returncode, err) == (130, "")
    assert out == f"replay {told['replay']} to events, stopped: {told['published']} of 50 messages published\n"
    assert told["ended_at"] is None
    assert told["published"] == len(stored(stream)) < 50
