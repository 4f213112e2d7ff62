"""Generated runs in which every promise was kept."""

from __future__ import annotations

from random import Random
from typing import NamedTuple
from uuid import UUID

from tests.faults.history import MARK, Audit, Copy, Death, Effect, Exit, Fault, History, Probe, Put, Sample, Settled

CONSUMERS = ("bills", "ships")
SECRETS = (MARK, "pass'w\\ord\twith\nzebra", "pass")
IN_FLIGHT = 5


class Told(NamedTuple):
    """A message as the generator of histories knows it: what the checker has to find out."""

    put: Put
    exists: bool
    log: str
    published: float
    settled: float


def good(seed: int, size: int = 80) -> History:
    """Return a run in which every promise was kept, with all that is allowed: cut COMMITs, poison, late duplicates, unordered messages."""
    rng = Random(seed)
    messages = _messages(rng, size)
    end = messages[-1].put.ended + 10
    faults = [Fault("kill pump", 0.2 * end, 0.22 * end, recovery=0.5), Fault("freeze postgres", 0.5 * end, 0.55 * end)]
    delivered = [message for message in messages if message.exists and not message.put.poison]
    dead = [message.put.id for message in messages if message.exists and message.put.poison]
    return History(
        sink="kafka",
        seed=seed,
        puts=[message.put for message in messages],
        copies=_copies(rng, delivered),
        effects=_effects(rng, delivered),
        deaths=[Death(id_, "too large") for id_ in dead],
        left=dead,
        settled=[Settled(m.settled, f"s{index // 10}", frozenset({m.put.id})) for index, m in enumerate(delivered)],
        audits=[_audit(messages, at) for at in (end, *(message.put.ended + 0.08 for message in rng.sample(messages, 6)))],
        samples=_samples(rng, faults, end),
        faults=faults,
        probes=[Probe(end, "pump-1", "readyz", 1, 1), Probe(end, "pump-1", "outbox_backlog_messages", 103, 100, 5)],
        exits=[Exit("pump-1", 0, 0.4), Exit("pump-2", 0, 1.2)],
        logs={"pump-1": "started\npublished 10\nstopped\n", "consumer-1": ""},
        secrets=SECRETS,
        in_flight=IN_FLIGHT,
        consumers=CONSUMERS,
    )


def _messages(rng: Random, size: int) -> list[Told]:
    """The first few are one of each sort, so that every bug has something to bite."""
    at, found, numbers = 1000.0, list[Told](), dict[str, int]()
    first = [("ok", False), ("ok", True), ("failed", False), ("unknown", False), ("unknown", True)]
    for index in range(size):
        outcome, poison = (
            first[index] if index < len(first) else (rng.choices(("ok", "failed", "unknown"), (8, 1, 1))[0], rng.random() < 0.05)
        )
        exists = outcome == "ok" or (outcome == "unknown" and (index < len(first) or rng.random() < 0.5))
        key = f"k{rng.randrange(4)}" if index < len(first) else rng.choice(("k0", "k1", "k2", "k3", None))
        ordered = key is not None and (index < len(first) or rng.random() < 0.9)
        number = numbers.get(key, 0) + 1 if key and ordered else 0
        if key and ordered and (exists or rng.random() < 0.5):
            numbers[key] = number  # else it was drawn in the transaction that was rolled back, and is drawn again
        at += rng.random()
        # mypy widens what `choice` returns to str; it is one of the outcomes.
        put = Put(at, UUID(int=rng.getrandbits(128), version=4), "t", key, number, f"{rng.getrandbits(64):x}", outcome, poison, at + 0.05)  # type: ignore[arg-type]
        late = 0.1 + (0 if number else 3 * rng.random())
        settled = float("inf") if poison else put.ended + late + 0.05
        found.append(Told(put, exists, log_of(key), put.ended + late, settled))
    return found


def log_of(key: str | None) -> str:
    return "t/0" if key is None else f"t/{int(key[1:]) % 2}"


def _copies(rng: Random, delivered: list[Told]) -> list[Copy]:
    sent = sorted(delivered, key=lambda message: message.published)
    again = rng.sample(sent, min(2 * IN_FLIGHT, len(sent) // 3))
    copies = [Copy(m.log, place, m.put.id, m.put.key, m.put.digest) for place, m in enumerate([*sent, *again])]
    rng.shuffle(copies)
    return copies


def _effects(rng: Random, delivered: list[Told]) -> list[Effect]:
    sent = sorted(delivered, key=lambda message: message.published)
    effects = [Effect(place, name, m.put.id, m.put.key, m.put.number, m.put.digest) for name in CONSUMERS for place, m in enumerate(sent)]
    rng.shuffle(effects)
    return effects


def _audit(messages: list[Told], at: float) -> Audit:
    left = frozenset(m.put.id for m in messages if m.exists and m.put.ended <= at < m.settled)
    return Audit(at, left, frozenset(m.put.id for m in messages if m.exists and not m.put.poison and m.published <= at + 0.05))


def _samples(rng: Random, faults: list[Fault], end: float) -> list[Sample]:
    """A process warms up for a tenth of the run, and swells while a fault is on."""
    found = []
    for step in range(200):
        at = step * end / 200
        swollen = any(fault.began <= at <= fault.healed for fault in faults)
        warm = min(1.0, step / 20)
        memory = int(40e6 + 60e6 * warm + 1e6 * rng.random() + 400e6 * swollen)
        found.append(Sample(at, "pump-1", memory, 20 + rng.randrange(4) + 100 * swollen, 9 + rng.randrange(3), 5 + rng.randrange(2)))
    return found
