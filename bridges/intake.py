"""What a source has received and not finished: lent out in order, each key to one reader at a time. Pure; its clock is given.

A message that must wait holds back its own key: what is behind it, and what arrives later, is lent after it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Loan(Generic[T]):
    """One thing that was received, and where it is.

    Attributes:
        item: what was received.
        key: keeps its order; None has none.
        number: its place in the order of arrival.
        failures: how often it was given back as failed.
        due: the time before which it is not lent.
        reader: who has it.
    """

    item: T
    key: str | None
    number: int
    failures: int = 0
    due: float = 0.0
    reader: object | None = None


class Intake(Generic[T]):
    """A queue by arrival. ``reader`` is whatever tells one borrower from another."""

    def __init__(self) -> None:
        self._numbers = count()
        self._waiting: list[tuple[int, Loan[T]]] = []
        self._lent: dict[Loan[T], None] = {}
        self._holders: dict[str, tuple[object, int]] = {}
        self._due: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Loan[T]]:
        """Go over everything that is not finished."""
        yield from self._lent
        yield from (loan for _, loan in self._waiting)

    def add(self, item: T, key: str | None) -> Loan[T]:
        """Take in something that arrived."""
        loan = Loan(item, key, next(self._numbers))
        heapq.heappush(self._waiting, (loan.number, loan))
        return loan

    def lend(self, reader: object, limit: int, now: float) -> list[Loan[T]]:
        """Lend up to ``limit`` in the order of arrival, but nothing that waits, and nothing of a key that another reader has."""
        taken: list[Loan[T]] = []
        passed: list[tuple[int, Loan[T]]] = []
        while self._waiting and len(taken) < limit:
            entry = heapq.heappop(self._waiting)
            loan = entry[1]
            if self._may_go(loan, reader, now):
                self._take_out(loan, reader)
                taken.append(loan)
            else:
                passed.append(entry)
        for entry in passed:
            heapq.heappush(self._waiting, entry)
        return taken

    def end(self, loan: Loan[T]) -> None:
        """It is finished. Any number of times."""
        if loan in self._lent:
            self._take_in(loan)

    def give_back(self, loan: Loan[T], *, due: float = 0.0, failed: bool = False) -> None:
        """Put it back to its place, not to be lent before ``due``, nor anything behind it in its key. Nothing if it is not lent."""
        if loan not in self._lent:
            return
        self._take_in(loan)
        loan.failures += failed
        if loan.key is None:
            loan.due = due
        elif due:
            self._due[loan.key] = due
        heapq.heappush(self._waiting, (loan.number, loan))

    def leave(self, reader: object) -> None:
        """Give back all that a reader has."""
        for loan in [loan for loan in self._lent if loan.reader is reader]:
            self.give_back(loan)

    def forget(self, loan: Loan[T]) -> None:
        """Drop something, lent or not."""
        self.end(loan)
        self._waiting = [entry for entry in self._waiting if entry[1] is not loan]
        heapq.heapify(self._waiting)
        if loan.key is not None and all(other.key != loan.key for _, other in self._waiting):
            self._due.pop(loan.key, None)

    def due_in(self, now: float) -> float | None:
        """Return the seconds until something that waits for a time may be lent; None if nothing does."""
        times = [*self._due.values(), *(loan.due for _, loan in self._waiting if loan.key is None and loan.due > now)]
        return max(0.0, min(times) - now) if times else None

    def _may_go(self, loan: Loan[T], reader: object, now: float) -> bool:
        if loan.key is None:
            return loan.due <= now
        if self._due.get(loan.key, now) > now:
            return False
        holder = self._holders.get(loan.key)
        return holder is None or holder[0] is reader

    def _take_out(self, loan: Loan[T], reader: object) -> None:
        loan.reader = reader
        self._lent[loan] = None
        if loan.key is not None:
            self._due.pop(loan.key, None)
            self._holders[loan.key] = reader, self._holders.get(loan.key, (reader, 0))[1] + 1

    def _take_in(self, loan: Loan[T]) -> None:
        del self._lent[loan]
        loan.reader = None
        if loan.key is not None:
            reader, number = self._holders.pop(loan.key)
            if number > 1:
                self._holders[loan.key] = reader, number - 1
