"""The writing application: transactions with messages in them, at a steady rate, each written down before and after.

python -m tests.faults.writer DSN FILE SEED RATE    (until SIGTERM; the lines of FILE are what `read_puts` reads)
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import psycopg

from bridges.message import uuid7
from outbox import Draft, Outbox
from tests.faults.application import NOTE, digest, payload_of
from tests.faults.history import Put

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS: Final = 40
TOPICS: Final = ("orders.created", "orders.paid", "orders.shipped")
_MOST: Final = 8
"""Messages in a transaction, at the most."""
_KEYED, _SCHEDULED, _ROLLED_BACK = 0.75, 0.1, 0.02
"""Shares: of messages with a key, of those without one that are scheduled, of transactions that the application itself rolls back."""

OUTBOX = Outbox()


class Diary:
    """What the writer did, line by line: a line that has begun and not ended is a transaction whose end nobody knows."""

    def __init__(self, file: str) -> None:
        self._file = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def begin(self, puts: list[Put]) -> None:
        """Before COMMIT is sent."""
        self._write({"puts": [[put.at, str(put.id), *put[2:6]] for put in puts]})

    def end(self, puts: list[Put], outcome: str) -> None:
        """When its answer is there, or none comes."""
        self._write({"end": str(puts[0].id), "at": time.time(), "outcome": outcome})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, f"{json.dumps(line)}\n".encode())


def read_puts(file: Path) -> Iterator[Put]:
    """Yield what a diary tells, in order."""
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    ends = {line["end"]: line for line in lines if "end" in line}
    for line in lines:
        if "puts" not in line:
            continue
        end = ends.get(line["puts"][0][1], {"outcome": "unknown", "at": float("inf")})
        for at, identity, topic, key, number, its_digest in line["puts"]:
            yield Put(at, UUID(identity), topic, key, number, its_digest, end["outcome"], ended=end["at"])


def write_one(connection: psycopg.Connection[Any], chance: random.Random, diary: Diary) -> None:
    """One transaction: lock its keys, number their messages, put them, commit. Raises `psycopg.Error`."""
    keys = [str(chance.randrange(KEYS)) if chance.random() < _KEYED else None for _ in range(chance.randint(1, _MOST))]
    puts: list[Put] = []
    sent = False
    try:
        with connection.transaction():
            drafts = list(_drafts(keys, _numbered(connection, keys), chance))
            puts = [_as_put(draft, number) for draft, number in drafts]
            OUTBOX.put_many(connection, [draft for draft, _ in drafts])
            if chance.random() < _ROLLED_BACK:
                raise psycopg.Rollback
            diary.begin(puts)
            sent = True
    except psycopg.Error:
        if sent:
            diary.end(puts, "unknown")
        elif puts:
            diary.begin(puts)
            diary.end(puts, "failed")
        raise
    if not sent:
        diary.begin(puts)
    diary.end(puts, "ok" if sent else "failed")


def _numbered(connection: psycopg.Connection[Any], keys: list[str | None]) -> dict[str, int]:
    """Lock the keys, and return the last number of each before these messages."""
    wanted = Counter(key for key in keys if key is not None)
    last = {}
    for key, count in sorted(wanted.items()):  # in one order everywhere, so that no two writers wait for each other
        cursor = connection.execute("UPDATE ledger SET number = number + %s WHERE key = %s RETURNING number", (count, key))
        ((number,),) = cursor.fetchall()
        last[key] = number - count
    return last


def _drafts(keys: list[str | None], last: dict[str, int], chance: random.Random) -> Iterator[tuple[Draft, int]]:
    for key in keys:
        number, deliver_at = 0, None
        if key is not None:
            number = last[key] = last[key] + 1
        elif chance.random() < _SCHEDULED:
            deliver_at = datetime.now(UTC) + timedelta(seconds=chance.uniform(0, 2))
        payload = payload_of(number, "x" * chance.randint(0, 600))
        yield Draft(chance.choice(TOPICS), payload, key, {NOTE: f"№ {number}"}, id=uuid7(), deliver_at=deliver_at), number


def _as_put(draft: Draft, number: int) -> Put:
    assert isinstance(draft.id, UUID)
    assert isinstance(draft.payload, bytes)
    its = digest(draft.topic, draft.payload, draft.headers[NOTE])
    return Put(time.time(), draft.id, draft.topic, draft.key, number, its, "unknown")


def main(dsn: str, file: str, seed: str, rate: str) -> None:
    """Write until SIGTERM, over new connections whenever one is lost."""
    diary, pace = Diary(file), 1 / float(rate)
    chance = random.Random(f"{seed} {Path(file).stat().st_size}")  # one that is started again does not write the same again
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    while not stopping.is_set():
        try:
            with psycopg.connect(dsn, connect_timeout=2, application_name="writer", tcp_user_timeout=10_000, autocommit=True) as connection:
                while not stopping.wait(pace):
                    write_one(connection, chance, diary)
        except psycopg.Error as problem:
            sys.stderr.write(f"writer: {str(problem).strip().splitlines()[:1]}\n")
            stopping.wait(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
