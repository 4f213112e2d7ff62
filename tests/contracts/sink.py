"""What every Sink, and every wrapper of one, has to keep: the sentences of design.md, section 5."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

import pytest

from bridges.ports import BEHIND, Outcome, Published, Reason, Rejected, Released, Sink
from tests.contracts.messages import assert_key_prefix, awkward, by_key, ids, kinds, message, published, series
from tests.engines.deadline import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from bridges.message import Message

OUTAGE = {Reason.UNAVAILABLE, Reason.TIMEOUT, Reason.BEHIND}


class SinkHarness(Protocol):
    """A sink at its destination, both made for one test."""

    @property
    def topics(self) -> Sequence[str]:
        """Two topics that the sink takes."""

    @property
    def answers_within(self) -> float:
        """Seconds in which it answers, whatever its destination does: its own timeout, and some for this machine."""

    @property
    def cancelled_within(self) -> float:
        """Seconds in which a cancelled call ends while its destination is frozen."""

    @property
    def outage(self) -> AbstractSet[str]:
        """Reasons that it may give for an outage, beside those that all give."""

    @property
    def sink(self) -> Sink: ...

    async def stored(self) -> list[Message]:
        """What the destination has, in its order for a topic and key."""

    async def go_away(self) -> None:
        """Take the destination away, at once and without a word."""

    async def come_back(self) -> None: ...

    async def freeze(self) -> None:
        """Have the destination say nothing more, with its connections still there."""

    async def thaw(self) -> None: ...

    def too_large(self) -> list[Message]:
        """Keyless messages over each limit of size that the destination knows."""

    def invalid(self) -> list[Message]:
        """Keyless messages that the destination will never accept, for another reason."""

    def without_destination(self) -> Sink:
        """A sink whose stream, topic, table or subscription is not there."""

    async def make_destination(self) -> None:
        """Make what that one lacks."""


class BrokerHarness(SinkHarness, Protocol):
    """A sink at a broker of its own, and not one that is made of others."""

    def unordered(self) -> Sink:
        """A sink at the same destination, made with ``ordered=False``."""


class SinkContract:
    """Tests of a Sink, by its harness; a fixture of that name is in the class that runs them."""

    async def test_answers_one_outcome_per_message_in_order(self, sink_harness: SinkHarness) -> None:
        messages = series(sink_harness.topics, 60, keys=7) + [message(sink_harness.topics[0], n) for n in range(20)]
        outcomes = await sink_harness.sink.publish(messages)
        assert len(outcomes) == len(messages)
        assert kinds(outcomes) == {"Published"}
        assert {place: ids(those) for place, those in by_key(await sink_harness.stored()).items() if place[1]} == {
            place: ids(those) for place, those in by_key(messages).items() if place[1]
        }

    async def test_an_empty_call_answers_nothing(self, sink_harness: SinkHarness) -> None:
        assert list(await sink_harness.sink.publish([])) == []

    async def test_a_programming_error_raises(self, sink_harness: SinkHarness) -> None:
        """And leaves a sink that works."""
        with pytest.raises((AttributeError, TypeError)):
            await sink_harness.sink.publish([None])  # type: ignore[list-item]  # that is the error
        await self._works(sink_harness)

    async def test_published_means_the_destination_has_it(self, sink_harness: SinkHarness) -> None:
        """Every field is as it was, whatever is in it, when it is read back from the destination."""
        messages = [each for topic in sink_harness.topics for each in awkward(topic)]
        assert kinds(await sink_harness.sink.publish(messages)) == {"Published"}
        stored = {each.id: each for each in await sink_harness.stored()}
        assert set(stored) == {each.id for each in messages}
        for each in messages:
            got = stored[each.id]
            assert got._replace(headers=dict(got.headers)) == each._replace(headers=dict(each.headers))

    async def test_the_same_id_twice_is_published_twice(self, sink_harness: SinkHarness) -> None:
        """In one call, in two, and in two at once: a broker's "duplicate" is an acknowledgement."""
        twin = message(sink_harness.topics[0], key="twin")
        keyless = message(sink_harness.topics[0])
        calls = [await sink_harness.sink.publish([twin, twin, keyless, keyless]), await sink_harness.sink.publish([twin, keyless])]
        calls += await asyncio.gather(sink_harness.sink.publish([twin, keyless]), sink_harness.sink.publish([twin, keyless]))
        assert [kinds(outcomes) for outcomes in calls] == [{"Published"}] * 4
        assert {(each.id, each.payload) for each in await sink_harness.stored()} == {(each.id, each.payload) for each in (twin, keyless)}

    async def test_too_large_is_rejected_and_harms_no_other(self, sink_harness: SinkHarness) -> None:
        await self._fault_harms_no_other(sink_harness, sink_harness.too_large(), Reason.TOO_LARGE)

    async def test_invalid_is_rejected_and_harms_no_other(self, sink_harness: SinkHarness) -> None:
        await self._fault_harms_no_other(sink_harness, sink_harness.invalid(), Reason.INVALID)

    async def test_key_prefix_holds_when_a_message_is_rejected(self, sink_harness: SinkHarness) -> None:
        """Each kind of fault holds back what is behind it in its key, in the other topic as well, and no other key."""
        one, other = sink_harness.topics
        faults = sink_harness.too_large() + sink_harness.invalid()
        assert faults
        for fault in faults:
            guilty = [
                message(one, 1, key="guilty"),
                fault._replace(key="guilty"),
                message(fault.topic if fault.topic in sink_harness.topics else one, 2, key="guilty"),
                message(one, 3, key="guilty"),
                message(other, 4, key="guilty"),
            ]
            innocent = series(sink_harness.topics, 5, key="innocent")
            mixed = [each for pair in zip(guilty, innocent, strict=True) for each in pair]
            outcomes = await sink_harness.sink.publish(mixed)
            assert kinds(outcomes[1::2]) == {"Published"}
            assert isinstance(outcomes[0], Published)
            assert isinstance(outcomes[2], Rejected)
            assert list(outcomes[4::2]) == [BEHIND] * 3
            stored = ids(await sink_harness.stored())
            assert [each.id in stored for each in guilty] == [True, False, False, False, False]

    async def test_key_prefix_holds_when_the_destination_goes_away_in_the_middle(self, sink_harness: SinkHarness) -> None:
        """And what was answered as Published is there when the destination is back."""
        calls: list[tuple[list[Message], Sequence[Outcome]]] = []
        one_call_done = asyncio.Event()

        async def publish_until_it_fails() -> None:
            while not calls or len(published(*calls[-1])) == len(calls[-1][0]):
                messages = series(sink_harness.topics, 120, keys=3, key=f"call-{len(calls)}")
                calls.append((messages, await sink_harness.sink.publish(messages)))
                one_call_done.set()

        publishing = asyncio.create_task(publish_until_it_fails())
        await asyncio.wait_for(one_call_done.wait(), 20)
        await sink_harness.go_away()
        await asyncio.wait_for(publishing, sink_harness.answers_within + 10)
        await sink_harness.come_back()
        for messages, outcomes in calls:
            assert_key_prefix(messages, outcomes)
            assert {type(outcome) for outcome in outcomes} <= {Published, Released}
        await eventually(lambda: self._published(sink_harness), within=30, what="the sink works again")
        stored = by_key(await sink_harness.stored())
        for messages, outcomes in calls:
            for place, expected in by_key(published(messages, outcomes)).items():
                # More may be there than was acknowledged in time; never less, and never in another order.
                assert ids(stored[place])[: len(expected)] == ids(expected)

    async def test_does_not_raise_for_a_brokers_trouble(self, sink_harness: SinkHarness) -> None:
        """A destination that is there and says nothing: everything is released within the deadline, whatever the size of the call."""
        await self._works(sink_harness)
        await sink_harness.freeze()
        try:
            for messages in (series(sink_harness.topics, 30, keys=5), [message(sink_harness.topics[0], size=150_000) for _ in range(40)]):
                began = time.monotonic()
                outcomes = await asyncio.wait_for(sink_harness.sink.publish(messages), 2 * sink_harness.answers_within + 10)
                assert time.monotonic() - began < sink_harness.answers_within
                assert len(outcomes) == len(messages)
                assert {type(outcome) for outcome in outcomes} == {Released}, kinds(outcomes)
                assert {outcome.reason for outcome in outcomes if isinstance(outcome, Released)} <= OUTAGE | sink_harness.outage
        finally:
            await sink_harness.thaw()
        await eventually(lambda: self._published(sink_harness), within=30, what="the sink works again")

    async def test_an_outage_releases_everything_and_counts_nothing(self, sink_harness: SinkHarness) -> None:
        """Nothing is rejected or counted as an attempt, nothing is sent late, and the same sink works again afterwards."""
        await self._works(sink_harness)
        await sink_harness.go_away()
        released: list[Message] = []
        for _ in range(2):
            messages = [*series(sink_harness.topics, 20, keys=3), message(sink_harness.topics[0])]
            outcomes = await asyncio.wait_for(sink_harness.sink.publish(messages), sink_harness.answers_within + 5)
            assert {type(outcome) for outcome in outcomes} == {Released}, kinds(outcomes)
            assert {outcome.reason for outcome in outcomes if isinstance(outcome, Released)} <= OUTAGE | sink_harness.outage
            released += messages
        assert list(await sink_harness.sink.publish([])) == []
        await sink_harness.come_back()
        await eventually(lambda: self._published(sink_harness), within=30, what="the sink works again")
        assert not set(ids(released)) & set(ids(await sink_harness.stored()))
        assert kinds(await sink_harness.sink.publish(released)) == {"Published"}

    async def test_missing_destination_is_released(self, sink_harness: SinkHarness) -> None:
        """And published, by the same sink, once the destination is there."""
        sink = sink_harness.without_destination()
        messages = series(sink_harness.topics[:1], 5)
        outcomes = await asyncio.wait_for(sink.publish(messages), sink_harness.answers_within)
        assert kinds(outcomes) == {"Released missing", "Released behind"}
        await sink_harness.make_destination()

        async def all_published() -> bool:
            return kinds(await sink.publish(messages)) == {"Published"}

        await eventually(all_published, within=20, what="the sink finds its destination")

    async def test_cancellation_leaves_a_usable_sink(self, sink_harness: SinkHarness) -> None:
        """Cancelled while its destination is frozen, a call ends soon; the calls after it go on."""
        await self._works(sink_harness)
        await sink_harness.freeze()
        try:
            publishing = asyncio.create_task(self._publish_until_cancelled(sink_harness))
            # Long enough to be sent, far too short to be given up.
            done, _ = await asyncio.wait({publishing}, timeout=0.2)
            assert not done
            publishing.cancel()
            await asyncio.wait({publishing}, timeout=sink_harness.cancelled_within)
            assert publishing.cancelled(), f"not over after {sink_harness.cancelled_within} s"
        finally:
            await sink_harness.thaw()
        await eventually(lambda: self._published(sink_harness), within=30, what="the sink works again")

    async def test_concurrent_calls_do_not_mix_their_outcomes(self, sink_harness: SinkHarness) -> None:
        """Eight at once, some of them with a message at fault."""
        faults = sink_harness.too_large() + sink_harness.invalid()
        calls = [series(sink_harness.topics, 40, keys=4, key=f"call-{call}") for call in range(8)]
        for number, call in enumerate(calls[::2]):
            if faults:
                call.insert(number, faults[number % len(faults)]._replace(id=message("x").id))
        answers = await asyncio.gather(*(sink_harness.sink.publish(call) for call in calls))
        expected = [[bool(each.key) for each in call] for call in calls]
        assert [[isinstance(outcome, Published) for outcome in answer] for answer in answers] == expected
        stored = by_key(await sink_harness.stored())
        for call in calls:
            for place, those in by_key(call).items():
                if place[1]:
                    assert ids(stored[place]) == ids(those)

    async def _fault_harms_no_other(self, harness: SinkHarness, faults: list[Message], reason: Reason) -> None:
        assert faults, "nothing to prove it with"
        for fault in faults:
            others = [*series(harness.topics, 8, keys=3), *(message(harness.topics[0], n) for n in range(8))]
            messages = [*others[:12], fault, *others[12:]]
            outcomes = list(await harness.sink.publish(messages))
            verdict = outcomes.pop(12)
            assert isinstance(verdict, Rejected), verdict
            assert verdict.reason is reason
            assert verdict.detail
            assert kinds(outcomes) == {"Published"}
            stored = ids(await harness.stored())
            assert set(ids(others)) <= set(stored)
            assert fault.id not in stored
            assert isinstance((await harness.sink.publish([fault]))[0], Rejected)
            await self._works(harness)

    async def _works(self, harness: SinkHarness) -> None:
        outcomes = await harness.sink.publish([message(topic) for topic in harness.topics])
        assert kinds(outcomes) == {"Published"}

    async def _published(self, harness: SinkHarness) -> bool:
        outcomes = await harness.sink.publish([message(topic) for topic in harness.topics])
        assert {type(outcome) for outcome in outcomes} <= {Published, Released}
        return kinds(outcomes) == {"Published"}

    async def _publish_until_cancelled(self, harness: SinkHarness) -> None:
        await harness.sink.publish(series(harness.topics, 30, keys=3))


class BrokerContract(SinkContract):
    """What is more in the sink of a broker."""

    async def test_without_order_a_fault_holds_back_nothing(self, sink_harness: BrokerHarness) -> None:
        """Neither another message of its key nor one of another."""
        sink = sink_harness.unordered()
        for fault in sink_harness.too_large() + sink_harness.invalid():
            others = [*series(sink_harness.topics, 10), *series(sink_harness.topics, 10, keys=2, key="other")]
            outcomes = list(await sink.publish([*others[:3], fault._replace(key=others[0].key), *others[3:]]))
            assert isinstance(outcomes.pop(3), Rejected)
            assert kinds(outcomes) == {"Published"}
            assert set(ids(others)) <= set(ids(await sink_harness.stored()))

    async def test_without_order_an_outage_releases_everything(self, sink_harness: BrokerHarness) -> None:
        sink = sink_harness.unordered()
        await sink_harness.go_away()
        outcomes = await asyncio.wait_for(sink.publish(series(sink_harness.topics, 20, keys=3)), sink_harness.answers_within + 5)
        assert {type(outcome) for outcome in outcomes} == {Released}, kinds(outcomes)
        assert BEHIND not in outcomes, "nothing waits for another"
        await sink_harness.come_back()
        await eventually(lambda: self._published(sink_harness), within=30, what="the sink works again")
