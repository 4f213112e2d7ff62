"""What a log is: the messages of some topics in the order of their publishing, each at an offset, for those who read later.

`bridges.inprocess.memory.MemoryLog` keeps them in memory, `bridges.inprocess.durable.DurableLog` on disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from bridges.inprocess.stamps import PLAIN, Stamps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridges.inprocess.runs import Runs
    from bridges.message import Message


class Entry(NamedTuple):
    """One message in a log.

    Where a log compacts by key, an entry with a key and an empty payload is a tombstone: it takes the key out of the log, and
    goes itself with the next compaction but one, so that whoever reads along has seen it.

    Attributes:
        offset: its place, counted from 0; never used again.
        time: Unix seconds, as given when it was appended.
        message: what was published.
        stamps: its priority, when it is due, and until when it is good.
    """

    offset: int
    time: float
    message: Message
    stamps: Stamps = PLAIN


class Log(Protocol):
    """A place where messages stay after they were delivered, as long as its retention says."""

    @property
    def durable(self) -> bool:
        """Whether what `append` has answered for outlives this process."""

    @property
    def first(self) -> int:
        """The oldest offset that retention has not evicted; `next` if there is nothing. Compaction does not move it."""

    @property
    def next(self) -> int:
        """The offset that the next entry will get; everything below it can be read."""

    def listen(self, told: Callable[[Sequence[Message]], None]) -> None:
        """Have something called with the messages of each append once they can be read, though its caller may wait no longer."""

    async def append(self, messages: Sequence[Message], time: float, stamps: Stamps = PLAIN) -> int:
        """Store the messages, in order and together, and return the first offset when they are stored as durably as configured.

        ``stamps`` says of each of them how it is to be delivered.
        """

    async def sync(self) -> None:
        """Return when all that can be read would survive a loss of power, as far as anything here does."""

    def read(self, offset: int, limit: int) -> list[Entry]:
        """Return up to ``limit`` entries from ``offset`` on; fewer, or none, only at the end. Offsets may have gaps (compaction).

        Raises `bridges.errors.Evicted`, which knows the first offset that is left, if ``offset`` is below `first`.
        """

    def offset_at(self, time: float) -> int:
        """Return the first offset whose entry was appended at ``time`` (Unix seconds) or later; `next` if there is none."""

    async def close(self) -> None:
        """Store what is to be stored and let go of everything. Any number of times."""


class Place(NamedTuple):
    """How far a subscription has come in a log.

    Attributes:
        below: every offset below it is over.
        done: those from there on that are over, as runs: so that it grows with what is not over, and not with what is.
        dead: those of them all that are dead letters: over for now, and to be delivered again when the letters are gone with the process.
    """

    below: int
    done: Runs = ()
    dead: frozenset[int] = frozenset()


class CursorStore(Protocol):
    """How far each durable subscription has come; kept beside a durable log."""

    async def save(self, name: str, place: Place) -> None:
        """Remember the place by the name. Returns when it is stored."""

    def load(self, name: str) -> Place | None:
        """Return what was saved last for the name; None if nothing was."""

    async def close(self) -> None:
        """Store what is to be stored and let go of everything. Any number of times."""
