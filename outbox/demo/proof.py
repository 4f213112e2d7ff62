"""What is compared at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from rich.table import Table

from outbox.demo import bank

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The demo's result.

    Attributes:
        committed: transfers in pgbench's own history.
        published: of these, how many have left the outbox, which nothing does before its acknowledgement.
        delivered: messages that reached the consumer, copies included.
        duplicates: of these, how many were copies.
        effects: how often the consumer's effect was committed.
        lost: transfers without an effect.
        out_of_order: messages that came, for the first time, after a later one of their account: in the broker's log, or, in process, at
            the consumer.
        balances_match: every account's rebuilt balance equals pgbench's.
        p50_ms: milliseconds from put to effect, the median.
        p99_ms: milliseconds from put to effect, the 99th percentile.
        seconds: the whole demo, engines included.
        engines: names and versions.
    """

    committed: int
    published: int
    delivered: int
    duplicates: int
    effects: int
    lost: int
    out_of_order: int
    balances_match: bool
    p50_ms: float
    p99_ms: float
    seconds: float
    engines: list[str]

    @property
    def holds(self) -> bool:
        """Whether every message had its one effect, in order."""
        return self.lost == 0 and self.out_of_order == 0 and self.balances_match and self.effects == self.committed


def compare(dsn: str, *, seconds: float, engines: list[str], has_log: bool) -> Proof:
    """Read the bank, the outbox, the ledger and the log, and compare them."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(bank.PROOF).fetchone()
        progress = connection.execute(bank.PROGRESS).fetchone()
        late = connection.execute(bank.OUT_OF_ORDER_IN_LOG if has_log else bank.OUT_OF_ORDER_AT_CONSUMER).fetchone()
    assert row is not None
    assert progress is not None
    assert late is not None
    committed, delivered, distinct, effects, distinct_effects, unequal, p50, p99 = row
    return Proof(
        committed=committed,
        published=committed - progress[3],
        delivered=delivered,
        duplicates=delivered - distinct,
        effects=effects,
        lost=committed - distinct_effects,
        out_of_order=late[0],
        balances_match=unequal == 0,
        p50_ms=round(p50 or 0.0, 2),
        p99_ms=round(p99 or 0.0, 2),
        seconds=round(seconds, 1),
        engines=engines,
    )


def print_proof(proof: Proof, exit_codes: list[int], console: Console) -> None:
    """Print the comparison."""
    table = Table(title="the proof", show_header=False)
    table.add_column(justify="right")
    table.add_column()
    for count, meaning in (
        (proof.committed, "transfers committed by pgbench"),
        (proof.published, "messages published and acknowledged"),
        (proof.delivered, f"deliveries to the consumer, {proof.duplicates} of them duplicates"),
        (proof.effects, "effects committed by the consumer"),
        (proof.lost, "lost"),
        (proof.out_of_order, "out of order"),
    ):
        table.add_row(f"{count:,}", meaning)
    table.add_row("yes" if proof.balances_match else "NO", "every rebuilt balance equals pgbench's")
    table.add_row(f"{proof.p50_ms:,.1f} ms", f"from put to effect, median; 99th percentile {proof.p99_ms:,.1f} ms")
    console.print(table)
    if any(exit_codes):
        console.print(f"a daemon did not end well on SIGTERM: exit codes {exit_codes}")
    verdict = "every effect happened once, in order" if proof.holds else "THE PROOF FAILED"
    console.print(f"{verdict}, after {proof.seconds:.1f} s, on {', '.join(proof.engines)}")
