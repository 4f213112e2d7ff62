"""What a durable broker keeps beside its logs: how far each subscription has come.

A table on a small compacted log, so that what holds for a log holds for it: group commit, recovery, one owner, an end to its growth. It
is read once, when it is opened, and is in memory from then on. What is not due yet is in the log itself: it counts as not acknowledged.
"""

from __future__ import annotations

from struct import pack, unpack
from typing import TYPE_CHECKING, Final, Literal, Self
from uuid import UUID

from bridges.inprocess.durable import DurableLog
from bridges.inprocess.keeping import LogSettings
from bridges.inprocess.log import Place
from bridges.message import Message

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from bridges.inprocess.recovery import RecoveryReport

_NOBODY: Final = UUID(int=0)
_PAGE: Final = 1000


class _Table:
    """The newest value of each key, on a log that is compacted."""

    def __init__(self, log: DurableLog) -> None:
        self._log = log
        self._rows: dict[str, bytes] = {}
        position = log.first
        while entries := log.read(position, _PAGE):
            for entry in entries:
                self._note(entry.message.key or "", entry.message.payload)
            position = entries[-1].offset + 1

    @property
    def recovery(self) -> RecoveryReport:
        """What opening it did."""
        return self._log.recovery

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Yield the keys with their values."""
        return iter(self._rows.items())

    def get(self, key: str) -> bytes:
        """Return the value; nothing if there is none."""
        return self._rows.get(key, b"")

    async def put(self, key: str, value: bytes) -> None:
        """Store a value for the key; nothing takes the key out. Returns when it is stored. Raises as `DurableLog.append`."""
        await self._log.append([Message(_NOBODY, "table", value, key)], 0.0)
        self._note(key, value)  # appends are answered in the order of their calls: of two under way, the later one wins

    async def sync(self) -> None:
        """Return when all values would survive a loss of power. Raises as `DurableLog.sync`."""
        await self._log.sync()

    async def close(self) -> None:
        """Store what is to be stored and let go of everything. Any number of times."""
        await self._log.close()

    def _note(self, key: str, value: bytes) -> None:
        if value:
            self._rows[key] = value
        else:
            self._rows.pop(key, None)


class DurableCursors:
    """How far each durable subscription has come: a `bridges.inprocess.log.CursorStore` on disk, got from `open`.

    Attributes:
        recovery: what opening it did.
    """

    def __init__(self, table: _Table) -> None:
        self._table = table
        self.recovery = table.recovery

    @classmethod
    async def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        fsync: Literal["always", "never"] | float = "always",
        segment_bytes: int = 1 << 20,
        skip_corrupt: bool = False,
    ) -> Self:
        """Open the store in a folder of its own. The arguments are those of `LogSettings`; raises as `DurableLog.open`.

        A cursor that is lost with a window that was not synced yet costs duplicates, no message: a new name is synced at once.
        """
        settings = LogSettings(fsync=fsync, segment_bytes=segment_bytes, compact=True)
        return cls(_Table(await DurableLog.open(folder, settings, skip_corrupt=skip_corrupt)))

    async def save(self, name: str, place: Place) -> None:
        """Remember the place by the name. Returns when it is stored.

        What it takes up grows with the gaps between those that are done, not with their number, and with the number of the dead.
        """
        runs = [number for run in place.done for number in run]
        new = not self._table.get(name)
        numbers = [place.below, len(runs), *runs, *sorted(place.dead)]
        await self._table.put(name, pack(f">{len(numbers)}Q", *numbers))
        if new:  # one that has never been saved begins where the log ends: to lose it would lose what came since
            await self._table.sync()

    def load(self, name: str) -> Place | None:
        """Return what was saved last for the name; None if nothing was."""
        value = self._table.get(name)
        if not value:
            return None
        below, size, *numbers = unpack(f">{len(value) // 8}Q", value)
        runs, dead = numbers[:size], numbers[size:]
        return Place(below, tuple(zip(runs[::2], runs[1::2], strict=True)), frozenset(dead))

    async def forget(self, name: str) -> None:
        """Remove what was saved for the name: the subscription is gone for good."""
        await self._table.put(name, b"")

    def names(self) -> list[str]:
        """Return the names that something is saved for."""
        return [name for name, _ in self._table.items()]

    async def close(self) -> None:
        """Store what is to be stored and let go of everything. Any number of times."""
        await self._table.close()
