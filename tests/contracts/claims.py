"""Claiming from a Source as a Bridge would, until what is expected has come."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bridges.envelope import REPLAYED
from bridges.errors import SourceUnavailable
from bridges.ports import PUBLISHED, Outcome, Source
from tests.engines.deadline import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridges.message import Message


async def claimed(source: Source, judge: Callable[[Sequence[Message]], Sequence[Outcome] | None], *, limit: int = 100) -> list[Message]:
    """Claim once and settle as ``judge`` says, or not at all for None; return what was in the claim."""
    async with source.claim(limit) as batch:
        messages = list(batch.messages)
        if (outcomes := judge(messages)) is not None:
            await batch.settle(outcomes)
        return messages


async def drain(source: Source, count: int, *, outcome: Outcome = PUBLISHED, limit: int = 100, within: float = 20.0) -> list[Message]:
    """Claim until ``count`` messages came, each settled with ``outcome``; fail if one comes twice, or too late."""
    got: list[Message] = []

    async def all_came() -> bool:
        try:
            batch = await claimed(source, lambda messages: [outcome] * len(messages), limit=limit)
        except SourceUnavailable:
            return False
        assert len(batch) <= limit
        got.extend(batch)
        return len(got) >= count

    await eventually(all_came, within=within, what=f"{count} messages ({len(got)} came)")
    copies = {(each.id, each.headers.get(REPLAYED)) for each in got}  # one that is replayed comes beside the first
    assert len(copies) == len(got), "a message came twice"
    assert len(got) == count
    return got


async def cancelled(task: asyncio.Task[object] | asyncio.Task[list[Message]] | asyncio.Task[None]) -> None:
    """Cancel the task and wait for its end, whatever that is."""
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.done()
    if not task.cancelled() and (problem := task.exception()) is not None:
        assert isinstance(problem, SourceUnavailable)
