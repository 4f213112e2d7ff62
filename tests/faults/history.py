"""What a run leaves behind for the checker: what was asked for, what each broker has, what took effect, and what was seen meanwhile.

Times are Unix seconds of this machine's clock, all from one machine; no verdict rests on them but those about outages and looks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

MARK = "never-in-a-log"
"""In every payload and every password: a log that has it tells a secret."""


class Put(NamedTuple):
    """A message that the writer put in a transaction of its own or with others."""

    at: float
    """When its transaction began."""
    id: UUID
    topic: str
    key: str | None
    number: int
    """Which of its key it is, from 1, drawn under a lock of the key; 0 without a key and for a scheduled message, which keep no order."""
    digest: str
    """Of its topic, its payload and its header."""
    outcome: Literal["ok", "failed", "unknown"]
    """Of its transaction: committed, rolled back, or cut off at COMMIT."""
    poison: bool = False
    """It can never be accepted: it is to become a dead letter."""
    ended: float = 0.0
    """When the answer was there."""
    flawed: bool = False
    """No handler ever takes it: it is published, and is to become a dead letter of the consumer."""


class Copy(NamedTuple):
    """A copy of a message in a broker, as its own log has it."""

    log: str
    """Within it places tell the order: a stream, or a topic and partition of Kafka."""
    place: int
    id: UUID
    key: str | None
    digest: str
    at: float = 0.0
    """When the broker stored it, by its own clock."""


class Effect(NamedTuple):
    """An effect of a consumer, in the order in which they were committed for a key."""

    place: int
    consumer: str
    id: UUID
    key: str | None
    number: int
    digest: str
    """Of the message that the handler got."""


class Death(NamedTuple):
    """A dead letter."""

    id: UUID
    reason: str


class Settled(NamedTuple):
    """Rows that left the outbox's queue, and whose session did it."""

    at: float
    session: str
    """The server process's id and its start."""
    ids: frozenset[UUID]
    unowned: frozenset[UUID] = frozenset()
    """Those whose lane the transaction that took them out did not own: their claim was lost, or there never was one."""


class Audit(NamedTuple):
    """A look at the outbox, at any time in the run, beside what the broker had then."""

    at: float
    """When it began: what was committed later may or may not be in it."""
    left: frozenset[UUID]
    """What was still in the outbox: waiting, held, deferred or dead."""
    stored: frozenset[UUID]
    """What the broker had when it ended: what left the outbox while it was looked at was stored in between."""


class Sample(NamedTuple):
    """What a process used at a time."""

    at: float
    process: str
    memory: int
    """Bytes, resident."""
    files: int
    tasks: int
    connections: int
    """Sessions in Postgres."""


class Fault(NamedTuple):
    """What was done, and from when to when."""

    nemesis: str
    began: float
    healed: float
    """When the harm was over. Whoever it was done to may still have to come back."""
    times: int = 1
    """How often something was broken meanwhile."""
    recovery: float | None = None
    """Seconds from its healing to nine tenths of the former rate; infinite if that was not seen before the run's end, and None if nobody
    knows the former rate."""


class Probe(NamedTuple):
    """What a daemon said of itself, beside what was so."""

    at: float
    process: str
    claim: str
    """The name of what it says: ``readyz``, ``outbox_backlog_messages`` and so on."""
    said: float
    so: float
    tolerance: float = 0.0


class Stuck(NamedTuple):
    """What a nemesis waited for in vain, or found to be wrong, after which the run was healed and ended."""

    at: float
    nemesis: str
    why: str


class Exit(NamedTuple):
    """The end of a process that was asked to stop."""

    process: str
    code: int | None
    """None: it did not end in time."""
    seconds: float


@dataclass
class History:
    """Everything that is known of a run."""

    sink: str
    seed: int
    puts: list[Put] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    left: list[UUID] = field(default_factory=list)
    """In the outbox after healing and draining."""
    settled: list[Settled] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    stuck: list[Stuck] = field(default_factory=list)
    consumer_hit: bool = False
    """JetStream may have sent what the consumer never got or acknowledged: it comes again after ``ack_wait``, behind newer messages.
    From Kafka it is read again in order."""
    restarts: int = 0
    """Of daemons, beyond those that a nemesis killed: nothing but a nemesis may make one necessary."""
    logs: Mapping[str, str] = field(default_factory=dict)
    """The text of each process's log."""
    secrets: tuple[str, ...] = (MARK,)
    in_flight: int = 0
    """Messages that may be under way at once, over all pumps: batch, times claims, times pumps."""
    nemeses: tuple[str, ...] = ()
    """What was to be done in it: what a mixture did not come to is among them, and has no fault."""
    again: str = ""
    """The command that repeats it; that is `tests.faults.checker.AGAIN` if nothing is said."""
    consumers: tuple[str, ...] = ()
    """Which were to have an effect of each message; one that had none at all would not be known otherwise."""
