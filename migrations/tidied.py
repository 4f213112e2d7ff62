"""What a turn of a table's partitions has done, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging


@dataclass(slots=True)
class Tidied:
    """What a turn has done.

    Attributes:
        table: of which.
        made: partitions.
        dropped: partitions.
        moved: rows that went from the default partition into a new one.
        swept: rows of the default partition that were over, and deleted.
        left: what could not be done now, with the reason.
        late: partitions that should have been made or dropped by now, with the reason.
        wrong: what somebody must look at, with the reason.
        forbidden: what the role may not do, as Postgres says it; None if it may.
    """

    table: str
    made: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    moved: int = 0
    swept: int = 0
    left: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    forbidden: str | None = None


class Announcer:
    """Tells a log what turns have done, and each trouble when it comes and when it has gone."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._told: set[str] = set()

    def tell(self, tidied: Tidied) -> None:
        """Log what a turn has done."""
        for what, names in (("made", tidied.made), ("dropped", tidied.dropped)):
            if names:
                self._log.info("partitions of %s: %s %s", tidied.table, what, ", ".join(names))
        for name, why in tidied.left.items():
            self._log.debug("%s: left for the next turn: %s", name, why)
        troubles = dict(tidied.wrong)
        if not tidied.forbidden:
            troubles |= tidied.late
        elif tidied.late:  # else somebody who may keeps the days
            troubles[tidied.table] = (
                f"this role may neither make nor drop its partitions ({tidied.forbidden}), and nobody else does: run `outboxd tidy` every"
                f" day as the owner of the schema; whatever has no partition goes to {tidied.table}_default"
            )
        for name, why in troubles.items():
            if name not in self._told:
                self._log.warning("%s: %s", name, why)
        for name in self._told.difference(troubles):
            self._log.warning("%s: is as it should be again", name)
        self._told = set(troubles)
