"""``outboxd dead`` and ``outboxd replay``: what they print, what they change, and how they end."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import nats
import psycopg
import pytest

from bridges.message import uuid7
from migrations.runner import migrate
from outbox import deadletters
from outbox.daemon import cli
from outbox.replay import ArchiveSource
from tests.engines.letters import archive, bury, everything, hold, put
from tests.engines.pooler import Pooler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from tests.conftest import Stream

Run: TypeAlias = "Callable[..., tuple[int, str, str]]"
Connection: TypeAlias = psycopg.AsyncConnection[Any]


@pytest.fixture
def outboxd(database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command on a database of its own, in this process, and return its exit code, output and errors."""
    monkeypatch.setenv("OUTBOXD_POSTGRES__DSN", database)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["outboxd", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return code or 0, said.out, said.err

    return run


@pytest.fixture
def at(database: str) -> Callable[[Callable[[Connection], Awaitable[Any]]], Any]:
    """Do something with a connection to the database."""

    def do(work: Callable[[Connection], Awaitable[Any]]) -> Any:
        async def connected() -> Any:
            async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
                return await work(connection)

        return asyncio.run(connected())

    return do


@pytest.fixture
def dead(at: Any) -> list[UUID]:
    """The ids of three dead letters of one key."""

    async def make(connection: Connection) -> list[UUID]:
        ids = await put(connection, "hunter2", "b", topic="orders.created")
        ids += await put(connection, "c", key="new\nline\x1b[31m", topic="users.created")
        await bury(connection, "hunter2", "b")
        await bury(connection, "c", reason="refused")
        return ids

    ids: list[UUID] = at(make)
    return ids


@pytest.fixture
def configured(tmp_path: Path, stream: Stream, database: str) -> str:
    """A configuration with a sink for everything and a route that calls a topic by another name."""
    file = tmp_path / "outboxd.toml"
    file.write_text(f"""
        [postgres]
        dsn = "{database}"
        [sinks.events]
        kind = "jetstream"
        servers = ["{stream.url}"]
        stream = "{stream.name}"
        [sinks.here]
        kind = "inprocess"
        [[routes]]
        topics = "local.>"
        sink = "here"
        [[routes]]
        topics = "orders.>"
        sink = "events"
        subject = "{stream.subject}"
    """)
    return str(file)


def stored(stream: Stream) -> list[Any]:
    """Return what is in the stream."""

    async def look() -> list[Any]:
        client = await nats.connect(stream.url)
        try:
            jetstream = client.jetstream()
            last = (await jetstream.stream_info(stream.name)).state.messages
            return [await jetstream.get_msg(stream.name, seq=sequence) for sequence in range(1, last + 1)]
        finally:
            await client.close()

    return asyncio.run(look())


# --- list and show


def test_list_is_aligned_lines_without_payloads(outboxd: Run, dead: list[UUID]) -> None:
    code, out, err = outboxd("dead", "list")
    assert (code, err) == (0, "")
    assert "hunter2" not in out
    head, *lines = out.splitlines()
    assert len(lines) == 3
    assert [line[head.index("id") :].split()[0] for line in lines] == [str(one) for one in reversed(dead)]
    assert [line[head.index("topic") :].split()[0] for line in lines] == ["users.created", "orders.created", "orders.created"]
    assert r"new\nline\x1b[31m" in lines[0], "what would move the cursor is escaped"


def test_list_by_each_option(outboxd: Run, dead: list[UUID]) -> None:
    def found(*options: str) -> list[str]:
        code, out, _ = outboxd("dead", "list", "--json", *options)
        assert code == (0 if out else 1)
        return [json.loads(line)["id"] for line in out.splitlines()]

    first, second, third = map(str, dead)
    assert found("--id", first, "--id", third) == [third, first]
    assert found("--topic", "orders.>") == [second, first]
    assert found("--key", "k", "--reason", "too_large") == [second, first]
    assert found("--reason", "refused") == [third]
    assert found("--since", "2 hours") == [third, second, first]
    assert found("--until", "2 hours") == []
    assert found("--since", "2026-01-01T00:00Z", "--until", "2026-01-02T00:00+02:00") == []
    assert found("--limit", "1") == [third]


def test_list_says_when_there_is_more_and_when_there_is_nothing(outboxd: Run, at: Any, dead: list[UUID]) -> None:
    _, out, _ = outboxd("dead", "list", "--limit", "2")
    assert out.splitlines()[-1] == "and more: these are the latest 2; --limit shows others"
    assert outboxd("dead", "list", "--topic", "nothing") == (1, "no dead letter fits\n", "")
    at(lambda connection: connection.execute("DELETE FROM outbox.dead"))
    assert outboxd("dead", "list") == (1, "there are no dead letters\n", "")


def test_show_prints_everything_and_the_payload(outboxd: Run, at: Any, dead: list[UUID]) -> None:
    code, out, _ = outboxd("dead", "show", str(dead[0]))
    assert code == 0
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (shown["payload"], shown["topic"], shown["key"], shown["reason"]) == ("hunter2", "orders.created", "k", "too_large")
    at(lambda connection: connection.execute(r"UPDATE outbox.dead SET payload = '\xff00fe'::bytea || repeat('x', 70)::bytea"))
    _, out, _ = outboxd("dead", "show", str(dead[0]))
    assert out.splitlines()[-1].startswith("payload       73 bytes, not text: ff 00 fe 78")
    _, out, _ = outboxd("dead", "show", str(dead[0]), "--json")
    assert json.loads(out)["payload_base64"].startswith("/wD+")


def test_show_of_what_is_not_dead(outboxd: Run) -> None:
    other = uuid7()
    assert outboxd("dead", "show", str(other)) == (1, "", f"{other}: is not a dead letter\n")


# --- requeue and drop


def test_requeue_and_once_more(outboxd: Run, at: Any, dead: list[UUID]) -> None:
    assert outboxd("dead", "requeue", "--id", str(dead[0])) == (0, "requeued 1 dead letter\n        1  orders.created\n", "")
    before = at(everything)
    code, out, err = outboxd("dead", "requeue", "--id", str(dead[0]))
    assert (code, out) == (1, "")
    assert err == f"outboxd: {dead[0]}: is not a dead letter, or does not fit the selection; nothing was changed\n"
    assert outboxd("dead", "requeue", "--topic", "nothing") == (1, "no dead letter fits; nothing was changed\n", "")
    assert at(everything) == before


def test_requeue_all_as_json(outboxd: Run, at: Any, dead: list[UUID]) -> None:
    code, out, _ = outboxd("dead", "requeue", "--all", "--fresh", "--json")
    assert code == 0
    assert json.loads(out) == {"requeued": [str(one) for one in dead], "expired": [], "waiting": {}, "dry_run": False}
    held = at(everything)["held"]
    assert len({json.loads(row)["headers"]["outbox-replayed"] for (row,) in held}) == 1


def test_requeue_tells_of_the_expired_and_of_a_key_that_waits_on(outboxd: Run, at: Any, dead: list[UUID]) -> None:
    async def prepare(connection: Connection) -> None:
        await hold(connection, "key:k", head="b", due=None)
        await connection.execute("UPDATE outbox.dead SET expires_at = died_at WHERE payload = 'c'")

    at(prepare)
    code, out, _ = outboxd("dead", "requeue", "--id", str(dead[0]), "--id", str(dead[2]))
    assert code == 0
    assert out.splitlines()[-2:] == [
        "1 dead letter left dead, being expired: --expired requeues them without their expires_at",
        "key k waits on, for the dead letter at position 2",
    ]
    assert outboxd("dead", "requeue", "--id", str(dead[2]))[0] == 1
    assert outboxd("dead", "requeue", "--id", str(dead[2]), "--expired")[0] == 0


def test_drop(outboxd: Run, at: Any, dead: list[UUID]) -> None:
    assert outboxd("dead", "drop", "--topic", "orders.*") == (0, "dropped 2 dead letters\n        2  orders.created\n", "")
    assert len(at(everything)["dead"]) == 1
    assert outboxd("dead", "drop", "--topic", "orders.*")[:2] == (1, "no dead letter fits; nothing was changed\n")
    assert outboxd("dead", "drop", "--id", str(dead[0]))[0] == 1


@pytest.mark.parametrize("verb", ["requeue", "drop"])
def test_a_dry_run_changes_nothing(outboxd: Run, at: Any, dead: list[UUID], verb: str) -> None:
    before = at(everything)
    code, out, _ = outboxd("dead", verb, "--since", "1 day", "--dry-run")
    assert code == 0
    assert out.splitlines() == [f"would {verb} 3 dead letters", "        2  orders.created", "        1  users.created"]
    assert outboxd("dead", verb, "--key", "another", "--dry-run") == (1, "no dead letter fits; nothing would change\n", "")
    assert at(everything) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dead", "list", "--reason", "because"], "reason: 'because' is not one of too_large, invalid, no_route, expired, "),
        (["dead", "list", "--since", "2026-07-01T08:00"], "since: '2026-07-01T08:00' has no time zone: add Z, or +02:00, say"),
        (["dead", "list", "--until", "soon"], "until: 'soon' is neither a time, such as 2026-07-01T08:00Z, nor an age, such as '2 hours'"),
        (["dead", "list", "--since", "999999 weeks"], "since: that long ago there were no years"),
        (["dead", "list", "--since", "1 hour", "--until", "2 hours"], "until: "),
        (["dead", "list", "--schema", "Shop"], "schema: 'Shop' does not match"),
        (["dead", "list", "--schema", "nope"], "schema 'nope' lacks outbox/0001_outbox"),
        (["dead", "drop", "--schema", "nope", "--all"], "schema 'nope' lacks outbox/0001_outbox"),
        (["dead", "list", "--schema", "nope", "--consumer", "shop"], "schema 'nope' lacks dedupe/0001_processed"),
        (["dead", "list", "--dsn", "host"], "dsn: is not a libpq connection string"),
        (["dead", "show", "7"], "ids: '7' is not a UUID"),
        (["dead", "requeue"], "selection: nothing is given"),
        (["dead", "requeue", "--to", "events", "--all"], "to: is for --consumer"),
        (["dead", "requeue", "--consumer", "shop", "--all"], "to: with --consumer, give the sink"),
        (["dead", "requeue", "--consumer", "shop", "--to", "events", "--all", "--expired"], "fresh, expired: are for the outbox's"),
        (["dead", "requeue", "--consumer", "shop", "--to", "events", "--all"], "config: "),
        (["dead", "drop", "--key", "a", "--all"], "selection: everything, or key"),
        (["dead", "drop", "--topic", "a..b"], "topics: pattern 'a..b': token 2 is empty"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(outboxd: Run, arguments: list[str], says: str) -> None:
    code, out, err = outboxd(*arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"outboxd: {says}")


def test_whatever_the_database_makes_of_transactions(outboxd: Run, at: Any, dead: list[UUID]) -> None:
    """The lanes' last owners must be seen, and that takes READ COMMITTED."""
    at(
        lambda connection: connection.execute(
            f"ALTER DATABASE {connection.info.dbname} SET default_transaction_isolation = 'repeatable read'"
        )
    )
    assert outboxd("dead", "requeue", "--id", str(dead[0]))[0] == 0
    assert outboxd("dead", "drop", "--all")[0] == 0
    assert at(everything)["dead"] == []


async def test_behind_a_transaction_pooler(connection: Connection, database: str) -> None:
    """Where a prepared statement may be in another session, the same statement runs often enough to be prepared."""
    for number in range(40):
        await put(connection, str(number), key=str(number))
    await bury(connection, *map(str, range(40)))
    async with Pooler(database) as pooler:
        for verb in ("requeue", "drop"):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "outbox.daemon", "dead", verb, "--all", "--dsn", pooler.dsn),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, err = await process.communicate()
            assert (process.returncode, err) == (int(verb == "drop"), b""), out


def test_what_a_busy_lane_leaves_undone_is_not_all(outboxd: Run, at: Any, dead: list[UUID], monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what was done before, and then what was not."""
    monkeypatch.setattr(deadletters, "requeue_in_batches", partial(deadletters.requeue_in_batches, lock_timeout=0.05))

    async def lanes(connection: Connection) -> list[tuple[int, int]]:
        cursor = await connection.execute("SELECT lane, count(*) FROM outbox.dead GROUP BY lane ORDER BY lane")
        return await cursor.fetchall()

    (_, first), (last, _) = at(lanes)

    async def hold_lane(connection: Connection) -> tuple[int, str, str]:
        async with connection.transaction():
            await connection.execute("SELECT FROM outbox.lanes WHERE lane = %s FOR UPDATE", (last,))
            return await asyncio.to_thread(outboxd, "dead", "requeue", "--all")

    code, out, err = at(hold_lane)
    assert code == 1
    assert out.startswith(f"requeued {first} dead letter")
    assert err.startswith("outboxd: a pump's claim has held a lane of these keys")
    assert len(at(everything)["dead"]) == 3 - first


def test_a_dry_run_tells_of_a_key_that_would_wait_on(outboxd: Run, at: Any, dead: list[UUID]) -> None:
    at(lambda connection: hold(connection, "key:k", head="b", due=None))
    _, out, _ = outboxd("dead", "requeue", "--id", str(dead[0]), "--dry-run")
    assert out.splitlines()[-1] == "key k would wait on, for the dead letter at position 2"


def test_the_help_names_the_reasons_and_tells_of_an_empty_list(outboxd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    _, out, _ = outboxd("dead", "list", "--help")
    assert "too_large, invalid, no_route, expired, attempts, refused or handler" in out
    assert "Exit code 1 if there is none" in out


# --- replay


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
    command = [sys.executable, "-m", "outbox.daemon", "replay", "-c", configured, "--to", "events", "--all", "--rate", "5"]
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


# --- the consumers' dead letters


async def give_up(connection: Connection) -> list[UUID]:
    """Leave two dead letters of a consumer, as it would have, and one of another consumer."""
    ids = sorted(uuid7() for _ in range(3))  # within a millisecond they are in no order
    for message_id, name in zip(ids, ("shop", "shop", "billing"), strict=True):
        await connection.execute("INSERT INTO dedupe.processed (message_id, consumer) VALUES (%s, %s)", (message_id, name))
        await connection.execute(
            """INSERT INTO dedupe.consumer_dead (message_id, consumer, attempts, topic, key, content_type, headers, error, payload)
               VALUES (%s, %s, 6, 'orders.created', 'k', 'text/plain', '{"Tenant": "a"}', 'ValueError: no', 'hunter2')""",
            (message_id, name),
        )
    return ids


async def consumed(connection: Connection) -> list[tuple[Any, ...]]:
    cursor = await connection.execute(
        "SELECT message_id, 'processed' FROM dedupe.processed UNION ALL SELECT message_id, 'dead' FROM dedupe.consumer_dead ORDER BY 1, 2"
    )
    return await cursor.fetchall()


def test_a_consumers_dead_letters_are_listed(outboxd: Run, at: Any) -> None:
    ids = at(give_up)
    code, out, _ = outboxd("dead", "list", "--consumer", "shop")
    assert code == 0
    assert [line.split()[3] for line in out.splitlines()[1:]] == [str(ids[1]), str(ids[0])]
    assert "hunter2" not in out
    assert "ValueError: no" in out
    assert outboxd("dead", "list", "--consumer", "nobody")[0] == 1
    assert outboxd("dead", "list", "--consumer", "shop", "--reason", "handler")[0] == 2


def test_a_consumers_dead_letter_is_published_again_and_forgotten(outboxd: Run, at: Any, configured: str, stream: Stream) -> None:
    first, second, other = at(give_up)
    before = at(consumed)
    wanted = ["dead", "requeue", "-c", configured, "--consumer", "shop", "--to", "events", "--id", str(first)]
    assert outboxd(*wanted, "--dry-run") == (0, "would requeue 1 dead letter of consumer shop\n", "")
    assert at(consumed) == before
    assert outboxd(*wanted) == (0, "requeued 1 dead letter of consumer shop\n", "")
    assert at(consumed) == [(second, "dead"), (second, "processed"), (other, "dead"), (other, "processed")]
    (message,) = stored(stream)
    assert (message.subject, message.data) == (f"{stream.prefix}.orders.created", b"hunter2")
    assert message.headers["outbox-id"] == str(first)
    assert message.headers["outbox-replayed"]
    assert message.headers["Tenant"] == "a"
    code, _, err = outboxd(*wanted)
    assert code == 1
    assert "is not a dead letter" in err
    assert outboxd(*wanted[:-2], "--id", str(other))[0] == 1, "another consumer's"


def test_a_consumers_dead_letter_is_shown_whole(outboxd: Run, at: Any) -> None:
    first, _, other = at(give_up)
    code, out, _ = outboxd("dead", "show", str(first), "--consumer", "shop")
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (lines["payload"], lines["error"], lines["header"]) == ("hunter2", "ValueError: no", "Tenant: a")
    code, out, _ = outboxd("dead", "show", str(first), "--consumer", "shop", "--json")
    assert (json.loads(out)["payload"], json.loads(out)["headers"]) == ("hunter2", {"Tenant": "a"})
    assert outboxd("dead", "show", str(other), "--consumer", "shop")[0] == 1


def test_a_consumers_dead_letter_is_dropped_and_stays_processed(outboxd: Run, at: Any) -> None:
    first, second, other = at(give_up)
    before = at(consumed)
    wanted = ["dead", "drop", "--consumer", "shop"]
    assert outboxd(*wanted, "--all", "--dry-run")[:2] == (0, "would drop 2 dead letters\n        2  orders.created\n")
    assert outboxd(*wanted)[0] == 2
    assert outboxd(*wanted, "--id", str(other))[0] == 1, "another consumer's"
    assert at(consumed) == before
    assert outboxd(*wanted, "--id", str(first), "--json")[:2] == (0, json.dumps({"dropped": [str(first)], "dry_run": False}) + "\n")
    assert at(consumed) == [(first, "processed"), (second, "dead"), (second, "processed"), (other, "dead"), (other, "processed")]


def test_a_consumers_letters_are_where_the_consumer_was_made_to_keep_them(
    outboxd: Run, at: Any, configured: str, empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the daemon: what it was made with comes first, then [[consumers]] dsn, then [postgres]."""
    ids = at(give_up)
    with psycopg.connect(empty_database) as elsewhere:
        migrate(elsewhere, "dedupe", schema="effects")
    (tmp_path / "elsewhere.py").write_text("from dedupe import Consumer\nshop = Consumer('shop', schema='effects')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with Path(configured).open("a") as file:
        file.write(f'[[consumers]]\napp = "elsewhere:shop"\nsource = "events"\ndsn = "{empty_database}"\n')
    assert outboxd("dead", "list", "-c", configured, "--consumer", "shop")[0] == 1, "none is there"
    assert outboxd("dead", "list", "-c", configured, "--consumer", "billing")[0] == 0
    assert outboxd("dead", "drop", "-c", configured, "--consumer", "shop", "--all")[0] == 1
    assert outboxd("dead", "requeue", "-c", configured, "--consumer", "shop", "--to", "events", "--id", str(ids[0]))[0] == 1
    assert outboxd("dead", "show", str(ids[0]), "-c", configured, "--consumer", "shop")[0] == 1


def test_a_letter_of_a_consumer_in_the_daemon_goes_back_through_the_outbox(outboxd: Run, at: Any, configured: str) -> None:
    """Its broker is in the daemon, and the pump is the way to it."""
    first, *_ = at(give_up)
    wanted = ["dead", "requeue", "-c", configured, "--consumer", "shop", "--to", "here"]
    code, out, _ = outboxd(*wanted, "--id", str(first))
    assert (code, at(everything)["messages"]) == (1, [])
    assert f"{first} stays dead: no_route: no route leads topic 'orders.created' to 'here'" in out
    at(lambda connection: connection.execute("UPDATE dedupe.consumer_dead SET topic = 'local.created'"))
    code, out, err = outboxd(*wanted, "--id", str(first))
    assert code == 0, (out, err)
    ((row,),) = at(everything)["messages"]
    told = json.loads(row)
    assert (told["id"], told["topic"], told["key"], told["headers"]) == (str(first), "local.created", "k", {"Tenant": "a"})
    assert (first, "dead") not in at(consumed)


def test_what_the_sink_does_not_take_stays_dead(outboxd: Run, at: Any, configured: str) -> None:
    """No stream takes its subject."""
    at(give_up)
    at(lambda connection: connection.execute("UPDATE dedupe.consumer_dead SET topic = 'unknown'"))
    before = at(consumed)
    code, out, _ = outboxd("dead", "requeue", "-c", configured, "--consumer", "shop", "--to", "events", "--all")
    assert code == 1
    first, second, third = out.splitlines()
    assert first == "requeued 0 dead letters of consumer shop"
    assert "stays dead: missing: " in second
    assert third.endswith("stays dead: behind: behind an earlier message of its key")
    assert at(consumed) == before
