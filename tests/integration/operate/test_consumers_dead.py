"""``outboxd dead --consumer``: the consumers' dead letters, which are in tables of their own and go back by their broker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from bridges.message import uuid7
from migrations.runner import migrate
from tests.engines.letters import everything
from tests.integration.operate.conftest import stored

if TYPE_CHECKING:
    from uuid import UUID

    import pytest

    from tests.conftest import Stream
    from tests.engines.command import Run
    from tests.engines.letters import Connection


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
