"""What stands before a bridge's sink: topics are mapped and loops cut, and what can never be published becomes a dead letter.

    Bridge(source, BuryingSink(CrossingSink(sink, crossing), crossing, pool))

`Crossing` decides about a message, and has no I/O; the rest are Sinks over Sinks.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

import psycopg

from bridges.backoff import Backoff
from bridges.envelope import MAX_PASSED, passed, passing
from bridges.errors import ConfigurationError, storable
from bridges.ordering import Blocked
from bridges.ports import BEHIND, PUBLISHED, Outcome, Published, Reason, Rejected, Released, Retry
from outbox import sql
from outbox.sink import verdict_on, written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from psycopg_pool import AsyncConnectionPool

    from bridges.message import Message
    from bridges.ports import Sink
    from bridges.topics import Mapping

log = logging.getLogger("outboxd.bridge")

RETRY: Final = Backoff(first=1.0, cap=300.0, max_attempts=20)
"""The default for a `Retry`: as of the pump."""
_COUNTED: Final = 10_000
"""Messages whose attempts are remembered: more than a bridge has in hand. One that is forgotten is tried a little longer."""

Loop = Literal["loop"]


class Crossing:
    """What a bridge makes of a message. Pure.

    Args:
        bridge: its name: one of its own among all the bridges that a message may pass, in whatever process.
        mapping: what becomes of topics; None: they stay as they are.
    """

    def __init__(self, bridge: str, mapping: Mapping | None = None) -> None:
        if not bridge or not bridge.isprintable() or "," in bridge or len(bridge) > 64:
            msg = f"bridge: {bridge!r} is not 1 to 64 printable characters without a comma"
            raise ConfigurationError(msg)
        self.bridge = bridge
        self._mapping = mapping
        # Topics are few and messages are many.
        self._map = lru_cache(maxsize=10_000)(mapping.of) if mapping is not None else None

    def of(self, message: Message) -> Message | Rejected | Loop:
        """Return the message as it goes on; why it cannot; or that it has been here before."""
        before = passed(message)
        if self.bridge in before:
            return "loop"
        if len(before) >= MAX_PASSED:
            return Rejected(Reason.INVALID, f"has passed {len(before)} bridges, the most allowed")
        topic = self._topic(message)
        if topic is None:
            return Rejected(Reason.NO_ROUTE, f"the mapping of bridge {self.bridge} is not for topic {message.topic!r}: {self._mapping!r}")
        return passing(message, self.bridge, topic)

    def dead(self, message: Message) -> Message:
        """Return a message as it is to be buried: with this bridge as the last that it came to, and as it would have gone on."""
        return passing(message, self.bridge, self._topic(message) or message.topic)

    def _topic(self, message: Message) -> str | None:
        return self._map(message.topic) if self._map is not None else message.topic


class CrossingSink:
    """A Sink at the end of a bridge. What has passed the bridge before is dropped: `Published`, since it is where it came from.

    Args:
        sink: where what crosses goes.
        crossing: the bridge.
        count_loop: called for each message that is dropped.
    """

    def __init__(self, sink: Sink, crossing: Crossing, count_loop: Callable[[], object] = lambda: None) -> None:
        self._sink = sink
        self._crossing = crossing
        self._count_loop = count_loop
        self._told = False

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Publish what crosses through the inner sink. One outcome each, in order."""
        crossing: dict[int, Message] = {}
        verdicts: dict[int, Outcome] = {}
        stuck = Blocked()
        for index, message in enumerate(messages):
            match made := self._crossing.of(message):
                case "loop":
                    verdicts[index] = PUBLISHED
                case Rejected():
                    verdicts[index] = stuck.note(message, made)
                case _ if message not in stuck:
                    crossing[index] = made
        answers = dict(zip(crossing, await self._sink.publish(list(crossing.values())), strict=True)) if crossing else {}
        blocked = Blocked()
        outcomes: list[Outcome] = []
        for index, message in enumerate(messages):
            outcome = answers.get(index) or verdicts.get(index, BEHIND)
            if index in verdicts and message in blocked:
                outcome = BEHIND  # dropped, or given up, in its turn
            elif verdicts.get(index) is PUBLISHED:
                self._note_loop(message)
            outcomes.append(blocked.note(message, outcome))
        return outcomes

    def _note_loop(self, message: Message) -> None:
        self._count_loop()
        if not self._told:
            self._told = True
            via = ", ".join(passed(message))
            log.warning(
                "bridge %s: a message of topic %s came back, and so do others, by %s: they are dropped and counted",
                self._crossing.bridge,
                storable(message.topic),  # whatever a foreign broker calls it, a log can be written
                via,
            )


class BuryingSink:
    """A Sink that makes dead letters of what its inner sink rejects, or fails to publish too often: rows of the outbox's ``dead``.

    It answers `Published` for them: their source need not keep what is kept here. They are listed and requeued as the pump's are; one that
    is requeued goes by the routes.

    Args:
        sink: the bridge's.
        crossing: the bridge, for how a dead letter is to look.
        pool: connections to the outbox's database; shared.
        schema: the outbox's.
        retry: how long a `Retry` waits, and after how many attempts it is dead.
        timeout: seconds for burying what a call has given up.
    """

    def __init__(
        self,
        sink: Sink,
        crossing: Crossing,
        pool: AsyncConnectionPool,
        *,
        schema: str = "outbox",
        retry: Backoff = RETRY,
        timeout: float = 10.0,
    ) -> None:
        self._sink = sink
        self._crossing = crossing
        self._pool = pool
        self._retry = retry
        self._timeout = timeout
        self._bury = sql.bind(sql.BURY, schema)
        self._configure = sql.bind(sql.CONFIGURE_WRITE, schema)
        self._attempts: dict[UUID, int] = {}

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Publish through the inner sink. One outcome each, in order; what is behind a dead letter goes on in the next call."""
        outcomes = list(await self._sink.publish(messages))
        given_up: dict[int, tuple[Rejected, int]] = {}
        for index, (message, outcome) in enumerate(zip(messages, outcomes, strict=True)):
            match outcome:
                case Published():
                    if self._attempts:
                        self._attempts.pop(message.id, None)
                case Rejected():
                    given_up[index] = outcome, self._attempts.get(message.id, 0) + 1
                case Retry(reason=reason, detail=detail):
                    attempts = self._count(message.id)
                    if self._retry.exhausted(attempts):
                        given_up[index] = Rejected(Reason.ATTEMPTS, f"{reason}: {detail}"), attempts
                    elif outcome.after is None:
                        outcomes[index] = replace(outcome, after=self._retry.delay(attempts))
        if given_up:
            buried = await self._buried([(messages[index], *why) for index, why in given_up.items()])
            for index in given_up:
                outcomes[index] = buried
        return outcomes

    def _count(self, message_id: UUID) -> int:
        self._attempts[message_id] = attempts = self._attempts.pop(message_id, 0) + 1
        if len(self._attempts) > _COUNTED:
            del self._attempts[next(iter(self._attempts))]
        return attempts

    async def _buried(self, letters: Sequence[tuple[Message, Rejected, int]]) -> Outcome:
        """Make dead letters of these in one transaction, and return the outcome of each of them."""
        rows = [_letter(self._crossing.dead(message), why, attempts) for message, why, attempts in letters]
        columns = {name: [row[name] for row in rows] for name in rows[0]}

        async def bury(connection: psycopg.AsyncConnection[Any]) -> None:
            await connection.execute(self._configure, {"timeout": f"{max(1, int(self._timeout * 1000))}ms"})
            await connection.execute(self._bury, columns)

        try:
            await written(self._pool, bury, deadline=asyncio.get_running_loop().time() + self._timeout)
        except (psycopg.Error, TimeoutError) as problem:
            verdict = verdict_on(problem)
            return Released(verdict.reason, f"cannot be made a dead letter: {verdict.detail}")
        for message, why, attempts in letters:
            log.error(
                "bridge %s: dead letter after %d attempts: message %s (%s): %s: %s",
                self._crossing.bridge,
                attempts,
                message.id,
                storable(message.topic),
                why.reason,
                storable(why.detail),
            )
            self._attempts.pop(message.id, None)
        return PUBLISHED


def _letter(message: Message, why: Rejected, attempts: int) -> dict[str, Any]:
    """Return the parameters of a dead letter: of what may be unsound, as much as Postgres can store."""
    return {
        "id": message.id,
        "created_at": message.created_at,
        "topic": storable(message.topic),
        "key": None if message.key is None else storable(message.key),
        "content_type": storable(message.content_type),
        "headers": json.dumps({_stored(name): _stored(value) for name, value in message.headers.items()}),
        "payload": message.payload,
        "reason": str(why.reason),
        "attempts": attempts,
        "error": storable(why.detail),
    }


def _stored(text: str) -> str:
    """Return text as jsonb can hold it, whatever its length."""
    return text.replace("\0", "\\0").encode(errors="replace").decode()
