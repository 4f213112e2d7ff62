"""The table of a suite's runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

from tests.faults.__main__ import unjudged
from tests.faults.checker import Violation
from tests.faults.history import Fault, History, Put, Sample
from tests.faults.report import KEPT, NOT_RUN, Line, as_matrix, as_text, lines, read, write

if TYPE_CHECKING:
    from pathlib import Path

ABOUT = {"outboxd": "1.2", "seconds": "600"}


def test_reports_of_several_sinks_make_one_table(tmp_path: Path) -> None:
    write(
        [
            Line("kill pump", "kafka", 7, 1000, 3, 1.25, KEPT),
            Line("freeze kafka", "kafka", 2, 1000, 3, None, KEPT),
            Line("cut", "kafka", 0, 1000, 3, None, NOT_RUN),
        ],
        ABOUT,
        tmp_path / "a",
    )
    write([Line("kill pump", "jetstream", 5, 2000, 0, 0.5, "no loss, key order")], ABOUT, tmp_path / "b")
    table = as_matrix([read(tmp_path / name / "faults.json") for name in "ab"])
    assert table.splitlines() == [
        "outboxd 1.2; seconds 600.",
        "",
        "- jetstream: 5 faults among 2,000 messages, 0 duplicates, no loss, key order",
        "- kafka: 9 faults among 1,000 messages, 3 duplicates, every promise kept",
        "",
        "| fault | jetstream | kafka |",
        "| --- | --- | --- |",
        "| cut |  | 0 |",
        "| freeze kafka |  | 2 |",
        "| kill pump | 5, 0.5 s, no loss, key order | 7, 1.2 s |",
    ]


def test_a_faults_recovery_is_the_median_of_those_that_came_to_it_and_the_others_are_counted() -> None:
    first = History("kafka", 1, faults=[Fault("kill pump", 1, 2, recovery=seconds) for seconds in (0.2, 9.0, float("inf"))])
    second = History("kafka", 2, faults=[Fault("kill pump", 1, 2, recovery=0.4), Fault("SIGTERM twice", 3, 4)])
    kill, term = lines([(first, []), (second, [])])
    assert (kill.runs, kill.recovery, kill.unrecovered) == (4, 0.4, 1)
    assert (term.runs, term.recovery, term.unrecovered) == (1, None, 1)
    assert "0.4 s, 1 not seen" in as_text([kill])


def test_what_a_mixture_did_not_come_to_is_told_and_a_fault_has_the_messages_of_all_runs() -> None:
    runs = [
        History("kafka", seed, puts=[Put(1, UUID(int=seed), "t", None, 0, "d", "ok")], faults=[Fault(name, 1, 2)], nemeses=("a", "b", "c"))
        for seed, name in ((1, "a"), (2, "b"))
    ]
    broken = [Violation("loss", "is gone")]
    assert [(line.fault, line.runs, line.messages, line.verdict) for line in lines(list(zip(runs, ([], broken), strict=True)))] == [
        ("a", 1, 2, KEPT),
        ("b", 1, 2, "loss"),
        ("c", 0, 2, NOT_RUN),
    ]


def test_what_a_run_could_not_judge_is_told() -> None:
    few = [Sample(float(at), "pump-1", 1, 1, 1, 1) for at in range(10)]
    enough = [sample._replace(process="all") for sample in few for _ in range(2)]
    history = History("kafka", 1, samples=[*few, *enough], nemeses=("kill pump",))
    assert unjudged(history) == "; too few quiet samples to judge what these use: pump-1; not come to: kill pump"
    shaken = replace(history, faults=[Fault("kill pump", 0, 0, recovery=float("inf"))], consumer_hit=True)
    assert unjudged(shaken) == (
        "; too few quiet samples to judge what these use: all, pump-1; the order of effects was not judged, since the consumer was hit"
    )
