"""What every Source, and every wrapper of one, has to keep: the sentences of design.md, section 5."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

import pytest

from bridges.backoff import Backoff
from bridges.errors import SourceUnavailable
from bridges.ports import BEHIND, PUBLISHED, Outcome, Reason, Rejected, Released, Retry, Source
from tests.contracts.claims import cancelled, claimed, drain
from tests.contracts.messages import awkward, by_key, ids, message, series
from tests.engines.deadline import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.message import Message

RETRY: Final = Backoff(first=0.05, cap=0.05, max_attempts=3)
"""What a harness makes its source with."""

AWAY = Released(Reason.UNAVAILABLE, "the sink is away")
UNCLEAR = Retry(Reason.REFUSED, "nobody knows why")
NEVER = Rejected(Reason.TOO_LARGE, "larger than allowed")


class SourceHarness(Protocol):
    """A source at its origin, both made for one test."""

    @property
    def topics(self) -> Sequence[str]:
        """Two topics that the source takes."""

    @property
    def redelivers_within(self) -> float:
        """Seconds after which what a lost claim held is there again."""

    @property
    def source(self) -> Source: ...

    async def feed(self, messages: Sequence[Message]) -> None:
        """Put messages where the source takes them from, in their order."""

    async def go_away(self) -> None: ...

    async def come_back(self) -> None: ...

    async def made_again(self) -> Source:
        """Close the source, and return another at the same place, as after a restart of the process."""

    async def dead(self) -> dict[object, str] | None:
        """The reasons of the dead letters by id; None where a source only logs what it gives up."""


class SourceContract:
    """Tests of a Source, by its harness; a fixture of that name is in the class that runs them."""

    middles: ClassVar[dict[str, Outcome]] = {"released": AWAY, "retried": UNCLEAR, "rejected": NEVER}

    async def test_claim_returns_what_was_fed(self, source_harness: SourceHarness) -> None:
        """Each message whole, whatever is in its fields."""
        fed = [each for topic in source_harness.topics for each in awkward(topic)]
        await source_harness.feed(fed)
        got = {each.id: each for each in await drain(source_harness.source, len(fed))}
        assert set(got) == {each.id for each in fed}
        for each in fed:
            assert got[each.id]._replace(headers=dict(got[each.id].headers)) == each._replace(headers=dict(each.headers))

    async def test_a_claim_takes_no_more_than_its_limit_and_keeps_the_order_of_each_key(self, source_harness: SourceHarness) -> None:
        fed = series(source_harness.topics[:1], 60, keys=6)
        await source_harness.feed(fed)
        got = await drain(source_harness.source, len(fed), limit=7)
        assert by_key(got) == by_key(fed)

    async def test_an_empty_claim_has_no_messages(self, source_harness: SourceHarness) -> None:
        async with source_harness.source.claim(10) as batch:
            assert list(batch.messages) == []
        async with source_harness.source.claim(10) as batch:
            await batch.settle([])

    async def test_leaving_without_settling_gives_all_back(self, source_harness: SourceHarness) -> None:
        """In order, also when an error is what ends the claim."""
        fed = series(source_harness.topics[:1], 12, keys=2)
        await source_harness.feed(fed)
        await eventually(lambda: claimed(source_harness.source, lambda batch: None), what="a claim with messages in it")
        with pytest.raises(ZeroDivisionError):
            await claimed(source_harness.source, lambda batch: [PUBLISHED for _ in range(1 // 0)])
        assert by_key(await drain(source_harness.source, len(fed))) == by_key(fed)

    async def test_published_is_not_delivered_again(self, source_harness: SourceHarness) -> None:
        """Not by this source, and not by one that is made after it."""
        fed = series(source_harness.topics, 20, keys=4)
        await source_harness.feed(fed)
        await drain(source_harness.source, len(fed))
        marker = message(source_harness.topics[0], key="marker")
        await source_harness.feed([marker])
        assert ids(await drain(source_harness.source, 1)) == [marker.id]
        source = await source_harness.made_again()
        again = message(source_harness.topics[0], key="again")
        await source_harness.feed([again])
        assert ids(await drain(source, 1)) == [again.id]

    async def test_released_is_delivered_again(self, source_harness: SourceHarness) -> None:
        """More often than there are attempts, and at once."""
        fed = series(source_harness.topics[:1], 3, keys=3)
        await source_harness.feed(fed)
        released = Counter[object]()

        async def all_released_often() -> bool:
            """A claim may have a part of them, which is there again before the others have come."""
            released.update(ids(await claimed(source_harness.source, lambda batch: [AWAY] * len(batch))))
            assert set(released) <= set(ids(fed))
            return all(released[each.id] >= (RETRY.max_attempts or 0) for each in fed)

        await eventually(all_released_often)
        began = time.monotonic()
        assert set(ids(await drain(source_harness.source, len(fed)))) == set(ids(fed))
        assert time.monotonic() - began < 5

    async def test_released_is_not_counted(self, source_harness: SourceHarness) -> None:
        """After as many releases as there are attempts, and as many claims that were only left, the first Retry is the first."""
        [fed] = series(source_harness.topics[:1], 1)
        await source_harness.feed([fed])
        for _ in range(RETRY.max_attempts or 0):
            await drain(source_harness.source, 1, outcome=AWAY)
            await eventually(lambda: claimed(source_harness.source, lambda batch: None))
        await drain(source_harness.source, 1, outcome=UNCLEAR)
        assert await self._comes_again(source_harness, fed), "given up after one attempt"

    async def test_retry_is_delivered_again_later(self, source_harness: SourceHarness) -> None:
        """When its time has come, and no other key waits for it."""
        slow = message(source_harness.topics[0], key="slow")
        await source_harness.feed([slow])
        began = time.monotonic()
        await drain(source_harness.source, 1, outcome=Retry(Reason.REFUSED, "later", after=1.5))
        quick = message(source_harness.topics[1], key="quick")
        await source_harness.feed([quick])
        assert ids(await drain(source_harness.source, 1)) == [quick.id]
        assert ids(await drain(source_harness.source, 1)) == [slow.id]
        assert 1.4 < time.monotonic() - began < 6

    async def test_retry_is_given_up_after_its_last_attempt(self, source_harness: SourceHarness) -> None:
        [fed] = series(source_harness.topics[:1], 1)
        await source_harness.feed([fed])
        for _ in range(RETRY.max_attempts or 0):
            assert ids(await drain(source_harness.source, 1, outcome=UNCLEAR)) == [fed.id]
        assert not await self._comes_again(source_harness, fed)
        assert await source_harness.dead() in ({fed.id: Reason.ATTEMPTS}, None)

    async def test_rejected_is_not_delivered_again(self, source_harness: SourceHarness) -> None:
        [fed] = series(source_harness.topics[:1], 1)
        await source_harness.feed([fed])
        await drain(source_harness.source, 1, outcome=NEVER)
        assert not await self._comes_again(source_harness, fed)
        assert await source_harness.dead() in ({fed.id: Reason.TOO_LARGE}, None)

    @pytest.mark.parametrize("middle", ["released", "retried", "rejected"])
    async def test_what_is_behind_an_unpublished_message_of_its_key_comes_again_in_order(
        self, source_harness: SourceHarness, middle: str
    ) -> None:
        """Three of five in a batch are not published: the second by its own fate, those behind it by that."""
        fed = series(source_harness.topics[:1], 5)
        await source_harness.feed(fed)
        await self._settle_together(source_harness, fed, [PUBLISHED, self.middles[middle], BEHIND, BEHIND, BEHIND])
        left = fed[2:] if middle == "rejected" else fed[1:]
        assert ids(await drain(source_harness.source, len(left))) == ids(left)

    async def test_no_message_is_in_two_open_claims(self, source_harness: SourceHarness) -> None:
        fed = series(source_harness.topics, 80, keys=40)
        await source_harness.feed(fed)
        seen: list[Message] = []

        async def two_claims() -> bool:
            async with source_harness.source.claim(8) as one, source_harness.source.claim(8) as other:
                assert not set(ids(one.messages)) & set(ids(other.messages))
                both = bool(one.messages and other.messages)
                for batch in (one, other):
                    seen.extend(batch.messages)
                    await batch.settle([PUBLISHED] * len(batch.messages))
                return both

        await eventually(two_claims, what="two claims with messages at once")
        seen += await drain(source_harness.source, len(fed) - len(seen))
        assert len(seen) == len(fed)
        assert set(ids(seen)) == set(ids(fed))

    async def test_wait_returns_when_something_is_fed(self, source_harness: SourceHarness) -> None:
        """Long before its timeout; it may return early, so what is measured is the way of a message through wait and claim."""
        source = source_harness.source
        assert not await claimed(source, lambda batch: None)
        [fed] = series(source_harness.topics[:1], 1)

        async def next_one() -> list[Message]:
            while not (got := await claimed(source, lambda batch: [PUBLISHED] * len(batch))):
                await source.wait(60)
            return got

        waiting = asyncio.create_task(next_one())
        await asyncio.wait({waiting}, timeout=0.3)  # asleep by now, if it sleeps at all
        await source_harness.feed([fed])
        assert ids(await asyncio.wait_for(waiting, 5)) == [fed.id]

    async def test_wait_ends_after_its_timeout(self, source_harness: SourceHarness) -> None:
        assert not await claimed(source_harness.source, lambda batch: None)
        began = time.monotonic()
        await asyncio.wait_for(source_harness.source.wait(0.3), 5)
        assert time.monotonic() - began < 2

    async def test_a_claim_abandoned_by_cancellation_is_given_back(self, source_harness: SourceHarness) -> None:
        """Cancelled with a batch in hand, and cancelled at any moment while it claims and settles: nothing is lost."""
        fed = series(source_harness.topics[:1], 40, keys=8)
        await source_harness.feed(fed)
        holding = asyncio.Event()

        async def hold() -> None:
            while True:
                async with source_harness.source.claim(100) as batch:
                    if batch.messages:
                        holding.set()
                        await asyncio.Event().wait()

        holder = asyncio.create_task(hold())
        await asyncio.wait_for(holding.wait(), 20)
        await cancelled(holder)
        got: list[Message] = []

        def take(batch: Sequence[Message]) -> list[Outcome]:
            got.extend(batch)
            return [PUBLISHED] * len(batch)

        for attempt in range(30):
            task = asyncio.create_task(claimed(source_harness.source, take, limit=2))
            await asyncio.wait({task}, timeout=0.001 * attempt)
            await cancelled(task)

        async def all_came() -> bool:
            await claimed(source_harness.source, take)
            return {each.id for each in got} >= {each.id for each in fed}

        await eventually(all_came, within=source_harness.redelivers_within + 10)

    async def test_unavailable_while_its_engine_is_away_and_recovers(self, source_harness: SourceHarness) -> None:
        """A claim that was open can not be settled, new ones are refused, and the same source goes on when the engine is back."""
        fed = series(source_harness.topics[:1], 6, keys=2)
        await source_harness.feed(fed)
        with pytest.raises(SourceUnavailable):
            await self._lose_a_claim(source_harness)

        async def refused() -> bool:
            try:
                await asyncio.wait_for(claimed(source_harness.source, lambda batch: None), 15)
            except SourceUnavailable:
                return True
            return False

        await eventually(refused, within=20, what="a claim is refused")
        await asyncio.wait_for(source_harness.source.wait(0.2), 5)
        await source_harness.come_back()
        assert by_key(await drain(source_harness.source, len(fed), within=source_harness.redelivers_within + 20)) == by_key(fed)

    async def _lose_a_claim(self, harness: SourceHarness) -> None:
        while True:
            async with harness.source.claim(100) as batch:
                if batch.messages:
                    await harness.go_away()
                    await batch.settle([PUBLISHED] * len(batch.messages))

    async def _settle_together(self, harness: SourceHarness, expected: Sequence[Message], outcomes: Sequence[Outcome]) -> None:
        async def settled() -> bool:
            def judge(batch: Sequence[Message]) -> Sequence[Outcome] | None:
                return outcomes if ids(batch) == ids(expected) else None

            return len(await claimed(harness.source, judge)) == len(expected)

        await eventually(settled, what="one claim with all of them")

    async def _comes_again(self, harness: SourceHarness, fed: Message) -> bool:
        """Whether it is delivered, at the latest with one that is fed half a second later, long after its retry was due."""
        loop = asyncio.get_running_loop()
        due = loop.time() + 10 * RETRY.cap
        found: list[Message] = []

        async def half_a_second_is_over() -> bool:
            found.extend(await claimed(harness.source, lambda batch: [PUBLISHED] * len(batch)))
            return bool(found) or loop.time() > due

        await eventually(half_a_second_is_over)
        marker = message(fed.topic, key=fed.key)
        await harness.feed([marker])

        async def marker_came() -> bool:
            found.extend(await claimed(harness.source, lambda batch: [PUBLISHED] * len(batch)))
            return marker.id in ids(found)

        await eventually(marker_came)
        assert len(set(ids(found))) == len(found), "a message came twice"
        return fed.id in ids(found)
