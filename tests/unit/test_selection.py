"""What a selection refuses, and by which name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bridges.errors import ConfigurationError
from bridges.message import uuid7
from bridges.ports import Reason
from outbox.selection import Selection

NOW = datetime(2026, 7, 1, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"ids": ["7"]}, "ids: '7' is not a UUID"),
        ({"ids": [7]}, "ids: 7 is not a UUID"),
        ({"topics": "orders.>.x"}, "topics: pattern 'orders.>.x': token 2 is '>', which may only stand at the end"),
        ({"topics": ""}, "topics: pattern '': token 1 is empty"),
        ({"key": "a\0b"}, "key: has a NUL"),
        ({"key": "x" * 1025}, "key: is 1025 bytes"),
        ({"reason": "because"}, "reason: 'because' is not one of too_large, invalid, no_route, "),
        ({"since": NOW.replace(tzinfo=None)}, "since: datetime.datetime(2026, 7, 1, 8, 0) is not an aware datetime"),
        ({"until": NOW.replace(tzinfo=None)}, "until: datetime.datetime(2026, 7, 1, 8, 0) is not an aware datetime"),
        ({"until": "2026-07-01"}, "until: '2026-07-01' is not an aware datetime"),
        ({"since": NOW, "until": NOW}, "until: 2026-07-01T08:00:00+00:00 is not after since"),
    ],
)
def test_a_mistake_names_its_field(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Selection(**given)
    assert str(refused.value).startswith(says)


def test_every_reason_is_one() -> None:
    for reason in Reason:
        assert Selection(reason=str(reason)).reason is reason


def test_an_id_may_be_text_and_counts_once() -> None:
    one = uuid7()
    assert Selection(ids=[str(one), one]).message_ids == [one]


def test_nothing_given_is_everything_and_must_be_said() -> None:
    assert Selection().is_empty
    Selection().require_something(everything=True)
    with pytest.raises(ConfigurationError, match="selection: nothing is given"):
        Selection().require_something(everything=False)


@pytest.mark.parametrize("given", [{"key": ""}, {"ids": [uuid7()]}, {"topics": ">"}, {"since": NOW}, {"until": NOW}, {"reason": "expired"}])
def test_anything_given_is_not_everything(given: dict[str, Any]) -> None:
    selection = Selection(**given)
    assert not selection.is_empty
    selection.require_something(everything=False)
    with pytest.raises(ConfigurationError, match="Not both"):
        selection.require_something(everything=True)


def test_what_is_told_is_what_was_given() -> None:
    one = uuid7()
    told = Selection(ids=[one], topics="a.*", key="k", reason="expired", since=NOW, until=NOW + timedelta(hours=1)).told()
    assert told == {
        "ids": [str(one)],
        "topics": "a.*",
        "key": "k",
        "reason": "expired",
        "since": "2026-07-01T08:00:00+00:00",
        "until": "2026-07-01T09:00:00+00:00",
    }
