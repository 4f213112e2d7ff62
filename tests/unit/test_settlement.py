"""What becomes of each claimed row: each outcome, for each table it may come from, with a key and without."""

from __future__ import annotations

from typing import Any, Final

import pytest

from bridges.backoff import Backoff
from bridges.ports import BEHIND, PUBLISHED, Outcome, Published, Reason, Rejected, Released, Retry
from outbox.settlement import Dead, Deferred, Held, Row, Settlement, Table
from tests.unit.fakes import message

POLICY: Final = Backoff(first=4.0, cap=4.0, max_attempts=3)
RETRY: Final = Retry(Reason.REFUSED, "who knows", after=7.0)
REJECTED: Final = Rejected(Reason.TOO_LARGE, "2 MB")
OUTAGE: Final = Released(Reason.UNAVAILABLE, "away")
NOTHING: Final[dict[Table, list[int]]] = {"messages": [], "deferred": [], "held": []}

TABLES: Final[tuple[Table, ...]] = ("messages", "deferred", "held")


def row(position: int, key: str | None = "k", table: Table = "messages", **fields: Any) -> Row:
    hold = f"key:{key}" if table == "held" else None
    return Row(message(position, key), table, position, **{"lane": 5, "hold": hold, **fields})


def decided(*pairs: tuple[Row, Outcome]) -> Settlement:
    settlement = Settlement()
    assert settlement.set_aside([row for row, _ in pairs]) == [row for row, _ in pairs]
    settlement.decide([row for row, _ in pairs], [outcome for _, outcome in pairs], POLICY)
    return settlement


# A held row always has a key: it is behind its key's head.
ORIGINS: Final[list[tuple[Table, str | None]]] = [
    ("messages", "k"),
    ("messages", None),
    ("deferred", "k"),
    ("deferred", None),
    ("held", "k"),
]
every_origin = pytest.mark.parametrize(("table", "key"), ORIGINS)


@every_origin
@pytest.mark.parametrize("outcome", [PUBLISHED, Published(duplicate=True)])
def test_a_published_row_is_deleted_where_it_was(table: Table, key: str | None, outcome: Outcome) -> None:
    settlement = decided((row(1, key, table), outcome))
    assert settlement == Settlement(published={**NOTHING, table: [1]}, advanced={"key:k"} if table == "held" else set())
    assert settlement.changes_something


@every_origin
def test_a_rejected_row_is_dead_with_its_reason(table: Table, key: str | None) -> None:
    settlement = decided((row(1, key, table, attempts=2), REJECTED))
    assert settlement == Settlement(dead=[Dead(1, "too_large", 3, "2 MB")], advanced={"key:k"} if table == "held" else set())
    assert settlement.changes_something


@every_origin
def test_a_released_row_stays_and_nothing_is_counted(table: Table, key: str | None) -> None:
    settlement = decided((row(1, key, table, attempts=2), OUTAGE))
    assert settlement == Settlement(stay={1} if table == "messages" else set())
    assert not settlement.changes_something


@pytest.mark.parametrize("table", ["messages", "deferred"])
def test_a_keyless_row_is_tried_again_by_itself(table: Table) -> None:
    settlement = decided((row(1, None, table, attempts=1), RETRY))
    assert settlement == Settlement(deferred=[Deferred(1, 7.0, 2, "refused: who knows")])
    assert settlement.changes_something


@pytest.mark.parametrize("table", ["messages", "deferred"])
def test_a_row_with_a_key_becomes_the_head_of_its_keys_hold(table: Table) -> None:
    settlement = decided((row(1, "k", table, attempts=1), RETRY))
    assert settlement == Settlement(held=[1], holds={"key:k": Held("key:k", 1, 5, 7.0, 2, "refused: who knows")})
    assert settlement.changes_something


def test_the_head_of_a_hold_that_fails_again_stays_and_is_counted() -> None:
    settlement = decided((row(1, "k", "held", attempts=1), RETRY))
    assert settlement == Settlement(holds={"key:k": Held("key:k", 1, 5, 7.0, 2, "refused: who knows")})
    assert settlement.changes_something


@every_origin
def test_the_last_attempt_makes_a_row_dead(table: Table, key: str | None) -> None:
    settlement = decided((row(1, key, table, attempts=2), RETRY))
    assert settlement == Settlement(dead=[Dead(1, "attempts", 3, "refused: who knows")], advanced={"key:k"} if table == "held" else set())


@every_origin
def test_the_policy_says_when_if_the_outcome_does_not(table: Table, key: str | None) -> None:
    settlement = decided((row(1, key, table), Retry(Reason.REFUSED)))
    waits = [deferred.seconds for deferred in settlement.deferred]
    waits += [held.seconds for held in settlement.holds.values()]
    (seconds,) = waits
    assert seconds is not None
    assert 0 <= seconds <= 4


def test_a_wait_of_nothing_is_a_wait_that_was_given() -> None:
    assert decided((row(1, None), Retry(Reason.REFUSED, after=0.0))).deferred[0].seconds == 0


def test_rows_behind_a_failing_head_join_its_hold_in_order() -> None:
    settlement = decided((row(1), RETRY), (row(2), BEHIND), (row(3, "other"), PUBLISHED), (row(4), BEHIND))
    assert settlement.held == [1, 2, 4]
    assert list(settlement.holds) == ["key:k"]
    assert settlement.published["messages"] == [3]
    assert settlement.stay == set()


def test_rows_behind_a_dead_head_stay_and_are_next() -> None:
    settlement = decided((row(1), REJECTED), (row(2), BEHIND))
    assert (settlement.held, settlement.stay) == ([], {2})


def test_rows_behind_a_released_head_stay() -> None:
    settlement = decided((row(1), OUTAGE), (row(2), BEHIND))
    assert (settlement.held, settlement.holds, settlement.stay) == ([], {}, {1, 2})


def test_a_row_released_by_an_outage_does_not_join_the_hold_of_its_key() -> None:
    """Only what is behind the head; an outage in the same batch is another thing."""
    assert decided((row(1), RETRY), (row(2), OUTAGE)).stay == {2}


def test_held_rows_behind_a_head_that_fails_now_stay_where_they_are() -> None:
    settlement = decided((row(1, "k", "held"), RETRY), (row(2, "k", "held"), BEHIND))
    assert (settlement.held, settlement.published, settlement.dead) == ([], NOTHING, [])


def test_a_head_that_leaves_and_a_next_that_fails_is_a_hold_that_has_failed() -> None:
    """It must not be due at once."""
    settlement = decided((row(1, "k", "held"), PUBLISHED), (row(2, "k", "held"), RETRY))
    assert settlement.advanced == set()
    assert settlement.holds["key:k"].attempts == 1
    assert settlement.published["held"] == [1]


def test_a_head_that_leaves_and_a_next_that_is_released_is_a_hold_that_is_due() -> None:
    settlement = decided((row(1, "k", "held"), PUBLISHED), (row(2, "k", "held"), OUTAGE))
    assert (settlement.advanced, settlement.holds, settlement.held) == ({"key:k"}, {}, [])
    assert settlement.published["held"] == [1]


def test_outcomes_must_be_as_many_as_rows() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Settlement().decide([row(1), row(2)], [PUBLISHED], POLICY)


@every_origin
def test_an_expired_row_is_dead_before_it_is_sent(table: Table, key: str | None) -> None:
    settlement = Settlement()
    assert settlement.set_aside([row(1, key, table, aside="expired", attempts=1)]) == []
    (dead,) = settlement.dead
    assert (dead.position, dead.reason, dead.attempts) == (1, "expired", 1)
    assert settlement.advanced == ({"key:k"} if table == "held" else set())


def test_an_early_row_is_deferred_to_its_own_time() -> None:
    settlement = Settlement()
    assert settlement.set_aside([row(1, aside="early")]) == []
    assert settlement == Settlement(deferred=[Deferred(1, None, 0, None)])


@pytest.mark.parametrize("table", ["messages", "deferred"])
def test_a_row_whose_key_has_a_hold_joins_it_unsent(table: Table) -> None:
    settlement = Settlement()
    assert settlement.set_aside([row(1, table=table, aside="joins")]) == []
    assert settlement == Settlement(held=[1])
    assert settlement.changes_something


def test_set_aside_keeps_the_order_of_what_is_to_be_sent() -> None:
    rows = [row(1), row(2, aside="early"), row(3, "b"), row(4, aside="expired"), row(5)]
    assert Settlement().set_aside(rows) == [rows[0], rows[2], rows[4]]


@pytest.mark.parametrize(
    ("detail", "kept"),
    [("a\0b", "a\\0b"), ("x" * 5000, "x" * 2000), ("\ud800", "?"), ("ü" * 5000, "ü" * 2000)],
    ids=["a NUL", "too long", "a lone surrogate", "not ASCII"],
)
def test_what_is_kept_of_an_error_can_be_stored(detail: str, kept: str) -> None:
    assert decided((row(1), Rejected(Reason.INVALID, detail))).dead[0].error == kept
    tried = decided((row(2, None), Retry(Reason.REFUSED, detail))).deferred[0].error
    assert tried is not None
    assert tried.encode()
    assert len(tried) <= 2000
    assert "\0" not in tried


def test_every_row_goes_to_exactly_one_place() -> None:
    outcomes: list[Outcome] = [PUBLISHED, OUTAGE, BEHIND, RETRY, REJECTED]
    pairs = [
        (row(100 * origin + place, key and f"{key}{origin}{place}", table), outcome)
        for origin, (table, key) in enumerate(ORIGINS)
        for place, outcome in enumerate(outcomes)
    ]
    settlement = decided(*pairs)
    gone = [position for table in TABLES for position in settlement.published[table]]
    places = [*gone, *settlement.held, *settlement.stay, *(dead.position for dead in settlement.dead)]
    places += [deferred.position for deferred in settlement.deferred]
    # Where it is not the FIFO, what is released is simply left, and so is a head that failed again.
    left = [row.position for row, outcome in pairs if row.table != "messages" and outcome in {OUTAGE, BEHIND}]
    left += [row.position for row, outcome in pairs if row.table == "held" and outcome is RETRY]
    assert sorted(places + left) == sorted(row.position for row, _ in pairs)


def test_a_keyless_row_does_not_join_the_hold_of_the_key_named_none() -> None:
    """It is compared with f"key:{None}"; joining, its hold would be NULL, and the settlement would fail for ever."""
    settlement = decided((row(1, "None"), RETRY), (row(2, None), BEHIND))
    assert settlement.held == [1]
    assert settlement.stay == {2}
