"""The one loop: claim a batch from the source, publish it to the sink, settle the batch by its outcomes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bridges.breaker import OUTAGE, Breaker, trouble_in
from bridges.errors import ConfigurationError, SourceUnavailable
from bridges.ports import Published, Reason, Released

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from bridges.backoff import Backoff
    from bridges.message import Message
    from bridges.ports import Outcome, Sink, Source


class Bridge:
    """Moves messages from a source to a sink until it is stopped.

    Up to ``claims`` batches are in flight at once, and, as long as each claim finds all that it asks for, the next ones begin meanwhile.
    `run` ends after `stop`, when what is in flight was settled or, after ``drain_timeout``, given back; cancelling it gives back at once.
    An error that is not an outage ends it: it comes out of `run` in an ExceptionGroup.

    Args:
        source: owned by this bridge while it runs.
        sink: may be shared.
        name: for the log.
        batch: messages a claim takes at the most.
        claims: batches in flight at the most.
        idle: seconds after which an idle source is claimed from again without a sign from it.
        publish_timeout: seconds a publish may take; what it has not answered by then is released.
        drain_timeout: seconds that `run` goes on after `stop` for what is in flight.
        outage: how long to wait between tries while the source or the sink is away.
    """

    def __init__(
        self,
        source: Source,
        sink: Sink,
        *,
        name: str = "bridge",
        batch: int = 1000,
        claims: int = 2,
        idle: float = 30.0,
        publish_timeout: float = 30.0,
        drain_timeout: float = 30.0,
        outage: Backoff = OUTAGE,
    ) -> None:
        for setting, value in {"batch": batch, "claims": claims}.items():
            if value < 1:
                msg = f"{setting}: {value} is below 1"
                raise ConfigurationError(msg)
        self._source = source
        self._sink = sink
        self._name = name
        self._batch = batch
        self._claims = claims
        self._idle = idle
        self._publish_timeout = publish_timeout
        self._drain_timeout = drain_timeout
        self._source_breaker = Breaker(f"{name}, its source", outage)
        self._sink_breaker = Breaker(f"{name}, its sink", outage)
        self._stopping = asyncio.Event()
        self._plenty: bool | None = None
        """Whether the last claim found all that it asked for; None: that is not known, or was asked about since."""

    def stop(self) -> None:
        """Claim nothing more. Any number of times, from any state."""
        self._stopping.set()

    async def run(self) -> None:
        """Move messages until `stop`."""
        deliveries: dict[asyncio.Task[None], asyncio.Future[None]] = {}
        slots = asyncio.Semaphore(self._claims)
        async with asyncio.TaskGroup() as group:
            while not self._stopping.is_set() and await self._turn(slots):
                claimed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                delivery = group.create_task(self._deliver(claimed, slots), name=f"{self._name}: delivery")
                deliveries[delivery] = claimed
                delivery.add_done_callback(deliveries.pop)
                if not self._plenty:  # else the next claim need not wait for what this one finds
                    await self._unless_stopped(asyncio.shield(claimed))
            for delivery, claimed in deliveries.items():
                if not claimed.done():
                    delivery.cancel()  # it holds nothing yet
            if deliveries:
                await asyncio.wait(deliveries, timeout=self._drain_timeout)
                for delivery in deliveries:
                    delivery.cancel()

    async def _turn(self, slots: asyncio.Semaphore) -> bool:
        """Wait until a batch may be claimed, and take a slot for it; or say that none may any more, since it is to stop."""
        if not await self._unless_stopped(slots.acquire()):
            return False
        if self._plenty is False:
            # Everything there was is taken: the source knows when there may be more.
            self._plenty = None
            if not await self._unless_stopped(self._source.wait(self._idle)):
                return False
        # The breakers' backoff: nobody rings when what is away comes back. Nothing is waited for while nothing is away.
        return await self._unless_stopped(asyncio.sleep(self._pause()))

    async def _deliver(self, claimed: asyncio.Future[None], slots: asyncio.Semaphore) -> None:
        try:
            async with self._source.claim(self._batch) as batch:
                self._source_breaker.succeeded()
                claimed.set_result(None)
                self._plenty = len(batch.messages) >= self._batch
                if batch.messages:
                    outcomes = await self._publish(batch.messages)
                    await batch.settle(outcomes)
                    self._judge(outcomes)
        except SourceUnavailable as problem:
            self._plenty = None
            self._source_breaker.failed(Released(Reason.UNAVAILABLE, str(problem)))
        finally:
            slots.release()
            if not claimed.done():
                claimed.set_result(None)

    async def _publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        try:
            async with asyncio.timeout(self._publish_timeout):
                return await self._sink.publish(messages)
        except TimeoutError:
            late = Released(Reason.TIMEOUT, f"the sink did not answer within {self._publish_timeout:g} s")
            return [late] * len(messages)

    def _pause(self) -> float:
        """Return the seconds until the next try, if something is away."""
        return max(self._source_breaker.remaining(), self._sink_breaker.remaining())

    def _judge(self, outcomes: Sequence[Outcome]) -> None:
        # A destination with a name has a breaker of its own, and its messages a place of their own to wait in.
        if trouble := trouble_in([outcome for outcome in outcomes if not (isinstance(outcome, Released) and outcome.destination)]):
            self._plenty = None  # the next try is one batch
            self._sink_breaker.failed(trouble)
        elif any(isinstance(outcome, Published) for outcome in outcomes):
            self._sink_breaker.succeeded()

    async def _unless_stopped(self, wait: Coroutine[object, object, object] | asyncio.Future[None]) -> bool:
        """Wait for one thing, or for `stop`; say whether the thing came. What is not waited for any more is cancelled."""
        waiting = asyncio.ensure_future(wait)
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                waiting.result()  # an error in it is ours
                return True
            return False
        finally:
            for task in (waiting, stopped):
                if not task.done():
                    task.cancel()
