"""The checker finds nothing in a good run, and each bug that is built into one, by the promise that it breaks."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.bugs import BUGS, Bug, independent
from tests.faults.checker import AGAIN, INVARIANTS, MOST, Violation, check, smallest, told
from tests.faults.histories import SECRETS, good
from tests.faults.history import Audit, Copy, Death, Effect, Exit, Fault, History, Probe, Put, Sample, Settled, Stuck
from tests.faults.invariants import FEWEST_SAMPLES

SEEDS = range(12)


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
    mixed = replace(history, **independent(history))
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
    history.effects = [Effect(place, "bills", put.id, put.key, put.number, put.digest) for place, put in enumerate(dict.fromkeys(sent))]
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


def test_a_row_may_leave_one_queue_after_the_other_by_whoever_owns_its_lane() -> None:
    one, both = frozenset({UUID(int=1)}), frozenset({UUID(int=1), UUID(int=2)})
    settled = [Settled(5, "s", both), Settled(9, "other", one)]
    assert broken(run(put(1), put(2), copies="1 2", settled=settled)) == set()
    settled[1] = Settled(9, "other", one, unowned=one)
    (violation,) = check(run(put(1), put(2), copies="1 2", settled=settled))
    assert (violation.invariant, violation.ids) == ("no_change_after_lost_claim", (UUID(int=1),))


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
    for slow in (100, float("inf")):
        assert broken(run(samples=samples(*warm, *[900] * 9), faults=[Fault("freeze", 95, 98, recovery=slow)])) == set()
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
    assert len(small.audits) + len(small.settled) + len(small.probes) + len(small.exits) + len(small.stuck) + len(small.logs) <= 2
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
        settled=[Settled(4, "s1", frozenset({one}), frozenset({one})), Settled(4.1, "s2", frozenset({two}))],
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
        "+2.700 s  healed: freeze",
        "+3.000 s  out of a queue of the outbox, by the session s1, whose transaction did not own its lane",
        "copy in log at 2: key k, digest d",
        "effect in bills at 0: key k, number 1, digest d",
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
            effects=[Effect(0, secret, one.id, secret, 1, secret), Effect(1, secret, one.id, secret, 1, secret)],
            deaths=[Death(one.id, f"refused {secret}")],
            settled=[Settled(5, secret, frozenset({one.id}), frozenset({one.id}))],
            samples=[sample._replace(process=secret) for sample in samples(*range(0, 1000, 50))],
            faults=[Fault(secret, 2, 3)],
            probes=[Probe(5, secret, secret, 1, 0)],
            exits=[Exit(secret, None, 5)],
            stuck=[Stuck(5, secret, secret)],
            logs={secret: f"a {secret}"},
        )  # fmt: skip
        found = check(history)
        assert len({violation.invariant for violation in found}) > 6
        for violation in found:
            for text in (repr(violation), told(history, violation)):
                assert not any(form in text for form in (*SECRETS, "zebra"))
