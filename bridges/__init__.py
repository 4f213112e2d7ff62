"""Everything that moves messages is a Source joined to a Sink by a Bridge.

    claim a batch from the source  ->  publish it to the sink  ->  settle the batch by its outcomes

A `Message` has an id, a topic, a payload, perhaps a key. A `Source` lends a batch of them; a `Sink` answers one outcome for each:
`Published`, `Released` (not its fault: given back), `Retry` (counted), `Rejected` (a dead letter). The `Bridge` is the one loop. Where
messages of one key meet trouble, those behind it wait: that is the key prefix, and every Sink keeps it.

Brokers live beside the ports, one module each: ``jetstream``, ``kafka``, ``inprocess``. The next one goes there too. The names below are
loaded when they are first used, so that an application which only writes messages does not pay for asyncio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bridges.message import Message

if TYPE_CHECKING:
    from bridges.backoff import Backoff
    from bridges.breaker import Breaker, GuardedSink
    from bridges.bridge import Bridge
    from bridges.ports import Batch, Outcome, Published, Reason, Rejected, Released, Retry, Sink, Source
    from bridges.router import Route, Router
    from bridges.security import Security
    from bridges.topics import Destination, Mapping, Pattern

__all__ = [
    "Backoff",
    "Batch",
    "Breaker",
    "Bridge",
    "Destination",
    "GuardedSink",
    "Mapping",
    "Message",
    "Outcome",
    "Pattern",
    "Published",
    "Reason",
    "Rejected",
    "Released",
    "Retry",
    "Route",
    "Router",
    "Security",
    "Sink",
    "Source",
]

_HOMES = {
    "backoff": ("Backoff",),
    "breaker": ("Breaker", "GuardedSink"),
    "bridge": ("Bridge",),
    "ports": ("Batch", "Outcome", "Published", "Reason", "Rejected", "Released", "Retry", "Sink", "Source"),
    "router": ("Route", "Router"),
    "security": ("Security",),
    "topics": ("Destination", "Mapping", "Pattern"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if home := _HOME_OF.get(name):
        return getattr(import_module(f"bridges.{home}"), name)
    msg = f"module 'bridges' has no attribute {name!r}"
    raise AttributeError(msg)
