"""What is claimed about speed, what it is measured against, and the ratio that it must reach."""

from __future__ import annotations

from functools import partial
from typing import Final

from bridges.errors import ConfigurationError
from outbox.bench import consumers, costs, drains, latency, peer, writers
from outbox.bench.drains import BATCH
from outbox.bench.harness import Comparison, Target

_MOST = partial(Target, least=False)

COMPARISONS: Final = (
    *(
        Comparison(
            "B1",
            f"the pump's loop to {name}, beside the same client from memory",
            ("pump", "memory"),
            "messages/s",
            {"rate": Target(0.7)},
            partial(drains.beside_memory, broker=engine),
            (engine,),
        )
        for engine, name in (("nats", "JetStream"), ("kafka", "Kafka"))
    ),
    Comparison(
        "B1",
        "outboxd run --processes 2 to JetStream, beside one client from memory",
        ("pump", "memory"),
        "messages/s",
        {"rate": Target(0.7)},
        drains.in_processes,
        ("nats",),
    ),
    Comparison(
        "B2",
        "the pump to JetStream, beside faststream-outbox",
        ("outboxd", "peer"),
        "messages/s",
        {"rate": Target(10)},
        peer.beside_peer,
        ("nats",),
        ("faststream_outbox",),
    ),
    *(
        Comparison(
            "B3",
            f"commit to consumer through JetStream, beside a NOTIFY of that commit: {rate:,}/s, {latency.each_commit(rate)} in each",
            ("outboxd", "NOTIFY"),
            "ms",
            {"p50": _MOST(6), "p99": _MOST(10)},
            partial(latency.to_consumer, rate=rate),
            ("nats",),
        )
        for rate in (100, 1_000, 4_000)
    ),
    Comparison(
        "B4",
        "the drain with 1,000,000 waiting, beside 10,000",
        ("long", "short"),
        "rows/s",
        {"rate": Target(0.9)},
        drains.by_backlog,
    ),
    Comparison(
        "B5",
        "the drain with a pinned snapshot, beside none",
        ("pinned", "free"),
        "rows/s",
        {"rate": Target(0.9)},
        drains.behind_a_snapshot,
    ),
    Comparison(
        "B5",
        "commit to consumer with a pinned snapshot, beside none, at 1,000 messages/s",
        ("pinned", "free"),
        "ms",
        {"p99": _MOST(1.2)},
        latency.behind_a_snapshot,
        ("nats",),
    ),
    *(
        Comparison(
            "B6",
            f"writers with the doorbell while nobody sleeps, beside the same INSERT without a trigger, {clients} at once",
            ("doorbell", "bare"),
            "transactions/s",
            {"rate": Target(0.93)},
            partial(writers.doorbell, clients=clients),
            split=3,
        )
        for clients in (1, 4, 16)
    ),
    *(
        Comparison(
            "B7",
            f"a consumer with dedupe, beside its bare handler, {how}",
            ("dedupe", "bare"),
            "messages/s",
            {"rate": Target(least)},
            partial(consumers.effects, batch=batch),
        )
        for batch, how, least in ((1, "singly", 0.75), (100, "in batches of 100", 0.4))
    ),
    Comparison(
        "B8",
        "what a drain costs the server, without images of whole pages",
        ("outboxd",),
        "",
        {
            "WAL bytes a message": _MOST(150),
            "dead rows a message": _MOST(1),
            f"statements a batch of {BATCH}": _MOST(20),
            f"transactions a batch of {BATCH}": _MOST(2),
        },
        costs.per_message,
        timed=False,
    ),
    Comparison(
        "B9",
        "three daemons on skewed keys, beside one; the order of each key is checked",
        ("three", "one"),
        "messages/s",
        {"rate": Target(0.9)},
        drains.by_pumps,
        ("nats",),
    ),
    Comparison(
        "B10",
        "an idle daemon",
        ("outboxd",),
        "",
        {"queries a second": _MOST(2), "share of a core": _MOST(0.01)},
        costs.idle,
        ("nats",),
        timed=False,
    ),
    Comparison(
        "B11",
        "the memory of a daemon with 10,000,000 waiting, beside 10,000",
        ("many", "few"),
        "MB",
        {"peak": _MOST(1.2)},
        costs.memory,
        ("nats",),
        timed=False,
    ),
)


def chosen(ids: list[str]) -> list[Comparison]:
    """Return the comparisons of these benchmarks; all if none is named. Raises `ConfigurationError` for a name that there is not."""
    known = list(dict.fromkeys(comparison.id for comparison in COMPARISONS))
    wanted = [name.upper() for name in ids]
    for given, name in zip(ids, wanted, strict=True):
        if name not in known:
            raise ConfigurationError(f"benchmark: {given!r} is not one of {', '.join(known)}")
    return [comparison for comparison in COMPARISONS if not wanted or comparison.id in wanted]
