"""One trace id from the put to the effect, through each broker."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from bridges.inprocess import Broker, InProcessSink, InProcessSource
from bridges.jetstream import JetStream, JetStreamSink, JetStreamSource
from bridges.kafka import Kafka, KafkaSink, KafkaSource
from bridges.observed import Metrics, ObservedSink
from dedupe import Consumer
from outbox import Draft, Outbox
from tests.contracts.claims import drain
from tests.engines.pumps import pumping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridges.message import Message
    from bridges.ports import Sink, Source
    from tests.conftest import Stream

OUTBOX = Outbox()


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """The process has one provider for ever: it is set once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    yield exporter
    exporter.clear()


def trace_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.trace_id)


@pytest.mark.parametrize("via", ["inprocess", "jetstream", "kafka"])
async def test_one_trace_from_put_to_effect(
    via: str, database: str, stream: Stream, kafka_servers: str, kafka_topic: str, spans: InMemorySpanExporter
) -> None:
    consumer = Consumer("traced")
    effects: list[tuple[Message, int]] = []
    done = asyncio.Event()

    @consumer.handler("orders.*")
    async def handle(message: Message, _: psycopg.AsyncConnection[Any]) -> None:
        effects.append((message, trace.get_current_span().get_span_context().trace_id))
        if len(effects) == 2:
            done.set()

    async with AsyncExitStack() as stack:
        sink: Sink
        source: Source
        if via == "inprocess":
            broker = Broker()
            sink, source = InProcessSink(broker), InProcessSource(broker, group="traced")
        elif via == "jetstream":
            connection = await stack.enter_async_context(JetStream([stream.url]))
            sink = JetStreamSink(connection, stream=stream.name, subject=stream.subject)
            source = JetStreamSource(connection, stream=stream.name, durable="traced")
        else:
            kafka = await stack.enter_async_context(Kafka([kafka_servers]))
            sink = KafkaSink(kafka, topic=kafka_topic)
            source = kafka_source = KafkaSource(kafka, group=kafka_topic, topics=[kafka_topic])
            stack.push_async_callback(kafka_source.close)
        running = asyncio.create_task(consumer.run(source, dsn=database))
        async with pumping(database, ObservedSink(sink, via, Metrics(CollectorRegistry()))):
            tracer = trace.get_tracer("the application")
            with tracer.start_as_current_span("checkout") as checkout:
                async with await psycopg.AsyncConnection.connect(database) as writer:
                    await OUTBOX.aput(writer, "orders.created", {"n": 1}, key="k")
                    await OUTBOX.aput_many(writer, [Draft("orders.paid", {"n": 2}, key="k")])
            await asyncio.wait_for(done.wait(), 60)
        consumer.stop()
        await running

    expected = checkout.get_span_context().trace_id
    assert [seen for _, seen in effects] == [expected, expected], "the handler runs in the trace of the put"
    by_name = {span.name: span for span in spans.get_finished_spans()}
    for topic in ("orders.created", "orders.paid"):
        create, process = by_name[f"create {topic}"], by_name[f"process {topic}"]
        assert create.kind is trace.SpanKind.PRODUCER
        assert process.kind is trace.SpanKind.CONSUMER
        assert trace_id(create) == trace_id(process) == expected
        assert create.context is not None
        assert process.parent is not None
        assert process.parent.span_id == create.context.span_id
        assert [link.context.span_id for link in process.links] == [create.context.span_id]
    sends = [span for span in spans.get_finished_spans() if span.name.startswith("send ")]
    assert all(span.kind is trace.SpanKind.CLIENT for span in sends)
    linked = {link.context.span_id for span in sends for link in span.links}
    created = {span.context.span_id for span in spans.get_finished_spans() if span.name.startswith("create ") and span.context}
    assert created <= linked


async def test_a_context_of_the_applications_own_is_passed_on_opaquely(database: str, stream: Stream, spans: InMemorySpanExporter) -> None:
    """Whatever it says in a traceparent, a future version or flags we do not know, arrives as it was."""
    theirs = {"traceparent": "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-what-the-future-brings", "tracestate": "a=1,b=2"}
    async with JetStream([stream.url]) as connection:
        sink = JetStreamSink(connection, stream=stream.name, subject=stream.subject)
        source = JetStreamSource(connection, stream=stream.name, durable="d", linger=20)
        async with await psycopg.AsyncConnection.connect(database) as writer:
            await OUTBOX.aput(writer, "t", b"", headers=theirs)
        async with pumping(database, sink):
            (message,) = await drain(source, 1)
        await source.close()
    assert message.headers == theirs


async def test_messages_that_are_put_together_are_not_each_others_parents(database: str, spans: InMemorySpanExporter) -> None:
    async with await psycopg.AsyncConnection.connect(database) as writer:
        await OUTBOX.aput_many(writer, [Draft("t", {"n": n}) for n in range(3)])
    created = [span for span in spans.get_finished_spans() if span.name == "create t"]
    assert len({trace_id(span) for span in created}) == 3
    assert [span.parent for span in created] == [None] * 3
