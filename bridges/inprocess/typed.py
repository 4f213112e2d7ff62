"""Typed topics: what is published and what arrives is of one type, and a type checker knows it.

    ORDERS = Topic[OrderCreated]("orders.created", codec=DataclassCodec(OrderCreated))

    await ORDERS.publish(broker, OrderCreated("o-1"), key="o-1")
    async with ORDERS.subscribe(broker) as subscription:
        async for received in subscription:
            print(received.value.order)

With msgspec, the codec is ``Functions(msgspec.json.encode, msgspec.json.Decoder(OrderCreated).decode)``, and with pydantic
``Functions(lambda order: order.model_dump_json().encode(), OrderCreated.model_validate_json)``. What cannot be decoded is a dead letter
with its reason, and the loop goes on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypedDict, TypeVar

from bridges.errors import ConfigurationError, storable, told
from bridges.message import NO_HEADERS, Message, check_topic, uuid7
from bridges.ports import Reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from datetime import datetime
    from typing import Unpack
    from uuid import UUID

    from bridges.backoff import Backoff
    from bridges.inprocess.broker import Broker
    from bridges.inprocess.delivery import Delivery
    from bridges.inprocess.kept import Start
    from bridges.inprocess.log import Log
    from bridges.inprocess.settings import Drop, Policy, PolicyName
    from bridges.inprocess.subscription import Subscription
    from bridges.inprocess.tenants import Tenants

T = TypeVar("T")


class Codec(Protocol[T]):
    """How values of one type become bytes, and values again."""

    @property
    def content_type(self) -> str:
        """The media type of the bytes."""

    def encode(self, value: T, /) -> bytes:
        """Return a value as bytes."""

    def decode(self, payload: bytes, /) -> T:
        """Return the value of some bytes. What it raises says why they are none."""


@dataclass(frozen=True, slots=True)
class Functions(Generic[T]):
    """A `Codec` of two functions, such as those of msgspec and pydantic."""

    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]
    content_type: str = "application/json"


class DataclassCodec(Generic[T]):
    """A `Codec` for dataclasses whose fields are what JSON has: text, numbers, booleans, None, lists and mappings of them.

    Fields that are missing or not known are refused; their types are not checked. Raises `ConfigurationError` for another class.
    """

    content_type = "application/json"

    def __init__(self, kind: type[T]) -> None:
        if not is_dataclass(kind):
            msg = f"codec: {kind.__name__} is not a dataclass"
            raise ConfigurationError(msg)
        self._kind: type[T] = kind

    def encode(self, value: T, /) -> bytes:
        """Return a dataclass as JSON."""
        return json.dumps(asdict(value), ensure_ascii=False).encode()  # type: ignore[call-overload]  # T is a dataclass

    def decode(self, payload: bytes, /) -> T:
        """Return the dataclass of some JSON."""
        fields: Any = json.loads(payload)
        return self._kind(**fields)


class Options(TypedDict, total=False):
    """What `Topic.subscribe` passes on to `Broker.subscribe`."""

    name: str | None
    group: str | None
    durable: str | None
    buffer: int | None
    policy: Policy | PolicyName
    spill_to: Log | None
    on_drop: Callable[[Message, Drop], None] | None
    filter: Callable[[Message], bool] | None
    prefetch: int
    ack: Literal["loop", "explicit"]
    ack_deadline: float | None
    retry: Backoff
    tenants: Tenants | None
    start: Start | None


@dataclass(frozen=True, slots=True)
class Received(Generic[T]):
    """A value, and the delivery that it came with: to acknowledge it, give it back, or look at its message."""

    value: T
    delivery: Delivery


class Topic(Generic[T]):
    """A topic on which values of one type travel. Raises `InvalidMessage` for a name that cannot be a topic.

    Attributes:
        name: the topic.
        codec: how its values become bytes.
    """

    def __init__(self, name: str, *, codec: Codec[T]) -> None:
        check_topic(name)
        self.name = name
        self.codec = codec

    def message(
        self,
        value: T,
        *,
        key: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        id: UUID | None = None,  # noqa: A002 -- what it is called in a `Message`
    ) -> Message:
        """Return the message that carries a value: for a `Broker`, any other `Sink`, or an outbox."""
        return Message(id or uuid7(), self.name, self.codec.encode(value), key, self.codec.content_type, headers)

    async def publish(
        self,
        broker: Broker,
        value: T,
        *,
        key: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        priority: int = 0,
        ttl: float | None = None,
        deliver_at: datetime | None = None,
    ) -> list[Delivery]:
        """Publish a value; see `Broker.publish`."""
        message = self.message(value, key=key, headers=headers)
        return await broker.publish(message, priority=priority, ttl=ttl, deliver_at=deliver_at)

    def subscribe(self, broker: Broker, **options: Unpack[Options]) -> TypedSubscription[T]:
        """Make a subscription to the values of this topic; see `Broker.subscribe`."""
        return TypedSubscription(broker.subscribe(self.name, **options), self.codec)


class TypedSubscription(Generic[T]):
    """A `Subscription` that decodes what it gives.

    Attributes:
        subscription: what is below it.
    """

    def __init__(self, subscription: Subscription, codec: Codec[T]) -> None:
        self.subscription = subscription
        self._codec = codec

    def unsubscribe(self) -> None:
        """Take no further part. Any number of times."""
        self.subscription.unsubscribe()

    async def __aenter__(self) -> Self:
        await self.subscription.__aenter__()
        return self

    async def __aexit__(self, *problem: object) -> None:
        await self.subscription.__aexit__(*problem)  # type: ignore[arg-type]  # what this one was given

    async def __aiter__(self) -> AsyncIterator[Received[T]]:
        async for delivery in self.subscription:
            try:
                value = self._codec.decode(delivery.payload)
            except Exception as problem:  # noqa: BLE001 -- whatever a codec raises says that these bytes are no value
                delivery.reject(Reason.INVALID, storable(told(problem)))
            else:
                yield Received(value, delivery)
