"""The sections of ``outboxd.toml``: every key with its meaning and its default, and what is wrong with one by itself.

What they must be to each other, and how they are read, is in `outbox.daemon.config`.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

from bridges.backoff import Backoff
from bridges.errors import ConfigurationError
from bridges.security import Mechanism, Security
from bridges.topics import Destination, Pattern
from migrations.names import MigrationError, check_schema_name

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
AtLeastOne = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the file: no key but its own, and nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def checked_dsn(dsn: str) -> str:
    """Return the connection string. Raises `ConfigurationError`, without repeating what may hold a password, if libpq cannot read it."""
    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        raise ConfigurationError("is not a libpq connection string or URI, such as postgresql://user@host/database") from None
    return dsn


def _check_dsn(dsn: SecretStr | None) -> SecretStr | None:
    if dsn is not None:
        checked_dsn(dsn.get_secret_value())
    return dsn


Dsn = Annotated[SecretStr, AfterValidator(_check_dsn)]


def _read_duration(value: object) -> object:
    """Read "7 days"."""
    if isinstance(value, timedelta) or value is None:
        return value
    match = re.fullmatch(r"([1-9]\d{0,5}) (second|minute|hour|day|week)s?", value) if isinstance(value, str) else None
    if match is None:
        msg = f"{value!r} is not a number and a unit, such as '7 days' or '12 hours'"
        raise ValueError(msg)
    return timedelta(**{f"{match[2]}s": int(match[1])})


def _read_retention(value: object) -> object:
    """Read "30 days", or "forever" as None."""
    return None if value == "forever" else _read_duration(value)


Duration = Annotated[timedelta | None, BeforeValidator(_read_duration)]
Retention = Annotated[timedelta | None, BeforeValidator(_read_retention)]


class PostgresSection(Section):
    """``[postgres]``: where the outbox is."""

    dsn: Dsn
    """A libpq connection string or URI of the primary."""
    schema_: str = Field(default="outbox", alias="schema")
    """The schema of the outbox's tables."""
    dedupe_schema: str = "dedupe"
    """The schema of the consumers' tables."""
    doorbell: bool = True
    """False behind a transaction pooler, which cannot LISTEN: messages are then noticed by polling alone."""

    @field_validator("schema_", "dedupe_schema")
    @classmethod
    def _check_schema(cls, name: str) -> str:
        try:
            return check_schema_name(name)
        except MigrationError as problem:
            raise ValueError(str(problem).removeprefix("schema: ")) from None


class RetrySection(Section):
    """``[pump.retry]``: what happens to a message whose failure is nobody's fault for sure."""

    first: Positive = 1.0
    """Seconds; the ceiling of the first wait, doubled each time."""
    cap: Positive = 300.0
    """Seconds; the ceiling of every wait."""
    max_attempts: AtLeastOne = 20
    """The attempt after which it is a dead letter. An outage is no attempt."""

    @model_validator(mode="after")
    def _check_backoff(self) -> RetrySection:
        self.backoff()
        return self

    def backoff(self) -> Backoff:
        """Return the policy. Raises `ConfigurationError`."""
        return Backoff(first=self.first, cap=self.cap, max_attempts=self.max_attempts)


class PumpSection(Section):
    """``[pump]``: how the outbox is emptied."""

    batch: int = Field(default=1000, ge=1, le=100_000)
    """Messages in a claim. More is faster up to some thousands, and is what a crash may duplicate."""
    claims: int = Field(default=2, ge=1, le=64)
    """Batches in flight; a connection each."""
    poll_interval: Positive = 1.0
    """Seconds between looks while nothing rings: the latency if the doorbell fails."""
    publish_timeout: Positive = 30.0
    """Seconds a batch may take to be acknowledged; what is not acknowledged by then is given back."""
    drain_timeout: Positive = 30.0
    """Seconds between SIGTERM and the end."""
    max_held: int = Field(default=1_000_000, ge=0)
    """Messages that wait aside, at the most, for one destination that is away while others are not. Beyond it they stay in the outbox's
    queue, and in time hold up the others."""
    retry: RetrySection = RetrySection()


class _SecureSection(Section):
    servers: list[str] = Field(min_length=1)
    """Where the broker is."""
    timeout: Positive = 10.0
    """Seconds for the acknowledgement of one publish."""
    user: str | None = None
    """With ``password``; for Kafka, SASL."""
    password: SecretStr | None = None
    """With ``user``; better given as OUTBOXD_SINKS__NAME__PASSWORD."""
    tls: bool = False
    """Encrypt, and check the server's certificate and name. Without it, credentials are refused beyond loopback."""
    ca_file: str | None = None
    """Certificate authorities in PEM, instead of the system's."""
    cert_file: str | None = None
    """Our own certificate in PEM, for mutual TLS, with ``key_file``."""
    key_file: str | None = None
    """The key of ``cert_file``."""

    def _secrets(self) -> dict[str, Any]:
        return {}

    def security(self) -> Security:
        """Return the client's TLS and authentication. Raises `ConfigurationError`."""
        return Security(
            user=self.user,
            password=_open(self.password),
            tls=self.tls,
            ca_file=self.ca_file,
            cert_file=self.cert_file,
            key_file=self.key_file,
            **self._secrets(),
        )

    @model_validator(mode="after")
    def _check_security(self) -> _SecureSection:
        self.security().check_servers(self.servers)
        return self


class JetStreamSection(_SecureSection):
    """``[sinks.NAME]`` with ``kind = "jetstream"``."""

    kind: Literal["jetstream"]
    stream: str = Field(pattern=r"^[^\s.*>/\\]+$")
    """The stream that must acknowledge; made by you, with the retention you want."""
    token: SecretStr | None = None
    """A token, instead of ``user`` and ``password``."""
    credentials_file: str | None = None
    """A ``.creds`` file."""
    nkey_seed_file: str | None = None
    """A file with an nkey's seed."""
    tls_handshake_first: bool = False
    """The server wants TLS before its greeting (its ``handshake_first``)."""

    def _secrets(self) -> dict[str, Any]:
        return {
            "token": _open(self.token),
            "credentials_file": self.credentials_file,
            "nkey_seed_file": self.nkey_seed_file,
            "tls_handshake_first": self.tls_handshake_first,
        }


class KafkaSection(_SecureSection):
    """``[sinks.NAME]`` with ``kind = "kafka"``."""

    kind: Literal["kafka"]
    mechanism: Mechanism = "PLAIN"
    """How SASL proves the password: ``PLAIN``, ``SCRAM-SHA-256`` or ``SCRAM-SHA-512``."""
    idempotence: bool = True
    """Have the broker recognise what is sent again after a lost acknowledgement."""
    compression: Literal["gzip", "snappy", "lz4", "zstd"] | None = None

    def _secrets(self) -> dict[str, Any]:
        return {"mechanism": self.mechanism}


class InProcessSection(Section):
    """``[sinks.NAME]`` with ``kind = "inprocess"``: the embedded broker, for consumers in this very process."""

    kind: Literal["inprocess"]
    buffer: AtLeastOne = 1000
    """Deliveries that a subscription buffers before a publish waits."""
    timeout: Positive = 20.0
    """Seconds for the acknowledgements of one batch."""
    drop_unheard: bool = False
    """True: a topic that nobody subscribes to is acknowledged and gone, as with a plain broker. False: it waits for a subscription."""


SinkSection = Annotated[JetStreamSection | KafkaSection | InProcessSection, Field(discriminator="kind")]


class RouteSection(Section):
    """``[[routes]]``: which topics go to which sink; the first that matches."""

    topics: str
    """A topic pattern: ``*`` stands for one token, ``>`` for one or more at the end."""
    sink: str
    """The name of one of ``[sinks]``."""
    subject: str | None = None
    """JetStream: what a topic is called there, such as ``shop.{topic}``."""
    topic: str | None = None
    """Kafka: what a topic is called there, such as ``shop-{topic}``."""
    order: Literal["key", "none"] = "key"
    """``key``: messages of one key keep their order. ``none``: they do not wait for each other."""
    after_dead: Literal["continue", "hold"] = "continue"
    """After a dead letter its key goes on, or waits until an operator requeues or drops it."""
    archive: Duration = None
    """How long what was published is kept, for `outboxd replay`; "7 days", say. None: it is deleted."""

    @field_validator("topics")
    @classmethod
    def _check_pattern(cls, text: str) -> str:
        Pattern(text)
        return text

    @field_validator("subject", "topic")
    @classmethod
    def _check_destination(cls, text: str | None) -> str | None:
        if text is not None:
            Destination(text)
        return text

    @property
    def destination(self) -> str:
        """The template of what a topic is called at the sink."""
        return self.subject or self.topic or "{topic}"


class ConsumerSection(Section):
    """``[[consumers]]``: handlers to run in this process."""

    app: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    """``module:name`` of a `dedupe.Consumer`."""
    source: str | None = None
    """The sink whose broker it consumes from; may be left out if there is one sink only."""
    dsn: Dsn | None = None
    """The database of its effects; ``[postgres]`` if left out."""
    topics: list[str] | None = None
    """What to take from the broker, in the broker's own names: NATS subjects, Kafka topics.
    By default, what its handlers and the routes say."""


class DedupeSection(Section):
    """``[dedupe]``: the consumers' processed ids."""

    keep: Retention = timedelta(days=30)
    """How long a processed id is kept; "30 days", say, or "forever". Longer than a broker may deliver a message again: what is older is
    set aside, not guessed at."""


class HttpSection(Section):
    """``[http]``: metrics and probes."""

    listen: str | None = Field(default="127.0.0.1:9410", pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}$")
    """``host:port``. There is no authentication: beyond loopback, that is for your network to see to."""
    stall_after: Positive = 60.0
    """Seconds without progress, with something due, after which the daemon is not ready; without a turn of its loop, not live."""
    measure_every: Positive = 15.0
    """Seconds between measurements of the backlog."""

    @field_validator("listen")
    @classmethod
    def _check_port(cls, listen: str | None) -> str | None:
        if listen is not None and not 1 <= (port := int(listen.rpartition(":")[2])) <= 65535:
            msg = f"port {port} is not between 1 and 65535"
            raise ValueError(msg)
        return listen


class TelemetrySection(Section):
    """``[telemetry]``: where spans and logs go."""

    otlp_endpoint: str | None = None
    """The URL of an OTLP/HTTP collector's traces, such as ``http://127.0.0.1:4318/v1/traces``. None: no spans are exported."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """``auto``: for people on a terminal, JSON anywhere else."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def _open(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None else None
