"""One set of settings for Kafka, and one producer, built on demand and thrown away on doubt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError

from bridges.errors import ConfigurationError
from bridges.kafka.client import LOGIN_ERRORS, prepare
from bridges.kafka.producer import Producer
from bridges.security import Security

if TYPE_CHECKING:
    from collections.abc import Sequence

_REQUEST_TIMEOUT: Final = 10_000
_BATCH_BYTES: Final = 1_000_000
"""Below a broker's default ``message.max.bytes`` of 1,048,588, which limits a record batch."""


class Kafka:
    """One Kafka cluster, shared by sinks and sources. Use it as an async context, or `close` it.

    Args:
        servers: ``host:port`` of some brokers; the others are learned from them.
        security: TLS and SASL; refused in clear beyond loopback.
        client_id: what the brokers' logs and quotas call this client.
        idempotence: have the broker recognise what is sent again after a lost acknowledgement. Needs no permission since Kafka 2.8.
        connect_timeout: seconds for building a producer.
        compression: ``gzip``, ``snappy``, ``lz4`` or ``zstd`` (all but gzip need ``cramjam``); None for none.
    """

    def __init__(
        self,
        servers: Sequence[str],
        *,
        security: Security | None = None,
        client_id: str = "outboxd",
        idempotence: bool = True,
        connect_timeout: float = 5.0,
        compression: str | None = None,
    ) -> None:
        self._security = security or Security()
        self._security.check_servers(servers)
        for server in servers:
            if "://" in server:
                msg = f"servers: {server!r} must be host:port, without a scheme"
                raise ConfigurationError(msg)
        for key in ("token", "credentials_file", "nkey_seed_file", "tls_handshake_first"):
            if getattr(self._security, key):
                msg = f"{key}: is for NATS; Kafka takes user, password and mechanism, or cert_file and key_file"
                raise ConfigurationError(msg)
        if compression is not None:
            available, _ = AIOKafkaProducer._COMPRESSORS.get(compression, (None, 0))
            if available is None or not available():
                msg = f"compression: {compression!r} must be gzip, snappy, lz4 or zstd, and its library (cramjam) must be there"
                raise ConfigurationError(msg)
        self._servers = list(servers)
        self._tls = self._security.ssl_context()
        self._client_id = client_id
        self._idempotence = idempotence
        self._connect_timeout = connect_timeout
        self._compression = compression
        self._producer: Producer | None = None
        self._building = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def producer(self) -> Producer:
        """Return a started producer. Raises `KafkaError`, `OSError` or `TimeoutError` if there can be none."""
        async with self._building:
            if self._producer is None or not self._producer.usable:
                await self.discard()
                self._producer = await self._build()
            return self._producer

    async def discard(self) -> None:
        """Throw the producer away, so that nothing which it still holds is sent late."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.throw_away()

    async def discard_doubtful(self) -> None:
        """Throw the producer away if it is in doubt. One that another call has built since is left alone."""
        if self._producer is not None and not self._producer.usable:
            await self.discard()

    async def close(self) -> None:
        """Close the producer. It is built again if it is used again; sources are closed by themselves."""
        await self.discard()

    def consumer(self, group: str) -> AIOKafkaConsumer:
        """Return a consumer, not started, that belongs to the caller."""
        consumer = AIOKafkaConsumer(
            **self.client_settings(),
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            # New topics of a pattern and new partitions are noticed after this.
            metadata_max_age_ms=60_000,
        )
        prepare(consumer._client, self._security)
        return consumer

    async def explain(self, problem: BaseException) -> None:
        """Raise the broker's refusal of our credentials, if that is what is behind ``problem``.

        The client only logs what kept it from a server, and says that it could reach none.
        """
        if self._security.user is None or not isinstance(problem, KafkaConnectionError):
            return
        settings = self.client_settings()
        for host, port, _ in collect_hosts(settings.pop("bootstrap_servers")):
            try:
                connection = await create_conn(host, port, **settings)
                connection.close()
            except LOGIN_ERRORS:
                raise
            except (KafkaError, OSError):
                continue

    async def _build(self) -> Producer:
        kafka = AIOKafkaProducer(
            **self.client_settings(),
            acks="all",
            enable_idempotence=self._idempotence,
            compression_type=self._compression,
            max_batch_size=_BATCH_BYTES,
            max_request_size=_BATCH_BYTES,
        )
        prepare(kafka.client, self._security)
        producer = Producer(kafka)
        try:
            async with asyncio.timeout(self._connect_timeout):
                try:
                    await kafka.start()
                except KafkaConnectionError as problem:
                    await self.explain(problem)
                    raise
        except BaseException:
            await producer.throw_away()
            raise
        return producer

    def client_settings(self) -> dict[str, Any]:
        """Return what every client of aiokafka is made with."""
        security = self._security
        return {
            "bootstrap_servers": self._servers,
            "client_id": self._client_id,
            "request_timeout_ms": _REQUEST_TIMEOUT,
            "security_protocol": ("SASL_" if security.user is not None else "") + ("SSL" if security.tls else "PLAINTEXT"),
            "ssl_context": self._tls,
            "sasl_mechanism": security.mechanism,
            "sasl_plain_username": security.user,
            "sasl_plain_password": security.password,
        }
