"""The embedded broker: topics, wildcards, subscriptions that end with their task, acknowledgements and logs, in one asyncio process.

    broker = Broker()
    async with broker.subscribe("orders.*") as subscription:
        async for delivery in subscription:
            await handle(delivery.message)

A publish finds the mailboxes that its topic reaches in a trie (`Routes`, `Trie`), and puts a `Delivery` into each: that of a subscription,
or of a queue group. A mailbox that is full drops, blocks or spills, as its subscription chose. Its readers take deliveries, and the loop
above acknowledges each when it comes for the next; what is given back, or not acknowledged in time, is delivered again, and after its last
attempt it is a dead letter of the broker. A topic may keep a log: a subscription that begins in one reads old and new messages there.

In memory, nothing here is durable: `InProcessSink` answers `Published` only when every delivery was acknowledged, or a durable log
has stored the message, so that its source keeps the message till then.
"""

from bridges.inprocess.broker import Broker
from bridges.inprocess.deadletters import DeadLetter, DeadLetters
from bridges.inprocess.delivery import Delivery, State
from bridges.inprocess.endpoints import InProcessSink, InProcessSource
from bridges.inprocess.log import CursorStore, Entry, Log
from bridges.inprocess.memory import MemoryLog
from bridges.inprocess.settings import Drop, Policy
from bridges.inprocess.stats import Figures, SubscriptionFigures, TopicFigures
from bridges.inprocess.subscription import Subscription
from bridges.inprocess.tenants import Tenants
from bridges.inprocess.typed import Codec, DataclassCodec, Functions, Received, Topic, TypedSubscription

__all__ = [
    "Broker",
    "Codec",
    "CursorStore",
    "DataclassCodec",
    "DeadLetter",
    "DeadLetters",
    "Delivery",
    "Drop",
    "Entry",
    "Figures",
    "Functions",
    "InProcessSink",
    "InProcessSource",
    "Log",
    "MemoryLog",
    "Policy",
    "Received",
    "State",
    "Subscription",
    "SubscriptionFigures",
    "Tenants",
    "Topic",
    "TopicFigures",
    "TypedSubscription",
]
