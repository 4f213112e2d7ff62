"""The floors against a model of writers that draw an xid, then positions, and commit late: no committed row is ever missed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
from hypothesis import HealthCheck, example, find, given, settings
from hypothesis import strategies as st

from outbox import sql
from outbox.floors import BOTTOM, Floors, Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LANES = range(3)
Step: TypeAlias = tuple[str, Any, Any]

KINDS = {"write": 7, "commit": 3, "abort": 1, "claim": 6, "look": 6, "settle": 6, "note": 6, "crash": 1, "whole": 8}
SHARES = [(0,), (1,), (0, 1), (1, 2), (0, 1, 2), (0, 1, 2)]


def history_of(seed: int) -> list[Step]:
    """Return 120 steps: of a random generator, since a history needs many of them in a row to mean anything."""
    chance = random.Random(seed)
    history: list[Step] = []
    for kind in chance.choices(list(KINDS), list(KINDS.values()), k=120):
        share = (chance.choice(SHARES), chance.randint(1, 4))
        what = {"write": chance.choice(LANES), "claim": share, "whole": share}.get(kind)
        history.append((kind, chance.randrange(3), what))
    return history


histories = st.integers(0, 1 << 32).map(history_of)
relaxed = settings(deadline=None, max_examples=3000, suppress_health_check=list(HealthCheck), database=None, derandomize=True)


@dataclass
class Claim:
    xid: int
    lanes: list[int]
    limit: int
    ticket: int
    looked: bool = False
    rows: list[int] = field(default_factory=list)
    seen: Seen | None = None
    committed: bool = False


@dataclass
class Model:
    """The table, its transactions, and two pumps: claims 0 and 1 are of one pump and share its floors, claim 2 is of the other.

    A claim takes its lanes, and with them its xid, some time before it looks; and the answer to its COMMIT arrives some time after others
    may have its lanes. A snapshot's xmin is the lowest xid that runs, and else one past the highest that has ended.
    """

    make_floors: Callable[[], Floors]
    xid: int = 0
    ended: int = 0
    position: int = 0
    writing: dict[int, tuple[int, list[int]]] = field(default_factory=dict)
    lane_of: dict[int, int] = field(default_factory=dict)
    visible: set[int] = field(default_factory=set)
    claims: dict[int, Claim] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shared, other = self.make_floors(), self.make_floors()
        self.floors = [shared, shared, other]

    def run(self, history: Iterable[Step]) -> bool:
        """Say whether some committed row came to lie where no claim will look."""
        for name, who, what in history:
            getattr(self, name)(who, what)
            if self.missed():
                return True
        for writer in list(self.writing):
            self.commit(writer, None)
        return self.missed()

    def missed(self) -> bool:
        starts = [[floors.start([lane], 0.0) for lane in LANES] for floors in self.floors]
        return any(position <= start[self.lane_of[position]] for position in self.visible for start in starts)

    def write(self, writer: int, lane: int) -> None:
        if writer not in self.writing:
            self.xid += 1  # the trigger's, before the position is drawn
            self.writing[writer] = (self.xid, [])
        self.position += 1
        self.lane_of[self.position] = lane
        self.writing[writer][1].append(self.position)

    def commit(self, writer: int, _: object) -> None:
        xid, positions = self.writing.pop(writer, (0, []))
        self.ended = max(self.ended, xid)
        self.visible.update(positions)

    def abort(self, writer: int, _: object) -> None:
        self.ended = max(self.ended, self.writing.pop(writer, (0, []))[0])

    def claim(self, who: int, what: tuple[tuple[int, ...], int]) -> None:
        wanted, limit = what
        if who in self.claims:
            return
        owned = {lane for claim in self.claims.values() if not claim.committed for lane in claim.lanes}
        mine = [lane for lane in wanted if lane not in owned]
        if not mine:
            return
        ticket = self.floors[who].ticket()
        self.xid += 1
        self.claims[who] = Claim(self.xid, mine, limit, ticket)

    def whole(self, who: int, what: tuple[tuple[int, ...], int]) -> None:
        """Claim, look, settle and note, with nothing in between: as it mostly is."""
        self.claim(who, what)
        for step in (self.look, self.settle, self.note):
            step(who, None)

    def look(self, who: int, _: object) -> None:
        claim = self.claims.get(who)
        if not claim or claim.looked:
            return
        claim.looked = True
        start = self.floors[who].start(claim.lanes, 0.0)
        claim.rows = sorted(row for row in self.visible if row > start and self.lane_of[row] in claim.lanes)[: claim.limit]
        running = [xid for xid, _ in self.writing.values()] + [other.xid for other in self.claims.values() if not other.committed]
        xmin = min(self.ended + 1, *running)
        if claim.rows:
            exhausted = len(claim.rows) < claim.limit
            claim.seen = Seen(last=claim.rows[-1], exhausted=exhausted, xmin=xmin, xid=claim.xid, ticket=claim.ticket)

    def settle(self, who: int, _: object) -> None:
        claim = self.claims.get(who)
        if claim and claim.looked and not claim.committed:
            claim.committed = True
            self.ended = max(self.ended, claim.xid)
            self.visible.difference_update(claim.rows)

    def note(self, who: int, _: object) -> None:
        """The answer to the COMMIT arrives, when others may have the lanes already."""
        claim = self.claims.get(who)
        if claim and claim.committed:
            del self.claims[who]
            if claim.seen:
                self.floors[who].settled(claim.lanes, claim.seen)

    def crash(self, who: int, _: object) -> None:
        claim = self.claims.pop(who, None)
        if claim and not claim.committed:
            self.ended = max(self.ended, claim.xid)


class Eager(Floors):
    """Raises the floor in the very claim that saw the position: one claim too early."""

    def settled(self, lanes: Iterable[int], seen: Seen) -> None:
        for lane in lanes:
            self._floors[lane] = max(self._floors.get(lane, BOTTOM), seen.last)


class Unbounded(Floors):
    """Takes for a horizon what the next claim's snapshot shows as running, and not the next claim's own xid."""

    def settled(self, lanes: Iterable[int], seen: Seen) -> None:
        super().settled(lanes, seen._replace(xid=seen.xmin))


def sound() -> Floors:
    return Floors(sweep_every=None)


def eager() -> Floors:
    return Eager(sweep_every=None)


def unbounded() -> Floors:
    return Unbounded(sweep_every=None)


def claim_all(who: int) -> list[Step]:
    return [("claim", who, ((0, 1, 2), 3)), ("look", who, None), ("settle", who, None), ("note", who, None)]


# Writer 1 has the higher xid and the lower position, and is open for long; nothing above writer 0's xid has ended at the first claim.
YOUNGER_AND_LOWER: list[Step] = [
    ("write", 0, 0),
    ("write", 1, 0),
    ("write", 0, 0),
    ("commit", 0, None),
    *claim_all(0),
    ("write", 2, 0),
    ("commit", 2, None),
    *claim_all(0),
]


@given(histories)
@relaxed
@example(YOUNGER_AND_LOWER)
def test_no_row_is_ever_missed(history: list[Step]) -> None:
    assert not Model(sound).run(history)


def test_raised_one_claim_too_early_the_floor_loses_rows() -> None:
    """The property can fail, and this is how."""
    lost = find(histories, lambda history: Model(eager).run(history), settings=relaxed)
    assert {"write", "commit", "claim", "settle", "note"} <= {name for name, _, _ in lost}


def test_with_a_horizon_that_a_running_writer_may_be_above_it_loses_rows() -> None:
    assert Model(unbounded).run(YOUNGER_AND_LOWER) or find(histories, lambda history: Model(unbounded).run(history), settings=relaxed)


def test_the_floors_of_the_model_do_rise() -> None:
    """Or nothing could be missed, and the properties would be empty."""

    def rises(history: list[Step]) -> bool:
        model = Model(sound)
        model.run(history)
        return any(floors.start(LANES, 0.0) > BOTTOM for floors in model.floors)

    risen = sum(rises(history_of(seed)) for seed in range(2000))
    assert risen > 200


def test_on_a_real_postgres_a_younger_writers_lower_position_is_found(database: str) -> None:
    """The history above, on the real statements: position 2 is committed, and no claim finds it any more."""
    floors = sound()

    def claim(pump: psycopg.Connection) -> list[int]:
        ticket = floors.ticket()
        lanes = [lane for (lane,) in pump.execute(sql.bind(sql.OWN_LANES, "outbox"), (0, 64))]
        parameters = {"floor": floors.start(lanes, 0.0), "lanes": lanes, "limit": 100}
        horizon = pump.execute(sql.SEE_HORIZON).fetchone()
        assert horizon is not None
        rows = pump.execute(sql.bind(sql.CLAIM_FIFO, "outbox"), parameters).fetchall()
        pump.execute(sql.bind(sql.DELETE_MESSAGES, "outbox"), ([row[7] for row in rows],))
        pump.commit()
        if rows:
            floors.settled(lanes, Seen(last=rows[-1][7], exhausted=True, xmin=horizon[0], xid=horizon[1], ticket=ticket))
        return [row[7] for row in rows]

    def write(writer: psycopg.Connection) -> None:
        writer.execute("INSERT INTO outbox.messages (topic, key, payload) VALUES ('t', 'k', '')")

    with psycopg.connect(database) as older, psycopg.connect(database) as younger, psycopg.connect(database) as pump:
        write(older)
        write(younger)
        write(older)
        older.commit()
        assert claim(pump) == [1, 3]
        write(older)
        older.commit()
        assert claim(pump) == [4]
        younger.commit()
        assert claim(pump) == [2]
