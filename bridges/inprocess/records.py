"""How records lie in a segment: framing them, and finding them again in bytes that may be damaged. Pure.

    mark | CRC32C | length | offset | time | body

The CRC covers all that follows it and begins with the segment's salt, an idea of SQLite's write-ahead log: a record that somebody
sends inside a message, or that an older file left on the disk, is not a record of this segment. The mark lets a search for the next
record after damage run at the speed of `bytes.find`.
"""

from __future__ import annotations

from functools import cache
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from bridges.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MARK: Final = b"\xc5obR"
_SEAL: Final = Struct(">4sI")
_HEAD: Final = Struct(">IQd")
_WHOLE_HEAD: Final = Struct(">4sIIQd")

OVERHEAD: Final = _WHOLE_HEAD.size
"""Bytes of a record beside its body."""


class Record(NamedTuple):
    """One record.

    Attributes:
        offset: its place in the log.
        time: Unix seconds.
        body: what was stored.
        end: the position behind it in the bytes that it was found in.
    """

    offset: int
    time: float
    body: bytes
    end: int


class Framing:
    """The frames of one segment.

    Args:
        salt: the segment's own; a record framed with another one is not found.
    """

    def __init__(self, salt: bytes) -> None:
        self._extend = crc32c()
        self._seed = self._extend(0, salt)

    def frame(self, offset: int, time: float, body: bytes) -> bytes:
        """Return the record as it lies in the segment."""
        covered = _HEAD.pack(len(body), offset, time) + body
        return _SEAL.pack(_MARK, self._extend(self._seed, covered)) + covered

    def record_at(self, data: bytes, position: int) -> Record | None:
        """Return the record that lies at the position; None if no whole and sound one does."""
        size = size_at(data, position)
        if size is None or position + size > len(data):
            return None
        mark, crc, _, offset, time = _WHOLE_HEAD.unpack_from(data, position)
        end = position + size
        if mark != _MARK or self._extend(self._seed, data[position + _SEAL.size : end]) != crc:
            return None
        return Record(offset, time, data[position + OVERHEAD : end], end)

    def scattered(self, data: bytes, position: int = 0) -> Iterator[Record]:
        """Yield every sound record from the position on, whatever lies between them."""
        found = self.next_position(data, position)
        while found is not None and (record := self.record_at(data, found)):
            yield record
            found = self.next_position(data, record.end)

    def next_position(self, data: bytes, position: int) -> int | None:
        """Return where the next sound record begins, at the position or after it; None if there is no other."""
        while (position := data.find(_MARK, position)) >= 0:
            if self.record_at(data, position):
                return position
            position += 1
        return None


def size_at(data: bytes, position: int) -> int | None:
    """Return how long the record at the position says that it is, with its frame; None if its head is not all there."""
    if position + OVERHEAD > len(data):
        return None
    length: int = _WHOLE_HEAD.unpack_from(data, position)[2]
    return OVERHEAD + length


@cache
def crc32c() -> Callable[[int, bytes], int]:
    """Return the function that extends a CRC32C by some bytes. Raises `ConfigurationError` where google-crc32c is not installed."""
    try:
        from google_crc32c import extend
    except ImportError:
        msg = "a durable log needs the package google-crc32c: pip install 'outboxd[log]'"
        raise ConfigurationError(msg) from None
    checked: Callable[[int, bytes], int] = extend
    return checked
