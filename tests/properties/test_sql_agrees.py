"""Python refuses what the table refuses, and the other way round: the same strings to both.

NUL and lone surrogates are left out: Postgres cannot even receive them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridges.errors import InvalidMessage
from bridges.message import check_content_type, check_headers, check_key, check_topic

# Rows come by the hundred: one statement tells which of them the table takes.
BATCH: Final = 100
few = settings(max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))

_SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u180e\u2000\u2005\u200a\u200b\u200c\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
_NASTY = _SPACES + "\x01\x08\x1b\x7f\x80\x9f\xa1.*>$^\\\"'{}[]%:/?#-_|" + "aZ09éß\u0131\u017f\u212a\u0300\u0430日\ufffd\ufffe🦀\U0010ffff"
nasty = st.one_of(st.sampled_from(_NASTY), st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def texts(most: int) -> st.SearchStrategy[str]:
    """Short ones, and ones about the length of a limit, in one, two and four bytes a character."""
    long = st.builds(lambda unit, size, end: unit * (size // len(unit.encode())) + end, st.sampled_from(["x", "é", "🦀", "a.", '"']),
                     st.integers(most - 4, most + 4), st.text(nasty, max_size=2))  # fmt: skip
    return st.one_of(st.text(nasty, max_size=6), st.text(nasty, max_size=6), long)


TRY: Final = """
CREATE FUNCTION pg_temp.takes(topic text, key text, content_type text, headers jsonb) RETURNS text LANGUAGE plpgsql AS $body$
DECLARE constraint_name text;
BEGIN
    INSERT INTO outbox.messages (topic, key, content_type, headers, payload) VALUES (topic, key, content_type, headers, '');
    RETURN '';
EXCEPTION WHEN check_violation THEN
    GET STACKED DIAGNOSTICS constraint_name = CONSTRAINT_NAME;
    RETURN constraint_name;
END $body$"""

Takes = Callable[[list[dict[str, Any]]], list[str]]


@pytest.fixture
def takes(database: str) -> Iterator[Takes]:
    """Insert rows, each in a savepoint, and return for each the constraint that refused it, or an empty text."""
    with psycopg.connect(database) as connection:
        connection.execute(TRY)

        def ask(rows: list[dict[str, Any]]) -> list[str]:
            columns = [[row.get(name, default) for row in rows] for name, default in (("topic", "t"), ("key", None), ("content_type", "a"))]
            headers = [json.dumps(row.get("headers", {})) for row in rows]
            answers = connection.execute(
                """SELECT pg_temp.takes(topic, key, content_type, headers::jsonb)
                   FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[]) WITH ORDINALITY
                        AS new (topic, key, content_type, headers, place)
                   ORDER BY place""",
                [*columns, headers],
            ).fetchall()
            connection.rollback()
            connection.execute(TRY)
            return [answer for (answer,) in answers]

        yield ask


def sound(check: Callable[[Any], None], value: object) -> bool:
    try:
        check(value)
    except InvalidMessage:
        return False
    return True


def agree(takes: Takes, field: str, check: Callable[[Any], None], values: list[Any]) -> None:
    refused_by = takes([{field: value} for value in values])
    differ = [(value, by or "taken") for value, by in zip(values, refused_by, strict=True) if sound(check, value) != (by == "")]
    if differ:
        value, by = min(differ, key=lambda one: len(repr(one[0])))
        said = f"{repr(value)[:60]} ({len(repr(value))} characters)"
        pytest.fail(f"{len(differ)} times Python says the contrary of the table; of {said} the table said {by!r}", pytrace=False)


@given(values=st.lists(texts(255), min_size=BATCH, max_size=BATCH))
@few
def test_topics(takes: Takes, values: list[str]) -> None:
    agree(takes, "topic", check_topic, values)


def test_topics_with_each_character_of_the_first_plane(takes: Takes) -> None:
    """Every character at the beginning, in the middle, at the end and alone."""
    characters = [chr(code) for code in range(1, 0x10000) if not 0xD800 <= code < 0xE000 and (code < 0x3100 or code > 0xFE00)]
    agree(takes, "topic", check_topic, [f"a{character}b" for character in characters])
    agree(takes, "topic", check_topic, [text for c in _NASTY for text in (c, f"{c}a", f"a{c}", f"a.{c}", f"{c}.a", f"a.{c}.b")])


@given(values=st.lists(texts(1024), min_size=BATCH, max_size=BATCH))
@few
def test_keys(takes: Takes, values: list[str]) -> None:
    agree(takes, "key", check_key, values)


@given(values=st.lists(texts(255), min_size=BATCH, max_size=BATCH))
@few
def test_content_types(takes: Takes, values: list[str]) -> None:
    agree(takes, "content_type", check_content_type, values)


def header_names(*, but: str = "") -> st.SearchStrategy[str]:
    prefix = st.sampled_from(["", "nats", "Nats-", "NATS-", "outbox-", "OutBox-", "content-type", "Content-Type", "x-nats-", "traceparent"])
    ends = st.one_of(st.text("aZ09_-", max_size=4), st.text(nasty, max_size=2), st.sampled_from(["x" * 120, "x" * 128, "x" * 129, "\n"]))
    return st.builds(str.__add__, prefix, ends).filter(lambda name: not but or name.lower() != but)


values_of_headers = st.text(nasty, max_size=8)


# The bug below has a test of its own, so that it does not hide another.
@given(values=st.lists(st.dictionaries(header_names(but="content-type"), values_of_headers, max_size=3), min_size=BATCH, max_size=BATCH))
@few
def test_headers(takes: Takes, values: list[dict[str, str]]) -> None:
    agree(takes, "headers", check_headers, values)


@pytest.mark.parametrize("value", [1, 1.5, None, True, [], {}, ["a"], {"a": "b"}])
def test_header_values_that_are_no_text(takes: Takes, value: object) -> None:
    agree(takes, "headers", check_headers, [{"a": value}, {"a": "b", "c": value}])


def test_headers_about_the_limit_of_their_size(takes: Takes) -> None:
    agree(takes, "headers", check_headers, [{"a": "x" * size} for size in range(32750, 32770)])
    agree(takes, "headers", check_headers, [{"a": "é" * size, "b": ""} for size in range(16360, 16385)])


def test_the_table_refuses_the_header_content_type_too(takes: Takes) -> None:
    """Python reserves it, since it is the content type on the wire; plain SQL may set it, and then two of it are sent."""
    agree(takes, "headers", check_headers, [{"content-type": "a"}, {"Content-Type": "a"}, {"content-types": "a"}])


@pytest.mark.parametrize("character", ['"', "\\", "\x01", "\t"])
def test_headers_are_measured_as_the_table_measures_them(takes: Takes, character: str) -> None:
    """The table counts escapes. Python does not: such a put fails in the database, and takes the caller's transaction with it."""
    agree(takes, "headers", check_headers, [{"a": character * size} for size in (5_000, 6_000, 16_000, 17_000, 30_000)])
