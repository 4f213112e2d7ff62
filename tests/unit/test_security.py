"""No credential leaves this machine without TLS, or shows itself in a text."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest

from bridges.errors import ConfigurationError
from bridges.security import Security

if TYPE_CHECKING:
    from pathlib import Path

CREDENTIALS: list[dict[str, Any]] = [
    {"user": "u", "password": "hunter2"},
    {"token": "hunter2"},
    {"credentials_file": "a.creds"},
    {"nkey_seed_file": "a.nk"},
]
LOOPBACK = [
    "127.0.0.1:4222",
    "nats://127.0.0.1:4222",
    "localhost",
    "nats://localhost:4222",
    "[::1]:9092",
    "nats://[::1]:4222",
    "127.8.8.8:1",
]
ELSEWHERE = [
    "10.0.0.1:9092",
    "nats://broker.example:4222",
    "localhost.example:1",
    "0.0.0.0:1",
    "[2001:db8::1]:1",
    "127.0.0.1.example:1",
    "x",
]

every_credential = pytest.mark.parametrize("credential", CREDENTIALS, ids=lambda credential: next(iter(credential)))


@every_credential
@pytest.mark.parametrize("server", ELSEWHERE)
def test_credentials_without_tls_are_refused_off_loopback(credential: dict[str, Any], server: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^tls: .*need tls = true") as caught:
        Security(**credential).check_servers([server])
    assert "hunter2" not in str(caught.value)


@every_credential
@pytest.mark.parametrize("server", LOOPBACK)
def test_credentials_without_tls_are_allowed_on_loopback(credential: dict[str, Any], server: str) -> None:
    Security(**credential).check_servers([server])


@every_credential
@pytest.mark.parametrize("server", ELSEWHERE)
def test_credentials_with_tls_may_go_anywhere(credential: dict[str, Any], server: str) -> None:
    Security(tls=True, **credential).check_servers([server])


@every_credential
def test_one_server_elsewhere_among_many_is_enough(credential: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"broker\.example"):
        Security(**credential).check_servers(["127.0.0.1:1", "broker.example:1", "127.0.0.1:2"])


@pytest.mark.parametrize("server", ELSEWHERE)
def test_without_credentials_any_server_will_do(server: str) -> None:
    security = Security()
    assert not security.authenticates
    security.check_servers([server])


@pytest.mark.parametrize(
    "server", ["nats://u:hunter2@127.0.0.1", "nats://hunter2@127.0.0.1", "u:hunter2@127.0.0.1:9092", "tls://:hunter2@a"]
)
@pytest.mark.parametrize("security", [Security(), Security(tls=True), Security(token="t")])
def test_a_url_with_credentials_is_refused_and_not_repeated(server: str, security: Security) -> None:
    with pytest.raises(ConfigurationError, match=r"^servers: ") as caught:
        security.check_servers([server])
    assert "hunter2" not in str(caught.value)


def test_no_server_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^servers: at least one"):
        Security().check_servers([])


def test_secrets_are_not_in_a_repr() -> None:
    security = Security(user="u", password="hunter2", token="hunter3")
    assert "hunter" not in repr(security) + str(security)
    assert "user='u'" in repr(security)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"user": "u"}, "user and password"),
        ({"password": "p"}, "user and password"),
        ({"ca_file": "ca.pem"}, "tls = true"),
        ({"cert_file": "c.pem", "key_file": "k.pem"}, "tls = true"),
        ({"tls_handshake_first": True}, "tls = true"),
        ({"tls": True, "cert_file": "c.pem"}, "cert_file and key_file"),
        ({"tls": True, "key_file": "k.pem"}, "cert_file and key_file"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Security(**fields)


def test_tls_checks_the_certificate_and_the_name() -> None:
    assert Security().ssl_context() is None
    context = Security(tls=True).ssl_context()
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_that_cannot_be_used_is_a_mistake_of_configuration(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match="ca_file"):
        Security(tls=True, ca_file=str(file)).ssl_context()
