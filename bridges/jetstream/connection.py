"""One connection to NATS, built on demand and thrown away on doubt."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from bridges.jetstream.client import AckingClient, cut
from bridges.security import Security

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger("outboxd.jetstream")


class JetStream:
    """One connection to NATS, built on demand, shared by sinks and sources. Use it as an async context, or `close` it.

    Args:
        servers: URLs such as ``nats://127.0.0.1:4222``, tried in order.
        security: TLS and authentication; refused in clear beyond loopback.
        name: what the server's monitoring calls this client.
        connect_timeout: seconds for one attempt on one server.
    """

    def __init__(
        self, servers: Sequence[str], *, security: Security | None = None, name: str = "outboxd", connect_timeout: float = 2.0
    ) -> None:
        self._servers = list(servers)
        self._security = security or Security()
        self._security.check_servers(self._servers)
        self._tls = self._security.ssl_context()
        self._name = name
        self._connect_timeout = connect_timeout
        self._client: AckingClient | None = None
        self._connecting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def client(self) -> AckingClient:
        """Return a connected client. Raises `nats.errors.Error` or `OSError` if no server lets us in."""
        async with self._connecting:
            if self._client is None or not self._client.is_connected:
                await self.discard(self._client)
                self._client = await self._connect()
            return self._client

    async def discard(self, client: AckingClient | None) -> None:
        """Cut a connection, so that nothing which is still buffered in it is sent late. One that was built since is left alone."""
        if client is None:
            return
        if client is self._client:
            self._client = None
        client.wake_windows()
        if not client.is_closed:
            # close() would flush first; what is pending must not go out, and a frozen server must not hold us up.
            cut(client)
            with suppress(Exception):
                async with asyncio.timeout(self._connect_timeout):
                    await client.close()

    async def close(self) -> None:
        """Close the connection. It is built again if it is used again."""
        client, self._client = self._client, None
        if client is not None and not client.is_closed:
            with suppress(Exception):
                async with asyncio.timeout(self._connect_timeout):
                    await client.close()

    async def _connect(self) -> AckingClient:
        client = AckingClient(must_encrypt=self._tls is not None)
        security = self._security
        options: dict[str, Any] = {
            "tls": self._tls,
            "tls_handshake_first": security.tls_handshake_first,
            "user": security.user,
            "password": security.password,
            "token": security.token,
            "user_credentials": security.credentials_file,
            "nkeys_seed": security.nkey_seed_file,
            "connect_timeout": self._connect_timeout,
        }

        # The client's callbacks must not raise: one that does ends its read loop for good. Errors surface in what we await.
        async def note(error: Exception) -> None:
            log.debug("nats: %s", type(error).__name__)
            if "permissions violation" in str(error).lower():
                client.deny(str(error))

        async def wake() -> None:
            client.wake_windows()

        try:
            async with asyncio.timeout(2 * self._connect_timeout * len(self._servers) + 1):
                await client.connect(
                    servers=self._servers,
                    name=self._name,
                    error_cb=note,
                    closed_cb=wake,
                    allow_reconnect=False,
                    # Two tries a server, one after the other, and then an error: without these it would try for two minutes.
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    # A frozen server is noticed within 15 s while idle; a publish has a deadline of its own.
                    ping_interval=5,
                    max_outstanding_pings=2,
                    **{name: value for name, value in options.items() if value},
                )
                await client.listen_for_acknowledgements()
        except BaseException:
            await self.discard(client)
            raise
        return client
