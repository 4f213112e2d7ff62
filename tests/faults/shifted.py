"""``outboxd`` on a machine whose clock is wrong: ``python -m tests.faults.shifted SECONDS run -c outboxd.toml``.

The wall clock is moved, as Python code sees it, before anything of ours is imported. The monotonic clock is not: nobody sets it.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
from typing import Any

_REAL = dt.datetime


class _Kind(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _REAL)  # what C code makes is a datetime as well


def shift(seconds: float) -> None:
    """Move `time.time`, `time.time_ns` and ``datetime.datetime.now`` of this process."""
    now, now_ns = time.time, time.time_ns

    class _Shifted(_REAL, metaclass=_Kind):
        __slots__ = ()  # the size that C code knows it by

        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return _REAL.now(tz) + dt.timedelta(seconds=seconds)

    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + int(seconds * 1_000_000_000)
    dt.datetime = _Shifted  # type: ignore[misc]  # for those who import it from now on


if __name__ == "__main__":
    shift(float(sys.argv.pop(1)))
    from outbox.daemon.cli import main  # not above: it is to find the clock as it is now

    main()
