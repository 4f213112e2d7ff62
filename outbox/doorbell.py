"""Sleeping until a message is there, and waking without costing the writers anything while awake.

``pg_notify`` in every transaction would queue all commits of the database behind one lock. So the table's trigger notifies only if it
fails to take the doorbell's lock in shared mode, and the pump holds that lock exclusively only while it sleeps. A writer that saw the
pump awake still holds its shared lock when its row becomes visible: the pump, falling asleep, is refused the lock and looks again.
One of several pumps minds the doorbell; the others listen and poll.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, LiteralString

from outbox import sql

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import psycopg

log = logging.getLogger("outboxd.doorbell")

_LONGEST_REFUSAL = 0.05


class Doorbell:
    """One connection of its own, that sleeps.

    Args:
        connect: makes an autocommit connection.
        look: says whether anything is due, and else in how many seconds something will be, if that is known.
        schema: the outbox's.
        poll_interval: seconds between looks without a sign.
        listen: False for a transaction pooler in between: then there is the poll alone.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
        look: Callable[[psycopg.AsyncConnection[Any]], Awaitable[tuple[bool, float | None]]],
        *,
        schema: str,
        poll_interval: float,
        listen: bool,
    ) -> None:
        self._connect = connect
        self._look = look
        self._schema = schema
        self._poll_interval = poll_interval
        self._listen = listen
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._holds_lock = False
        self._minds_it = False
        self._silent = False

    async def sleep(self, timeout: float, *, fruitless: int) -> None:
        """Return when something may be due, after ``timeout`` seconds at the latest. Raises psycopg's errors.

        Args:
            timeout: seconds.
            fruitless: how many claims in a row found nothing although something was due: it is in another pump's hands.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            connection = await self._connected()
            refusals = 0
            while (remaining := deadline - loop.time()) > 0:
                asleep = await self._fall_asleep(connection)
                due, due_in = await self._look(connection)
                if due:
                    await self._wake_up(connection)
                    if fruitless:
                        await asyncio.sleep(min(self._poll_interval, 0.001 * 2 ** min(fruitless, 20)))
                    return
                nap = min(remaining, self._poll_interval, *([max(due_in, 0.001)] if due_in is not None else []))
                if not asleep:
                    # A writer is in flight, and will not ring. Behind a long transaction this is twenty looks a second.
                    await asyncio.sleep(min(nap, _LONGEST_REFUSAL, 0.001 * 2**refusals))
                    refusals = min(refusals + 1, 10)
                elif await self._rung(connection, nap):
                    await self._wake_up(connection)
                    return
        except BaseException:
            await self.close()  # which frees its locks, whatever it was doing
            raise

    async def close(self) -> None:
        """Close the connection; it is made again when it is needed."""
        connection, self._connection = self._connection, None
        self._holds_lock = self._minds_it = False
        if connection is not None:
            await connection.close()

    async def _connected(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            self._holds_lock = self._minds_it = False
            self._connection = await self._connect()
            if self._listen:
                # Before the first look: what is committed after it rings, what was committed before it is seen.
                await self._connection.execute(sql.listen(self._schema))
            elif not self._silent:
                self._silent = True
                log.warning("the doorbell is switched off: messages are noticed by polling every %g s", self._poll_interval)
        return self._connection

    async def _fall_asleep(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        """Take the lock if it is ours to take, and say whether it is safe to wait for the bell."""
        if self._holds_lock or not self._listen:
            return True
        if not self._minds_it:
            self._minds_it = await self._try(connection, sql.MIND_DOORBELL)
            if not self._minds_it:
                return True  # another pump minds the bell, and hears it for all of us
        self._holds_lock = await self._try(connection, sql.TAKE_DOORBELL)
        return self._holds_lock

    async def _wake_up(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if self._holds_lock:
            self._holds_lock = not await self._try(connection, sql.RELEASE_DOORBELL)

    async def _try(self, connection: psycopg.AsyncConnection[Any], statement: LiteralString) -> bool:
        cursor = await connection.execute(sql.bind(statement, self._schema))
        return await cursor.fetchone() == (True,)

    async def _rung(self, connection: psycopg.AsyncConnection[Any], nap: float) -> bool:
        if not self._listen:
            await asyncio.sleep(nap)
            return False
        async for _ in connection.notifies(timeout=nap, stop_after=1):
            return True
        return False
