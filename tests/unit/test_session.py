"""Sessions beside the pump: whatever is usual in the database, they are as those who work in them take them to be."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from outbox import session


@pytest.fixture
def strict(empty_database: str) -> str:
    """A database in which transactions are REPEATABLE READ and only read, unless they say otherwise."""
    with psycopg.connect(empty_database, autocommit=True) as connection:
        for setting in ("default_transaction_isolation = 'repeatable read'", "default_transaction_read_only = on"):
            statement = sql.SQL("ALTER DATABASE {} SET ").format(sql.Identifier(connection.info.dbname)).as_string() + setting
            connection.execute(statement.encode())
    return empty_database


SEE = "SELECT current_setting('application_name'), current_setting('transaction_isolation')"


async def test_transactions_are_read_committed_and_the_session_has_its_name(strict: str) -> None:
    async with await session.connect(strict, "a look", writes=False) as connection:
        assert connection.autocommit
        async with connection.transaction():
            assert await (await connection.execute(SEE)).fetchone() == ("a look", "read committed")


def test_so_they_are_for_a_thread(strict: str) -> None:
    with session.connect_blocking(strict, "a look", writes=False) as connection:
        assert connection.autocommit
        with connection.transaction():
            assert connection.execute(SEE).fetchone() == ("a look", "read committed")


async def test_where_nothing_can_be_written_only_a_look_is_had(strict: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="read-only"):
        await session.connect(strict, "work")
    with pytest.raises(psycopg.OperationalError, match="read-only"):
        session.connect_blocking(strict, "work")


async def test_nothing_is_prepared(empty_database: str) -> None:
    """Behind a transaction pooler it may be on another server session when it is wanted."""
    async with await session.connect(empty_database, "work") as connection:
        for number in range(10):
            await connection.execute("SELECT %s", (number,))
        assert await (await connection.execute("SELECT count(*) FROM pg_prepared_statements")).fetchone() == (0,)
