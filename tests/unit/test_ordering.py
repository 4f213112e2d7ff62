"""Which messages may be in flight together; tests/properties/test_waves.py has the rules for every batch."""

from __future__ import annotations

import pytest

from bridges.ordering import Blocked, parted, waves
from bridges.ports import BEHIND, PUBLISHED, Outcome, Published, Reason, Rejected, Released, Retry
from tests.unit.fakes import batch_of, message

NOT_PUBLISHED: list[Outcome] = [BEHIND, Released(Reason.TIMEOUT), Retry(Reason.REFUSED), Rejected(Reason.INVALID)]


@pytest.mark.parametrize(
    ("keys", "split"),
    [
        ([None, None, None], [[0, 1, 2]]),
        (["a", "b", "c"], [[0, 1, 2]]),
        (["a", "a", "a"], [[0], [1], [2]]),
        (["a", "b", "a", None, "b", "a"], [[0, 1, 3], [2, 4], [5]]),
        (["", "", None], [[0, 2], [1]]),
    ],
)
def test_a_key_is_in_a_wave_once(keys: list[str | None], split: list[list[int]]) -> None:
    assert waves(batch_of(*keys)) == split


@pytest.mark.parametrize(
    ("keys", "groups", "split"),
    [
        ("aaa", "111", [[0, 1, 2]]),
        ("aaa", "112", [[0, 1], [2]]),
        ("aaa", "121", [[0], [1], [2]]),
        ("aba", "121", [[0, 1, 2]]),
        ("abab", "1122", [[0, 1], [2, 3]]),
    ],
)
def test_a_key_may_repeat_in_a_wave_within_one_group(keys: str, groups: str, split: list[list[int]]) -> None:
    assert waves(batch_of(*keys), groups) == split


@pytest.mark.parametrize(
    ("keys", "alone", "repeating"),
    [
        ([], [], []),
        ([None, None, "a"], [0, 1, 2], []),
        (["a", "b", "a", None, "", ""], [1, 3], [0, 2, 4, 5]),
    ],
)
def test_keys_that_repeat_are_told_from_those_that_do_not(keys: list[str | None], alone: list[int], repeating: list[int]) -> None:
    assert parted(batch_of(*keys)) == (alone, repeating)


def test_without_order_everything_goes_together() -> None:
    messages = batch_of("a", "a", None, "b", "a")
    assert waves(messages, "11212", ordered=False) == [[0, 1, 2, 3, 4]]
    assert waves([], ordered=False) == waves([])
    assert parted(messages, ordered=False) == ([0, 1, 2, 3, 4], [])


@pytest.mark.parametrize("outcome", NOT_PUBLISHED)
def test_without_order_nothing_is_blocked(outcome: Outcome) -> None:
    blocked = Blocked(ordered=False)
    assert blocked.note(message(1, "a"), outcome) is outcome
    assert message(2, "a") not in blocked


def test_a_group_may_be_none() -> None:
    """Messages that no route takes are a group like any other."""
    assert waves(batch_of("a", "a", "a"), [None, None, "x"]) == [[0, 1], [2]]


@pytest.mark.parametrize("outcome", NOT_PUBLISHED)
def test_a_key_is_blocked_by_anything_but_published(outcome: Outcome) -> None:
    blocked = Blocked()
    assert blocked.note(message(1, "a"), outcome) is outcome
    assert message(2, "a") in blocked
    assert message(2, "b") not in blocked


def test_a_published_message_blocks_nothing() -> None:
    blocked = Blocked()
    blocked.note(message(1, "a"), Published(duplicate=True))
    assert message(2, "a") not in blocked


def test_keyless_messages_never_block_and_are_never_blocked() -> None:
    blocked = Blocked()
    blocked.note(message(1, None), NOT_PUBLISHED[1])
    assert message(2, None) not in blocked
    blocked.note(message(3, ""), NOT_PUBLISHED[1])
    assert message(4, None) not in blocked
    assert message(5, "") in blocked, "an empty key is a key"


def test_a_key_stays_blocked_though_a_later_message_of_it_is_published() -> None:
    blocked = Blocked()
    blocked.note(message(1, "a"), BEHIND)
    blocked.note(message(2, "a"), PUBLISHED)
    assert message(3, "a") in blocked
