"""How a client proves who it is, and when it refuses to: no credential leaves this machine without TLS."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from bridges.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """TLS and authentication of a broker's client. Secrets are absent from its repr.

    Attributes:
        user: with ``password``; for Kafka, SASL.
        password: with ``user``.
        token: NATS only.
        credentials_file: a NATS ``.creds`` file.
        nkey_seed_file: a NATS nkey seed file.
        mechanism: how Kafka's SASL proves the password.
        tls: encrypt, and check the server's certificate and name.
        ca_file: certificate authorities in PEM, instead of the system's.
        cert_file: our own certificate in PEM, for mutual TLS, with ``key_file``.
        key_file: the key of ``cert_file``.
        tls_handshake_first: NATS only: the server wants TLS before its greeting (its ``handshake_first``).
    """

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    credentials_file: str | None = None
    nkey_seed_file: str | None = None
    mechanism: Mechanism = "PLAIN"
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    tls_handshake_first: bool = False

    def __post_init__(self) -> None:
        if (self.user is None) != (self.password is None):
            msg = "user and password: give both or neither"
            raise ConfigurationError(msg)
        if not self.tls and (self.ca_file or self.cert_file or self.key_file or self.tls_handshake_first):
            msg = "ca_file, cert_file, key_file and tls_handshake_first need tls = true"
            raise ConfigurationError(msg)
        if (self.cert_file is None) != (self.key_file is None):
            msg = "cert_file and key_file: give both or neither"
            raise ConfigurationError(msg)

    @property
    def authenticates(self) -> bool:
        """Whether anything is sent that proves who we are, beyond a client certificate."""
        return any((self.user, self.token, self.credentials_file, self.nkey_seed_file))

    def check_servers(self, servers: Sequence[str]) -> None:
        """Raise `ConfigurationError` if a credential would travel in clear to a host that is not this one.

        Servers are ``host:port`` or a URL; a URL with credentials in it is refused, since URLs end up in logs.
        """
        if not servers:
            msg = "servers: at least one is needed"
            raise ConfigurationError(msg)
        for server in servers:
            parts = urlsplit(server if "://" in server else f"//{server}")
            if parts.username is not None or parts.password is not None:
                msg = "servers: a URL must not hold credentials; use user and password, or token"
                raise ConfigurationError(msg)
            if self.authenticates and not self.tls and not _is_loopback(parts.hostname or ""):
                msg = f"tls: credentials for {parts.hostname} need tls = true, since it is not a loopback host"
                raise ConfigurationError(msg)

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return the context for ``tls``, or None without it. Raises `ConfigurationError` for a file that cannot be used."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as problem:  # ssl.SSLError is one
            msg = f"ca_file, cert_file or key_file cannot be used: {problem}"
            raise ConfigurationError(msg) from problem
        return context


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
