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

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from bridges.inprocess.cursors import DurableCursors
    from bridges.inprocess.durable import DurableLog
    from bridges.inprocess.keeping import LogSettings
    from bridges.inprocess.metrics import BrokerMetrics
    from bridges.inprocess.recovery import RecoveryReport

__all__ = [
    "Broker",
    "BrokerMetrics",
    "Codec",
    "CursorStore",
    "DataclassCodec",
    "DeadLetter",
    "DeadLetters",
    "Delivery",
    "Drop",
    "DurableCursors",
    "DurableLog",
    "Entry",
    "Figures",
    "Functions",
    "InProcessSink",
    "InProcessSource",
    "Log",
    "LogSettings",
    "MemoryLog",
    "Policy",
    "Received",
    "RecoveryReport",
    "State",
    "Subscription",
    "SubscriptionFigures",
    "Tenants",
    "Topic",
    "TopicFigures",
    "TypedSubscription",
]

# These need packages that a broker in memory does without, and are loaded when they are first used.
_HOME_OF = {
    "BrokerMetrics": "metrics",
    "DurableCursors": "cursors",
    "DurableLog": "durable",
    "LogSettings": "keeping",
    "RecoveryReport": "recovery",
}


def __getattr__(name: str) -> object:
    if home := _HOME_OF.get(name):
        return getattr(import_module(f"bridges.inprocess.{home}"), name)
    msg = f"module 'bridges.inprocess' has no attribute {name!r}"
    raise AttributeError(msg)
