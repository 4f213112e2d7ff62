"""The promises as functions of a history, each of which names what breaks it. They read nothing else, and keep nothing.

A message is *good* if it was not rolled back and is no poison. It is *committed* if its COMMIT was answered, or if it was cut off and
anybody has seen the message since.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from functools import cached_property
from operator import attrgetter
from statistics import median
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from tests.faults.history import MARK, History

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tests.faults.history import Put, Sample

STRENGTH = ("failed", "unknown", "ok")
"""Of outcomes: of an id that was put again, the strongest counts."""

MIB = 1024 * 1024
GROWTH: Mapping[str, int] = {
    "memory": 32 * MIB,  # arenas that a backlog filled and the allocator keeps; a leak of 100 bytes a message passes it at 335,000
    "files": 16,  # a connection that is being replaced is open beside the new one, and an exporter or a scrape has one for a moment
    "tasks": 16,  # a batch on its way has a handful, and a sample may fall into it
    "connections": 4,  # the janitor's, the doorbell's and a gauge's, which come and go
}
"""What may be used more in late quiet than in early quiet, in the units of `Sample`."""

WARM_UP = 0.2
"""Of a process's quiet samples, which do not count: imports, pools and caches fill."""

FEWEST_SAMPLES = 9
"""With less than three in each third, a median is one sample's chance."""

CALM = 2.0
"""Seconds after healing that are not quiet yet, where no longer recovery was measured: half of what a mixture rests."""


class Violation(NamedTuple):
    """A promise that was not kept, and the messages and keys that show it."""

    invariant: str
    text: str
    ids: tuple[UUID, ...] = ()
    keys: tuple[str, ...] = ()


class Indexed(History):
    """A history that is asked by message. It is only read: what was looked up once is not looked up again.

    Ids are integers here, which hash and compare in C, and not in Python as a UUID does: a run has a million of them.
    """

    @classmethod
    def of(cls, history: History) -> Indexed:
        """Return it with indexes, which are made as they are needed."""
        return history if isinstance(history, Indexed) else cls(**vars(history))

    @cached_property
    def messages(self) -> dict[int, Put]:
        """Each message that was put, once, with its strongest outcome."""
        return {put.id.int: put for strength in STRENGTH for put in self.puts if put.outcome == strength}

    @cached_property
    def good(self) -> dict[int, Put]:
        return {id_: put for id_, put in self.messages.items() if put.outcome != "failed" and not put.poison}

    @cached_property
    def ordered(self) -> dict[int, Put]:
        """The good messages that keep an order."""
        return {id_: put for id_, put in self.good.items() if put.number and put.key is not None}

    @cached_property
    def copied(self) -> set[int]:
        return {copy.id.int for copy in self.copies}

    @cached_property
    def effective(self) -> set[int]:
        return {effect.id.int for effect in self.effects}

    @cached_property
    def dead(self) -> Counter[int]:
        return Counter(death.id.int for death in self.deaths)

    @cached_property
    def remaining(self) -> set[int]:
        """In the outbox at the end, dead ones included."""
        return {id_.int for id_ in self.left}

    @cached_property
    def committed(self) -> list[Put]:
        """What was committed for certain: the answer says so, or the message has been seen."""
        unknown = {put.id for put in self.messages.values() if put.outcome == "unknown"}
        seen = {id_.int for audit in self.audits for ids in (audit.left, audit.stored) for id_ in unknown & ids}
        seen.update(id_.int for settled in self.settled if not unknown.isdisjoint(settled.ids) for id_ in settled.ids)
        places = (seen, self.copied, self.effective, self.dead, self.remaining)
        return [
            put
            for id_, put in self.messages.items()
            if put.outcome == "ok" or (put.outcome == "unknown" and any(id_ in place for place in places))
        ]


def consumers(history: History) -> list[str]:
    """Return those that were to have effects, and any others that had."""
    return sorted({*history.consumers, *(effect.consumer for effect in history.effects)})


def secrets(history: History) -> list[str]:
    """Return what no log and no report may have, the longest first: one may be a part of another."""
    return sorted({MARK, *history.secrets} - {""}, key=lambda secret: (-len(secret), secret))


def loss(history: History) -> Iterator[Violation]:
    """Each good committed message is in a log, unless it is still in the outbox or dead; and whatever took effect is in a log."""
    known = Indexed.of(history)
    for put in known.committed:
        id_ = put.id.int
        if not put.poison and id_ not in known.copied:
            if id_ in known.effective:
                yield _of("loss", "took effect, and is in no log", put)
            elif id_ not in known.remaining and (put.flawed or id_ not in known.dead):
                yield _of("loss", f"is in no log, and the outbox has it no more (its COMMIT: {put.outcome})", put)


def phantom(history: History) -> Iterator[Violation]:
    """What was rolled back, or what nobody put, is nowhere."""
    known = Indexed.of(history)
    real = {put.id for put in known.messages.values() if put.outcome != "failed"}
    ints = {id_.int for id_ in real}
    places: list[tuple[str, set[UUID]]] = [
        ("in a log", {UUID(int=id_) for id_ in known.copied - ints}),
        ("in effect", {UUID(int=id_) for id_ in known.effective - ints}),
        ("dead", {UUID(int=id_) for id_ in known.dead.keys() - ints}),
        ("left in the outbox", {UUID(int=id_) for id_ in known.remaining - ints}),
        ("settled", {id_ for settled in history.settled for id_ in settled.ids - real}),
        ("in the outbox meanwhile", {id_ for audit in history.audits for id_ in audit.left - real}),
        ("in the broker meanwhile", {id_ for audit in history.audits for id_ in audit.stored - real}),
    ]
    for id_ in sorted({id_ for _, found in places for id_ in found}):
        where = ", ".join(place for place, found in places if id_ in found)
        if put := known.messages.get(id_.int):
            yield _of("phantom", f"was rolled back, and is {where}", put)
        else:
            yield Violation("phantom", f"{id_}, which nobody put, is {where}", (id_,))


def one_effect(history: History) -> Iterator[Violation]:
    """Each good message in a log has one effect in each consumer, and none has two; those that are flawed have none."""
    known = Indexed.of(history)
    effects: dict[str, list[int]] = {consumer: [] for consumer in consumers(history)}
    for effect in history.effects:
        effects[effect.consumer].append(effect.id.int)
    for consumer, ids in effects.items():
        counts = Counter(ids)
        for id_, put in known.good.items():
            times = counts.get(id_, 0)
            if times > 1 or (times and put.flawed):
                yield _of("one_effect", f"took effect {times} times in {consumer}", put)
            elif times == 0 and id_ in known.copied and not put.flawed:
                yield _of("one_effect", f"took no effect in {consumer}", put)


def key_order(history: History) -> Iterator[Violation]:
    """Within a log, the first copies of a key's messages have rising numbers; and a key is in one log."""
    ordered = Indexed.of(history).ordered
    copies = sorted((copy for copy in history.copies if copy.id.int in ordered), key=attrgetter("place"))
    logs: dict[str, dict[str, UUID]] = defaultdict(dict)
    for copy in copies:
        logs[ordered[copy.id.int].key or ""].setdefault(copy.log, copy.id)
    for key, found in logs.items():
        if len(found) > 1:
            text = f"the key {key} is in several logs, so it has no order: {', '.join(sorted(found))}"
            yield Violation("key_order", text, tuple(dict.fromkeys(found.values())), (key,))
    yield from _falling("key_order", ((copy.log, ordered[copy.id.int]) for copy in copies))


def effect_order(history: History) -> Iterator[Violation]:
    """Within a consumer, the first effects of a key's messages have rising numbers, as long as it lives."""
    if history.consumer_hit:
        return
    ordered = Indexed.of(history).ordered
    effects = sorted((effect for effect in history.effects if effect.id.int in ordered), key=attrgetter("place"))
    yield from _falling("effect_order", ((effect.consumer, ordered[effect.id.int]) for effect in effects))


def bytes_intact(history: History) -> Iterator[Violation]:
    """Each copy has the topic, payload, header and key that were put, and each handler got them."""
    puts = Indexed.of(history).messages
    for copy in history.copies:
        put = puts.get(copy.id.int)
        if put and (copy.digest, copy.key) != (put.digest, put.key):
            changed = "other bytes" if copy.digest != put.digest else "another key"
            yield _of("bytes_intact", f"has {changed} in {copy.log} at {copy.place}", put)
    for effect in history.effects:
        put = puts.get(effect.id.int)
        if put and (effect.key, effect.number, effect.digest) != (put.key, put.number, put.digest):
            changed = "other bytes" if effect.digest != put.digest else "another key or number"
            yield _of("bytes_intact", f"had {changed} in {effect.consumer} at {effect.place}", put)


def poison(history: History) -> Iterator[Violation]:
    """A committed poison message is dead, once, or still in the outbox; it is in no log, and takes no effect."""
    known = Indexed.of(history)
    for put in known.committed:
        if put.poison:
            id_ = put.id.int
            wrong = ["is in a log"] * (id_ in known.copied) + ["took effect"] * (id_ in known.effective)
            if id_ not in known.dead and id_ not in known.remaining:
                wrong.append("is neither dead nor in the outbox")
            if known.dead[id_] > 1:
                wrong.append(f"is dead {known.dead[id_]} times")
            if wrong:
                yield _of("poison", "can never be accepted, and " + ", ".join(wrong), put)


def wrongly_dead(history: History) -> Iterator[Violation]:
    """No good message is dead, and those that are flawed are, once they were published."""
    known = Indexed.of(history)
    for id_, put in known.good.items():
        if put.flawed and id_ in known.copied and known.dead[id_] != 1:
            yield _of("wrongly_dead", f"is never handled, and is dead {known.dead[id_]} times", put)
    for death in history.deaths:
        good = known.good.get(death.id.int)
        if good is not None and not good.flawed:
            yield _of("wrongly_dead", f"is dead, though nothing is wrong with it: {death.reason}", good)


def nothing_gone_early(history: History) -> Iterator[Violation]:
    """Whatever was committed before a look at the outbox is in it, or in the broker right after."""
    puts = sorted((put for put in history.puts if put.outcome == "ok"), key=attrgetter("ended"))
    expected: set[UUID] = set()
    told: set[UUID] = set()
    seen = 0
    for audit in sorted(history.audits, key=attrgetter("at")):
        before = bisect_left(puts, audit.at, key=attrgetter("ended"))
        expected.update(put.id for put in puts[seen:before])
        seen = before
        if gone := expected - audit.stored - audit.left - told:
            told |= gone
            for put in Indexed.of(history).messages.values():
                if put.id in gone:
                    yield _of("nothing_gone_early", "was committed, and was neither in the outbox nor in the broker", put)


def no_change_after_lost_claim(history: History) -> Iterator[Violation]:
    """What leaves the outbox's queues is taken out by the transaction that owns its lane: whoever lost a claim takes nothing out."""
    for settled in history.settled:
        if settled.unowned:
            text = f"the session {settled.session} settled {len(settled.unowned)} rows of lanes that its transaction did not own"
            yield Violation("no_change_after_lost_claim", text, tuple(sorted(settled.unowned)))


def drained(history: History) -> Iterator[Violation]:
    """After healing, nothing is left in the outbox but the dead."""
    known = Indexed.of(history)
    for id_ in dict.fromkeys(history.left):
        if id_.int not in known.dead:
            if put := known.messages.get(id_.int):
                yield _of("drained", "is still in the outbox", put)
            else:
                yield Violation("drained", f"{id_} is still in the outbox", (id_,))


def no_restart(history: History) -> Iterator[Violation]:
    """Work resumes without a restart."""
    if history.restarts:
        yield Violation("no_restart", f"daemons were started again, which no nemesis had ended: {history.restarts}")


def bounded(history: History) -> Iterator[Violation]:
    """No process uses more in late quiet than in early quiet, beyond `GROWTH`."""
    for process, warm in warmed_up(history).items():
        if len(warm) < FEWEST_SAMPLES:
            continue
        third = len(warm) // 3
        for what, limit in GROWTH.items():
            early, late = (median(getattr(sample, what) for sample in part) for part in (warm[:third], warm[-third:]))
            if late - early > limit:
                yield Violation("bounded", f"{process}: {what} grew from {early:,.0f} to {late:,.0f}, by more than {limit:,}")


def no_hang(history: History) -> Iterator[Violation]:
    """What is asked to stop ends in time, and well; and what a nemesis waits for when it has done its harm comes."""
    for stuck in history.stuck:
        yield Violation("no_hang", f"{stuck.nemesis}: {stuck.why}")
    for ended in history.exits:
        if ended.code is None:
            yield Violation("no_hang", f"{ended.process} was asked to stop, and had not after {ended.seconds:.1f} s")
        elif ended.code:
            yield Violation("no_hang", f"{ended.process} was asked to stop, and ended with {ended.code}")


def duplicates_bounded(history: History) -> Iterator[Violation]:
    """There are no more copies beyond the first than each fault, and the end, may have caught in flight."""
    copies = Counter(copy.id.int for copy in history.copies)
    beyond = len(history.copies) - len(copies)
    faults = sum(fault.times for fault in history.faults)
    limit = history.in_flight * (faults + 1)
    if beyond > limit:
        text = f"{beyond} copies beyond the first, and {history.in_flight} in flight with {faults} faults allow {limit}"
        yield Violation("duplicates_bounded", text, tuple(UUID(int=id_) for id_, count in copies.items() if count > 1))


def truth(history: History) -> Iterator[Violation]:
    """What a daemon says of itself is so."""
    for probe in history.probes:
        # Written so that a NaN is untrue, and infinity is itself.
        if probe.said != probe.so and not abs(probe.said - probe.so) <= probe.tolerance:
            text = f"{probe.process} said {probe.claim} = {probe.said:g}, and it was {probe.so:g} (tolerance {probe.tolerance:g})"
            yield Violation("truth", text)


def no_secret(history: History) -> Iterator[Violation]:
    """No log has a secret or a payload."""
    wanted = secrets(history)
    for name, text in history.logs.items():
        for line in sorted({line for secret in wanted for line in _lines_with(secret, text)}):
            yield Violation("no_secret", f"{name}:{line} has a secret")


def _falling(invariant: str, places: Iterable[tuple[str, Put]]) -> Iterator[Violation]:
    """Report each message whose first place, in a log or a consumer, is behind one of its key with a number as high."""
    highest: dict[str, dict[str | None, Put]] = defaultdict(dict)
    seen: dict[str, set[int]] = defaultdict(set)
    for where, put in places:
        if put.id.int in seen[where]:
            continue
        seen[where].add(put.id.int)
        ahead = highest[where].setdefault(put.key, put)
        if ahead.number < put.number:
            highest[where][put.key] = put
        elif ahead is not put:
            text = f"key {put.key} in {where}: number {put.number} is first behind number {ahead.number}"
            yield Violation(invariant, text, (put.id, ahead.id), (put.key or "",))


def _quiet(history: History) -> Iterator[Sample]:
    """Return the samples that no fault touches, by time."""
    faults = sorted(history.faults, key=attrgetter("began"), reverse=True)
    touched = float("-inf")
    for sample in sorted(history.samples, key=attrgetter("at")):
        while faults and faults[-1].began <= sample.at:
            fault = faults.pop()
            touched = max(touched, fault.healed + max(CALM, fault.recovery or 0.0))
        if sample.at > touched:
            yield sample


def warmed_up(history: History) -> dict[str, list[Sample]]:
    """Return the quiet samples of each process that count; it is judged if they are `FEWEST_SAMPLES` or more."""
    processes: dict[str, list[Sample]] = {sample.process: [] for sample in history.samples}
    for sample in _quiet(history):
        processes[sample.process].append(sample)
    return {process: samples[int(len(samples) * WARM_UP) :] for process, samples in processes.items()}


def _lines_with(secret: str, text: str) -> Iterator[int]:
    """Return the number of each line, from 1, in which it begins."""
    line, last = 1, 0
    at = text.find(secret)
    while at >= 0:
        line += text.count("\n", last, at)
        yield line
        last, at = at, text.find(secret, at + 1)


def _of(invariant: str, text: str, put: Put) -> Violation:
    key = "no key" if put.key is None else f"key {put.key}, number {put.number}"
    return Violation(invariant, f"{put.id} ({key}) {text}", (put.id,), () if put.key is None else (put.key,))


_ALL: Sequence[Callable[[History], Iterable[Violation]]] = (
    loss,
    phantom,
    one_effect,
    key_order,
    effect_order,
    bytes_intact,
    poison,
    wrongly_dead,
    nothing_gone_early,
    no_change_after_lost_claim,
    drained,
    no_restart,
    bounded,
    no_hang,
    duplicates_bounded,
    truth,
    no_secret,
)

INVARIANTS: Mapping[str, Callable[[History], Iterable[Violation]]] = {invariant.__name__: invariant for invariant in _ALL}
"""The worst first: what a report begins with is what to look at."""
