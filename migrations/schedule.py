"""The days of a table that is partitioned by day: their names, their bounds, and which are to be there. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from psycopg import sql

_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Daily:
    """A table with a partition for each day, ``<table>_YYYYMMDD``, and ``<table>_default``.

    Attributes:
        table: its name.
        key: the column by whose ranges it is partitioned.
        begin: returns the lowest value of a day, as Postgres writes it in UTC.
    """

    table: str
    key: str
    begin: Callable[[date], str]

    def name(self, day: date) -> str:
        """Return the name of the day's partition."""
        return f"{self.table}_{day:%Y%m%d}"

    def bounds(self, day: date) -> tuple[str, str]:
        """Return the lowest value of the day, and that of the next, which is its end."""
        return self.begin(day), self.begin(day + _DAY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What is to be with a table's days.

    Attributes:
        wanted: days to have a partition.
        needed: those of them for which there are rows today, or will be tomorrow.
        over: days before this one go; None: none does.
        stays: a condition on the rows of a day that is over; those that meet it go to the default partition. There is an index for it:
            it is looked up while the table is locked.
        swept: conditions on the rows of the default partition; those that meet one are deleted.
    """

    wanted: Collection[date] = ()
    needed: Collection[date] = ()
    over: date | None = None
    stays: sql.Composable | None = None
    swept: Collection[sql.Composable] = ()

    def late(self, daily: Daily, days: Collection[date]) -> dict[str, str]:
        """Return the partitions that should have been made or dropped by now, with the reason, if those of some days are there."""
        late = {daily.name(day): "it is not made, though its rows come in by tomorrow" for day in sorted(set(self.needed).difference(days))}
        if self.over is not None:
            late |= {
                daily.name(day): "it is not dropped, though over for more than a day" for day in sorted(days) if day < self.over - _DAY
            }
        return late


def begin_of_timestamps(day: date) -> str:
    """Return the first moment of the day, in UTC."""
    return f"{day:%Y-%m-%d} 00:00:00+00"


def begin_of_uuid7(day: date) -> str:
    """Return the lowest UUID whose first 48 bits, in a UUIDv7 its Unix milliseconds, are of the day or later."""
    return str(UUID(int=milliseconds(datetime(day.year, day.month, day.day, tzinfo=UTC)) << 80))


def milliseconds(moment: datetime) -> int:
    """Return the whole Unix milliseconds of a moment, without passing through a float."""
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)
