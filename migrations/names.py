"""Schema names, and the SQL texts that carry a placeholder for one. Light to import."""

from __future__ import annotations

import re
from functools import cache
from typing import Final, LiteralString

_SCHEMA: Final = r"[a-z_][a-z0-9_]{0,62}"


class MigrationError(Exception):
    """The schema and this version's files do not fit each other; the text says how."""


def check_schema_name(schema: str) -> LiteralString:
    """Return the name. Raises `MigrationError` for one outside ``^[a-z_][a-z0-9_]{0,62}$``."""
    if not re.fullmatch(_SCHEMA, schema):
        msg = f"schema: {schema!r} does not match ^[a-z_][a-z0-9_]{{0,62}}$"
        raise MigrationError(msg)
    return schema


@cache
def render(text: str, schema: str) -> LiteralString:
    """Replace ``:"schema"`` and ``:'schema'``, psql's notation for a variable as an identifier and as a literal, by a checked name."""
    check_schema_name(schema)
    # Literal as far as injection goes: our own texts, and a name that was checked.
    return text.replace(':"schema"', f'"{schema}"').replace(":'schema'", f"'{schema}'")
