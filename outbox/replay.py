"""Publish again what was published: the archive as a Source, joined by the one loop to one Sink.

A replay reads the archive up to the moment it began, in the order of the outbox, and ends by itself. Each copy has the same id, and the
header ``outbox-replayed`` with the replay's own: consumers recognise a duplicate by its id, and JetStream takes it for none.
A row of ``replays`` says who replayed what, and how far it came.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import psycopg

from bridges.bridge import Bridge
from bridges.envelope import REPLAYED
from bridges.errors import ConfigurationError, SourceUnavailable, told
from bridges.message import Message, uuid7
from bridges.ports import Published, Reason, Rejected, Retry
from outbox import session, sql, sql_operating
from outbox.source import RETRY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from datetime import datetime
    from typing import LiteralString
    from uuid import UUID

    from bridges.backoff import Backoff
    from bridges.ports import Outcome, Sink
    from outbox.selection import Selection

log = logging.getLogger("outboxd.replay")

_FINAL_WORD: Final = 5.0  # seconds for the last word in the audit


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """How far a replay came.

    Attributes:
        replay: its id, in ``replays`` and in the header of each copy; None if there was nothing to replay.
        matched: messages that fit the selection when it began.
        published: acknowledged.
        rejected: refused for good, or as often as a message is tried: by reason.
        complete: whether it came to its end; False if it was stopped.
        missed: of the messages that matched, those that it did not find when it came to them: the janitor has dropped them meanwhile.
    """

    replay: UUID | None
    matched: int
    published: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    complete: bool = True
    missed: int = 0


async def replay(
    dsn: str,
    selection: Selection,
    sink: Sink,
    *,
    to: str,
    everything: bool = False,
    rate: float | None = None,
    who: str | None = None,
    stop: asyncio.Event | None = None,
    publish_timeout: float = 30.0,
    retry: Backoff = RETRY,
    schema: str = "outbox",
) -> Replayed:
    """Publish the messages of the archive that are meant to the sink, and return when that is done.

    While the sink or Postgres is away it waits, and goes on by itself. Cancelled, it gives back what is in flight and says in ``replays``
    how far it came.

    Args:
        dsn: a libpq connection string or URI of the primary.
        selection: which; ``since`` and ``until`` are about when they were published. ``expires_at`` does not matter here.
        sink: where to.
        to: what ``replays`` calls the sink.
        everything: must be True if the selection is empty.
        rate: messages a second, at the most.
        who: for ``replays``, beside the session's user; the operating system's user if None.
        stop: set it to end the replay when what is in flight has been acknowledged.
        publish_timeout: seconds a page may take to be acknowledged.
        retry: how long a message waits whose failure is nobody's fault for sure, and after how many attempts it counts as rejected.
        schema: the outbox's.

    Raises `ConfigurationError` for a selection that is empty or by reason, and for a rate that is none; `SourceUnavailable` if Postgres
    cannot be reached to begin with.
    """
    selection.require_something(everything=everything)
    async with ArchiveSource(dsn, selection, rate=rate, retry=retry, schema=schema) as source:
        matched = sum((await source.count()).values())
        if not matched:
            return Replayed(replay=None, matched=0)
        await source.begin(matched, to=to, who=who)
        try:
            bridge = Bridge(source, sink, name=f"replay {source.replay}", batch=500, claims=1, publish_timeout=publish_timeout)
            await _run(bridge, source.exhausted, stop or asyncio.Event())
        finally:
            await source.end()
        return Replayed(
            replay=source.replay,
            matched=matched,
            published=source.published,
            rejected=source.rejected,
            complete=source.exhausted.is_set(),
            missed=max(0, matched - source.published - sum(source.rejected.values())) if source.exhausted.is_set() else 0,
        )


async def count_archived(dsn: str, selection: Selection, *, schema: str = "outbox") -> dict[str, int]:
    """Return how many messages `replay` would publish, by topic, the most frequent first. Raises what `replay` raises."""
    async with ArchiveSource(dsn, selection, schema=schema) as source:
        return await source.count()


async def _run(bridge: Bridge, *ends: asyncio.Event) -> None:
    """Run the bridge until one of the events ends it. Cancelled, it has given back what it held when this returns."""
    running = asyncio.create_task(bridge.run(), name="replay")
    signs = [asyncio.create_task(end.wait()) for end in ends]
    try:
        await asyncio.wait({running, *signs}, return_when=asyncio.FIRST_COMPLETED)
        bridge.stop()
        await asyncio.wait({running})
    finally:
        for task in (*signs, running):
            task.cancel()
        await asyncio.gather(*signs, running, return_exceptions=True)
    running.result()


class _Copy(NamedTuple):
    message: Message
    attempts: int = 0


class ArchiveSource:
    """Reads the archive page by page, each when all of the one before has been published or refused.

    What is released or to be tried again stays in its page. One claim at a time: the pages follow each other.

    Args:
        dsn: a libpq connection string or URI of the primary.
        selection: which messages.
        rate: messages a second, at the most.
        retry: for a `Retry`.
        schema: the outbox's.
    """

    def __init__(
        self, dsn: str, selection: Selection, *, rate: float | None = None, retry: Backoff = RETRY, schema: str = "outbox"
    ) -> None:
        if selection.reason is not None:
            msg = "reason: dead letters have one, and what was published has none"
            raise ConfigurationError(msg)
        if rate is not None and not 0 < rate < float("inf"):
            msg = f"rate: {rate!r} is not a number of messages a second above zero"
            raise ConfigurationError(msg)
        self.replay = uuid7()
        self.exhausted = asyncio.Event()
        self.published = 0
        self.rejected: dict[str, int] = {}
        self._dsn = dsn
        self._schema = schema
        self._selection = selection.told()
        self._parameters = {key: value for key, value in selection.parameters.items() if key != "reason"}
        self._rate = rate
        self._retry = retry
        self._page: list[_Copy] = []
        self._last: tuple[int, datetime] | None = None
        self._ready_at = 0.0
        self._turn = asyncio.Lock()
        self._connection: psycopg.AsyncConnection[Any] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._disconnect()

    async def count(self) -> dict[str, int]:
        """Return how many messages are meant, by topic, the most frequent first; of those published before the first such call."""
        return dict(await self._execute(sql_operating.COUNT_ARCHIVED, await self._until_now()))

    async def begin(self, matched: int, *, to: str, who: str | None = None) -> None:
        """Write the replay's row."""
        parameters = {
            "replay": self.replay,
            "matched": matched,
            "sink": to,
            "who": who or _user(),
            "selection": json.dumps(self._selection),
        }
        await self._execute(sql_operating.BEGIN_REPLAY, parameters)

    async def end(self) -> None:
        """Write into the replay's row how far it came, and that it has ended, if it has; it is in the log too, if Postgres is away."""
        try:
            async with asyncio.timeout(_FINAL_WORD):
                await self._note(ended=self.exhausted.is_set())
        except (SourceUnavailable, TimeoutError) as problem:
            log.error("replay %s: its row cannot be brought up to date: %s", self.replay, told(problem))  # noqa: TRY400 - no trace is needed
        log.info("replay %s: %d published, %d rejected", self.replay, self.published, sum(self.rejected.values()))

    @asynccontextmanager
    async def claim(self, limit: int) -> AsyncIterator[_Page]:
        """Read the next page, or give the rest of the last one again, when the rate allows it. Raises `SourceUnavailable`.

        While a page is out, another claim is empty.
        """
        if self._turn.locked():
            yield _Page([], self._settle)
            return
        async with self._turn:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(max(0.0, self._ready_at - loop.time()))
            # A tenth of a second's worth at a time, so that the rate is smooth.
            size = limit if self._rate is None else max(1, min(limit, int(self._rate / 10)))
            if not self._page:
                await self._read(size)
            page = self._page[:size]
            if not page:
                self.exhausted.set()
            if self._rate is not None:
                self._ready_at = loop.time() + len(page) / self._rate
            yield _Page(page, self._settle)

    async def wait(self, timeout: float) -> None:
        """Return when the page that is out is done with: the next claim then waits for its own time."""
        try:
            async with asyncio.timeout(timeout):
                if self.exhausted.is_set():
                    await asyncio.Event().wait()  # nothing will come
                async with self._turn:
                    pass
        except TimeoutError:
            pass

    async def _read(self, size: int) -> None:
        parameters = await self._until_now()
        position, published_at = self._last or (-1, parameters["began"])
        rows = await self._execute(
            sql_operating.READ_ARCHIVED, {**parameters, "position": position, "published_at": published_at, "limit": size}
        )
        self._page = [_Copy(self._copied(Message._make(row[:7]))) for row in rows]
        if rows:
            self._last = rows[-1][7:]

    def _copied(self, message: Message) -> Message:
        return message._replace(headers={**message.headers, REPLAYED: str(self.replay)})

    async def _settle(self, page: Sequence[_Copy], outcomes: Sequence[Outcome]) -> None:
        rest = []
        for copy, outcome in zip(page, outcomes, strict=True):
            match outcome:
                case Published():
                    self.published += 1
                case Rejected(reason=reason, detail=detail):
                    self._give_up(copy, reason, detail)
                case Retry() if self._retry.exhausted(copy.attempts + 1):
                    self._give_up(copy, Reason.ATTEMPTS, f"{outcome.reason}: {outcome.detail}")
                case Retry():
                    seconds = outcome.after if outcome.after is not None else self._retry.delay(copy.attempts + 1)
                    self._ready_at = max(self._ready_at, asyncio.get_running_loop().time() + seconds)
                    rest.append(copy._replace(attempts=copy.attempts + 1))
                case _:
                    rest.append(copy)
        self._page[: len(page)] = rest
        if len(rest) < len(page):
            await self._note(ended=False)

    def _give_up(self, copy: _Copy, reason: Reason, detail: str) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        log.error("replay %s: message %s (%s) is rejected: %s: %s", self.replay, copy.message.id, copy.message.topic, reason, detail)

    async def _note(self, *, ended: bool) -> None:
        rejected = sum(self.rejected.values())
        await self._execute(
            sql_operating.NOTE_REPLAY, {"replay": self.replay, "published": self.published, "rejected": rejected, "ended": ended}
        )

    async def _until_now(self) -> dict[str, Any]:
        """Return the parameters of the selection, with the moment before which it ends."""
        if "began" not in self._parameters:
            ((now,),) = await self._execute(sql_operating.SEE_NOW, {})
            self._parameters["began"] = now
        return self._parameters

    async def _execute(self, statement: LiteralString, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        try:
            if self._connection is None:
                self._connection = await session.connect(self._dsn, "outboxd replay")
            cursor = await self._connection.execute(sql.bind(statement, self._schema), parameters, binary=True)
            return await cursor.fetchall() if cursor.description else []
        except psycopg.Error as problem:
            await self._disconnect()
            raise SourceUnavailable(told(problem)) from problem
        except asyncio.CancelledError:
            await self._disconnect()  # in an unknown state
            raise

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class _Page:
    """What one claim of the archive holds."""

    def __init__(self, page: Sequence[_Copy], settle: Callable[[Sequence[_Copy], Sequence[Outcome]], Awaitable[None]]) -> None:
        self._page = page
        self._settle = settle
        self.messages = [copy.message for copy in page]

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Pass over what is done with; the rest stays in the page."""
        await self._settle(self._page, outcomes)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user need not have a name
        return "somebody"
