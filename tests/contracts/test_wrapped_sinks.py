"""The Sink contract on what is made of sinks, and on the consumer's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from bridges.backoff import Backoff
from bridges.breaker import Breaker, GuardedSink
from bridges.observed import Metrics, ObservedSink
from bridges.ports import BEHIND, PUBLISHED, Reason, Rejected, Sink
from bridges.router import Route, Router
from bridges.topics import Pattern
from tests.contracts.harness_handler import HandlerSinkHarness, handler_sink
from tests.contracts.harness_inprocess import InProcessSinkHarness, inprocess_sink
from tests.contracts.harness_jetstream import JetStreamSinkHarness, jetstream_sink
from tests.contracts.messages import ids, kinds, message, series
from tests.contracts.sink import SinkContract, SinkHarness
from tests.engines.deadline import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bridges.message import Message
    from outbox.demo.engines import PrivateNats
    from outbox.embedded import PrivatePostgres


class RouterHarness:
    """Topics below ``far`` go to JetStream, those below ``near`` to the broker in this process; a key goes to both in turn."""

    topics = ("far.orders", "near.orders")
    answers_within = JetStreamSinkHarness.answers_within + InProcessSinkHarness.answers_within
    cancelled_within = JetStreamSinkHarness.cancelled_within
    outage = InProcessSinkHarness.outage

    def __init__(self, far: JetStreamSinkHarness, near: InProcessSinkHarness) -> None:
        self._far, self._near = far, near
        self.sink: Sink = self._router(far.sink)

    async def stored(self) -> list[Message]:
        return await self._far.stored() + await self._near.stored()

    async def go_away(self) -> None:
        await asyncio.gather(self._far.go_away(), self._near.go_away())

    async def come_back(self) -> None:
        await asyncio.gather(self._far.come_back(), self._near.come_back())

    async def freeze(self) -> None:
        await asyncio.gather(self._far.freeze(), self._near.freeze())

    async def thaw(self) -> None:
        await asyncio.gather(self._far.thaw(), self._near.thaw())

    def too_large(self) -> list[Message]:
        return self._far.too_large() + self._near.too_large()

    def invalid(self) -> list[Message]:
        return [each._replace(topic=f"far.{each.topic}") for each in self._far.invalid()] + [message("near..orders")]

    def without_destination(self) -> Sink:
        return self._router(self._far.without_destination())

    async def make_destination(self) -> None:
        await self._far.make_destination()

    def _router(self, far: Sink) -> Router:
        return Router([Route(Pattern("far.>"), far), Route(Pattern("near.>"), self._near.sink)])


class TestRouter(SinkContract):
    @pytest.fixture
    async def sink_harness(self, private_nats: PrivateNats) -> AsyncIterator[RouterHarness]:
        topics = RouterHarness.topics
        async with jetstream_sink(private_nats, topics) as far, inprocess_sink(topics) as near:
            yield RouterHarness(far, near)

    async def test_without_a_route_it_is_rejected_and_holds_back_its_key(self, sink_harness: SinkHarness) -> None:
        """More than the contract: the fault that only a Router knows."""
        [first, *others] = series(sink_harness.topics, 4)
        outcomes = await sink_harness.sink.publish([first, message("nowhere", key=first.key), *others])
        assert isinstance(outcomes[1], Rejected)
        assert outcomes[1].reason is Reason.NO_ROUTE
        assert [outcomes[0], *outcomes[2:]] == [PUBLISHED, BEHIND, BEHIND, BEHIND]

    async def test_one_destination_away_harms_only_what_goes_there(self, sink_harness: SinkHarness) -> None:
        """More than the contract: a key waits where its next message goes; the other destination's keys go on."""
        assert isinstance(sink_harness, RouterHarness)
        await sink_harness._near.go_away()
        far, near = sink_harness.topics
        messages = [message(far, key="a"), message(near, key="a"), message(far, key="a"), message(far, key="b"), message(near, key="c")]
        outcomes = await sink_harness.sink.publish(messages)
        assert [type(outcome).__name__ for outcome in outcomes] == ["Published", "Released", "Released", "Published", "Released"]
        assert ids(await sink_harness.stored()) == [messages[0].id, messages[3].id]


class ObservedSinkHarness(InProcessSinkHarness):
    def __init__(self) -> None:
        super().__init__(("orders.created", "orders.paid"))
        self.sink = self._observed(self.sink)

    def without_destination(self) -> Sink:
        return self._observed(super().without_destination())

    def _observed(self, sink: Sink) -> Sink:
        return ObservedSink(sink, "inprocess", Metrics(CollectorRegistry()))


class TestObservedSink(SinkContract):
    @pytest.fixture
    async def sink_harness(self) -> AsyncIterator[ObservedSinkHarness]:
        harness = ObservedSinkHarness()
        await harness.come_back()
        yield harness
        await harness.go_away()


class GuardedSinkHarness(InProcessSinkHarness):
    """Behind a breaker that tries again almost at once, so that the suite need not wait for it."""

    def __init__(self) -> None:
        super().__init__(("orders.created", "orders.paid"))
        self.sink = self._guarded(self.sink)

    def without_destination(self) -> Sink:
        return self._guarded(super().without_destination())

    def _guarded(self, sink: Sink) -> Sink:
        return GuardedSink(sink, Breaker("inprocess", Backoff(first=1e-6, cap=1e-6)))


class TestGuardedSink(SinkContract):
    @pytest.fixture
    async def sink_harness(self) -> AsyncIterator[GuardedSinkHarness]:
        harness = GuardedSinkHarness()
        await harness.come_back()
        yield harness
        await harness.go_away()


class TestHandlerSink(SinkContract):
    """Its destination is a table; what a handler never accepts is a row in ``consumer_dead``, and so the consumer has it: Published."""

    @pytest.fixture
    async def sink_harness(self, private_postgres: PrivatePostgres, private_schemas: str) -> AsyncIterator[HandlerSinkHarness]:
        async with handler_sink(private_postgres) as harness:
            yield harness

    async def test_too_large_is_rejected_and_harms_no_other(self, sink_harness: SinkHarness) -> None:
        """Different: it is Published, since the consumer keeps its own dead letters and its broker is to be told no more about it."""
        assert isinstance(sink_harness, HandlerSinkHarness)
        fault = sink_harness.unacceptable()
        others = [*series(sink_harness.topics, 8, keys=3), *(message(sink_harness.topics[0], n) for n in range(8))]
        assert kinds(await sink_harness.sink.publish([*others[:12], fault, *others[12:]])) == {"Published"}
        assert set(ids(await sink_harness.stored())) == set(ids(others))
        assert await sink_harness.dead() == {fault.id: 3}

    async def test_invalid_is_rejected_and_harms_no_other(self, sink_harness: SinkHarness) -> None:
        """Different: a topic is no address here, so that none is invalid."""
        odd = [message(topic) for topic in ("with blank", "wild.*", "", "x" * 300)]
        assert kinds(await sink_harness.sink.publish(odd)) == {"Published"}
        assert set(ids(await sink_harness.stored())) == set(ids(odd))

    async def test_key_prefix_holds_when_a_message_is_rejected(self, sink_harness: SinkHarness) -> None:
        """Different: a key goes on when its message is dead, and not before; no message of it overtakes another."""
        assert isinstance(sink_harness, HandlerSinkHarness)
        fault = sink_harness.unacceptable()
        guilty = series(sink_harness.topics, 4, key="guilty")
        innocent = series(sink_harness.topics, 4, key="innocent")
        messages = [*guilty[:2], fault._replace(key=guilty[0].key), *innocent, *guilty[2:]]
        assert kinds(await sink_harness.sink.publish(messages)) == {"Published"}
        stored = await sink_harness.stored()
        assert [each.id for each in stored if each.key == guilty[0].key] == ids(guilty)
        assert [each.id for each in stored if each.key == innocent[0].key] == ids(innocent)
        assert await sink_harness.dead() == {fault.id: 3}

    async def test_missing_destination_is_released(self, sink_harness: SinkHarness) -> None:
        """Different: without its tables there is no telling them from the handler's, so it says unavailable after its attempts."""
        sink = sink_harness.without_destination()
        messages = series(sink_harness.topics[:1], 5)
        assert kinds(await sink.publish(messages)) <= {"Released unavailable", "Released stopping", "Released missing"}
        await sink_harness.make_destination()

        async def all_published() -> bool:
            return kinds(await sink.publish(messages)) == {"Published"}

        await eventually(all_published, what="the sink finds its tables")

    async def test_does_not_raise_for_a_brokers_trouble(self, sink_harness: SinkHarness) -> None:
        """Different: it has no deadline for the database; the Bridge's cancels it. Nothing is counted or dead for that."""
        assert isinstance(sink_harness, HandlerSinkHarness)
        await self._works(sink_harness)
        messages = series(sink_harness.topics, 30, keys=5)
        await sink_harness.freeze_server()
        try:
            publishing = asyncio.create_task(sink_harness.sink.publish(messages))
            await asyncio.wait({publishing}, timeout=0.5)
            publishing.cancel()
            await asyncio.wait({publishing}, timeout=15)  # psycopg waits for its own request to cancel, ten seconds on a frozen server
            assert publishing.cancelled()
        finally:
            await sink_harness.thaw_server()
        await eventually(lambda: self._published(sink_harness), within=30, what="the sink works again")
        assert kinds(await sink_harness.sink.publish(messages)) == {"Published"}
        assert await sink_harness.dead() == {}
        assert sorted(ids(await sink_harness.stored()), key=str).count(messages[0].id) == 1
