"""A Sink over Sinks: where a message goes, and what happens to its key when it goes to several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridges.ports import PUBLISHED, Outcome, Published, Reason, Rejected, Released, Retry
from bridges.router import Route, Router
from bridges.topics import Pattern
from tests.unit.fakes import FakeSink, message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.message import Message

AWAY = Released(Reason.UNAVAILABLE, "away")


def route(pattern: str, sink: FakeSink) -> Route:
    return Route(Pattern(pattern), sink)


def answering(outcome: Outcome) -> FakeSink:
    async def publish(messages: Sequence[Message]) -> list[Outcome]:
        return [outcome] * len(messages)

    return FakeSink(publish)


def ids(sink: FakeSink) -> list[list[int]]:
    return [[message.id.int for message in call] for call in sink.calls]


async def test_the_first_route_that_matches_wins() -> None:
    orders, rest, never = FakeSink(), FakeSink(), FakeSink()
    router = Router([route("orders.*", orders), route(">", rest), route("orders.paid", never)])
    await router.publish([message(1, topic="orders.paid"), message(2, topic="users.new"), message(3, topic="orders.a.b")])
    assert (ids(orders), ids(rest), ids(never)) == ([[1]], [[2, 3]], [])


async def test_a_message_without_a_route_is_rejected_with_its_topic() -> None:
    sink = FakeSink()
    outcomes = await Router([route("orders.>", sink)]).publish([message(1, topic="users.new"), message(2, topic="orders.a")])
    assert isinstance(outcomes[0], Rejected)
    assert outcomes[0].reason is Reason.NO_ROUTE
    assert "'users.new'" in outcomes[0].detail
    assert outcomes[1] == PUBLISHED


async def test_no_routes_reject_everything_and_no_messages_are_no_outcomes() -> None:
    assert [type(outcome) for outcome in await Router([]).publish([message(1)])] == [Rejected]
    assert list(await Router([]).publish([])) == []


async def test_outcomes_are_in_the_order_of_the_messages() -> None:
    router = Router([route("a", answering(AWAY)), route("b", answering(Published(duplicate=True)))])
    outcomes = await router.publish([message(number, topic=topic) for number, topic in enumerate("abbac")])
    assert [type(outcome) for outcome in outcomes] == [Released, Published, Published, Released, Rejected]


async def test_one_sink_gets_its_share_in_one_call_in_order() -> None:
    one, two = FakeSink(), FakeSink()
    await Router([route("a", one), route("b", two)]).publish([message(number, topic=topic) for number, topic in enumerate("abab")])
    assert (ids(one), ids(two)) == ([[0, 2]], [[1, 3]])


async def test_a_key_across_two_sinks_waits_for_the_acknowledgement_ahead_of_it() -> None:
    order: list[tuple[str, list[int]]] = []

    def recording(name: str) -> FakeSink:
        async def publish(messages: Sequence[Message]) -> list[Outcome]:
            order.append((name, [message.id.int for message in messages]))
            return [PUBLISHED] * len(messages)

        return FakeSink(publish)

    router = Router([route("a", recording("one")), route("b", recording("two"))])
    topics = ["a", "b", "b", "a"]
    outcomes = await router.publish([message(number, "k", topic) for number, topic in enumerate(topics)])
    assert order == [("one", [0]), ("two", [1, 2]), ("one", [3])]
    assert outcomes == [PUBLISHED] * 4


@pytest.mark.parametrize("outcome", [AWAY, Retry(Reason.REFUSED), Rejected(Reason.INVALID)])
async def test_the_key_prefix_holds_across_two_sinks(outcome: Outcome) -> None:
    """What is behind is not even sent, and says that it is behind; other keys go on."""
    healthy = FakeSink()
    router = Router([route("a", answering(outcome)), route("b", healthy)])
    outcomes = await router.publish([message(1, "k", "a"), message(2, "k", "b"), message(3, "other", "b"), message(4, None, "b")])
    assert ids(healthy) == [[3, 4]]
    assert outcomes[0] == outcome
    assert isinstance(outcomes[1], Released)
    assert outcomes[1].reason is Reason.BEHIND
    assert list(outcomes[2:]) == [PUBLISHED, PUBLISHED]


async def test_a_message_without_a_route_holds_back_its_key() -> None:
    sink = FakeSink()
    outcomes = await Router([route("a", sink)]).publish([message(1, "k", "nowhere"), message(2, "k", "a")])
    assert sink.calls == []
    assert [type(outcome) for outcome in outcomes] == [Rejected, Released]


async def test_the_order_of_a_key_within_one_sink_is_that_sinks_own_business() -> None:
    """Two of a key for one sink go in one call: it is a Sink, and keeps the prefix."""
    one, two = FakeSink(), FakeSink()
    await Router([route("a", one), route("b", two)]).publish([message(1, "k", "a"), message(2, "k", "a"), message(3, None, "b")])
    assert ids(one) == [[1, 2]]


@pytest.mark.parametrize("other_topic", ["a", "b"])
async def test_a_programming_error_in_a_sink_is_raised(other_topic: str) -> None:
    async def publish(_: Sequence[Message]) -> list[Outcome]:
        raise ZeroDivisionError

    router = Router([route("a", FakeSink(publish)), route("b", FakeSink())])
    with pytest.RaisesGroup(ZeroDivisionError, allow_unwrapped=True, flatten_subgroups=True):
        await router.publish([message(1, topic="a"), message(2, topic=other_topic)])
