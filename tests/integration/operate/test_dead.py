"""``outboxd dead``: what it lists, shows, puts back and drops, and how it ends."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from bridges.message import uuid7
from outbox import deadletters
from tests.engines.command import run_outboxd
from tests.engines.letters import bury, everything, hold, put
from tests.engines.pooler import Pooler

if TYPE_CHECKING:
    from uuid import UUID

    from tests.engines.command import Run
    from tests.engines.letters import Connection


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
            ended = await asyncio.to_thread(run_outboxd, "dead", verb, "--all", "--dsn", pooler.dsn)
            assert (ended.code, ended.err) == (int(verb == "drop"), ""), ended.out


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
