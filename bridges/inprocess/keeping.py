"""How a durable log is kept: its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bridges.errors import ConfigurationError

_HOUR = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """How a log is kept on disk.

    Attributes:
        fsync: when what was appended is synced. ``"always"``: before the append is answered, so that it survives a loss of power.
            A number: within that many milliseconds, which is what a loss of power may cost. ``"never"``: when the kernel likes. A
            process that is killed loses nothing that was answered, in any of them.
        segment_bytes: a segment that has reached this size is sealed, and the next one begun. Eviction frees whole segments.
        keep_bytes: evict the oldest segments while the log is larger; None to keep all. The newest segment always stays.
        keep_seconds: evict segments in which all is older than this; counted from the newest entry, or the ``now`` of a trim.
        keep_records: read no further back than this many offsets, exactly; their space is freed segment by segment.
        compact: keep of each key only the newest, in the background, whenever what is new has become as large as what a compaction
            has left. Messages without a key stay. One with a key and an empty payload is a tombstone: it takes its key out, and goes
            itself with the next compaction but one. The newest segment is left alone.
    """

    fsync: Literal["always", "never"] | float = "always"
    segment_bytes: int = 64 << 20
    keep_bytes: int | None = None
    keep_seconds: float | None = None
    keep_records: int | None = None
    compact: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.fsync, str):
            if self.fsync not in {"always", "never"}:
                msg = f'fsync: {self.fsync!r} is not "always", "never" or a number of milliseconds'
                raise ConfigurationError(msg)
        elif not 0 < self.fsync <= _HOUR:
            msg = f"fsync: {self.fsync} milliseconds are not above 0, and an hour at most"
            raise ConfigurationError(msg)
        for name in ("segment_bytes", "keep_bytes", "keep_seconds", "keep_records"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                msg = f"{name}: {value} is not above 0"
                raise ConfigurationError(msg)
