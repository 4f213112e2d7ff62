"""Who may publish to NATS and who may not, and that no secret goes where it should not."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import nats
import pytest
from nats.js.api import StreamConfig

from bridges.jetstream import JetStream, JetStreamSink
from bridges.message import Message, uuid7
from bridges.ports import PUBLISHED, Outcome, Reason, Released
from bridges.security import Security
from outbox.demo.engines import PrivateNats
from tests.contracts.certificates import Certificates, make_certificates

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

PASSWORD = "s3cret-" + secrets.token_hex(8)
WRONG = "wr0ng-" + secrets.token_hex(8)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@contextmanager
def server(folder: Path, configuration: str) -> Iterator[PrivateNats]:
    """A nats-server with these lines in its configuration file."""
    path = folder / "nats.conf"
    path.write_text(configuration)
    with PrivateNats("-c", str(path)) as engine:
        yield engine


async def publish(engine: PrivateNats, security: Security | None, *, host: str = "127.0.0.1") -> Outcome:
    """Publish one message, to a stream that need not be there."""
    async with JetStream([f"nats://{host}:{engine.port}"], security=security, connect_timeout=2.0) as connection:
        sink = JetStreamSink(connection, stream="shop", timeout=2.0)
        [outcome] = await asyncio.wait_for(sink.publish([Message(uuid7(), "shop.created", b"{}")]), 15)
        return outcome


async def make_stream(engine: PrivateNats, **options: Any) -> None:
    client = await nats.connect(engine.servers[0], **options)
    try:
        await client.jetstream().add_stream(StreamConfig(name="shop", subjects=["shop.>"]))
    finally:
        await client.close()


def assert_no_secret(caplog: pytest.LogCaptureFixture, outcome: Outcome | None = None) -> None:
    said = caplog.text + repr(outcome) + "".join(repr(record.args) + repr(record.__dict__) for record in caplog.records)
    assert PASSWORD not in said
    assert WRONG not in said


async def test_user_and_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Right: published. Wrong, or nobody at all: released as forbidden. Neither is ever logged."""
    caplog.set_level(logging.DEBUG)
    with server(tmp_path, f'authorization {{ user: shop, password: "{PASSWORD}" }}') as engine:
        await make_stream(engine, user="shop", password=PASSWORD)
        caplog.clear()
        assert await publish(engine, Security(user="shop", password=PASSWORD)) == PUBLISHED
        for security in (Security(user="shop", password=WRONG), Security(token=WRONG), None):
            outcome = await publish(engine, security)
            assert isinstance(outcome, Released)
            assert outcome.reason is Reason.FORBIDDEN
            assert_no_secret(caplog, outcome)


async def test_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with server(tmp_path, f'authorization {{ token: "{PASSWORD}" }}') as engine:
        await make_stream(engine, token=PASSWORD)
        caplog.clear()
        assert await publish(engine, Security(token=PASSWORD)) == PUBLISHED
        outcome = await publish(engine, Security(token=WRONG))
        assert isinstance(outcome, Released)
        assert outcome.reason is Reason.FORBIDDEN
        assert_no_secret(caplog, outcome)


async def test_a_user_without_permission_for_the_subject_is_forbidden(tmp_path: Path) -> None:
    """Not taken for an outage, and not for a fault of the message."""
    users = f'{{ user: maker, password: "{PASSWORD}" }}, {{ user: shop, password: "{PASSWORD}", permissions: {{ publish: "other.>" }} }}'
    with server(tmp_path, f"authorization {{ users: [ {users} ] }}") as engine:
        await make_stream(engine, user="maker", password=PASSWORD)
        outcome = await publish(engine, Security(user="shop", password=PASSWORD))
        assert isinstance(outcome, Released)
        assert outcome.reason is Reason.FORBIDDEN


@pytest.mark.parametrize("handshake_first", [False, True], ids=["upgraded", "handshake_first"])
async def test_tls(tmp_path: Path, certificates: Certificates, handshake_first: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Checked against our CA: published. Against the system's, or under another name than the certificate's: not, and nothing is said."""
    caplog.set_level(logging.DEBUG)
    first = "true" if handshake_first else "false"
    tls = f'tls {{ cert_file: "{certificates.server}", key_file: "{certificates.server_key}", handshake_first: {first} }}'
    with server(tmp_path, f'{tls}\nauthorization {{ user: shop, password: "{PASSWORD}" }}') as engine:
        trusting = Security(
            user="shop", password=PASSWORD, tls=True, ca_file=str(certificates.authority), tls_handshake_first=handshake_first
        )
        connecting = trusting.ssl_context()
        await make_stream(engine, user="shop", password=PASSWORD, tls=connecting, tls_handshake_first=handshake_first)
        caplog.clear()
        assert await publish(engine, trusting) == PUBLISHED
        strange = Security(user="shop", password=PASSWORD, tls=True, tls_handshake_first=handshake_first)
        outcome = await publish(engine, strange)
        assert isinstance(outcome, Released)
        outcome = await publish(engine, trusting, host="localhost")
        assert isinstance(outcome, Released)
        assert_no_secret(caplog, outcome)


async def test_mutual_tls(tmp_path: Path, certificates: Certificates) -> None:
    """With our certificate: published. Without one: released."""
    tls = (
        f'tls {{ cert_file: "{certificates.server}", key_file: "{certificates.server_key}", '
        f'ca_file: "{certificates.authority}", verify: true }}'
    )
    with server(tmp_path, tls) as engine:
        ours = Security(
            tls=True, ca_file=str(certificates.authority), cert_file=str(certificates.client), key_file=str(certificates.client_key)
        )
        await make_stream(engine, tls=ours.ssl_context())
        assert await publish(engine, ours) == PUBLISHED
        assert isinstance(await publish(engine, Security(tls=True, ca_file=str(certificates.authority))), Released)


@dataclass
class Impostor:
    """A server that greets as NATS without TLS, and keeps every byte it is sent."""

    port: int
    received: bytearray


@asynccontextmanager
async def impostor(**info: object) -> AsyncIterator[Impostor]:
    greeting = {"server_id": "x", "version": "2.12.0", "proto": 1, "max_payload": 1_048_576, "headers": True, "auth_required": True, **info}
    received = bytearray()
    talks: set[asyncio.Task[None]] = set()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            talks.add(task)
        writer.write(b"INFO " + json.dumps(greeting).encode() + b"\r\n")
        try:
            while chunk := await reader.read(4096):
                received.extend(chunk)
                writer.write(b"PONG\r\n")
        finally:
            writer.close()

    listening = await asyncio.start_server(listen, "127.0.0.1", 0)
    try:
        yield Impostor(listening.sockets[0].getsockname()[1], received)
    finally:
        listening.close()
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


@pytest.mark.parametrize("greeting", [{}, {"tls_required": False, "tls_available": True}], ids=["no_word_of_tls", "tls_available"])
@pytest.mark.parametrize("handshake_first", [False, True], ids=["upgraded", "handshake_first"])
async def test_a_server_without_tls_is_told_no_secret(
    certificates: Certificates, greeting: dict[str, object], handshake_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With tls asked for, neither password nor token nor message leaves in clear, however often it is tried."""
    caplog.set_level(logging.DEBUG)
    for secured in (partial(Security, user="shop", password=PASSWORD), partial(Security, token=PASSWORD)):
        async with impostor(**greeting) as server:
            security = secured(tls=True, ca_file=str(certificates.authority), tls_handshake_first=handshake_first)
            async with JetStream([f"nats://127.0.0.1:{server.port}"], security=security, connect_timeout=1.0) as connection:
                sink = JetStreamSink(connection, stream="shop", timeout=1.0)
                for _ in range(2):
                    [outcome] = await asyncio.wait_for(sink.publish([Message(uuid7(), "shop.created", b"confidential")]), 10)
                    assert isinstance(outcome, Released)
            assert PASSWORD.encode() not in server.received
            assert b"confidential" not in server.received
            assert b"CONNECT" not in server.received
            assert_no_secret(caplog, outcome)


async def test_the_impostor_hears_what_is_said_in_clear() -> None:
    """The test above can fail: without tls, on loopback, the same server does hear the password."""
    async with impostor() as server:
        async with JetStream([f"nats://127.0.0.1:{server.port}"], security=Security(token=PASSWORD), connect_timeout=1.0) as connection:
            sink = JetStreamSink(connection, stream="shop", timeout=0.5)
            await asyncio.wait_for(sink.publish([Message(uuid7(), "shop.created", b"x")]), 10)
        assert PASSWORD.encode() in server.received
