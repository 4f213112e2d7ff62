"""The pump against everything at once: a state machine over a real Postgres, with a sink that fails in every way.

Writers commit late, roll back and reuse keys; two pumps claim side by side, crash in every state, and find their sink refusing, silent or
away; dead letters are requeued. Whatever happened, when all heals: nothing is lost, nothing was made up, every key was first delivered in
order, only what deserved it is dead, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from bridges.backoff import Backoff
from bridges.breaker import Breaker, GuardedSink
from bridges.errors import SourceUnavailable
from bridges.ordering import Blocked
from bridges.ports import BEHIND, PUBLISHED, Outcome, Published, Reason, Rejected, Released, Retry
from bridges.router import Route, Router
from bridges.topics import Pattern
from outbox import Draft, Outbox
from outbox.batch import OutboxBatch
from outbox.deadletters import Selection, requeue
from outbox.rows import Policy
from outbox.source import OutboxSource

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from contextlib import AbstractAsyncContextManager

    from bridges.message import Message
    from bridges.ports import Batch

# Topics and what their routes say. "away" and "here" are destinations that fail alone.
POLICIES = {
    "here": Policy(destination="here"),
    "away": Policy(destination="away"),
    "strict": Policy(destination="here", holds_after_dead=True),
    "loose": Policy(destination="away", ordered=False),
}
MAX_ATTEMPTS = 3
AT_ONCE = Backoff(first=1e-9, cap=1e-9, max_attempts=MAX_ATTEMPTS)
SOON = Backoff(first=0.004, cap=0.004)
"""About as long as a claim takes, so that an open breaker is met before its next try is due, and after."""
Drawn = tuple[str | None, str, int, str | None]
FAULTS = ("none", "none", "none", "none", "ack lost", "unclear", "unclear", "refused")
FAULTS_OF_CALLS = ("none", "none", "none", "none", "down", "slow")
DRAFTS = st.lists(
    st.tuples(
        st.sampled_from([None, "a", "a", "b", "b", "c"]),
        st.sampled_from(sorted(POLICIES)),
        st.sampled_from([0, 0, 0, 0, 5]),
        st.sampled_from([None] * 9 + ["expired", "scheduled"]),
    ),
    min_size=1,
    max_size=8,
)
CHANCE = st.integers(0, 2**32).map(random.Random)  # each history can be had again by its numbers


@dataclass
class Put:
    """A message that was put, and what became of it."""

    key: str | None
    topic: str
    priority: int
    special: str | None
    order: int
    retries: int = 0
    rejected: bool = False
    was_dead: bool = False


@dataclass
class FaultySink:
    """Does with each message what its fault says, keeps the key prefix, and remembers each first delivery."""

    ordered: bool
    fault: random.Random = field(default_factory=random.Random)
    healed: bool = True
    away: bool = False
    delivered: dict[UUID, None] = field(default_factory=dict)
    puts: dict[UUID, Put] = field(default_factory=dict)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        blocked = Blocked(ordered=self.ordered)
        fault_of_call = "none" if self.healed else self.fault.choice(FAULTS_OF_CALLS)
        if fault_of_call == "down" or (self.away and POLICIES[messages[0].topic].destination == "away"):
            return [Released(Reason.UNAVAILABLE, "down")] * len(messages)
        outcomes = [BEHIND if message in blocked else blocked.note(message, self._judge(message)) for message in messages]
        if fault_of_call == "slow":  # everything arrived, and nobody heard of it in time
            return [Released(Reason.TIMEOUT, "slow") if isinstance(outcome, Published) else outcome for outcome in outcomes]
        return outcomes

    def _judge(self, message: Message) -> Outcome:
        fault = "none" if self.healed else self.fault.choice(FAULTS)
        put = self.puts[message.id]
        if fault == "refused":
            put.rejected = True
            return Rejected(Reason.INVALID, "refused")
        if fault == "unclear":
            put.retries += 1
            return Retry(Reason.REFUSED, "unclear", after=0.0)
        self.delivered.setdefault(message.id)
        return Released(Reason.TIMEOUT, "the acknowledgement was lost") if fault == "ack lost" else PUBLISHED


class Pump:
    """A source with its router, breakers and sinks, as a process would have them."""

    def __init__(self, dsn: str, sinks: dict[str, FaultySink], sink_of: dict[str, str]) -> None:
        self.breakers = {name: Breaker(name, SOON) for name in ("here", "away")}
        self.source = OutboxSource(
            dsn, claims=8, retry=AT_ONCE, sweep_every=None, policy=POLICIES.__getitem__, breakers=self.breakers.values(), max_held=20
        )
        self.router = Router(
            [
                Route(Pattern(topic), GuardedSink(sinks[sink_of[topic]], self.breakers[policy.destination or ""]), ordered=policy.ordered)
                for topic, policy in POLICIES.items()
            ]
        )


@dataclass
class Claim:
    pump: Pump
    context: AbstractAsyncContextManager[Batch]
    batch: Batch
    outcomes: Sequence[Outcome] | None = None


class Outboxes(RuleBasedStateMachine):
    """The rules. `dsn` and `loop` are set by the test."""

    dsn: str
    loop: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        self.puts: dict[UUID, Put] = {}
        self.committed: set[UUID] = set()
        self.delivered: dict[UUID, None] = {}
        self.sinks = {
            name: FaultySink(ordered, delivered=self.delivered, puts=self.puts, healed=False)
            for name, ordered in (("ordered", True), ("loose", False))
        }
        sink_of = {topic: "ordered" if policy.ordered else "loose" for topic, policy in POLICIES.items()}
        self.pumps = [Pump(self.dsn, self.sinks, sink_of) for _ in range(2)]
        self.claims: list[Claim] = []
        self.writers: list[tuple[psycopg.AsyncConnection[Any], list[UUID]]] = []
        self.written: defaultdict[str, psycopg.AsyncConnection[Any] | None] = defaultdict(lambda: None)
        self.numbers = iter(range(1, 1_000_000))
        self.operator = self.run(psycopg.AsyncConnection.connect(self.dsn, autocommit=True))

    def run(self, doing: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(doing)

    # --- writers

    @precondition(lambda self: len(self.writers) < 3)
    @rule()
    def begin(self) -> None:
        self.writers.append((self.run(psycopg.AsyncConnection.connect(self.dsn)), []))

    @precondition(lambda self: self.writers)
    @rule(writer=st.integers(0, 2), drafts=DRAFTS)
    def put(self, writer: int, drafts: list[Drawn]) -> None:
        connection, ids = self.writers[writer % len(self.writers)]
        ids += self._put(connection, drafts, connection)

    @rule(drafts=DRAFTS)
    def put_and_commit(self, drafts: list[Drawn]) -> None:
        self.committed.update(self._put(self.operator, drafts, None))

    def _put(
        self,
        connection: psycopg.AsyncConnection[Any],
        drafts: list[Drawn],
        owner: psycopg.AsyncConnection[Any] | None,
    ) -> list[UUID]:
        # Promise 6: writers of one key serialise.
        mine = [draft for draft in drafts if draft[0] is None or self.written[draft[0]] in {None, owner}]
        new = {uuid4(): Put(*draft, next(self.numbers)) for draft in mine}
        for put in new.values():
            if put.key is not None and owner is not None:
                self.written[put.key] = owner
        now = datetime.now(UTC)
        made = [
            Draft(
                put.topic,
                b"",
                key=put.key,
                priority=put.priority,
                id=each,
                deliver_at=now + timedelta(seconds=0.02) if put.special == "scheduled" else None,
                expires_at=now - timedelta(seconds=1) if put.special == "expired" else None,
            )
            for each, put in new.items()
        ]
        self.run(Outbox(allow_autocommit=True).aput_many(connection, made))
        self.puts.update(new)
        return list(new)

    @precondition(lambda self: self.writers)
    @rule(writer=st.integers(0, 2), commits=st.sampled_from([True, True, False]))
    def end(self, writer: int, commits: bool) -> None:
        connection, ids = self.writers.pop(writer % len(self.writers))
        self.run(connection.commit() if commits else connection.rollback())
        self.run(connection.close())
        if commits:
            self.committed.update(ids)
        for key, owner in list(self.written.items()):
            if owner is connection:
                self.written[key] = None

    # --- pumps

    @precondition(lambda self: len(self.claims) < 2)
    @rule(pump=st.integers(0, 1), limit=st.sampled_from([1, 2, 3, 5, 50]))
    def claim(self, pump: int, limit: int) -> None:
        self.claims.append(self.run(_claim(self.pumps[pump], limit)))

    @precondition(lambda self: any(claim.outcomes is None for claim in self.claims))
    @rule(chance=CHANCE)
    def publish(self, chance: random.Random) -> None:
        self.run(self._publish(next(claim for claim in self.claims if claim.outcomes is None), chance))

    async def _publish(self, claim: Claim, chance: random.Random) -> None:
        for sink in self.sinks.values():
            sink.fault = chance
        claim.outcomes = await claim.pump.router.publish(claim.batch.messages)

    @rule(pump=st.integers(0, 1), limit=st.sampled_from([1, 2, 3, 5, 50]), chance=CHANCE)
    def pump(self, pump: int, limit: int, chance: random.Random) -> None:
        """A whole turn, or several, beside the claims that are open."""
        self.run(self._pump(self.pumps[pump], limit, chance))

    async def _pump(self, pump: Pump, limit: int, chance: random.Random) -> None:
        for _ in range(chance.randint(2, 6)):
            claim = await _claim(pump, limit)
            await self._publish(claim, chance)
            await _settle(claim)

    @rule(away=st.booleans())
    def destination(self, away: bool) -> None:
        for sink in self.sinks.values():
            sink.away = away

    @precondition(lambda self: any(claim.outcomes is not None for claim in self.claims))
    @rule()
    def settle(self) -> None:
        claim = next(claim for claim in self.claims if claim.outcomes is not None)
        self.claims.remove(claim)
        self.run(_settle(claim))

    @precondition(lambda self: self.claims)
    @rule(which=st.integers(0, 2), how=st.sampled_from(["cut off", "leaves"]))
    def crash(self, which: int, how: str) -> None:
        """A pump dies with its claim, before or after it published; or it leaves without settling."""
        claim = self.claims.pop(which % len(self.claims))
        self.run(self._crash(claim, how))

    async def _crash(self, claim: Claim, how: str) -> None:
        if how == "cut off" and isinstance(claim.batch, OutboxBatch):
            await self.operator.execute("SELECT pg_terminate_backend(%s, 5000)", (claim.batch.backend,))
        with suppress(SourceUnavailable):
            await claim.context.__aexit__(None, None, None)

    @precondition(lambda self: not self.claims)  # an operator waits for the lanes
    @rule(fresh=st.booleans())
    def requeue_all(self, fresh: bool) -> None:
        self.run(self._requeue_all(fresh=fresh))

    async def _requeue_all(self, *, fresh: bool) -> None:
        cursor = await self.operator.execute("SELECT id FROM outbox.dead")
        for (message_id,) in await cursor.fetchall():
            self._check_deserved(message_id)
            self.puts[message_id].was_dead = True
            self.puts[message_id].special = None
            self.puts[message_id].retries = 0
            self.puts[message_id].rejected = False
        await requeue(self.operator, Selection(), everything=True, fresh=fresh, expired=True)

    # --- what must hold

    def _check_deserved(self, message_id: UUID) -> None:
        put = self.puts[message_id]
        assert put.special == "expired" or put.rejected or put.retries >= MAX_ATTEMPTS, f"dead without a reason of its own: {put}"

    def teardown(self) -> None:
        try:
            self._heal_and_check()
        finally:
            for connection, _ in self.writers:
                self.run(connection.close())
            self.run(self.operator.execute("DELETE FROM outbox.messages; DELETE FROM outbox.held; DELETE FROM outbox.holds"))
            self.run(self.operator.execute("DELETE FROM outbox.deferred; DELETE FROM outbox.dead"))
            self.run(self.operator.close())
            for pump in self.pumps:
                self.run(pump.source.close())

    def _heal_and_check(self) -> None:
        while self.claims:
            self.crash(which=0, how="leaves")
        while self.writers:
            self.end(writer=0, commits=True)
        for sink in self.sinks.values():
            sink.healed, sink.away = True, False
        self.run(self._drain())
        self.run(self._requeue_all(fresh=False))
        self.run(self._drain())
        assert set(self.delivered) == self.committed, "lost, or made up"
        firsts: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        for message_id in self.delivered:
            put = self.puts[message_id]
            if put.key is not None and POLICIES[put.topic].ordered and not put.was_dead and put.special != "scheduled":
                firsts[put.key, put.priority].append(put.order)
        for key, orders in firsts.items():
            assert orders == sorted(orders), f"key {key} was first delivered out of order: {orders}"

    async def _drain(self) -> None:
        """Pump until there is nothing left; what has to wait for a time waits for none here."""
        for turn in range(400):
            cursor = await self.operator.execute(
                """
                SELECT (SELECT count(*) FROM outbox.messages) + (SELECT count(*) FROM outbox.held) + (SELECT count(*) FROM outbox.deferred),
                       (SELECT count(*) FROM outbox.holds WHERE due_at IS NOT NULL), (SELECT count(*) FROM outbox.dead)"""
            )
            ((rows, holds, dead),) = await cursor.fetchall()
            if rows == holds == 0:
                return
            if dead:  # a key may wait behind one
                await self._requeue_all(fresh=False)
            claim = await _claim(self.pumps[turn % 2], 50)
            claim.outcomes = await claim.pump.router.publish(claim.batch.messages)
            await _settle(claim)
        cursor = await self.operator.execute("TABLE outbox.holds")
        holds = await cursor.fetchall()
        msg = f"stranded: {rows} rows, holds: {holds}"
        raise AssertionError(msg)


async def _claim(pump: Pump, limit: int) -> Claim:
    pump.source._busy = True  # a share of the lanes, as under load: claims that own them all leave nothing to the others
    context = pump.source.claim(limit)
    return Claim(pump, context, await context.__aenter__())


async def _settle(claim: Claim) -> None:
    assert claim.outcomes is not None
    try:
        await claim.batch.settle(claim.outcomes)
    finally:
        await claim.context.__aexit__(None, None, None)


@pytest.mark.timeout(900)  # 500 histories of thirty steps each, on a real Postgres
def test_the_pump_keeps_its_promises_whatever_happens(database: str) -> None:
    with asyncio.Runner() as loop:

        class Machine(Outboxes):
            pass

        Machine.dsn = database
        Machine.loop = loop
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=500,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )
