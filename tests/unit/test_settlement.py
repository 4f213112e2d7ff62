"""What becomes of each claimed row: each outcome, for each table it may come from, with a key and without."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import pytest

from bridges.backoff import Backoff
from bridges.ports import BEHIND, PUBLISHED, Outcome, Published, Reason, Rejected, Released, Retry
from outbox.rows import Policy, Row, Surroundings, Table
from outbox.settlement import Archived, Dead, Deferred, Held, Hold, Postponed, Rehold, Settlement
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
    assert settlement == Settlement(held=[Held(1, "key:k")], holds={"key:k": Hold("key:k", 1, 5, 7.0, 2, "refused: who knows")})
    assert settlement.changes_something


def test_the_head_of_a_hold_that_fails_again_stays_and_is_counted() -> None:
    settlement = decided((row(1, "k", "held", attempts=1), RETRY))
    assert settlement == Settlement(holds={"key:k": Hold("key:k", 1, 5, 7.0, 2, "refused: who knows")})
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
    assert settlement.held == [Held(position, "key:k") for position in (1, 2, 4)]
    assert list(settlement.holds) == ["key:k"]
    assert settlement.published["messages"] == [3]
    assert settlement.stay == set()


def test_rows_behind_a_dead_head_stay_and_are_next() -> None:
    settlement = decided((row(1), REJECTED), (row(2), BEHIND))
    assert (settlement.held, settlement.stay) == ([], {2})


def test_rows_behind_a_released_head_stay() -> None:
    settlement = decided((row(1), OUTAGE), (row(2), BEHIND))
    assert (settlement.held, settlement.holds, settlement.stay) == ([], {}, {1, 2})


@pytest.mark.parametrize("outcome", [BEHIND, OUTAGE, RETRY, REJECTED])
def test_whatever_became_of_a_row_behind_one_that_waits_it_waits_behind_it(outcome: Outcome) -> None:
    """An outage answers for a whole call, and not for what is behind: all of a key stay together."""
    settlement = decided((row(1), RETRY), (row(2), outcome))
    assert settlement.held == [Held(1, "key:k"), Held(2, "key:k")]
    assert (settlement.dead, settlement.stay, settlement.holds["key:k"].head) == ([], set(), 1)


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
    assert settlement.set_aside([row(1, table=table, hold="key:k")]) == []
    assert settlement == Settlement(held=[Held(1, "key:k")])
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
    places = [*gone, *(held.position for held in settlement.held), *settlement.stay, *(dead.position for dead in settlement.dead)]
    places += [deferred.position for deferred in settlement.deferred]
    # Where it is not the FIFO, what is released is simply left, and so is a head that failed again.
    left = [row.position for row, outcome in pairs if row.table != "messages" and outcome in {OUTAGE, BEHIND}]
    left += [row.position for row, outcome in pairs if row.table == "held" and outcome is RETRY]
    assert sorted(places + left) == sorted(row.position for row, _ in pairs)


def test_a_keyless_row_does_not_join_the_hold_of_the_key_named_none() -> None:
    """It is compared with f"key:{None}"; joining, its hold would be NULL, and the settlement would fail for ever."""
    settlement = decided((row(1, "None"), RETRY), (row(2, None), BEHIND))
    assert settlement.held == [Held(1, "key:None")]
    assert settlement.stay == {2}


# --- destinations: "s" and "t" are two sinks, and a topic is called by its sink

AWAY: Final = Released(Reason.UNAVAILABLE, "refused", destination="s")
S_HOLD: Final = Hold("sink:s/5", None, 5, 0.0, 0, "unavailable: refused", "s")


def by_topic(topic: str) -> Policy:
    return Policy(destination=topic, sink=topic)


def to(destination: str, position: int, key: str | None = "k", table: Table = "messages", **fields: Any) -> Row:
    hold = f"key:{key}" if table == "held" else None
    return Row(message(position, key, destination), table, position, **{"lane": 5, "hold": hold, **fields})


def settled(*pairs: tuple[Row, Outcome], around: Surroundings | None = None, policy: Any = by_topic) -> Settlement:
    settlement = Settlement(policy, around or Surroundings())
    assert list(settlement.set_aside([row for row, _ in pairs])) == [row for row, _ in pairs]
    settlement.decide([row for row, _ in pairs], [outcome for _, outcome in pairs], POLICY)
    return settlement


def aside(*rows: Row, policy: Any = by_topic, **around: Any) -> tuple[Settlement, list[int]]:
    """Return the settlement, and the positions of what is still to be sent."""
    settlement = Settlement(policy, Surroundings(**around))
    return settlement, [row.position for row in settlement.set_aside(rows)]


@pytest.mark.parametrize("key", ["k", None])
@pytest.mark.parametrize("table", ["messages", "deferred"])
def test_what_a_destination_refused_waits_in_its_queue(table: Table, key: str | None) -> None:
    settlement = settled((to("s", 1, key, table), AWAY))
    assert settlement == Settlement(by_topic, held=[Held(1, "sink:s/5")], holds={"sink:s/5": S_HOLD})


def test_a_later_row_of_the_key_waits_behind_it_whatever_its_own_destination() -> None:
    settlement = settled((to("s", 1), AWAY), (to("t", 2), BEHIND), (to("t", 3, "other"), PUBLISHED))
    assert settlement.held == [Held(1, "sink:s/5"), Held(2, "sink:s/5")]
    assert settlement.published["messages"] == [3]


def test_an_outage_of_a_whole_call_leaves_a_key_in_one_hold() -> None:
    around = Surroundings(whole=frozenset({"key:k"}))
    rows = [to("s", 1, "k", "held", drains=True), to("s", 2, hold="key:k")]
    settlement = settled((rows[0], AWAY), (rows[1], AWAY), around=around)
    assert list(settlement.postponed) == ["key:k"]
    assert settlement.held == [Held(2, "key:k")]


def test_an_earlier_row_of_the_key_that_fails_keeps_the_later_one_in_its_own_hold() -> None:
    settlement = settled((to("t", 1), RETRY), (to("s", 2), BEHIND))
    assert settlement.held == [Held(1, "key:k"), Held(2, "key:k")]


def test_while_it_is_away_nothing_for_it_is_sent() -> None:
    settlement, sent = aside(to("s", 1), to("t", 2, "other"), to("t", 3), to("s", 4, None), away={"s": 1.0})
    assert sent == [2]
    assert settlement.held == [Held(1, "sink:s/5"), Held(3, "sink:s/5"), Held(4, "sink:s/5")]
    assert settlement.holds["sink:s/5"].destination == "s"


def test_a_row_behind_one_that_is_sent_goes_with_it_though_its_destination_is_away() -> None:
    """Set aside now, it would be out of the hold that the first one may yet need."""
    _, sent = aside(to("t", 1), to("s", 2), away={"s": 1.0})
    assert sent == [1, 2]


def test_what_may_not_be_set_aside_any_more_stays_and_its_key_with_it() -> None:
    settlement, sent = aside(to("s", 1), to("t", 2), to("t", 3, "other"), away={"s": 1.0}, full=frozenset({"s"}))
    assert sent == [3]
    assert settlement.stay == {1, 2}
    assert not settlement.held


def test_what_is_newer_waits_behind_the_queue_of_its_destination_until_that_is_claimed_whole() -> None:
    rows = [to("s", 1, "a", "held", hold="sink:s/5", drains=True), to("s", 2, "b"), to("t", 3, "c")]
    settlement, sent = aside(*rows, holds=frozenset({"sink:s/5"}))
    assert sent == [1, 3]
    assert settlement.held == [Held(2, "sink:s/5")]
    _, sent = aside(*rows, holds=frozenset({"sink:s/5"}), whole=frozenset({"sink:s/5"}))
    assert sent == [1, 2, 3]


def test_what_is_newer_of_a_key_follows_its_hold_if_that_is_claimed_whole() -> None:
    rows = [row(1, "k", "held", drains=True), row(2, "k", hold="key:k")]
    _, sent = aside(*rows, policy=lambda _: Policy(), whole=frozenset({"key:k"}))
    assert sent == [1, 2]
    _, sent = aside(*rows, policy=lambda _: Policy())
    assert sent == [1]


def test_a_row_in_the_queue_of_a_destination_stays_there_when_it_is_refused_again() -> None:
    settlement = settled((to("s", 1, "k", "held", hold="sink:s/5"), AWAY), (to("s", 2, hold="sink:s/5"), BEHIND), around=WHOLE)
    assert settlement == Settlement(by_topic, WHOLE, held=[Held(2, "sink:s/5")])


WHOLE: Final = Surroundings(holds=frozenset({"sink:s/5"}), whole=frozenset({"sink:s/5"}))


def test_a_row_of_a_queue_that_fails_itself_takes_its_key_out_of_it() -> None:
    settlement = settled((to("s", 1, "k", "held", hold="sink:s/5"), RETRY), (to("s", 2, "k", "held", hold="sink:s/5"), BEHIND))
    assert settlement.reheld == [Rehold("k", "sink:s/5", "key:k")]
    assert list(settlement.holds) == ["key:k"]
    assert settlement.advanced == {"sink:s/5"}
    assert not settlement.held


def test_the_head_of_a_key_whose_destination_is_away_keeps_its_attempts() -> None:
    head = to("s", 1, "k", "held", attempts=2)
    settlement = settled((head, AWAY))
    assert (settlement.postponed, settlement.holds) == ({"key:k": Postponed("key:k", 0.1, "unavailable: refused")}, {})
    settlement, sent = aside(head, away={"s": 3.0})
    assert sent == []
    assert (settlement.postponed, settlement.holds) == ({"key:k": Postponed("key:k", 3.0, None)}, {})


def test_a_head_that_fails_behind_one_that_waits_for_its_destination_is_counted() -> None:
    rows = [to("t", 1, "k", "held", drains=True), to("s", 2, "k", "held", drains=True)]
    settlement = settled((rows[0], PUBLISHED), (rows[1], AWAY))
    assert (list(settlement.postponed), settlement.advanced) == (["key:k"], set())
    settlement = settled((rows[0], RETRY), (rows[1], BEHIND))
    assert (settlement.postponed, list(settlement.holds)) == ({}, ["key:k"])


def test_a_row_behind_another_destinations_row_gets_into_its_own_queue_when_its_turn_comes() -> None:
    settlement, sent = aside(to("t", 2, "k", "held", hold="sink:s/5"), away={"t": 1.0})
    assert sent == []
    assert settlement.held == [Held(2, "sink:t/5")]
    assert settlement.reheld == [Rehold("k", "sink:s/5", "sink:t/5")]
    assert settlement.holds == {"sink:t/5": Hold("sink:t/5", None, 5, 0.0, 0, None, "t")}
    assert settlement.advanced == {"sink:s/5"}


def test_a_keyless_retry_whose_destination_is_away_keeps_its_attempts() -> None:
    settlement, sent = aside(to("s", 1, None, "deferred", attempts=2), away={"s": 3.0})
    assert sent == []
    assert settlement.deferred == [Deferred(1, 3.0, 2, None)]


# --- what a route may say


def without_order(_: str) -> Policy:
    return Policy(ordered=False)


def holding_after_dead(_: str) -> Policy:
    return Policy(holds_after_dead=True)


def test_without_order_a_failing_row_waits_alone() -> None:
    assert settled((row(1), REJECTED), policy=without_order).dead[0].ordered is False
    settlement = settled((row(1), RETRY), (row(2), PUBLISHED), policy=without_order)
    assert settlement.deferred == [Deferred(1, 7.0, 1, "refused: who knows")]
    assert (settlement.held, settlement.holds) == ([], {})
    _, sent = aside(row(3, hold="key:k"), policy=without_order)
    assert sent == [3], "it joins no hold of its key"


@pytest.mark.parametrize("outcome", [REJECTED, RETRY])
def test_a_key_may_wait_behind_its_dead_letter(outcome: Outcome) -> None:
    settlement = settled((row(1, attempts=2), outcome), (row(2), BEHIND), policy=holding_after_dead)
    assert [dead.position for dead in settlement.dead] == [1]
    assert settlement.held == [Held(2, "key:k")]
    assert settlement.holds["key:k"].seconds is None
    settlement = settled((row(1, "k", "held", attempts=2), outcome), policy=holding_after_dead)
    assert settlement.holds["key:k"].seconds is None
    assert settlement.advanced == set()


def test_a_key_may_wait_behind_an_expired_row_but_not_while_an_earlier_one_is_on_its_way() -> None:
    settlement, sent = aside(row(1, aside="expired"), row(2), policy=holding_after_dead)
    assert (sent, settlement.held) == ([], [Held(2, "key:k")])
    settlement, sent = aside(row(1), row(2, aside="expired"), row(3), policy=holding_after_dead)
    assert (sent, settlement.dead, settlement.stay) == ([1], [], {2, 3}), "nothing passes it"
    held = [row(n, "k", "held", drains=True, aside="expired" if n == 2 else None) for n in (1, 2, 3)]
    settlement, sent = aside(*held, policy=holding_after_dead)
    assert (sent, settlement.dead) == ([1], [])


def test_a_keyless_dead_letter_holds_nothing() -> None:
    settlement = settled((row(1, None), REJECTED), policy=holding_after_dead)
    assert (len(settlement.dead), settlement.holds) == (1, {})


def test_what_a_route_keeps_is_archived_and_not_deleted() -> None:
    week = timedelta(days=7)
    settlement = settled((row(1), PUBLISHED), policy=lambda _: Policy(keep=week, sink="events"))
    assert settlement.archived == [Archived(1, "events", week)]
    assert settlement.published == NOTHING
    assert settlement.changes_something


def test_a_row_over_todays_limit_is_dead_and_its_key_goes_on() -> None:
    settlement, sent = aside(row(1, aside="oversized"), row(2))
    assert sent == [2]
    assert [(dead.position, dead.reason) for dead in settlement.dead] == [(1, "too_large")]
