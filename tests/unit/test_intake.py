"""What a source keeps in hand: order by key, one reader a key, nothing forgotten and nothing left behind."""

from __future__ import annotations

from bridges.intake import Intake


def filled(*keys: str | None) -> Intake[int]:
    intake: Intake[int] = Intake()
    for number, key in enumerate(keys):
        intake.add(number, key)
    return intake


def items(intake: Intake[int], reader: object, now: float = 0.0, limit: int = 10) -> list[int]:
    return [loan.item for loan in intake.lend(reader, limit, now)]


def test_it_lends_in_the_order_of_arrival_up_to_the_limit() -> None:
    intake = filled("a", None, "b", "a")
    assert items(intake, "reader", limit=3) == [0, 1, 2]
    assert items(intake, "reader") == [3]


def test_a_key_is_with_one_reader_at_a_time() -> None:
    intake = filled("a", "b", "a")
    (first, *_) = intake.lend("one", 1, 0.0)
    assert items(intake, "two") == [1]
    intake.end(first)
    assert items(intake, "two") == [2]


def test_what_is_given_back_comes_again_before_what_is_behind_it() -> None:
    intake = filled("a", "a", None)
    (first, *_) = intake.lend("one", 1, 0.0)
    intake.give_back(first)
    assert items(intake, "two") == [0, 1, 2]


def test_a_failed_one_holds_its_key_until_it_is_due_and_no_other() -> None:
    intake = filled("a", "a", "b", None)
    (first, *_) = intake.lend("one", 1, 0.0)
    intake.give_back(first, due=5.0, failed=True)
    assert first.failures == 1
    assert items(intake, "two", now=4.0) == [2, 3]
    assert intake.due_in(4.0) == 1.0
    intake.leave("two")
    assert items(intake, "three", now=5.0) == [0, 1, 2, 3]
    assert intake.due_in(5.0) is None


def test_a_failed_one_without_a_key_waits_alone() -> None:
    intake = filled(None, None)
    (first, *_) = intake.lend("one", 1, 0.0)
    intake.give_back(first, due=5.0)
    assert items(intake, "two", now=0.0) == [1]
    assert intake.due_in(1.0) == 4.0


def test_leaving_gives_back_all_that_a_reader_has_in_order() -> None:
    intake = filled("a", "b", "a", None)
    assert items(intake, "one") == [0, 1, 2, 3]
    assert items(intake, "two") == []
    intake.leave("one")
    assert items(intake, "two") == [0, 1, 2, 3]


def test_forgetting_the_last_of_a_key_forgets_when_the_key_was_due() -> None:
    """Or whoever waits for it would spin."""
    intake = filled("a")
    (loan,) = intake.lend("one", 1, 0.0)
    intake.give_back(loan, due=5.0, failed=True)
    intake.forget(loan)
    assert intake.due_in(10.0) is None
    assert list(intake) == []


def test_ending_and_giving_back_twice_does_nothing() -> None:
    intake = filled("a")
    (loan,) = intake.lend("one", 1, 0.0)
    intake.end(loan)
    intake.end(loan)
    intake.give_back(loan)
    assert items(intake, "two") == []
