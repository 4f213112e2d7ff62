"""What `outboxd doctor` finds, for tests that make it so and for those that follow its advice."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import psycopg

    from outbox.doctor import Finding

ROUTE = '[[routes]]\ntopics = "orders.>"\nsink = "events"\n'
IN_PROCESS = f'[sinks.events]\nkind = "inprocess"\n{ROUTE}'
"""A configuration whose only findings are those of the database."""


async def found(search: AsyncIterator[Finding]) -> list[Finding]:
    return [finding async for finding in search]


async def the_one(search: AsyncIterator[Finding]) -> Finding:
    (finding,) = await found(search)
    return finding


async def about(what: str, search: AsyncIterator[Finding]) -> list[Finding]:
    """Return what was found of one thing: with a threshold of nothing, a passing worker of the server's own may be found as well."""
    return [finding async for finding in search if finding.what == what]


async def follow(connection: psycopg.AsyncConnection, finding: Finding) -> None:
    """Run the SQL of the advice."""
    await connection.execute(finding.advice.partition(": ")[2].encode())
