"""What is particular to JetStream."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING
from uuid import UUID

from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

from bridges.jetstream import JetStream, JetStreamSink, JetStreamSource
from bridges.jetstream.client import CHUNK
from bridges.jetstream.frame import Framer
from bridges.message import Message, uuid7
from bridges.ports import BEHIND, PUBLISHED, Published, Reason, Rejected, Released
from bridges.security import Security
from bridges.topics import Mapping
from outbox.bridged import Crossing, CrossingSink
from outbox.demo.engines import PrivateNats
from tests.conftest import Stream
from tests.contracts.claims import drain
from tests.contracts.harness_jetstream import connected
from tests.contracts.messages import assert_key_prefix, ids, kinds, published
from tests.contracts.outages import stand_still
from tests.engines.deadline import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


async def test_a_hot_key_gets_as_far_as_its_time_allows_and_is_no_outage(stream: Stream) -> None:
    """One message of a key at a time: what there is no time for keeps its place, and what was acknowledged is said to be."""
    messages = [Message(uuid7(), "t", b"", "hot") for _ in range(20_000)]
    async with JetStream([stream.url]) as connection:
        sink = JetStreamSink(connection, stream=stream.name, subject=stream.subject, timeout=1.0)
        async with asyncio.timeout(20):
            outcomes = list(await sink.publish(messages))
        done = outcomes.count(PUBLISHED)
        assert 0 < done < len(messages)
        assert outcomes == [PUBLISHED] * done + [BEHIND] * (len(messages) - done)
        assert isinstance((await sink.publish(messages[done : done + 1]))[0], Published)


async def test_a_wave_that_is_written_in_several_parts_has_an_outcome_for_each_message(stream: Stream) -> None:
    """Acknowledgements come while the rest is written; what is refused takes no place on the wire."""
    large = CHUNK // 5 * 2
    messages = [Message(uuid7(), "t", b"x" * large, str(number)) for number in range(40)]
    async with JetStream([stream.url]) as connection:
        limit = (await connection.client()).max_payload
        for place in (7, 20, 39):
            messages[place] = messages[place]._replace(payload=bytes(limit + 1))
        sink = JetStreamSink(connection, stream=stream.name, subject=stream.subject)
        outcomes = await sink.publish(messages)
        assert [place for place, outcome in enumerate(outcomes) if isinstance(outcome, Rejected)] == [7, 20, 39]
        assert outcomes.count(PUBLISHED) == 37
        assert (await (await connection.client()).jsm().stream_info(stream.name)).state.messages == 37


async def test_a_durable_whose_handlers_have_changed_gets_the_new_subjects(stream: Stream) -> None:
    async with JetStream([stream.url]) as connection:
        sink = JetStreamSink(connection, stream=stream.name, subject=stream.subject)
        for topics in (["orders.created"], ["orders.created", "orders.paid"]):
            source = JetStreamSource(
                connection, stream=stream.name, durable="d", subjects=[f"{stream.prefix}.{topic}" for topic in topics], linger=2
            )
            async with source.claim(10) as batch:
                assert batch.messages == []
            assert await sink.publish([Message(uuid7(), topics[-1], b"")]) == [PUBLISHED]
            assert [message.topic for message in await drain(source, 1)] == [topics[-1]]
            await source.close()


async def test_a_hot_key_is_one_atomic_batch(atomic_stream: Stream) -> None:
    """A thousand messages of one key: in their order, and with one acknowledgement for all."""
    messages = hot(1000)
    async with sink_at(atomic_stream) as sink:
        assert set(await sink.publish(messages)) == {PUBLISHED}
    stored = await read(atomic_stream)
    assert [each.id for each in stored] == ids(messages)
    assert batches(stored) == [1000]


async def test_more_than_a_batch_goes_one_batch_after_the_other(atomic_stream: Stream) -> None:
    messages = hot(2500)
    async with sink_at(atomic_stream) as sink:
        assert set(await sink.publish(messages)) == {PUBLISHED}
    stored = await read(atomic_stream)
    assert [each.id for each in stored] == ids(messages)
    assert batches(stored) == [1000, 1000, 500]


async def test_large_messages_make_smaller_batches(atomic_stream: Stream) -> None:
    """Else a batch that its deadline is too short for would be sent again as it is, for ever."""
    messages = [Message(uuid7(), "t", b"x" * 500_000, "hot") for _ in range(20)]
    async with sink_at(atomic_stream) as sink:
        assert set(await sink.publish(messages)) == {PUBLISHED}
    stored = await read(atomic_stream)
    assert [each.id for each in stored] == ids(messages)
    assert batches(stored) == [9, 9, 2]


async def test_only_keys_that_repeat_are_in_a_batch(atomic_stream: Stream) -> None:
    """Two hot keys are in it, each in its order; keyless messages and keys of one message are not."""
    keys = ["a", None, "b", "a", "only", "b", "a", None, "b"]
    messages = [Message(uuid7(), f"t.{number % 2}", b"", key) for number, key in enumerate(keys)]
    async with sink_at(atomic_stream) as sink:
        assert await sink.publish(messages) == [PUBLISHED] * len(keys)
    stored = await read(atomic_stream)
    assert batches(stored) == [6]
    in_batch = [each.id for each in stored if "Nats-Batch-Id" in each.headers]
    assert in_batch == [each.id for each in messages if each.key in {"a", "b"}]
    assert {each.id for each in stored} == set(ids(messages))


async def test_a_duplicate_in_a_batch_harms_no_other(atomic_stream: Stream) -> None:
    """The server refuses the whole of it: each is sent by itself then, and those that are there already are said to be."""
    messages = hot(20)
    async with sink_at(atomic_stream) as sink:
        assert await sink.publish(messages[:7]) == [PUBLISHED] * 7
        twice = [*messages, messages[19]]
        assert await sink.publish(twice) == [Published(duplicate=True)] * 7 + [PUBLISHED] * 13 + [Published(duplicate=True)]
    stored = await read(atomic_stream)
    assert [each.id for each in stored] == ids(messages)
    assert batches(stored) == [7], "and the refused one left nothing behind"


async def test_what_fits_only_without_the_headers_of_a_batch_goes_alone(atomic_stream: Stream) -> None:
    """It is not to blame for them; and its key goes on in the next batch."""
    messages = hot(7)
    async with JetStream([atomic_stream.url]) as connection:
        sink = JetStreamSink(connection, stream=atomic_stream.name, subject=atomic_stream.subject)
        limit = (await connection.client()).max_payload
        frame = Framer(atomic_stream.name, atomic_stream.subject).frame(messages[3], b"reply", limit)
        assert isinstance(frame, bytes)
        headers = int(frame.split()[3])
        messages[3] = messages[3]._replace(payload=b"x" * (limit - headers))
        assert set(await sink.publish(messages)) == {PUBLISHED}
        too_large = messages[3]._replace(id=uuid7(), payload=messages[3].payload + b"x")
        outcomes = await sink.publish([*hot(2), too_large, *hot(2)])
    assert [type(outcome) for outcome in outcomes] == [Published, Published, Rejected, Released, Released]
    stored = await read(atomic_stream)
    assert [each.id for each in stored[:7]] == ids(messages)
    assert batches(stored) == [3, 3, 2]


async def test_without_order_nothing_is_in_a_batch(atomic_stream: Stream) -> None:
    messages = hot(50)
    async with sink_at(atomic_stream, ordered=False) as sink:
        assert set(await sink.publish(messages)) == {PUBLISHED}
    stored = await read(atomic_stream)
    assert {each.id for each in stored} == set(ids(messages))
    assert batches(stored) == []


async def test_a_stream_that_takes_no_batches_any_more_is_noticed(atomic_stream: Stream) -> None:
    async with sink_at(atomic_stream) as sink, connected(atomic_stream.url) as jetstream:
        assert set(await sink.publish(hot(5))) == {PUBLISHED}
        config = (await jetstream.stream_info(atomic_stream.name)).config
        config.allow_atomic = False
        await jetstream.update_stream(config)
        for _ in range(2):
            assert set(await sink.publish(hot(5))) == {PUBLISHED}
    assert batches(await read(atomic_stream)) == [5]


async def test_who_may_not_ask_sends_waves_and_is_in_no_trouble(tmp_path: Path) -> None:
    """The server's denial is the answer; nothing else that is on its way is released for it."""
    everything = '{ user: maker, password: "m" }'
    little = '{ user: shop, password: "s", permissions: { publish: ["s.>"] } }'
    async with restricted(tmp_path, f"authorization {{ users: [{everything}, {little}] }}", "maker:m@") as (engine, stream):
        async with JetStream(engine.servers, security=Security(user="shop", password="s")) as connection:
            sink = JetStreamSink(connection, stream=stream.name, subject=stream.subject)
            messages, client = hot(60), await connection.client()
            outcomes = await asyncio.gather(*(sink.publish([*messages[n : n + 20], *hot(1)]) for n in (0, 20, 40)), sink.publish(hot(1)))
            assert {outcome for each in outcomes for outcome in each} == {PUBLISHED}
            assert await connection.client() is client, "the connection is in no doubt"
        assert batches(await read(stream)) == []


async def test_a_server_that_takes_fewer_in_a_batch_gets_fewer(tmp_path: Path) -> None:
    async with restricted(tmp_path, "jetstream { limits { batch { max_msgs: 30 } } }") as (engine, stream):
        async with JetStream(engine.servers) as connection:
            sink = JetStreamSink(connection, stream=stream.name, subject=stream.subject)
            messages = hot(300)
            for start in (0, 100, 200):
                assert set(await sink.publish(messages[start : start + 100])) == {PUBLISHED}
        stored = await read(stream)
        assert [each.id for each in stored] == ids(messages)
        assert batches(stored) == [25] * 6, "of 100, 50 and then 25: what was refused went in waves"


async def test_a_batch_without_an_answer_is_released_and_sent_again(tmp_path: Path) -> None:
    """A server that hangs, and one that crashes and comes back: all of the batch is released, and stored once, in order, afterwards."""
    async with restricted(tmp_path, "") as (engine, stream), JetStream(engine.servers, connect_timeout=1) as connection:
        sink = JetStreamSink(connection, stream=stream.name, subject=stream.subject, timeout=2)
        first, second, third = hot(1000), hot(1000), hot(1000)

        async def all_published(messages: list[Message]) -> bool:
            # What the server had in hand when it hung may be stored late: then these are duplicates, which takes some calls.
            outcomes = await sink.publish(messages)
            assert {type(outcome) for outcome in outcomes} <= {Published, Released}
            assert_key_prefix(messages, outcomes)
            del messages[: len(published(messages, outcomes))]
            return not messages

        assert await all_published(first.copy())
        engine.signal(signal.SIGSTOP)
        await stand_still([engine.pid])
        try:
            outcomes = await sink.publish(second)
        finally:
            engine.signal(signal.SIGCONT)
        assert {(type(outcome), getattr(outcome, "reason", None)) for outcome in outcomes} == {(Released, Reason.TIMEOUT)}
        left = second.copy()
        await eventually(lambda: all_published(left), what="the server answers")
        await asyncio.to_thread(engine.stop, signal.SIGKILL)
        assert kinds(await sink.publish(third)) == {"Released unavailable"}
        await asyncio.to_thread(engine.start)
        left = third.copy()
        await eventually(lambda: all_published(left), what="the server is back")
        stored = await read(stream)
        assert [each.id for each in stored] == ids([*first, *second, *third])
        assert 1000 in batches(stored[2000:]), "it was asked again over the new connection"


async def test_a_replayed_message_is_no_duplicate(stream: Stream) -> None:
    """Each replay is stored once, with the id that it had; consumers see that it is one."""
    once = hot(1)[0]
    again, third = (once._replace(headers={"outbox-replayed": when}) for when in ("2030-01-01T00:00:00+00:00", "Dienstag, 1% später"))
    async with sink_at(stream) as sink:
        for each in (once, again, third):
            assert await sink.publish([each]) == [PUBLISHED]
            assert await sink.publish([each]) == [Published(duplicate=True)]
    stored = await read(stream)
    assert [each.id for each in stored] == [once.id] * 3
    assert [each.headers.get("Nats-Msg-Id") for each in stored[:2]] == [str(once.id), f"{once.id}.2030-01-01T00:00:00+00:00"]
    async with JetStream([stream.url]) as connection:
        source = JetStreamSource(connection, stream=stream.name, durable="d")
        assert [message.headers for message in await drain(source, 3)] == [once.headers, again.headers, third.headers]
        await source.close()


async def test_what_a_bridge_renames_is_stored_beside_the_first_and_carried_again_is_a_duplicate(stream: Stream) -> None:
    """In one stream. By another name it is another copy, by its first name, or for the second time, it is none; the id stays."""
    once = hot(1)[0]._replace(topic="orders.created")
    crossings = [Crossing("a", Mapping("orders.> -> shop.{1}")), Crossing("b", Mapping("orders.> -> audit.{1}"))]
    back = Crossing("c", Mapping("shop.> -> orders.{1}"))
    async with sink_at(stream) as sink, JetStream([stream.url]) as connection:
        assert await sink.publish([once]) == [PUBLISHED]
        for durable, expected in (("d1", PUBLISHED), ("d2", Published(duplicate=True))):  # all is delivered a second time
            source = JetStreamSource(connection, stream=stream.name, durable=durable, subjects=[f"{stream.prefix}.orders.>"])
            (taken,) = await drain(source, 1)
            for crossing in crossings:
                assert await CrossingSink(sink, crossing).publish([taken]) == [expected]
            assert await CrossingSink(sink, Crossing("mirror")).publish([taken]) == [Published(duplicate=True)]
            await source.close()
        source = JetStreamSource(connection, stream=stream.name, durable="back", subjects=[f"{stream.prefix}.shop.>"])
        assert await CrossingSink(sink, back).publish(await drain(source, 1)) == [Published(duplicate=True)]
        await source.close()
    stored = await read(stream)
    assert [each.id for each in stored] == [once.id] * 3
    assert [each.headers["Nats-Msg-Id"] for each in stored] == [f"{once.id}{more}" for more in ("", "/shop.created", "/audit.created")]


@dataclass(frozen=True)
class Stored:
    """A message of a stream: its id, and the headers that the stream has for it."""

    id: UUID
    headers: dict[str, str]


async def read(stream: Stream) -> list[Stored]:
    """Everything in a stream, in its order."""
    async with connected(stream.url) as jetstream:
        expected = (await jetstream.stream_info(stream.name)).state.messages
        reader = await jetstream.pull_subscribe("", stream=stream.name, config=ConsumerConfig(ack_policy=AckPolicy.NONE))
        found: list[Stored] = []
        while len(found) < expected:
            for each in await reader.fetch(500, timeout=5):
                headers = dict(each.headers or {})
                found.append(Stored(UUID(headers["outbox-id"]), headers))
        return found


def batches(stored: list[Stored]) -> list[int]:
    """How many messages each batch has, by the order of their beginnings. Fails unless a batch lies together, and ends where it should."""
    names = [each.headers.get("Nats-Batch-Id") for each in stored]
    sizes = [len(list(those)) for name, those in groupby(names) if name is not None]
    assert len(sizes) == len(set(names) - {None})
    commits = [each.headers["Nats-Batch-Sequence"] for each in stored if "Nats-Batch-Commit" in each.headers]
    assert commits == [str(size) for size in sizes]
    return sizes


def hot(count: int) -> list[Message]:
    """Messages of one key."""
    return [Message(uuid7(), "t", b"", "hot") for _ in range(count)]


@asynccontextmanager
async def sink_at(stream: Stream, *, ordered: bool = True) -> AsyncIterator[JetStreamSink]:
    async with JetStream([stream.url]) as connection:
        yield JetStreamSink(connection, stream=stream.name, subject=stream.subject, ordered=ordered)


@asynccontextmanager
async def restricted(folder: Path, configuration: str, login: str = "") -> AsyncIterator[tuple[PrivateNats, Stream]]:
    """A server of one's own with this configuration, and a stream on it that takes atomic batches."""
    path = folder / "nats.conf"
    path.write_text(configuration)
    with PrivateNats("-c", str(path)) as engine:
        stream = Stream(f"nats://{login}127.0.0.1:{engine.port}", "s", "s")
        async with connected(stream.url) as jetstream:
            await jetstream.add_stream(StreamConfig(name="s", subjects=["s.>"], allow_atomic=True))
        yield engine, stream
