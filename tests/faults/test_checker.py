"""The checker finds nothing in a good run, and each bug that is built into one, by the promise that it breaks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.checker import AGAIN, INVARIANTS, MOST, Violation, check, smallest, told
from tests.faults.history import MARK, Audit, Copy, Death, Effect, Ended, Exit, Fault, History, Probe, Put, Sample, Settled
from tests.faults.invariants import FEWEST_SAMPLES, GROWTH

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = range(12)
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
    faults = [Fault("kill pump", 0.2 * end, 0.22 * end), Fault("freeze postgres", 0.5 * end, 0.55 * end)]
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
        ended=[Ended(end, f"s{index}") for index in range(0, len(delivered) // 10 + 1, 2)],
        audits=[_audit(messages, at) for at in (end, *(message.put.ended + 0.08 for message in rng.sample(messages, 6)))],
        samples=_samples(rng, faults, end),
        faults=faults,
        probes=[Probe(end, "pump-1", "readyz", 1, 1), Probe(end, "pump-1", "outbox_backlog_messages", 103, 100, 5)],
        exits=[Exit("pump-1", 0, 0.4), Exit("pump-2", 0, 1.2)],
        logs={"pump-1": "started\npublished 10\nstopped\n", "consumer-1": ""},
        secrets=SECRETS,
        in_flight=IN_FLIGHT,
        recovery={"kill pump": 0.5},
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
    effects = [Effect(place, name, m.put.id, m.put.key, m.put.number) for name in CONSUMERS for place, m in enumerate(sent)]
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


@dataclass(frozen=True)
class Bug:
    """A bug that is built into a good run, the promise it breaks, and those which break with it."""

    invariant: str
    build: Callable[[History, Random], None]
    follows: frozenset[str]

    def into(self, history: History, seed: int) -> History:
        """Return the run with it."""
        changed = replace(history, **_copied(history))
        self.build(changed, Random(seed))
        return changed


def _copied(history: History) -> dict[str, Any]:
    return {name: value.copy() for name, value in vars(history).items() if isinstance(value, list | dict)}


BUGS: list[Bug] = []


def bug(invariant: str, *follows: str) -> Callable[[Callable[[History, Random], None]], Callable[[History, Random], None]]:
    def enter(build: Callable[[History, Random], None]) -> Callable[[History, Random], None]:
        BUGS.append(Bug(invariant, build, frozenset(follows)))
        return build

    return enter


def pick(history: History, rng: Random, outcome: str = "ok", *, poison: bool = False) -> Put:
    return rng.choice([put for put in history.puts if (put.outcome, put.poison) == (outcome, poison)])


def seen(history: History, rng: Random, outcome: str = "ok") -> Put:
    """A good message that is in a log."""
    copied = {copy.id for copy in history.copies}
    return rng.choice([put for put in history.puts if put.outcome == outcome and put.id in copied])


def copy_of(put: Put, place: int = 10**9) -> Copy:
    return Copy(log_of(put.key), place, put.id, put.key, put.digest)


def effects_of(put: Put) -> list[Effect]:
    return [Effect(10**9, consumer, put.id, put.key, put.number) for consumer in CONSUMERS]


def without(history: History, put: Put, *names: str) -> None:
    for name in names:
        setattr(history, name, [item for item in getattr(history, name) if item.id != put.id])


def neighbours(history: History, rng: Random, ids: set[UUID]) -> tuple[Put, Put]:
    """Two ordered messages of one key, both of which are among the ids."""
    keys: dict[str, list[Put]] = {}
    for put in history.puts:
        if put.key and put.number and put.id in ids:
            keys.setdefault(put.key, []).append(put)
    one, other = rng.sample(rng.choice([puts for puts in keys.values() if len(puts) > 1]), 2)
    return one, other


@bug("loss")
def a_message_is_gone(history: History, rng: Random) -> None:
    put = seen(history, rng)
    without(history, put, "copies", "effects")


@bug("loss")
def a_message_took_effect_and_is_in_no_log(history: History, rng: Random) -> None:
    put = seen(history, rng)
    without(history, put, "copies")


@bug("loss")
def a_message_whose_commit_was_cut_off_was_settled_and_is_gone(history: History, rng: Random) -> None:
    put = seen(history, rng, "unknown")
    without(history, put, "copies", "effects")


@bug("loss")
def a_message_whose_commit_was_cut_off_was_in_the_outbox_once(history: History, rng: Random) -> None:
    put = seen(history, rng, "unknown")
    without(history, put, "copies", "effects")
    history.settled = [settled for settled in history.settled if put.id not in settled.ids]
    history.audits = [Audit(audit.at, audit.left - {put.id}, audit.stored - {put.id}) for audit in history.audits]
    everything_ok = frozenset(put.id for put in history.puts if put.outcome == "ok")
    history.audits.append(Audit(put.ended + 0.01, everything_ok | {put.id}, frozenset()))


@bug("phantom")
def what_was_rolled_back_is_in_a_log(history: History, rng: Random) -> None:
    history.copies.append(copy_of(pick(history, rng, "failed")))


@bug("phantom")
def what_was_rolled_back_took_effect(history: History, rng: Random) -> None:
    history.effects += effects_of(pick(history, rng, "failed"))


@bug("phantom")
def what_was_rolled_back_is_dead(history: History, rng: Random) -> None:
    put = pick(history, rng, "failed")
    history.deaths.append(Death(put.id, "why"))
    history.left.append(put.id)


@bug("phantom", "drained")
def what_was_rolled_back_is_left(history: History, rng: Random) -> None:
    history.left.append(pick(history, rng, "failed").id)


@bug("phantom")
def what_was_rolled_back_was_in_the_outbox(history: History, rng: Random) -> None:
    index = rng.randrange(len(history.audits))
    history.audits[index] = history.audits[index]._replace(left=history.audits[index].left | {pick(history, rng, "failed").id})


@bug("phantom")
def what_was_rolled_back_was_in_the_broker(history: History, rng: Random) -> None:
    index = rng.randrange(len(history.audits))
    history.audits[index] = history.audits[index]._replace(stored=history.audits[index].stored | {pick(history, rng, "failed").id})


@bug("phantom")
def what_was_rolled_back_was_settled(history: History, rng: Random) -> None:
    history.settled.append(Settled(2000, "another", frozenset({pick(history, rng, "failed").id})))


@bug("phantom")
def what_nobody_put_is_in_a_log_and_takes_effect(history: History, rng: Random) -> None:
    put = pick(history, rng)._replace(id=UUID(int=rng.getrandbits(128), version=4))
    history.copies.append(copy_of(put))
    history.effects += effects_of(put)


@bug("one_effect")
def an_effect_is_missing(history: History, rng: Random) -> None:
    history.effects.pop(rng.randrange(len(history.effects)))


@bug("one_effect")
def an_effect_happens_twice(history: History, rng: Random) -> None:
    history.effects.append(rng.choice(history.effects)._replace(place=10**9))


@bug("one_effect")
def an_effect_of_a_cut_off_commit_is_missing(history: History, rng: Random) -> None:
    put = seen(history, rng, "unknown")
    history.effects.remove(next(effect for effect in history.effects if effect.id == put.id))


@bug("one_effect")
def a_consumer_has_no_effect_at_all(history: History, rng: Random) -> None:
    history.effects = [effect for effect in history.effects if effect.consumer != CONSUMERS[0]]


@bug("key_order")
def two_messages_of_a_key_change_places_in_the_log(history: History, rng: Random) -> None:
    one, other = neighbours(history, rng, {copy.id for copy in history.copies})
    without(history, one, "copies")
    without(history, other, "copies")
    for place, put in enumerate(sorted((one, other), key=lambda put: -put.number), 10**9):
        history.copies.append(copy_of(put, place))


@bug("key_order")
def a_key_is_in_two_logs(history: History, rng: Random) -> None:
    _, put = neighbours(history, rng, {copy.id for copy in history.copies})
    history.copies = [copy._replace(log="t/2") if copy.id == put.id else copy for copy in history.copies]


@bug("effect_order")
def two_messages_of_a_key_take_effect_in_the_wrong_order(history: History, rng: Random) -> None:
    one, other = neighbours(history, rng, {copy.id for copy in history.copies})
    consumer = rng.choice(CONSUMERS)
    places = {effect.id: effect.place for effect in history.effects if effect.consumer == consumer}
    swapped = {one.id: places[other.id], other.id: places[one.id]}
    history.effects = [
        effect._replace(place=swapped.get(effect.id, effect.place)) if effect.consumer == consumer else effect for effect in history.effects
    ]


@bug("bytes_intact")
def a_copy_has_other_bytes(history: History, rng: Random) -> None:
    index = rng.randrange(len(history.copies))
    history.copies[index] = history.copies[index]._replace(digest="other")


@bug("bytes_intact")
def a_copy_has_another_key(history: History, rng: Random) -> None:
    index = rng.randrange(len(history.copies))
    history.copies[index] = history.copies[index]._replace(key="other")


@bug("bytes_intact")
def an_effect_saw_another_number(history: History, rng: Random) -> None:
    index = rng.randrange(len(history.effects))
    history.effects[index] = history.effects[index]._replace(number=10**6)


@bug("poison")
def a_poison_message_is_in_a_log(history: History, rng: Random) -> None:
    history.copies.append(copy_of(pick(history, rng, rng.choice(("ok", "unknown")), poison=True)))
    history.in_flight += 1


@bug("poison")
def a_poison_message_takes_effect(history: History, rng: Random) -> None:
    history.effects += effects_of(pick(history, rng, poison=True))


@bug("poison")
def a_poison_message_is_nowhere(history: History, rng: Random) -> None:
    put = pick(history, rng, poison=True)
    without(history, put, "deaths")
    history.left.remove(put.id)


@bug("poison")
def a_poison_message_is_dead_twice(history: History, rng: Random) -> None:
    history.deaths.append(rng.choice(history.deaths))


@bug("wrongly_dead")
def a_good_message_is_dead(history: History, rng: Random) -> None:
    put = seen(history, rng, rng.choice(("ok", "unknown")))
    without(history, put, "copies", "effects")
    history.deaths.append(Death(put.id, "an outage"))


@bug("nothing_gone_early")
def a_message_is_settled_before_it_is_stored(history: History, rng: Random) -> None:
    put = pick(history, rng)
    history.audits = [
        Audit(audit.at, audit.left - {put.id}, audit.stored - {put.id}) if audit.at > put.ended else audit for audit in history.audits
    ]


@bug("nothing_gone_early")
def a_poison_message_is_away_for_a_moment(history: History, rng: Random) -> None:
    put = pick(history, rng, poison=True)
    last = max(history.audits)
    history.audits[history.audits.index(last)] = last._replace(left=last.left - {put.id})


@bug("no_change_after_lost_claim")
def a_session_settles_after_its_end(history: History, rng: Random) -> None:
    settled = rng.choice(history.settled)
    history.ended.append(Ended(settled.at - 0.01, settled.session))


@bug("drained")
def a_message_stays_in_the_outbox(history: History, rng: Random) -> None:
    put = seen(history, rng, rng.choice(("ok", "unknown")))
    without(history, put, "copies", "effects")
    history.left.append(put.id)


@bug("drained")
def a_poison_message_stays_in_the_outbox(history: History, rng: Random) -> None:
    without(history, pick(history, rng, poison=True), "deaths")


@bug("drained")
def a_published_message_is_never_settled(history: History, rng: Random) -> None:
    history.left.append(seen(history, rng).id)


@bug("no_restart")
def a_daemon_was_started_again(history: History, rng: Random) -> None:
    history.restarts += rng.randrange(1, 3)


@bug("bounded")
def something_leaks(history: History, rng: Random) -> None:
    what = rng.choice(sorted(GROWTH))
    step = 4 * GROWTH[what] / len(history.samples)
    history.samples = [sample._replace(**{what: getattr(sample, what) + int(step * index)}) for index, sample in enumerate(history.samples)]


@bug("no_hang")
def a_process_does_not_end(history: History, rng: Random) -> None:
    index = rng.randrange(len(history.exits))
    history.exits[index] = history.exits[index]._replace(code=None)


@bug("no_hang")
def a_process_does_not_end_well(history: History, rng: Random) -> None:
    index = rng.randrange(len(history.exits))
    history.exits[index] = history.exits[index]._replace(code=rng.choice((1, -6)))


@bug("duplicates_bounded")
def a_message_is_sent_again_and_again(history: History, rng: Random) -> None:
    history.copies += [rng.choice(history.copies)] * (IN_FLIGHT * (len(history.faults) + 1) + 1)


@bug("truth")
def a_daemon_says_that_it_is_ready(history: History, rng: Random) -> None:
    history.probes.append(Probe(2000, "pump-1", "readyz", 1, 0))


@bug("truth")
def a_gauge_is_off(history: History, rng: Random) -> None:
    history.probes.append(Probe(2000, "pump-1", "outbox_backlog_messages", rng.choice((94.0, 106.0, float("nan"), float("inf"))), 100, 5))


@bug("no_secret")
def a_log_has_a_secret(history: History, rng: Random) -> None:
    name = rng.choice(sorted(history.logs))
    history.logs = {**history.logs, name: f"{history.logs[name]}connecting with {rng.choice(SECRETS)}@db\ngoodbye\n"}


@bug("no_secret")
def a_log_has_a_payload_though_no_secret_was_named(history: History, rng: Random) -> None:
    history.secrets = ()
    history.logs = {"pump-1": f"cannot publish {MARK}"}


NAMES = [bug.build.__name__ for bug in BUGS]


def broken(history: History) -> set[str]:
    return {violation.invariant for violation in check(history)}


def first_of(history: History, invariant: str) -> Violation:
    return next(violation for violation in check(history) if violation.invariant == invariant)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_good_run_has_no_violation(seed: int) -> None:
    assert check(good(seed)) == []


def test_the_good_runs_have_all_that_is_allowed() -> None:
    """Else the test above would prove little."""
    runs = [good(seed) for seed in SEEDS]
    assert any(len(run.copies) > len({copy.id for copy in run.copies}) for run in runs)
    copied = [{copy.id for copy in run.copies} for run in runs]
    assert any(put.outcome == "unknown" and put.id in ids for run, ids in zip(runs, copied, strict=True) for put in run.puts)
    assert any(put.outcome == "unknown" and put.id not in ids for run, ids in zip(runs, copied, strict=True) for put in run.puts)
    assert any(put.key is not None and not put.number for run in runs for put in run.puts)
    assert any(put.id in audit.left and not put.poison for run in runs for audit in run.audits for put in run.puts)


def test_every_invariant_has_a_bug_that_it_catches() -> None:
    assert set(INVARIANTS) == {bug.invariant for bug in BUGS}


@pytest.mark.parametrize("bug", BUGS, ids=NAMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_bug_is_reported_by_its_invariant_alone(bug: Bug, seed: int) -> None:
    assert broken(bug.into(good(seed), seed)) == {bug.invariant, *bug.follows}


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(30, 150), chosen=st.integers(0, len(BUGS) - 1), at=st.integers(0, 2**32))
def test_any_bug_is_caught_in_any_run(seed: int, size: int, chosen: int, at: int) -> None:
    history = good(seed, size)
    assert check(history) == []
    assert BUGS[chosen].invariant in broken(BUGS[chosen].into(history, at))


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), bug=st.sampled_from([None, *BUGS]))
def test_the_order_in_which_a_history_was_collected_is_of_no_account(seed: int, bug: Bug | None) -> None:
    """Several processes write it down; order is in places and times alone."""
    history = bug.into(good(seed), seed) if bug else good(seed)
    mixed = replace(history, **_copied(history))
    lists: list[list[Any]] = [value for value in vars(mixed).values() if isinstance(value, list)]
    for items in lists:
        Random(seed + 1).shuffle(items)
    assert broken(mixed) == broken(history)


def test_violations_carry_the_name_of_their_invariant() -> None:
    for bug in BUGS:
        assert all(violation.invariant == bug.invariant for violation in INVARIANTS[bug.invariant](bug.into(good(1), 1)))


def test_of_many_violations_the_first_are_told_and_the_others_counted() -> None:
    history = good(1)
    history.effects = []
    found = [violation for violation in check(history) if violation.invariant == "one_effect"]
    everything = list(INVARIANTS["one_effect"](history))
    assert len(everything) > MOST
    assert found == [*everything[:MOST], Violation("one_effect", f"and {len(everything) - MOST} more")]


# What is allowed, and looks like a bug.


def put(which: int, outcome: Any = "ok", **others: Any) -> Put:
    return Put(float(which), UUID(int=which), "t", "k", which, "d", outcome, ended=which + 0.5)._replace(**others)


def run(*puts: Put, copies: str = "", **others: Any) -> History:
    """A run with copies of these ids in this order, each of which took effect once, in the order of the first copies."""
    by_id = {put.id.int: put for put in puts}
    sent = [by_id[int(id_)] for id_ in copies.split()]
    history = History("in-process", 7, list(puts), in_flight=1)
    history.copies = [Copy("log", place, put.id, put.key, put.digest) for place, put in enumerate(sent)]
    history.effects = [Effect(place, "bills", put.id, put.key, put.number) for place, put in enumerate(dict.fromkeys(sent))]
    return replace(history, **others)


def test_a_gap_in_a_key_is_not_disorder() -> None:
    """What is lost is lost; what is behind it came in order."""
    assert broken(run(put(1), put(2), put(3), copies="1 3")) == {"loss"}


def test_two_messages_of_a_key_with_one_number_have_no_order() -> None:
    assert broken(run(put(1), put(2, number=1), copies="1 2")) == {"key_order", "effect_order"}


def test_a_late_duplicate_may_follow_newer_messages() -> None:
    assert broken(run(put(1), put(2), copies="1 2 1")) == set()


def test_a_number_that_was_drawn_again_after_a_rollback_is_in_order() -> None:
    assert broken(run(put(1, "failed"), put(2, number=1), put(3, number=2), copies="2 3")) == set()


def test_scheduled_messages_keep_no_order() -> None:
    assert broken(run(put(1, number=0), put(2, number=0), put(3), copies="3 2 1")) == set()


def test_a_message_that_was_put_again_after_a_cut_off_commit_counts_by_its_better_outcome() -> None:
    for outcome in ("failed", "unknown"):
        assert broken(run(put(1, outcome), put(1), copies="1 1")) == set()
        assert broken(run(put(1), put(1, outcome), copies="")) == {"loss"}


def test_a_cut_off_commit_may_have_come_to_nothing() -> None:
    assert broken(run(put(1, "unknown"), put(2), copies="2")) == set()
    assert broken(run(put(1, "unknown", poison=True), put(2), copies="2")) == set()


def test_what_is_left_is_not_lost_as_well() -> None:
    assert broken(run(put(1), put(2), copies="1", left=[UUID(int=2)])) == {"drained"}


def test_what_took_effect_and_is_left_without_a_copy_is_lost_too() -> None:
    """An effect of what no broker ever had."""
    assert broken(run(put(1), copies="1", left=[UUID(int=1)])) == {"drained"}
    assert broken(replace(run(put(1), copies="1", left=[UUID(int=1)]), copies=[])) == {"drained", "loss"}


def test_what_is_behind_poison_goes_on() -> None:
    behind = run(put(1), put(2, poison=True), put(3), copies="1 3", deaths=[Death(UUID(int=2), "too large")], left=[UUID(int=2)])
    assert broken(behind) == set()
    assert broken(replace(behind, copies=behind.copies[:1], effects=behind.effects[:1])) == {"loss"}


def test_what_no_handler_takes_is_published_and_dead_at_the_consumer_without_an_effect() -> None:
    both = run(put(1), put(2, flawed=True), copies="1 2", deaths=[Death(UUID(int=2), "consumer")])
    handled = replace(both, effects=[effect for effect in both.effects if effect.id == UUID(int=1)])
    assert broken(handled) == set()
    assert broken(both) == {"one_effect"}
    assert broken(replace(handled, deaths=[])) == {"wrongly_dead"}
    assert broken(replace(handled, copies=both.copies[:1])) == {"loss"}


def test_what_a_killed_consumer_had_not_acknowledged_may_take_effect_behind_newer_ones() -> None:
    swapped = run(put(1), put(2), copies="1 2")
    one, other = swapped.effects
    swapped.effects = [one._replace(place=other.place), other._replace(place=one.place)]
    assert broken(swapped) == {"effect_order"}
    assert broken(replace(swapped, consumer_hit=True)) == set()


def test_a_look_says_nothing_of_what_was_not_yet_committed() -> None:
    looked = Audit(1.5, frozenset(), frozenset())
    assert broken(run(put(1), put(2), copies="1 2", audits=[looked])) == set()
    assert broken(run(put(1), put(2), copies="1 2", audits=[looked._replace(at=1.51)])) == {"nothing_gone_early"}


def test_a_session_may_settle_until_its_end() -> None:
    ids = frozenset({UUID(int=1)})
    assert broken(run(put(1), copies="1", settled=[Settled(5, "s", ids), Settled(9, "other", ids)], ended=[Ended(5, "s")])) == set()


def test_a_session_is_over_when_that_is_first_known() -> None:
    settled = [Settled(5, "s", frozenset({UUID(int=1)}))]
    for ended in ([Ended(4, "s"), Ended(6, "s")], [Ended(6, "s"), Ended(4, "s")]):
        assert broken(run(put(1), copies="1", settled=settled, ended=ended)) == {"no_change_after_lost_claim"}


def test_a_consumer_that_had_no_effect_is_known_by_its_name_alone() -> None:
    history = run(put(1), copies="1")
    assert broken(replace(history, effects=[])) == set()
    assert broken(replace(history, effects=[], consumers=("bills",))) == {"one_effect"}


def test_duplicates_may_be_as_many_as_were_in_flight_at_each_fault_and_at_the_end() -> None:
    faults = [Fault("kill", 1, 2), Fault("kill", 3, 4)]
    assert broken(run(put(1), copies="1 1 1 1", faults=faults)) == set()
    assert broken(run(put(1), copies="1 1 1 1 1", faults=faults)) == {"duplicates_bounded"}


def test_what_is_infinite_is_told_truly_as_infinite() -> None:
    assert broken(run(probes=[Probe(1, "pump-1", "age", float("inf"), float("inf"))])) == set()


def samples(*memory: int) -> list[Sample]:
    return [Sample(10.0 * at, "pump-1", mib * 2**20, 9, 9, 3) for at, mib in enumerate(memory)]


def test_a_process_may_warm_up_and_swell_under_a_fault() -> None:
    warm = [20, 120, *[150] * 8]
    assert broken(run(samples=samples(*warm))) == set()
    assert broken(run(samples=samples(*warm, 900), faults=[Fault("freeze", 95, 98)])) == set(), "not calm yet"
    assert broken(run(samples=samples(*warm, *[900] * 9), faults=[Fault("freeze", 95, 98)], recovery={"freeze": 100})) == set()
    assert broken(run(samples=samples(*warm, *[900] * 9), faults=[Fault("freeze", 95, 98)])) == {"bounded"}


def test_one_high_sample_is_no_growth_and_few_samples_say_nothing() -> None:
    assert broken(run(samples=samples(*[100] * 12, 900))) == set()
    assert broken(run(samples=samples(*range(0, 100 * FEWEST_SAMPLES, 100)))) == set()


def test_each_process_is_compared_with_itself() -> None:
    small = [sample._replace(process="pump-2", at=sample.at - 500) for sample in samples(*[10] * 15)]
    assert broken(run(samples=[*small, *samples(*[500] * 15)])) == set()


def test_a_secret_is_told_by_its_file_and_line() -> None:
    history = run(logs={"pump-1": "a\nb\nx secret y secret\n\nsecret", "other": "fine"}, secrets=("secret", ""))
    assert [violation.text for violation in check(history)] == ["pump-1:3 has a ***", "pump-1:5 has a ***"]


# The report.


@pytest.mark.parametrize("bug", BUGS, ids=NAMES)
def test_a_report_says_how_to_run_it_again_and_has_the_messages_and_no_secret(bug: Bug) -> None:
    history = bug.into(good(3), 3)
    for violation in check(history):
        report = told(history, violation)
        assert AGAIN.format(seed=3, sink="kafka") in report
        assert all(f"The way of {id_}" in report for id_ in violation.ids[:MOST])
        assert not any(secret in report for secret in SECRETS)


@pytest.mark.parametrize("bug", BUGS, ids=NAMES)
def test_the_smallest_history_is_small_and_still_shows_it(bug: Bug) -> None:
    history = bug.into(good(3), 3)
    violation = first_of(history, bug.invariant)
    small = smallest(history, violation)
    assert bug.invariant in broken(small)
    assert len(small.puts) <= (0 if not violation.ids else 2)
    assert len(small.audits) + len(small.settled) + len(small.ended) + len(small.probes) + len(small.exits) + len(small.logs) <= 2
    assert len(small.samples) <= (15 if bug.invariant == "bounded" else 0)


def test_a_consumer_is_missed_in_the_smallest_history_though_nothing_there_names_it() -> None:
    history = replace(good(3), consumers=())
    history.effects.remove(next(effect for effect in history.effects if effect.consumer == "ships"))
    assert len(smallest(history, first_of(history, "one_effect")).puts) == 1


def test_the_smallest_history_of_what_is_not_violated_is_all_of_it() -> None:
    history = good(1)
    assert smallest(history, Violation("loss", "not so")) is history


def test_a_report_stays_short_where_no_history_is_small() -> None:
    history = run(put(1), copies="1 " * 3000, in_flight=1000)
    report = told(history, first_of(history, "duplicates_bounded"))
    assert len(report.splitlines()) < 100
    assert "and 2980 more" in report


def test_a_report_has_the_whole_way_of_a_message_by_time() -> None:
    one, two = UUID(int=1), UUID(int=2)
    history = run(
        put(1, key="k"), put(2), copies="1 2 1",
        settled=[Settled(4, "s1", frozenset({one})), Settled(4.1, "s2", frozenset({two}))],
        ended=[Ended(3.5, "s1"), Ended(3.6, "s2")],
        audits=[Audit(3, frozenset({one, two}), frozenset({one})), Audit(3.2, frozenset({one, two}), frozenset({one}))],
        faults=[Fault("before", 0, 0.5), Fault("freeze", 2, 3.7), Fault("much later", 900, 901)],
        deaths=[Death(one, "why")],
        left=[one],
    )  # fmt: skip
    history.copies[0] = history.copies[0]._replace(at=2.9)
    report = told(history, first_of(history, "no_change_after_lost_claim"))
    way = report.partition(f"The way of {one}:\n")[2].partition("\n\n")[0]
    assert [line.strip() for line in way.splitlines()] == [
        "+0.000 s  put: topic t, key k, number 1, digest d",
        "+0.500 s  its transaction: ok",
        "+1.000 s  fault: freeze",
        "+1.900 s  copy in log at 0: key k, digest d",
        "+2.000 s  seen: in the outbox, in the broker",
        "+2.500 s  the session s1 was over",
        "+2.700 s  healed: freeze",
        "+3.000 s  out of the outbox's queue, by the session s1",
        "copy in log at 2: key k, digest d",
        "effect in bills at 0: key k, number 1",
        "dead: why",
        "in the outbox at the end",
    ]


def test_no_secret_is_printed_from_wherever_it_came() -> None:
    """Also where ``repr`` would write it with escapes, and where one secret is the beginning of another."""
    for secret in SECRETS:
        one = put(1, topic=secret, key=secret)
        history = History(
            sink="kafka", seed=1, puts=[one], secrets=SECRETS, in_flight=1,
            copies=[Copy(secret, 0, one.id, secret, secret)],
            effects=[Effect(0, secret, one.id, secret, 1), Effect(1, secret, one.id, secret, 1)],
            deaths=[Death(one.id, f"refused {secret}")],
            settled=[Settled(5, secret, frozenset({one.id}))],
            ended=[Ended(4, secret)],
            samples=[sample._replace(process=secret) for sample in samples(*range(0, 1000, 50))],
            faults=[Fault(secret, 2, 3)],
            probes=[Probe(5, secret, secret, 1, 0)],
            exits=[Exit(secret, None, 5)],
            logs={secret: f"a {secret}"},
        )  # fmt: skip
        found = check(history)
        assert len({violation.invariant for violation in found}) > 6
        for violation in found:
            for text in (repr(violation), told(history, violation)):
                assert not any(form in text for form in (*SECRETS, "zebra"))
