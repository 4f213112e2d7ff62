"""What becomes of each claimed row, decided from its outcome. Pure: `outbox.source` carries it out.

Everything here keeps two sentences: a row goes nowhere before an earlier row of its key, and all rows of a key that are held are in one
hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from bridges.errors import storable
from bridges.ports import Outcome, Published, Reason, Rejected, Released, Retry
from outbox.rows import SAME_FOR_ALL, Policy, Surroundings, destination_of, hold_of_destination, hold_of_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from bridges.backoff import Backoff
    from outbox.rows import Row, Table

_GIVEN_UP: Final = {
    "expired": (Reason.EXPIRED, "expires_at passed before it could be sent"),
    "oversized": (Reason.TOO_LARGE, "the payload is over the limit of the outbox (outboxd migrate --max-payload)"),
}


class Dead(NamedTuple):
    """A row to be given up; ``ordered`` if it kept its key's order."""

    position: int
    reason: str
    attempts: int
    error: str
    ordered: bool = True


class Deferred(NamedTuple):
    """A row to wait: ``seconds`` from now, or until its ``deliver_at`` if None."""

    position: int
    seconds: float | None
    attempts: int
    error: str | None


class Held(NamedTuple):
    """A row to wait in a hold; ``ordered`` if it keeps its key's order there."""

    position: int
    hold: str
    ordered: bool = True


class Hold(NamedTuple):
    """A hold as it is to be.

    Attributes:
        hold: its name.
        head: the position of the row that has failed ``attempts`` times; None if none has.
        lane: the lane of its rows.
        seconds: from now until it is due; None: an operator decides.
        attempts: of the head.
        error: of the head, or of the destination.
        destination: the one that its rows wait for; None for the hold of a key.
    """

    hold: str
    head: int | None
    lane: int
    seconds: float | None
    attempts: int
    error: str | None
    destination: str | None = None


class Postponed(NamedTuple):
    """The hold of a key whose first row has to wait for its destination: only the time moves, and the head keeps its attempts."""

    hold: str
    seconds: float
    error: str | None


class Archived(NamedTuple):
    """A row to be kept."""

    position: int
    destination: str
    keep: timedelta


class Rehold(NamedTuple):
    """All rows of a key, from one hold to another."""

    key: str
    before: str
    after: str


@dataclass(slots=True)
class Settlement:
    """Where the rows of one claim go. Rows that are in none of these stay where they are."""

    policy: Callable[[str], Policy] = lambda _: SAME_FOR_ALL
    around: Surroundings = field(default_factory=Surroundings)
    published: dict[Table, list[int]] = field(default_factory=lambda: {"messages": [], "deferred": [], "held": []})
    archived: list[Archived] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)
    deferred: list[Deferred] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    reheld: list[Rehold] = field(default_factory=list)
    holds: dict[str, Hold] = field(default_factory=dict)
    advanced: set[str] = field(default_factory=set)
    """Holds of which something has left."""
    postponed: dict[str, Postponed] = field(default_factory=dict)
    stay: set[int] = field(default_factory=set)
    """Positions of the rows that stay in the FIFO."""
    _waits: dict[str, str | None] = field(default_factory=dict, compare=False)
    """Keys of which a row waits: what is behind it joins that hold, or stays where it is."""

    @property
    def changes_something(self) -> bool:
        """Whether any row goes anywhere."""
        return bool(
            any(self.published.values()) or self.archived or self.dead or self.deferred or self.held or self.holds or self.postponed
        )

    def set_aside(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Decide about the rows that are not to be sent now, and return those that are."""
        around = self.around
        if not (around.away or around.holds) and all(row.aside is None and (row.hold is None or row.table == "held") for row in rows):
            return rows
        to_send: list[Row] = []
        sending: set[str] = set()
        for row in rows:
            key = self._key_of(row)
            if row.aside == "early":
                self.deferred.append(Deferred(row.position, None, 0, None))
            elif key is not None and key in self._waits:
                self._wait_behind(row, self._waits[key])
            elif row.aside is not None:
                self._set_unsendable_aside(row, *_GIVEN_UP[row.aside], behind=key in sending)
            elif key is not None and self._joins(row):
                self._wait_behind(row, row.hold)
            elif key not in sending and (destination := self._waited_for(row)):
                self._wait_for(row, destination, None)
            else:
                to_send.append(row)
                if key is not None:
                    sending.add(key)
        return to_send

    def decide(self, rows: Sequence[Row], outcomes: Sequence[Outcome], retry: Backoff) -> None:
        """Decide about the rows that were sent, by their outcomes."""
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, Published):  # first, since it is nearly every one
                self._let_go(row)
                continue
            key = self._key_of(row)
            match outcome:
                case _ if key is not None and key in self._waits:
                    # Whatever it is, an earlier row of its key waits: it is this one's turn when that one has gone.
                    self._wait_behind(row, self._waits[key])
                case Rejected(reason=reason, detail=detail):
                    self._give_up(row, reason, row.attempts + 1, detail)
                case Retry():
                    self._try_again(row, outcome, retry)
                case Released():
                    self._leave(row, outcome)

    def _key_of(self, row: Row) -> str | None:
        """Return the key whose order the row keeps, if it keeps one."""
        key = row.message.key
        return key if key is not None and self.policy(row.message.topic).ordered else None

    # --- before sending

    def _joins(self, row: Row) -> bool:
        """Say whether its key has a hold, of which there is more than was claimed: the row goes behind that."""
        return row.table != "held" and row.hold is not None and row.hold not in self.around.whole

    def _waited_for(self, row: Row) -> str | None:
        """Return the row's destination if it is away, or has a queue, of which there is more than was claimed."""
        destination = self.policy(row.message.topic).destination
        if destination is None:
            return None
        hold = hold_of_destination(destination, row.lane)
        has_queue = row.table != "held" and hold in self.around.holds and hold not in self.around.whole
        return destination if has_queue or destination in self.around.away else None

    def _hold_for(self, destination: str, row: Row, error: str | None) -> Hold:
        return Hold(hold_of_destination(destination, row.lane), None, row.lane, 0.0, 0, error, destination)

    def _wait_for(self, row: Row, destination: str, error: str | None) -> None:
        """Let a row wait for a destination that is away: in its queue, unless it has one already that it must not leave."""
        seconds = self.around.away.get(destination, 0.0)
        key = self._key_of(row)
        into: str | None
        if row.table == "held":
            into = self._wait_held(row, destination, seconds, error)
        elif row.table == "deferred" and (row.attempts or destination in self.around.full):
            into = None
            self.deferred.append(Deferred(row.position, max(seconds, 0.1), row.attempts, error))
        elif destination in self.around.full:
            into = None
            self._stay(row)
        else:
            hold = self._hold_for(destination, row, error)
            into = hold.hold
            self._put_into(row, into)
            self.holds.setdefault(into, hold)
        if key is not None:
            self._waits.setdefault(key, into)

    def _wait_held(self, row: Row, destination: str, seconds: float, error: str | None) -> str | None:
        """Let a row that is in some hold wait for a destination, and return the hold in which it then is."""
        own = self._hold_for(destination, row, error)
        key = self._key_of(row)
        if row.hold is None or row.hold == own.hold:
            return row.hold
        if key is not None and row.hold == hold_of_key(key):
            if row.hold not in self.holds:
                self.postponed[row.hold] = Postponed(row.hold, max(seconds, 0.1), error)
                self.advanced.discard(row.hold)
            return row.hold
        # It was behind another row of its key, which has gone: now it waits for its own destination, and its key behind it.
        self._advance(row)
        self.holds.setdefault(own.hold, own)
        self._put_into(row, own.hold)
        if key is not None:
            self.reheld.append(Rehold(key, row.hold, own.hold))
        return own.hold

    def _set_unsendable_aside(self, row: Row, reason: Reason, error: str, *, behind: bool) -> None:
        if behind and self.policy(row.message.topic).holds_after_dead:
            # What is ahead of it must be settled before its key can wait for an operator; and nothing may pass it.
            self._stay(row)
            if (key := self._key_of(row)) is not None:
                self._waits[key] = row.hold if row.table == "held" else None
        else:
            self._give_up(row, reason, row.attempts, error)

    # --- after sending

    def _let_go(self, row: Row) -> None:
        policy = self.policy(row.message.topic)
        if policy.keep is None:
            self.published[row.table].append(row.position)
        else:
            self.archived.append(Archived(row.position, policy.sink, policy.keep))
        if row.table == "held":
            self._advance(row)

    def _try_again(self, row: Row, outcome: Retry, retry: Backoff) -> None:
        attempts = row.attempts + 1
        error = storable(f"{outcome.reason}: {outcome.detail}")
        if retry.exhausted(attempts):
            self._give_up(row, Reason.ATTEMPTS, attempts, error)
            return
        seconds = outcome.after if outcome.after is not None else retry.delay(attempts)
        if self._key_of(row) is None:
            self.deferred.append(Deferred(row.position, seconds, attempts, error))
            self._advance(row)
        else:
            self._hold_key(row, seconds, attempts, error)

    def _hold_key(self, row: Row, seconds: float | None, attempts: int, error: str, *, with_row: bool = True) -> None:
        """Let the row's key wait: with the row as its head, or behind its dead letter."""
        key = row.message.key
        assert key is not None
        hold = hold_of_key(key)
        if row.table != "held":
            if row.hold is not None and row.hold != hold:  # its key was in another hold, which was claimed whole
                self.reheld.append(Rehold(key, row.hold, hold))
            if with_row:
                self._put_into(row, hold)
        elif row.hold is not None and row.hold != hold:
            self.reheld.append(Rehold(key, row.hold, hold))
            self._advance(row)
        self.holds[hold] = Hold(hold, row.position, row.lane, seconds, attempts, error)
        self.postponed.pop(hold, None)
        self.advanced.discard(hold)
        self._waits[key] = hold

    def _leave(self, row: Row, outcome: Released) -> None:
        if outcome.destination is not None:
            self._wait_for(row, outcome.destination, storable(f"{outcome.reason}: {outcome.detail}"))
            return
        self._stay(row)
        if (key := self._key_of(row)) is not None and outcome.reason is not Reason.BEHIND:
            self._waits[key] = row.hold if row.table == "held" else None

    def _wait_behind(self, row: Row, hold: str | None) -> None:
        """Let a row wait behind an earlier one of its key: where that one is, or where it is itself."""
        if row.table == "held":
            return  # its hold goes where its key's first row goes
        if hold is None or destination_of(hold) in self.around.full:
            self._stay(row)
        else:
            self._put_into(row, hold)

    # --- both

    def _put_into(self, row: Row, hold: str) -> None:
        self.held.append(Held(row.position, hold, self.policy(row.message.topic).ordered))

    def _stay(self, row: Row) -> None:
        if row.table == "messages":
            self.stay.add(row.position)

    def _give_up(self, row: Row, reason: Reason, attempts: int, error: str) -> None:
        error = storable(error)
        self.dead.append(Dead(row.position, reason, attempts, error, self.policy(row.message.topic).ordered))
        if self.policy(row.message.topic).holds_after_dead and self._key_of(row) is not None:
            self._hold_key(row, None, 0, f"dead: {reason}: {error}", with_row=False)
        else:
            self._advance(row)

    def _advance(self, row: Row) -> None:
        if row.table == "held" and row.hold is not None and not (row.hold in self.holds or row.hold in self.postponed):
            self.advanced.add(row.hold)
