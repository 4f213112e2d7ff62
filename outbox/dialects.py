"""Run one statement on a connection that the application owns, whatever library it came from.

The next library (asyncpg, Django) is one more branch here. Libraries are looked up, not imported: whoever holds a connection of one has
imported it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from bridges.errors import NoTransaction

if TYPE_CHECKING:
    from collections.abc import Sequence

_REFUSAL = (
    "the connection is in autocommit mode and no transaction is open, so the message would commit by itself: "
    "open a transaction, or make the Outbox with allow_autocommit=True"
)


def execute(connection: object, statement: str, parameters: Sequence[Any], *, allow_autocommit: bool) -> None:
    """Run a statement on a psycopg or SQLAlchemy connection, cursor or session.

    Raises `NoTransaction` where the statement would commit by itself, and `TypeError` for any other kind of connection.
    """
    if psycopg := sys.modules.get("psycopg"):
        if isinstance(connection, psycopg.Cursor):
            connection = connection.connection
        if isinstance(connection, psycopg.Connection):
            _refuse_autocommit(connection, allow_autocommit)
            # A cursor of our own: the caller's may be bound to other parameter styles, row factories, or a result in use.
            with psycopg.Cursor(connection) as cursor:
                cursor.execute(statement, parameters)
            return
    if (sqlalchemy := sys.modules.get("sqlalchemy")) and (orm := sys.modules.get("sqlalchemy.orm")):
        if isinstance(connection, orm.Session | orm.scoped_session):
            connection = connection.connection()
        if isinstance(connection, sqlalchemy.Connection):
            _refuse_autocommit(connection.connection.driver_connection, allow_autocommit)
            connection.exec_driver_sql(statement, tuple(parameters))
            return
    raise TypeError(_unknown(connection, "psycopg Connection or Cursor, SQLAlchemy Connection or Session"))


async def aexecute(connection: object, statement: str, parameters: Sequence[Any], *, allow_autocommit: bool) -> None:
    """Do as `execute`, on an asynchronous connection, cursor or session."""
    if psycopg := sys.modules.get("psycopg"):
        if isinstance(connection, psycopg.AsyncCursor):
            connection = connection.connection
        if isinstance(connection, psycopg.AsyncConnection):
            _refuse_autocommit(connection, allow_autocommit)
            async with psycopg.AsyncCursor(connection) as cursor:
                await cursor.execute(statement, parameters)
            return
    if asyncio_ := sys.modules.get("sqlalchemy.ext.asyncio"):
        if isinstance(connection, asyncio_.AsyncSession | asyncio_.async_scoped_session):
            connection = await connection.connection()
        if isinstance(connection, asyncio_.AsyncConnection):
            raw = await connection.get_raw_connection()
            _refuse_autocommit(raw.driver_connection, allow_autocommit)
            await connection.exec_driver_sql(statement, tuple(parameters))
            return
    raise TypeError(_unknown(connection, "psycopg AsyncConnection or AsyncCursor, SQLAlchemy AsyncConnection or AsyncSession"))


def _refuse_autocommit(connection: Any, allowed: bool) -> None:
    if allowed or not connection.autocommit:
        return
    info = connection.info
    # In a pipeline the BEGIN may be on its way, and the status does not know: psycopg's own count of transaction blocks does.
    if info.transaction_status.name == "IDLE" and not getattr(connection, "_num_transactions", 0):
        raise NoTransaction(_REFUSAL)


def _unknown(connection: object, wanted: str) -> str:
    kind = type(connection)
    return f"connection: a {wanted} is needed, not {kind.__module__}.{kind.__qualname__}"
