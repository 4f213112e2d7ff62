"""A breaker: closed, open until its backoff is over, half-open for one try; and a sink behind it."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from bridges.backoff import Backoff
from bridges.breaker import Breaker, GuardedSink
from bridges.ports import BEHIND, PUBLISHED, Outcome, Reason, Rejected, Released, Retry
from tests.engines.deadline import eventually
from tests.unit.fakes import FakeSink, message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridges.message import Message

AWAY = Released(Reason.MISSING, "no such stream")
NEVER = Backoff(first=1e6, cap=1e6)
AT_ONCE = Backoff(first=1e-9, cap=1e-9)


def answering(*answers: Outcome) -> FakeSink:
    """A sink that gives each call its answer, and the last one to all that follow."""
    remaining = list(answers)

    async def publish(messages: Sequence[Message]) -> list[Outcome]:
        answer = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return [answer] * len(messages)

    return FakeSink(publish)


async def open_breaker(backoff: Backoff) -> Breaker:
    breaker = Breaker("events", backoff)
    breaker.failed(AWAY)
    return breaker


async def test_while_it_is_open_nothing_reaches_the_sink_and_everything_is_named() -> None:
    sink = answering(AWAY)
    guarded = GuardedSink(sink, Breaker("events", NEVER))
    named = Released(Reason.MISSING, "no such stream", destination="events")
    assert await guarded.publish([message(1), message(2)]) == [named, named]
    assert await guarded.publish([message(3)]) == [named]
    assert len(sink.calls) == 1


async def test_half_open_it_lets_one_try_through_at_a_time() -> None:
    on_its_way, answer = asyncio.Event(), asyncio.Event()

    async def publish(messages: Sequence[Message]) -> list[Outcome]:
        on_its_way.set()
        await answer.wait()
        return [PUBLISHED] * len(messages)

    breaker = await open_breaker(AT_ONCE)
    guarded = GuardedSink(FakeSink(publish), breaker)
    trying = asyncio.create_task(guarded.publish([message(1)]))
    await on_its_way.wait()
    assert not breaker.due
    (meanwhile,) = await guarded.publish([message(2)])
    assert isinstance(meanwhile, Released)
    answer.set()
    assert await trying == [PUBLISHED]
    assert breaker.closed
    assert await guarded.publish([message(2)]) == [PUBLISHED]


class WithoutJitter(Backoff):
    def delay(self, attempt: int, *, uniform: Callable[[float, float], float] = max) -> float:
        return Backoff.delay(self, attempt, uniform=uniform)


async def test_a_try_that_fails_waits_longer() -> None:
    breaker = Breaker("events", WithoutJitter(first=0.005, cap=1e6))
    waits = []
    for _ in range(4):
        breaker.failed(AWAY)
        waits.append(breaker.remaining())

        async def due() -> bool:
            return breaker.due

        await eventually(due)
        assert breaker.admit()
    assert waits == sorted(waits)


async def test_what_fails_together_is_one_failure() -> None:
    breaker = await open_breaker(NEVER)
    first = breaker.remaining()
    breaker.failed(AWAY)
    assert breaker.remaining() <= first


@pytest.mark.parametrize("outcome", [Rejected(Reason.INVALID), Retry(Reason.REFUSED), BEHIND, Released(Reason.STOPPING)])
async def test_an_outcome_of_the_message_says_nothing_about_the_destination(outcome: Outcome) -> None:
    breaker = Breaker("events", NEVER)
    assert await GuardedSink(answering(outcome), breaker).publish([message(1)]) == [outcome]
    assert breaker.closed
    half_open = await open_breaker(AT_ONCE)
    await GuardedSink(answering(outcome), half_open).publish([message(1)])
    assert not half_open.closed
    assert half_open.due, "the next one may try"


async def test_a_deadline_that_passes_opens_it() -> None:
    async def publish(messages: Sequence[Message]) -> list[Outcome]:
        await asyncio.Event().wait()
        raise AssertionError

    breaker = Breaker("events", NEVER)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await GuardedSink(FakeSink(publish), breaker).publish([message(1)])
    assert not breaker.closed
    assert breaker.trouble.reason is Reason.TIMEOUT


async def test_it_says_once_that_an_outage_begins_and_once_that_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    guarded = GuardedSink(answering(AWAY, AWAY, AWAY, PUBLISHED), Breaker("events", AT_ONCE, label="sink events"))
    for number in range(5):
        await guarded.publish([message(number)])
    begins, ends = [record.getMessage() for record in caplog.records]
    assert begins == "sink events: outage begins: missing: no such stream"
    assert re.match(r"sink events: outage ends after \d+\.\d s and 3 tries", ends)
