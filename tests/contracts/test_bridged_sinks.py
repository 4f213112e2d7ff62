"""The Sink contract on the outbox, and on what stands before a bridge's sink."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import psycopg
import pytest

from bridges.backoff import Backoff
from bridges.envelope import RENAMED, REPLAYED, VIA
from bridges.ports import PUBLISHED, Outcome, Reason, Rejected, Released, Retry, Sink
from bridges.topics import Mapping
from outbox.bridged import BuryingSink, Crossing, CrossingSink
from outbox.sink import RestoredSink
from tests.contracts.harness_jetstream import JetStreamSinkHarness, jetstream_sink
from tests.contracts.harness_outbox import OutboxSinkHarness, outbox_pool, outbox_sink
from tests.contracts.messages import ids, kinds, message, series
from tests.contracts.sink import SinkContract, SinkHarness
from tests.engines.deadline import eventually
from tests.engines.sinks import RecordingSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from psycopg_pool import AsyncConnectionPool

    from bridges.message import Message
    from outbox.demo.engines import PrivateNats
    from outbox.embedded import PrivatePostgres


class TestOutboxSink(SinkContract):
    @pytest.fixture
    async def sink_harness(self, private_postgres: PrivatePostgres, private_schemas: str) -> AsyncIterator[OutboxSinkHarness]:
        async with outbox_sink(private_postgres) as harness:
            yield harness

    async def test_the_tables_own_limit_is_what_counts(self, sink_harness: SinkHarness, private_schemas: str) -> None:
        """More than the contract: `outboxd migrate --max-payload` changes it while a bridge runs."""
        large, small = message("t", size=2000), message("t", size=10)
        assert kinds(await sink_harness.sink.publish([large])) == {"Published"}
        with psycopg.connect(private_schemas) as connection:
            connection.execute("CREATE OR REPLACE FUNCTION outbox.max_payload() RETURNS integer LANGUAGE sql AS 'SELECT 1000'")
        outcomes = await sink_harness.sink.publish([large, small])
        assert isinstance(outcomes[0], Rejected)
        assert outcomes[1] == PUBLISHED

    async def test_a_rule_of_the_users_own_is_no_fault_of_the_others(self, sink_harness: SinkHarness, private_schemas: str) -> None:
        """More than the contract: nothing is known of a trigger that raises, but that it is this message that it raises for."""
        with psycopg.connect(private_schemas) as connection:
            connection.execute(
                """CREATE FUNCTION outbox.refuse() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN IF new.key = 'refused' THEN RAISE 'not today'; END IF; RETURN new; END $$;
                   CREATE TRIGGER refuse BEFORE INSERT ON outbox.messages FOR EACH ROW EXECUTE FUNCTION outbox.refuse()"""
            )
        messages = [message("t"), message("t", key="refused"), message("t", key="other"), message("t", key="refused")]
        outcomes = await sink_harness.sink.publish(messages)
        assert [type(outcome).__name__ for outcome in outcomes] == ["Published", "Retry", "Published", "Released"]
        assert ids(await sink_harness.stored()) == [messages[0].id, messages[2].id]

    async def test_what_is_not_known_of_any_message_of_a_call(self, sink_harness: SinkHarness) -> None:
        """More than the contract: a column without a single value; the time is then that of the database."""
        given = [message("t")._replace(created_at=None) for _ in range(3)]
        assert kinds(await sink_harness.sink.publish(given)) == {"Published"}
        stored = await sink_harness.stored()
        assert [each._replace(created_at=None, headers={}) for each in stored] == [each._replace(headers={}) for each in given]
        assert all(each.created_at is not None for each in stored)

    async def test_it_is_durable_whatever_the_default_is(self, sink_harness: SinkHarness, private_schemas: str) -> None:
        """More than the contract: its source is told that the outbox has the message, and a crash of the server must not take it back."""
        with psycopg.connect(private_schemas, autocommit=True) as connection:
            connection.execute("CREATE TABLE seen (setting text)")
            connection.execute(
                """CREATE FUNCTION outbox.note() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN new; END $$;
                   CREATE TRIGGER note BEFORE INSERT ON outbox.messages FOR EACH ROW EXECUTE FUNCTION outbox.note()"""
            )
            try:
                for setting in ("off", "remote_apply"):
                    connection.execute(f"ALTER ROLE CURRENT_USER SET synchronous_commit = {setting}".encode())
                    async with outbox_pool(private_schemas) as pool:
                        assert kinds(await type(self)._sink(pool).publish([message("t")])) == {"Published"}
                assert connection.execute("SELECT setting FROM seen").fetchall() == [("on",), ("remote_apply",)]
            finally:
                connection.execute("ALTER ROLE CURRENT_USER RESET synchronous_commit")
                connection.execute("DROP TABLE seen")

    async def test_our_own_headers_go_in_and_come_out_as_they_were(self, sink_harness: SinkHarness) -> None:
        """More than the contract: the table takes nothing called outbox-* from anybody, so they have other names in it."""
        headers = {"traceparent": "00-1-2-01", VIA: "there,back", RENAMED: "before", REPLAYED: "abc"}
        given = message("t")._replace(headers=headers)
        assert kinds(await sink_harness.sink.publish([given])) == {"Published"}
        (row,) = await sink_harness.stored()
        assert not any(name.startswith("outbox-") for name in row.headers)
        record = RecordingSink()
        await RestoredSink(record).publish([row])
        assert record.published == [given]

    @staticmethod
    def _sink(pool: AsyncConnectionPool) -> Sink:
        from outbox.sink import OutboxSink

        return OutboxSink(pool)


class CrossingSinkHarness(JetStreamSinkHarness):
    """What crosses is stored as it was, but for the header that it gets."""

    def cross(self) -> None:
        self.sink = self._crossing(self.sink)

    async def stored(self) -> list[Message]:
        return [unmarked(each) for each in await super().stored()]

    def without_destination(self) -> Sink:
        return self._crossing(super().without_destination())

    def _crossing(self, sink: Sink) -> Sink:
        return CrossingSink(sink, Crossing("contract"))


def unmarked(each: Message) -> Message:
    assert each.headers[VIA] == "contract"
    return each._replace(headers={name: value for name, value in each.headers.items() if name != VIA})


class TestCrossingSink(SinkContract):
    @pytest.fixture
    async def sink_harness(self, private_nats: PrivateNats) -> AsyncIterator[JetStreamSinkHarness]:
        async with jetstream_sink(private_nats) as harness:
            harness.__class__ = CrossingSinkHarness
            assert isinstance(harness, CrossingSinkHarness)
            harness.cross()
            yield harness


class BuryingSinkHarness(OutboxSinkHarness):
    """Around an OutboxSink, with dead letters in the same outbox: one engine that goes away."""

    def bury(self) -> None:
        self.sink = self._burying(self.sink)

    def without_destination(self) -> Sink:
        return self._burying(super().without_destination())

    def _burying(self, sink: Sink) -> Sink:
        retry = Backoff(first=0.01, cap=0.01, max_attempts=3)
        return BuryingSink(sink, Crossing("contract"), self._pool, retry=retry, timeout=1.0)


class TestBuryingSink(SinkContract):
    """What can never be published is a row of ``dead``, and so it is kept: Published."""

    @pytest.fixture
    async def sink_harness(self, private_postgres: PrivatePostgres, private_schemas: str) -> AsyncIterator[OutboxSinkHarness]:
        async with outbox_sink(private_postgres) as harness:
            harness.__class__ = BuryingSinkHarness
            assert isinstance(harness, BuryingSinkHarness)
            harness.bury()
            yield harness

    async def test_too_large_is_rejected_and_harms_no_other(self, sink_harness: SinkHarness) -> None:
        """Different: it is Published, since its dead letter is kept, and visible, and its source need keep it no longer."""
        await self._is_buried(sink_harness, sink_harness.too_large(), "too_large")

    async def test_invalid_is_rejected_and_harms_no_other(self, sink_harness: SinkHarness) -> None:
        """Different: likewise."""
        await self._is_buried(sink_harness, sink_harness.invalid(), "invalid")

    async def test_key_prefix_holds_when_a_message_is_rejected(self, sink_harness: SinkHarness) -> None:
        """Different: a key goes on behind its dead letter, with the next call, and no message of it overtakes another."""
        (fault, *_) = sink_harness.too_large()
        guilty, innocent = series(sink_harness.topics, 4, key="guilty"), series(sink_harness.topics, 4, key="innocent")
        messages = [*guilty[:2], fault._replace(key=guilty[0].key), *innocent, *guilty[2:]]
        outcomes = await sink_harness.sink.publish(messages)
        assert kinds(outcomes[:7]) == {"Published"}
        assert kinds(outcomes[7:]) == {"Released behind"}
        assert kinds(await sink_harness.sink.publish(guilty[2:])) == {"Published"}
        stored = await sink_harness.stored()
        assert [each.id for each in stored if each.key == guilty[0].key] == ids(guilty)

    async def test_concurrent_calls_do_not_mix_their_outcomes(self, sink_harness: SinkHarness) -> None:
        """Different: those at fault are Published too."""
        assert isinstance(sink_harness, OutboxSinkHarness)
        faults = [*sink_harness.too_large(), *sink_harness.invalid()]
        innocent = cast("SinkHarness", _WithoutFaults(sink_harness))  # it has all that a harness has, by __getattr__
        await super().test_concurrent_calls_do_not_mix_their_outcomes(innocent)
        assert kinds(await sink_harness.sink.publish(faults)) == {"Published"}
        assert len(await sink_harness.dead()) == len({each.id for each in faults})

    async def _is_buried(self, harness: SinkHarness, faults: list[Message], reason: str) -> None:
        assert isinstance(harness, OutboxSinkHarness)
        for fault in faults:
            one = fault._replace(id=message("t").id)
            others = [*series(harness.topics, 8, keys=3), *(message(harness.topics[0], n) for n in range(8))]
            for _ in range(2):  # after a crash that the source heard nothing of, say
                assert kinds(await harness.sink.publish([*others[:12], one, *others[12:]])) == {"Published"}
            dead = await harness.dead()
            assert dead[one.id] == (reason, 1)
            assert one.id not in ids(await harness.stored())


class _WithoutFaults:
    """A harness whose faults nobody sees."""

    def __init__(self, harness: SinkHarness) -> None:
        self._harness = harness

    def __getattr__(self, name: str) -> object:
        return list if name in {"too_large", "invalid"} else getattr(self._harness, name)


@pytest.mark.parametrize("said", ["orders.> -> shop.{1}", None])
async def test_a_dead_letter_looks_as_it_would_have_gone_on(
    said: str | None, private_postgres: PrivatePostgres, private_schemas: str
) -> None:
    async with outbox_pool(private_schemas) as pool, outbox_sink(private_postgres) as harness:
        crossing = Crossing("bridge", Mapping(said) if said else None)
        sink = BuryingSink(CrossingSink(harness.sink, crossing), crossing, pool)
        fault = message("orders.created", size=2 << 20)._replace(headers={VIA: "before", "traceparent": "00-1-2-01"})
        assert kinds(await sink.publish([fault])) == {"Published"}
        with psycopg.connect(private_schemas) as connection:
            rows = connection.execute("SELECT id, topic, headers, position, lane, payload, created_at FROM outbox.dead").fetchall()
        ((message_id, topic, headers, position, lane, payload, created_at),) = rows
        assert (message_id, topic, payload, created_at) == (
            fault.id,
            "shop.created" if said else fault.topic,
            fault.payload,
            fault.created_at,
        )
        renamed = {RENAMED: "orders.created"} if said else {}
        assert headers == {VIA: "before,bridge", "traceparent": "00-1-2-01", **renamed}
        assert lane == position & 63


async def test_a_retry_waits_is_counted_and_ends_as_a_dead_letter(private_schemas: str) -> None:
    """By the bridge, whose source would try for ever. What is published between starts anew."""
    answers: list[Outcome] = [
        Retry(Reason.REFUSED, "why"),
        PUBLISHED,
        *[Retry(Reason.REFUSED, "why")] * 2,
        Retry(Reason.REFUSED, "at last", after=7),
    ]
    record = RecordingSink(lambda _: answers.pop(0))
    one = message("t", key="k")
    async with outbox_pool(private_schemas) as pool:
        sink = BuryingSink(record, Crossing("bridge"), pool, retry=Backoff(first=2.0, cap=2.0, max_attempts=3))
        outcomes = [(await sink.publish([one]))[0] for _ in range(5)]
    assert [type(outcome).__name__ for outcome in outcomes] == ["Retry", "Published", "Retry", "Retry", "Published"]
    assert all(outcome.after is not None and outcome.after <= 2.0 for outcome in outcomes if isinstance(outcome, Retry))
    with psycopg.connect(private_schemas) as connection:
        rows = connection.execute("SELECT reason, attempts, error, key FROM outbox.dead").fetchall()
    assert rows == [("attempts", 3, "refused: at last", "k")]


async def test_without_its_database_nothing_is_given_up(private_postgres: PrivatePostgres, private_schemas: str) -> None:
    """A dead letter that cannot be kept is no dead letter: it stays where it came from."""
    record = RecordingSink(lambda each: Rejected(Reason.TOO_LARGE, "over") if each.key else PUBLISHED)
    messages = [message("t", key="k"), message("t")]
    async with outbox_pool(private_schemas) as pool, outbox_sink(private_postgres) as harness:
        sink = BuryingSink(record, Crossing("bridge"), pool, timeout=1.0)
        await harness.go_away()
        outcomes = await sink.publish(messages)
        assert kinds(outcomes) == {"Released unavailable", "Published"}
        assert isinstance(outcomes[0], Released)
        assert "cannot be made a dead letter" in outcomes[0].detail
        await harness.come_back()

        async def buried() -> bool:
            return kinds(await sink.publish(messages)) == {"Published"}

        await eventually(buried, what="the bridge goes on")
        assert await harness.dead() == {messages[0].id: ("too_large", 1)}


async def test_what_postgres_cannot_hold_is_buried_as_well_as_it_can_be(private_schemas: str) -> None:
    odd = message("with\0nul and \ud800", key="k\0")._replace(headers={"h": "\0" * 5000, "\ud800": "x"}, content_type="\0", created_at=None)
    async with outbox_pool(private_schemas) as pool:
        sink = BuryingSink(RecordingSink(lambda _: Rejected(Reason.INVALID, "odd\0")), Crossing("bridge"), pool)
        assert kinds(await sink.publish([odd])) == {"Published"}
    with psycopg.connect(private_schemas) as connection:
        ((found, topic, headers),) = connection.execute("SELECT id, topic, headers FROM outbox.dead").fetchall()
    assert (found, topic) == (odd.id, "with\\0nul and ?")
    assert headers[VIA] == "bridge"
    assert len(headers["h"]) == 10_000
