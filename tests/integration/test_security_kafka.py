"""Who may publish to Kafka and who may not, and that no secret goes where it should not."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
from typing import TYPE_CHECKING

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bridges.errors import SourceUnavailable
from bridges.kafka import Kafka, KafkaSink, KafkaSource
from bridges.message import Message, uuid7
from bridges.ports import PUBLISHED, Outcome, Reason, Released
from bridges.security import Mechanism, Security
from outbox.demo.engines import PrivateKafka
from outbox.embedded import free_port
from tests.contracts.certificates import Certificates, make_certificates
from tests.engines.deadline import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWORD = "s3cret-" + secrets.token_hex(8)
WRONG = "wr0ng-" + secrets.token_hex(8)
MECHANISMS: tuple[Mechanism, ...] = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

_PLAIN = f'org.apache.kafka.common.security.plain.PlainLoginModule required username="shop" password="{PASSWORD}"'
_SCRAM = f'org.apache.kafka.common.security.scram.ScramLoginModule required username="shop" password="{PASSWORD}"'


class SecuredKafka(PrivateKafka):
    """One node that lets in the users ``shop``, who may do everything, and ``stranger``, who may do nothing; in clear and with TLS."""

    def __init__(self, certificates: Certificates) -> None:
        super().__init__()
        self.tls_port = free_port()
        path = self.folder / "kafka.properties"
        keystore = self.folder / "server.pem"
        keystore.write_text(certificates.server_key.read_text() + certificates.server.read_text())
        lines = [
            line.replace("PLAINTEXT://", "CLEAR://").replace(",PLAINTEXT:PLAINTEXT", ",CLEAR:SASL_PLAINTEXT,CRYPT:SASL_SSL")
            for line in path.read_text().splitlines()
        ]
        address = f",CRYPT://127.0.0.1:{self.tls_port}"
        lines = [line + address if line.startswith(("listeners=", "advertised.listeners=")) else line for line in lines]
        lines += [
            "inter.broker.listener.name=CLEAR",
            "sasl.mechanism.inter.broker.protocol=PLAIN",
            f"sasl.enabled.mechanisms={','.join(MECHANISMS)}",
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users=User:shop;User:ANONYMOUS",
            "listener.name.crypt.ssl.keystore.type=PEM",
            f"listener.name.crypt.ssl.keystore.location={keystore}",
        ]
        for listener in ("clear", "crypt"):
            users = f'user_shop="{PASSWORD}" user_stranger="{PASSWORD}"'
            lines.append(f"listener.name.{listener}.plain.sasl.jaas.config={_PLAIN} {users};")
            lines += [f"listener.name.{listener}.{name}.sasl.jaas.config={_SCRAM};" for name in ("scram-sha-256", "scram-sha-512")]
        path.write_text("\n".join(lines) + "\n")
        # Formatted once more: the passwords of SCRAM are in the cluster's metadata from its beginning.
        shutil.rmtree(self.folder / "data")
        scram = [f"--add-scram={name}=[name=shop,password={PASSWORD}]" for name in MECHANISMS[1:]]
        self._java_run("kafka.tools.StorageTool", "format", "-t", f"o{secrets.token_hex(11)[:21]}", "-c", "kafka.properties", *scram)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secured(certificates: Certificates) -> Iterator[SecuredKafka]:
    with SecuredKafka(certificates) as engine:
        yield engine


@pytest.fixture
async def topic(secured: SecuredKafka) -> str:
    """A topic that ``shop`` made."""
    name = f"secured-{secrets.token_hex(4)}"
    admin = AIOKafkaAdminClient(
        bootstrap_servers=secured.servers,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_plain_username="shop",
        sasl_plain_password=PASSWORD,
    )
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1)])
    finally:
        await admin.close()
    return name


async def publish(port: int, topic: str, security: Security | None, *, host: str = "127.0.0.1") -> Outcome:
    async with Kafka([f"{host}:{port}"], security=security, connect_timeout=4.0) as connection:
        sink = KafkaSink(connection, topic=topic, timeout=5.0)
        [outcome] = await asyncio.wait_for(sink.publish([Message(uuid7(), "x", b"confidential")]), 15)
        return outcome


def assert_no_secret(caplog: pytest.LogCaptureFixture, said: object) -> None:
    everything = repr(said) + caplog.text + "".join(repr(record.__dict__) for record in caplog.records)
    assert PASSWORD not in everything
    assert WRONG not in everything
    assert "confidential" not in everything


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_user_and_password(secured: SecuredKafka, topic: str, mechanism: Mechanism, caplog: pytest.LogCaptureFixture) -> None:
    """Right: published. Wrong, or unknown: released as forbidden. No secret is logged, with every logger at DEBUG."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="aiokafka")
    right = Security(user="shop", password=PASSWORD, mechanism=mechanism)

    async def published() -> bool:
        return await publish(secured.port, topic, right) == PUBLISHED

    await eventually(published, within=30)
    for wrong in (
        Security(user="shop", password=WRONG, mechanism=mechanism),
        Security(user="nobody", password=PASSWORD, mechanism=mechanism),
    ):
        outcome = await publish(secured.port, topic, wrong)
        assert isinstance(outcome, Released)
        assert outcome.reason is Reason.FORBIDDEN
        assert_no_secret(caplog, outcome)


async def test_a_user_without_permission_is_forbidden(secured: SecuredKafka, topic: str) -> None:
    """Let in, but not allowed to write: neither an outage, nor a missing topic, nor a fault of the message."""
    outcome = await publish(secured.port, topic, Security(user="stranger", password=PASSWORD))
    assert isinstance(outcome, Released)
    assert outcome.reason is Reason.FORBIDDEN


async def test_a_source_with_a_wrong_password_is_unavailable(secured: SecuredKafka, topic: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with Kafka(secured.servers, security=Security(user="shop", password=WRONG), connect_timeout=4.0) as connection:
        source = KafkaSource(connection, group="secured", topics=[topic])
        with pytest.raises(SourceUnavailable) as refused:
            async with source.claim(1):
                pass
        await source.close()
    assert "uthentication" in str(refused.value)
    assert_no_secret(caplog, refused.value)


async def test_tls(secured: SecuredKafka, topic: str, certificates: Certificates) -> None:
    """Checked against our CA: published. Against the system's, or under another name than the certificate's: not."""
    trusting = Security(user="shop", password=PASSWORD, mechanism="SCRAM-SHA-512", tls=True, ca_file=str(certificates.authority))
    assert await publish(secured.tls_port, topic, trusting) == PUBLISHED
    assert isinstance(await publish(secured.tls_port, topic, Security(user="shop", password=PASSWORD, tls=True)), Released)
    assert isinstance(await publish(secured.tls_port, topic, trusting, host="localhost"), Released)


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "in_clear"])
async def test_a_server_without_tls_is_told_no_secret(certificates: Certificates, tls: bool) -> None:
    """With tls asked for, nothing is said before the handshake. (In clear, on loopback, the same server does hear what is said.)"""
    received = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.read(4096))
        writer.close()

    security = Security(user="shop", password=PASSWORD, tls=tls, ca_file=str(certificates.authority) if tls else None)
    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        outcome = await publish(server.sockets[0].getsockname()[1], "topic", security)
    assert isinstance(outcome, Released)
    assert received
    assert PASSWORD.encode() not in received
    assert (b"outboxd" in received) is not tls  # the client's id opens every request of Kafka's protocol
