"""The embedded broker: topics, wildcards, subscriptions that end with their task, and acknowledgements, in one asyncio process.

    broker = Broker()
    async with broker.subscribe("orders.*") as subscription:
        async for delivery in subscription:
            await handle(delivery.message)
            delivery.ack()

A publish puts a `Delivery` into the buffer of every subscription that matches (of one member for each queue group), and waits where a
buffer is full. A delivery that is given back, or whose reader ends, is delivered again to whoever shares its buffer. Nothing here
is durable: `InProcessSink` answers `Published` only when every delivery was acknowledged, so that its source keeps the message till then.
"""

from bridges.inprocess.broker import Broker
from bridges.inprocess.delivery import Delivery
from bridges.inprocess.endpoints import InProcessSink, InProcessSource
from bridges.inprocess.subscription import Subscription

__all__ = ["Broker", "Delivery", "InProcessSink", "InProcessSource", "Subscription"]
