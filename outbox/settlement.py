"""What becomes of each claimed row, decided from its outcome. Pure: `outbox.source` carries it out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from bridges.errors import storable
from bridges.ports import Outcome, Published, Reason, Rejected, Released, Retry

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bridges.backoff import Backoff
    from bridges.message import Message

Table = Literal["messages", "deferred", "held"]
Aside = Literal["early", "expired", "joins"]


class Row(NamedTuple):
    """A claimed row.

    Attributes:
        message: what it holds.
        table: where it was claimed from.
        position: its place in the outbox.
        lane: its key's lane.
        aside: why it is not to be sent now: its ``deliver_at`` is still to come, its ``expires_at`` has passed, or its key has a hold
            that it joins.
        hold: the hold it was claimed from, if any.
        attempts: how often it, or the head of its hold, has failed.
    """

    message: Message
    table: Table
    position: int
    lane: int
    aside: Aside | None = None
    hold: str | None = None
    attempts: int = 0


class Dead(NamedTuple):
    """A row to be given up."""

    position: int
    reason: str
    attempts: int
    error: str


class Deferred(NamedTuple):
    """A row to wait: ``seconds`` from now, or until its ``deliver_at`` if None."""

    position: int
    seconds: float | None
    attempts: int
    error: str | None


class Held(NamedTuple):
    """A hold whose head, by its position, has failed: due again in ``seconds``."""

    hold: str
    head: int
    lane: int
    seconds: float
    attempts: int
    error: str


@dataclass(slots=True)
class Settlement:
    """Where the rows of one claim go. Rows that are in none of these stay where they are."""

    published: dict[Table, list[int]] = field(default_factory=lambda: {"messages": [], "deferred": [], "held": []})
    dead: list[Dead] = field(default_factory=list)
    deferred: list[Deferred] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    holds: dict[str, Held] = field(default_factory=dict)
    advanced: set[str] = field(default_factory=set)
    """Holds whose head has left."""
    stay: set[int] = field(default_factory=set)
    """Positions of the rows that stay in the FIFO."""

    @property
    def changes_something(self) -> bool:
        """Whether any row goes anywhere."""
        return bool(any(self.published.values()) or self.dead or self.deferred or self.held or self.holds)

    def set_aside(self, rows: Iterable[Row]) -> list[Row]:
        """Decide about the rows that are not to be sent now, and return those that are."""
        to_send = []
        for row in rows:
            match row.aside:
                case None:
                    to_send.append(row)
                case "expired":
                    self._give_up(row, Reason.EXPIRED, row.attempts, "expires_at passed before it could be sent")
                case "early":
                    self.deferred.append(Deferred(row.position, None, 0, None))
                case "joins":
                    self.held.append(row.position)
        return to_send

    def decide(self, rows: Sequence[Row], outcomes: Sequence[Outcome], retry: Backoff) -> None:
        """Decide about the rows that were sent, by their outcomes."""
        for row, outcome in zip(rows, outcomes, strict=True):
            match outcome:
                case Published():
                    self.published[row.table].append(row.position)
                    self._advance(row)
                case Rejected(reason=reason, detail=detail):
                    self._give_up(row, reason, row.attempts + 1, detail)
                case Retry():
                    self._try_again(row, outcome, retry)
                case Released():
                    self._leave(row, outcome)

    def _try_again(self, row: Row, outcome: Retry, retry: Backoff) -> None:
        attempts = row.attempts + 1
        error = storable(f"{outcome.reason}: {outcome.detail}")
        if retry.exhausted(attempts):
            self._give_up(row, Reason.ATTEMPTS, attempts, error)
            return
        seconds = outcome.after if outcome.after is not None else retry.delay(attempts)
        if row.message.key is None:
            self.deferred.append(Deferred(row.position, seconds, attempts, error))
            return
        hold = row.hold or f"key:{row.message.key}"
        self.holds[hold] = Held(hold, row.position, row.lane, seconds, attempts, error)
        self.advanced.discard(hold)
        if row.hold is None:
            self.held.append(row.position)

    def _leave(self, row: Row, outcome: Released) -> None:
        # Behind a head that fails, a row joins the head's hold. Behind one that is dead, or that was only released, it stays.
        key = row.message.key
        if outcome.reason is Reason.BEHIND and row.hold is None and key is not None and f"key:{key}" in self.holds:
            self.held.append(row.position)
        elif row.table == "messages":
            self.stay.add(row.position)

    def _give_up(self, row: Row, reason: Reason, attempts: int, error: str) -> None:
        self.dead.append(Dead(row.position, reason, attempts, storable(error)))
        self._advance(row)

    def _advance(self, row: Row) -> None:
        if row.hold is not None:
            self.advanced.add(row.hold)
