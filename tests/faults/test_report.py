"""The table of a suite's runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.report import KEPT, Line, as_matrix, read, write

if TYPE_CHECKING:
    from pathlib import Path

ABOUT = {"outboxd": "1.2", "seconds": "600"}


def test_reports_of_several_sinks_make_one_table(tmp_path: Path) -> None:
    write(
        [Line("kill pump", "kafka", 7, 1000, 3, 1.25, KEPT), Line("freeze kafka", "kafka", 2, 1000, 3, None, KEPT)], ABOUT, tmp_path / "a"
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
        "| freeze kafka |  | 2 |",
        "| kill pump | 5, 0.5 s, no loss, key order | 7, 1.2 s |",
    ]
