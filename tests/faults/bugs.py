"""The bugs that the checker must catch: each is built into a good run, beside the promise that it breaks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tests.faults.histories import CONSUMERS, IN_FLIGHT, SECRETS, log_of
from tests.faults.history import MARK, Audit, Copy, Death, Effect, History, Probe, Put, Settled, Stuck
from tests.faults.invariants import GROWTH

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Bug:
    """A bug that is built into a good run, the promise it breaks, and those which break with it."""

    invariant: str
    build: Callable[[History, Random], None]
    follows: frozenset[str]

    def into(self, history: History, seed: int) -> History:
        """Return the run with it."""
        changed = replace(history, **independent(history))
        self.build(changed, Random(seed))
        return changed


def independent(history: History) -> dict[str, Any]:
    """Return the parts of a history that can be changed, as copies."""
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
    return [Effect(10**9, consumer, put.id, put.key, put.number, put.digest) for consumer in CONSUMERS]


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


@bug("bytes_intact")
def a_handler_got_other_bytes(history: History, rng: Random) -> None:
    index = rng.randrange(len(history.effects))
    history.effects[index] = history.effects[index]._replace(digest="other")


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
def a_row_is_settled_whose_lane_is_another_s(history: History, rng: Random) -> None:
    index = rng.randrange(len(history.settled))
    settled = history.settled[index]
    history.settled[index] = settled._replace(unowned=frozenset(rng.sample(sorted(settled.ids), 1)))


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


@bug("no_hang")
def a_nemesis_waits_in_vain(history: History, rng: Random) -> None:
    history.stuck.append(Stuck(rng.choice(history.faults).began, "kill pump", "pump-1 was not ready within 40 s"))


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
