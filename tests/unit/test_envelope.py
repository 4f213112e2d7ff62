"""What a message is called on the wire; tests/properties/test_envelope.py has the round trips."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from bridges.envelope import REPLAYED, copy_of, decode, encode, passing, quoted, unquoted
from bridges.message import Message

ID = UUID("0190a5a0-0000-7000-8000-000000000001")
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
WHOLE = Message(ID, "orders.paid", b"{}", "k", "application/json", {"traceparent": "00-1-2-01", "Own": "v"}, NOON)


def test_the_names_on_the_wire() -> None:
    assert dict(encode(WHOLE, key=True)) == {
        "outbox-id": str(ID),
        "outbox-topic": "orders.paid",
        "outbox-key": "k",
        "outbox-created-at": "2030-01-01T12:00:00+00:00",
        "content-type": "application/json",
        "traceparent": "00-1-2-01",
        "Own": "v",
    }


def test_the_key_is_no_header_where_the_broker_has_keys() -> None:
    assert "outbox-key" not in dict(encode(WHOLE, key=False))


def test_what_is_not_there_is_not_sent() -> None:
    assert set(dict(encode(Message(ID, "t", b""), key=True))) == {"outbox-id", "outbox-topic", "content-type"}


def test_a_replay_is_a_header_like_any_other() -> None:
    """Consumers see it, and so does a bridge that passes the message on."""
    replayed = WHOLE._replace(headers={REPLAYED: "2030-01-01"})
    headers = dict(encode(replayed, key=True))
    assert headers["outbox-replayed"] == "2030-01-01"
    assert decode(headers, replayed.payload, topic="t", key=None, origin="o") == replayed


def test_a_copy_is_told_apart_by_its_replay_and_by_the_topic_that_a_bridge_gave_it() -> None:
    """And not by the bridges that it has passed: one that brings it back to where it was brings nothing new."""
    replayed = WHOLE._replace(headers={REPLAYED: "2030-01-01"})
    there = passing(WHOLE, "there", "shop.paid")
    further = passing(there, "further", "audit.paid")
    assert [copy_of(each) for each in (WHOLE, passing(WHOLE, "mirror", WHOLE.topic))] == ["", ""]
    assert [copy_of(each) for each in (there, further)] == ["/shop.paid", "/audit.paid"]
    assert copy_of(passing(further, "back", WHOLE.topic)) == ""
    assert [copy_of(each) for each in (replayed, passing(replayed, "there", "shop.paid"))] == [".2030-01-01", ".2030-01-01/shop.paid"]


def test_an_empty_key_is_a_key() -> None:
    assert dict(encode(Message(ID, "t", b"", key=""), key=True))["outbox-key"] == ""


def test_a_foreign_message_is_called_what_the_broker_calls_it() -> None:
    message = decode({"Nats-Something": "x"}, b"p", topic="shop.a", key="k", origin="EVENTS/7")
    assert message == Message(message.id, "shop.a", b"p", "k", "application/octet-stream", {"Nats-Something": "x"}, None)


def test_a_foreign_message_has_an_id_of_its_place() -> None:
    """The same on every delivery, and another at every place."""
    ids = [decode({}, b"", topic="t", key=None, origin=origin).id for origin in ("EVENTS/7", "EVENTS/7", "EVENTS/8")]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("text", ["", "order-17", "0190a5a0", "{}"])
def test_an_id_that_is_none_of_ours_is_not_taken_for_one(text: str) -> None:
    expected = decode({}, b"", topic="t", key=None, origin="o").id
    assert decode({"outbox-id": text}, b"", topic="t", key=None, origin="o").id == expected


@pytest.mark.parametrize("text", ["", "yesterday", "2030-13-01"])
def test_a_time_that_cannot_be_read_is_not_known(text: str) -> None:
    assert decode({"outbox-created-at": text}, b"", topic="t", key=None, origin="o").created_at is None


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("plain", "plain"),
        ("a b", "a b"),
        (" a", "%20a"),
        ("a ", "a%20"),
        ("100%", "100%25"),
        ("é", "%C3%A9"),
        ("a\r\n", "a%0D%0A"),
        ("", ""),
    ],
)
def test_what_is_quoted_and_what_is_not(text: str, wire: str) -> None:
    assert quoted(text) == wire
    assert unquoted(wire) == text


@pytest.mark.parametrize("wire", ["100%", "%zz", "%"])
def test_a_foreign_value_that_was_never_quoted_is_left_alone(wire: str) -> None:
    assert unquoted(wire) == wire
