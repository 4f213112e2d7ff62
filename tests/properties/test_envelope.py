"""What travels comes back: a message through its headers, and any text through the quoting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from bridges.envelope import decode, encode, quoted, text_of, text_of_time, unquoted
from bridges.message import Message, check_message

texts = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(' %25"\\\t\r\n\0é🦀')), max_size=20)
values = texts.filter(lambda text: not set(text) & set("\r\n\0"))
names = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True).filter(
    lambda name: not name.lower().startswith(("nats-", "outbox-")) and name.lower() != "content-type"
)
zones = st.sampled_from([UTC, timezone(timedelta(hours=-5)), timezone(timedelta(hours=5, minutes=30))])
messages = st.builds(
    Message,
    id=st.uuids(),
    topic=st.sampled_from(["a", "orders.created", "ü.日本", "100%", "%41.b"]),
    payload=st.binary(max_size=8),
    key=st.one_of(st.none(), texts.filter(lambda text: "\0" not in text)),
    content_type=st.sampled_from(["application/json", "text/plain; charset=utf-8", " ", "50%"]),
    headers=st.dictionaries(names, values, max_size=4),
    created_at=st.one_of(st.none(), st.datetimes(timezones=zones)),
)


@given(st.datetimes(timezones=zones))
def test_a_time_is_written_as_python_writes_it(time: datetime) -> None:
    assert text_of_time(time) == time.isoformat()


@given(st.uuids())
def test_an_id_is_written_as_python_writes_it(given_id: UUID) -> None:
    assert text_of(given_id) == str(given_id)


@given(texts)
def test_any_text_comes_back_from_its_quoting(text: str) -> None:
    assert unquoted(quoted(text)) == text


@given(texts)
def test_what_is_quoted_is_printable_ascii_without_blanks_at_its_ends(text: str) -> None:
    """What NATS does not change, and what cannot end a header's line."""
    wire = quoted(text)
    assert wire.isascii()
    assert wire.isprintable() or wire == ""
    assert wire == wire.strip()


@given(st.text("abcXYZ019-_./:;=, ", max_size=20).map(str.strip))
def test_ordinary_text_is_sent_as_it_is(text: str) -> None:
    assert quoted(text) == text


@given(messages)
def test_a_message_comes_back_with_its_key_in_a_header(message: Message) -> None:
    check_message(message)
    wire = {name: quoted(value) for name, value in encode(message, key=True)}
    back = {name: unquoted(value) for name, value in wire.items()}
    assert decode(back, message.payload, topic="elsewhere", key=None, origin="somewhere") == message


@given(messages)
def test_a_message_comes_back_with_its_key_beside_its_headers(message: Message) -> None:
    back = dict(encode(message, key=False))
    assert decode(back, message.payload, topic="elsewhere", key=message.key, origin="somewhere") == message


@given(messages)
def test_no_header_of_a_message_has_a_name_of_ours_in_any_case(message: Message) -> None:
    ours = dict(encode(message._replace(headers={}, key="k", created_at=datetime.now(UTC)), key=True))
    assert len(ours) == 5
    assert not {name.lower() for name in message.headers} & set(ours)


@given(st.dictionaries(st.text(max_size=12), texts, max_size=4), st.binary(max_size=4), texts.filter(lambda text: "\0" not in text))
def test_anything_can_be_decoded_and_its_id_is_the_same_each_time(headers: dict[str, str], payload: bytes, origin: str) -> None:
    one, again = (decode(headers, payload, topic="t", key="k", origin=origin) for _ in range(2))
    assert one == again
    assert isinstance(one.id, UUID)
    assert one.created_at is None or isinstance(one.created_at, datetime)
