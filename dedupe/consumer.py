"""The decorator API: handlers by topic, over a Bridge and a HandlerSink."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from psycopg_pool import AsyncConnectionPool

from bridges.bridge import Bridge
from bridges.errors import ConfigurationError
from bridges.topics import Pattern
from dedupe import sql
from dedupe.handler import RETRY, Handler, HandlerSink

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from bridges.backoff import Backoff
    from bridges.message import Message
    from bridges.ports import Sink, Source

H = TypeVar("H", bound=Handler)

# A handler has a timeout of its own; this ends a publish only if that has failed.
_PUBLISH_TIMEOUT = 3600.0


class Consumer:
    """A named set of handlers, each message's effect once.

    Args:
        name: under which ids are recorded; the same in every process that shares the work, for ever.
        dsn: the database in which the effects happen, unless `run` is given one.
        schema: of the dedupe track; what `run` is given if None.
        concurrency: transactions at once; messages of one key are handled one after the other.
        batch: messages in a claim.
        retry: how long a message whose handler raised waits, and after how many attempts it is dead.
        handler_timeout: seconds a handler may take.
        drain_timeout: seconds that `run` goes on after `stop` for what is in flight.
        wrap: put around the sink, such as one that counts: a Sink over a Sink.
    """

    def __init__(
        self,
        name: str,
        *,
        dsn: str | None = None,
        schema: str | None = None,
        concurrency: int = 8,
        batch: int = 100,
        retry: Backoff = RETRY,
        handler_timeout: float = 60.0,
        drain_timeout: float = 30.0,
        wrap: Callable[[Sink], Sink] | None = None,
    ) -> None:
        if not name or not name.isprintable() or len(name) > 128:
            msg = f"consumer: {name!r} is not 1 to 128 printable characters"
            raise ConfigurationError(msg)
        if concurrency < 1:
            msg = f"concurrency: {concurrency} is below 1"
            raise ConfigurationError(msg)
        self.name = name
        self._schema = schema
        self._dsn = dsn
        self._concurrency = concurrency
        self._batch = batch
        self._retry = retry
        self._handler_timeout = handler_timeout
        self._drain_timeout = drain_timeout
        self._wrap = wrap
        self._handlers: list[tuple[Pattern, Handler]] = []
        self._running: tuple[Bridge, HandlerSink] | None = None
        self._stopped = False

    @property
    def dsn(self) -> str | None:
        """The database that it was made with."""
        return self._dsn

    @property
    def schema(self) -> str | None:
        """The schema of the dedupe track that it was made with."""
        return self._schema

    @property
    def patterns(self) -> list[str]:
        """The topic patterns of the handlers, for the source to subscribe to."""
        return list(dict.fromkeys(pattern.text for pattern, _ in self._handlers))

    def handler(self, *patterns: str) -> Callable[[H], H]:
        """Register a handler for the topics of the patterns; the first that matches handles a message. Raises `InvalidPattern`.

        A message that no handler's pattern matches is acknowledged without an effect: it was for others.
        """
        checked = [Pattern(text) for text in patterns]
        if not checked:
            msg = "handler: at least one topic pattern is needed"
            raise ConfigurationError(msg)

        def register(function: H) -> H:
            self._handlers += [(pattern, function) for pattern in checked]
            return function

        return register

    async def handle(self, message: Message, connection: psycopg.AsyncConnection[Any]) -> None:
        """Call the message's handler with a connection whose transaction is the caller's."""
        for pattern, function in self._handlers:
            if pattern.matches(message.topic):
                await function(message, connection)
                return

    async def run(
        self,
        source: Source,
        *,
        dsn: str | None = None,
        schema: str = "dedupe",
        wrap: Callable[[Sink], Sink] | None = None,
        wrap_handler: Callable[[Handler], Handler] | None = None,
    ) -> None:
        """Consume from the source until `stop`.

        Args:
            source: where the messages come from.
            dsn: the database in which the effects happen, if the consumer was made without one.
            schema: of the dedupe track, if the consumer was made without one.
            wrap: put around the sink, outside the consumer's own ``wrap``.
            wrap_handler: put around each call of a handler.
        """
        dsn = self._dsn or dsn
        if dsn is None:
            msg = f"consumer {self.name!r}: dsn: a database is needed for its effects"
            raise ConfigurationError(msg)
        if not self._handlers:
            msg = f"consumer {self.name!r} has no handler"
            raise ConfigurationError(msg)
        pool = AsyncConnectionPool(
            dsn,
            min_size=1,
            max_size=self._concurrency,
            open=False,
            timeout=5.0,
            configure=self._configure,
            kwargs={
                "application_name": f"outboxd consumer {self.name}"[:63],
                "target_session_attrs": "read-write",
                "connect_timeout": 5,
                "keepalives_idle": 15,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": int(self._handler_timeout * 1000),
            },
        )
        async with pool:
            handler_sink = HandlerSink(
                pool,
                wrap_handler(self.handle) if wrap_handler else self.handle,
                consumer=self.name,
                schema=self._schema or schema,
                concurrency=self._concurrency,
                retry=self._retry,
                handler_timeout=self._handler_timeout,
            )
            sink: Sink = handler_sink
            for around in (self._wrap, wrap):
                sink = around(sink) if around else sink
            bridge = Bridge(
                source,
                sink,
                name=f"consumer {self.name}",
                batch=self._batch,
                publish_timeout=_PUBLISH_TIMEOUT,
                drain_timeout=self._drain_timeout,
            )
            self._running = (bridge, handler_sink)
            if self._stopped:
                self.stop()
            try:
                await bridge.run()
            finally:
                self._running = None

    async def _configure(self, connection: psycopg.AsyncConnection[Any]) -> None:
        # A consumer that hangs or is cut off loses its transaction, and one that waits for it does not wait for ever.
        patience = int(self._handler_timeout * 1000)
        await connection.execute(sql.CONFIGURE_CONSUMER, (f"{2 * patience}ms", f"{patience}ms"))
        await connection.commit()

    def stop(self) -> None:
        """Claim nothing more, and let `run` end. Any number of times, from any state."""
        self._stopped = True
        if self._running is not None:
            for part in self._running:
                part.stop()
