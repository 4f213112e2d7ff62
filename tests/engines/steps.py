"""Cancelling something at its nth step: the nth time that it, or anything it has started, waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any


class Steps:
    """Counts how often the tasks of a loop wait, and calls somebody at a chosen count."""

    def __init__(self) -> None:
        self.taken = 0
        self._at = 0
        self._task: asyncio.Task[Any] | None = None

    def cancel(self, task: asyncio.Task[Any], at: int) -> None:
        """Cancel the task when so many steps have been taken from now on."""
        self.taken, self._at, self._task = 0, at, task

    def make_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        """Be the loop's task factory."""
        return asyncio.Task(self._counted(coroutine), loop=loop, **options)

    async def _counted(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return await _Counted(coroutine, self)

    def note(self) -> None:
        self.taken += 1
        if self.taken == self._at and self._task is not None:
            self._task.get_loop().call_soon(self._task.cancel)


class _Counted(Awaitable[Any]):
    def __init__(self, coroutine: Coroutine[Any, Any, Any], steps: Steps) -> None:
        self._coroutine = coroutine
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._coroutine.__await__()
        try:
            waited_for = next(inner)
            while True:
                self._steps.note()
                try:
                    sent = yield waited_for
                except BaseException as problem:  # noqa: BLE001 - handed on, as `yield from` does
                    waited_for = inner.throw(problem)
                else:
                    waited_for = inner.send(sent)
        except StopIteration as ended:
            return ended.value
