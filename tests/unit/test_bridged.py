"""Crossings: topics are mapped, passed bridges are listed, loops are cut, and the key prefix holds whatever is decided here."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges.envelope import MAX_PASSED, RENAMED, VIA, passed, passing
from bridges.errors import ConfigurationError
from bridges.message import Message
from bridges.ports import BEHIND, PUBLISHED, Outcome, Published, Reason, Rejected, Released, Retry
from bridges.topics import Mapping
from outbox.bridged import Crossing, CrossingSink
from tests.contracts.messages import assert_key_prefix
from tests.engines.sinks import RecordingSink
from tests.unit.fakes import message

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = {VIA: "elsewhere,here,elsewhere-too"}


def test_what_crosses_is_unchanged_but_for_its_topic_and_the_bridges_that_it_has_passed() -> None:
    given = Message(UUID(int=1), "orders.eu.created", b"x", "k", "text/plain", {"traceparent": "00-1-2-01", VIA: "a"})
    made = Crossing("b", Mapping("orders.*.> -> shop.{1}.{2}")).of(given)
    renamed = {"traceparent": "00-1-2-01", VIA: "a,b", RENAMED: "orders.eu.created"}
    assert made == given._replace(topic="shop.eu.created", headers=renamed)
    assert given.headers[VIA] == "a"
    assert Crossing("b").of(given) == given._replace(headers={"traceparent": "00-1-2-01", VIA: "a,b"})


@pytest.mark.parametrize("via", ["b", "b,a", "a,b", "a,b,c"])
def test_what_has_passed_before_is_a_loop(via: str) -> None:
    assert Crossing("b").of(message(1)._replace(headers={VIA: via})) == "loop"


@pytest.mark.parametrize("via", ["", "a", "bb", "a,bb", "a,B"])
def test_what_has_passed_others_is_none(via: str) -> None:
    assert isinstance(Crossing("b").of(message(1)._replace(headers={VIA: via})), Message)


def test_the_list_of_bridges_is_bounded_and_what_is_over_it_is_seen() -> None:
    travels = message(1)
    for number in range(MAX_PASSED):
        crossed = Crossing(f"bridge-{number}").of(travels)
        assert isinstance(crossed, Message)
        travels = crossed
    refused = Crossing("one-more").of(travels)
    assert refused == Rejected(Reason.INVALID, f"has passed {MAX_PASSED} bridges, the most allowed")


def test_a_topic_that_the_mapping_is_not_for_is_refused_by_name() -> None:
    refused = Crossing("b", Mapping("orders.* -> shop.{1}")).of(message(1, topic="invoices.paid"))
    assert isinstance(refused, Rejected)
    assert refused.reason is Reason.NO_ROUTE
    assert "'invoices.paid'" in refused.detail
    assert "orders.* -> shop.{1}" in refused.detail


@pytest.mark.parametrize("name", ["", "a,b", "x" * 65, "a\nb"])
def test_a_name_that_the_list_could_not_hold_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="bridge: "):
        Crossing(name)


async def test_what_came_back_is_dropped_and_counted_and_the_rest_goes_on() -> None:
    record, loops = RecordingSink(), []
    sink = CrossingSink(record, Crossing("here"), lambda: loops.append(1))
    back = message(2)._replace(headers=HERE)
    assert await sink.publish([message(1), back, message(3)]) == [PUBLISHED] * 3
    assert [each.id.int for each in record.published] == [1, 3]
    assert [passed(each) for each in record.published] == [["here"]] * 2
    assert await sink.publish([back]) == [PUBLISHED]
    assert len(loops) == 2
    assert record.calls == 1


async def test_what_is_refused_holds_back_its_key() -> None:
    record = RecordingSink()
    sink = CrossingSink(record, Crossing("here", Mapping("a.> -> {1}")))
    messages = [message(1, "k", "a.b"), message(2, "k", "b"), message(3, "k", "a.b"), message(4, "other", "a.b")]
    outcomes = await sink.publish(messages)
    assert [type(outcome).__name__ for outcome in outcomes] == ["Published", "Rejected", "Released", "Published"]
    assert [each.id.int for each in record.published] == [1, 4]


async def test_a_loop_behind_what_was_not_published_keeps_its_turn() -> None:
    """And is not counted before: it will come again."""
    loops: list[int] = []
    sink = CrossingSink(RecordingSink(lambda _: Released(Reason.UNAVAILABLE)), Crossing("here"), lambda: loops.append(1))
    outcomes = await sink.publish([message(1, "k"), message(2, "k")._replace(headers=HERE)])
    assert outcomes == [Released(Reason.UNAVAILABLE), BEHIND]
    assert loops == []


verdicts = st.sampled_from([PUBLISHED, Released(Reason.UNAVAILABLE), Retry(Reason.REFUSED), Rejected(Reason.TOO_LARGE)])
sorts = st.sampled_from(["plain", "loop", "unmapped"])


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), sorts, verdicts), max_size=20))
async def test_the_key_prefix_holds_whatever_is_decided_where(script: Sequence[tuple[str | None, str, Outcome]]) -> None:
    """One outcome each; nothing goes out that the inner sink did not publish, and nothing is counted that comes again."""
    messages, says = [], {}
    for number, (key, sort, verdict) in enumerate(script):
        each = message(number, key, "nowhere" if sort == "unmapped" else "a.b")
        messages.append(each._replace(headers=HERE) if sort == "loop" else each)
        says[each.id] = verdict
    loops: list[int] = []
    record = RecordingSink(lambda each: says[each.id])
    outcomes = await CrossingSink(record, Crossing("here", Mapping("a.* -> c.{1}")), lambda: loops.append(1)).publish(messages)
    assert len(outcomes) == len(messages)
    assert_key_prefix(messages, outcomes)
    out = {each.id for each in record.published}
    for each, (_, sort, _), outcome in zip(messages, script, outcomes, strict=True):
        assert isinstance(outcome, Published) == (each.id in out) or sort == "loop"
        assert not isinstance(outcome, Rejected) or sort == "unmapped" or says[each.id] == outcome
    dropped = [isinstance(outcome, Published) and sort == "loop" for (_, sort, _), outcome in zip(script, outcomes, strict=True)]
    assert sum(dropped) == len(loops)


@given(st.lists(st.from_regex(r"\A[A-Za-z0-9_-]{1,64}\Z"), max_size=40, unique=True))
def test_a_message_says_where_it_has_been(bridges: list[str]) -> None:
    travels = message(1)
    for bridge in bridges:
        travels = passing(travels, bridge, travels.topic)
    assert passed(travels) == bridges
    assert RENAMED not in travels.headers
