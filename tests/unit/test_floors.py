"""When a lane's floor rises; tests/properties/test_floors.py has the model that says why."""

from __future__ import annotations

from outbox.floors import BOTTOM, Floors, Seen


def saw(last: int, *, xid: int, xmin: int = 0, exhausted: bool = False, ticket: int = 1 << 60) -> Seen:
    """What a claim saw, that by default began after all that were settled before it."""
    return Seen(last=last, exhausted=exhausted, xmin=xmin, xid=xid, ticket=ticket)


def never_swept() -> Floors:
    return Floors(sweep_every=None)


def test_it_begins_at_the_bottom() -> None:
    assert never_swept().start([1, 2], 0.0) == BOTTOM
    assert BOTTOM < 0


def raised_to_10(lanes: list[int]) -> Floors:
    """Return floors after a claim that saw 10, and a later one that drew the xid 100 with nothing running below it."""
    floors = never_swept()
    floors.settled(lanes, saw(10, xid=90))
    floors.settled(lanes, saw(10, xid=100, xmin=100))
    return floors


def test_one_claim_raises_nothing() -> None:
    floors = never_swept()
    floors.settled([1], saw(10, xid=90, xmin=90, exhausted=True))
    assert floors.start([1], 0.0) == BOTTOM


def test_the_next_claim_raises_it_if_nothing_older_runs() -> None:
    assert raised_to_10([1]).start([1], 0.0) == 10


def test_while_something_older_than_the_next_claim_runs_it_stays() -> None:
    """It may have drawn a lower position; it is waited for by the xid of the next claim, drawn after the position was seen."""
    floors = never_swept()
    floors.settled([1], saw(10, xid=90))
    floors.settled([1], saw(20, xid=100, xmin=95))
    floors.settled([1], saw(30, xid=110, xmin=99))
    assert floors.start([1], 0.0) == BOTTOM
    floors.settled([1], saw(40, xid=120, xmin=100))
    assert floors.start([1], 0.0) == 10


def test_a_claim_that_began_before_the_position_was_settled_draws_no_horizon() -> None:
    """Its xid may be older than a writer that the earlier claim did not see."""
    floors = never_swept()
    ticket = floors.ticket()
    floors.settled([1], saw(10, xid=90))
    floors.settled([1], saw(20, xid=100, xmin=100, ticket=ticket))
    assert floors.start([1], 0.0) == BOTTOM


def test_a_full_claim_that_did_not_reach_it_raises_nothing() -> None:
    floors = never_swept()
    floors.settled([1], saw(10, xid=90))
    floors.settled([1], saw(9, xid=100, xmin=100))
    assert floors.start([1], 0.0) == BOTTOM


def test_a_claim_that_was_not_full_has_seen_all_there_is() -> None:
    floors = never_swept()
    floors.settled([1], saw(10, xid=90))
    floors.settled([1], saw(9, xid=100, xmin=100, exhausted=True))
    assert floors.start([1], 0.0) == 10


def test_a_floor_belongs_to_a_lane_and_a_claim_starts_at_its_lowest() -> None:
    floors = never_swept()
    floors.settled([1, 2], saw(10, xid=90))
    floors.settled([1], saw(10, xid=100, xmin=100))
    assert floors.start([1], 0.0) == 10
    assert floors.start([2], 0.0) == BOTTOM
    assert floors.start([1, 2], 0.0) == floors.start([2, 1], 0.0) == BOTTOM
    floors.settled([2], saw(30, xid=110, xmin=110))
    assert floors.start([1, 2], 0.0) == 10


def test_a_floor_never_falls() -> None:
    floors = raised_to_10([1])
    floors.settled([1], saw(20, xid=110, xmin=110))
    floors.settled([1], saw(30, xid=120, xmin=120))
    risen = floors.start([1], 0.0)
    assert risen == 20
    floors.settled([1], saw(5, xid=130, xmin=130, exhausted=True))
    assert floors.start([1], 0.0) >= risen


def test_it_rises_as_soon_as_a_long_transaction_is_over() -> None:
    """However many claims settle meanwhile, and what is remembered of them stays bounded."""
    floors = never_swept()
    for position in range(1, 1001):
        floors.settled([1], saw(position, xid=100 + position, xmin=50))
    assert floors.start([1], 0.0) == BOTTOM
    assert len(floors._remembered[1]) <= 3
    floors.settled([1], saw(1001, xid=2000, xmin=2000))
    assert floors.start([1], 0.0) >= 999


def test_the_first_claim_of_a_lane_is_a_sweep_and_then_one_at_intervals() -> None:
    floors = Floors(sweep_every=10.0)
    floors.settled([1], saw(10, xid=90))
    floors.settled([1], saw(10, xid=100, xmin=100))
    assert floors.start([1], 1000.0) == BOTTOM
    floors.swept([1], 1000.0)
    assert floors.start([1], 1009.9) == 10
    assert floors.start([1], 1010.0) == BOTTOM
    floors.swept([1], 1010.0)
    assert floors.start([1], 1010.1) == 10


def test_a_sweep_is_due_if_it_is_for_one_of_the_lanes() -> None:
    floors = Floors(sweep_every=10.0)
    floors.settled([1, 2], saw(10, xid=90))
    floors.settled([1, 2], saw(10, xid=100, xmin=100))
    floors.swept([1], 0.0)
    assert floors.start([1], 1.0) == 10
    assert floors.start([1, 2], 1.0) == BOTTOM


def test_a_claim_that_was_no_sweep_does_not_put_off_the_next() -> None:
    floors = Floors(sweep_every=10.0)
    floors.swept([1], 0.0)
    floors.swept([1], 9.0)
    assert floors.start([1], 10.0) == BOTTOM
