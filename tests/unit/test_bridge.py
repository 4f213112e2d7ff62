"""The one loop: what it does with its batches when all is well, when it is stopped, and when something is away."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from bridges.backoff import Backoff
from bridges.bridge import Bridge
from bridges.errors import ConfigurationError, SourceUnavailable
from bridges.ports import BEHIND, PUBLISHED, Batch, Outcome, Published, Reason, Rejected, Released, Retry
from tests.engines.deadline import eventually
from tests.unit.fakes import FakeSink, FakeSource, batch_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bridges.message import Message

SOON = Backoff(first=0.001, cap=0.001)
AWAY = Released(Reason.UNAVAILABLE, "connection refused")


class Gate:
    """A publish that waits to be let through."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.opened = asyncio.Event()
        self.inside = 0

    async def __call__(self, messages: Sequence[Message]) -> list[Outcome]:
        self.inside += 1
        self.entered.set()
        await self.opened.wait()
        return [PUBLISHED] * len(messages)


async def stopped_when_drained(bridge: Bridge, source: FakeSource) -> None:
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(bridge.run())
        await source.drained.wait()
        bridge.stop()


async def is_true(value: bool) -> bool:
    return value


def answering(*answers: Outcome | Exception) -> FakeSink:
    """Give one answer for every message of the first call, the next for the second, and the last for all that follow."""
    left = list(answers)

    async def publish(messages: Sequence[Message]) -> list[Outcome]:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return [answer] * len(messages)

    return FakeSink(publish)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "outboxd.breaker"]


async def test_every_batch_is_published_and_settled_by_its_outcomes() -> None:
    first, second = batch_of(None, "a"), batch_of("b")
    source, sink = FakeSource(first, second), FakeSink()
    await stopped_when_drained(Bridge(source, sink), source)
    assert sink.calls == [first, second]
    assert source.settled == [(first, [PUBLISHED, PUBLISHED]), (second, [PUBLISHED])]


async def test_a_claim_is_of_at_most_batch_messages() -> None:
    source, sink = FakeSource(batch_of(*[None] * 5)), FakeSink()
    await stopped_when_drained(Bridge(source, sink, batch=3), source)
    assert [len(call) for call in sink.calls] == [3]


async def test_nothing_is_published_for_an_empty_claim_and_the_source_is_waited_on() -> None:
    source, sink = FakeSource(), FakeSink()
    await stopped_when_drained(Bridge(source, sink, idle=12.5), source)
    assert sink.calls == []
    assert source.waits == [12.5]


async def test_a_full_claim_is_followed_by_another_without_a_wait() -> None:
    source = FakeSource(batch_of(None, None), batch_of(None, None), batch_of(None))
    await stopped_when_drained(Bridge(source, FakeSink(), batch=2), source)
    assert source.claims == 3
    assert len(source.waits) == 1


async def test_a_claim_does_not_wait_for_what_the_last_finds_while_there_is_plenty() -> None:
    """And the first that is not full ends that: what is found in a short queue is found by one after the other."""
    looking, found = asyncio.Event(), asyncio.Event()

    class Slow(FakeSource):
        @asynccontextmanager
        async def claim(self, limit: int) -> AsyncIterator[Batch]:
            async with super().claim(limit) as batch:
                if self.claims == 3:
                    looking.set()
                if self.claims > 1:
                    await found.wait()
                yield batch

    source = Slow(batch_of(None), batch_of(None), [], batch_of(None))
    bridge = Bridge(source, FakeSink(), batch=1, claims=2)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(bridge.run())
        await looking.wait()
        assert len(source.settled) == 1, "two look at once, and neither has found anything"
        found.set()
        await source.drained.wait()
        bridge.stop()
    assert len(source.settled) == 3


async def test_in_an_outage_each_try_is_one_batch_however_much_there_is() -> None:
    source = FakeSource(*[batch_of(None, "a")] * 60)
    tries = 0

    async def refuse(messages: Sequence[Message]) -> Sequence[Outcome]:
        nonlocal tries
        tries += 1
        if tries == 10:
            bridge.stop()
        return [AWAY] * len(messages)

    bridge = Bridge(source, FakeSink(refuse), batch=2, claims=4, outage=SOON)
    async with asyncio.timeout(10):
        await bridge.run()
    assert source.claims <= 11
    assert bridge._sink_breaker._failures == 10


async def test_an_outage_that_begins_while_the_source_is_waited_on_is_backed_off_from() -> None:
    """What comes meanwhile rings, and is not tried at once: it is one outage, of one try each time."""
    refused, rung = asyncio.Event(), asyncio.Event()
    left: list[float] = []

    class Rung(FakeSource):
        async def wait(self, timeout: float) -> None:
            rung.set()
            await refused.wait()

    async def refuse(messages: Sequence[Message]) -> Sequence[Outcome]:
        await rung.wait()
        left.append(bridge._pause())
        if len(left) == 2:
            bridge.stop()
        asyncio.get_running_loop().call_soon(refused.set)
        return [AWAY] * len(messages)

    bridge = Bridge(Rung(batch_of(None), batch_of(None)), FakeSink(refuse), batch=2, claims=2, outage=Backoff(first=1.0))
    async with asyncio.timeout(10):
        await bridge.run()
    assert left == [0, 0], "seconds of the backoff that are left at each try"


async def test_a_bridge_that_was_cancelled_while_it_backed_off_runs_again() -> None:
    source = FakeSource(SourceUnavailable("away"), batch_of(None))
    bridge = Bridge(source, FakeSink(), outage=Backoff(first=3600.0, cap=3600.0), claims=1)
    async with asyncio.timeout(10):
        running = asyncio.create_task(bridge.run())
        await eventually(lambda: is_true(bool(bridge._pause())), what="the wait")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        bridge._source_breaker.succeeded()
        running = asyncio.create_task(bridge.run())
        await source.drained.wait()
        bridge.stop()
        await running
    assert len(source.settled) == 1


async def test_a_stop_ends_all_that_look_and_nothing_that_has_found() -> None:
    gate, looking = Gate(), asyncio.Event()

    class Slow(FakeSource):
        @asynccontextmanager
        async def claim(self, limit: int) -> AsyncIterator[Batch]:
            if self.claims:
                self.claims += 1
                if self.claims == 3:
                    looking.set()
                await asyncio.Event().wait()
            async with super().claim(limit) as batch:
                yield batch

    source = Slow(batch_of(None))
    bridge = Bridge(source, FakeSink(gate), batch=1, claims=3)
    async with asyncio.timeout(10):
        running = asyncio.create_task(bridge.run())
        await gate.entered.wait()
        await looking.wait()
        bridge.stop()
        gate.opened.set()
        await running
    assert (len(source.settled), source.given_back) == (1, [])


async def test_a_graceful_stop_settles_what_is_in_flight() -> None:
    gate, batch = Gate(), batch_of(None, "a")
    source = FakeSource(batch)
    bridge = Bridge(source, FakeSink(gate))
    async with asyncio.timeout(10):
        running = asyncio.create_task(bridge.run())
        await gate.entered.wait()
        bridge.stop()
        gate.opened.set()
        await running
    assert source.settled == [(batch, [PUBLISHED, PUBLISHED])]
    assert source.given_back == []


async def test_after_the_drain_timeout_what_is_in_flight_is_given_back() -> None:
    gate, batch = Gate(), batch_of(None)
    source = FakeSource(batch)
    bridge = Bridge(source, FakeSink(gate), drain_timeout=0.01)
    async with asyncio.timeout(10):
        running = asyncio.create_task(bridge.run())
        await gate.entered.wait()
        bridge.stop()
        await running
    assert (source.settled, source.given_back) == ([], [batch])


async def test_stopped_before_it_ran_it_claims_nothing() -> None:
    source = FakeSource(batch_of(None))
    bridge = Bridge(source, FakeSink())
    bridge.stop()
    async with asyncio.timeout(10):
        await bridge.run()
    assert source.claims == 0


async def test_it_may_be_stopped_twice_and_after_its_end() -> None:
    source = FakeSource()
    bridge = Bridge(source, FakeSink())
    bridge.stop()
    bridge.stop()
    async with asyncio.timeout(10):
        await bridge.run()
    bridge.stop()


async def test_a_stop_interrupts_a_claim_that_does_not_answer() -> None:
    """It holds nothing yet."""

    asked = asyncio.Event()

    class Silent(FakeSource):
        @asynccontextmanager
        async def claim(self, limit: int) -> AsyncIterator[Batch]:
            asked.set()
            await asyncio.Event().wait()
            yield pytest.fail("it was never entered")

    bridge = Bridge(Silent(), FakeSink())
    async with asyncio.timeout(10):
        running = asyncio.create_task(bridge.run())
        await asked.wait()
        bridge.stop()
        await running


async def test_cancelled_it_gives_back_at_once() -> None:
    gate, batch = Gate(), batch_of(None, "a")
    source = FakeSource(batch)
    running = asyncio.create_task(Bridge(source, FakeSink(gate)).run())
    async with asyncio.timeout(10):
        await gate.entered.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert (source.settled, source.given_back) == ([], [batch])


@pytest.mark.parametrize("claims", [1, 2, 3])
async def test_no_more_than_claims_batches_are_in_flight(claims: int) -> None:
    gate = Gate()
    source = FakeSource(*[batch_of(None)] * 8)
    bridge = Bridge(source, FakeSink(gate), claims=claims, batch=1)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(bridge.run())
        await eventually(lambda: is_true(gate.inside == claims), what="as many publishes as claims")
        for _ in range(20):  # turns of the loop, in which a batch too many would be claimed
            await asyncio.sleep(0)
        assert gate.inside == source.in_flight == claims
        gate.opened.set()
        await source.drained.wait()
        bridge.stop()
    assert source.most_in_flight == claims
    assert len(source.settled) == 8


async def test_what_a_publish_does_not_answer_in_time_is_released() -> None:
    batch = batch_of(None, "a")
    source = FakeSource(batch)
    await stopped_when_drained(Bridge(source, FakeSink(Gate()), publish_timeout=0.01, outage=SOON), source)
    ((_, outcomes),) = source.settled
    assert len(outcomes) == 2
    for outcome in outcomes:
        assert isinstance(outcome, Released)
        assert outcome.reason is Reason.TIMEOUT
        assert "0.01 s" in outcome.detail


async def test_a_programming_error_in_the_sink_ends_run_with_that_error_and_gives_back() -> None:
    batch = batch_of(None)
    source = FakeSource(batch)
    async with asyncio.timeout(10):
        with pytest.RaisesGroup(ZeroDivisionError, allow_unwrapped=True, flatten_subgroups=True):
            await Bridge(source, answering(ZeroDivisionError("a mistake"))).run()
    assert (source.settled, source.given_back) == ([], [batch])


async def test_a_programming_error_in_the_source_ends_run_with_that_error() -> None:
    async with asyncio.timeout(10):
        with pytest.RaisesGroup(LookupError, allow_unwrapped=True, flatten_subgroups=True):
            await Bridge(FakeSource(LookupError("a mistake")), FakeSink()).run()


async def test_while_the_sink_is_away_it_backs_off_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    source = FakeSource(*[batch_of(None, "a")] * 6)
    sink = answering(AWAY, AWAY, AWAY, AWAY, PUBLISHED)
    await stopped_when_drained(Bridge(source, sink, name="pump", claims=1, batch=2, outage=SOON), source)
    begins, ends = lines(caplog)
    assert begins == "pump, its sink: outage begins: unavailable: connection refused"
    assert ends.startswith("pump, its sink: outage ends after ")
    assert "4 tries" in ends
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


async def test_while_the_source_is_away_it_backs_off_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    away = SourceUnavailable("no route to host")
    source = FakeSource(away, away, away, batch_of(None), batch_of(None))
    await stopped_when_drained(Bridge(source, FakeSink(), name="pump", claims=1, batch=1, outage=SOON), source)
    begins, ends = lines(caplog)
    assert begins == "pump, its source: outage begins: unavailable: no route to host"
    assert "outage ends" in ends
    assert "3 tries" in ends


async def test_the_wait_between_tries_is_the_policys() -> None:
    """Nothing is claimed while it lasts; a stop ends it."""
    source = FakeSource(SourceUnavailable("away"), batch_of(None))
    slow = Backoff(first=3600.0, cap=3600.0)
    bridge = Bridge(source, FakeSink(), outage=slow, claims=1)
    async with asyncio.timeout(10):
        running = asyncio.create_task(bridge.run())
        await eventually(lambda: is_true(bool(bridge._pause())), what="the wait")
        for _ in range(20):
            await asyncio.sleep(0)
        assert source.claims == 1
        bridge.stop()
        await running


@pytest.mark.parametrize("outcome", [BEHIND, Released(Reason.STOPPING), Retry(Reason.REFUSED), Rejected(Reason.INVALID)])
async def test_what_is_no_outage_is_not_called_one(outcome: Outcome, caplog: pytest.LogCaptureFixture) -> None:
    source = FakeSource(batch_of(None))
    await stopped_when_drained(Bridge(source, answering(outcome), claims=1), source)
    assert lines(caplog) == []


@pytest.mark.parametrize("setting", ["batch", "claims"])
async def test_a_setting_below_one_is_refused(setting: str) -> None:
    settings: dict[str, Any] = {setting: 0}
    with pytest.raises(ConfigurationError, match=f"^{setting}: 0 is below 1$"):
        Bridge(FakeSource(), FakeSink(), **settings)


async def test_an_outage_of_the_source_ends_with_the_first_claim_that_finds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """An empty outbox after a restart of Postgres is no outage any more."""
    # A backoff with jitter may be over before anybody looks: that is no reason to wait for a sign from a source that gave none.
    at_once = Backoff(first=1e-12, cap=1e-12)
    bridge = Bridge(FakeSource(SourceUnavailable("away")), FakeSink(), name="pump", claims=1, outage=at_once)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(bridge.run())
        await eventually(lambda: is_true(len(lines(caplog)) == 2), what="the end of the outage")
        bridge.stop()
    assert [line.split(":")[1].split(" after")[0].strip() for line in lines(caplog)] == ["outage begins", "outage ends"]


async def test_duplicates_are_published(caplog: pytest.LogCaptureFixture) -> None:
    source = FakeSource(batch_of(None), batch_of(None))
    await stopped_when_drained(Bridge(source, answering(AWAY, Published(duplicate=True)), claims=1, batch=1, outage=SOON), source)
    assert len(lines(caplog)) == 2, "a duplicate ends an outage too"
