"""Spans around putting, sending and processing, where OpenTelemetry's API is installed; nothing where it is not.

The context of the ``create`` span travels in the message's headers; the ``process`` span continues it, and both it and the batch's
``send`` span link to it, as the semantic conventions for messaging have it (opentelemetry.io/docs/specs/semconv/messaging).
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from uuid import UUID

    from bridges.message import Message


class _Telemetry(NamedTuple):
    trace: Any
    tracer: Any
    propagator: Any


@cache
def _telemetry() -> _Telemetry | None:
    # Imported when the first message is put, not when the package is: it costs more than all of ours.
    try:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        return None
    return _Telemetry(trace, trace.get_tracer("outboxd"), TraceContextTextMapPropagator())


@contextmanager
def creating(topic: str, message_id: UUID, headers: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """Wrap a put in a ``create`` span and yield the headers with its context. A ``traceparent`` among them already wins."""
    telemetry = _telemetry()
    if telemetry is None:
        yield headers
        return
    # Not the current span: of the many puts of one call, none is the parent of another.
    span = telemetry.tracer.start_span(
        f"create {topic}", kind=telemetry.trace.SpanKind.PRODUCER, attributes=_attributes("create", topic, message_id)
    )
    try:
        context: dict[str, str] = {}
        telemetry.propagator.inject(context, telemetry.trace.set_span_in_context(span))
        yield {**context, **headers}
    except BaseException as problem:
        span.record_exception(problem)
        span.set_status(telemetry.trace.Status(telemetry.trace.StatusCode.ERROR))
        raise
    finally:
        span.end()


@contextmanager
def sending(messages: Sequence[Message], destination: str) -> Iterator[None]:
    """Wrap the publishing of a batch in a ``send`` span, linked to every message's context."""
    telemetry = _telemetry()
    if telemetry is None:
        yield
        return
    topics = {message.topic for message in messages}
    name = f"send {topics.pop()}" if len(topics) == 1 else f"send {destination}"
    attributes = {**_attributes("send", destination), "messaging.batch.message_count": len(messages)}
    with telemetry.tracer.start_as_current_span(name, kind=telemetry.trace.SpanKind.CLIENT, attributes=attributes) as span:
        if span.is_recording():
            for message in messages:
                span.add_link(_context_of(telemetry, message))
        yield


@contextmanager
def processing(message: Message, consumer: str) -> Iterator[None]:
    """Wrap a handler in a ``process`` span of the message's own trace."""
    telemetry = _telemetry()
    if telemetry is None:
        yield
        return
    attributes = {**_attributes("process", message.topic, message.id), "messaging.consumer.group.name": consumer}
    with telemetry.tracer.start_as_current_span(
        f"process {message.topic}",
        context=telemetry.propagator.extract(message.headers),
        kind=telemetry.trace.SpanKind.CONSUMER,
        links=[telemetry.trace.Link(_context_of(telemetry, message))],
        attributes=attributes,
    ):
        yield


def _context_of(telemetry: _Telemetry, message: Message) -> Any:
    return telemetry.trace.get_current_span(telemetry.propagator.extract(message.headers)).get_span_context()


def _attributes(operation: str, destination: str, message_id: UUID | None = None) -> dict[str, Any]:
    attributes = {
        "messaging.system": "outboxd",
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        "messaging.destination.name": destination,
    }
    return attributes if message_id is None else {**attributes, "messaging.message.id": str(message_id)}
