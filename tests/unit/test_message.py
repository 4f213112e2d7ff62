"""What a message may look like: each limit, and the error that names it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from uuid import RFC_4122, UUID

import pytest

from bridges.errors import InvalidMessage, OutboxError
from bridges.message import (
    MAX_HEADERS,
    MAX_KEY,
    MAX_PAYLOAD,
    MAX_TOPIC,
    Message,
    check_content_type,
    check_headers,
    check_key,
    check_message,
    check_payload,
    check_topic,
    uuid7,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _refused(check: Callable[[], None], field: str) -> str:
    with pytest.raises(InvalidMessage) as caught:
        check()
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    return str(caught.value)


def test_the_limits_are_those_of_the_issue() -> None:
    assert (MAX_TOPIC, MAX_KEY, MAX_PAYLOAD) == (255, 1024, 1024 * 1024)


@pytest.mark.parametrize(
    "topic", ["a", "orders.created", "a.b.c", "ü.日本", "a-b_c", "a$b", "a.$b", "x" * 255, "ü" * 127, "\u200b", "é/ö:{}", "🦀"]
)
def test_a_sound_topic_is_accepted(topic: str) -> None:
    check_topic(topic)


@pytest.mark.parametrize(
    "topic",
    ["", ".", "a.", ".a", "a..b", "*", "a.*", "a.>", ">", "a*", "a>b", "$", "$SYS.x", "a b", " a", "a ", "a\tb", "a\n", "\na", "a\r"]
    + [f"a{c}" for c in "\0\x01\x1f\x7f\x80\x85\x9f\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"],
)
def test_a_topic_that_cannot_be_addressed_is_refused(topic: str) -> None:
    assert "tokens joined by dots" in _refused(lambda: check_topic(topic), "topic")


def test_no_white_space_that_python_knows_is_in_a_topic() -> None:
    for character in filter(str.isspace, map(chr, range(0x11000))):
        _refused(lambda: check_topic(f"a{character}b"), "topic")  # noqa: B023 - called at once


@pytest.mark.parametrize("topic", ["x" * 256, "ü" * 128, "x" * 254 + "ü"])
def test_a_topic_over_255_bytes_is_refused_with_its_size(topic: str) -> None:
    said = _refused(lambda: check_topic(topic), "topic")
    assert f"{len(topic.encode())} bytes" in said
    assert "255" in said


@pytest.mark.parametrize("key", [None, "", "k", "k" * 1024, "ü" * 512, "a b\n\t*>", "\x01"])
def test_a_key_is_any_text_up_to_1_kib(key: str | None) -> None:
    check_key(key)


@pytest.mark.parametrize(("key", "says"), [("k" * 1025, "1025 bytes"), ("ü" * 513, "1026 bytes"), ("a\0", "NUL"), ("\ud800", "surrogate")])
def test_a_key_outside_its_limits_is_refused(key: str, says: str) -> None:
    assert says in _refused(lambda: check_key(key), "key")


def test_the_error_for_a_long_key_names_the_limit() -> None:
    assert "1024" in _refused(lambda: check_key("k" * 1025), "key")


@pytest.mark.parametrize("name", ["a", "A-z_09", "traceparent", "x" * 128, "nats", "outbox", "natsy-a", "x-outbox-id", "content-type2"])
def test_a_sound_header_name_is_accepted(name: str) -> None:
    check_headers({name: "v"})


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a:b", "ä", "a\n", "x" * 129, "a\0", "\u017f", "\u212a"])
def test_a_header_name_outside_its_alphabet_is_refused(name: str) -> None:
    assert "A-Z, a-z, 0-9, _ and -" in _refused(lambda: check_headers({name: "v"}), "headers")


@pytest.mark.parametrize("name", ["Nats-Msg-Id", "nats-x", "NATS-", "outbox-id", "Outbox-Anything", "content-type", "Content-Type"])
def test_a_reserved_header_name_is_refused(name: str) -> None:
    assert "reserved" in _refused(lambda: check_headers({name: "v"}), "headers")


@pytest.mark.parametrize("value", ["a\r", "\nb", "a\r\nb", "a\0b"])
def test_a_header_value_that_would_end_its_line_is_refused(value: str) -> None:
    said = _refused(lambda: check_headers({"a": value}), "headers")
    assert "'a'" in said
    assert "CR, LF or NUL" in said


@pytest.mark.parametrize("value", ["", " ", "ü 日本 🦀", '"\\', "%41", "\t", "\x7f"])
def test_any_other_text_is_a_header_value(value: str) -> None:
    check_headers({"a": value})


def test_all_headers_together_have_a_limit() -> None:
    check_headers({"a": "x" * (MAX_HEADERS - 9)})
    said = _refused(lambda: check_headers({"a": "x" * (MAX_HEADERS - 8)}), "headers")
    assert str(MAX_HEADERS) in said
    many = {f"header-{number}": "x" * 100 for number in range(400)}
    _refused(lambda: check_headers(many), "headers")


@pytest.mark.parametrize("content_type", ["a", "application/json; charset=utf-8", "x" * 255, " "])
def test_a_sound_content_type_is_accepted(content_type: str) -> None:
    check_content_type(content_type)


@pytest.mark.parametrize("content_type", ["", "x" * 256, "a\n", "ü", "\x7f", "a\tb"])
def test_a_content_type_that_is_no_header_value_is_refused(content_type: str) -> None:
    assert "1 to 255 printable ASCII" in _refused(lambda: check_content_type(content_type), "content_type")


def test_a_payload_is_measured_in_bytes() -> None:
    check_payload(b"x" * 10, 10)
    said = _refused(lambda: check_payload(b"x" * 11, 10), "payload")
    assert "11 bytes" in said
    assert "10" in said.removeprefix("payload: is 11 bytes")


@pytest.mark.parametrize("field", ["topic", "key", "content_type"])
@pytest.mark.parametrize("value", [1, b"bytes", ["a"]])
def test_what_is_not_text_is_refused(field: str, value: object) -> None:
    changes: dict[str, Any] = {field: value}
    message = Message(uuid7(), "t", b"")._replace(**changes)
    _refused(lambda: check_message(message), field)


@pytest.mark.parametrize("headers", [{"a": 1}, {1: "a"}, {b"a": "b"}, {"a": None}])
def test_headers_that_are_not_text_are_refused(headers: Mapping[str, str]) -> None:
    _refused(lambda: check_headers(headers), "headers")


@pytest.mark.parametrize(
    ("field", "value"), [("topic", ""), ("key", "\0"), ("content_type", ""), ("headers", {"outbox-id": "1"}), ("payload", b"x" * 6)]
)
def test_check_message_looks_at_every_field(field: str, value: object) -> None:
    sound = Message(uuid7(), "t", b"12345", key="k", headers={"a": "b"})
    check_message(sound, max_payload=5)
    changes: dict[str, Any] = {field: value}
    _refused(lambda: check_message(sound._replace(**changes), max_payload=5), field)


def test_the_error_is_a_value_error_and_one_of_ours() -> None:
    assert issubclass(InvalidMessage, ValueError)
    assert issubclass(InvalidMessage, OutboxError)


def test_a_uuid7_has_its_version_its_variant_and_the_time() -> None:
    before = time.time_ns() // 1_000_000
    ids = [uuid7() for _ in range(500)]
    after = time.time_ns() // 1_000_000
    for made in ids:
        assert (made.version, made.variant) == (7, RFC_4122)
        assert before <= made.int >> 80 <= after
    assert len(set(ids)) == len(ids)


def test_uuid7_sorts_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the random bits are, and as text as well."""
    times = iter(range(1_700_000_000_000_000_000, 1_700_000_000_200_000_000, 1_000_000))
    monkeypatch.setattr("bridges.message.time.time_ns", lambda: next(times))
    ids = [uuid7() for _ in range(200)]
    assert ids == sorted(ids)
    assert list(map(str, ids)) == sorted(map(str, ids))


def test_uuid7_uses_all_of_its_74_random_bits() -> None:
    seen = [0, 0]
    for _ in range(300):
        seen[0] |= uuid7().int
        seen[1] |= ~uuid7().int
    random_bits = (0xFFF << 64) | ((1 << 62) - 1)
    assert seen[0] & random_bits == seen[1] & random_bits == random_bits


def test_a_message_is_immutable_and_its_default_headers_too() -> None:
    message = Message(UUID(int=1), "t", b"")
    with pytest.raises(AttributeError):
        message.topic = "u"  # type: ignore[misc]  # nor does mypy let it
    with pytest.raises(TypeError):
        message.headers["a"] = "b"  # type: ignore[index]  # likewise
