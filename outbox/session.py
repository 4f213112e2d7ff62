"""A session with Postgres for work beside the pump: the janitor's, an operator's, a look at how things are.

    async with await session.connect(dsn, "outboxd janitor") as connection:
        ...

What moves messages has settings of its own, by its own deadlines: the pump in `outbox.source`, the bridges in `outbox.daemon.bridging`.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

# Whatever the database's default is: in a stricter isolation, what is asked after a lock would be seen as it was before it. On the client's
# side, as part of each BEGIN: a pooler refuses the startup option, and what SET says to one server session need not be the next one's.
_ISOLATION: Final = psycopg.IsolationLevel.READ_COMMITTED


async def connect(dsn: str, name: str, *, writes: bool = True) -> psycopg.AsyncConnection[Any]:
    """Return a connection in autocommit mode whose transactions are READ COMMITTED. Raises psycopg's errors.

    Args:
        dsn: a libpq connection string or URI.
        name: what the session is called in ``pg_stat_activity``.
        writes: False: for a look, to which any server will do that the dsn allows, a standby too, and a role that may only read.
    """
    connection = await psycopg.AsyncConnection.connect(dsn, **_settings(name, writes=writes))
    try:
        await connection.set_isolation_level(_ISOLATION)
    except BaseException:  # cancelled in between: nobody else has it, to close it
        await connection.close()
        raise
    return connection


def connect_blocking(dsn: str, name: str, *, writes: bool = True) -> psycopg.Connection[Any]:
    """Return what `connect` does, for a thread: migrations look at a schema in no other way."""
    connection = psycopg.connect(dsn, **_settings(name, writes=writes))
    connection.isolation_level = _ISOLATION
    return connection


def _settings(name: str, *, writes: bool) -> dict[str, Any]:
    # Of several hosts the primary; and one that has become a standby is found out here, and not in the middle of the work.
    target = {"target_session_attrs": "read-write"} if writes else {}
    return target | {
        # What is done is mostly a statement; between statements no transaction stands open, to hold back vacuum and the floor.
        "autocommit": True,
        "application_name": name,
        # Seconds for each address. Without it, one that does not answer at all is waited for as long as the kernel likes.
        "connect_timeout": 5,
        # While an answer is awaited, a server that is gone without a word is noticed in half a minute, and not in two hours;
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        # and, in milliseconds, no later when it has not acknowledged what was sent, which keepalives do not look after.
        "tcp_user_timeout": 30_000,
        # Behind a transaction pooler a prepared statement may be on another server session; nothing here is done so often as to gain by
        # one; and what is planned with its values has the conditions folded away that are not given.
        "prepare_threshold": None,
    }
