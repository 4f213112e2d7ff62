"""Bad input is refused by the Outbox before its connection is touched."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NoReturn
from uuid import UUID

import pytest

from bridges.errors import InvalidMessage
from outbox import Draft, Outbox
from outbox.writer import to_json


class Untouchable:
    """A connection that fails the test as soon as anything is asked of it, its class included."""

    def __getattribute__(self, name: str) -> NoReturn:
        pytest.fail(f"the connection was touched: {name}")


NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def _nested(depth: int) -> object:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


def _circle() -> object:
    circle: list[object] = []
    circle.append(circle)
    return circle


BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "NaN": ("payload", {"payload": {"a": math.nan}}),
    "Infinity": ("payload", {"payload": [math.inf]}),
    "minus Infinity": ("payload", {"payload": -math.inf}),
    "NaN as a name": ("payload", {"payload": {math.nan: 1}}),
    "a lone surrogate": ("payload", {"payload": "\ud800"}),
    "a lone surrogate deep down": ("payload", {"payload": {"a": [{"b": "x\udfff"}]}}),
    "a lone surrogate in a name": ("payload", {"payload": {"\udc00": 1}}),
    "a NUL": ("payload", {"payload": "a\0b"}),
    "a NUL in a name": ("payload", {"payload": {"\0": 1}}),
    "a NUL behind a backslash": ("payload", {"payload": "\\\0"}),
    "a NUL behind two backslashes": ("payload", {"payload": "\\\\\0"}),
    "a NUL behind a harmless look-alike": ("payload", {"payload": ["\\u0000", "\0"]}),
    "nesting, 100,000 deep": ("payload", {"payload": _nested(100_000)}),
    "a circle": ("payload", {"payload": _circle()}),
    "not serialisable": ("payload", {"payload": object()}),
    "a set": ("payload", {"payload": {1, 2}}),
    "a date": ("payload", {"payload": NOON}),
    "a name that is no text": ("payload", {"payload": {(1, 2): 3}}),
    "a number of too many digits": ("payload", {"payload": 10**5000}),
    "over the limit": ("payload", {"payload": b"x" * (1024 * 1024 + 1)}),
    "over the limit as JSON": ("payload", {"payload": "x" * (1024 * 1024 - 1)}),
    "over the limit in UTF-8 only": ("payload", {"payload": "ü" * (512 * 1024)}),
    "an empty topic": ("topic", {"topic": ""}),
    "a topic over 255 bytes": ("topic", {"topic": "x" * 256}),
    "white space in a topic": ("topic", {"topic": "a b"}),
    "a control character in a topic": ("topic", {"topic": "a\x07"}),
    "a wildcard in a topic": ("topic", {"topic": "a.*"}),
    "the other wildcard": ("topic", {"topic": "a.>"}),
    "an empty token": ("topic", {"topic": "a..b"}),
    "a leading $": ("topic", {"topic": "$JS.API"}),
    "a topic with a lone surrogate": ("topic", {"topic": "\ud800"}),
    "a topic that is no text": ("topic", {"topic": None}),
    "a key over 1 KiB": ("key", {"key": "k" * 1025}),
    "a NUL in a key": ("key", {"key": "\0"}),
    "a key with a lone surrogate": ("key", {"key": "\udfff"}),
    "a key that is no text": ("key", {"key": 42}),
    "a header's name": ("headers", {"headers": {"a b": "c"}}),
    "an empty header's name": ("headers", {"headers": {"": "c"}}),
    "a reserved header of NATS": ("headers", {"headers": {"Nats-Msg-Id": "c"}}),
    "a reserved header of ours": ("headers", {"headers": {"outbox-id": "c"}}),
    "a CR in a header": ("headers", {"headers": {"a": "b\rc"}}),
    "an LF in a header": ("headers", {"headers": {"a": "b\nc"}}),
    "a NUL in a header": ("headers", {"headers": {"a": "b\0c"}}),
    "a lone surrogate in a header": ("headers", {"headers": {"a": "\ud800"}}),
    "a header that is no text": ("headers", {"headers": {"a": 1}}),
    "headers over their limit": ("headers", {"headers": {"a": "x" * 40_000}}),
    "an id that is no UUID": ("id", {"id": "order-17"}),
    "an empty id": ("id", {"id": ""}),
    "a number for an id": ("id", {"id": 17}),
    "a naive deliver_at": ("deliver_at", {"deliver_at": NOON.replace(tzinfo=None)}),
    "a naive expires_at": ("expires_at", {"expires_at": NOON.replace(tzinfo=None)}),
    "text for a time": ("deliver_at", {"deliver_at": "2030-01-01T00:00:00Z"}),
    "expired before it is delivered": ("expires_at", {"deliver_at": NOON, "expires_at": NOON - timedelta(microseconds=1)}),
    "a negative priority": ("priority", {"priority": -1}),
    "a priority over a smallint": ("priority", {"priority": 32768}),
    "a fraction of a priority": ("priority", {"priority": 1.5}),
    "text for a priority": ("priority", {"priority": "1"}),
    "a content type with a line end": ("content_type", {"content_type": "a\n"}),
    "an empty content type": ("content_type", {"content_type": ""}),
    # Bugs: the first reaches Postgres, the others are OverflowErrors.
    "BUG true for a priority": ("priority", {"priority": True}),
    "BUG a time before the first in UTC": ("deliver_at", {"deliver_at": datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))}),
    "BUG a time after the last in UTC": ("expires_at", {"expires_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))}),
}


def _draft(fields: dict[str, Any]) -> dict[str, Any]:
    return {"topic": "t", "payload": {}, **fields}


@pytest.mark.parametrize(("field", "fields"), BAD.values(), ids=list(BAD))
def test_put_refuses_it_and_names_the_field(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage) as caught:
        Outbox().put(Untouchable(), **_draft(fields))
    assert caught.value.field == field
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("field", "fields"), BAD.values(), ids=list(BAD))
def test_put_many_refuses_all_if_one_is_bad(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage) as caught:
        Outbox().put_many(Untouchable(), [Draft("t", {}), Draft(**_draft(fields)), Draft("t", {})])
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["NaN", "an empty topic", "an id that is no UUID", "a naive deliver_at", "over the limit"])
async def test_the_asynchronous_puts_refuse_the_same(name: str) -> None:
    field, fields = BAD[name]
    with pytest.raises(InvalidMessage, match=f"^{field}: "):
        await Outbox().aput(Untouchable(), **_draft(fields))
    with pytest.raises(InvalidMessage, match=f"^{field}: "):
        await Outbox().aput_many(Untouchable(), [Draft("t", {}), Draft(**_draft(fields))])


def test_nothing_is_asked_of_a_connection_for_no_drafts() -> None:
    assert Outbox().put_many(Untouchable(), []) == []


def test_the_untouchable_connection_notices_a_sound_message() -> None:
    """The tests above can fail: a message that passes reaches the connection."""
    with pytest.raises(pytest.fail.Exception, match="the connection was touched"):
        Outbox().put(Untouchable(), "t", {})


def test_a_limit_of_ones_own_is_kept() -> None:
    with pytest.raises(InvalidMessage, match="11 bytes; the limit is 10"):
        Outbox(max_payload=10).put(Untouchable(), "t", b"x" * 11)


def test_a_bad_content_type_is_refused_when_the_outbox_is_made() -> None:
    with pytest.raises(InvalidMessage, match=r"^content_type: "):
        Outbox(content_type="ü")


@pytest.mark.parametrize(
    "payload",
    ["\\u0000", "\\\\u0000", "\\\\\\u0000", {"\\u0000": "\\u0000"}, ["u0000"], "\x01", "🦀", _nested(100), None, True, 1.5, "\ufffd"],
    ids=repr,
)
def test_what_json_and_jsonb_can_hold_is_serialized_as_it_is(payload: object) -> None:
    """A backslash followed by u0000 is no NUL."""
    assert json.loads(to_json(payload)) == payload


def test_json_is_compact_and_in_utf8() -> None:
    assert to_json({"a": [1, "ü"]}) == '{"a":[1,"ü"]}'.encode()


def _row(**fields: Any) -> tuple[Any, ...]:
    from contextlib import ExitStack

    with ExitStack() as spans:
        return Outbox()._row(Draft(**_draft(fields)), spans)


@pytest.mark.parametrize("given", ["0190a5a0-0000-7000-8000-000000000001", UUID("0190a5a0-0000-7000-8000-000000000001")])
def test_an_id_may_be_text_or_a_uuid(given: UUID | str) -> None:
    assert _row(id=given)[0] == UUID("0190a5a0-0000-7000-8000-000000000001")


def test_bytes_go_as_they_are_and_everything_else_through_the_serializer() -> None:
    assert _row(payload=b"\0\xff")[3:5] == (b"\0\xff", "application/octet-stream")
    assert _row(payload=memoryview(b"ab"))[3:5] == (b"ab", "application/octet-stream")
    assert _row(payload="ab")[3:5] == (b'"ab"', "application/json")
    assert _row(payload=b"<a/>", content_type="text/xml")[3:5] == (b"<a/>", "text/xml")


def test_the_limits_themselves_are_allowed() -> None:
    row = _row(topic="x" * 255, key="k" * 1024, payload=b"x" * 1024 * 1024, priority=32767, deliver_at=NOON, expires_at=NOON)
    assert row[6:] == (NOON, NOON, 32767)


def test_a_serializer_that_returns_text_is_refused() -> None:
    """``serializer=json.dumps`` is the likely mistake, and Postgres would read its backslashes as bytea's own escapes."""
    with pytest.raises(InvalidMessage, match=r"^payload: "):
        Outbox(serializer=json.dumps).put(Untouchable(), "t", {"a": "\\101"})  # type: ignore[arg-type]  # that is the mistake
