"""Puts a table that was generated between its two marks in the README.

python -m tests.tables bench .bench/bench.md
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def put(text: str, name: str, table: str) -> str:
    """Return the text with the table between ``<!-- name -->`` and ``<!-- /name -->``. Raises `ValueError` unless both are there, once."""
    text, found = re.subn(
        rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda marks: f"{marks[1]}{table.strip()}\n{marks[2]}", text, flags=re.DOTALL
    )
    if found != 1:
        msg = f"the marks of {name!r} are there {found} times, and not once"
        raise ValueError(msg)
    return text


def main() -> None:
    name, file = sys.argv[1:]
    table = Path(file).read_text()
    README.write_text(put(README.read_text(), name, f"Measured on {datetime.now(UTC):%Y-%m-%d} with {table}"))


if __name__ == "__main__":
    main()
